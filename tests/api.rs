//! The control API: its description, its errors, rights, tokens, TLS, audit; whatever is sent to it.

#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};

use support::{Daemon, NEAP, free_port};

/// One raw request over the control socket: status and body.
fn raw(daemon: &Daemon, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    // A refused head may close the connection before the body is sent.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

#[test]
fn describes_itself() {
    let daemon = Daemon::start();
    let (status, body) = raw(&daemon, "GET", "/v1/openapi.json", b"");
    assert_eq!(status, 200);
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 12);
    assert!(paths["/v1/apply"]["post"]["requestBody"]["content"]["application/json"]["schema"].is_object());
    // Every reference leads somewhere.
    for part in body.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[test]
fn errors_have_one_shape() {
    let daemon = Daemon::start();
    for (method, path, body, status, word) in [
        ("GET", "/v1/nothing", "", 404, "there is no route"),
        ("PUT", "/v1/services", "", 405, "does not take PUT"),
        ("POST", "/v1/apply", "", 400, "is missing"),
        ("POST", "/v1/apply", "{", 400, "is not JSON"),
        ("POST", "/v1/apply", "[]", 400, "apply"),
        ("POST", "/v1/apply", r#"{"srvice":{}}"#, 400, "did you mean \\\"service\\\"?"),
        ("POST", "/v1/apply", r#"{"service":{"name":"web","comand":["x"]}}"#, 400, "did you mean \\\"command\\\"?"),
        (
            "POST",
            "/v1/apply",
            r#"{"service":{"name":"web","command":["x"],"replicas":-1}}"#,
            400,
            "replicas: expected a whole number, 0 or more, got -1",
        ),
        ("POST", "/v1/apply", r#"{"service":{"name":"web"}}"#, 400, "command: is missing"),
        (
            "POST",
            "/v1/apply",
            r#"{"service":{"name":"web","command":["x"]},"with":{"entries":["a.lua"],"files":{"a.lua":"x ="}}}"#,
            422,
            "syntax",
        ),
        (
            "POST",
            "/v1/apply",
            r#"{"service":{"name":"web","command":["x"]},"with":{"entries":[],"files":{"../a.lua":""}}}"#,
            400,
            "is not a path inside",
        ),
        ("POST", "/v1/services/web/scale", r#"{"replicas":3}"#, 404, "not found"),
        ("GET", "/v1/services/web/logs?flow=true", "", 400, "did you mean \\\"follow\\\"?"),
        ("GET", "/v1/services/web/logs?tail=x", "", 400, "is not a number"),
        ("PATCH", "/v1/nodes/nope", "{}", 404, "not found"),
        ("PUT", "/v1/logins/a%20b", r#"{"username":"a","password":"p","unverified":true}"#, 400, "is no host"),
        ("PUT", "/v1/logins/r.example", r#"{"username":"a","password":271828}"#, 400, "password: is not a text"),
        ("PUT", "/v1/logins/r.example", r#""271828""#, 400, "is no table"),
        (
            "POST",
            "/v1/apply",
            r#"{"service":{"name":"web","command":["x"]},"auth":{"username":"a","password":[271828]}}"#,
            400,
            "auth: is no table with a username",
        ),
        (
            "POST",
            "/v1/apply",
            r#"{"service":{"name":"web","command":["x"]},"auth":"bWU6MjcxODI4 271828"}"#,
            400,
            "auth: is no table with a username",
        ),
    ] {
        let (got, answer) = raw(&daemon, method, path, body.as_bytes());
        assert_eq!(got, status, "{method} {path} {body}: {answer}");
        let error: serde_json::Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"));
        assert!(error["kind"].is_string() && error["message"].is_string() && error["retry"].is_boolean(), "{answer}");
        assert!(answer.contains(word), "{method} {path} {body}: {answer}");
        assert!(!answer.contains("271828"), "{answer}");
    }
    // What was meant as a password is nowhere to be read.
    assert!(!daemon.log().contains("271828"), "{}", daemon.log());
}

#[test]
fn whatever_is_sent_it_answers_and_lives() {
    use proptest::prelude::*;
    let daemon = Daemon::start();
    let value = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        "\\PC{0,30}".prop_map(serde_json::Value::from),
        proptest::collection::vec(any::<u8>(), 0..4).prop_map(serde_json::Value::from),
        Just(serde_json::json!({ "x": { "y": [] } })),
    ];
    let fields = proptest::sample::select(vec![
        "name",
        "replicas",
        "command",
        "env",
        "ports",
        "limits",
        "constraints",
        "policy",
        "check",
        "rollout",
        "restart",
        "stop",
        "log",
        "mode",
        "labels",
        "user",
        "workdir",
        "image",
        "max_replicas_per_node",
        "on_policy_error",
        "reservations",
        "entrypoint",
        "mounts",
        "networks",
        "ulimits",
        "hosts",
        "pull",
        "zzz",
    ]);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&proptest::collection::vec((fields, value), 0..4), |changes| {
            let mut service = serde_json::json!({ "name": "web", "command": ["/bin/true"], "replicas": 0 });
            for (field, value) in changes {
                service[field] = value;
            }
            let body = serde_json::json!({ "service": service }).to_string();
            let (status, answer) = raw(&daemon, "POST", "/v1/plan", body.as_bytes());
            prop_assert!(matches!(status, 200 | 400 | 404 | 501), "{status}: {answer} for {body}");
            if status != 200 {
                let error: serde_json::Value = serde_json::from_str(&answer).unwrap();
                prop_assert!(!error["message"].as_str().unwrap().is_empty());
            }
            Ok(())
        })
        .unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(
            &("[A-Z]{1,8}", "/[ -~&&[^ #]]{0,40}", proptest::collection::vec(any::<u8>(), 0..200)),
            |(method, path, body)| {
                raw(&daemon, &method, &path, &body);
                Ok(())
            },
        )
        .unwrap();
    // Not even HTTP.
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/apply HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
        &[b'A'; 100_000],
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        let _ = stream.write_all(bytes);
    }
    assert!(daemon.ok(&["service", "ls"]).starts_with("NAME"));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn tcp_takes_tls_a_token_and_the_right_role() {
    let mut daemon = Daemon::new();
    let port = free_port();
    daemon.flags = vec!["--listen".into(), format!("127.0.0.1:{port}")];
    daemon.up();
    let log = support::eventually("the fingerprint is printed", 5, || {
        Some(daemon.log()).filter(|log| log.contains("fingerprint "))
    });
    let fingerprint = log.split("fingerprint ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let token = |name: &str, role: &str, prefix: &str| {
        daemon.ok(&["token", "create", name, "--role", role, "--prefix", prefix]).trim().to_owned()
    };
    let (viewer, deployer) = (token("looker", "viewer", ""), token("ci", "deployer", "shop-"));
    let remote = |context: &str, args: &[&str]| {
        let config = daemon.folder.path().join("config.toml");
        let output = std::process::Command::new(NEAP)
            .args(["--host", context])
            .args(args)
            .env("NEAP_CONFIG", &config)
            .env_remove("NEAP_HOST")
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let address = format!("tcp://127.0.0.1:{port}");
    for (name, secret, print) in [
        ("looker", &viewer, &fingerprint),
        ("ci", &deployer, &fingerprint),
        ("thief", &"neap_00".to_owned(), &fingerprint),
        ("wrong", &viewer, &"00".repeat(32)),
    ] {
        daemon.ok(&["context", "add", name, "--address", &address, "--token", secret, "--fingerprint", print]);
    }
    assert_eq!(remote("looker", &["service", "ls"]).0, 0);
    let create =
        |name: &'static str| ["service", "create", "--detach", "--name", name, "--replicas", "0", "--", "/bin/true"];
    let (code, error) = remote("looker", &create("shop-api"));
    assert!(code == 8 && error.contains("lacks the role deployer"), "{error}");
    assert_eq!(remote("ci", &create("shop-api")).0, 0);
    let (code, error) = remote("ci", &create("bank"));
    assert!(code == 8 && error.contains("may not touch \"bank\""), "{error}");
    daemon.ok(&create("bank"));
    assert!(!remote("ci", &["service", "ls"]).1.contains("bank"), "what is not theirs is not shown");
    assert_eq!(remote("ci", &["service", "ps", "bank"]).0, 8);
    assert_eq!(remote("ci", &["node", "update", "x", "--availability", "drain"]).0, 8);
    assert_eq!(remote("ci", &["token", "ls"]).0, 8);
    // An image is whose repository it is of, however it is written; with a registry's host before it, it is the same.
    for args in [
        &["registry", "inspect", "shop-:1/bank/api:1.0"][..],
        &["registry", "rm", "shop-:1/bank/api:1.0"],
        &["registry", "tags", "bank/api"],
    ] {
        let (code, error) = remote("ci", args);
        assert!(code == 8 && error.contains("may not touch \"bank/api\""), "{args:?}: {error}");
    }
    let (code, error) = remote("ci", &["registry", "inspect", "127.0.0.1:5000/shop-x/api:1.0"]);
    assert!(code != 8 && error.contains("keeps none"), "{error}");
    // In the catalogue neither, though something of theirs has the same id elsewhere.
    daemon.ok(&["catalog", "register", "web", "--id", "web-1", "--port", "1"]);
    let decoy = ["catalog", "register", "shop-x", "--id", "web-1", "--node", "decoy", "--address", "127.0.0.9"];
    assert_eq!(remote("ci", &decoy).0, 0);
    let others: [&[&str]; 5] = [
        &["catalog", "deregister", "web-1"],
        &["catalog", "maintenance", "web-1"],
        &["catalog", "register", "shop-x", "--id", "web-1"],
        &["catalog", "register", "bank"],
        &["catalog", "instances", "web"],
    ];
    for args in others {
        let (code, said) = remote("ci", args);
        assert_eq!(code, 8, "{args:?}: {said}");
    }
    assert!(!remote("ci", &["catalog", "services"]).1.contains("web"));
    assert_eq!(remote("ci", &["catalog", "deregister", "web-1", "--node", "decoy"]).0, 0);
    // Nor are others' requests led away, nor certificates shown that are not theirs.
    let (r, tls) = (format!("r.test:{}", free_port()), ["--tls-certificate", "/a.pem", "--tls-key", "/a.key"]);
    daemon.ok(&["service", "update", "--detach", "shop-api", "--expose", "8080"]);
    let set = |name: &'static str, to: &'static str| vec!["route", "set", name, r.as_str(), "--to", to];
    for args in [set("shop-r", "bank"), set("bank-r", "shop-api"), [&set("shop-r", "shop-api")[..], &tls].concat()] {
        let (code, said) = remote("ci", &args);
        assert!(code == 8 && said.contains("may not touch"), "{args:?}: {said}");
    }
    assert_eq!(remote("ci", &set("shop-r", "shop-api")).0, 0);
    // Nor requests for a host that others have a route for, by whatever route.
    let bank = format!("bank.test:{}", free_port());
    daemon.ok(&["service", "update", "--detach", "bank", "--expose", "8080", "--route", &bank]);
    let any = bank.replace("bank.test", "*");
    for args in [
        vec!["route", "set", "shop-b", &bank, "--to", "shop-api", "--priority", "9"],
        vec!["route", "set", "shop-b", &any, "--redirect", "https://x.test"],
        vec!["service", "update", "--detach", "shop-api", "--route", &bank],
    ] {
        let (code, said) = remote("ci", &args);
        assert!(code == 8 && said.contains("may not have requests"), "{args:?}: {said}");
    }
    // Nor by a body in which no name is found, though it might be read as one.
    let post = |path: &str, body: &str| {
        let url = format!("https://127.0.0.1:{port}{path}");
        let bearer = format!("Authorization: Bearer {deployer}");
        let sent = ["-sk", "-H", &bearer, "-H", "Content-Type: application/json", "-d", body, &url];
        let output = std::process::Command::new("curl").args(sent).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let owned = daemon.json(&["service", "inspect", "bank"])["status"]["service"]["revision"].clone();
    for (path, body) in [
        ("/v1/apply", r#"[{"name":"bank","command":["/bin/false"]}]"#),
        ("/v1/apply", r#"{"service":["bank",{},false]}"#),
        ("/v1/apply", r#"{"service":{"name":"bank"}}"#),
        ("/v1/apply", "[]"),
        ("/v1/networks", r#"["bank"]"#),
    ] {
        let answer = post(path, body);
        assert!(answer.contains("forbidden") && answer.contains("may not touch"), "{path} {body}: {answer}");
    }
    let mine = post("/v1/apply", r#"{"service":["shop-api",{},false],"only":"either"}"#);
    assert!(mine.contains("may not touch"), "{mine}");
    assert_eq!(daemon.json(&["service", "inspect", "bank"])["status"]["service"]["revision"], owned);
    // Nor is what bears another name handed to a replica, however an update words it.
    for field in
        [r#""env":{"A":{"kv":"bank/pin"}}"#, r#""env_add":{"A":{"kv":"bank/pin"}}"#, r#""env_kv":{"A":"bank/pin"}"#]
    {
        let body = format!(r#"{{"service":{{"name":"shop-api",{field}}},"only":"update"}}"#);
        for path in ["/v1/apply", "/v1/plan"] {
            let answer = post(path, &body);
            assert!(answer.contains("may not touch") && answer.contains("bank/pin"), "{path} {body}: {answer}");
        }
    }
    // A registry is everybody's, however its name begins.
    let confined = token("some", "admin", "hub");
    daemon.ok(&["context", "add", "some", "--address", &address, "--token", &confined, "--fingerprint", &fingerprint]);
    assert_eq!(remote("some", &["registry", "logout", "hub.example"]).0, 8);
    assert_eq!(remote("ci", &["registry", "logout", "shop-registry.example"]).0, 8);
    // What acts on the whole cluster is not to be brought along by who may not act on it.
    let hosted = daemon.folder.path().join("hosted.lua");
    std::fs::write(&hosted, "cron 'nightly' { schedule = '@daily', run = function() end }").unwrap();
    std::fs::write(
        daemon.folder.path().join("bring.lua"),
        "service 'shop-cron' { command = { 'sleep', '100' } }:apply { with = scripts 'hosted.lua' }",
    )
    .unwrap();
    let script = daemon.folder.path().join("bring.lua").to_string_lossy().into_owned();
    let (code, error) = remote("ci", &["run", &script]);
    assert!(code == 8 && error.contains("may not bring along cron \"nightly\""), "{code}: {error}");
    assert_eq!(remote("ci", &["script", "push", "mine", &hosted.to_string_lossy()]).0, 8);
    let (code, error) = remote("thief", &["service", "ls"]);
    assert!(code == 8 && error.contains("is not known"), "{error}");
    let (code, error) = remote("wrong", &["service", "ls"]);
    assert!(code == 8 && error.contains("certificate"), "{error}");
    let (code, error) = remote("lokker", &["service", "ls"]);
    assert!(code == 4 && error.contains("did you mean \"looker\""), "{error}");
    let (code, error) = remote(&address, &["service", "ls"]);
    assert!(code == 8 && error.contains("NEAP_TOKEN"), "{error}");
    // A token is shown once and kept as a hash; gone is gone.
    assert!(!daemon.ok(&["token", "ls", "--format", "json"]).contains(&viewer));
    daemon.ok(&["token", "rm", "looker"]);
    assert_eq!(remote("looker", &["service", "ls"]).0, 8);
    // Every change is in the audit, the refused ones too.
    let audit = std::fs::read_to_string(daemon.data().join("audit.log")).unwrap();
    let entries: Vec<serde_json::Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |principal: &str, subject: &str| {
        entries.iter().find(|entry| entry["principal"] == principal && entry["subject"] == subject).unwrap()
    };
    assert_eq!(find("ci", "shop-api")["outcome"], "done");
    assert!(find("ci", "bank")["outcome"].as_str().unwrap().contains("may not touch"));
    assert!(find("looker", "shop-api")["outcome"].as_str().unwrap().contains("lacks the role"));
    assert!(!audit.contains(&deployer));
    // Without TLS nothing is answered.
    assert!(support::get(port, "/v1/info").map_or(true, |(status, _)| status != 200));
}

fn cluster(daemon: &Daemon) -> String {
    daemon.json(&["version", "--format", "json"])["daemon"]["cluster"].as_str().unwrap().to_owned()
}

#[test]
fn flag_environment_file_default() {
    let mut daemon = Daemon::new();
    let config = daemon.folder.path().join("config.toml");
    std::fs::write(&config, "cluster = \"from-file\"\n").unwrap();
    daemon.up();
    assert_eq!(cluster(&daemon), "from-file");
    daemon.kill();
    daemon.env.push(("NEAP_CLUSTER".into(), "from-environment".into()));
    daemon.up();
    assert_eq!(cluster(&daemon), "from-environment");
    daemon.kill();
    daemon.flags = vec!["--cluster".into(), "from-flag".into()];
    daemon.up();
    assert_eq!(cluster(&daemon), "from-flag");
    std::fs::write(&config, "clutser = \"x\"\n").unwrap();
    let (code, error) = daemon.fails(&["service", "ls"]);
    assert!(code == 2 && error.contains("did you mean \"cluster\""), "{error}");
}

#[test]
fn a_client_of_another_age_is_told() {
    let daemon = Daemon::start();
    let ask = |version: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        write!(stream, "GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nneap-version: {version}\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("0.1.7").contains("200 OK"));
    assert!(ask("0.2.0").contains("200 OK"));
    assert!(ask("0.9.0").contains("at most one minor version apart"));
    assert!(ask("what").contains("at most one minor version apart"));
}
