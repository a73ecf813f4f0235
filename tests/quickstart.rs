//! The README's first command, on the real binary: what a stranger sees first.

use std::process::Command;

#[path = "support/mod.rs"]
mod support;

#[test]
fn quickstart_runs_and_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let output = Command::new(support::NEAP)
        .args(["run", "--standalone", "scripts/quickstart.lua"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PORT", support::free_port().to_string())
        .env("TMPDIR", temp.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("three replicas: 1000 requests, 0 failed"), "{out}");
    assert!(out.contains("rolled out v2 under load"), "{out}");
    assert!(out.contains("revision 3 was rolled back to revision 2"), "{out}");
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn quickstart_is_short() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/quickstart.lua")).unwrap();
    assert!(text.lines().count() <= 60);
}
