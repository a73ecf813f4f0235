//! The image registry beside Debian's (docker-registry 2.8.2): pushes, pulls, HEADs and manifests, the same client, the same disk, in turn.
//! `cargo bench --bench registry`, about two minutes. Each round pushes other bytes. Ours answers once all is on the disk.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::Digest as _;

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const OURS: u16 = 18_491;
const THEIRS: u16 = 18_492;
const ROUNDS: u64 = 3;
const LARGE: usize = 100 << 20;
const SMALL: usize = 1 << 20;
const MANY: usize = 1000;
const CLIENTS: usize = 20;
const ASKED: usize = 5000;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn main() {
    if Command::new("docker-registry").arg("--version").output().is_err() {
        println!("skipped: docker-registry is not installed");
        return;
    }
    // On the disk of the target folder: /tmp may be memory.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("registry-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    limits(&folder);
    let config = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
         delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{THEIRS}\n",
        folder.join("theirs").display()
    );
    std::fs::write(folder.join("config.yml"), config).unwrap();
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let theirs = Running(
        Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let ours = Running(
        Command::new(NEAP)
            .args(["up", "--engine", "process", "--data"])
            .arg(folder.join("ours"))
            .arg("--socket")
            .arg(folder.join("neap.sock"))
            .envs([("NEAP_CONSUL_LISTEN", "none"), ("NEAP_DNS_LISTEN", "none")])
            .env("NEAP_REGISTRY_LISTEN", format!("127.0.0.1:{OURS}"))
            .env("NEAP_CONFIG", folder.join("none.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    for port in [OURS, THEIRS] {
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "nobody answers on port {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!("memory at rest, MiB: docker-registry {}, neap (all of the daemon) {}", memory(&theirs), memory(&ours));
    println!("{:<40} {:>14} {:>14} {:>7}", "", "docker-registry", "neap", "ratio");
    let (mut rows, names): (Vec<Vec<(f64, f64)>>, _) = (
        vec![Vec::new(); 7],
        [
            "push 100 MB, MB/s",
            "push 1,000 x 1 MB by 20 clients, MB/s",
            "pull 100 MB, MB/s",
            "pull 1,000 x 1 MB by 20 clients, MB/s",
            "HEAD of a blob, a second, one client",
            "HEAD of a tag, a second, one client",
            "GET of a manifest, a second, one client",
        ],
    );
    for round in 0..ROUNDS {
        let (their, our) = (figures(THEIRS, round), figures(OURS, round));
        for (row, pair) in rows.iter_mut().zip(their.into_iter().zip(our)) {
            row.push(pair);
        }
    }
    for (name, row) in names.iter().zip(rows) {
        let median = |mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let theirs = median(row.iter().map(|pair| pair.0).collect());
        let ours = median(row.iter().map(|pair| pair.1).collect());
        println!("{name:<40} {theirs:>14.0} {ours:>14.0} {:>7.2}", ours / theirs);
    }
    println!("memory behind it, MiB: docker-registry {}, neap (all of the daemon) {}", memory(&theirs), memory(&ours));
    drop((ours, theirs));
    let _ = std::fs::remove_dir_all(&folder);
}

// What the machine itself does at most.
fn limits(folder: &Path) {
    let bytes = noise(1, LARGE);
    let began = Instant::now();
    std::hint::black_box(sha2::Sha256::digest(&bytes));
    let hashed = LARGE as f64 / 1e6 / began.elapsed().as_secs_f64();
    let path = folder.join("probe");
    let began = Instant::now();
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    let written = LARGE as f64 / 1e6 / began.elapsed().as_secs_f64();
    let _ = std::fs::remove_file(&path);
    println!("this machine: SHA-256 {hashed:.0} MB/s a core, a file of 100 MB written and synced {written:.0} MB/s");
}

fn memory(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() / 1024
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

// A client with one connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
    port: u16,
}

impl Client {
    fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::with_capacity(256 * 1024, stream), port }
    }

    // The status, where to go on, and how much came.
    fn ask(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, u64) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n\
             Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\r\n",
            self.port,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let (mut line, mut status, mut location, mut length) = (String::new(), 0, String::new(), 0_u64);
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            if line == "\r\n" {
                break;
            }
            match line.split_once(": ") {
                None => status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0),
                Some((name, value)) if name.eq_ignore_ascii_case("location") => location = value.trim().to_owned(),
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap();
                }
                Some(_) => {}
            }
        }
        if method != "HEAD" && status != 204 {
            let mut left = length;
            while left > 0 {
                let part = self.stream.fill_buf().unwrap().len().min(left as usize);
                assert!(part > 0, "the body is cut off");
                self.stream.consume(part);
                left -= part as u64;
            }
        }
        (status, location, length)
    }

    // As Docker pushes a blob.
    fn push(&mut self, repository: &str, bytes: &[u8], digest: &str) {
        let kind = "application/octet-stream";
        let (status, location, _) = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), kind, b"");
        assert_eq!(status, 202);
        let at = path_of(self.port, &location);
        let (status, location, _) = self.ask("PATCH", &at, kind, bytes);
        assert_eq!(status, 202);
        let at = path_of(self.port, &location);
        let mark = if at.contains('?') { '&' } else { '?' };
        let (status, ..) = self.ask("PUT", &format!("{at}{mark}digest={digest}"), kind, b"");
        assert_eq!(status, 201);
    }
}

fn path_of(port: u16, location: &str) -> String {
    location.trim_start_matches(&format!("http://127.0.0.1:{port}")).to_owned()
}

fn figures(port: u16, round: u64) -> [f64; 7] {
    let large = noise(1000 + round, LARGE);
    let large_name = digest(&large);
    let repository = format!("bench/r{round}");
    let mut client = Client::new(port);
    let rate = |bytes: usize, began: Instant| bytes as f64 / 1e6 / began.elapsed().as_secs_f64();

    let began = Instant::now();
    client.push(&repository, &large, &large_name);
    let push_large = rate(LARGE, began);

    let small: Vec<(Vec<u8>, String)> = (0..MANY as u64)
        .map(|number| {
            let bytes = noise(round * 100_000 + number + 7, SMALL);
            let name = digest(&bytes);
            (bytes, name)
        })
        .collect();
    let began = Instant::now();
    by_all(port, &small, |client, (bytes, name)| client.push(&repository, bytes, name));
    let push_small = rate(MANY * SMALL, began);

    let began = Instant::now();
    let (status, _, length) = client.ask("GET", &format!("/v2/{repository}/blobs/{large_name}"), "x", b"");
    assert_eq!((status, length), (200, LARGE as u64));
    let pull_large = rate(LARGE, began);

    let began = Instant::now();
    by_all(port, &small, |client, (_, name)| {
        let (status, _, length) = client.ask("GET", &format!("/v2/{repository}/blobs/{name}"), "x", b"");
        assert_eq!((status, length), (200, SMALL as u64));
    });
    let pull_small = rate(MANY * SMALL, began);

    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let config = b"{}";
    client.push(&repository, config, &digest(config));
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}\",\"config\":{{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\
         \"digest\":\"{}\",\"size\":2}},\"layers\":[{{\"mediaType\":\"application/vnd.docker.image.rootfs.diff.tar.gzip\",\
         \"digest\":\"{large_name}\",\"size\":{LARGE}}}]}}",
        digest(config)
    );
    let (status, ..) = client.ask("PUT", &format!("/v2/{repository}/manifests/t"), kind, manifest.as_bytes());
    assert_eq!(status, 201);
    let mut each = |method: &str, path: String| {
        let began = Instant::now();
        for _ in 0..ASKED {
            assert_eq!(client.ask(method, &path, "x", b"").0, 200, "{method} {path}");
        }
        ASKED as f64 / began.elapsed().as_secs_f64()
    };
    let head_blob = each("HEAD", format!("/v2/{repository}/blobs/{large_name}"));
    let head_tag = each("HEAD", format!("/v2/{repository}/manifests/t"));
    let get_manifest = each("GET", format!("/v2/{repository}/manifests/{}", digest(manifest.as_bytes())));
    [push_large, push_small, pull_large, pull_small, head_blob, head_tag, get_manifest]
}

fn by_all<T: Sync>(port: u16, all: &[T], each: impl Fn(&mut Client, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Client::new(port);
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(&mut client, one);
                }
            });
        }
    });
}
