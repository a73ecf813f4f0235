//! A balancer's process with a table of fronts, without a daemon.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::replica::Replica;
use crate::support::{self, NEAP, eventually, free_port};

/// A name, what it is described as, its replicas with their weights.
pub type Route<'a> = (&'a str, Value, &'a [(&'a Replica, u32)]);

/// A balancer with a table.
pub struct Balancer {
    pub folder: tempfile::TempDir,
    child: Child,
    version: u64,
    pub port: u16,
}

impl Balancer {
    /// One without a table.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("neap-test-").tempdir().unwrap();
        let child = Self::process(folder.path());
        Balancer { folder, child, version: 0, port: free_port() }
    }

    fn process(folder: &std::path::Path) -> Child {
        let mut command = Command::new(NEAP);
        command.arg("balancer").arg(folder).args(["--threads", "2"]).stdin(Stdio::null());
        command.spawn().unwrap()
    }

    /// Sends a line to it; its status.
    pub fn ask(&self, request: &Value) -> Value {
        let socket = self.folder.path().join("balancer.sock");
        let stream = eventually("the balancer listens", 10, || std::os::unix::net::UnixStream::connect(&socket).ok());
        writeln!(&stream, "{request}").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["status"].clone()
    }

    /// How it is.
    pub fn status(&self) -> Value {
        self.ask(&json!("status"))
    }

    /// Takes these routes, without TLS.
    pub fn route(&mut self, routes: &[Route]) -> Value {
        self.front(routes, &json!([]))
    }

    /// Takes these routes, with certificates.
    pub fn front(&mut self, routes: &[Route], certificates: &Value) -> Value {
        self.version += 1;
        let proxy = routes.iter().any(|(_, spec, _)| spec["accept_proxy"] == true);
        let routes = routes.iter().map(|(name, spec, replicas)| {
            let backends = replicas.iter().map(|(replica, weight)| {
                json!({ "id": replica.id, "address": format!("127.0.0.1:{}", replica.port), "weight": weight })
            });
            let backends: Vec<Value> = backends.collect();
            json!({ "name": name, "spec": spec, "to": [{ "weight": 100, "backends": backends }] })
        });
        let routes: Vec<Value> = routes.collect();
        let front = json!({ "address": "127.0.0.1", "port": self.port, "routes": routes, "certificates": certificates, "tls": certificates != &json!([]), "proxy": proxy });
        let mut fronts = serde_json::Map::new();
        fronts.insert(format!("127.0.0.1:{}", self.port), front);
        let status = self.ask(&json!({ "table": { "version": self.version, "listeners": {}, "fronts": fronts } }));
        assert_eq!(status["version"], self.version);
        status
    }

    /// Takes these ports, and no routes.
    pub fn listeners(&mut self, listeners: &Value) -> Value {
        self.version += 1;
        let status = self.ask(&json!({ "table": { "version": self.version, "listeners": listeners } }));
        assert_eq!((&status["version"], &status["failed"]), (&json!(self.version), &json!({})), "{status}");
        status
    }

    /// A connection of a client.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// What comes back for these bytes until the other end closes; the client closes its own side only afterwards.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The status and the body for a path.
    pub fn get(&self, host: &str, path: &str) -> (u16, String) {
        let whole = self.raw(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        let (head, body) = whole.split_once("\r\n\r\n").unwrap_or((&whole, ""));
        let status =
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{whole:?}"));
        (status, body.to_owned())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let pid = self.status_pid();
        if let Some(pid) = pid {
            support::signal(pid, "KILL");
        }
    }
}

impl Balancer {
    fn status_pid(&self) -> Option<u32> {
        let socket = self.folder.path().join("balancer.sock");
        let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
        writeln!(&stream, "\"status\"").ok()?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).ok()?;
        serde_json::from_str::<Value>(&line).ok()?["status"]["pid"].as_u64().map(|pid| pid as u32)
    }
}
