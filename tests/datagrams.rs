//! Published ports of UDP: a balancer's process with replicas that are sockets of this test, and a daemon's service.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, eventually, free_port};

// Answers each datagram with its number and what was sent; with so many answers to each.
struct Echo {
    id: String,
    port: u16,
    answers: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start(number: u64, times: usize) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (answers, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, ends) = (answers.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while !ends.load(Ordering::SeqCst) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let answer = [format!("{number} ").as_bytes(), &buffer[..length]].concat();
                for _ in 0..times {
                    let _ = socket.send_to(&answer, from);
                }
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Echo { id: format!("01arz3ndektsv4rrffq69g5fa{number}"), port, answers, over, thread: Some(thread) }
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end();
    }
}

struct Balancer {
    folder: tempfile::TempDir,
    children: Vec<Child>,
    version: u64,
    port: u16,
}

impl Balancer {
    fn start() -> Self {
        Balancer::with(&[NEAP])
    }

    fn with(program: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("neap-test-").tempdir().unwrap();
        let mut balancer = Balancer { folder, children: Vec::new(), version: 0, port: free_port() };
        balancer.run(program);
        balancer
    }

    fn run(&mut self, program: &[&str]) {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg("balancer").arg(self.folder.path()).stdin(Stdio::null());
        self.children.push(command.spawn().unwrap());
    }

    // Takes over from the one before, if there is one.
    fn another(&mut self) {
        self.run(&[NEAP]);
    }

    fn ask(&self, request: &Value) -> Value {
        let socket = self.folder.path().join("balancer.sock");
        // One that has just handed over ends, whoever has asked it.
        eventually("the balancer answers", 10, || {
            let stream = std::os::unix::net::UnixStream::connect(&socket).ok()?;
            writeln!(&stream, "{request}").ok()?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).ok()?;
            Some(serde_json::from_str::<Value>(&line).ok()?["status"].clone())
        })
    }

    fn table(&mut self, backends: &[(&Echo, u32)]) -> Value {
        self.version += 1;
        let backend = |(echo, weight): &(&Echo, u32)| json!({ "id": echo.id, "address": format!("127.0.0.1:{}/udp", echo.port), "weight": weight });
        let backends: Vec<Value> = backends.iter().map(backend).collect();
        let listener = json!({ "address": null, "port": self.port, "protocol": "udp", "balance": "round_robin", "backends": backends });
        let status = self.ask(&json!({ "table": { "version": self.version, "listeners": { "echo/udp": listener } } }));
        assert_eq!((&status["version"], &status["failed"]), (&json!(self.version), &json!({})), "{status}");
        status
    }

    fn client(&self) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(("127.0.0.1", self.port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// Who answers, and what.
fn asks(client: &UdpSocket, text: &str) -> Result<String, String> {
    client.send(text.as_bytes()).map_err(|error| error.to_string())?;
    let mut buffer = vec![0; 65_535];
    let length = client.recv(&mut buffer).map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    match answer.split_once(' ') {
        Some((who, said)) if said == text => Ok(who.to_owned()),
        _ => Err(format!("{answer:?} is no answer to {text:?}")),
    }
}

#[test]
fn clients_stay_with_their_replica_and_move_without_loss() {
    let (one, two) = (Echo::start(1, 1), Echo::start(2, 1));
    let mut balancer = Balancer::start();
    balancer.table(&[(&one, 100), (&two, 100)]);
    let clients: Vec<UdpSocket> = (0..10).map(|_| balancer.client()).collect();
    let all = |round: usize| -> Vec<String> {
        clients.iter().enumerate().map(|(number, client)| asks(client, &format!("{round}-{number}")).unwrap()).collect()
    };
    let first = all(0);
    assert_eq!(first.iter().filter(|who| *who == "1").count(), 5, "{first:?}");
    for round in 1..20 {
        assert_eq!(all(round), first, "round {round}");
    }
    let status = balancer.ask(&json!("status"));
    assert_eq!((&status["accepted"], &status["connections"][&one.id]), (&json!(10), &json!(5)), "{status}");
    // A large one, and an empty one.
    let large = "x".repeat(40_000);
    asks(&clients[0], &large).unwrap();
    asks(&clients[0], "").unwrap();

    // To be drained: whose questions are all answered moves with the next one, and none is lost.
    balancer.table(&[(&one, 0), (&two, 100)]);
    assert!(all(20).iter().all(|who| who == "2"));
    let status = balancer.ask(&json!("status"));
    assert_eq!(status["connections"], json!({ &two.id: 10 }), "{status}");
    balancer.table(&[(&two, 100)]);
    assert!(all(21).iter().all(|who| who == "2"));

    // Where there is nobody else, it goes on with the one that there is.
    balancer.table(&[(&two, 0)]);
    assert!(all(22).iter().all(|who| who == "2"));
    balancer.table(&[(&two, 100)]);

    // One socket that asks at two addresses hears from each of them.
    let both = UdpSocket::bind("127.0.0.1:0").unwrap();
    both.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for address in ["127.0.0.1", "127.0.0.9", "127.0.0.1"] {
        both.send_to(b"here", (address, balancer.port)).unwrap();
        let (_, from) = both.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(from.ip().to_string(), address);
    }

    // Another address of this host answers as itself.
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.connect(("127.0.0.9", balancer.port)).unwrap();
    other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(asks(&other, "where").unwrap(), "2");
}

#[test]
fn a_client_whose_replica_says_more_stays_until_the_drain_is_over() {
    // Two answers to each: no question and answer.
    let (one, two) = (Echo::start(1, 2), Echo::start(2, 2));
    let mut balancer = Balancer::start();
    balancer.table(&[(&one, 100), (&two, 0)]);
    let client = balancer.client();
    let both = |text: &str| -> String {
        let who = asks(&client, text).unwrap();
        client.recv(&mut [0; 100]).unwrap();
        who
    };
    assert_eq!(both("a"), "1");
    balancer.table(&[(&one, 0), (&two, 100)]);
    for number in 0..5 {
        assert_eq!(both(&format!("b{number}")), "1", "it goes on");
    }
    // Silent for a while, it is nobody's any more; and at once where its replica is not there.
    eventually("it is forgotten", 10, || (balancer.ask(&json!("status"))["connections"] == json!({})).then_some(()));
    assert_eq!(both("c"), "2");
    balancer.table(&[(&one, 100)]);
    assert_eq!(both("d"), "1");
}

#[test]
fn what_a_replica_refuses_goes_to_another() {
    let (mut one, two) = (Echo::start(1, 1), Echo::start(2, 1));
    let mut balancer = Balancer::start();
    balancer.table(&[(&one, 100), (&two, 100)]);
    let clients: Vec<UdpSocket> = (0..6).map(|_| balancer.client()).collect();
    let whose: BTreeSet<String> = clients.iter().map(|client| asks(client, "who").unwrap()).collect();
    assert_eq!(whose.len(), 2);
    // Its port is closed: the host says so of the next datagram, which is answered all the same.
    one.end();
    for client in &clients {
        assert_eq!(asks(client, "after").unwrap(), "2");
    }
    assert_eq!(asks(&balancer.client(), "new").unwrap(), "2");
    // Nobody at all: counted, and found again.
    balancer.table(&[]);
    let client = balancer.client();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(asks(&client, "lost").is_err());
    assert_eq!(balancer.ask(&json!("status"))["refused"], 1);
    balancer.table(&[(&two, 100)]);
    assert_eq!(asks(&client, "back").unwrap(), "2");
    assert!(two.answers.load(Ordering::SeqCst) >= 10);
}

#[test]
fn an_upgrade_loses_nothing_that_waits() {
    let (one, two) = (Echo::start(1, 1), Echo::start(2, 1));
    let mut balancer = Balancer::start();
    balancer.table(&[(&one, 100), (&two, 100)]);
    let port = balancer.port;
    let over = Arc::new(AtomicBool::new(false));
    let ends = over.clone();
    let asked = std::thread::spawn(move || {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut count = 0_u32;
        while !ends.load(Ordering::SeqCst) {
            asks(&client, &count.to_string()).unwrap();
            count += 1;
        }
        count
    });
    for _ in 0..5 {
        balancer.another();
        // And one that is replaced before any table has told it of its ports.
        let first = balancer.children.last().unwrap().id();
        eventually("it has taken over", 10, || (balancer.ask(&json!("status"))["pid"] == first).then_some(()));
        balancer.another();
        let pid = balancer.children.last().unwrap().id();
        eventually("it has taken over", 10, || (balancer.ask(&json!("status"))["pid"] == pid).then_some(()));
        balancer.table(&[(&one, 100), (&two, 100)]);
        let before = balancer.children.len() - 2;
        eventually("the one before ends", 10, || balancer.children[before].try_wait().unwrap());
    }
    over.store(true, Ordering::SeqCst);
    assert!(asked.join().unwrap() > 100, "each was answered");
}

// More clients than there is room for: those that were silent for longest go, and whoever asks is answered.
#[test]
fn a_flood_shuts_nobody_out() {
    let (one, two) = (Echo::start(1, 1), Echo::start(2, 1));
    // A quarter of its descriptors: 64 clients.
    let mut balancer = Balancer::with(&["sh", "-c", "ulimit -n 256; exec \"$0\" \"$@\"", NEAP]);
    balancer.table(&[(&one, 100), (&two, 100)]);
    let real = balancer.client();
    asks(&real, "first").unwrap();
    for round in 0..3 {
        let flood: Vec<UdpSocket> = (0..200).map(|_| balancer.client()).collect();
        for client in &flood {
            asks(client, "x").unwrap();
        }
        asks(&real, &format!("round {round}")).unwrap();
        let status = balancer.ask(&json!("status"));
        let open: u64 = status["connections"].as_object().unwrap().values().map(|open| open.as_u64().unwrap()).sum();
        assert!(open <= 64 && status["refused"] == 0, "{status}");
    }
    eventually("they are forgotten", 30, || {
        let open = balancer.ask(&json!("status"))["connections"].to_string();
        (open == "{}").then_some(())
    });
}

#[test]
fn a_service_publishes_udp() {
    let daemon = Daemon::start();
    let port = free_port();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", "udp.lua");
    let number = port.to_string();
    daemon.ok(&["run", file, &number]);
    let client = || {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    };
    let answer = |client: &UdpSocket| {
        client.send(b"hi").unwrap();
        let mut buffer = [0; 200];
        let length = client.recv(&mut buffer).unwrap();
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let mut words = said.split(' ').map(str::to_owned);
        let (version, port) = (words.next().unwrap(), words.next().unwrap());
        assert_eq!(words.next().unwrap(), "hi", "{said}");
        (version, port)
    };
    let clients: Vec<UdpSocket> = (0..8).map(|_| client()).collect();
    let mut by_port: BTreeMap<String, u32> = BTreeMap::new();
    for client in &clients {
        *by_port.entry(answer(client).1).or_default() += 1;
    }
    assert_eq!(by_port.values().collect::<Vec<_>>(), [&4, &4], "{by_port:?}");
    // Through a rollout, from clients that never ask twice.
    std::thread::scope(|scope| {
        let rollout = scope.spawn(|| daemon.ok(&["run", file, &number, "v2"]));
        while !rollout.is_finished() {
            for client in &clients {
                answer(client);
            }
        }
        rollout.join().unwrap();
    });
    assert!(clients.iter().all(|client| answer(client).0 == "v2"));
    let shown = daemon.json(&["service", "inspect", "echo"]);
    assert!(shown.to_string().contains("udp"), "{shown}");
    assert!(!daemon.ok(&["service", "ps", "echo"]).is_empty());
}
