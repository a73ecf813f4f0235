//! The image registry with much in it: 100,000 tags in 1,000 repositories, and the collection of 100,000 blobs beside 20 clients that push.
//! `cargo bench --bench registry_scale`, about three minutes.

#[path = "support/registry.rs"]
mod client;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::{Client, by_all, digest, memory, noise, ours, wait_for};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const PORT: u16 = 18_493;
const REPOSITORIES: u64 = 1000;
const MANIFESTS: u64 = 10;
const TAGS: u64 = 10;
const BLOBS: u64 = 100_000;
const CLIENTS: usize = 20;
const PUSHES: u64 = 600;
const PAGES: u64 = 1000;
const GRACE: Duration = Duration::from_secs(15);
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

fn main() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("registry-scale-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let grace = format!("{}s", GRACE.as_secs());
    let env = [("NEAP_REGISTRY_GRACE", grace.as_str())];
    let running = ours(&folder, PORT, &env);
    wait_for(PORT);
    let began = Instant::now();
    let all: Vec<u64> = (0..REPOSITORIES).collect();
    by_all(PORT, CLIENTS, &all, |client, number| fill(client, *number));
    println!(
        "{} tags in {REPOSITORIES} repositories pushed in {:.0} s",
        REPOSITORIES * MANIFESTS * TAGS,
        began.elapsed().as_secs_f64()
    );
    // Killed, so that it is found as a death leaves it.
    let pid = nix::unistd::Pid::from_raw(running.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    drop(running);
    let mut starts: Vec<f64> = Vec::new();
    let mut running = None;
    for _ in 0..5 {
        drop(running.take());
        let began = Instant::now();
        running = Some(ours(&folder, PORT, &env));
        wait_for(PORT);
        assert_eq!(Client::new(PORT).ask("GET", "/v2/_catalog?n=100", "x", b"").0, 200);
        starts.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    starts.sort_by(f64::total_cmp);
    println!("from its start to its first page, ms: median {:.0}, worst {:.0} (200 asked)", starts[2], starts[4]);
    pages("a page of 100 repositories", |number| {
        format!("/v2/_catalog?n=100&last=team/r{:04}", number * 7 % REPOSITORIES)
    });
    pages("a page of 100 tags", |number| format!("/v2/team/r{:04}/tags/list?n=100", number * 7 % REPOSITORIES));
    pages("a page of 10 tags from the middle", |number| {
        format!("/v2/team/r{:04}/tags/list?n=10&last=m5-t5", number * 7 % REPOSITORIES)
    });
    let running = running.unwrap();
    println!("memory, MiB: {} (100 asked)", memory(&running));

    let all: Vec<u64> = (0..BLOBS).collect();
    let began = Instant::now();
    by_all(PORT, CLIENTS, &all, |client, number| at_once(client, "garbage", format!("blob {number}").as_bytes()));
    println!(
        "{BLOBS} small blobs pushed by {CLIENTS} clients: {:.0} a second",
        BLOBS as f64 / began.elapsed().as_secs_f64()
    );
    std::thread::sleep(GRACE);
    let (mut without, mut beside) = (Vec::new(), Vec::new());
    without.push(push(1));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (folder, over) = (&folder, &over);
        let collection = scope.spawn(move || {
            let began = Instant::now();
            let output = Command::new(NEAP)
                .args(["registry", "gc"])
                .env("NEAP_HOST", format!("unix://{}", folder.join("neap.sock").display()))
                .env("NEAP_CONFIG", folder.join("none.toml"))
                .output()
                .unwrap();
            over.store(true, Ordering::Relaxed);
            assert!(output.status.success(), "{output:?}");
            (began.elapsed(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
        });
        let mut round = 2;
        while !over.load(Ordering::Relaxed) && round < 12 {
            beside.push(push(round));
            round += 1;
        }
        let (took, said) = collection.join().unwrap();
        println!("collection beside them, {:.1} s: {said}", took.as_secs_f64());
    });
    without.push(push(20));
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    let (alone, both) = (mean(&without), mean(&beside));
    println!(
        "{PUSHES} images of 1 MB by {CLIENTS} clients, MB/s: without {alone:.0}, beside the collection {both:.0}, {:.2} (0.8 asked; {} rounds, no error)",
        both / alone,
        beside.len()
    );
    println!("memory behind it, MiB: {}", memory(&running));
    drop(running);
    let _ = std::fs::remove_dir_all(&folder);
}

// A repository with its manifests and tags.
fn fill(client: &mut Client, number: u64) {
    let repository = format!("team/r{number:04}");
    let layer = noise(1, 1000);
    at_once(client, &repository, &layer);
    for manifest in 0..MANIFESTS {
        let config = format!("{{\"repository\":{number},\"manifest\":{manifest}}}");
        at_once(client, &repository, config.as_bytes());
        let image = image(config.as_bytes(), &layer);
        let tags: String = (0..TAGS).map(|tag| format!("&tag=m{manifest}-t{tag}")).collect();
        let path = format!("/v2/{repository}/manifests/{}?x=1{tags}", digest(image.as_bytes()));
        assert_eq!(client.ask("PUT", &path, KIND, image.as_bytes()).0, 201);
    }
}

fn pages(what: &str, path: impl Fn(u64) -> String) {
    let mut client = Client::new(PORT);
    let mut took: Vec<f64> = (0..PAGES)
        .map(|number| {
            let began = Instant::now();
            assert_eq!(client.ask("GET", &path(number), "x", b"").0, 200);
            began.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    took.sort_by(f64::total_cmp);
    println!("{what}, ms: median {:.2}, p99 {:.2} (5 asked)", took[took.len() / 2], took[took.len() * 99 / 100]);
}

// Images as they are pushed: what is needed is never collected in between.
fn push(round: u64) -> f64 {
    let all: Vec<Vec<u8>> = (0..PUSHES).map(|number| noise(round * 1_000_000 + number + 3, 1 << 20)).collect();
    let began = Instant::now();
    let numbered: Vec<(usize, &Vec<u8>)> = all.iter().enumerate().collect();
    by_all(PORT, CLIENTS, &numbered, |client, (number, layer)| {
        let repository = format!("push/r{round}");
        let config = format!("{{\"round\":{round},\"number\":{number}}}");
        client.push(&repository, layer, &digest(layer));
        at_once(client, &repository, config.as_bytes());
        let image = image(config.as_bytes(), layer);
        let path = format!("/v2/{repository}/manifests/t{number}");
        assert_eq!(client.ask("PUT", &path, KIND, image.as_bytes()).0, 201);
    });
    PUSHES as f64 * (1 << 20) as f64 / 1e6 / began.elapsed().as_secs_f64()
}
