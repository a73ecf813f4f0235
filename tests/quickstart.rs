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

/// A standalone run that deploys two replicas and stays.
fn standalone(temp: &std::path::Path) -> (std::process::Child, u16) {
    let port = support::free_port();
    let script = temp.join("stay.lua");
    let program = support::NEAP;
    std::fs::write(
        &script,
        format!(
            "service 'web' {{ command = {{ '{program}', 'demo' }}, replicas = 2, ports = {{ http = {port} }}, check = {{ http = '/healthz' }} }}:apply {{ wait = '20s' }}\nprint 'up'\ntime.sleep '60s'"
        ),
    )
    .unwrap();
    let child = Command::new(program)
        .args(["run", "--standalone"])
        .arg(&script)
        .env("TMPDIR", temp)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    support::eventually("it serves", 20, || support::get(port, "/").ok());
    (child, port)
}

fn nothing_left(temp: &std::path::Path) {
    support::eventually("nothing is left behind", 30, || {
        let folders = std::fs::read_dir(temp).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
        let wanted = temp.display().to_string();
        let processes = support::processes().into_iter().filter(|(_, line)| line.contains(&wanted)).count();
        (folders == 0 && processes == 0).then_some(())
    });
}

#[test]
fn a_killed_standalone_run_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let (mut child, port) = standalone(temp.path());
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_left(temp.path());
    assert!(support::get(port, "/").is_err());
}

#[test]
fn an_interrupted_standalone_run_cleans_up_before_it_ends() {
    let temp = tempfile::tempdir().unwrap();
    let (mut child, _) = standalone(temp.path());
    support::signal(child.id(), "INT");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    nothing_left(temp.path());
}
