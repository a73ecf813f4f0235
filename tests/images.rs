//! The image registry, as its clients use it: skopeo, a real Docker Engine, another registry before it.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use lab::{Lab, LabDaemon};
use oci::{INDEX, MANIFEST, Registry, descriptor, digest, noise};
use serde_json::{Value, json};
use support::{eventually, free_port};

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[track_caller]
fn ok(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

// An image that clients can read: one layer with a file of noise.
fn real_image(registry: &Registry, repository: &str, tag: &str, seed: u64, architecture: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let noise = noise(seed, 400_000);
    let mut header = tar::Header::new_gnu();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "noise", noise.as_slice()).unwrap();
    let layer = tar.into_inner().unwrap();
    let packed = gzipped(&layer);
    let config = json!({ "architecture": architecture, "os": "linux", "config": { "Cmd": ["/noise"], "Labels": { "seed": seed.to_string() } },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] }, "created": "2026-01-01T00:00:00Z", "history": [] })
    .to_string()
    .into_bytes();
    registry.push(repository, &config);
    registry.push(repository, &packed);
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)] })
    .to_string()
    .into_bytes();
    registry.put_manifest(repository, tag, MANIFEST, &manifest).is(201);
    manifest
}

fn has_skopeo() -> bool {
    let is_there = Command::new("skopeo").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(is_there || std::env::var("CI").as_deref() != Ok("true"), "skopeo is not installed");
    if !is_there {
        println!("skipped: skopeo is not installed");
    }
    is_there
}

#[test]
fn skopeo_copies_inspects_lists_syncs_and_deletes() {
    if !has_skopeo() {
        return;
    }
    let registry = Registry::start();
    let manifest = real_image(&registry, "shop/api", "1.0", 1, "amd64");
    let arm = real_image(&registry, "shop/api", "arm", 2, "arm64");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        { "mediaType": MANIFEST, "digest": digest(&manifest), "size": manifest.len(), "platform": { "architecture": "amd64", "os": "linux" } },
        { "mediaType": MANIFEST, "digest": digest(&arm), "size": arm.len(), "platform": { "architecture": "arm64", "os": "linux" } } ] })
    .to_string();
    registry.put_manifest("shop/api", "multi", INDEX, index.as_bytes()).is(201);
    let at = |image: &str| format!("docker://127.0.0.1:{}/{image}", registry.port);
    let folder = tempfile::tempdir().unwrap();
    let place = |kind: &str, name: &str| format!("{kind}:{}", folder.path().join(name).display());
    let skopeo = |args: &[&str]| ok("skopeo", args);

    let seen: Value = serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &at("shop/api:1.0")])).unwrap();
    assert_eq!((&seen["Digest"], &seen["Labels"]["seed"]), (&json!(digest(&manifest)), &json!("1")));
    assert_eq!(seen["RepoTags"], json!(["1.0", "arm", "multi"]));

    // Down and up again, in each of the forms that it knows; as it is, and as Docker's.
    for (kind, format) in [("dir", "oci"), ("oci", "oci"), ("dir", "v2s2")] {
        let (down, up) = (place(kind, &format!("{kind}-{format}")), at(&format!("copies/{kind}-{format}:t")));
        skopeo(&["copy", "--src-tls-verify=false", &at("shop/api:1.0"), &down]);
        skopeo(&["copy", "--dest-tls-verify=false", "--format", format, &down, &up]);
        let seen: Value = serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &up])).unwrap();
        assert_eq!(seen["Labels"]["seed"], "1", "{kind} {format}");
        assert_eq!(seen["Layers"].as_array().unwrap().len(), 1);
    }
    let docker = registry.get("/v2/copies/dir-v2s2/manifests/t").is(200);
    assert_eq!(docker.header("content-type"), "application/vnd.docker.distribution.manifest.v2+json");

    // From one repository to another, all of what an index holds, unchanged.
    skopeo(&[
        "copy",
        "--all",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &at("shop/api:multi"),
        &at("other:all"),
    ]);
    assert_eq!(registry.get("/v2/other/manifests/all").is(200).body, index.as_bytes());
    assert_eq!(registry.get(&format!("/v2/other/manifests/{}", digest(&arm))).is(200).body, arm);

    let tags: Value = serde_json::from_str(&skopeo(&["list-tags", "--tls-verify=false", &at("shop/api")])).unwrap();
    assert_eq!(tags["Tags"], json!(["1.0", "arm", "multi"]));

    let to = folder.path().join("sync");
    let from = format!("127.0.0.1:{}/shop/api", registry.port);
    skopeo(&[
        "sync",
        "--all",
        "--src-tls-verify=false",
        "--src",
        "docker",
        "--dest",
        "dir",
        &from,
        &to.display().to_string(),
    ]);
    assert!(to.join("api:multi").is_dir() && to.join("api:1.0").is_dir());
    let to = format!("127.0.0.1:{}/synced", registry.port);
    skopeo(&[
        "sync",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--src",
        "docker",
        "--dest",
        "docker",
        &from,
        &to,
    ]);
    assert_eq!(registry.get("/v2/synced/api/tags/list").is(200).json()["tags"], json!(["1.0", "arm", "multi"]));

    skopeo(&["delete", "--tls-verify=false", &at("shop/api:1.0")]);
    registry.get("/v2/shop/api/manifests/1.0").is(404);
    assert!(!run("skopeo", &["inspect", "--tls-verify=false", &at("shop/api:1.0")]).status.success());
}

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Debian's registry keeps what it has pulled of ours.
#[test]
fn another_registry_is_a_cache_of_this_one() {
    let is_there =
        Command::new("docker-registry").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(is_there || std::env::var("CI").as_deref() != Ok("true"), "docker-registry is not installed");
    if !is_there || !has_skopeo() {
        println!("skipped: docker-registry is not installed");
        return;
    }
    let registry = Registry::start();
    let manifest = real_image(&registry, "shop/api", "1.0", 3, "amd64");
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}/data\nhttp:\n  addr: 127.0.0.1:{port}\n\
         proxy:\n  remoteurl: http://127.0.0.1:{}\n",
        folder.path().display(),
        registry.port
    );
    std::fs::write(folder.path().join("config.yml"), config).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(folder.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
    let _peer = Peer(command.spawn().unwrap());
    eventually("the other registry answers", 20, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let to = format!("oci:{}", folder.path().join("pulled").display());
    let from = format!("docker://127.0.0.1:{port}/shop/api:1.0");
    ok("skopeo", &["copy", "--src-tls-verify=false", &from, &to]);
    let seen = ok("skopeo", &["inspect", "--raw", "--tls-verify=false", &from]);
    assert_eq!(seen.as_bytes(), manifest);
}

#[test]
fn a_docker_engine_pushes_pulls_and_runs() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::engines(1);
    let daemon = LabDaemon::start(&lab, "n1", &[]);
    let image = "127.0.0.1:5000/shop/demo:1";
    lab.docker("n1", &["tag", "demo:1", image]);
    let pushed = lab.docker("n1", &["push", image]);
    assert!(pushed.contains("Pushed") && pushed.contains("digest: sha256:"), "{pushed}");
    // What is there is not sent again.
    lab.docker("n1", &["tag", "demo:1", "127.0.0.1:5000/shop/again:1"]);
    let mounted = lab.docker("n1", &["push", "127.0.0.1:5000/shop/again:1"]);
    assert!(mounted.contains("Mounted from shop/demo"), "{mounted}");
    lab.docker("n1", &["rmi", image, "127.0.0.1:5000/shop/again:1", "demo:1"]);
    // The daemon is killed, and the next has it.
    daemon.end("KILL");
    daemon.up(&[]);
    lab.docker("n1", &["pull", image]);
    let name = lab.docker("n1", &["image", "inspect", "-f", "{{index .RepoDigests 0}}", image]);
    assert!(name.starts_with("127.0.0.1:5000/shop/demo@sha256:"), "{name}");
    daemon.ok(&["service", "create", "--name", "web", "--publish", "8080:8080", image]);
    let url = format!("http://{}:8080/", lab.address("n1"));
    assert!(ok("curl", &["-sS", "-m", "5", &url]).contains(r#""version":"1""#));
}
