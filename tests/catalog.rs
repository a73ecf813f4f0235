//! The catalogue through scripts and the command line; and all that clients have put there as a snapshot.

use std::process::Command;

use serde_json::{Value, json};

#[path = "support/catalog.rs"]
mod harness;
#[path = "support/mod.rs"]
mod support;

use harness::{Catalog, ask};
use support::eventually;

// A script registers what is outside, a scripted check looks at it, and the command line shows both.
#[test]
fn scripts_and_the_command_line_register_and_look() {
    let catalog = Catalog::start();
    let daemon = &catalog.daemon;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let place = format!("127.0.0.1:{port}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/discovery.lua");
    let said = daemon.ok(&["run", script, &place]);
    assert!(said.contains("db is passing on outside") && said.contains(&format!("resolved: {place}")), "{said}");
    assert_eq!(daemon.ok(&["catalog", "resolve", "db"]).trim(), place);
    assert_eq!(catalog.short("db.service.neap", "SRV"), [format!("1 1 {port} outside.node.dc1.neap.")]);
    let table = daemon.ok(&["catalog", "instances", "db"]);
    assert!(table.contains("outside") && table.contains("passing") && table.contains("client"), "{table}");
    // Gone for those who ask as soon as nobody answers there three times.
    drop(listener);
    eventually("it is gone", 20, || catalog.short("db.service.neap", "SRV").is_empty().then_some(()));
    let (_, error) = daemon.fails(&["catalog", "resolve", "db"]);
    assert!(error.contains("no instance that passes"), "{error}");
    daemon.ok(&["run", script, &place, "--remove"]);
    let (_, error) = daemon.fails(&["catalog", "instances", "db"]);
    assert!(error.contains("service \"db\""), "{error}");

    // A check that is a script, and what it says of an instance.
    let checks = daemon.folder.path().join("checks.lua");
    std::fs::write(
        &checks,
        r#"check "lag" {
             run = function(task)
               local at = task:address()
               if task.slot or task.service ~= "cache" then return false, "that is another" end
               return string.find(at, "127.0.0.9:6379", 1, true) ~= nil, `asked {at}`
             end,
           }"#,
    )
    .unwrap();
    daemon.ok(&["script", "push", "checks", checks.to_str().unwrap()]);
    let register = ["catalog", "register", "cache", "--address", "127.0.0.9", "--script", "lag", "--every", "1s"];
    daemon.ok(&[&register[..], &["--port", "6379"]].concat());
    let shown = || daemon.json(&["catalog", "instances", "cache", "--format", "json"]);
    eventually("the script says so", 20, || (shown()[0]["status"] == "passing").then_some(()));
    let said = shown()[0]["checks"].as_array().unwrap().iter().find(|check| check["kind"] == "script").cloned();
    assert_eq!(said.unwrap()["output"], "asked 127.0.0.9:6379");
    let (_, error) = daemon.fails(&["catalog", "register", "x", "--script", "lagg"]);
    assert!(error.contains("lag"), "{error}");

    // What others report, and maintenance.
    daemon.ok(&["catalog", "register", "job", "--ttl", "1m", "--tag", "night"]);
    daemon.ok(&["catalog", "report", "service:job", "warning", "slow"]);
    let services = daemon.json(&["catalog", "services", "--format", "json"]);
    let job = services.as_array().unwrap().iter().find(|service| service["name"] == "job").unwrap();
    assert_eq!((&job["warning"], &job["tags"]), (&json!(1), &json!(["night"])));
    let said = daemon.ok(&["catalog", "maintenance", "job", "--reason", "new disk"]);
    assert!(said.contains("job critical"), "{said}");
    let said = daemon.ok(&["catalog", "maintenance", "job", "--end"]);
    assert!(said.contains("job warning"), "{said}");
    let (_, error) = daemon.fails(&["catalog", "deregister", "jobb"]);
    assert!(error.contains("did you mean \"job\""), "{error}");
    daemon.ok(&["catalog", "deregister", "job", "cache"]);
    assert_eq!(daemon.ok(&["catalog", "services", "--quiet"]), "");
}

#[test]
fn scripts_report_and_maintain() {
    let catalog = Catalog::start();
    let script = catalog.daemon.folder.path().join("report.lua");
    std::fs::write(
        &script,
        r#"
        discovery.register { service = "job", port = 70, checks = { { ttl = "1m", id = "beat" } }, meta = { rack = "r1" } }
        local function status() return discovery.instances("job")[1].status end
        assert(status() == "critical")
        discovery.report("beat", "passing", { output = "3 ms" })
        assert(status() == "passing" and discovery.instances("job", { passing = true })[1].meta.rack == "r1")
        assert(discovery.maintain("job", { reason = "disk" }).status == "critical")
        assert(discovery.maintain("job", { enable = false }).status == "passing")
        local all = discovery.services()
        assert(#all == 1 and all[1].name == "job" and all[1].passing == 1)
        local host = discovery.nodes()[1]
        assert(host.status == "passing" and host.instances == 1, "the host")
        local function refused(text, call, ...)
          local ok, why = pcall(call, ...)
          assert(not ok and string.find(tostring(why), text, 1, true), tostring(why))
        end
        refused("several things", discovery.register, { service = "x", checks = { { ttl = "1m", tcp = "a:1" } } })
        refused("did you mean \"port\"", discovery.register, { service = "x", prot = 1 })
        refused("with an address it is made", discovery.register, { service = "x", node = "nowhere" })
        refused("there is one on outside", function()
          discovery.register { service = "y", node = "outside", address = "127.0.0.7" }
          discovery.deregister "y"
        end)
        refused("Neap finds out itself", function()
          discovery.register { service = "z", checks = { { tcp = "127.0.0.1:1", id = "own" } } }
          discovery.report("own", "passing")
        end)
        print "all of it"
        "#,
    )
    .unwrap();
    assert!(catalog.daemon.ok(&["run", script.to_str().unwrap()]).contains("all of it"));
}

// What clients have written and registered, kept by curl and put back, also into another cluster.
#[test]
fn a_snapshot_puts_all_of_it_back() {
    let mut catalog = Catalog::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.tgz");
    let curl = |catalog: &Catalog, args: &[&str]| {
        let url = format!("http://127.0.0.1:{}/v1/snapshot", catalog.http);
        let output = Command::new("curl").args(["-sS", "-w", "%{http_code}"]).args(args).arg(url).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (from, to) = (format!("@{}", file.display()), file.display().to_string());
    let session =
        catalog.ask("PUT", "/v1/session/create", r#"{"LockDelay":"0s"}"#).json()["ID"].as_str().unwrap().to_owned();
    assert_eq!(catalog.kv("PUT", &format!("leader?acquire={session}"), "me"), "true");
    assert_eq!(catalog.kv("PUT", "a/b?flags=7", "kept"), "true");
    let db = json!({ "Node": "ext", "Address": "10.9.0.1", "Service": { "Service": "db", "Port": 5432 },
        "Check": { "CheckID": "up", "Name": "up", "Status": "passing", "ServiceID": "db" } });
    catalog.put("/v1/catalog/register", &db);
    catalog
        .put("/v1/agent/service/register", &json!({ "Name": "own", "Check": { "TTL": "60s", "Status": "passing" } }));
    let query = json!({ "Name": "find", "Service": { "Service": "db" } });
    catalog.ask("POST", "/v1/query", &query.to_string()).json();
    assert_eq!(curl(&catalog, &["-o", &to]), "200");
    // As Consul's own command verifies it.
    let listed = Command::new("tar").args(["-xzf", &to, "-C"]).arg(folder.path()).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    let sums = Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(folder.path()).output().unwrap();
    assert!(sums.status.success(), "{sums:?}");
    let meta: Value = serde_json::from_slice(&std::fs::read(folder.path().join("meta.json")).unwrap()).unwrap();
    assert!(meta["Version"] == 1 && meta["Index"].as_u64() > Some(0), "{meta}");

    // All of it changes, and is as it was.
    assert_eq!(catalog.kv("PUT", "a/b", "changed"), "true");
    assert_eq!(catalog.kv("PUT", "new", "x"), "true");
    catalog.put(&format!("/v1/session/destroy/{session}"), &Value::Null);
    catalog.put("/v1/catalog/deregister", &json!({ "Node": "ext" }));
    catalog.put(
        "/v1/catalog/register",
        &json!({ "Node": "late", "Address": "10.9.0.2", "Service": { "Service": "late" } }),
    );
    catalog.put("/v1/agent/service/deregister/own", &Value::Null);
    let now = catalog.ask("GET", "/v1/kv/a/b", "").index();
    let http = catalog.http;
    let waits = std::thread::spawn(move || ask(http, "GET", &format!("/v1/kv/a/b?index={now}&wait=30s"), "").json());
    assert_eq!(curl(&catalog, &["-T", &to]), "200");
    assert_eq!(waits.join().unwrap()[0]["Flags"], 7, "whoever waits is told");
    let is_back = |catalog: &Catalog| {
        assert_eq!(catalog.get("/v1/kv/?keys"), json!(["a/b", "leader"]));
        assert_eq!(catalog.kv("GET", "a/b?raw", ""), "kept");
        assert_eq!(catalog.get("/v1/kv/leader")[0]["Session"], json!(session));
        assert_eq!(catalog.get("/v1/health/service/db?passing")[0]["Node"]["Address"], "10.9.0.1");
        assert_eq!(catalog.get("/v1/catalog/node/late"), Value::Null);
        assert_eq!(catalog.get("/v1/query")[0]["Name"], "find");
    };
    is_back(&catalog);
    assert_eq!(catalog.get("/v1/agent/checks")["service:own"]["Status"], "passing");
    catalog.put("/v1/agent/check/fail/service:own", &Value::Null);
    catalog.daemon.kill();
    catalog.daemon.up();
    is_back(&catalog);
    catalog.put(&format!("/v1/session/destroy/{session}"), &Value::Null);
    assert!(catalog.get("/v1/kv/leader")[0].get("Session").is_none(), "the session is one again, and lets go");

    let other = Catalog::start();
    assert_eq!(curl(&other, &["-T", &to]), "200");
    is_back(&other);
    // By the command and by a script as well.
    let kept = |name: &str| folder.path().join(name).display().to_string();
    other.daemon.ok(&["catalog", "snapshot", "save", &kept("command.tgz")]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/snapshot.lua");
    other.daemon.ok(&["run", script, &kept("script.tgz")]);
    for restore in [
        &["catalog", "snapshot", "restore", &kept("command.tgz")][..],
        &["run", script, &kept("script.tgz"), "--restore"],
    ] {
        other.put("/v1/catalog/deregister", &json!({ "Node": "ext" }));
        assert_eq!(other.kv("PUT", "more", "x"), "true");
        let said = other.daemon.ok(restore);
        assert!(said.contains("4 keys, sessions and queries put back; 1 removed"), "{said}");
        is_back(&other);
    }
    std::fs::write(kept("none.tgz"), "x").unwrap();
    let refused = other.daemon.neap(&["catalog", "snapshot", "restore", &kept("none.tgz")]);
    assert!(!refused.status.success(), "{refused:?}");
    is_back(&other);
    // Checks that are commands are put back by whoever may do all alone: hosts would run them.
    let runs = Catalog::with(&[("NEAP_ENABLE_SCRIPT_CHECKS", "true".into())]);
    runs.put("/v1/agent/check/register", &json!({ "Name": "run", "Args": ["true"], "Interval": "1h" }));
    assert_eq!(curl(&runs, &["-o", &folder.path().join("runs").display().to_string()]), "200");
    let said = curl(&runs, &["-T", &folder.path().join("runs").display().to_string()]);
    assert!(said.ends_with("403") && said.contains("checks that are commands"), "{said}");
    // Nor is anything in it that could come to more than it says.
    let mut links = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    links.append_link(&mut header, "state.bin", "/etc/passwd").unwrap();
    let links = links.into_inner().unwrap().finish().unwrap();
    // What is none, or not all of it, changes nothing.
    let all = std::fs::read(&file).unwrap();
    let mut wrong = all.clone();
    wrong[all.len() / 2] ^= 1;
    for (bytes, says) in [
        (&wrong[..], ""),
        (&all[..all.len() / 2], ""),
        (b"x", "no archive"),
        (b"", "no archive"),
        (&links, "no plain file"),
    ] {
        std::fs::write(folder.path().join("wrong"), bytes).unwrap();
        let said = curl(&other, &["-X", "PUT", "--data-binary", &from.replace("state.tgz", "wrong")]);
        assert!(said.ends_with("400") && said.contains(says), "{said}");
    }
    is_back(&other);
}
