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
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_left(temp.path());
}

#[test]
fn a_script_that_never_waits_can_be_ended() {
    let temp = tempfile::tempdir().unwrap();
    let script = temp.path().join("busy.lua");
    std::fs::write(&script, "print 'busy'\nwhile true do end").unwrap();
    let mut child = Command::new(support::NEAP)
        .args(["run", "--standalone"])
        .arg(&script)
        .env("TMPDIR", temp.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut String::new()).unwrap();
    support::signal(child.id(), "TERM");
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("was interrupted"));
    nothing_left(temp.path());
}

#[test]
fn mistakes_in_a_deploy_script_are_shown_where_they_stand() {
    let temp = tempfile::tempdir().unwrap();
    for (source, words) in [
        (
            "local x = 1\nservce 'web' {}",
            "nothing is called \"servce\"; did you mean \"service\"?\n  --> it.lua:2\n  2 | servce 'web' {}",
        ),
        ("services.gett 'web'", "services has nothing called \"gett\"; did you mean \"get\"?\n  --> it.lua:1"),
        (
            "service 'web' { comand = { 'x' } }",
            "service \"web\": unknown field \"comand\"; did you mean \"command\"?\n  --> it.lua:1",
        ),
        ("service 'web' { command = { nil, 'x' } }", "command[1]: is nil"),
        (
            "service 'web' { command = { 'x' }, replicas = 1.5 }",
            "replicas: expected a whole number, 0 or more, got 1.5",
        ),
        ("policy 'p' { score = function() end }", "policy belongs in a hosted script"),
        ("scripts 'nothing/*.lua'", "matches no script"),
        ("fs.read '/no/such/file'", "file /no/such/file: cannot read it"),
        ("sh 'exit 3'", "exit code 3"),
        (
            "local t = {} for i = 1, 1e9 do t[i] = string.rep('x', 1000000) .. i end",
            "needs more memory than it may have",
        ),
        ("error 'my own words'", "my own words\n  --> it.lua:1"),
        ("print(", "syntax:"),
    ] {
        let script = temp.path().join("it.lua");
        std::fs::write(&script, source).unwrap();
        let output = Command::new(support::NEAP)
            .args(["run", "--standalone"])
            .arg(&script)
            .env("TMPDIR", temp.path())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(words), "{source}: {error}");
    }
}
