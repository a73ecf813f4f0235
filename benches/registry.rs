//! The image registry beside Debian's (docker-registry 2.8.2): pushes, pulls, HEADs and manifests, the same client, the same disk, in turn.
//! `cargo bench --bench registry`, about two minutes. Each round pushes other bytes. Ours answers once all is on the disk.

#[path = "support/registry.rs"]
mod client;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use client::{Client, Running, by_all, digest, memory, noise};
use sha2::Digest as _;

const OURS: u16 = 18_491;
const THEIRS: u16 = 18_492;
const ROUNDS: u64 = 3;
const LARGE: usize = 100 << 20;
const SMALL: usize = 1 << 20;
const MANY: usize = 1000;
const CLIENTS: usize = 20;
const ASKED: usize = 5000;

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
    let theirs = Running(
        Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let ours = client::ours(&folder, OURS, &[]);
    [OURS, THEIRS].into_iter().for_each(client::wait_for);
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
    by_all(port, CLIENTS, &small, |client, (bytes, name)| client.push(&repository, bytes, name));
    let push_small = rate(MANY * SMALL, began);

    let began = Instant::now();
    let (status, _, length) = client.ask("GET", &format!("/v2/{repository}/blobs/{large_name}"), "x", b"");
    assert_eq!((status, length), (200, LARGE as u64));
    let pull_large = rate(LARGE, began);

    let began = Instant::now();
    by_all(port, CLIENTS, &small, |client, (_, name)| {
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
