//! Ports where HTTP is spoken, as the balancer's own process serves them: real sockets, replicas that behave as they are told.

#[path = "support/front.rs"]
mod front;
#[path = "support/replica.rs"]
mod replica;
#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use front::Balancer;
use replica::{Replica, answer};
use serde_json::json;

fn echo() -> Replica {
    Replica::start(|request, stream| {
        let text = format!("{}\n{}", request.head, String::from_utf8_lossy(&request.body));
        stream.write_all(answer(200, &text).as_bytes()).is_ok()
    })
}

fn named(name: &'static str) -> Replica {
    Replica::start(move |_, stream| stream.write_all(answer(200, name).as_bytes()).is_ok())
}

#[test]
fn requests_go_where_their_route_says_with_what_the_replica_needs_to_know() {
    let (one, two) = (echo(), named("two"));
    let mut balancer = Balancer::start();
    balancer.route(&[
        ("one", json!({ "host": "one.test" }), &[(&one, 100)]),
        ("two", json!({ "host": "one.test", "path": "/two", "strip_path": true }), &[(&two, 100)]),
        ("away", json!({ "host": "old.test", "redirect": "https" }), &[]),
        ("empty", json!({ "host": "empty.test" }), &[]),
    ]);
    assert_eq!(balancer.get("one.test", "/two/x"), (200, "two".into()));
    assert_eq!(balancer.get("other.test", "/").0, 404);
    assert_eq!(balancer.get("empty.test", "/").0, 503);
    let moved = balancer.raw(b"GET /a?b=c HTTP/1.1\r\nHost: old.test:8080\r\nConnection: close\r\n\r\n");
    assert!(
        moved.starts_with("HTTP/1.1 301 ") && moved.contains("\r\nLocation: https://old.test/a?b=c\r\n"),
        "{moved}"
    );
    let whole = balancer.raw(
        b"GET http://ONE.test/p%20q?x=1 HTTP/1.1\r\nHost: lies\r\nX-Forwarded-For: 1.2.3.4\r\nX-Secret: a\r\n\
          Connection: close, x-secret\r\nKeep-Alive: 5\r\nX-Keep: b\r\nForwarded: for=1.2.3.4\r\n\r\n",
    );
    let head = whole.split_once("\r\n\r\n").unwrap().1;
    assert!(head.starts_with("GET /p%20q?x=1 HTTP/1.1\r\nHost: ONE.test\r\n"), "{head}");
    let says = |line: &str| head.contains(&format!("\r\n{line}\r\n"));
    assert!(says("X-Forwarded-For: 127.0.0.1") && says("X-Forwarded-Proto: http") && says("X-Keep: b"), "{head}");
    assert!(
        !head.contains("1.2.3.4") && !head.contains("X-Secret") && !head.to_lowercase().contains("keep-alive"),
        "{head}"
    );
    // One connection, many requests, also such as come before the answer to the first; a body each.
    let mut stream = balancer.connect();
    for number in 0..20 {
        let body = "x".repeat(number * 1000);
        write!(stream, "PUT /{number} HTTP/1.1\r\nHost: one.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .unwrap();
    }
    write!(stream, "GET /last HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 21);
    assert!(all.find("PUT /7 ").unwrap() < all.find("PUT /8 ").unwrap());
    assert!(one.connections() <= 2, "connections to replicas are kept, for each thread its own");
    let status = balancer.status();
    assert_eq!(status["routes"]["one"]["answers"], json!([0, 22, 0, 0, 0]), "{status}");
    assert_eq!((&status["unrouted"], &status["routes"]["empty"]["answers"][4]), (&json!(1), &json!(1)), "{status}");
    assert_eq!(status["backends"][&one.id]["requests"], 22);
}

#[test]
fn bodies_go_through_whole_in_both_directions() {
    let replica = Replica::start(|request, stream| {
        let sum: u64 = request.body.iter().map(|byte| u64::from(*byte)).sum();
        let size: usize = request.head.split(['/', ' ']).nth(2).unwrap().parse().unwrap_or(0);
        let told = format!("{} {sum} ", request.body.len());
        let mut out =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};a=\"b\"\r\n{told}\r\n", told.len());
        let block = "y".repeat(10_000);
        for _ in 0..size / block.len() {
            out += &format!("{:X}\r\n{block}\r\n", block.len());
        }
        out += "0\r\nX-Trailer: z\r\n\r\n";
        stream.write_all(out.as_bytes()).is_ok()
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({ "max_body": "20MiB" }), &[(&replica, 100)])]);
    let url = |path: &str| format!("http://127.0.0.1:{}/{path}", balancer.port);
    let file = balancer.folder.path().join("body");
    let body: Vec<u8> = (0..5_000_000_u32).map(|n| n as u8).collect();
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    let told = format!("5000000 {sum} {}", "y".repeat(3_000_000));
    for how in [&["-H", "Transfer-Encoding: chunked"][..], &["-H", "Expect: 100-continue"], &["-H", "Expect:"]] {
        let output = Command::new("curl")
            .args(["-sS", "--http1.1", "--max-time", "30", "-X", "POST", "--data-binary", &data])
            .args(how)
            .arg(url("3000000"))
            .output()
            .unwrap();
        assert!(
            output.stdout == told.as_bytes(),
            "{how:?}: {} bytes, {}",
            output.stdout.len(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // More than the route takes: refused, with its length and without.
    std::fs::write(&file, vec![b'x'; 21 << 20]).unwrap();
    for how in [&["-H", "Transfer-Encoding: chunked"][..], &["-H", "Expect:"]] {
        let output = Command::new("curl")
            .args([
                "-s",
                "--http1.1",
                "--max-time",
                "30",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--data-binary",
                &data,
            ])
            .args(how)
            .arg(url("0"))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "413", "{how:?}");
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let replica = echo();
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({}), &[(&replica, 100)])]);
    let cases: [(&str, u16); 17] = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET /a/..%2f..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ];
    for (request, status) in cases {
        let answer = balancer.raw(request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: nothing follows what was refused: {answer:?}");
    }
    assert_eq!(replica.requests(), 0);
    // A chunk that is none in the middle of a body that has begun to go on.
    let answer = balancer.raw(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(70_000));
    assert!(balancer.raw(long.as_bytes()).starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    assert!(balancer.raw(many.as_bytes()).starts_with("HTTP/1.1 431 "));
    assert_eq!(balancer.get("a", "/").0, 200);
}

#[test]
fn a_request_that_can_be_repeated_is_tried_elsewhere_and_others_are_not() {
    let dead = named("dead");
    dead.close();
    let silent = Replica::start(|_, _| false);
    let good = named("good");
    let mut balancer = Balancer::start();
    let spec = json!({ "sticky": "at" });
    balancer.route(&[("all", spec.clone(), &[(&dead, 100), (&silent, 100), (&good, 100)])]);
    for _ in 0..12 {
        assert_eq!(balancer.get("a", "/"), (200, "good".into()));
    }
    // One that never answered has had its five failures, and gets nothing now.
    let status = balancer.status();
    assert_eq!(status["backends"][&silent.id]["ejections"], 1, "{status}");
    assert_eq!(status["backends"][&dead.id]["ejections"], 1, "{status}");
    // A POST is sent once; what was refused before it was sent goes elsewhere all the same.
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({}), &[(&dead, 100), (&good, 100)])]);
    for _ in 0..4 {
        let answer = balancer.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    balancer.route(&[("all", json!({}), &[(&silent, 100)])]);
    let before = silent.requests();
    let answer = balancer.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(silent.requests() - before, 1);
    // A replica that is late: told so, and asked no second time.
    let late = Replica::start(|_, _| {
        std::thread::sleep(Duration::from_secs(5));
        false
    });
    balancer.route(&[("all", json!({ "timeout": "300ms" }), &[(&late, 100)])]);
    let began = Instant::now();
    assert_eq!(balancer.get("a", "/").0, 504);
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_connection_that_the_replica_closed_meanwhile_fails_nothing() {
    // It closes each connection after one answer, without having said so.
    let rude = Replica::start(|_, stream| {
        let _ = stream.write_all(answer(200, "x").as_bytes());
        false
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({}), &[(&rude, 100)])]);
    let mut stream = balancer.connect();
    for number in 0..50 {
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        write!(stream, "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut head = [0; 1024];
        let length = stream.read(&mut head).unwrap();
        let text = String::from_utf8_lossy(&head[..length]);
        assert!(text.starts_with("HTTP/1.1 200 "), "{number}: {text}");
    }
    assert_eq!(balancer.status()["backends"][&rude.id]["failures"], 0);
}

#[test]
fn what_is_no_chunk_is_none_also_once_the_answer_has_begun() {
    // It answers before it has the body, and goes on while that comes.
    let early = Replica::raw(|stream| {
        let mut seen = Vec::new();
        let mut part = [0; 4096];
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            let length = stream.read(&mut part).unwrap_or(0);
            if length == 0 {
                return seen;
            }
            seen.extend_from_slice(&part[..length]);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        for _ in 0..10 {
            let _ = stream.write_all(b"1\r\nx\r\n");
            std::thread::sleep(Duration::from_millis(30));
        }
        let _ = stream.set_read_timeout(Some(Duration::from_millis(300)));
        while let Ok(length) = stream.read(&mut part) {
            if length == 0 {
                break;
            }
            seen.extend_from_slice(&part[..length]);
        }
        seen
    });
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({ "max_body": "1KiB" }), &[(&early, 100)])]);
    for body in [
        // Read anew from its middle it would be a chunk of 0x35 bytes, and what follows a request of its own.
        format!("5\r\nhello\r\n3 \r\nabc\r\n{}\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(20)),
        format!("7d0\r\n{}\r\n0\r\n\r\n", "z".repeat(2000)),
    ] {
        let mut stream = balancer.connect();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let mut part = [0; 4096];
        assert!(stream.read(&mut part).unwrap() > 0, "the answer begins");
        stream.write_all(body.as_bytes()).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.ends_with(b"0\r\n\r\n"), "an answer that broke off is not shown as whole");
    }
    let seen =
        support::eventually("both connections are over", 10, || Some(early.seen()).filter(|seen| seen.len() == 2));
    for bytes in seen {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("/admin") && !text.contains("zzz"), "{text}");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_nobodys() {
    // After each answer it sends another one, as a server that gives up an idle connection does.
    let chatty = Replica::start(|_, stream| {
        let _ = stream.write_all(answer(200, "asked").as_bytes());
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(answer(408, "unasked").as_bytes()).is_ok()
    });
    // What says how long a body is that is none, and sends one.
    let wordy = Replica::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 40\r\n\r\n");
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").is_ok()
    });
    let mut balancer = Balancer::start();
    let routes =
        [("a", json!({ "host": "a" }), &[(&chatty, 100)][..]), ("b", json!({ "host": "b" }), &[(&wordy, 100)][..])];
    balancer.route(&routes);
    for _ in 0..5 {
        assert_eq!(balancer.get("a", "/"), (200, "asked".into()));
        assert_eq!(balancer.get("b", "/").0, 304);
        std::thread::sleep(Duration::from_millis(60));
    }
}

#[test]
fn an_answer_that_ends_too_early_is_not_shown_as_whole() {
    // HTTP/1.0, whose body ends with its connection.
    let cut = Replica::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it");
        false
    });
    // One that promises more than it sends.
    let short = Replica::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        false
    });
    let mut balancer = Balancer::start();
    balancer
        .route(&[("cut", json!({ "host": "a" }), &[(&cut, 100)]), ("short", json!({ "host": "b" }), &[(&short, 100)])]);
    // For who speaks HTTP/1.1 the end is said, and the connection goes on.
    let mut stream = balancer.connect();
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut told = String::new();
        while !told.ends_with("0\r\n\r\n") {
            let mut part = [0; 1024];
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "{told}");
            told += &String::from_utf8_lossy(&part[..length]);
        }
        assert!(told.contains("Transfer-Encoding: chunked") && told.contains("all of it"), "{told}");
    }
    let old = balancer.raw(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(!old.contains("chunked") && old.ends_with("\r\n\r\nall of it"), "{old}");
    let short = balancer.raw(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    assert!(short.contains("abc") && !short.contains("0\r\n\r\n"), "{short}");
}

#[test]
fn fields_that_are_ours_are_said_by_us_alone_and_no_upgrade_goes_past_the_routes() {
    let replica = echo();
    let mut balancer = Balancer::start();
    balancer.route(&[("all", json!({}), &[(&replica, 100)])]);
    let head = balancer.raw(
        b"GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nConnection: close, Upgrade, HTTP2-Settings\r\n\
          Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nMy_Own: 1\r\n\r\n",
    );
    assert!(!head.contains("9.9.9.9") && head.contains("My_Own: 1"), "{head}");
    assert!(!head.contains("h2c") && !head.contains("HTTP2"), "{head}");
    assert!(balancer.raw(b"GET /a#/../b HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(balancer.raw(b"GET /a/..;x/b HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 400 "));
    // A client that does not send its body is late itself: no replica is to blame for it.
    balancer.route(&[("all", json!({ "timeout": "300ms" }), &[(&replica, 100)])]);
    for _ in 0..6 {
        let told = balancer.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    }
    assert_eq!(balancer.status()["backends"][&replica.id]["failures"], 0);
}

#[test]
fn a_proxy_that_is_trusted_is_believed() {
    let replica = echo();
    let mut balancer = Balancer::start();
    let route = |trusted: &str| json!({ "trusted_proxies": [trusted] });
    let ask = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\n\
        X-Real-IP: 203.0.113.9\r\nConnection: close\r\n\r\n";
    balancer.route(&[("all", route("127.0.0.0/8"), &[(&replica, 100)])]);
    let told = balancer.raw(ask);
    assert!(told.contains("x-forwarded-for: 203.0.113.9, 10.0.0.1, 127.0.0.1\r\n"), "{told}");
    assert!(told.contains("x-forwarded-proto: https\r\n") && told.contains("X-Real-IP: 203.0.113.9"), "{told}");
    assert_eq!(told.to_lowercase().matches("x-forwarded-for").count(), 1, "{told}");
    balancer.route(&[("all", route("10.0.0.0/8"), &[(&replica, 100)])]);
    let told = balancer.raw(ask);
    assert!(told.contains("X-Forwarded-For: 127.0.0.1\r\n") && !told.contains("203.0.113.9"), "{told}");
}

#[test]
fn each_request_is_a_line_for_who_collects_them() {
    let replica = named("one");
    let collector = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    collector.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut balancer = Balancer::start();
    let spec = |host: &str| json!({ "host": host, "access_log": collector.local_addr().unwrap().to_string() });
    balancer.route(&[("one", spec("a"), &[(&replica, 100)]), ("none", spec("b"), &[])]);
    let line = || {
        let mut bytes = [0; 8192];
        let length = collector.recv(&mut bytes).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes[..length]).unwrap()
    };
    balancer.raw(b"GET /x?y=z HTTP/1.1\r\nHost: a\r\nUser-Agent: \"me\"\r\nConnection: close\r\n\r\n");
    let first = line();
    assert_eq!(
        (&first["version"], &first["_status"], &first["_bytes"]),
        (&json!("1.1"), &json!(200), &json!(3)),
        "{first}"
    );
    assert_eq!(
        (&first["_path"], &first["_client"], &first["_user_agent"]),
        (&json!("/x?y=z"), &json!("127.0.0.1"), &json!("\"me\""))
    );
    assert_eq!((&first["_route"], &first["_task"], &first["level"]), (&json!("one"), &json!(replica.id), &json!(6)));
    assert_eq!(first["short_message"], "GET a/x?y=z 200");
    balancer.get("b", "/");
    let second = line();
    assert_eq!(
        (&second["_status"], &second["level"], &second["_task"]),
        (&json!(503), &json!(5), &json!(null)),
        "{second}"
    );
}
