//! The REPL in a pipe, on the real binary: what it prints, how it fails, and that it comes back with its daemon.

use std::io::Write;
use std::process::{Command, Stdio};

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP};

fn repl(daemon: &Daemon, input: &str) -> (i32, String, String) {
    let mut child = Command::new(NEAP)
        .arg("repl")
        .env("NEAP_HOST", format!("unix://{}", daemon.socket().display()))
        .env("NEAP_CONFIG", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn check(daemon: &Daemon, input: &str, expected: &str) {
    let (code, out, error) = repl(daemon, input);
    assert_eq!((code, out.as_str()), (0, expected), "for {input}\n{error}");
}

#[test]
fn values_are_printed_and_names_last() {
    let daemon = Daemon::start();
    check(&daemon, "1 + 2", "3\n");
    check(&daemon, "local x = 20\nx + 1\n", "21\n");
    check(&daemon, "\"text\"", "text\n");
    check(
        &daemon,
        "{ a = 1, b = { 'x', 'y' }, ['c d'] = true }",
        "{ a = 1, b = { \"x\", \"y\" }, [c d] = true }\n".replace("[c d]", "[\"c d\"]").as_str(),
    );
    check(&daemon, "for i = 1, 2 do\n  print(i)\nend\n", "1\n2\n");
    check(&daemon, "function f(n)\n  return n * 2\nend\nf(4)", "8\n");
    check(&daemon, "x = nil", "");
    check(&daemon, "{ { name = 'b', n = 1 }, { name = 'a', n = 22 } }", "NAME  N\nb     1\na     22\n");
    let (_, out, _) = repl(&daemon, "local t = {} for i = 1, 120 do t[i] = i end return t");
    assert!(out.ends_with("... and 70 more, 120 in all\n"), "{out}");
    let (_, out, _) =
        repl(&daemon, "service \"web\" { command = { \"sleep\", \"100\" } }:apply { wait = \"10s\" }\nservices.list()");
    assert!(out.contains("web   replicated  1/1       1         healthy"), "{out}");
    let (_, out, _) = repl(&daemon, "help(services.get)");
    assert!(out.starts_with("services.get(name: string) -> Service\n"), "{out}");
    let (_, out, _) = repl(&daemon, "help \"services.gte\"");
    assert!(out.contains("did you mean \"services.get\"?"), "{out}");
}

#[test]
fn the_first_failure_ends_a_pipe_with_its_exit_code() {
    let daemon = Daemon::start();
    let (code, out, error) = repl(&daemon, "print 'before'\nservices.get 'nobody'\nprint 'after'");
    assert_eq!((code, out.as_str()), (4, "before\n"));
    assert!(error.contains("service \"nobody\": not found"), "{error}");
    let (code, _, error) = repl(&daemon, "x = = 1");
    assert!(code == 3 && error.contains("syntax"), "{error}");
    let (code, _, error) = repl(&daemon, "serivces.list()");
    assert!(code == 3 && error.contains("did you mean \"services\"?"), "{error}");
    let (code, _, error) = repl(&daemon, "policy 'x' {}");
    assert!(code == 3 && error.contains("policy belongs in a hosted script"), "{error}");
    let (code, _, error) = repl(&daemon, "for i = 1, 2 do");
    assert!(code == 3 && error.contains("syntax"), "{error}");
}

#[test]
fn several_are_attached_at_once_and_outlive_their_daemon() {
    let mut daemon = Daemon::start();
    let start = |daemon: &Daemon| {
        Command::new(NEAP)
            .args([
                "repl",
                "--eval",
                "kv.watch('go', function(key, value) return value end)\nlocal n = #services.list() print('seen ' .. n)",
            ])
            .env("NEAP_HOST", format!("unix://{}", daemon.socket().display()))
            .env("NEAP_CONFIG", "/dev/null")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let sessions: Vec<_> = (0..5).map(|_| start(&daemon)).collect();
    std::thread::sleep(std::time::Duration::from_millis(300));
    daemon.ok(&["kv", "set", "go", "now"]);
    for session in sessions {
        let out = session.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "now\nseen 0\n");
    }
    // One session, a daemon that goes and comes back in between.
    let mut child = Command::new(NEAP)
        .args(["repl", "--eval", "print(#services.list())\nwhile not pcall(function() kv.set('again', 1) assert(kv.get('restarted')) end) do time.sleep '20ms' end\nprint(#services.list())"])
        .env("NEAP_HOST", format!("unix://{}", daemon.socket().display()))
        .env("NEAP_CONFIG", "/dev/null")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    support::eventually("the session has begun", 10, || {
        let entries = daemon.json(&["kv", "ls", "again", "--format", "json"]);
        (!entries.as_array().unwrap().is_empty()).then_some(())
    });
    daemon.kill();
    daemon.up();
    daemon.ok(&["kv", "set", "restarted", "1"]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn print_shows_what_is_in_a_table() {
    let daemon = Daemon::start();
    let shown = |line: &str| daemon.ok(&["repl", "--eval", line]);
    assert_eq!(shown("print({ 1, 'two', { a = true } }, {}, 'text')"), "{ 1, \"two\", { a = true } }\t{}\ttext\n");
    assert_eq!(shown("print({ 1, nil, 3 })"), "{ [1] = 1, [3] = 3 }\n");
    assert_eq!(shown("print(setmetatable({ 1 }, { __tostring = function() return 'mine' end }))"), "mine\n");
    let long = shown("local t = {} for i = 1, 3000 do t[i] = i end print(t)");
    assert!(long.contains("\n  50,\n  ... and at least 2950 more,\n") && !long.contains("  51,"), "{long}");
    let deep = shown("local t = { 1 } t.t = t print(t)");
    assert!(deep.contains("{ 2 entries }") && deep.len() < 2000, "{deep}");
}
