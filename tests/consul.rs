//! Consul's API for keys, sessions, transactions, events and prepared queries, as raw requests and through real clients.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "support/catalog.rs"]
mod harness;
#[path = "support/mod.rs"]
mod support;

use harness::{Catalog, ask, has_dig};
use support::eventually;

// A client from PyPI or npm, which tests/run installs.
fn client(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clients").join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is not there; tests/run installs it", path.display());
    println!("skipped: {} is not there; tests/run installs it", path.display());
    None
}

fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn says_all(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("all of it"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

impl Catalog {
    fn code(&self, method: &str, path: &str, body: &str, code: u16, says: &str) {
        let answer = self.ask(method, path, body);
        assert!(answer.status == code && answer.body.contains(says), "{path}: {} {}", answer.status, answer.body);
        assert!(answer.index() >= 1);
    }
}

#[test]
fn keys_are_what_clients_expect() {
    let catalog = Catalog::start();
    assert_eq!(catalog.kv("PUT", "shop/level?flags=7", "info"), "true");
    let found = catalog.get("/v1/kv/shop%2Flevel");
    assert_eq!(
        (&found[0]["Key"], &found[0]["Value"], &found[0]["Flags"]),
        (&json!("shop/level"), &json!("aW5mbw=="), &json!(7))
    );
    assert_eq!(catalog.kv("GET", "shop/level?raw", ""), "info");
    // An explicit `false` is one, whatever a client deletes by it.
    assert_eq!(catalog.kv("PUT", "shop/level/deep", ""), "true");
    assert_eq!(catalog.kv("DELETE", "shop/level?recurse=false", ""), "true");
    assert_eq!(catalog.get("/v1/kv/?keys"), json!(["shop/level/deep"]));
    assert_eq!(catalog.kv("PUT", "shop//", "odd"), "true");
    assert_eq!(catalog.get("/v1/kv/shop?keys&separator=/"), json!(["shop/"]));
    assert_eq!(catalog.get("/v1/kv/shop/?keys&separator=/"), json!(["shop//", "shop/level/"]));
    // The same keys as everybody's.
    assert_eq!(catalog.daemon.ok(&["kv", "get", "shop//"]).trim(), "odd");
    catalog.daemon.ok(&["kv", "set", "own", "value"]);
    assert_eq!(catalog.kv("GET", "own?raw=true", ""), "value");
    // What changes it keeps its maker and its flags.
    let made = catalog.get("/v1/kv/own")[0]["CreateIndex"].clone();
    assert_eq!(catalog.kv("PUT", "own", "again"), "true");
    let found = catalog.get("/v1/kv/own")[0].clone();
    assert!(found["CreateIndex"] == made && found["ModifyIndex"].as_u64() > made.as_u64(), "{found}");
    let modified = found["ModifyIndex"].as_u64().unwrap();
    assert_eq!(catalog.kv("PUT", &format!("own?cas={}", modified + 1), "x"), "false");
    assert_eq!(catalog.kv("DELETE", &format!("own?cas={}", modified + 1), ""), "false");
    assert_eq!(catalog.kv("DELETE", &format!("own?cas={modified}"), ""), "true");
    let largest = "x".repeat(512 << 10);
    assert_eq!(catalog.kv("PUT", "large", &largest), "true");
    assert_eq!(catalog.kv("GET", "large?raw", ""), largest);

    catalog.code("GET", "/v1/kv/own", "", 404, "");
    catalog.code("GET", "/v1/kv/none?recurse", "", 404, "");
    catalog.code("GET", "/v1/kv/none?keys", "", 404, "");
    catalog.code("PUT", "/v1/kv/large", &format!("{largest}x"), 413, "too large");
    catalog.code("PUT", "/v1/kv/", "x", 400, "Missing key name");
    catalog.code("PUT", "/v1/kv/a?cas=0&acquire=x", "x", 400, "Conflicting flags");
    catalog.code("PUT", "/v1/kv/a?cas=x", "x", 400, "not a whole number");
    catalog.code("PUT", "/v1/kv/a?acquire=none", "x", 500, "invalid session");
    // Whoever has lost its session, or what it had read, does not write over who holds it.
    catalog.code("PUT", "/v1/kv/a?acquire=", "x", 400, "missing session");
    catalog.code("PUT", "/v1/kv/a?cas=", "x", 400, "not a whole number");
    catalog.code("PUT", &format!("/v1/kv/{}", "x".repeat(501)), "x", 400, "501 bytes");
    catalog.code("POST", "/v1/kv/a", "x", 405, "method POST not allowed");
    catalog.code("GET", "/v1/agent/service/register", "", 405, "method GET not allowed");
    catalog.code("POST", "/v1/session/create", "", 405, "");
    catalog.code("PATCH", "/v1/catalog/nodes", "", 405, "");
    catalog.code("GET", "/v1/catalog/none", "", 404, "");
    catalog.code("GET", "/v1/acl/token/self", "", 401, "ACL support disabled");
    catalog.code("PUT", "/v1/session/create", r#"{"TTL":"1s"}"#, 400, "Invalid Session TTL");
    catalog.code("PUT", "/v1/session/create", r#"{"Node":"none"}"#, 500, "Missing node");
    catalog.code("PUT", "/v1/session/create", r#"{"Behavior":"x"}"#, 400, "Behavior");
    catalog.code("PUT", "/v1/session/renew/none", "", 404, "not found");
    catalog.code("PUT", "/v1/txn", r#"[{"KV":{"Verb":"x","Key":"a"}}]"#, 400, "unknown KV verb");
    catalog.code("PUT", "/v1/txn", r#"[{"Node":{"Verb":"lock"}}]"#, 400, "unknown Node verb");
    catalog.code("PUT", "/v1/txn", r#"[{"Node":{},"KV":{}}]"#, 400, "one of KV, Node, Service");
    catalog.code(
        "PUT",
        "/v1/txn",
        r#"[{"Service":{"Verb":"get","Node":"x","Service":{}}}]"#,
        400,
        "Missing service ID",
    );
    catalog.code("PUT", "/v1/txn", &format!("[{}{{}}]", "{},".repeat(128)), 413, "too many operations");
    catalog.code("PUT", "/v1/txn", r#"[{"KV":{"Verb":"get","Key":"none"}}]"#, 409, r#""OpIndex":0"#);
    catalog.code("POST", "/v1/query", r#"{"Name":"x"}"#, 400, "Must provide a Service");
    catalog.code("GET", "/v1/query/none/execute", "", 404, "");
    catalog.code("GET", "/v1/kv/a?filter=Key+==+x", "", 400, "cannot be filtered");
    catalog.code("GET", "/v1/catalog/nodes?filter=Nod+==+x", "", 400, "did you mean");
}

#[test]
fn keys_sessions_and_queries_outlive_a_killed_daemon() {
    let mut catalog = Catalog::start();
    let created = catalog.ask("PUT", "/v1/session/create", r#"{"LockDelay":"0s","Name":"holder"}"#).json();
    let session = created["ID"].as_str().unwrap().to_owned();
    assert_eq!(catalog.kv("PUT", &format!("leader?acquire={session}"), "me"), "true");
    assert_eq!(catalog.kv("PUT", "gone", "x"), "true");
    assert_eq!(catalog.kv("DELETE", "gone", ""), "true");
    let query = json!({ "Name": "find", "Service": { "Service": "web", "Tags": ["!old"] }, "DNS": { "TTL": "5s" } });
    let answer = catalog.ask("POST", "/v1/query", &query.to_string()).json();
    let id = answer["ID"].as_str().unwrap().to_owned();
    let index = |catalog: &Catalog, path: &str| catalog.ask("GET", path, "").index();
    let paths = ["/v1/kv/?recurse", "/v1/kv/gone", "/v1/session/list", "/v1/query"];
    let before = paths.map(|path| index(&catalog, path));
    catalog.daemon.kill();
    catalog.daemon.up();
    for (path, before) in paths.iter().zip(before) {
        assert!(index(&catalog, path) >= before, "the index of {path} goes back");
    }
    assert_eq!(catalog.get("/v1/kv/leader")[0]["Session"], json!(session));
    assert_eq!(catalog.get(&format!("/v1/session/info/{session}"))[0]["Name"], "holder");
    assert_eq!(catalog.get(&format!("/v1/query/{id}"))[0]["Service"]["Tags"], json!(["!old"]));
    assert_eq!(catalog.kv("PUT", &format!("leader?release={session}"), "me"), "true");
    // What is asked for while nothing changes is waited for, also behind a restart.
    let now = index(&catalog, "/v1/kv/leader");
    let http = catalog.http;
    let waiting = std::thread::spawn(move || {
        let began = Instant::now();
        (ask(http, "GET", &format!("/v1/kv/leader?index={now}&wait=30s"), "").index(), began.elapsed())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(catalog.kv("PUT", "leader", "new"), "true");
    let (index, took) = waiting.join().unwrap();
    assert!(index > now && took >= Duration::from_millis(250) && took < Duration::from_secs(10), "{index} {took:?}");
}

#[test]
fn a_prepared_query_has_a_name_in_dns() {
    if !has_dig() {
        return;
    }
    let catalog = Catalog::start();
    for (id, tag) in [("db-1", "new"), ("db-2", "old")] {
        let body =
            json!({ "Name": "db", "ID": id, "Port": 5432, "Address": format!("10.0.0.{}", &id[3..]), "Tags": [tag] });
        catalog.put("/v1/agent/service/register", &body);
    }
    let query = json!({ "Name": "main-db", "Service": { "Service": "db", "Tags": ["!old"] }, "DNS": { "TTL": "7s" } });
    let id = catalog.ask("POST", "/v1/query", &query.to_string()).json()["ID"].as_str().unwrap().to_owned();
    assert_eq!(catalog.short("main-db.query.consul", "A"), ["10.0.0.1"]);
    assert_eq!(catalog.short(&format!("{id}.query.dc1.consul"), "SRV"), ["1 1 5432 0a000001.addr.dc1.consul."]);
    let answer = catalog.dig(&["+noall", "+answer", "main-db.query.neap", "A"]);
    assert!(answer[0].split_whitespace().nth(1) == Some("7"), "{answer:?}");
    // A template answers for all that begins so, and what it found is not kept longer than it is so.
    let template = json!({ "Name": "any-", "Template": { "Type": "name_prefix_match", "Regexp": "^any-(.*)-([^-]*)$" },
        "Service": { "Service": "${match(1)}", "Tags": ["${match(2)}"] } });
    catalog.ask("POST", "/v1/query", &template.to_string()).json();
    assert_eq!(catalog.short("any-db-old.query.consul", "A"), ["10.0.0.2"]);
    catalog.put("/v1/agent/service/deregister/db-2", &Value::Null);
    assert_eq!(catalog.status("any-db-old.query.consul", "A"), "NXDOMAIN");
    assert_eq!(catalog.status("none.query.consul", "A"), "NXDOMAIN");
    let found = catalog.get("/v1/query/any-db-new/execute");
    assert_eq!((&found["Service"], found["Nodes"].as_array().unwrap().len()), (&json!("db"), 1));
    let wrong = json!({ "Name": "x", "Template": { "Type": "name_prefix_match", "Regexp": "(" }, "Service": { "Service": "x" } });
    catalog.code("POST", "/v1/query", &wrong.to_string(), 400, "Bad Regexp");
    catalog.code("POST", "/v1/query", &query.to_string(), 400, "another query");
}

#[test]
fn the_client_from_pypi_is_satisfied() {
    let Some(python) = client("python/bin/python") else { return };
    let catalog = Catalog::start();
    says_all(Command::new(python).args([script("whole.py"), catalog.http.to_string()]));
}

#[test]
fn the_client_from_npm_is_satisfied() {
    let Some(modules) = client("node/node_modules") else { return };
    let catalog = Catalog::start();
    let port = catalog.http.to_string();
    says_all(Command::new("node").args([script("watch.js"), port]).env("NODE_PATH", modules));
}

// Two want one lock; the one that has it is killed, and the other gets it, not before the first can have known.
#[test]
fn a_lock_goes_on_when_its_holder_is_killed() {
    let Some(python) = client("python/bin/python") else { return };
    let catalog = Catalog::start();
    let start = |name: &str| {
        let args = [script("lock.py"), catalog.http.to_string(), name.to_owned()];
        Command::new(&python).args(args).stdout(Stdio::piped()).spawn().unwrap()
    };
    let leads = |child: &mut std::process::Child| {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "leads");
    };
    let mut first = start("first");
    leads(&mut first);
    let mut second = start("second");
    eventually("both have a session", 20, || {
        (catalog.get("/v1/session/list").as_array().unwrap().len() == 2).then_some(())
    });
    // As long as its holder renews it, it has it.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(catalog.kv("GET", "service/leader?raw", ""), "first");
    first.kill().unwrap();
    first.wait().unwrap();
    let killed = Instant::now();
    leads(&mut second);
    let took = killed.elapsed();
    assert_eq!(catalog.kv("GET", "service/leader?raw", ""), "second");
    assert!(took > Duration::from_secs(7) && took < Duration::from_secs(25), "{took:?}");
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn commands_are_run_where_that_is_allowed_alone() {
    let args = r#"{"Name":"disk","ID":"disk","Check":{"Args":["sh","-c","echo 91%; exit 1"],"Interval":"1s"}}"#;
    let catalog = Catalog::start();
    catalog.code("PUT", "/v1/agent/service/register", args, 400, "Scripts are disabled");
    catalog.code("PUT", "/v1/agent/check/register", r#"{"Name":"x","Args":["true"],"Interval":"1s"}"#, 400, "Scripts");
    let catalog = Catalog::with(&[("NEAP_ENABLE_SCRIPT_CHECKS", "true".into())]);
    assert_eq!(catalog.ask("PUT", "/v1/agent/service/register", args).status, 200);
    let closed = r#"{"Name":"ntp","UDP":"127.0.0.1:9","Interval":"1s","Status":"passing"}"#;
    assert_eq!(catalog.ask("PUT", "/v1/agent/check/register", closed).status, 200);
    let check = |id: &str| catalog.get("/v1/agent/checks")[id].clone();
    eventually("the command has said", 20, || {
        let check = check("service:disk");
        (check["Status"] == "warning" && check["Output"] == "91%" && check["Type"] == "script").then_some(())
    });
    eventually("nobody listens", 20, || (check("ntp")["Status"] == "critical").then_some(()));
}

// What Registrator sends, in its order, as Go writes it: with all that is empty in it.
#[test]
fn registrators_requests_in_order() {
    let catalog = Catalog::start();
    assert!(catalog.get("/v1/status/leader").as_str().unwrap().contains(':'));
    let empty = r#"{"ID":"eu-1:db:5432","Name":"postgres","Tags":[],"Port":32768,"Address":"10.0.0.9","Meta":{},
        "EnableTagOverride":false,"Check":{"Interval":"","Timeout":"","HTTP":"","TCP":"","Args":null,"TTL":"","Status":""},
        "Checks":null,"Kind":"","Weights":null,"Proxy":null,"Connect":null}"#;
    let checked = r#"{"ID":"eu-1:web:80:udp","Name":"web","Tags":["v1","udp"],"Port":8080,"Address":"127.0.0.1","Check":
        {"HTTP":"http://127.0.0.1:9/health","Interval":"10s","Timeout":"1s","Status":"passing",
        "DeregisterCriticalServiceAfter":"10m"}}"#;
    for body in [empty, checked, empty] {
        assert_eq!(catalog.ask("PUT", "/v1/agent/service/register", body).status, 200);
    }
    let services = catalog.get("/v1/agent/services");
    assert_eq!(services.as_object().unwrap().len(), 2);
    assert_eq!(services["eu-1:web:80:udp"]["Tags"], json!(["v1", "udp"]));
    assert_eq!(catalog.get("/v1/health/checks/postgres"), json!([]));
    // Its resync: said again, nothing changes, and nobody is woken.
    let index = catalog.ask("GET", "/v1/health/service/web", "").index();
    assert_eq!(catalog.ask("PUT", "/v1/agent/service/register", checked).status, 200);
    assert_eq!(catalog.ask("GET", "/v1/health/service/web", "").index(), index);
    for id in ["eu-1:db:5432", "eu-1:web:80:udp"] {
        catalog.put(&format!("/v1/agent/service/deregister/{id}"), &Value::Null);
    }
    assert_eq!(catalog.get("/v1/agent/services"), json!({}));
}

#[test]
fn grpc_servers_are_asked_for_their_health() {
    let Some(python) = client("python/bin/python") else { return };
    let mut server =
        Command::new(python).arg(script("serving.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim();
    let catalog = Catalog::start();
    let check =
        |id: &str, grpc: &str| json!({ "CheckID": id, "Name": id, "GRPC": grpc, "Interval": "1s", "Timeout": "5s" });
    let asked = |path: &str| format!("127.0.0.1:{port}{path}");
    let checks = [check("whole", &asked("")), check("api", &asked("/shop.Api")), check("other", &asked("/shop.Other"))];
    catalog.put("/v1/agent/service/register", &json!({ "Name": "shop", "Port": 80, "Checks": checks }));
    // A server that speaks no HTTP/2 is none.
    catalog.put("/v1/agent/check/register", &check("http", &format!("127.0.0.1:{}", catalog.http)));
    let status = |id: &str| catalog.get("/v1/agent/checks")[id]["Status"].as_str().unwrap().to_owned();
    let output = |id: &str| catalog.get("/v1/agent/checks")[id]["Output"].as_str().unwrap().to_owned();
    eventually("both pass", 10, || (status("whole") == "passing" && status("api") == "passing").then_some(()));
    eventually("the third is not known", 10, || output("other").contains("NOT_FOUND").then_some(()));
    assert_eq!(status("other"), "critical");
    eventually("no gRPC server", 10, || (!output("http").is_empty()).then_some(()));
    assert_eq!(status("http"), "critical");
    let shown = catalog.get("/v1/health/checks/shop");
    let api = shown.as_array().unwrap().iter().find(|check| check["CheckID"] == "api").unwrap();
    assert!(api["Type"] == "grpc" && api["Definition"]["GRPC"] == asked("/shop.Api"), "{api}");

    use std::io::Write;
    writeln!(server.stdin.as_mut().unwrap(), "2").unwrap();
    eventually("it says so", 10, || (status("whole") == "critical").then_some(()));
    assert!(output("whole").contains("NOT_SERVING"), "{}", output("whole"));
    // The same by Neap's own words.
    catalog.daemon.ok(&["catalog", "register", "own", "--grpc", &asked("/shop.Api"), "--every", "1s"]);
    eventually("it is asked", 10, || output("service:own").contains("NOT_SERVING").then_some(()));
    server.kill().unwrap();
    server.wait().unwrap();
    eventually("it is away", 10, || (!output("whole").contains("NOT_SERVING")).then_some(()));
}

// Nodes, services and checks along with keys: all or nothing, in one step for whoever waits, and over a restart.
#[test]
fn a_transaction_registers_or_does_nothing() {
    let mut catalog = Catalog::start();
    let txn = |catalog: &Catalog, ops: &Value| {
        let answer = catalog.ask("PUT", "/v1/txn", &ops.to_string());
        (answer.status, serde_json::from_str::<Value>(&answer.body).unwrap())
    };
    let node =
        json!({ "Node": { "Verb": "set", "Node": { "Node": "ext", "Address": "10.9.0.1", "Meta": { "rack": "a" } } } });
    let service = |verb: &str, port: u16, index: u64| {
        json!({ "Service": { "Verb": verb, "Node": "ext",
            "Service": { "ID": "db-1", "Service": "db", "Port": port, "ModifyIndex": index } } })
    };
    let check = |verb: &str, status: &str, index: u64| {
        json!({ "Check": { "Verb": verb, "Check": { "Node": "ext", "CheckID": "db-up", "Name": "up", "Status": status,
            "ServiceID": "db-1", "ModifyIndex": index } } })
    };
    let key = |verb: &str, value: &str| json!({ "KV": { "Verb": verb, "Key": "db/primary", "Value": value } });
    // What does not hold, whichever it is, lets none of the others be done.
    let (status, told) =
        txn(&catalog, &json!([node, service("set", 5432, 0), key("check-session", ""), check("set", "passing", 0)]));
    assert!(
        status == 409 && told["Errors"][0]["OpIndex"] == 2 && told["Errors"].as_array().unwrap().len() == 1,
        "{told}"
    );
    let (status, told) = txn(&catalog, &json!([key("set", "eA=="), service("set", 5432, 0), key("get", "")]));
    assert!(status == 409 && told["Errors"][0]["OpIndex"] == 1, "there is no such node: {told}");
    assert!(
        catalog.get("/v1/catalog/service/db") == json!([]) && catalog.ask("GET", "/v1/kv/db/primary", "").status == 404
    );

    let http = catalog.http;
    let now = catalog.ask("GET", "/v1/health/service/db", "").index();
    let waits =
        std::thread::spawn(move || ask(http, "GET", &format!("/v1/health/service/db?index={now}&wait=30s"), "").json());
    let ops =
        json!([node, key("set", "eA=="), service("set", 5432, 0), check("set", "passing", 0), service("get", 0, 0)]);
    let (status, told) = txn(&catalog, &ops);
    let results = &told["Results"];
    assert!(status == 200 && results.as_array().unwrap().len() == 5 && told["Errors"].is_null(), "{told}");
    assert!(results[0]["Node"]["Meta"]["rack"] == "a" && results[1]["KV"]["Key"] == "db/primary", "{told}");
    assert!(results[2]["Service"]["Port"] == 5432 && results[3]["Check"]["ServiceName"] == "db", "{told}");
    let index = results[2]["Service"]["ModifyIndex"].as_u64().unwrap();
    assert!(index > 0 && results[4]["Service"]["ModifyIndex"] == index, "{told}");
    let seen = waits.join().unwrap();
    assert!(
        seen[0]["Node"]["Node"] == "ext" && seen[0]["Checks"][0]["Status"] == "passing",
        "all of it at once: {seen}"
    );

    // By what was read before.
    assert_eq!(txn(&catalog, &json!([service("cas", 1, index + 1)])).1["Errors"][0]["OpIndex"], 0);
    assert_eq!(txn(&catalog, &json!([service("cas", 1, 0)])).0, 409, "it is there");
    let (status, told) = txn(
        &catalog,
        &json!([
            service("cas", 5433, index),
            check("cas", "critical", results[3]["Check"]["ModifyIndex"].as_u64().unwrap())
        ]),
    );
    assert!(status == 200 && told["Results"][1]["Check"]["Status"] == "critical", "{told}");
    assert_eq!(catalog.get("/v1/health/service/db?passing"), json!([]));
    assert_eq!(catalog.get("/v1/catalog/node/ext")["Services"]["db-1"]["Port"], 5433);
    catalog.daemon.kill();
    catalog.daemon.up();
    assert_eq!(catalog.get("/v1/health/checks/db")[0]["CheckID"], "db-up");

    // A node's check becomes an instance's: it is one, also after a restart.
    let moved = |instance: &str| json!({ "Check": { "Verb": "set", "Check": { "Node": "ext", "CheckID": "moved", "Name": "m", "ServiceID": instance } } });
    assert_eq!(txn(&catalog, &json!([moved("")])).0, 200);
    let gone = json!({ "Check": { "Verb": "delete", "Check": { "Node": "ext", "CheckID": "moved" } } });
    assert_eq!(txn(&catalog, &json!([gone, moved("db-1")])).0, 200);
    catalog.put("/v1/catalog/deregister", &json!({ "Node": "ext", "CheckID": "moved" }));
    // One name goes and another comes with its id, which is found within the transaction.
    let with_id = |verb: &str, name: &str| {
        let id = "6b1f9a52-0000-4000-8000-000000000001";
        json!({ "Node": { "Verb": verb, "Node": { "Node": name, "ID": id, "Address": "10.9.0.9" } } })
    };
    assert_eq!(txn(&catalog, &json!([with_id("set", "old")])).0, 200);
    assert_eq!(txn(&catalog, &json!([with_id("set", "two")])).0, 409, "it has another's id");
    let (status, told) = txn(&catalog, &json!([with_id("delete", "old"), with_id("set", "new"), with_id("get", "")]));
    assert!(status == 200 && told["Results"][1]["Node"]["Node"] == "new", "{told}");
    catalog.daemon.kill();
    catalog.daemon.up();
    assert!(!catalog.get("/v1/health/node/ext").to_string().contains("moved"));

    // What goes takes along what is on it; what is not there goes as well; a host of the cluster does not.
    let (status, told) =
        txn(&catalog, &json!([check("delete", "", 0), service("delete", 0, 0), service("delete-cas", 0, 7)]));
    assert!(status == 200 && told["Results"] == json!([]), "{told}");
    assert_eq!((catalog.get("/v1/catalog/service/db"), catalog.get("/v1/health/node/ext")), (json!([]), json!([])));
    let host = catalog.get("/v1/agent/self")["Config"]["NodeName"].clone();
    let gone = |name: &Value| json!({ "Node": { "Verb": "delete", "Node": { "Node": name } } });
    let (status, told) = txn(&catalog, &json!([node, service("set", 1, 0), gone(&json!("ext")), gone(&host)]));
    assert!(
        status == 409 && told["Errors"][0]["What"].as_str().unwrap().contains("is a host of the cluster"),
        "{told}"
    );
    assert_eq!(txn(&catalog, &json!([service("set", 1, 0), gone(&json!("EXT"))])).0, 200);
    catalog.daemon.kill();
    catalog.daemon.up();
    assert_eq!(catalog.get("/v1/catalog/node/ext"), Value::Null);
}

#[test]
fn queries_end_with_their_session() {
    let catalog = Catalog::start();
    let session = catalog.ask("PUT", "/v1/session/create", "{}").json()["ID"].as_str().unwrap().to_owned();
    let query = |session: &str| json!({ "Name": "bound", "Session": session, "Service": { "Service": "web" } });
    catalog.code("POST", "/v1/query", &query("none").to_string(), 400, "invalid session");
    let id = catalog.ask("POST", "/v1/query", &query(&session).to_string()).json()["ID"].clone();
    assert_eq!(catalog.get(&format!("/v1/query/{}", id.as_str().unwrap()))[0]["Session"], json!(session));
    catalog.put(&format!("/v1/session/destroy/{session}"), &Value::Null);
    eventually("it is gone", 10, || (catalog.get("/v1/query") == json!([])).then_some(()));
    // What is not there reads as nothing in a transaction that asks so.
    let ops = json!([{ "KV": { "Verb": "get-or-empty", "Key": "none" } }, { "KV": { "Verb": "set", "Key": "a", "Value": "eA==" } }]);
    let told = catalog.ask("PUT", "/v1/txn", &ops.to_string()).json();
    let empty = &told["Results"][0]["KV"];
    assert!(empty["Key"] == "none" && empty["Value"].is_null() && empty["ModifyIndex"] == 0, "{told}");
    assert_eq!(catalog.get("/v1/kv/?keys"), json!(["a"]));
}
