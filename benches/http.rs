//! The balancer's HTTP beside haproxy's: the same nginx behind, the same load, one thread each, in turn in the same run.
//! `cargo bench --bench http`; needs haproxy, nginx, wrk, h2load and openssl (Debian packages of these names; h2load is in
//! nghttp2-client). About four minutes. `-- http2`: HTTP/2 alone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const BACKEND: u16 = 18_180;
const HAPROXY: u16 = 18_181;
const HAPROXY_TLS: u16 = 18_183;
const BALANCER: u16 = 18_182;
const BALANCER_TLS: u16 = 18_184;
const BACKEND_STREAMS: u16 = 18_185;
const HAPROXY_STREAMS: u16 = 18_186;
const BALANCER_STREAMS: u16 = 18_187;
const ROUNDS: usize = 3;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // nginx has a process of its own below it, which ends with a plain TERM alone.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn run(program: &str, args: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

fn main() {
    for (tool, ask) in
        [("haproxy", "-v"), ("nginx", "-v"), ("wrk", "-v"), ("h2load", "--version"), ("openssl", "version")]
    {
        if Command::new(tool).arg(ask).output().is_err() {
            println!("skipped: {tool} is not installed");
            return;
        }
    }
    let folder = std::env::temp_dir().join(format!("neap-bench-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("www")).unwrap();
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    std::fs::write(folder.join("www/1k"), vec![b'x'; 1024]).unwrap();
    std::fs::write(folder.join("www/1m"), vec![b'x'; 1 << 20]).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-keyout", &path("key"), "-out", &path("crt")])
        .output()
        .unwrap();
    assert!(made.status.success());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (chain, key) = (read("crt"), read("key"));
    std::fs::write(folder.join("pem"), format!("{chain}{key}")).unwrap();
    let nginx = format!(
        "daemon off; worker_processes 1; pid {pid}; error_log /dev/null;\nevents {{ worker_connections 4096; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; client_body_temp_path {temp}; \
         proxy_temp_path {temp}; fastcgi_temp_path {temp}; uwsgi_temp_path {temp}; scgi_temp_path {temp};\n\
         server {{ listen 127.0.0.1:{BACKEND} backlog=4096; root {www}; }}\n\
         server {{ listen 127.0.0.1:{BACKEND_STREAMS} http2 backlog=4096; root {www}; http2_max_concurrent_streams 1000; }} }}\n",
        pid = path("pid"),
        temp = path("temp"),
        www = path("www"),
    );
    std::fs::write(folder.join("nginx.conf"), nginx).unwrap();
    let haproxy = format!(
        "global\n nbthread 1\n maxconn 8000\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         frontend f\n bind 127.0.0.1:{HAPROXY}\n bind 127.0.0.1:{HAPROXY_TLS} ssl crt {} alpn h2,http/1.1\n option forwardfor\n default_backend b\n\
         backend b\n http-reuse always\n server s 127.0.0.1:{BACKEND}\n\
         frontend g\n bind 127.0.0.1:{HAPROXY_STREAMS} proto h2\n option forwardfor\n default_backend h\n\
         backend h\n http-reuse always\n server s 127.0.0.1:{BACKEND_STREAMS} proto h2\n",
        path("pem"),
    );
    std::fs::write(folder.join("haproxy.cfg"), haproxy).unwrap();
    let _nginx = run("nginx", &["-c", &path("nginx.conf")]);
    let _haproxy = run("haproxy", &["-db", "-f", &path("haproxy.cfg")]);
    let _neap = run(NEAP, &["balancer", &folder.to_string_lossy(), "--threads", "1"]);
    table(&folder, &chain, &key);
    std::thread::sleep(Duration::from_millis(300));

    println!(
        "{:<32} {:>14} {:>10} {:>14} {:>10} {:>7} {:>7}",
        "", "haproxy req/s", "p99 ms", "neap req/s", "p99 ms", "ratio", "p99"
    );
    let wants_all = !std::env::args().skip(1).any(|argument| argument == "http2");
    let kinds = [
        ("http, 1 KB", "1k", false),
        ("http, 1 MB", "1m", false),
        ("https, 1 KB", "1k", true),
        ("https, 1 MB", "1m", true),
    ];
    for (what, path, tls) in kinds.into_iter().filter(|_| wants_all) {
        for connections in [64, 1000] {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            let url = |plain: u16, secure: u16| match tls {
                false => format!("http://127.0.0.1:{plain}/{path}"),
                true => format!("https://127.0.0.1:{secure}/{path}"),
            };
            // In turn, so that what the machine does besides hits both.
            for _ in 0..ROUNDS {
                theirs.push(wrk(&url(HAPROXY, HAPROXY_TLS), connections));
                ours.push(wrk(&url(BALANCER, BALANCER_TLS), connections));
            }
            print(&format!("{what}, {connections} connections"), median(theirs), median(ours));
        }
    }
    // By HTTP/2, ten requests at a time on each connection.
    let of_two = [
        ("HTTP/2 by TLS, 1 KB", "https", (HAPROXY_TLS, BALANCER_TLS), "1k"),
        ("HTTP/2 by TLS, 1 MB", "https", (HAPROXY_TLS, BALANCER_TLS), "1m"),
        ("HTTP/2 both ways, 1 KB", "http", (HAPROXY_STREAMS, BALANCER_STREAMS), "1k"),
        ("HTTP/2 both ways, 1 MB", "http", (HAPROXY_STREAMS, BALANCER_STREAMS), "1m"),
    ];
    for (what, scheme, (haproxy, neap), file) in of_two {
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            theirs.push(h2load(&format!("{scheme}://127.0.0.1:{haproxy}/{file}"), &folder));
            ours.push(h2load(&format!("{scheme}://127.0.0.1:{neap}/{file}"), &folder));
        }
        print(&format!("{what}, 64x10"), median(theirs), median(ours));
    }
    let _ = std::fs::remove_dir_all(&folder);
}

fn print(what: &str, theirs: (f64, f64), ours: (f64, f64)) {
    println!(
        "{what:<32} {:>14.0} {:>10.2} {:>14.0} {:>10.2} {:>7.2} {:>7.2}",
        theirs.0,
        theirs.1,
        ours.0,
        ours.1,
        ours.0 / theirs.0,
        ours.1 / theirs.1
    );
}

fn table(folder: &Path, chain: &str, key: &str) {
    let socket = folder.join("balancer.sock");
    let stream = loop {
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let backend = serde_json::json!({ "id": "01arz3ndektsv4rrffq69g5fav", "address": format!("127.0.0.1:{BACKEND}"), "weight": 100 });
    let streams = serde_json::json!({ "id": "01arz3ndektsv4rrffq69g5faw", "address": format!("127.0.0.1:{BACKEND_STREAMS}"), "weight": 100 });
    let route = |name: &str| match name {
        "streams" => {
            serde_json::json!({ "name": name, "spec": { "protocol": "h2c" }, "to": [{ "weight": 100, "backends": [streams] }] })
        }
        _ => serde_json::json!({ "name": name, "spec": {}, "to": [{ "weight": 100, "backends": [backend] }] }),
    };
    let front = |port: u16, name: &str, certificates: serde_json::Value| serde_json::json!({ "address": "127.0.0.1", "port": port, "routes": [route(name)], "tls": name == "secure", "certificates": certificates });
    let certificate = serde_json::json!([{ "hosts": ["localhost"], "chain": chain, "key": key }]);
    let table = serde_json::json!({ "table": { "version": 1, "listeners": {}, "fronts": {
        "plain": front(BALANCER, "plain", serde_json::json!([])),
        "secure": front(BALANCER_TLS, "secure", certificate),
        "streams": front(BALANCER_STREAMS, "streams", serde_json::json!([])),
    } } });
    writeln!(&stream, "{table}").unwrap();
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    assert!(
        answer.contains("\"version\":1") && answer.contains("\"failed\":{}"),
        "the balancer did not take the table: {answer}"
    );
}

// Requests a second, and the 99th percentile in milliseconds.
fn wrk(url: &str, connections: u32) -> (f64, f64) {
    let output =
        Command::new("wrk").args(["-t1", &format!("-c{connections}"), "-d3s", "--latency", url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = |key: &str| {
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key).map(|rest| rest.trim().to_owned()));
        found.unwrap_or_default()
    };
    assert!(!text.contains("Non-2xx"), "{text}");
    let p99 = word("99%");
    let millis = match (p99.strip_suffix("us"), p99.strip_suffix("ms"), p99.strip_suffix('s')) {
        (Some(micros), ..) => micros.parse::<f64>().unwrap_or(0.0) / 1000.0,
        (_, Some(millis), _) => millis.parse().unwrap_or(0.0),
        (.., Some(seconds)) => seconds.parse::<f64>().unwrap_or(0.0) * 1000.0,
        _ => 0.0,
    };
    (word("Requests/sec:").parse().unwrap_or(0.0), millis)
}

// The same by HTTP/2; of each request it is written down how long it took, in microseconds.
fn h2load(url: &str, folder: &Path) -> (f64, f64) {
    let log = folder.join("h2load.log");
    let _ = std::fs::remove_file(&log);
    let output =
        Command::new("h2load").args(["-t1", "-c64", "-m10", "-D3", "--log-file"]).arg(&log).arg(url).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate =
        text.lines().find_map(|line| line.strip_prefix("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s"));
    let answered = text.contains(" 0 failed, 0 errored") && text.contains("Application protocol: h2");
    assert!(answered, "{url}: {text}");
    let log = std::fs::read_to_string(&log).unwrap();
    let mut times: Vec<u64> = log.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    times.sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    (rate.and_then(|rate| rate.parse().ok()).unwrap_or_default(), p99 as f64 / 1000.0)
}

fn median(mut results: Vec<(f64, f64)>) -> (f64, f64) {
    results.sort_by(|a, b| a.0.total_cmp(&b.0));
    results[results.len() / 2]
}
