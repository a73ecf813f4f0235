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

// Clients of HTTP/2, by a connection of their own.
async fn by_streams(port: u16) -> hyper::client::conn::http2::SendRequest<http_body_util::Full<bytes::Bytes>> {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

// What speaks HTTP/1.1 alone answers clients of HTTP/2: one after the other by one connection, and some at once; answers of each kind.
#[test]
fn clients_of_http_2_reach_what_speaks_http_1() {
    use http_body_util::{BodyExt, Full};
    use hyper::{Method, Request};
    const LARGE: usize = 700_000;
    let server = Replica::start(|request, stream| {
        let (line, length) = (request.head.lines().next().unwrap_or_default(), request.body.len());
        let path = line.split(' ').nth(1).unwrap_or_default();
        let answer = match path {
            "/none" => "HTTP/1.1 204 No Content\r\nX-Kind: none\r\n\r\n".to_owned(),
            "/same" => "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n".to_owned(),
            "/early" => "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                .to_owned(),
            "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "/large" => answer(200, &"l".repeat(LARGE)),
            "/chunks" => {
                let part = format!("{:x}\r\n{}\r\n", 1000, "c".repeat(1000));
                format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\nX-Sum: 1\r\n\r\n",
                    part.repeat(300)
                )
            }
            _ => answer(200, &format!("{line} {length}")),
        };
        let body = match line.starts_with("HEAD") {
            true if path == "/early" => answer.trim_end_matches("ok"),
            true => answer.split_inclusive("\r\n\r\n").next().unwrap_or_default(),
            false => &answer,
        };
        stream.write_all(body.as_bytes()).is_ok()
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("one", json!({ "host": "one.test" }), &[(&server, 100)])]);
    let port = balancer.port;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sender = by_streams(port).await;
        let ask = |method: Method, path: &str, body: Vec<u8>| {
            let uri = format!("http://one.test{path}");
            let request = Request::builder().method(method).uri(uri).header("cookie", "a=1").header("cookie", "b=2");
            let (request, mut sender) = (request.body(Full::new(bytes::Bytes::from(body))).unwrap(), sender.clone());
            async move {
                let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
            }
        };
        for _ in 0..3 {
            for (path, status, length) in [
                ("/none", 204, 0),
                ("/same", 304, 0),
                ("/early", 200, 2),
                ("/empty", 200, 0),
                ("/large", 200, LARGE),
                ("/chunks", 200, 300_000),
            ] {
                let (got, _, body) = ask(Method::GET, path, Vec::new()).await;
                assert_eq!((got, body.len()), (status, length), "{path}");
                let (got, fields, body) = ask(Method::HEAD, path, Vec::new()).await;
                assert_eq!((got, body.len()), (status, 0), "HEAD {path}");
                let said = fields.get("content-length").map(|length| length.to_str().unwrap().to_owned());
                assert!(path != "/large" || said == Some(LARGE.to_string()), "{fields:?}");
            }
        }
        assert_eq!(server.connections(), 1, "each leaves its connection to the next");
        let all: Vec<_> = (0..100).map(|number| ask(Method::GET, &format!("/{number}"), Vec::new())).collect();
        let posts: Vec<_> = (0..20).map(|size| ask(Method::POST, "/post", vec![b'x'; size * 10_000])).collect();
        let (mut got, mut posted) = (Vec::new(), Vec::new());
        let (mut all, mut posts) = (tokio::task::JoinSet::from_iter(all), tokio::task::JoinSet::from_iter(posts));
        while let Some(answer) = all.join_next().await {
            got.push(answer.unwrap().2);
        }
        while let Some(answer) = posts.join_next().await {
            posted.push(answer.unwrap().2);
        }
        got.sort();
        let mut wanted: Vec<String> = (0..100).map(|number| format!("GET /{number} HTTP/1.1 0")).collect();
        wanted.sort();
        assert_eq!(got, wanted);
        posted.sort();
        let mut wanted: Vec<String> = (0..20).map(|size| format!("POST /post HTTP/1.1 {}", size * 10_000)).collect();
        wanted.sort();
        assert_eq!(posted, wanted);
    });
    assert_eq!(balancer.status()["connections"], json!({}), "nothing is under way any more");
}

// A client that takes nothing of its answer until all of its body has gone: the one goes on without the other.
#[test]
fn a_body_goes_on_while_its_answer_waits() {
    use http_body_util::{BodyExt, Full};
    const SIZE: usize = 4 << 20;
    let (told, heard) = std::sync::mpsc::channel();
    let server = Replica::raw(move |stream| {
        let mut seen = Vec::new();
        let mut part = vec![0; 64 * 1024];
        while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
            let length = stream.read(&mut part).unwrap();
            seen.extend_from_slice(&part[..length]);
        }
        let mut other = stream.try_clone().unwrap();
        let answering = std::thread::spawn(move || {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            other.write_all(head.as_bytes()).unwrap();
            other.write_all(&vec![b'a'; SIZE]).unwrap();
        });
        // To its last byte: what is closed with something unread is reset, and the answer lost with it.
        let head = seen.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        while seen.len() < head + SIZE {
            match stream.read(&mut part) {
                Ok(0) | Err(_) => break,
                Ok(length) => seen.extend_from_slice(&part[..length]),
            }
        }
        let _ = told.send(seen.len());
        answering.join().unwrap();
        Vec::new()
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("one", json!({ "host": "one.test" }), &[(&server, 100)])]);
    let port = balancer.port;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let length = runtime.block_on(async {
        let mut sender = by_streams(port).await;
        let body = Full::new(bytes::Bytes::from(vec![b'x'; SIZE]));
        let request = hyper::Request::post("http://one.test/").body(body).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let gone = tokio::task::spawn_blocking(move || heard.recv_timeout(Duration::from_secs(20)));
        assert!(gone.await.unwrap().is_ok_and(|length| length >= SIZE), "the body has come");
        response.into_body().collect().await.unwrap().to_bytes().len()
    });
    assert_eq!(length, SIZE);
}

// A line of the access log counts the body of what came by HTTP/2 as well.
#[test]
fn lines_of_streams_say_how_much_came() {
    let server = streams(1).0;
    let collector = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    collector.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut balancer = Balancer::start();
    let to = collector.local_addr().unwrap().to_string();
    let spec = json!({ "host": "stream.test", "protocol": "h2c", "access_log": to });
    balancer.route(&[("stream", spec, &[(&server, 100)])]);
    let whole = balancer.raw(b"GET /x HTTP/1.1\r\nHost: stream.test\r\nConnection: close\r\n\r\n");
    let body = whole.split_once("\r\n\r\n").unwrap().1;
    let mut bytes = [0; 8192];
    let length = collector.recv(&mut bytes).unwrap();
    let line: serde_json::Value = serde_json::from_slice(&bytes[..length]).unwrap();
    assert_eq!(
        (&line["_status"], &line["_bytes"], &line["_task"]),
        (&json!(200), &json!(body.len()), &json!(server.id))
    );
}

// A connection that the replica closed meanwhile: a request that may come twice, its body with it, goes by another.
#[test]
fn what_can_be_sent_again_is_by_http_2_as_well() {
    use http_body_util::{BodyExt, Full};
    let server = Replica::start(|request, stream| {
        let _ = stream.write_all(answer(200, &request.body.len().to_string()).as_bytes());
        // Said to stay, and closed behind the second.
        !request.head.contains("last")
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("one", json!({ "host": "one.test" }), &[(&server, 100)])]);
    let port = balancer.port;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut sender = by_streams(port).await;
        for round in 0..20 {
            let path = if round % 2 == 0 { "last" } else { "next" };
            let body = Full::new(bytes::Bytes::from(vec![b'x'; 900]));
            let request = hyper::Request::put(format!("http://one.test/{path}")).body(body).unwrap();
            let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
            let said = body.collect().await.unwrap().to_bytes();
            assert_eq!((parts.status.as_u16(), &said[..]), (200, &b"900"[..]), "{path}");
        }
    });
}
