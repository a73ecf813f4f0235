//! Programs of others that find their targets here: HAProxy by SRV records, Prometheus by DNS and by HTTP, kdig.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

#[path = "support/catalog.rs"]
mod harness;
#[path = "support/mod.rs"]
mod support;

use harness::Catalog;
use support::free_port;

/// A program that ends with its test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// From Debian's packages, which tests/run installs.
fn has(program: &str, argument: &str) -> bool {
    let there = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{program} is not installed");
        println!("skipped: {program} is not installed");
    }
    there
}

fn register(catalog: &Catalog, number: u16) {
    let port = 9000 + number;
    let body =
        json!({ "Name": "api", "ID": format!("api-{number}"), "Address": "127.0.0.1", "Port": port, "Tags": ["v1"] });
    catalog.put("/v1/agent/service/register", &body);
}

fn deregister(catalog: &Catalog, number: u16) {
    catalog.put(&format!("/v1/agent/service/deregister/api-{number}"), &Value::Null);
}

#[test]
fn haproxy_follows_srv_records() {
    if !has("haproxy", "-v") {
        return;
    }
    let catalog = Catalog::start();
    let folder = catalog.daemon.folder.path();
    let (socket, config) = (folder.join("haproxy.sock"), folder.join("haproxy.cfg"));
    // Many slots: without EDNS sixteen servers would not fit into an answer.
    let text = format!(
        "global\n  stats socket {} mode 600 level admin\n  maxconn 100\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
         resolvers neap\n  nameserver neap 127.0.0.1:{}\n  accepted_payload_size 8192\n  hold valid 200ms\n  hold nx 200ms\n  \
         hold obsolete 200ms\n  timeout resolve 200ms\n  timeout retry 200ms\n\
         frontend front\n  bind 127.0.0.1:{}\n  default_backend api\n\
         backend api\n  server-template api 20 _api._tcp.service.consul resolvers neap resolve-prefer ipv4 init-addr none\n",
        socket.display(),
        catalog.dns,
        free_port()
    );
    std::fs::write(&config, text).unwrap();
    (1..=3).for_each(|number| register(&catalog, number));
    let haproxy = Command::new("haproxy").args(["-db", "-f"]).arg(&config).stderr(Stdio::null()).spawn();
    let _haproxy = Program(haproxy.unwrap());
    // The ports of the servers that HAProxy sends to.
    let servers = || {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(b"show servers state api\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let lines = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()) && line.len() > 20);
        let mut ports: Vec<u16> = lines
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                // Operational state 2 is up; the 19th word is the port.
                (words.get(5) == Some(&"2") && words.get(4) != Some(&"-"))
                    .then(|| words.get(18)?.parse().ok())
                    .flatten()
            })
            .collect();
        ports.sort_unstable();
        Some(ports)
    };
    let becomes = |expected: &[u16]| {
        let mut last = None;
        for _ in 0..500 {
            last = servers();
            if last.as_deref() == Some(expected) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("HAProxy sends to {last:?}, not to {expected:?}");
    };
    becomes(&[9001, 9002, 9003]);
    (4..=16).for_each(|number| register(&catalog, number));
    becomes(&(9001..=9016).collect::<Vec<_>>());
    // None flaps while nothing changes.
    for _ in 0..50 {
        assert_eq!(servers().unwrap().len(), 16);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    (3..=16).for_each(|number| deregister(&catalog, number));
    becomes(&[9001, 9002]);
}

#[test]
fn prometheus_finds_its_targets() {
    if !has("prometheus", "--version") {
        return;
    }
    // It asks the system's resolver, on port 53: as root it is given one of its own.
    let is_root = nix::unistd::geteuid().is_root();
    let mut catalog = Catalog::start();
    if is_root {
        catalog.daemon.stop();
        catalog.daemon.env.retain(|(key, _)| key != "NEAP_DNS_LISTEN");
        let listen = format!("127.0.0.1:{},127.0.0.77:53", catalog.dns);
        catalog.daemon.env.push(("NEAP_DNS_LISTEN".into(), listen));
        catalog.daemon.up();
    }
    let folder = catalog.daemon.folder.path();
    let (config, port, http) = (folder.join("prometheus.yml"), free_port(), catalog.http);
    let mut text = format!(
        "global: {{ scrape_interval: 1h }}\nscrape_configs:\n\
         - job_name: http\n  http_sd_configs:\n  - url: http://127.0.0.1:{http}/v1/prometheus/targets?service=api\n    \
         refresh_interval: 1s\n"
    );
    // Debian's build has no client of Consul in it.
    let mut jobs = vec!["http"];
    let resolver = folder.join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.77\n").unwrap();
    let mut prometheus = Command::new("prometheus");
    if is_root {
        jobs.push("dns");
        text.push_str(
            "- job_name: dns\n  dns_sd_configs:\n  - names: [_api._tcp.service.consul]\n    refresh_interval: 1s\n",
        );
        prometheus = Command::new("unshare");
        let mount = format!("mount --bind {} /etc/resolv.conf && exec prometheus \"$@\"", resolver.display());
        prometheus.args(["-m", "sh", "-c", &mount, "sh"]);
    }
    std::fs::write(&config, text).unwrap();
    register(&catalog, 1);
    let log = folder.join("prometheus.log");
    let prometheus = prometheus
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn();
    let _prometheus = Program(prometheus.unwrap());
    let targets = |job: &str| {
        let url = format!("http://127.0.0.1:{port}/api/v1/targets?state=active");
        let output = Command::new("curl").args(["-s", &url]).output().ok()?;
        let all: Value = serde_json::from_slice(&output.stdout).ok()?;
        let of_job = all["data"]["activeTargets"].as_array()?.iter().filter(|target| target["scrapePool"] == job);
        let mut found: Vec<String> =
            of_job.filter_map(|target| Some(target["discoveredLabels"]["__address__"].as_str()?.to_owned())).collect();
        found.sort();
        Some(found)
    };
    // What is at its node's address is at its node.
    let host = catalog.host();
    let becomes = |ports: &[u16]| {
        for job in &jobs {
            let place = if *job == "dns" { format!("{host}.node.dc1.consul") } else { "127.0.0.1".to_owned() };
            let expected: Vec<String> = ports.iter().map(|port| format!("{place}:{port}")).collect();
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            let mut last = None;
            for _ in 0..300 {
                last = targets(job);
                if last.as_ref() == Some(&expected) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            assert_eq!(last, Some(expected), "{job}: {}", said());
        }
    };
    becomes(&[9001]);
    register(&catalog, 2);
    becomes(&[9001, 9002]);
    deregister(&catalog, 1);
    becomes(&[9002]);
    let found = catalog.get("/v1/prometheus/targets?service=API&tag=v1&passing");
    assert_eq!(found[0]["labels"]["__meta_neap_tags"], ",v1,");
    assert_eq!(catalog.get("/v1/prometheus/targets?tag=v2"), json!([]));
}

#[test]
fn kdig_asks_over_udp_and_tcp() {
    if !has("kdig", "-V") {
        return;
    }
    let catalog = Catalog::start();
    (1..=40).for_each(|number| register(&catalog, number));
    let ask = |args: &[&str]| {
        let port = catalog.dns.to_string();
        let output =
            Command::new("kdig").args(["@127.0.0.1", "-p", &port, "+retry=0", "+timeout=5"]).args(args).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    // Too much for a datagram without EDNS: whole over TCP.
    let whole = ask(&["+noall", "+answer", "api.service.consul", "SRV"]);
    assert_eq!(whole.lines().filter(|line| line.contains("SRV")).count(), 40, "{whole}");
    let cut = ask(&["+noedns", "+ignore", "api.service.consul", "SRV"]);
    assert!(cut.contains("Flags: qr aa tc"), "{cut}");
    let large = ask(&["+bufsize=8192", "+ignore", "+noall", "+answer", "api.service.consul", "SRV"]);
    assert_eq!(large.lines().filter(|line| line.contains("SRV")).count(), 40, "{large}");
    for (args, says) in [
        (&["api.service.consul", "A"][..], "127.0.0.1"),
        (&["v1.api.service.dc1.consul", "A"], "127.0.0.1"),
        (&["_api._v1.service.consul", "SRV"], "9001"),
        (&["7f000001.addr.consul", "A"], "127.0.0.1"),
        (&["consul", "SOA"], "hostmaster.consul."),
        (&["consul", "NS"], "consul."),
        (&["none.service.consul", "A"], "NXDOMAIN"),
        (&["api.service.consul", "MX"], "NOERROR"),
        (&["+tcp", "api.service.consul", "ANY"], "SRV"),
        (&["-x", "127.0.0.1"], "consul."),
    ] {
        let said = ask(args);
        assert!(said.contains(says), "{args:?}: {said}");
    }
    assert!(!ask(&["api.service.consul", "AXFR"]).contains("9001"));
}
