//! Published ports of TCP beyond round robin: a balancer's process with replicas that are sockets of this test, and a daemon's service.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "support/front.rs"]
mod front;
#[path = "support/replica.rs"]
mod replica;
#[path = "support/mod.rs"]
mod support;

use front::Balancer;
use support::{Daemon, eventually, free_port};

// Says its number, then answers everything with itself.
struct Echo {
    id: String,
    port: u16,
}

impl Echo {
    fn start(number: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // A queue that is full lets a connection be made that nobody knows of here: whoever waits for a word waits for ever.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096).unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let _ = stream.write_all(format!("{number}\n").as_bytes());
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..length]);
                    }
                });
            }
        });
        Echo { id: id(number), port }
    }

    fn backend(&self) -> Value {
        json!({ "id": self.id, "address": format!("127.0.0.1:{}", self.port), "weight": 100 })
    }
}

fn id(number: u64) -> String {
    format!("01arz3ndektsv4rrffq69g5fa{number}")
}

fn listen(balancer: &mut Balancer, more: &Value, backends: &[Value]) {
    let mut listener =
        json!({ "address": "127.0.0.1", "port": balancer.port, "balance": "round_robin", "backends": backends });
    for (key, value) in more.as_object().unwrap() {
        listener[key] = value.clone();
    }
    balancer.listeners(&json!({ "echo/tcp": listener }));
}

fn flowed(balancer: &Balancer) -> Value {
    balancer.status()["ports"]["echo/tcp"].clone()
}

// A connection from this address, and the number of who took it.
fn from(address: Ipv4Addr, port: u16) -> (TcpStream, u64) {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let place = |address, port| SockaddrIn::from(SocketAddrV4::new(address, port));
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &place(address, 0)).unwrap();
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &place(Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let number = line(&mut stream).trim().parse().unwrap();
    (stream, number)
}

fn line(stream: &mut impl Read) -> String {
    let (mut all, mut byte) = (Vec::new(), [0]);
    while all.last() != Some(&b'\n') && stream.read(&mut byte).unwrap() == 1 {
        all.push(byte[0]);
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn one_address_comes_to_one_replica_and_others_stay_where_they_are() {
    let mut balancer = Balancer::start();
    let replicas: Vec<Echo> = (1..=4).map(Echo::start).collect();
    let all: Vec<Value> = replicas.iter().map(Echo::backend).collect();
    let by_ip = json!({ "balance": "hash:ip" });
    listen(&mut balancer, &by_ip, &all);
    let ask = || -> BTreeMap<u8, u64> {
        (1..=40).map(|last| (last, from(Ipv4Addr::new(127, 0, 1, last), balancer.port).1)).collect()
    };
    let before = ask();
    assert_eq!(ask(), before);
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 4, "{before:?}");
    listen(&mut balancer, &by_ip, &all[1..]);
    let ask = || -> BTreeMap<u8, u64> {
        (1..=40).map(|last| (last, from(Ipv4Addr::new(127, 0, 1, last), balancer.port).1)).collect()
    };
    let after = ask();
    let moved: Vec<&u8> = before.keys().filter(|last| before[last] != after[last]).collect();
    let was_there: Vec<&u8> = before.iter().filter(|(_, number)| **number == 1).map(|(last, _)| last).collect();
    assert_eq!(moved, was_there);
}

#[test]
fn of_two_that_are_drawn_the_one_with_fewer() {
    let mut balancer = Balancer::start();
    let replicas: Vec<Echo> = (1..=3).map(Echo::start).collect();
    let all: Vec<Value> = replicas.iter().map(Echo::backend).collect();
    listen(&mut balancer, &json!({ "balance": "power_of_two" }), &all);
    let held: Vec<(TcpStream, u64)> = (0..60).map(|_| from(Ipv4Addr::LOCALHOST, balancer.port)).collect();
    let mut counts = [0; 3];
    held.iter().for_each(|(_, number)| counts[*number as usize - 1] += 1);
    // Drawn by chance alone, three of sixty would be farther apart.
    assert!(counts.iter().all(|count: &i32| count.abs_diff(20) <= 3), "{counts:?}");
}

#[test]
fn whoever_refuses_again_and_again_is_left_out_for_a_while() {
    let mut balancer = Balancer::start();
    let one = Echo::start(1);
    // A port that is taken, and where nobody listens.
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let any = nix::sys::socket::SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    nix::sys::socket::bind(fd, &any).unwrap();
    let taken = nix::sys::socket::getsockname::<nix::sys::socket::SockaddrIn>(fd).unwrap();
    let dead = json!({ "id": id(2), "address": taken.to_string(), "weight": 100 });
    listen(&mut balancer, &json!({}), &[dead.clone(), one.backend()]);
    for _ in 0..30 {
        assert_eq!(from(Ipv4Addr::LOCALHOST, balancer.port).1, 1);
    }
    let status = balancer.status();
    assert_eq!(status["ports"]["echo/tcp"]["retries"], 5, "{status}");
    assert_eq!(status["backends"][id(2)], json!({ "requests": 5, "failures": 5, "ejections": 1 }), "{status}");
    // All of them is nobody: it is asked again, and says again that it does not take it.
    listen(&mut balancer, &json!({}), &[dead]);
    let mut stream = balancer.connect();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let status = balancer.status();
    assert_eq!((&status["ports"]["echo/tcp"]["refused"], &status["refused"]), (&json!(1), &json!(1)), "{status}");
}

// A word of version 2 for 203.0.113.9:1234 that came to 198.51.100.1:80.
fn version_2() -> Vec<u8> {
    let addresses = [203, 0, 113, 9, 198, 51, 100, 1, 0x04, 0xd2, 0, 80];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses].concat()
}

#[test]
fn the_proxy_protocol_is_taken_and_said() {
    let mut balancer = Balancer::start();
    let echo = Echo::start(1);
    let both = |version: &str| json!({ "accept_proxy": true, "send_proxy": version });
    let read = |balancer: &Balancer, pieces: &[&[u8]], wanted: &[u8]| {
        let mut stream = balancer.connect();
        stream.set_nodelay(true).unwrap();
        for piece in pieces {
            stream.write_all(piece).unwrap();
            // The balancer has looked at each of them once this is answered.
            let _ = flowed(balancer);
        }
        assert_eq!(line(&mut stream), "1\n");
        let mut got = vec![0; wanted.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(wanted));
    };
    listen(&mut balancer, &both("v1"), &[echo.backend()]);
    let word = b"PROXY TCP4 203.0.113.9 198.51.100.1 1234 80\r\n";
    read(&balancer, &[word, b"hello"], &[word.as_slice(), b"hello"].concat());
    let whole = version_2();
    let pieces: Vec<&[u8]> = whole.chunks(5).chain([b"hello".as_slice()]).collect();
    read(&balancer, &pieces, &[word.as_slice(), b"hello"].concat());
    listen(&mut balancer, &both("v2"), &[echo.backend()]);
    read(&balancer, &[&[word.as_slice(), b"hello"].concat()], &[whole.as_slice(), b"hello"].concat());
    // What is no such word is not let in, however it ends.
    for wrong in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"PROXY TCP4 1.2.3.4\r\n", b"PROXY "] {
        let mut stream = balancer.connect();
        stream.write_all(wrong).unwrap();
        // It may be shut already.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "{wrong:?}");
    }
    let counted = eventually("all of them are over", 10, || Some(flowed(&balancer)).filter(|port| port["open"] == 0));
    assert_eq!((&counted["malformed"], &counted["refused"]), (&json!(3), &json!(0)), "{counted}");
    // By the address that was told, not by that of the proxy.
    let others: Vec<Echo> = (2..=5).map(Echo::start).collect();
    let all: Vec<Value> = others.iter().map(Echo::backend).collect();
    listen(&mut balancer, &json!({ "accept_proxy": true, "balance": "hash:ip" }), &all);
    let number = |last: u8| {
        let mut stream = balancer.connect();
        write!(stream, "PROXY TCP4 203.0.113.{last} 198.51.100.1 1234 80\r\n").unwrap();
        line(&mut stream)
    };
    let numbers: Vec<String> = (1..40).map(number).collect();
    assert_eq!(numbers, (1..40).map(number).collect::<Vec<_>>());
    assert!(numbers.iter().collect::<BTreeSet<_>>().len() == 4, "{numbers:?}");
    // Without a proxy in front the word is of who is connected.
    listen(&mut balancer, &json!({ "send_proxy": "v1" }), &[echo.backend()]);
    let (mut stream, _) = from(Ipv4Addr::new(127, 0, 1, 7), balancer.port);
    let own = stream.local_addr().unwrap().port();
    assert_eq!(line(&mut stream), format!("PROXY TCP4 127.0.1.7 127.0.0.1 {own} {}\r\n", balancer.port));
}

#[test]
fn no_more_than_so_many_at_a_time() {
    let mut balancer = Balancer::start();
    let echo = Echo::start(1);
    listen(&mut balancer, &json!({ "max_connections": 2 }), &[echo.backend()]);
    let first = from(Ipv4Addr::LOCALHOST, balancer.port);
    let second = from(Ipv4Addr::LOCALHOST, balancer.port);
    let mut third = balancer.connect();
    third.write_all(b"waits\n").unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(third.read(&mut [0]).is_err(), "nobody is to answer yet");
    assert_eq!((flowed(&balancer)["open"].clone(), flowed(&balancer)["connections"].clone()), (json!(2), json!(2)));
    drop(first);
    third.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!((line(&mut third), line(&mut third)), ("1\n".to_owned(), "waits\n".to_owned()));
    // A table that allows more lets in whoever waits.
    let mut fourth = balancer.connect();
    listen(&mut balancer, &json!({ "max_connections": 3 }), &[echo.backend()]);
    assert_eq!(line(&mut fourth), "1\n");
    drop((second, third, fourth));
    eventually("all of them are over", 10, || (flowed(&balancer)["open"] == 0).then_some(()));
}

#[test]
fn whoever_is_silent_is_let_go_and_a_line_is_sent_of_each() {
    let mut balancer = Balancer::start();
    let echo = Echo::start(1);
    let log = UdpSocket::bind("127.0.0.1:0").unwrap();
    log.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let told = log.local_addr().unwrap().to_string();
    listen(&mut balancer, &json!({ "idle_timeout": "2s", "access_log": told }), &[echo.backend()]);
    let (mut silent, _) = from(Ipv4Addr::new(127, 0, 1, 1), balancer.port);
    let (mut talks, _) = from(Ipv4Addr::new(127, 0, 1, 2), balancer.port);
    talks.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let began = Instant::now();
    let mut buffer = [0; 16];
    // It says something five times a second until the other one is gone.
    silent.set_nonblocking(true).unwrap();
    while silent.read(&mut buffer).is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "the silent one is still there");
        talks.write_all(b"x").unwrap();
        let _ = talks.read(&mut buffer);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
    talks.write_all(b"more").unwrap();
    let next = || {
        let mut datagram = [0; 2048];
        let length = log.recv(&mut datagram).unwrap();
        serde_json::from_slice::<Value>(&datagram[..length]).unwrap()
    };
    let line = next();
    let what =
        ["_port", "_client", "_task", "_bytes_in", "_bytes_out", "level", "version"].map(|key| line[key].clone());
    let wanted = [json!("echo/tcp"), json!("127.0.1.1"), json!(id(1)), json!(0), json!(2), json!(6), json!("1.1")];
    assert_eq!(what, wanted, "{line}");
    assert!(line["_duration_ms"].as_f64().unwrap() >= 1900.0, "{line}");
    drop(talks);
    let line = next();
    assert_eq!(line["_client"], "127.0.1.2");
    assert!(line["_bytes_in"].as_u64().unwrap() > 4, "{line}");
    let port = flowed(&balancer);
    assert_eq!((&port["connections"], &port["bytes_in"]), (&json!(2), &line["_bytes_in"]), "{port}");
}

#[test]
fn ports_are_described_and_listed() {
    let daemon = Daemon::start();
    let (port, route) = (free_port(), free_port());
    let log = UdpSocket::bind("127.0.0.1:0").unwrap();
    let publish = format!(
        "published={port},target=8080,balance=hash:ip,max-connections=100,idle-timeout=5m,access-log={}",
        log.local_addr().unwrap()
    );
    daemon.ok(&["service", "create", "--name", "web", "--publish", &publish, "--", support::NEAP, "demo"]);
    daemon.ok(&["service", "wait", "web"]);
    let spec: Value = serde_json::from_str(&daemon.ok(&["service", "inspect", "web"])).unwrap();
    let described = &spec["status"]["service"]["spec"]["ports"]["http"];
    assert_eq!(
        ["balance", "max_connections", "idle_timeout"].map(|key| described[key].clone()),
        [json!("hash:ip"), json!(100), json!("5m")],
        "{spec}"
    );
    daemon.ok(&["route", "set", "all", &format!("*:{route}/"), "--to", "web"]);
    assert_eq!(support::get(port, "/").unwrap().0, 200);
    assert_eq!(support::get(route, "/").unwrap().0, 200);
    let all = eventually("what went by is told", 20, || {
        let all: Vec<Value> = serde_json::from_str(&daemon.ok(&["port", "ls", "--format", "json"])).unwrap();
        all.iter().all(|port| port["flowed"]["connections"] == 1).then_some(all)
    });
    let shown = |name: &str| all.iter().find(|port| port["name"] == *name).unwrap_or_else(|| panic!("{all:?}")).clone();
    let web = shown("web/http");
    assert_eq!((&web["speaks"], &web["serving"], &web["service"]), (&json!("tcp"), &json!(1), &json!("web")), "{web}");
    assert!(web["flowed"]["bytes_out"].as_u64().unwrap() > 20 && web["flowed"]["bytes_in"].as_u64().unwrap() > 10);
    let front = shown(&route.to_string());
    assert_eq!((&front["speaks"], &front["serving"]), (&json!("http"), &json!(1)), "{front}");
    assert!(front["flowed"]["bytes_out"].as_u64().unwrap() > 20 && front["flowed"]["bytes_in"].as_u64().unwrap() > 10);
    let table = daemon.ok(&["port", "ls"]);
    assert!(table.contains("UNROUTED") && table.contains("(routes)") && table.contains("web/http"), "{table}");
    let script = "for _, port in ports.list() do print(port.speaks, port.port, port.flowed.connections) end";
    let said = daemon.ok(&["repl", "-e", script]);
    assert!(said.contains(&format!("tcp\t{port}\t1")), "{said}");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/", "ports.lua");
    let said = daemon.ok(&["run", file]);
    assert!(said.contains(&format!("{port}/tcp")) && said.contains("routes"), "{said}");
    assert_eq!(daemon.ok(&["run", file, "trouble"]), "");
    // What went by is told in a line of its own.
    let mut datagram = [0; 2048];
    log.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = log.recv(&mut datagram).unwrap();
    assert!(String::from_utf8_lossy(&datagram[..length]).contains("web/http"));
    for (publish, why) in [
        ("published=53,target=53,protocol=udp,max-connections=5", "ports.http.max_connections: is for tcp alone"),
        ("published=53,target=53,max-connections=0", "lets nobody in"),
        ("published=53,target=53,mode=host,send-proxy=v1", "which mode host goes past"),
        ("published=53,target=53,idle-timeout=10ms", "is shorter than 1s"),
        ("published=53,target=53,send-proxy=v3", "v3"),
        ("published=53,target=53,balance=hash:path", "hash:path"),
    ] {
        let (_, wrong) = daemon.fails(&["service", "create", "--name", "wrong", "--publish", publish, "--", "true"]);
        assert!(wrong.contains(why), "{publish}: {wrong}");
    }
}

// What a process has open.
fn descriptors(balancer: &Balancer) -> usize {
    let pid = balancer.status()["pid"].as_u64().unwrap();
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

// Ends a connection so that the other end is told nothing, as when a host loses its power (TCP_REPAIR, tcp(7)).
#[allow(unsafe_code, reason = "the kernel reads one number of the size that it is told")]
fn vanish(stream: TcpStream) {
    let on: libc::c_int = 1;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let place = (&raw const on).cast::<libc::c_void>();
    let set = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, place, size) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn twenty_thousand_connections_of_all_kinds_leave_nothing_behind() {
    const EACH: usize = 5000;
    let mut balancer = Balancer::start();
    let echo = Echo::start(1);
    listen(&mut balancer, &json!({}), &[echo.backend()]);
    drop(from(Ipv4Addr::LOCALHOST, balancer.port));
    eventually("the first one is over", 10, || (flowed(&balancer)["open"] == 0).then_some(()));
    let before = (0..5).map(|_| descriptors(&balancer)).max().unwrap();
    let port = balancer.port;
    let reset = |stream: &TcpStream| {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    };
    std::thread::scope(|scope| {
        for kind in 0..4_usize {
            scope.spawn(move || {
                for number in 0..EACH {
                    let address = Ipv4Addr::new(127, 0, 2 + kind as u8, (number % 200) as u8 + 1);
                    match kind {
                        // Asks, is answered, goes.
                        0 => drop(from(address, port)),
                        // Is answered, and breaks off.
                        1 => reset(&from(address, port).0),
                        // Goes at once.
                        2 => drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap()),
                        // Sends, and breaks off without having heard anything.
                        _ => {
                            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                            stream.write_all(&[b'x'; 3000]).unwrap();
                            reset(&stream);
                        }
                    }
                }
            });
        }
    });
    let port = eventually("all of them are over", 20, || Some(flowed(&balancer)).filter(|port| port["open"] == 0));
    // Some broke off before they were accepted.
    assert!(port["connections"].as_u64().unwrap() > 2 * EACH as u64 && port["refused"] == 0, "{port}");
    assert_eq!(balancer.status()["connections"], json!({}));
    // Those of whoever asks it come and go.
    eventually("its descriptors are as many as before", 10, || (descriptors(&balancer) <= before).then_some(()));
    let ended = balancer.status()["backends"][id(1)]["failures"].clone();
    assert_eq!(ended, 0);
}

#[test]
fn connections_of_which_one_end_is_gone_without_a_word() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can make an end vanish");
        return;
    }
    let mut balancer = Balancer::start();
    let echo = Echo::start(1);
    listen(&mut balancer, &json!({}), &[echo.backend()]);
    let (kept, _) = from(Ipv4Addr::LOCALHOST, balancer.port);
    vanish(from(Ipv4Addr::LOCALHOST, balancer.port).0);
    assert_eq!(flowed(&balancer)["open"], 2);
    // A backend that is gone so, and gets nothing new, is asked often: its client is told within seconds.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = json!({ "id": id(2), "address": gone.local_addr().unwrap().to_string(), "weight": 100 });
    let mut other = Balancer::start();
    listen(&mut other, &json!({}), &[backend]);
    let mut client = other.connect();
    vanish(gone.accept().unwrap().0);
    drop(gone);
    listen(&mut other, &json!({}), &[echo.backend()]);
    let began = Instant::now();
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    eventually("its place is free", 5, || (flowed(&other)["open"] == 0).then_some(()));
    // A client that is gone so is found out about a minute later, while one that is only silent stays.
    eventually("the other one is let go", 100, || (flowed(&balancer)["open"] == 1).then_some(()));
    let mut kept = kept;
    kept.write_all(b"there").unwrap();
    let mut answer = [0; 5];
    kept.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"there");
}
