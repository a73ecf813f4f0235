//! A million connections that come and go, to a published port and to a route: how many a second beside haproxy, and what they leave
//! behind. `cargo bench --bench churn`, about four minutes; `-- 100000` for fewer. Needs haproxy (Debian package of this name).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};

#[path = "support/haproxy.rs"]
mod peer;

use peer::{Running, ask, haproxy};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const BACKEND: u16 = 18_280;
const HAPROXY: u16 = 18_281;
const HAPROXY_HTTP: u16 = 18_282;
const PORT: u16 = 18_283;
const ROUTE: u16 = 18_284;
const THREADS: usize = 4;

fn main() {
    if Command::new("haproxy").arg("-v").output().is_err() {
        println!("skipped: haproxy is not installed");
        return;
    }
    let count = std::env::args().filter_map(|text| text.parse::<u64>().ok()).next().unwrap_or(1_000_000);
    let folder = std::env::temp_dir().join(format!("neap-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let answers = format!(
        "frontend f\n mode http\n bind 127.0.0.1:{BACKEND} backlog 8192\n http-request return status 200 content-type text/plain string ok\n"
    );
    let _backend = haproxy(&folder, "backend", &answers);
    let proxies = format!(
        "frontend f\n mode tcp\n bind 127.0.0.1:{HAPROXY} backlog 8192\n default_backend b\nbackend b\n mode tcp\n server s 127.0.0.1:{BACKEND}\n\
         frontend g\n mode http\n bind 127.0.0.1:{HAPROXY_HTTP} backlog 8192\n default_backend h\nbackend h\n mode http\n server s 127.0.0.1:{BACKEND}\n"
    );
    let theirs = haproxy(&folder, "proxy", &proxies);
    let ours = Running(
        Command::new(NEAP).arg("balancer").arg(&folder).args(["--threads", "1"]).stdin(Stdio::null()).spawn().unwrap(),
    );
    let backend = serde_json::json!({ "id": "01arz3ndektsv4rrffq69g5fav", "address": format!("127.0.0.1:{BACKEND}"), "weight": 100 });
    let route = serde_json::json!({ "name": "bench", "spec": {}, "to": [{ "service": "bench", "weight": 100, "backends": [backend] }] });
    let table = serde_json::json!({ "table": { "version": 1,
        "listeners": { "bench/http": { "address": "127.0.0.1", "port": PORT, "balance": "round_robin", "backends": [backend] } },
        "fronts": { (format!("127.0.0.1:{ROUTE}")): { "address": "127.0.0.1", "port": ROUTE, "routes": [route] } },
    } });
    ask(&folder, &table.to_string());
    println!(
        "{:<14} {:>10} {:>9} {:>12} {:>12} {:>8} {:>12}",
        "", "failed", "seconds", "conns/s", "ratio", "open", "memory KiB"
    );
    for (what, their_port, our_port) in [("port", HAPROXY, PORT), ("route", HAPROXY_HTTP, ROUTE)] {
        // In turn, so that what the machine does besides hits both.
        let (mut their_time, mut our_time, mut their_failed, mut our_failed) = (0.0, 0.0, 0, 0);
        for _ in 0..4 {
            let (failed, took) = churn(their_port, count / 4);
            (their_failed, their_time) = (their_failed + failed, their_time + took);
            let (failed, took) = churn(our_port, count / 4);
            (our_failed, our_time) = (our_failed + failed, our_time + took);
        }
        std::thread::sleep(Duration::from_secs(1));
        let rate = |took: f64| count as f64 / took;
        let line = |who: &str, failed: u64, took: f64, ratio: String, open: String, pid: u32| {
            println!(
                "{:<14} {failed:>10} {took:>9.1} {:>12.0} {ratio:>12} {open:>8} {:>12}",
                format!("{who} {what}"),
                rate(took),
                memory(pid)
            );
        };
        line("haproxy", their_failed, their_time, "1.00".into(), "-".into(), theirs.0.id());
        let status: serde_json::Value = serde_json::from_str(&ask(&folder, "\"status\"")).unwrap();
        let name = if what == "port" { "bench/http".to_owned() } else { format!("127.0.0.1:{ROUTE}") };
        let open = status["status"]["ports"][&name]["open"].to_string();
        line("neap", our_failed, our_time, format!("{:.2}", rate(our_time) / rate(their_time)), open, ours.0.id());
    }
    let _ = std::fs::remove_dir_all(&folder);
}

// So many connections, each with one request and its answer; those that failed, and the seconds that all took.
fn churn(port: u16, count: u64) -> (u64, f64) {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if one(port, number).is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    (failed.load(Ordering::Relaxed), began.elapsed().as_secs_f64())
}

// Each of many addresses has ports of its own.
fn one(port: u16, number: u64) -> std::io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let own = Ipv4Addr::new(127, 1, (number % 251) as u8, (number / 251 % 251) as u8 + 1);
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(own, 0)))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

// What a process holds, in KiB.
fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}
