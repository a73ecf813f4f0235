//! The guide as its reader types it: files as they are named, commands as they stand.

use std::process::Command;

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually};

#[test]
fn every_step_of_the_scripting_guide_works() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guide/scripting.md")).unwrap();
    let mut daemon = Daemon::new();
    let folder = daemon.folder.path().join("guide");
    let bin = daemon.folder.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(NEAP, bin.join("neap")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    daemon.env = vec![("PATH".into(), path.clone())];
    daemon.up();
    let (mut files, mut commands) = (0, 0);
    for part in text.split("```").collect::<Vec<_>>().chunks(2) {
        let [before, block] = part else { continue };
        if let Some(source) = block.strip_prefix("lua\n") {
            // The file's name is the last one in code before the block.
            let name = before.rsplit('`').find(|word| word.ends_with(".lua")).expect("a block of Lua has a name");
            let file = folder.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, source).unwrap();
            files += 1;
        } else if let Some(script) = block.strip_prefix("sh\n") {
            std::fs::create_dir_all(&folder).unwrap();
            let out = Command::new("sh")
                .args(["-euc", script])
                .current_dir(&folder)
                .env("PATH", &path)
                .env("NEAP_HOST", format!("unix://{}", daemon.socket().display()))
                .env("NEAP_CONFIG", "/dev/null")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{script}\n{}{said}\n{}", String::from_utf8_lossy(&out.stdout), daemon.log());
            commands += script.lines().count();
        }
    }
    assert!(files >= 5 && commands >= 15, "only {files} files and {commands} commands");
    assert!(daemon.ok(&["kv", "get", "guide/last-update"]).contains("revision 2"));
    assert_eq!(daemon.ok(&["kv", "get", "guide/healthy"]).trim(), "2");
}

#[test]
fn the_maintenance_script_counts_and_reports() {
    let daemon = Daemon::start();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/maintenance.lua");
    daemon.ok(&["script", "push", "maintenance", file]);
    assert_eq!(daemon.ok(&["cron", "run", "morning-report"]).trim(), "all is well");
    daemon.ok(&[
        "service",
        "create",
        "--name",
        "breaks",
        "--detach",
        "--replicas",
        "3",
        "--restart-condition",
        "none",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]);
    eventually("three failures are counted", 20, || {
        let entries = daemon.json(&["kv", "ls", "maintenance/failures/", "--format", "json"]);
        (entries[0]["value"] == "3").then_some(())
    });
    let report = daemon.ok(&["cron", "run", "morning-report"]);
    assert!(report.contains("breaks: 3 tasks failed") && report.contains("breaks: 0 of 3 healthy"), "{report}");
    let again = daemon.ok(&["cron", "run", "morning-report"]);
    assert!(!again.contains("tasks failed"), "{again}");
    assert!(daemon.json(&["events", "--failed", "--format", "json"]).as_array().unwrap().is_empty());
    // What crashes again and again is heard of while it does, and of what is quiet nothing.
    let watch = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/events.lua");
    daemon.ok(&["service", "create", "--name", "calm", "--", "sleep", "1000"]);
    assert_eq!(daemon.ok(&["run", watch, "calm", "200ms"]), "quiet for 200ms\n");
    let crash = ["--restart-delay", "50ms", "--", "sh", "-c", "exit 3"];
    daemon.ok(&[&["service", "create", "--name", "loops", "--detach"][..], &crash].concat());
    let script =
        "for event in events.watch { service = 'loops', what = 'task.failed' } do print(event.subject) break end";
    assert_eq!(daemon.ok(&["repl", "--eval", script]), "loops.1\n");
}
