//! Services that speak HTTP/2 alone, behind routes: asked by HTTP/2 and by HTTP/1.1, by many at once, and while they say nothing.

#[path = "support/front.rs"]
mod front;
#[path = "support/replica.rs"]
mod replica;
#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use front::Balancer;
use replica::{Replica, answer};
use serde_json::json;

// A replica, and where it listens.
fn listening() -> (Replica, std::net::TcpListener) {
    let mut replica = Replica::start(|_, _| false);
    replica.close();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    replica.port = listener.local_addr().unwrap().port();
    (replica, listener)
}

// A server that speaks HTTP/2 alone, without TLS, and says what it was asked, once so many ask at the same time; how many
// requests came on each connection.
fn streams(at_once: usize) -> (Replica, Arc<Mutex<Vec<usize>>>) {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let (replica, listener) = listening();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (counts, all) = (seen.clone(), Arc::new(tokio::sync::Barrier::new(at_once)));
    let echo = move |number: usize, request: hyper::Request<hyper::body::Incoming>| {
        counts.lock().unwrap()[number] += 1;
        let all = all.clone();
        async move {
            all.wait().await;
            let (parts, body) = request.into_parts();
            let length = body.collect().await?.to_bytes().len();
            let field = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
                format!("{name}={}", value.to_str().unwrap())
            };
            let fields: Vec<String> = parts.headers.iter().map(field).collect();
            let said = json!({ "method": parts.method.as_str(), "uri": parts.uri.to_string(), "length": length,
                "version": format!("{:?}", parts.version), "fields": fields });
            Ok::<_, hyper::Error>(hyper::Response::new(Full::new(bytes::Bytes::from(said.to_string() + "\n"))))
        }
    };
    let counts = seen.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                counts.lock().unwrap().push(0);
                let (echo, number) = (echo.clone(), counts.lock().unwrap().len() - 1);
                let service = hyper::service::service_fn(move |request| echo(number, request));
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    (replica, seen)
}

// So many that each server's bounds of one connection would be met: they come by several.
#[test]
fn many_requests_at_once_come_by_several_connections() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    const CLIENTS: usize = 3;
    const EACH: usize = 90;
    let (server, seen) = streams(CLIENTS * EACH);
    let mut balancer = Balancer::start();
    balancer.route(&[("stream", json!({ "host": "stream.test", "protocol": "h2c" }), &[(&server, 100)])]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", balancer.port)).await.unwrap();
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            for _ in 0..EACH {
                let body = http_body_util::Empty::<bytes::Bytes>::new();
                let request = hyper::Request::get("http://stream.test/").body(body).unwrap();
                let mut sender = sender.clone();
                all.spawn(async move { sender.send_request(request).await.unwrap().status().as_u16() });
            }
        }
        tokio::time::timeout(Duration::from_secs(20), all.join_all()).await.expect("all at the same time")
    });
    assert_eq!(answers, vec![200; CLIENTS * EACH]);
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 3 && seen.iter().all(|count| *count <= 100), "{seen:?}");
}

// One that takes nothing more of a body, and says nothing, holds nobody for ever.
#[test]
fn a_body_that_is_not_taken_is_given_up() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let (replica, listener) = listening();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let silent = |request: hyper::Request<hyper::body::Incoming>| async move {
                    let _kept = request;
                    std::future::pending::<Result<hyper::Response<http_body_util::Empty<bytes::Bytes>>, hyper::Error>>()
                        .await
                };
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), hyper::service::service_fn(silent)));
            }
        });
    });
    let mut balancer = Balancer::start();
    let spec = json!({ "host": "silent.test", "protocol": "h2c", "timeout": "500ms", "retries": 0 });
    balancer.route(&[("silent", spec, &[(&replica, 100)])]);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let body = ["--data-binary".to_owned(), format!("@{}", file.path().display())];
    let began = Instant::now();
    let connect = format!("silent.test:{0}:127.0.0.1:{0}", balancer.port);
    let output = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20", "-H", "Expect:", "--connect-to", &connect])
        .args(&body)
        .arg(format!("http://silent.test:{}/", balancer.port))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "504", "{output:?}");
    assert_eq!(post_by_streams(balancer.port, "silent.test", 4 << 20), 504);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

// The status of what answers a body of this size, sent by HTTP/2.
fn post_by_streams(port: u16, host: &str, size: usize) -> u16 {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let body = http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; size]));
        let request = hyper::Request::post(format!("http://{host}/")).body(body).unwrap();
        sender.send_request(request).await.unwrap().status().as_u16()
    })
}

// What speaks HTTP/2 alone answers clients of HTTP/1.1 as well, many on one connection, among requests to others.
#[test]
fn clients_of_http_1_reach_what_speaks_http_2() {
    let (plain, server) =
        (Replica::start(|_, stream| stream.write_all(answer(200, "plain\n").as_bytes()).is_ok()), streams(1).0);
    let mut balancer = Balancer::start();
    let h2c = |host: &str, more: serde_json::Value| {
        let mut spec = json!({ "host": host, "protocol": "h2c" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    balancer.route(&[
        ("plain", json!({ "host": "plain.test" }), &[(&plain, 100)]),
        ("stream", h2c("stream.test", json!({ "max_body": "2MiB", "sticky": "at" })), &[(&server, 100)]),
        ("moved", h2c("moved.test", json!({ "redirect": "https://new.test" })), &[(&server, 100)]),
    ]);
    let ask = |host: &str, fields: &str| format!("GET /x?y HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    // All of it is there before the first is answered, each goes its way, and the connection is one.
    let named = "Connection: X-Own\r\nX-Own: 1\r\nX-Forwarded-For: 6.6.6.6\r\nTE: gzip\r\nX-Kept: 1\r\n";
    let all = [
        ask("plain.test", ""),
        ask("stream.test", named),
        ask("stream.test", "Upgrade: x\r\nConnection: upgrade\r\n"),
        ask("plain.test", ""),
        ask("none.test", ""),
        ask("stream.test", "Connection: close\r\n"),
    ];
    let whole = balancer.raw(all.concat().as_bytes());
    let count = |what: &str| whole.matches(what).count();
    assert_eq!((count("HTTP/1.1 200 OK"), count("plain\n"), count("HTTP/1.1 404")), (5, 2, 1), "{whole}");
    assert_eq!((count(r#""version":"HTTP/2.0""#), count("http://stream.test/x?y")), (3, 3), "{whole}");
    assert!(whole.contains("x-forwarded-for=127.0.0.1") && whole.contains("x-kept=1"), "{whole}");
    assert!(["x-own", "6.6.6.6", "te=gzip", "upgrade="].iter().all(|gone| !whole.contains(gone)), "{whole}");
    assert!(count("set-cookie: at=") == 3 && !whole.contains("connection=close"), "{whole}");
    let moved = balancer.raw(ask("moved.test", "Connection: close\r\n").as_bytes());
    assert!(moved.contains("location: https://new.test/x?y"), "{moved}");

    // An older client, which may want the connection kept, and one that says nothing more: both are answered, to the end.
    let old = "GET /x?y HTTP/1.0\r\nHost: stream.test\r\nConnection: keep-alive\r\n\r\n";
    let began = Instant::now();
    assert!(balancer.raw(old.as_bytes()).contains(r#""version":"HTTP/2.0""#));
    let mut closing = balancer.connect();
    closing.write_all(ask("stream.test", "").as_bytes()).unwrap();
    closing.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    closing.read_to_string(&mut said).unwrap();
    assert!(said.contains(r#""version":"HTTP/2.0""#) && began.elapsed() < Duration::from_secs(10), "{said}");

    // Bodies of both kinds, one too large of each, and one of a client that waits to be asked for it.
    let post = |size: usize, more: &[&str]| {
        let url = format!("http://stream.test:{}/", balancer.port);
        let connect = format!("stream.test:{0}:127.0.0.1:{0}", balancer.port);
        let mut child = Command::new("curl")
            .args(["-sS", "--http1.1", "-m", "20", "-w", "%{http_code}", "--connect-to", &connect])
            .args(more)
            .args(["--data-binary", "@-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(&vec![b'x'; size]);
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    };
    for more in [
        &["-H", "Expect:"][..],
        &["-H", "Transfer-Encoding: chunked", "-H", "Expect:"],
        &["-H", "Expect: 100-continue"],
    ] {
        let said = post(1 << 20, more);
        assert!(
            said.ends_with("200") && said.contains(r#""length":1048576"#) && !said.contains("expect"),
            "{more:?}: {said}"
        );
        let said = post(3 << 20, more);
        assert!(said.ends_with("413"), "{more:?}: {said}");
    }
    // By HTTP/2 as well: the answer comes before the client is told to stop (RFC 9113, 8.1), which curl 7.88 takes for a failure.
    for host in ["stream.test", "moved.test"] {
        let status = post_by_streams(balancer.port, host, 3 << 20);
        assert_eq!(status, if host == "moved.test" { 308 } else { 413 });
    }
    // What can be read in two ways is refused here as everywhere.
    for bad in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "A B: 1\r\n",
    ] {
        let begun = ask("stream.test", "") + &ask("stream.test", bad);
        let whole = balancer.raw(begun.as_bytes());
        assert!(whole.matches("HTTP/1.1 200").count() == 1 && whole.contains("HTTP/1.1 400"), "{bad:?}: {whole}");
    }
    let status = balancer.status();
    assert_eq!(status["connections"], json!({}), "nothing is under way any more: {status}");
}
