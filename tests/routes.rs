//! Routes of HTTP requests, as users set them: through scripts, the command line and the API.

#[path = "support/mod.rs"]
mod support;

use std::process::Command;

use support::{Daemon, NEAP, eventually, free_port};

// What a server answers for a host and a path: the status and the body.
fn ask(port: u16, host: &str, path: &str, more: &[&str]) -> (String, String) {
    let scheme = if more.contains(&"--cacert") { "https" } else { "http" };
    let output = Command::new("curl")
        .args([
            "-s",
            "--max-time",
            "10",
            "-w",
            "\n%{http_code}",
            "--connect-to",
            &format!("{host}:{port}:127.0.0.1:{port}"),
        ])
        .args(more)
        .arg(format!("{scheme}://{host}:{port}{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

fn create(daemon: &Daemon, name: &str, answer: &str, flags: &[&str]) {
    let start = ["service", "create", "--name", name, "--health-http", "/healthz", "--health-interval", "200ms"];
    let end = ["--", NEAP, "demo", "--answer", answer];
    daemon.ok(&[&start[..], flags, &end].concat());
}

#[test]
fn a_script_deploys_a_canary_behind_one_name() {
    let daemon = Daemon::start();
    let port = free_port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/routes.lua");
    let output = daemon.command(&["run", script, &port.to_string()]).env("NEAP_PROGRAM", NEAP).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("shop: http://shop.test:{port}/, 3 replicas")), "{said}");
    let mut next = 0;
    eventually("the route is listened for", 10, || (ask(port, "shop.test", "/", &[]).0 == "200").then_some(()));
    for _ in 0..100 {
        let (status, body) = ask(port, "shop.test", "/", &[]);
        assert_eq!(status, "200", "{body}");
        next += u32::from(body.contains("v2"));
    }
    assert!((9..=11).contains(&next), "{next} of 100 went to the new version");
    assert!(ask(port, "old.shop.test", "/", &[]).1.contains("v1"));
    assert_eq!(ask(port, "other.test", "/", &[]).0, "404");
    // What has gone by is told a few seconds later.
    let shown = || daemon.json(&["route", "inspect", "shop"]);
    eventually("it is counted", 20, || (shown()[0]["passed"]["answers"][1].as_u64()? >= 101).then_some(()));
    let table = daemon.ok(&["route", "ls"]);
    assert!(table.contains("shop 90, shop-next 10") && table.contains("shop/1"), "{table}");
    let run = |word: &str| daemon.command(&["run", script, &port.to_string(), word]).env("NEAP_PROGRAM", NEAP).output();
    let said = String::from_utf8_lossy(&run("--finish").unwrap().stdout).into_owned();
    assert!(said.contains("goes to the new version"), "{said}");
    eventually("all go to the new version", 10, || {
        (0..20).all(|_| ask(port, "shop.test", "/", &[]).1.contains("v2")).then_some(())
    });
    let said = String::from_utf8_lossy(&run("--remove").unwrap().stdout).into_owned();
    assert!(said.contains("are removed") && daemon.ok(&["route", "ls", "-q"]).is_empty(), "{said}");
}

#[test]
fn routes_are_set_and_removed_by_hand() {
    let daemon = Daemon::start();
    let (port, other) = (free_port(), free_port());
    let url = format!("a.test:{port}/healthz");
    create(&daemon, "a", "one", &["--expose", "8080", "--route", &url]);
    create(&daemon, "b", "two", &["--expose", "web=8080"]);
    create(&daemon, "c", "three", &["--expose", "web=8080", "--publish", &format!("p={other}")]);
    assert_eq!(ask(port, "a.test", "/healthz", &[]).0, "200");
    assert_eq!(ask(port, "a.test", "/", &[]).0, "404");
    // Refused: what leads nowhere, what is taken, what cannot be.
    for (args, why) in [
        (vec!["route", "set", "x", "x.test", "--to", "aa"], "did you mean \"a\""),
        (vec!["route", "set", "x", "x.test", "--to", "c"], "does not say which of the ports"),
        (vec!["route", "set", "x", "x.test", "--to", "b:wbe"], "did you mean \"web\""),
        (vec!["route", "set", "x", &format!("x.test:{other}"), "--to", "a"], "which service \"c\" publishes"),
        (vec!["route", "set", "x", "x.test"], "names no service"),
        (vec!["route", "set", "x", "x_.test/?a", "--to", "a"], "is no path"),
        (vec!["route", "set", "x", &url, "--to", "b"], "and so is route \"a/1\""),
        (
            vec!["route", "set", "x", &format!("x.test:{port}"), "--to", "a", "--address", "127.0.0.1"],
            "one is part of the other",
        ),
        (vec!["route", "set", "x", "x.test/100%", "--to", "a"], "without two digits"),
        (vec!["service", "update", "a", "--route-rm", "b.test"], "its routes are: http://a.test"),
        (vec!["route", "set", "x", "x.test/a", "--to", "a", "--passthrough"], "does not go with passthrough"),
        (vec!["route", "rm", "a/1"], "one of a service's own"),
        (vec!["route", "rm", "nobody"], "not found"),
        (
            vec!["service", "create", "--name", "d", "--publish", &port.to_string(), "--", "sleep", "9"],
            "is listened on for route",
        ),
        (vec!["service", "create", "--name", "d", "--route", "d.test", "--", "sleep", "9"], "leads to no port"),
    ] {
        let (_, error) = daemon.fails(&args);
        assert!(error.contains(why), "{args:?}: {error}");
    }
    daemon.ok(&["route", "set", "both", &format!("*:{port}"), "--to", "a=1", "--to", "b:web=1", "--sticky", "at"]);
    eventually("it is followed", 10, || (ask(port, "any.test", "/", &[]).0 == "200").then_some(()));
    let jar = daemon.folder.path().join("jar");
    let jar = jar.to_string_lossy();
    let first = ask(port, "any.test", "/", &["-c", &jar, "-b", &jar]).1;
    for _ in 0..6 {
        assert_eq!(ask(port, "any.test", "/", &["-c", &jar, "-b", &jar]).1, first);
    }
    let bodies: std::collections::BTreeSet<String> = (0..6).map(|_| ask(port, "any.test", "/", &[]).1).collect();
    assert_eq!(bodies.len(), 2, "{bodies:?}");
    daemon.ok(&["route", "set", "both", &format!("any.test:{port}"), "--redirect", "https://b.test/base"]);
    let location = ["-o", "/dev/null", "-w", "%{redirect_url}\n%{http_code}"];
    eventually("it redirects", 10, || {
        (ask(port, "any.test", "/x?y", &location) == ("301".into(), "https://b.test/base/x?y".into())).then_some(())
    });
    // It is there after a restart.
    let mut daemon = daemon;
    daemon.kill();
    daemon.up();
    assert_eq!(daemon.ok(&["route", "ls", "-q"]), "a/1\nboth\n");
    daemon.ok(&["route", "rm", "both"]);
    eventually("it is gone", 10, || (ask(port, "any.test", "/", &[]).0 == "404").then_some(()));
    daemon.ok(&["service", "update", "a", "--route-rm", &url, "--route", &format!("*:{port}")]);
    let (status, body) = ask(port, "any.test", "/", &[]);
    assert!(status == "200" && body.contains("one"), "{status} {body}");
    let shown = daemon.json(&["route", "inspect", "a/1"]);
    assert_eq!(shown[0]["url"], format!("http://*:{port}/"), "the other one is gone");
    // A route whose service is gone says so.
    daemon.ok(&["route", "set", "alone", &format!("b.test:{port}"), "--to", "b"]);
    daemon.ok(&["service", "rm", "b"]);
    let why = eventually("it is told", 10, || {
        daemon.json(&["route", "inspect", "alone"])[0]["problem"].as_str().map(str::to_owned)
    });
    assert!(why.contains("service \"b\" is not there"), "{why}");
    daemon.ok(&["route", "rm", "alone"]);
    daemon.ok(&["service", "rm", "a", "c"]);
    eventually("nobody listens", 10, || std::net::TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
}

// A certificate for a host, from an authority made for it; PEM.
fn certificate(folder: &std::path::Path, host: &str) -> (String, String, String) {
    let run = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let subject = format!("/CN={host}");
    let names = format!("subjectAltName=DNS:{host}");
    #[rustfmt::skip]
    run(&[
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-keyout", &format!("{host}.key"), "-out", &format!("{host}.crt"), "-subj", &subject, "-addext", &names,
    ]);
    let path = |end: &str| folder.join(format!("{host}.{end}")).to_string_lossy().into_owned();
    (path("crt"), path("key"), std::fs::read_to_string(path("crt")).unwrap())
}

#[test]
fn tls_ends_with_the_certificate_of_each_host_and_follows_its_changes() {
    let daemon = Daemon::start();
    let port = free_port();
    let folder = daemon.folder.path().to_owned();
    let (one, one_key, _) = certificate(&folder, "one.test");
    let (two, two_key, _) = certificate(&folder, "two.test");
    create(&daemon, "a", "one", &["--expose", "8080"]);
    daemon.ok(&["secret", "set", "tls/two", &two]);
    daemon.ok(&["secret", "set", "tls/two-key", &two_key]);
    let place = |host: &str| format!("{host}:{port}");
    let by_file = ["--tls-certificate", &one, "--tls-key", &one_key];
    let by_secret = ["--tls-certificate", "secret:tls/two", "--tls-key", "secret:tls/two-key"];
    daemon.ok(&[&["route", "set", "one", &place("one.test"), "--to", "a"][..], &by_file].concat());
    daemon.ok(&[&["route", "set", "two", &place("two.test"), "--to", "a"][..], &by_secret].concat());
    let works = |host: &str, certificate: &str| ask(port, host, "/", &["--cacert", certificate]).0 == "200";
    eventually("both have their own", 15, || (works("one.test", &one) && works("two.test", &two)).then_some(()));
    assert!(!works("one.test", &two));
    // A new one under the same name is taken up, and no connection is refused meanwhile.
    let copy = folder.join("old.crt");
    std::fs::copy(&one, &copy).unwrap();
    certificate(&folder, "one.test");
    eventually("the new one is shown", 20, || works("one.test", &one).then_some(()));
    assert!(!works("one.test", &copy.to_string_lossy()));
    // One that is damaged is told of, and the one before goes on.
    let good = folder.join("good.crt");
    std::fs::copy(&one, &good).unwrap();
    std::fs::write(&one, "no certificate").unwrap();
    let problem = |name: &str| daemon.json(&["route", "inspect", name])[0]["problem"].as_str().map(str::to_owned);
    let why = eventually("it is told", 20, || problem("one"));
    assert!(why.contains("one.test.crt"), "{why}");
    assert_eq!(problem("two"), None, "and of that route alone");
    assert!(works("one.test", &good.to_string_lossy()) && works("two.test", &two));
    // A route without TLS beside them would be in the clear for all, or not at all.
    let (_, error) = daemon.fails(&["route", "set", "plain", &place("three.test"), "--to", "a"]);
    assert!(error.contains("without TLS, where route \"one\" has it"), "{error}");
    let nothing = ["--tls-certificate", "secret:tls/nobody", "--tls-key", "secret:tls/two-key"];
    let (_, error) =
        daemon.fails(&[&["route", "set", "three", &place("three.test"), "--to", "a"][..], &nothing].concat());
    assert!(error.contains("tls/nobody"), "{error}");
    // Nor does a certificate that cannot be used take others' away, and it is told at once.
    let broken = ["--tls-certificate", &one, "--tls-key", &two_key];
    let set = daemon.command(&[&["route", "set", "three", &place("three.test"), "--to", "a"][..], &broken].concat());
    let output = { set }.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("not followed yet"), "{output:?}");
    assert!(works("one.test", &good.to_string_lossy()) && works("two.test", &two));
    assert!(problem("three").is_some());
    let (_, error) = daemon.fails(&["secret", "rm", "tls/two"]);
    assert!(error.contains("route two"), "{error}");
    // In the clear nothing is told there.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n").unwrap();
    let mut told = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut told);
    assert!(!told.starts_with(b"HTTP/"), "{told:?}");
}

#[test]
fn a_script_chooses_who_answers() {
    let daemon = Daemon::start();
    let port = free_port();
    create(&daemon, "shop", "old", &["--expose", "8080", "--replicas", "2"]);
    create(&daemon, "shop-next", "new", &["--expose", "8080"]);
    ["shop", "shop-next"].iter().for_each(|name| _ = daemon.ok(&["service", "wait", name]));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/canary.lua");
    let said = daemon.ok(&["run", script, "shop.test", "shop", "shop-next", &port.to_string()]);
    assert!(said.contains(&format!("http://shop.test:{port}/: shop-next for whoever is chosen")), "{said}");
    let body = |more: &[&str]| {
        let (status, body) = ask(port, "shop.test", "/", more);
        assert_eq!(status, "200", "{body}");
        if body.contains("new") { "new" } else { "old" }
    };
    assert_eq!(body(&[]), "old");
    assert_eq!(body(&["-H", "X-Canary: yes"]), "new");
    assert_eq!(body(&["-b", "user=alice"]), "new");
    assert_eq!(body(&["-H", "X-Canary: no", "-b", "user=alice"]), "old");
    // One user in twenty, and the same ones each time, by HTTP/2 as well.
    let users = |more: &[&str]| -> Vec<usize> {
        (0..60).filter(|user| body(&[&["-b", &format!("user=u{user}")], more].concat()) == "new").collect()
    };
    let chosen = users(&[]);
    assert!((1..=10).contains(&chosen.len()), "{chosen:?}");
    assert_eq!(users(&["--http2-prior-knowledge"]), chosen);
    // Where nobody of the chosen serves, the others do.
    daemon.ok(&["service", "scale", "shop-next=0"]);
    daemon.ok(&["service", "wait", "shop-next"]);
    assert_eq!(body(&["-H", "X-Canary: yes"]), "old");
    let mut events = daemon.command(&["events", "--what", "script.failed", "--count", "1"]);
    let events = events.stdout(std::process::Stdio::piped()).spawn().unwrap();
    // One that fails, names nobody, or goes on for ever: shares count, and it is told.
    let file = daemon.folder.path().join("choose.lua");
    let set = |source: &str| {
        std::fs::write(&file, source).unwrap();
        let url = format!("shop.test:{port}");
        let to = ["route", "set", "shop", &url, "--to", "shop=100", "--to", "shop-next=0", "--choose"];
        daemon.ok(&[&to[..], &[file.to_str().unwrap()]].concat())
    };
    set(
        "local all = {}\nreturn function(request)\n  if request:header \"x-loop\" then while true do end end\n  if request:header \"x-hold\" then all[1] = buffer.create(32 * 1024 * 1024) end\n  if request:header \"x-name\" then return \"other\" end\n  if request:header \"x-number\" then return 5 end\n  return nil .. 1\nend\n",
    );
    let why = |more: &[&str], expected: &str| {
        assert_eq!(body(more), "old", "{expected}");
        let said = eventually(expected, 20, || {
            let said = daemon.json(&["route", "inspect", "shop"])[0]["passed"]["why_unchosen"].as_str()?.to_owned();
            said.contains(expected).then_some(said)
        });
        assert!(said.contains("route \"shop\""), "{said}");
    };
    why(&[], "choose.lua:7");
    why(&["-H", "x-loop: 1"], "computing");
    why(&["-H", "x-name: 1"], "\"other\", which is none of its services");
    why(&["-H", "x-hold: 1"], "memory");
    why(&["-H", "x-number: 1"], "neither a service's name nor nil");
    let unchosen = daemon.json(&["route", "inspect", "shop"])[0]["passed"]["unchosen"].as_u64().unwrap();
    assert!(unchosen >= 5, "{unchosen}");
    let told = String::from_utf8(events.wait_with_output().unwrap().stdout).unwrap();
    assert!(told.contains("shop") && told.contains("choose.lua:7"), "{told}");
    // What makes no sense is refused where it is set.
    for (source, expected) in [
        ("\u{6}\u{1}\u{0}", "binary chunk"),
        ("return 1", "not a function"),
        ("return function(", "choose.lua:1"),
        ("while true do end", "computing"),
    ] {
        std::fs::write(&file, source).unwrap();
        let to = ["route", "set", "shop", "shop.test", "--to", "shop", "--to", "shop-next", "--choose"];
        let (_, said) = daemon.fails(&[&to[..], &[file.to_str().unwrap()]].concat());
        assert!(said.contains(expected), "{source}: {said}");
    }
    let (_, said) =
        daemon.fails(&["route", "set", "one", "one.test", "--to", "shop", "--choose", file.to_str().unwrap()]);
    assert!(said.contains("nothing to choose between"), "{said}");
}
