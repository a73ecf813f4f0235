//! A registry in a daemon of its own, and requests to it as clients make them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::support::{Daemon, free_port};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A daemon that serves a registry.
pub struct Registry {
    pub daemon: Daemon,
    pub port: u16,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The code of an error.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Asserts a status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, String::from_utf8_lossy(&self.body));
        self
    }

    /// Asserts a status and an error's code.
    #[track_caller]
    pub fn fails(self, status: u16, code: &str) -> Self {
        let answer = self.is(status);
        assert_eq!(answer.code(), code, "{}", String::from_utf8_lossy(&answer.body));
        answer
    }
}

/// `sha256:...` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// `sha512:...` of some bytes.
pub fn long_digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha512::digest(bytes);
    format!("sha512:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Bytes that are no others' and the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

/// An image's manifest.
pub fn image(config: &[u8], layers: &[&[u8]]) -> Value {
    let layers: Vec<Value> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config) })
}

impl Registry {
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(env: &[(&str, &str)]) -> Self {
        let port = free_port();
        let mut daemon = Daemon::new();
        daemon.env.push(("NEAP_REGISTRY_LISTEN".into(), format!("127.0.0.1:{port}")));
        daemon.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        daemon.up();
        let registry = Registry { daemon, port };
        registry.wait();
        registry
    }

    /// Until it answers.
    pub fn wait(&self) {
        crate::support::eventually("the registry answers", 20, || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok().then_some(())
        });
    }

    /// kill -9, and another.
    pub fn restart(&mut self) {
        self.daemon.kill();
        self.daemon.up();
        self.wait();
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A request with all of its body.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        ask(self.port, method, path, headers, body).unwrap()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path, &[], b"")
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[], b"")
    }

    /// A blob in one request.
    pub fn push(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.ask("POST", &format!("/v2/{repository}/blobs/uploads/?digest={digest}"), &[], bytes).is(201);
        digest
    }

    /// Where a new upload goes on.
    pub fn begin(&self, repository: &str) -> String {
        let answer = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"").is(202);
        answer.header("location").to_owned()
    }

    pub fn put_manifest(&self, repository: &str, reference: &str, kind: &str, manifest: &[u8]) -> Answer {
        self.ask("PUT", &format!("/v2/{repository}/manifests/{reference}"), &[("Content-Type", kind)], manifest)
    }

    /// An image with a tag; its manifest.
    pub fn push_image(&self, repository: &str, tag: &str, layers: &[&[u8]]) -> Vec<u8> {
        let config = format!("{{\"image\":\"{tag}\"}}").into_bytes();
        self.push(repository, &config);
        layers.iter().for_each(|layer| _ = self.push(repository, layer));
        let manifest = image(&config, layers).to_string().into_bytes();
        self.put_manifest(repository, tag, MANIFEST, &manifest).is(201);
        manifest
    }
}

/// A request to a port; an error where it broke off.
pub fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    if !matches!(method, "GET" | "HEAD" | "DELETE") && !headers.iter().any(|(name, _)| *name == "Transfer-Encoding") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    // Whoever is refused early may be cut off while sending.
    let _ = stream.write_all(body);
    read(&mut BufReader::new(stream), method == "HEAD")
}

/// Reads an answer.
pub fn read(stream: &mut BufReader<TcpStream>, is_head: bool) -> std::io::Result<Answer> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no answer: {line:?}")))?;
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            // One that is there twice is a list.
            let known: &mut String = headers.entry(name.to_ascii_lowercase()).or_default();
            *known = if known.is_empty() { value.trim().to_owned() } else { format!("{known}, {}", value.trim()) };
        }
    }
    let mut body = Vec::new();
    if !is_head {
        match headers.get("content-length").and_then(|length| length.parse::<u64>().ok()) {
            Some(length) => {
                stream.take(length).read_to_end(&mut body)?;
                if body.len() as u64 != length {
                    return Err(std::io::Error::other("the body is cut off"));
                }
            }
            None => _ = stream.read_to_end(&mut body)?,
        }
    }
    Ok(Answer { status, headers, body })
}
