//! What a bucket costs, and what it gives: pushes with one and without, and how long an empty host takes to have 100,000 tags in 1,000
//! repositories from one. `cargo bench --bench registry_bucket`, about a minute; the bucket is a server of S3 in this process, at the loopback.

#[path = "support/registry.rs"]
mod client;
#[path = "../tests/support/s3.rs"]
mod s3;

// What the server of S3 makes its tags of.
mod oci {
    pub fn digest(bytes: &[u8]) -> String {
        crate::client::digest(bytes)
    }
}

use std::path::PathBuf;
use std::time::Instant;

use client::{Client, by_all, digest, memory, noise, ours, wait_for};
use s3::Bucket;

const PORT: u16 = 18_497;
const CLIENTS: usize = 8;
const IMAGES: u64 = 400;
const REPOSITORIES: u64 = 1000;
const MANIFESTS: u64 = 10;
const TAGS: u64 = 10;
const KIND: &str = "application/vnd.oci.image.manifest.v1+json";

fn image(config: &[u8], layer: &[u8]) -> String {
    let part =
        |bytes: &[u8]| format!("{{\"mediaType\":\"x/y\",\"digest\":\"{}\",\"size\":{}}}", digest(bytes), bytes.len());
    format!("{{\"schemaVersion\":2,\"mediaType\":\"{KIND}\",\"config\":{},\"layers\":[{}]}}", part(config), part(layer))
}

fn at_once(client: &mut Client, repository: &str, bytes: &[u8]) {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(bytes));
    assert_eq!(client.ask("POST", &path, "x", bytes).0, 201);
}

fn put(client: &mut Client, repository: &str, image: &str, tags: &str) {
    let path = format!("/v2/{repository}/manifests/{}?x=1{tags}", digest(image.as_bytes()));
    assert_eq!(client.ask("PUT", &path, KIND, image.as_bytes()).0, 201);
}

// Images of 1 MB, in MB a second.
fn pushes(port: u16, seed: u64) -> f64 {
    let all: Vec<(u64, Vec<u8>)> = (0..IMAGES).map(|number| (number, noise(seed + number, 1_000_000))).collect();
    let began = Instant::now();
    by_all(port, CLIENTS, &all, |client, (number, layer)| {
        let config = format!("{{\"n\":{number}}}");
        at_once(client, "app", layer);
        at_once(client, "app", config.as_bytes());
        put(client, "app", &image(config.as_bytes(), layer), &format!("&tag=t{number}"));
    });
    IMAGES as f64 / began.elapsed().as_secs_f64()
}

fn fill(client: &mut Client, number: u64) {
    let repository = format!("team/r{number:04}");
    let layer = noise(1, 1000);
    at_once(client, &repository, &layer);
    for manifest in 0..MANIFESTS {
        let config = format!("{{\"repository\":{number},\"manifest\":{manifest}}}");
        at_once(client, &repository, config.as_bytes());
        let tags: String = (0..TAGS).map(|tag| format!("&tag=m{manifest}-t{tag}")).collect();
        put(client, &repository, &image(config.as_bytes(), &layer), &tags);
    }
}

fn main() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("registry-bucket-{}", std::process::id()));
    let bucket = Bucket::start();
    let env = bucket.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for name in ["alone", "first", "second"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let alone = ours(&folder.join("alone"), PORT, &[]);
    let first = ours(&folder.join("first"), PORT + 1, &env);
    wait_for(PORT);
    wait_for(PORT + 1);
    let (without, with) = (pushes(PORT, 1000), pushes(PORT + 1, 5000));
    println!(
        "{IMAGES} images of 1 MB by {CLIENTS} clients, MB/s: without {without:.0}, with {with:.0}, {:.2}",
        with / without
    );
    drop(alone);
    let began = Instant::now();
    let all: Vec<u64> = (0..REPOSITORIES).collect();
    by_all(PORT + 1, CLIENTS, &all, |client, number| fill(client, *number));
    let (took, tags) = (began.elapsed().as_secs_f64(), REPOSITORIES * MANIFESTS * TAGS);
    println!("{tags} tags in {REPOSITORIES} repositories pushed in {took:.0} s, memory {} MiB", memory(&first));
    println!("in the bucket: {} segments, {} snapshots", bucket.names("log/").len(), bucket.names("snapshot/").len());
    drop(first);
    let began = Instant::now();
    let second = ours(&folder.join("second"), PORT + 1, &env);
    wait_for(PORT + 1);
    let last = format!("/v2/team/r{:04}/manifests/m9-t9", REPOSITORIES - 1);
    while Client::new(PORT + 1).ask("GET", &last, "x", b"").0 != 200 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    println!("an empty host has them after {:.1} s, memory {} MiB", began.elapsed().as_secs_f64(), memory(&second));
    drop(second);
    let _ = std::fs::remove_dir_all(&folder);
}
