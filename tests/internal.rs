//! Services that are balanced inside the cluster: at an address of their own, on one host and in a Swarm.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

#[path = "support/lab.rs"]
mod lab;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, cluster};
use support::{Daemon, NEAP, eventually, free_port};

fn get(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn address(daemon: &Daemon, service: &str) -> Option<Ipv4Addr> {
    daemon.json(&["service", "inspect", service])["status"]["service"]["address"].as_str()?.parse().ok()
}

#[test]
fn processes_are_reached_at_an_address_that_stays() {
    let daemon = Daemon::start();
    let (one, two) = (free_port(), free_port());
    let create = |name: &str, mode: &str, port: u16| {
        let (expose, start) = (port.to_string(), ["service", "create", "--name", name, "--endpoint-mode", mode]);
        let checked = ["--health-http", "/healthz", "--health-interval", "100ms", "--update-monitor", "0s"];
        daemon.ok(&[&start[..], &["--replicas", "2", "--expose", &expose], &checked, &["--", NEAP, "demo"]].concat());
        daemon.ok(&["service", "wait", name]);
    };
    create("prices", "vip", one);
    create("users", "vip", two);
    create("alone", "dnsrr", two);
    let (prices, users) = (address(&daemon, "prices").unwrap(), address(&daemon, "users").unwrap());
    assert!(prices != users && prices.octets()[..2] == [127, 98], "{prices} {users}");
    assert_eq!(address(&daemon, "alone"), None);
    let tasks = |address, port| -> BTreeSet<String> {
        let answers = (0..10).map(|_| get(address, port).unwrap());
        answers.map(|answer| answer.rsplit_once("\r\n\r\n").unwrap().1.to_owned()).collect()
    };
    assert!(tasks(prices, one).len() == 2 && tasks(users, two).len() == 2, "{:?}", tasks(prices, one));
    // Nobody else listens there, and nothing is published.
    assert!(get(Ipv4Addr::LOCALHOST, one).is_err() && get(users, one).is_err());
    let shown = daemon.json(&["port", "ls", "--format", "json"]);
    let names: Vec<&str> = shown.as_array().unwrap().iter().filter_map(|port| port["name"].as_str()).collect();
    assert_eq!(
        names.iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([&"prices/http@internal", &"users/http@internal"])
    );
    // Others may publish the same number, before and after, and the address still leads to its own.
    let before = tasks(prices, one);
    daemon.ok(&[
        "service",
        "create",
        "--name",
        "edge",
        "--publish",
        &format!("{one}:{one}"),
        "--",
        NEAP,
        "demo",
        "--answer",
        "edge",
    ]);
    daemon.ok(&["service", "wait", "edge"]);
    assert!(get(Ipv4Addr::LOCALHOST, one).unwrap().contains("edge"));
    assert_eq!(tasks(prices, one), before);
    daemon.ok(&["service", "update", "prices", "--endpoint-mode", "dnsrr"]);
    eventually("the address leads nowhere", 10, || {
        get(prices, one).map_or(true, |answer| answer.contains("edge")).then_some(())
    });
    daemon.ok(&["service", "update", "prices", "--endpoint-mode", "vip"]);
    assert_eq!(tasks(prices, one), before);
    daemon.ok(&["service", "rm", "edge"]);
    eventually("nobody publishes it any more", 20, || get(Ipv4Addr::LOCALHOST, one).is_err().then_some(()));
    // A rollout is not noticed.
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| {
            let mut count = 0;
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                let answer = get(prices, one).unwrap_or_else(|error| panic!("request {count}: {error}"));
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                count += 1;
            }
            count
        });
        let updated = daemon.neap(&["service", "update", "prices", "--env-add", "ROUND=2"]);
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(updated.status.success(), "{updated:?}");
        assert!(asks.join().unwrap() > 10);
    });
    assert_eq!(address(&daemon, "prices"), Some(prices));
    // Given up, and had again.
    let tasks = || daemon.json(&["service", "inspect", "prices"])["status"]["tasks"].clone();
    let before = tasks();
    daemon.ok(&["service", "update", "prices", "--endpoint-mode", "dnsrr"]);
    assert_eq!(address(&daemon, "prices"), None);
    eventually("nobody listens there any more", 10, || get(prices, one).is_err().then_some(()));
    daemon.ok(&["service", "update", "prices", "--endpoint-mode", "vip"]);
    assert_eq!(address(&daemon, "prices"), Some(prices));
    assert!(get(prices, one).is_ok());
    let ids = |tasks: &Value| tasks.as_array().unwrap().iter().map(|task| task["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&tasks()), "no replica was replaced for it");
    daemon.ok(&["service", "rm", "users"]);
    eventually("nobody listens there any more", 10, || get(users, two).is_err().then_some(()));
    for (args, why) in [
        (&["--endpoint-mode", "vip", "--"][..], "internal: leads nowhere"),
        (&["--endpoint-mode", "lvs", "--"], "is neither vip nor dnsrr"),
    ] {
        let (_, said) = daemon.fails(&[&["service", "create", "--name", "wrong"], args, &[NEAP]].concat());
        assert!(said.contains(why), "{said}");
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", "internal.lua");
    daemon.ok(&["service", "rm", "prices"]);
    eventually("its name is free", 20, || {
        daemon.neap(&["service", "inspect", "prices"]).status.code().filter(|code| *code != 0)
    });
    let run = |more: &[&str]| {
        let output = daemon.command(&[&["run", script], more].concat()).env("NEAP_PROGRAM", NEAP).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&[]);
    assert!(said.contains(&format!("http://{prices}:8080/")) && said.contains("v1"), "{said}");
    assert!(run(&["v2"]).contains("v2"));
}

#[test]
fn containers_of_a_swarm_reach_a_service_by_one_name() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::engines(3);
    let daemon = cluster(&lab);
    daemon.ok(&["network", "create", "shop"]);
    let create = |name: &str, more: &[&str]| {
        let start = ["service", "create", "--name", name, "--network", "shop"];
        daemon.ok(&[&start[..], more].concat());
    };
    let image = lab.image("demo:1");
    let flags = "--replicas 3 --expose 8080 --endpoint-mode vip --update-monitor 200ms --stop-grace-period 2s";
    create("web", &[&flags.split(' ').collect::<Vec<_>>()[..], &[&image]].concat());
    daemon.ok(&["service", "wait", "web"]);
    let own = daemon.json(&["service", "inspect", "web"])["status"]["service"]["address"].as_str().unwrap().to_owned();
    assert!(own.starts_with("198.18."), "{own}");
    create("asks", &["--mode", "global", &image, "sleep", "100000"]);
    daemon.ok(&["service", "wait", "asks"]);
    // From a container on each host: its name is that address, and all replicas are behind it.
    let look = |node: &str, command: &str| {
        let container = lab.containers(node, "asks").into_iter().next().unwrap();
        lab.exec_in(node, &container, command).unwrap_or_else(|| panic!("{command} in a container on {node}"))
    };
    let script = |node: &str, name: &str, text: &str| look(node, &format!("cat > /{name}.lua <<'END'\n{text}\nEND\n"));
    for node in ["n1", "n2", "n3"] {
        assert!(look(node, "cat /etc/hosts").contains(&format!("{own}\tweb")), "{}", look(node, "cat /etc/hosts"));
        script(
            node,
            "ask",
            "for _ = 1, 6 do print(http.get('http://web:8080/', { headers = { Connection = 'close' } }).body) end",
        );
        let answers = look(node, "neap run --standalone /ask.lua");
        let named = answers.lines().filter(|line| line.starts_with("{\"host\""));
        assert_eq!(named.collect::<BTreeSet<_>>().len(), 3, "{answers}");
        let found = lab.run(node, &["dig", "@127.0.0.1", "-p", "8600", "+short", "web.virtual.neap", "A"]);
        assert_eq!(found.trim(), own);
        assert!(lab.run(node, &["ip", "-4", "addr", "show", "dev", "lo"]).contains(&own));
    }
    let found = lab.run("n2", &["curl", "-s", "http://127.0.0.1:8500/v1/health/service/web"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    let tagged = &found[0]["Service"]["TaggedAddresses"]["virtual"];
    assert_eq!(tagged, &json!({ "Address": own, "Port": 8080 }), "{found}");
    // A rollout is not noticed by a client that never asks twice.
    let ask = [
        "local good, bad = 0, {}",
        "while not pcall(fs.read, '/over') do",
        "  local ok, reply = pcall(http.get, 'http://web:8080/', { headers = { Connection = 'close' } })",
        "  if ok and reply.status == 200 then good += 1 else table.insert(bad, tostring(reply)) end",
        "end",
        "print(good, #bad, bad[1])",
    ];
    script("n2", "load", &ask.join("\n"));
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| look("n2", "neap run --standalone /load.lua"));
        let updated = daemon.neap(&["service", "update", "web", "--env-add", "ROUND=2"]);
        look("n2", "touch /over");
        assert!(updated.status.success(), "{updated:?}");
        let said = asks.join().unwrap();
        let counts: Vec<&str> = said.split('\t').collect();
        assert!(counts[0].parse::<u32>().unwrap() > 50 && counts[1] == "0", "{said}");
    });
    // When the service goes, its address goes.
    daemon.ok(&["service", "rm", "web"]);
    for node in ["n1", "n2", "n3"] {
        eventually("the host gave the address up", 20, || {
            (!lab.run(node, &["ip", "-4", "addr", "show", "dev", "lo"]).contains(&own)).then_some(())
        });
    }
}
