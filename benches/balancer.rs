//! The L4 balancer beside haproxy: same back end, same load, one thread each, in the same run.
//! `cargo bench --bench balancer`; needs haproxy and wrk (Debian packages of these names). About a minute.

use std::process::{Command, Stdio};
use std::time::Duration;

#[path = "support/haproxy.rs"]
mod peer;

use peer::{Running, ask, haproxy};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const BACKEND: u16 = 18_080;
const HAPROXY: u16 = 18_081;
const BALANCER: u16 = 18_082;
const ROUNDS: usize = 3;

fn main() {
    for tool in ["haproxy", "wrk"] {
        if Command::new(tool).arg("-v").output().is_err() {
            println!("skipped: {tool} is not installed");
            return;
        }
    }
    let folder = std::env::temp_dir().join(format!("neap-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // haproxy answers by itself as the back end, so that the back end is the same and fast.
    let _backend = haproxy(
        &folder,
        "backend",
        &format!(
            "frontend f\n mode http\n bind 127.0.0.1:{BACKEND}\n http-request return status 200 content-type text/plain string ok\n"
        ),
    );
    let _haproxy = haproxy(
        &folder,
        "proxy",
        &format!(
            "frontend f\n mode tcp\n bind 127.0.0.1:{HAPROXY}\n default_backend b\nbackend b\n mode tcp\n server s 127.0.0.1:{BACKEND}\n"
        ),
    );
    let _neap = Running(Command::new(NEAP).arg("balancer").arg(&folder).stdin(Stdio::null()).spawn().unwrap());
    let table = serde_json::json!({ "table": { "version": 1, "listeners": { "bench/http": {
        "address": "127.0.0.1", "port": BALANCER, "balance": "round_robin",
        "backends": [{ "id": "01arz3ndektsv4rrffq69g5fav", "address": format!("127.0.0.1:{BACKEND}"), "weight": 100 }],
    } } } });
    let answer = ask(&folder, &table.to_string());
    assert!(answer.contains("\"version\":1"), "the balancer did not take the table: {answer}");
    std::thread::sleep(Duration::from_millis(300));

    println!("{:<10} {:>6} {:>14} {:>10}", "", "conns", "requests/s", "p99 ms");
    for connections in [16, 64, 256] {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        // In turn, so that what the machine does besides hits both.
        for _ in 0..ROUNDS {
            theirs.push(wrk(HAPROXY, connections));
            ours.push(wrk(BALANCER, connections));
        }
        let (theirs, ours) = (median(theirs), median(ours));
        println!("{:<10} {connections:>6} {:>14.0} {:>10.2}", "haproxy", theirs.0, theirs.1);
        println!("{:<10} {connections:>6} {:>14.0} {:>10.2}", "neap", ours.0, ours.1);
        println!("{:<10} {connections:>6} {:>14.2} {:>10.2}", "ratio", ours.0 / theirs.0, ours.1 / theirs.1);
    }
    let _ = std::fs::remove_dir_all(&folder);
}

fn wrk(port: u16, connections: u32) -> (f64, f64) {
    let url = format!("http://127.0.0.1:{port}/");
    let output =
        Command::new("wrk").args(["-t1", &format!("-c{connections}"), "-d3s", "--latency", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = |key: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(key).map(|rest| rest.trim().to_owned()))
            .unwrap_or_default()
    };
    let rate = word("Requests/sec:").parse().unwrap_or(0.0);
    let p99 = word("99%");
    let millis = match (p99.strip_suffix("us"), p99.strip_suffix("ms"), p99.strip_suffix('s')) {
        (Some(micros), ..) => micros.parse::<f64>().unwrap_or(0.0) / 1000.0,
        (_, Some(millis), _) => millis.parse().unwrap_or(0.0),
        (.., Some(seconds)) => seconds.parse::<f64>().unwrap_or(0.0) * 1000.0,
        _ => 0.0,
    };
    (rate, millis)
}

fn median(mut results: Vec<(f64, f64)>) -> (f64, f64) {
    results.sort_by(|a, b| a.0.total_cmp(&b.0));
    results[results.len() / 2]
}
