//! What is spoken through routes besides plain HTTP/1.1: HTTP/2, gRPC, WebSocket, TLS; and clients that are slow.

#[path = "support/front.rs"]
mod front;
#[path = "support/replica.rs"]
mod replica;
#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use front::Balancer;
use replica::{Replica, answer};
use serde_json::json;

/// A server of a real implementation, which says its port first.
struct Server {
    child: Child,
    replica: Replica,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"),
        |target| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(target),
    );
    let program = target.join("tmp/clients/python/bin/python");
    let works = Command::new(&program).args(["-c", "import grpc, websockets"]).output();
    if works.is_ok_and(|output| output.status.success()) {
        return Some(program);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "grpcio and websockets are not installed");
    println!("skipped: grpcio and websockets are not installed (tests/run does)");
    None
}

fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn serve(python: &PathBuf, name: &str) -> Server {
    let mut child = Command::new(python).args([&script(name), "serve"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut replica = Replica::start(|_, _| false);
    replica.close();
    replica.port = line.trim().parse().unwrap();
    Server { child, replica }
}

fn talk(python: &PathBuf, name: &str, args: &[&str]) {
    let output = Command::new(python).arg(script(name)).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim() == "ok", "{out}{err}");
}

#[test]
fn grpc_calls_of_all_kinds() {
    let Some(python) = python() else { return };
    let server = serve(&python, "grpc_calls.py");
    let mut balancer = Balancer::start();
    balancer.route(&[("grpc", json!({ "host": "grpc.test", "protocol": "h2c" }), &[(&server.replica, 100)])]);
    talk(&python, "grpc_calls.py", &["call", &balancer.port.to_string(), "grpc.test"]);
    let status = balancer.status();
    assert_eq!(status["routes"]["grpc"]["answers"], json!([0, 54, 0, 0, 0]), "{status}");
    assert_eq!(status["connections"], json!({}), "nothing is under way any more: {status}");
    // A replica that is started anew is found again, and while it is away that is said.
    drop(server);
    let code = || h2(balancer.port, "grpc.test", "/", &[]).0;
    assert_eq!(code(), "502");
    let server = serve(&python, "grpc_calls.py");
    balancer.route(&[("grpc", json!({ "host": "grpc.test", "protocol": "h2c" }), &[(&server.replica, 100)])]);
    talk(&python, "grpc_calls.py", &["call", &balancer.port.to_string(), "grpc.test"]);
}

#[test]
fn websocket_in_both_directions() {
    let Some(python) = python() else { return };
    let server = serve(&python, "websocket.py");
    let mut balancer = Balancer::start();
    balancer.route(&[("ws", json!({ "path": "/live" }), &[(&server.replica, 100)])]);
    talk(&python, "websocket.py", &["talk", &format!("ws://127.0.0.1:{}/live", balancer.port)]);
    assert_eq!(balancer.status()["connections"], json!({}));
}

// The status and the body by HTTP/2, without TLS.
fn h2(port: u16, host: &str, path: &str, more: &[&str]) -> (String, String) {
    let connect = format!("{host}:{port}:127.0.0.1:{port}");
    let output = Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "--max-time", "20", "-w", "\n%{http_code}", "--connect-to", &connect])
        .args(more)
        .arg(format!("http://{host}:{port}{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    (status.to_owned(), format!("{body}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn http2_clients_reach_replicas_of_http1() {
    let replica = Replica::start(|request, stream| {
        let told = format!("{} bytes\n{}", request.body.len(), request.head);
        let out = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n\r\n{:x}\r\n{told}\r\n0\r\n\r\n",
            told.len()
        );
        stream.write_all(out.as_bytes()).is_ok()
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({ "host": "a.test" }), &[(&replica, 100)])]);
    let port = balancer.port;
    let (status, body) = h2(port, "a.test", "/x?y=z", &["-H", "Cookie: a=b", "-H", "X-Forwarded-For: 9.9.9.9", "-i"]);
    assert!(status == "200" && body.contains("x-own: 1") && !body.to_lowercase().contains("keep-alive:"), "{body}");
    assert!(body.contains("GET /x?y=z HTTP/1.1\r\nHost: a.test:") && body.contains("cookie: a=b"), "{body}");
    assert!(body.contains("X-Forwarded-For: 127.0.0.1") && !body.contains("9.9.9.9"), "{body}");
    assert_eq!(h2(port, "b.test", "/", &[]), ("404".into(), "no route leads there\n".into()));
    assert_eq!(h2(port, "a.test", "/a/../../b", &["--path-as-is"]).0, "400");
    let file = balancer.folder.path().join("body");
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let data = format!("@{}", file.display());
    for how in [&["--data-binary", &data][..], &["-H", "Content-Length:", "-T", &data[1..]]] {
        let (status, body) = h2(port, "a.test", "/", how);
        assert!(status == "200" && body.starts_with("3000000 bytes"), "{how:?}: {status} {body:.200}");
    }
    let (status, body) = h2(port, "a.test", "/", &["-I"]);
    assert!(status == "200", "{body}");
    // Many at once on one connection.
    let url = format!("http://127.0.0.1:{port}/");
    match Command::new("h2load").args(["-n", "2000", "-c", "2", "-m", "50", "-H", ":authority: a.test", &url]).output()
    {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(told.contains("2000 succeeded, 0 failed") && told.contains("2000 2xx"), "{told}");
        }
        Err(_) if std::env::var("CI").as_deref() != Ok("true") => println!("skipped: h2load is not installed"),
        Err(error) => panic!("h2load: {error}"),
    }
    support::eventually("nothing is under way", 5, || (balancer.status()["connections"] == json!({})).then_some(()));
}

#[test]
fn http2_by_tls_is_agreed_upon() {
    let replica = Replica::start(|request, stream| stream.write_all(answer(200, &request.head).as_bytes()).is_ok());
    let mut balancer = Balancer::start();
    let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let certificate =
        json!([{ "hosts": ["a.test"], "chain": made.cert.pem(), "key": made.signing_key.serialize_pem() }]);
    balancer.front(&[("all", json!({ "host": "a.test" }), &[(&replica, 100)])], &certificate);
    let ca = balancer.folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let port = balancer.port;
    for (how, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let output = Command::new("curl")
            .args(["-sS", how, "--max-time", "10", "--cacert", &ca.to_string_lossy(), "-w", "\n%{http_version}"])
            .args(["--connect-to", &format!("a.test:{port}:127.0.0.1:{port}"), &format!("https://a.test:{port}/")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, spoken) = text.rsplit_once('\n').unwrap();
        assert_eq!(spoken, version, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(body.contains("X-Forwarded-Proto: https"), "{body}");
    }
    // TLS of another name goes through to a replica that ends it itself, by the certificate of its own.
    let inner = rcgen::generate_simple_self_signed(vec!["b.test".to_owned()]).unwrap();
    let folder = balancer.folder.path().to_owned();
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    std::fs::write(path("b.crt"), inner.cert.pem()).unwrap();
    std::fs::write(path("b.key"), inner.signing_key.serialize_pem()).unwrap();
    let mut ends = Replica::start(|_, _| false);
    ends.close();
    ends.port = support::free_port();
    let child = Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{}", ends.port)])
        .args(["-cert", &path("b.crt"), "-key", &path("b.key")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let openssl = Server { child, replica: ends };
    let through = json!({ "host": "b.test", "passthrough": true });
    let routes = [
        ("all", json!({ "host": "a.test" }), &[(&replica, 100)][..]),
        ("through", through, &[(&openssl.replica, 100)]),
    ];
    balancer.front(&routes, &certificate);
    let ask = |host: &str, ca: &str| {
        let place = format!("{host}:{port}");
        let output = Command::new("curl")
            .args(["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", ca])
            .args(["--connect-to", &format!("{place}:127.0.0.1:{port}"), &format!("https://{place}/")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    support::eventually("it goes through", 10, || (ask("b.test", &path("b.crt")) == "200").then_some(()));
    assert_eq!(ask("b.test", &ca.to_string_lossy()), "000", "the certificate is the replica's");
    assert_eq!(ask("a.test", &ca.to_string_lossy()), "200", "others end here as before");
    let passed = &balancer.status()["routes"]["through"]["answers"];
    assert!(passed[1].as_u64() >= Some(1), "{passed}");
    // In the clear nothing is told, and what is no TLS costs nothing.
    let mut stream = balancer.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/"), "{rest:?}");
}

#[test]
fn slow_clients_hold_up_nobody_and_are_let_go() {
    let replica = Replica::start(|_, stream| stream.write_all(answer(200, "x").as_bytes()).is_ok());
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({}), &[(&replica, 100)])]);
    let began = Instant::now();
    // A head that comes a byte a second, and one that never goes on; many of each.
    let mut slow: Vec<_> = (0..400).map(|_| balancer.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
    }
    let mut ended = 0;
    while began.elapsed() < Duration::from_secs(25) && ended < slow.len() {
        // Others are served as ever.
        assert_eq!(balancer.get("a", "/").0, 200);
        for stream in slow.iter_mut().step_by(2) {
            let _ = stream.write_all(b"y");
        }
        std::thread::sleep(Duration::from_millis(500));
        ended = 0;
        for stream in &slow {
            stream.set_nonblocking(true).unwrap();
            let mut told = [0; 64];
            let seen = stream.peek(&mut told);
            ended += usize::from(seen.is_ok());
            stream.set_nonblocking(false).unwrap();
        }
    }
    assert_eq!(ended, slow.len(), "all were let go");
    assert!(began.elapsed() > Duration::from_secs(14), "and not before their time");
    let mut told = String::new();
    let _ = slow[1].read_to_string(&mut told);
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    assert_eq!(replica.requests() as u64, balancer.status()["routes"]["all"]["answers"][1].as_u64().unwrap());
}

// A real proxy in front, which says whose connections are; and the same said on to the replica.
#[test]
fn the_proxy_protocol_in_and_out() {
    let replica = Replica::raw(|stream| {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let mut seen = Vec::new();
        let mut part = [0; 4096];
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => return seen,
                Ok(length) => seen.extend_from_slice(&part[..length]),
            }
        }
        let _ = stream.write_all(answer(200, "x").as_bytes());
        seen
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({ "accept_proxy": true, "send_proxy": "v1" }), &[(&replica, 100)])]);
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(balancer.raw(ask.as_bytes()), "", "what does not begin with it is not served");
    let told = balancer.raw(format!("PROXY TCP4 203.0.113.9 198.51.100.1 5555 443\r\n{ask}").as_bytes());
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    let seen = support::eventually("it is seen", 5, || replica.seen().pop());
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.starts_with(&format!("PROXY TCP4 203.0.113.9 127.0.0.1 5555 {}\r\nGET / ", replica.port)), "{seen}");
    assert!(seen.contains("X-Forwarded-For: 203.0.113.9\r\n") && seen.contains("X-Forwarded-Port: 443\r\n"), "{seen}");
    if Command::new("haproxy").arg("-v").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "haproxy is not installed");
        println!("skipped: haproxy is not installed");
        return;
    }
    let port = support::free_port();
    let config = balancer.folder.path().join("haproxy.cfg");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 9s\n timeout server 9s\nlisten l\n bind 127.0.0.1:{port}\n \
         server s 127.0.0.1:{} send-proxy-v2\n",
        balancer.port
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("haproxy").args(["-db", "-f"]).arg(&config).stderr(Stdio::null()).spawn().unwrap();
    let _haproxy = Server { child, replica: Replica::start(|_, _| false) };
    let mut stream =
        support::eventually("haproxy listens", 10, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let own = stream.local_addr().unwrap();
    stream.write_all(ask.as_bytes()).unwrap();
    let mut told = String::new();
    let _ = stream.read_to_string(&mut told);
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    let seen = support::eventually("it is seen", 5, || replica.seen().get(1).cloned());
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.starts_with(&format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", own.port(), replica.port)), "{seen}");
}
