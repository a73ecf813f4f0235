//! A daemon whose catalogue is served, and clients of it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::support::{self, Daemon, free_port};

/// A daemon whose catalogue is served, and where.
pub struct Catalog {
    pub daemon: Daemon,
    pub http: u16,
    pub dns: u16,
}

/// An answer: status, headers in small letters, body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn index(&self) -> u64 {
        let line = self.head.lines().find_map(|line| line.strip_prefix("x-consul-index: ")).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Catalog {
    pub fn start() -> Self {
        Catalog::with(&[])
    }

    pub fn with(env: &[(&str, String)]) -> Self {
        let (http, dns) = (free_port(), free_port());
        let mut daemon = Daemon::new();
        daemon.env = vec![
            ("NEAP_CONSUL_LISTEN".into(), format!("127.0.0.1:{http}")),
            ("NEAP_DNS_LISTEN".into(), format!("127.0.0.1:{dns}")),
        ];
        daemon.env.extend(env.iter().map(|(key, value)| ((*key).into(), value.clone())));
        daemon.up();
        Catalog { daemon, http, dns }
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        ask(self.http, method, path, body)
    }

    pub fn get(&self, path: &str) -> Value {
        self.ask("GET", path, "").json()
    }

    pub fn put(&self, path: &str, body: &Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.ask("PUT", path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }

    /// Asks for a key, or changes one; panics unless that succeeds.
    pub fn kv(&self, method: &str, path: &str, body: &str) -> String {
        let answer = self.ask(method, &format!("/v1/kv/{path}"), body);
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        answer.body
    }

    /// What dig prints, line by line.
    pub fn dig(&self, args: &[&str]) -> Vec<String> {
        let port = self.dns.to_string();
        let output = Command::new("dig").args(["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"]).args(args).output();
        let output = output.expect("dig is there");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        lines.retain(|line| !line.is_empty());
        lines
    }

    pub fn short(&self, name: &str, kind: &str) -> Vec<String> {
        let mut lines = self.dig(&["+short", name, kind]);
        lines.sort();
        lines
    }

    pub fn status(&self, name: &str, kind: &str) -> String {
        let head = self.dig(&[name, kind]).into_iter().find(|line| line.contains("status:")).unwrap();
        head.split("status: ").nth(1).unwrap().split(',').next().unwrap().to_owned()
    }

    pub fn host(&self) -> String {
        self.get("/v1/agent/self")["Config"]["NodeName"].as_str().unwrap().to_owned()
    }

    pub fn web(&self, replicas: u32) -> u16 {
        let port = free_port();
        let (publish, replicas) = (port.to_string(), replicas.to_string());
        self.daemon.ok(&[
            "service",
            "create",
            "--name",
            "web",
            "--publish",
            &publish,
            "--replicas",
            &replicas,
            "--health-http",
            "/healthz",
            "--health-interval",
            "200ms",
            "--",
            support::NEAP,
            "demo",
        ]);
        port
    }
}

/// What asks: from Debian's bind9-dnsutils, which tests/run installs.
pub fn has_dig() -> bool {
    let there = Command::new("dig").arg("-v").output().is_ok();
    if !there {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "dig is not installed");
        println!("skipped: dig is not installed");
    }
    there
}

pub fn ask(port: u16, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    // As some clients do, without a content type.
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}
