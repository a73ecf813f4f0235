//! The catalogue as its users see it: DNS with dig, Consul's HTTP API as its clients speak it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "support/catalog.rs"]
mod harness;
#[path = "support/mod.rs"]
mod support;

use harness::{Catalog, ask, has_dig};
use support::{eventually, free_port};

#[test]
fn replicas_are_found_and_withdrawn() {
    if !has_dig() {
        return;
    }
    let catalog = Catalog::start();
    assert_eq!(catalog.status("web.service.consul", "A"), "NXDOMAIN");
    catalog.web(3);
    let host = catalog.host();
    assert_eq!(catalog.short("web.service.consul", "A"), ["127.0.0.1"]);
    assert_eq!(catalog.short("web.service.neap", "A"), ["127.0.0.1"]);
    assert_eq!(catalog.short(&format!("{host}.node.consul"), "A"), ["127.0.0.1"]);
    let located = catalog.short("_web._tcp.service.consul", "SRV");
    assert_eq!(located.len(), 3);
    assert!(located.iter().all(|line| line.ends_with(&format!(" {host}.node.dc1.consul."))), "{located:?}");
    // Each port is one at which a replica answers.
    for line in &located {
        let port = line.split(' ').nth(2).unwrap().parse().unwrap();
        assert_eq!(support::get(port, "/healthz").unwrap().0, 200);
    }
    let healthy = catalog.get("/v1/health/service/web?passing");
    assert_eq!(healthy.as_array().unwrap().len(), 3);
    assert_eq!(healthy[0]["Node"]["Node"], json!(host));
    let checks = healthy[0]["Checks"].as_array().unwrap();
    assert_eq!(checks.iter().filter(|check| check["Status"] == "passing").count(), 2, "{checks:?}");
    let ids = catalog.get("/v1/catalog/service/web");
    let id = ids[0]["ServiceID"].as_str().unwrap();
    assert!(id.starts_with("web."), "{id}");
    // What Neap runs is not for others to remove.
    let refused = catalog.ask("PUT", &format!("/v1/agent/service/deregister/{id}"), "");
    assert_eq!(refused.status, 409);
    assert!(refused.body.contains("is a replica of a service of Neap's"), "{}", refused.body);
    catalog.daemon.ok(&["service", "scale", "web=1"]);
    eventually("two are gone", 20, || (catalog.short("_web._tcp.service.consul", "SRV").len() == 1).then_some(()));
    catalog.daemon.ok(&["service", "rm", "web"]);
    eventually("the last is gone", 20, || (catalog.status("web.service.consul", "SRV") == "NXDOMAIN").then_some(()));
    assert_eq!(catalog.get("/v1/catalog/services"), json!({}));
}

#[test]
fn a_service_of_several_ports_is_found_by_each() {
    if !has_dig() {
        return;
    }
    let catalog = Catalog::start();
    let script = catalog.daemon.folder.path().join("two.lua");
    let source = format!(
        "service 'shop' {{ command = {{ '{}', 'demo' }}, ports = {{ http = {{}}, admin = {{}} }} }}:apply():wait '20s'",
        support::NEAP
    );
    std::fs::write(&script, source).unwrap();
    catalog.daemon.ok(&["run", script.to_str().unwrap()]);
    let port = |name: &str| {
        let lines = catalog.short(name, "SRV");
        assert_eq!(lines.len(), 1, "{name}");
        lines[0].split(' ').nth(2).unwrap().to_owned()
    };
    let (http, admin) = (port("shop-http.service.consul"), port("shop-admin.service.consul"));
    assert_ne!(http, admin);
    assert_eq!((port("shop.service.consul"), port("_shop._http.service.consul")), (http.clone(), http));
}

#[test]
fn dns_keeps_to_its_rules() {
    if !has_dig() {
        return;
    }
    let catalog = Catalog::start();
    for number in 1..=60 {
        let service = json!({ "ID": format!("many-{number}"), "Name": "many", "Address": format!("10.1.0.{number}"), "Port": 80 });
        catalog.put("/v1/agent/service/register", &service);
    }
    // Plain datagrams hold 512 bytes: there is more, and it is had over TCP, which dig does by itself.
    let cut = catalog.dig(&["+noedns", "+ignore", "many.service.consul", "A"]);
    assert!(cut.iter().any(|line| line.contains("flags: qr aa tc rd")), "{cut:?}");
    let whole = catalog.dig(&["+noedns", "+short", "many.service.consul", "A"]);
    assert_eq!(whole.iter().filter(|line| line.starts_with("10.1.0.")).count(), 60);
    assert_eq!(catalog.short("many.service.consul", "A").len(), 60);
    assert_eq!(catalog.short("MANY.Service.CONSUL", "A").len(), 60);
    let all = catalog.dig(&["+tcp", "many.service.consul", "SRV"]);
    assert_eq!(all.iter().filter(|line| line.contains("\tSRV\t")).count(), 60);
    assert_eq!(all.iter().filter(|line| line.contains(".addr.dc1.consul.") && line.contains("\tA\t")).count(), 60);
    assert_eq!(catalog.short("0a010007.addr.consul", "A"), ["10.1.0.7"]);
    assert_eq!(catalog.short("7.0.1.10.in-addr.arpa", "PTR"), ["many.service.dc1.consul."]);
    // Names that are here and have no such record; that are not here; that are others'.
    let nothing = catalog.dig(&["many.service.consul", "AAAA"]);
    assert!(nothing.iter().any(|line| line.contains("status: NOERROR")));
    assert!(nothing.iter().any(|line| line.contains("\tSOA\t")));
    assert_eq!(catalog.status("none.service.consul", "A"), "NXDOMAIN");
    assert_eq!(catalog.status("example.com", "A"), "REFUSED");
    // A transfer ends with the refusal.
    assert!(catalog.dig(&["consul", "AXFR"]).iter().any(|line| line.contains("Transfer failed")));
    assert_eq!(catalog.short("consul", "NS"), [format!("{}.node.dc1.consul.", catalog.host())]);
    let later = catalog.dig(&["+edns=1", "+noednsneg", "many.service.consul", "A"]);
    assert!(later.iter().any(|line| line.contains("status: BADVERS")), "{later:?}");
    let other = catalog.dig(&["-c", "CH", "version.bind", "TXT"]);
    assert!(other.iter().any(|line| line.contains("status: REFUSED")));
}

#[test]
fn names_of_others_are_asked_for_elsewhere_and_kept() {
    if !has_dig() {
        return;
    }
    let other = Catalog::with(&[("NEAP_DNS_DOMAINS", "others.test".into()), ("NEAP_DNS_TTL", "60".into())]);
    let service = json!({ "Name": "far", "Address": "10.9.9.9", "Port": 80 });
    other.put("/v1/agent/service/register", &service);
    let recursor = format!("127.0.0.1:{}", other.dns);
    let mut other = other;
    let catalog = Catalog::with(&[("NEAP_RECURSORS", recursor)]);
    assert_eq!(catalog.short("far.service.others.test", "A"), ["10.9.9.9"]);
    assert_eq!(catalog.dig(&["+short", "+tcp", "far.service.others.test", "A"]), ["10.9.9.9"]);
    let own = catalog.dig(&["consul", "SOA"]);
    assert!(own.iter().any(|line| line.contains("flags: qr aa rd ra")), "{own:?}");
    other.daemon.kill();
    // It holds for a minute, and says how much of that is left; a name that was not asked for is not known.
    let kept = catalog.dig(&["far.service.others.test", "A"]);
    let line = kept.iter().find(|line| line.contains("10.9.9.9")).unwrap();
    let ttl: u32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((1..=60).contains(&ttl), "{line}");
    assert_eq!(catalog.status("near.service.others.test", "A"), "SERVFAIL");
}

#[test]
fn what_clients_register_outlives_the_daemon() {
    if !has_dig() {
        return;
    }
    let mut catalog = Catalog::start();
    let ttl = json!({ "CheckID": "alive", "TTL": "10m", "Status": "passing" });
    let service =
        json!({ "ID": "db-1", "Name": "db", "Tags": ["primary"], "Address": "10.0.0.5", "Port": 5432, "Check": ttl });
    catalog.put("/v1/agent/service/register", &service);
    let (node, address) = ("outside", "10.7.0.1");
    let external = json!({ "Node": node, "Address": address, "Service": { "Service": "mail", "Port": 25 },
        "Check": { "Name": "up", "Status": "passing" } });
    catalog.put("/v1/catalog/register", &external);
    catalog.put("/v1/agent/check/warn/alive?note=slow", &Value::Null);
    let state = |catalog: &Catalog| {
        let db = catalog.get("/v1/health/service/db");
        let alive = db[0]["Checks"].as_array().unwrap().iter().find(|check| check["CheckID"] == "alive").cloned();
        (alive.unwrap()["Status"].clone(), catalog.short("primary.db.service.consul", "A"))
    };
    assert_eq!(state(&catalog), (json!("warning"), vec!["10.0.0.5".to_owned()]));
    let index = catalog.ask("GET", "/v1/catalog/services", "").index();
    // How a check is is written down a moment later.
    std::thread::sleep(Duration::from_secs(4));
    catalog.daemon.kill();
    catalog.daemon.up();
    assert_eq!(state(&catalog), (json!("warning"), vec!["10.0.0.5".to_owned()]));
    assert_eq!(catalog.short("mail.service.consul", "A"), [address]);
    assert!(catalog.ask("GET", "/v1/catalog/services", "").index() > index, "an index never goes back");
    catalog.put("/v1/agent/service/deregister/db-1", &Value::Null);
    catalog.put("/v1/catalog/deregister", &json!({ "Node": node }));
    catalog.daemon.kill();
    catalog.daemon.up();
    assert_eq!(catalog.get("/v1/catalog/services"), json!({}));
    assert_eq!(catalog.get("/v1/catalog/nodes").as_array().unwrap().len(), 1);
}

#[test]
fn a_blocking_query_wakes_for_its_own_alone() {
    let catalog = Catalog::start();
    for name in ["web", "db"] {
        catalog.put("/v1/agent/service/register", &json!({ "Name": name, "Port": 1 }));
    }
    let port = catalog.http;
    let wait = |path: String| {
        std::thread::spawn(move || {
            let begun = Instant::now();
            let answer = ask(port, "GET", &path, "");
            (begun.elapsed(), answer.index())
        })
    };
    let index = catalog.ask("GET", "/v1/health/service/web", "").index();
    let other = catalog.ask("GET", "/v1/health/service/db", "").index();
    // Without an index, or with one that is over, it does not wait.
    let begun = Instant::now();
    catalog.get("/v1/health/service/web?index=0&wait=60s");
    catalog.get("/v1/health/service/web?index=1&wait=60s");
    assert!(begun.elapsed() < Duration::from_secs(10));
    let concerned = wait(format!("/v1/health/service/web?index={index}&wait=60s"));
    let unconcerned = wait(format!("/v1/health/service/db?index={other}&wait=2s"));
    std::thread::sleep(Duration::from_millis(300));
    catalog.put("/v1/agent/service/register", &json!({ "Name": "web", "Port": 2 }));
    let (took, now) = concerned.join().unwrap();
    assert!(took < Duration::from_secs(20) && now > index, "{took:?}");
    let (took, now) = unconcerned.join().unwrap();
    assert!(took >= Duration::from_secs(2) && now == other, "{took:?}");
    for (path, words) in [("index=x", "Invalid index"), ("index=1&wait=soon", "Invalid wait time")] {
        let answer = catalog.ask("GET", &format!("/v1/health/service/web?{path}"), "");
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains(words), "{}", answer.body);
    }
}

#[test]
fn checks_are_run() {
    if !has_dig() {
        return;
    }
    let catalog = Catalog::start();
    let port = free_port();
    let mut serving = Command::new(support::NEAP).args(["demo", "--port", &port.to_string()]).spawn().unwrap();
    eventually("it serves", 20, || support::get(port, "/healthz").ok());
    let http = json!({ "CheckID": "http", "HTTP": format!("http://127.0.0.1:{port}/healthz"), "Interval": "1s" });
    let tcp =
        json!({ "CheckID": "tcp", "TCP": format!("127.0.0.1:{port}"), "Interval": "1s", "FailuresBeforeCritical": 3 });
    let ttl = json!({ "CheckID": "ttl", "TTL": "5s" });
    let service = json!({ "ID": "a", "Name": "app", "Port": port, "Checks": [http, tcp, ttl] });
    catalog.put("/v1/agent/service/register", &service);
    catalog
        .put("/v1/agent/service/register", &json!({ "ID": "b", "Name": "beside", "Check": { "AliasService": "a" } }));
    let status = |id: &str| catalog.get("/v1/agent/checks")[id]["Status"].as_str().unwrap_or_default().to_owned();
    catalog.put("/v1/agent/check/pass/ttl", &Value::Null);
    eventually("all pass", 20, || {
        catalog.put("/v1/agent/check/pass/ttl", &Value::Null);
        let all = ["http", "tcp", "ttl", "service:b"].map(status);
        (all == ["passing"; 4]).then_some(())
    });
    // Two with a check of one name are two.
    for id in ["x", "y"] {
        let check = json!({ "Name": "http", "HTTP": format!("http://127.0.0.1:{port}/healthz"), "Interval": "24h" });
        catalog.put("/v1/agent/service/register", &json!({ "ID": id, "Name": "twice", "Check": check }));
    }
    let twice = catalog.get("/v1/health/checks/twice");
    assert_eq!((twice[0]["CheckID"].clone(), twice[1]["CheckID"].clone()), (json!("service:x"), json!("service:y")));
    // Go's clients read durations, and no empty ones.
    let definition = twice[0]["Definition"].as_object().unwrap();
    assert_eq!((&definition["Interval"], definition.get("TTL")), (&json!("24h0m0s"), None));
    // Registered anew, it does not begin with "critical".
    catalog.put("/v1/agent/service/register", &service);
    assert_eq!(status("http"), "passing");
    assert_eq!(catalog.ask("GET", "/v1/agent/health/service/id/a?format=text", "").body, "passing");
    eventually("nobody says that it is alive", 20, || (status("ttl") == "critical").then_some(()));
    eventually("the other follows", 20, || (status("service:b") == "critical").then_some(()));
    assert_eq!(catalog.ask("GET", "/v1/agent/health/service/id/a?format=text", "").status, 503);
    assert_eq!(catalog.status("app.service.consul", "A"), "NXDOMAIN");
    serving.kill().unwrap();
    serving.wait().unwrap();
    eventually("what is gone is noticed", 20, || (status("http") == "critical").then_some(()));
    eventually("after three times", 20, || (status("tcp") == "critical").then_some(()));
    let refused = catalog.ask("PUT", "/v1/agent/check/pass/http", "");
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(catalog.ask("PUT", "/v1/agent/check/pass/none", "").status, 404);
}

#[test]
fn maintenance_takes_out_of_answers() {
    if !has_dig() {
        return;
    }
    let catalog = Catalog::start();
    for id in ["one", "two"] {
        let service = json!({ "ID": id, "Name": "web", "Address": format!("10.0.0.{}", id.len()), "Port": 1 });
        catalog.put("/v1/agent/service/register", &service);
    }
    catalog
        .put("/v1/agent/service/register", &json!({ "ID": "other", "Name": "web", "Address": "10.0.0.9", "Port": 1 }));
    catalog.put("/v1/agent/service/maintenance/other?enable=true&reason=new%20disk", &Value::Null);
    assert_eq!(catalog.short("web.service.consul", "A"), ["10.0.0.3"]);
    let checks = catalog.get("/v1/health/state/critical");
    assert_eq!(
        (checks[0]["CheckID"].clone(), checks[0]["Notes"].clone()),
        (json!("_service_maintenance:other"), json!("new disk"))
    );
    catalog.put("/v1/agent/maintenance?enable=true", &Value::Null);
    assert_eq!(catalog.status("web.service.consul", "A"), "NXDOMAIN");
    catalog.put("/v1/agent/maintenance?enable=false", &Value::Null);
    catalog.put("/v1/agent/service/maintenance/other?enable=false", &Value::Null);
    assert_eq!(catalog.short("web.service.consul", "A"), ["10.0.0.3", "10.0.0.9"]);
    assert_eq!(catalog.ask("PUT", "/v1/agent/service/maintenance/none?enable=true", "").status, 404);
}

#[test]
fn what_is_wrong_is_said() {
    let catalog = Catalog::start();
    let check = |method: &str, path: &str, body: &str, status: u16, words: &str| {
        let answer = catalog.ask(method, path, body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body.contains(words), "{path}: {}", answer.body);
    };
    check("GET", "/v1/catalog/nodes?dc=mars", "", 500, "No path to datacenter");
    check("GET", "/v1/none", "", 404, "is not served");
    check("PUT", "/v1/agent/service/register", "{", 400, "not JSON");
    check("PUT", "/v1/agent/service/register", "{}", 400, "Missing service name");
    let long = format!(r#"{{"Name":"{}"}}"#, "x".repeat(300));
    check("PUT", "/v1/agent/service/register", &long, 400, "300 bytes");
    check("PUT", "/v1/agent/service/register", &" ".repeat((1 << 20) + 1), 413, "larger");
    check("PUT", "/v1/catalog/register", r#"{"Node":"x"}"#, 400, "no address");
    check("GET", "/v1/agent/service/none", "", 404, "none");
    let own = format!("{{\"Node\":\"{}\"}}", catalog.host());
    check("PUT", "/v1/catalog/deregister", &own, 409, "is a host of the cluster");
    // A page in a browser may not act on it.
    let mut stream = TcpStream::connect(("127.0.0.1", catalog.http)).unwrap();
    let request = "PUT /v1/agent/service/register HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\nConnection: close\r\nContent-Length: 14\r\n\r\n{\"Name\":\"bad\"}";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 403"), "{text}");
    assert_eq!(catalog.get("/v1/catalog/services"), json!({}));
}

#[test]
fn a_port_that_is_taken_stops_that_port_alone() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let catalog = Catalog::with(&[("NEAP_DNS_LISTEN", format!("127.0.0.1:{port}"))]);
    assert_eq!(catalog.get("/v1/status/peers").as_array().unwrap().len(), 1);
    let log = catalog.daemon.log();
    assert!(log.contains("--dns-listen") && log.contains(&format!("(process {})", std::process::id())), "{log}");
}

// What is on a host is registered in a Consul elsewhere as well, here another daemon's: as it is, and no longer.
#[test]
fn a_consul_elsewhere_is_told() {
    let mut elsewhere = Catalog::start();
    let catalog = Catalog::with(&[("NEAP_CONSUL", format!("http://127.0.0.1:{}", elsewhere.http))]);
    elsewhere.put("/v1/agent/service/register", &json!({ "Name": "other", "Port": 1 }));
    let script = catalog.daemon.folder.path().join("shop.lua");
    let text = format!(
        r#"service "shop" {{
  command = {{ "{}", "demo" }}, replicas = 2, ports = {{ http = {{ target = 8080 }} }},
  env = {{ SERVICE_TAGS = "v1,edge", SERVICE_NAME = "front", SERVICE_REGION = "eu" }},
  check = {{ http = "/healthz", every = "200ms", unhealthy = 2, on_fail = "unroute" }},
}}:apply {{ wait = "1m" }}"#,
        support::NEAP
    );
    std::fs::write(&script, text).unwrap();
    catalog.daemon.ok(&["run", script.to_str().unwrap()]);
    // Registrator's words hold for Neap's own.
    let own = catalog.get("/v1/health/service/front?passing&tag=edge");
    assert_eq!(own.as_array().unwrap().len(), 2, "{own}");
    assert!(
        own[0]["Service"]["Meta"]["region"] == "eu" && own[0]["Service"]["Meta"]["neap_service"] == "shop",
        "{own}"
    );

    let there = |elsewhere: &Catalog, name: &str| {
        elsewhere.get(&format!("/v1/health/service/{name}?passing")).as_array().unwrap().len()
    };
    eventually("both are told of", 20, || {
        (there(&elsewhere, "shop") == 2 && there(&elsewhere, "front") == 2).then_some(())
    });
    let told = elsewhere.get("/v1/catalog/service/shop");
    assert!(
        told[0]["ServiceTags"].to_string().contains("edge") && told[0]["ServicePort"].as_u64().unwrap() > 0,
        "{told}"
    );
    // One fails its check, and is well again.
    let port = told[0]["ServicePort"].as_u64().unwrap();
    let port = u16::try_from(port).unwrap();
    assert_eq!(ask(port, "POST", "/fail", "").status, 200);
    eventually("it is critical there", 20, || (there(&elsewhere, "shop") == 1).then_some(()));
    assert_eq!(elsewhere.get("/v1/catalog/service/shop").as_array().unwrap().len(), 2);
    assert_eq!(ask(port, "POST", "/heal", "").status, 200);
    eventually("it is well again", 20, || (there(&elsewhere, "shop") == 2).then_some(()));
    // It is away for a while; what changed meanwhile is made up for.
    elsewhere.daemon.kill();
    catalog.daemon.ok(&["service", "scale", "shop=3"]);
    elsewhere.daemon.up();
    eventually("the third is told of", 40, || (there(&elsewhere, "shop") == 3).then_some(()));
    catalog.daemon.ok(&["service", "rm", "shop"]);
    // What others registered stays.
    eventually("all are gone", 20, || (elsewhere.get("/v1/catalog/services") == json!({ "other": [] })).then_some(()));
}
