//! Consul's API with tokens: what their rules allow, what is left of a list, and who brings none.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

#[path = "support/catalog.rs"]
mod harness;
#[path = "support/mod.rs"]
mod support;

use harness::Catalog;
use support::eventually;

struct Client<'a> {
    catalog: &'a Catalog,
    token: String,
}

impl Client<'_> {
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.catalog.http)).unwrap();
        let token = if self.token.is_empty() { String::new() } else { format!("X-Consul-Token: {}\r\n", self.token) };
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn may(&self, method: &str, path: &str, body: &str) {
        let (status, said) = self.ask(method, path, body);
        assert_eq!(status, 200, "{method} {path}: {said}");
    }

    fn may_not(&self, method: &str, path: &str, body: &str) {
        let (status, said) = self.ask(method, path, body);
        assert!(status == 403 && said.contains("Permission denied"), "{method} {path}: {status} {said}");
    }
}

fn with(catalog: &Catalog, token: impl Into<String>) -> Client<'_> {
    Client { catalog, token: token.into() }
}

fn made(catalog: &Catalog, name: &str, rules: &str) -> String {
    let file = catalog.daemon.folder.path().join(format!("{name}.hcl"));
    std::fs::write(&file, rules).unwrap();
    let made = catalog.daemon.ok(&["token", "create", name, "--rules", file.to_str().unwrap()]);
    made.trim().to_owned()
}

#[test]
fn rules_are_held() {
    let catalog = Catalog::with(&[("NEAP_CONSUL_POLICY", "deny".into())]);
    let root = catalog.daemon.ok(&["token", "create", "root", "--role", "admin"]).trim().to_owned();
    let root = with(&catalog, root);
    for (key, value) in [("shop/a", "1"), ("shop/secret/b", "2"), ("bank/c", "3")] {
        root.may("PUT", &format!("/v1/kv/{key}"), value);
    }
    for service in ["shop", "bank"] {
        root.may(
            "PUT",
            "/v1/agent/service/register",
            &json!({ "Name": service, "Port": 80, "Check": { "TTL": "1h" } }).to_string(),
        );
    }
    root.may("PUT", "/v1/event/fire/deploy", "");
    root.may("PUT", "/v1/event/fire/secret", "");

    // Who brings nothing sees nothing; a token that nobody made is none.
    let nobody = with(&catalog, "");
    nobody.may_not("GET", "/v1/kv/shop/a", "");
    nobody.may_not("GET", "/v1/kv/?keys", "");
    nobody.may_not("GET", "/v1/kv/?recurse", "");
    assert_eq!(nobody.get("/v1/catalog/services"), json!({}));
    assert_eq!(nobody.get("/v1/catalog/nodes"), json!([]));
    assert_eq!(nobody.get("/v1/health/service/shop"), json!([]));
    assert!(nobody.get("/v1/status/leader").is_string());
    let (status, said) = with(&catalog, "made up").ask("GET", "/v1/catalog/services", "");
    assert!(status == 403 && said.contains("ACL not found"), "{said}");

    let token = made(
        &catalog,
        "shop",
        r#"
        key_prefix "shop/" { policy = "write" }
        key_prefix "shop/secret/" { policy = "deny" }
        service_prefix "shop" { policy = "write" }
        node_prefix "" { policy = "read" }
        session_prefix "" { policy = "write" }
        event "deploy" { policy = "write" }
        query_prefix "shop" { policy = "write" }
        "#,
    );
    let shop = with(&catalog, token.clone());
    let host = root.get("/v1/agent/self")["Config"]["NodeName"].as_str().unwrap().to_owned();

    shop.may("PUT", "/v1/kv/shop/new", "x");
    shop.may("GET", "/v1/kv/shop/a", "");
    shop.may_not("GET", "/v1/kv/shop/secret/b", "");
    shop.may_not("GET", "/v1/kv/shop%2Fsecret/b", "");
    shop.may_not("PUT", "/v1/kv/bank/c", "x");
    shop.may_not("DELETE", "/v1/kv/shop?recurse", "");
    shop.may_not("DELETE", "/v1/kv/shop/?recurse", "");
    assert_eq!(root.get("/v1/kv/?keys"), json!(["bank/c", "shop/a", "shop/new", "shop/secret/b"]), "nothing went");
    assert_eq!(shop.get("/v1/kv/?keys"), json!(["shop/a", "shop/new"]));
    let keys: Vec<Value> =
        shop.get("/v1/kv/?recurse").as_array().unwrap().iter().map(|pair| pair["Key"].clone()).collect();
    assert_eq!(keys, [json!("shop/a"), json!("shop/new")]);
    // What is hidden is not told by what is cut off, nor by whether there is anything.
    assert_eq!(shop.get("/v1/kv/shop/?keys&separator=/"), json!(["shop/a", "shop/new"]));
    assert_eq!(shop.ask("GET", "/v1/kv/shop/s?keys", "").0, 404);
    shop.may("PUT", "/v1/kv/shop/tmp/x", "x");
    shop.may("DELETE", "/v1/kv/shop/tmp/?recurse", "");

    // Transactions, each operation by itself.
    let op = |verb: &str, key: &str| json!({ "KV": { "Verb": verb, "Key": key, "Value": "eA==" } });
    shop.may_not("PUT", "/v1/txn", &json!([op("set", "shop/a"), op("set", "bank/c")]).to_string());
    shop.may_not("PUT", "/v1/txn", &json!([op("delete-tree", "shop/")]).to_string());
    shop.may_not("PUT", "/v1/txn", &json!([op("get", "shop/secret/b")]).to_string());
    assert_eq!(root.ask("GET", "/v1/kv/shop/a?raw", "").1, "1");
    let (status, body) = shop.ask("PUT", "/v1/txn", &json!([op("get-tree", "")]).to_string());
    let told: Value = serde_json::from_str(&body).unwrap();
    let keys: Vec<&Value> = told["Results"].as_array().unwrap().iter().map(|one| &one["KV"]["Key"]).collect();
    assert_eq!((status, keys), (200, vec![&json!("shop/a"), &json!("shop/new")]), "{body}");

    let service = |verb: &str, name: &str, id: &str| {
        json!([{ "Service": { "Verb": verb, "Node": host, "Service": { "Service": name, "ID": id } } }]).to_string()
    };
    let check = |verb: &str, id: &str| {
        json!([{ "Check": { "Verb": verb, "Check": { "Node": host, "CheckID": id } } }]).to_string()
    };
    shop.may("PUT", "/v1/txn", &service("set", "shop-2", "shop-2"));
    shop.may("PUT", "/v1/txn", &service("delete", "", "shop-2"));
    shop.may_not("PUT", "/v1/txn", &service("set", "bank", "new"));
    shop.may_not("PUT", "/v1/txn", &service("set", "shop", "bank"));
    shop.may_not("PUT", "/v1/txn", &service("get", "", "bank"));
    shop.may_not("PUT", "/v1/txn", &service("delete", "", "bank"));
    shop.may_not("PUT", "/v1/txn", &check("set", "service:bank"));
    shop.may_not("PUT", "/v1/txn", &check("get", "service:bank"));
    shop.may_not("PUT", "/v1/txn", &check("set", "of-the-node"));
    shop.may_not("PUT", "/v1/txn", r#"[{"Node":{"Verb":"set","Node":{"Node":"new","Address":"10.0.0.1"}}}]"#);
    // Services: by whatever way they are named.
    assert_eq!(shop.get("/v1/catalog/services").as_object().unwrap().keys().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(shop.get("/v1/agent/services").as_object().unwrap().keys().collect::<Vec<_>>(), ["shop"]);
    assert_eq!(shop.get("/v1/agent/checks").as_object().unwrap().keys().collect::<Vec<_>>(), ["service:shop"]);
    assert_eq!(shop.get("/v1/catalog/service/bank"), json!([]));
    assert_eq!(shop.get("/v1/health/service/BANK"), json!([]));
    assert_eq!(shop.get("/v1/health/checks/bank"), json!([]));
    assert_eq!(shop.get("/v1/health/service/shop").as_array().unwrap().len(), 1);
    assert_eq!(shop.get(&format!("/v1/catalog/node/{host}"))["Services"].as_object().unwrap().len(), 1);
    assert_eq!(shop.get(&format!("/v1/catalog/node-services/{host}"))["Services"].as_array().unwrap().len(), 1);
    let states = shop.get("/v1/health/state/any");
    assert!(states.as_array().unwrap().iter().all(|check| check["ServiceName"] != "bank"), "{states}");
    let targets = shop.get("/v1/prometheus/targets");
    assert!(
        targets.as_array().unwrap().len() == 1 && targets[0]["labels"]["__meta_neap_service"] == "shop",
        "{targets}"
    );
    shop.may_not("GET", "/v1/agent/service/bank", "");
    shop.may_not("GET", "/v1/agent/health/service/id/bank", "");
    shop.may_not("GET", "/v1/agent/health/service/name/bank", "");
    shop.may_not("PUT", "/v1/agent/service/register", r#"{"Name":"bank"}"#);
    // Another service's instance is not taken over by its id.
    shop.may_not("PUT", "/v1/agent/service/register", r#"{"Name":"shop-2","ID":"bank"}"#);
    shop.may_not("PUT", "/v1/agent/service/deregister/bank", "");
    shop.may_not("PUT", "/v1/agent/service/maintenance/bank?enable=true", "");
    shop.may_not("PUT", "/v1/agent/check/fail/service:bank", "");
    shop.may_not("PUT", "/v1/agent/check/deregister/service:bank", "");
    shop.may_not("PUT", "/v1/agent/check/register", r#"{"Name":"x","TTL":"1m"}"#);
    shop.may_not("PUT", "/v1/agent/check/register", r#"{"Name":"x","TTL":"1m","ServiceID":"bank"}"#);
    shop.may_not("PUT", "/v1/agent/maintenance?enable=true", "");
    shop.may_not("PUT", "/v1/catalog/register", r#"{"Node":"other","Address":"10.0.0.1"}"#);
    shop.may_not("PUT", "/v1/catalog/deregister", &json!({ "Node": host, "ServiceID": "bank" }).to_string());
    shop.may_not("PUT", "/v1/catalog/deregister", r#"{"Node":"other"}"#);
    shop.may_not("GET", "/v1/agent/self", "");
    // All of it at once goes past the rules for keys and services: that has to be allowed by a rule of its own.
    shop.may_not("GET", "/v1/snapshot", "");
    shop.may_not("PUT", "/v1/snapshot", "x");
    // By whoever may write nodes, and not this service: neither its instance nor its check is taken over, nor a host's id.
    let rules = r#"node_prefix "" { policy = "write" } service_prefix "shop" { policy = "write" }"#;
    let nodes = with(&catalog, made(&catalog, "nodes", rules));
    let on = |more: &Value| {
        let mut body = json!({ "Node": host, "Address": "10.0.0.1" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    nodes.may_not("PUT", "/v1/catalog/register", &on(&json!({ "Service": { "Service": "shop-x", "ID": "bank" } })));
    nodes.may_not("PUT", "/v1/catalog/register", &on(&json!({ "Check": { "Name": "x", "ServiceID": "bank" } })));
    nodes.may_not(
        "PUT",
        "/v1/catalog/register",
        &on(&json!({ "Checks": [{ "CheckID": "service:bank", "Name": "x" }] })),
    );
    root.may("PUT", "/v1/agent/service/register", r#"{"Name":"bank","ID":"shop-1"}"#);
    shop.may_not("PUT", "/v1/agent/service/register", r#"{"Name":"shop-1"}"#);
    root.may("PUT", "/v1/agent/service/deregister/shop-1", "");
    let own = root.get("/v1/catalog/nodes")[0]["ID"].clone();
    let body = json!({ "Node": "aaa", "ID": own, "Address": "10.0.0.1" }).to_string();
    let (status, said) = nodes.ask("PUT", "/v1/catalog/register", &body);
    assert!(status == 409 && said.contains("has the id of node"), "{status} {said}");
    shop.may("PUT", "/v1/agent/service/register", r#"{"Name":"shop-2","Port":81,"Check":{"TTL":"1m"}}"#);
    shop.may("PUT", "/v1/agent/check/pass/service:shop-2", "");
    shop.may("PUT", "/v1/agent/service/deregister/shop-2", "");

    // Sessions, events, queries.
    let (_, session) = shop.ask("PUT", "/v1/session/create", "{}");
    let session: Value = serde_json::from_str(&session).unwrap();
    let id = session["ID"].as_str().unwrap();
    assert_eq!(nobody.get("/v1/session/list"), json!([]));
    nobody.may_not("PUT", &format!("/v1/session/destroy/{id}"), "");
    nobody.may_not(
        "PUT",
        "/v1/txn",
        &json!([{ "Session": { "Verb": "delete", "Session": { "ID": id } } }]).to_string(),
    );
    assert_eq!(shop.get("/v1/session/list").as_array().unwrap().len(), 1);
    shop.may("PUT", &format!("/v1/session/destroy/{id}"), "");
    shop.may("PUT", "/v1/event/fire/deploy", "");
    shop.may_not("PUT", "/v1/event/fire/secret", "");
    let events = shop.get("/v1/event/list");
    assert!(events.as_array().unwrap().iter().all(|event| event["Name"] == "deploy"), "{events}");
    shop.may_not("POST", "/v1/query", r#"{"Name":"bank","Service":{"Service":"bank"}}"#);
    let (_, query) = shop.ask("POST", "/v1/query", r#"{"Name":"shop-near","Service":{"Service":"bank"}}"#);
    let query: Value = serde_json::from_str(&query).unwrap();
    assert_eq!(shop.get("/v1/query/shop-near/execute")["Nodes"], json!([]), "what it finds is not for it");
    assert_eq!(nobody.get("/v1/query"), json!([]));
    for name in [query["ID"].as_str().unwrap(), "SHOP-NEAR"] {
        nobody.may_not("GET", &format!("/v1/query/{name}/explain"), "");
        shop.get(&format!("/v1/query/{name}/explain"));
    }
    nobody.may_not("DELETE", &format!("/v1/query/{}", query["ID"].as_str().unwrap()), "");

    // The other ways to bring a token; one that is gone is none.
    assert_eq!(nobody.get(&format!("/v1/kv/?keys&token={token}")), json!(["shop/a", "shop/new"]));
    catalog.daemon.ok(&["token", "rm", "shop"]);
    assert_eq!(shop.ask("GET", "/v1/kv/?keys", "").0, 403);
    // What is allowed to everybody.
    made(&catalog, "anonymous", r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#);
    eventually("it holds within a second", 5, || {
        (nobody.get("/v1/catalog/services").as_object().unwrap().len() == 2).then_some(())
    });
    nobody.may_not("PUT", "/v1/agent/service/deregister/bank", "");
    // What was refused is on record, with who asked.
    let audit = std::fs::read_to_string(catalog.daemon.data().join("audit.log")).unwrap();
    let refused =
        audit.lines().find(|line| line.contains("consul.kv.put") && line.contains("bank/c") && line.contains("(shop)"));
    assert!(refused.is_some_and(|line| line.contains("lacks permission")), "{audit}");
    let listed = catalog.daemon.ok(&["token", "ls"]);
    assert!(listed.contains("service 1, node 1"), "{listed}");
    let (_, said) = catalog.daemon.fails(&["token", "create", "bad", "--rules", "/dev/null/x"]);
    assert!(said.contains("read the rules"), "{said}");
}

#[test]
fn tokens_that_nobody_asked_for_are_not_looked_at() {
    let catalog = Catalog::start();
    with(&catalog, "left over").may("PUT", "/v1/kv/a", "1");
    let readers = Catalog::with(&[("NEAP_CONSUL_POLICY", "read".into())]);
    let nobody = with(&readers, "");
    assert!(nobody.get("/v1/catalog/services").is_object());
    nobody.may_not("PUT", "/v1/kv/a", "1");
    // That everything may be read does not come to all of it at once.
    nobody.may_not("GET", "/v1/snapshot", "");
    let keeper = with(&readers, made(&readers, "keeper", r#"operator = "read""#));
    keeper.may("HEAD", "/v1/snapshot", "");
    keeper.may_not("PUT", "/v1/snapshot", "x");
}
