//! The image registry, as its clients use it: skopeo, a real Docker Engine, another registry before it.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
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

    // Whoever pushes the tag anew rolls out what runs it.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/deploy-on-push.lua");
    daemon.ok(&["script", "push", "deploy", script]);
    lab.docker("n1", &["tag", "demo:2", image]);
    lab.docker("n1", &["push", image]);
    eventually("what was pushed is rolled out", 60, || {
        let output = run("curl", &["-sS", "-m", "5", &url]);
        String::from_utf8_lossy(&output.stdout).contains(r#""version":"2""#).then_some(())
    });
    let service: Value = serde_json::from_str(&daemon.ok(&["service", "inspect", "web"])).unwrap();
    assert!(service.to_string().contains(&format!("{image}@sha256:")), "{service}");

    // What the engine has is brought, and what the registry has is got, by a word.
    daemon.ok(&["script", "rm", "deploy"]);
    let pushed: Value =
        serde_json::from_str(&daemon.ok(&["registry", "push", "demo:2", "moved/demo:7", "--format", "json"])).unwrap();
    let digest = pushed["nodes"][0]["digest"].as_str().unwrap().to_owned();
    assert_eq!((&pushed["image"], &pushed["nodes"][0]["node"]), (&json!("127.0.0.1:5000/moved/demo:7"), &json!("n1")));
    assert!(daemon.ok(&["registry", "tags", "moved/demo"]).contains(&digest[..19]));
    lab.docker("n1", &["rmi", "127.0.0.1:5000/moved/demo:7"]);
    assert!(daemon.ok(&["registry", "pull", "moved/demo:7"]).contains(&digest[..19]));
    lab.docker("n1", &["image", "inspect", "127.0.0.1:5000/moved/demo:7"]);
    for (args, why) in [
        (&["registry", "pull", "moved/none:1"][..], "failed on n1"),
        (&["registry", "push", "nothing:1"], "failed on n1"),
        (&["registry", "push", "--node", "n9", "demo:2"], "n9"),
        (&["registry", "pull", "http://127.0.0.1:5001/a:1"], "by its host alone"),
        (&["registry", "pull", "localhost:5001/a:1"], "another registry on a loopback"),
        (&["registry", "push", "demo:2", &format!("a@{digest}")], "needs a tag"),
    ] {
        assert!(daemon.fails(args).contains(why), "{args:?}: {}", daemon.fails(args));
    }
    // Why it failed is said, in the engine's own words, and what was not pushed has no such name.
    daemon.ok(&["registry", "rule", "set", "fixed", "--immutable", "*"]);
    daemon.ok(&["registry", "push", "demo:2", "fixed:1"]);
    lab.docker("n1", &["tag", "busybox:latest", "other:1"]);
    let said = daemon.fails(&["registry", "push", "other:1", "fixed:1"]);
    assert!(said.contains("immutable"), "{said}");
    let id = |name: &str| lab.docker("n1", &["image", "inspect", "-f", "{{.Id}}", name]);
    assert_eq!(id("127.0.0.1:5000/fixed:1"), id("demo:2"));
    daemon.fails(&["registry", "push", "other:1", "fixed@sha256:1"]);
    let said = daemon.fails(&["registry", "pull", "moved/none:1"]);
    assert!(said.contains("not found") || said.contains("unknown"), "{said}");
    let prewarm = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/prewarm.lua");
    let said = daemon.ok(&["run", prewarm, "demo:2", "moved/demo:8", "web"]);
    assert_eq!(said.trim(), format!("n1: {digest}"));
    assert!(daemon.ok(&["service", "inspect", "web"]).contains(&format!("127.0.0.1:5000/moved/demo@{digest}")));

    // Everybody pulls; whoever pushes has to say who they are.
    let token = daemon.ok(&["token", "create", "ci", "--role", "deployer", "--prefix", "shop/"]).trim().to_owned();
    daemon.end("TERM");
    daemon.up(&["NEAP_REGISTRY_ACCESS=pull"]);
    lab.docker("n1", &["rmi", "127.0.0.1:5000/shop/demo:1"]);
    // What this user's Docker knows is none of this.
    let docker = |args: &[&str]| lab.exec("n1", &[&["docker", "--config", "/run/docker-client"], args].concat());
    let pulled = docker(&["pull", image]);
    assert!(pulled.status.success(), "{pulled:?}");
    let push = |image: &str| {
        lab.docker("n1", &["tag", "demo:2", image]);
        docker(&["push", image])
    };
    assert!(!push("127.0.0.1:5000/shop/new:1").status.success());
    // The daemon may tell its engine to.
    daemon.ok(&["registry", "push", "demo:2", "told/demo:1"]);
    assert!(!docker(&["login", "127.0.0.1:5000", "-u", "me", "-p", "nonsense"]).status.success());
    let login = docker(&["login", "127.0.0.1:5000", "-u", "me", "-p", &token]);
    assert!(login.status.success(), "{login:?}");
    let pushed = push("127.0.0.1:5000/shop/new:1");
    assert!(pushed.status.success(), "{pushed:?}");
    assert!(!push("127.0.0.1:5000/other:1").status.success(), "it is for names that begin with shop/");
}

// The command line, scripts and events.
#[test]
fn images_are_listed_shown_deleted_collected_and_read_again() {
    let registry = Registry::with(&[("NEAP_REGISTRY_GRACE", "0s")]);
    let daemon = &registry.daemon;
    let events = daemon.command(&["events", "--format", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut events = Peer(events);
    let (line, lines) = std::sync::mpsc::channel::<Value>();
    let stdout = BufReader::new(events.0.stdout.take().unwrap());
    std::thread::spawn(move || {
        for text in stdout.lines().map_while(Result::ok) {
            let _ = line.send(serde_json::from_str(&text).unwrap());
        }
    });
    // Until somebody listens.
    eventually("what is pushed is told", 20, || {
        registry.push_image("probe", "1", &[b"probe"]);
        lines.try_recv().ok()
    });
    registry.delete("/v2/probe/manifests/1").is(202);
    let manifest = real_image(&registry, "shop/api", "1.0", 4, "amd64");
    registry.put_manifest("shop/api", "live", MANIFEST, &manifest).is(201);
    registry.push_image("shop/web", "1", &[b"web"]);
    let json = |args: &[&str]| serde_json::from_str::<Value>(&daemon.ok(args)).unwrap();

    let all = json(&["registry", "ls", "shop/", "--format", "json"]);
    assert_eq!(
        (&all[0]["name"], &all[0]["tags"], &all[1]["name"]),
        (&json!("shop/api"), &json!(2), &json!("shop/web"))
    );
    assert_eq!(daemon.ok(&["registry", "ls", "shop/w", "-q"]).trim(), "shop/web");
    let table = daemon.ok(&["registry", "tags", "shop/api"]);
    assert!(table.contains("live") && table.contains(&digest(&manifest)[..19]), "{table}");
    let shown = daemon.ok(&["registry", "inspect", "127.0.0.1:5000/shop/api:live"]);
    assert!(shown.contains("linux/amd64") && shown.contains("seed=4") && shown.contains("1.0 live"), "{shown}");
    let shown = json(&["registry", "inspect", "shop/api:1.0", "--format", "json"]);
    assert_eq!((&shown["digest"], &shown["config"]["os"]), (&json!(digest(&manifest)), &json!("linux")));
    assert_eq!(shown["layers"].as_array().unwrap().len(), 1);
    let missing = daemon.neap(&["registry", "inspect", "shop/api:none"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no manifest none in shop/api"), "{missing:?}");

    // By scripts as well.
    let script = r#"
        local names = {}
        for _, one in registry.repositories "shop/" do table.insert(names, `{one.name} {one.tags}`) end
        print(table.concat(names, ", "))
        for _, tag in registry.tags "shop/api" do assert(time.now() - tag.at < 60 and tag.size > 400000) end
        local image = registry.inspect "shop/api:1.0"
        assert(image.config.architecture == "amd64" and #image.layers == 1)
        assert(registry.gc({ dry_run = true }).unlinked == 0)
        registry.delete "shop/web:1"
        assert(not pcall(registry.inspect, "shop/web:1"))
        assert(registry.scrub().done)
    "#;
    let file = daemon.folder.path().join("images.lua");
    std::fs::write(&file, script).unwrap();
    assert_eq!(daemon.ok(&["run", file.to_str().unwrap()]).trim(), "shop/api 2, shop/web 1");

    // What belonged to a manifest goes once that is gone; what is damaged is seen, and comes anew.
    daemon.ok(&["registry", "rm", &format!("shop/api@{}", digest(&manifest))]);
    let would = json(&["registry", "gc", "--dry-run", "--format", "json"]);
    let before = would["blobs"].as_u64().unwrap();
    assert!(before >= 2, "{would}");
    let done = json(&["registry", "gc", "--format", "json"]);
    assert_eq!((&done["blobs"], &done["size"]), (&json!(before), &would["size"]));
    registry.get("/v2/shop/api/tags/list").is(404);
    assert!(daemon.ok(&["registry", "scrub"]).contains("blobs ("));
    let layer = digest(b"web");
    let path = daemon.data().join("registry/blobs/sha256").join(&layer[7..9]).join(&layer[7..]);
    std::fs::write(&path, b"wub").unwrap();
    let scrubbed = daemon.neap(&["registry", "scrub"]);
    assert!(!scrubbed.status.success() && String::from_utf8_lossy(&scrubbed.stdout).contains(&layer), "{scrubbed:?}");
    registry.head(&format!("/v2/shop/web/blobs/{layer}")).is(404);
    registry.push("shop/web", b"web");
    assert_eq!(registry.get(&format!("/v2/shop/web/blobs/{layer}")).is(200).body, b"web");
    assert!(daemon.neap(&["registry", "scrub"]).status.success());

    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = lines.recv_timeout(std::time::Duration::from_secs(20)).expect("all events come");
        if event["repository"].as_str().is_some_and(|name| name.starts_with("shop/")) {
            seen.push(event);
        }
    }
    assert_eq!((&seen[0]["what"], &seen[0]["subject"]), (&json!("image.pushed"), &json!("shop/api:1.0")));
    assert_eq!((&seen[1]["tag"], &seen[1]["digest"]), (&json!("live"), &json!(digest(&manifest))));
    assert_eq!((&seen[3]["what"], &seen[3]["subject"]), (&json!("image.deleted"), &json!("shop/web:1")));
}

// By TLS, from elsewhere: a token is asked for unless something else is said.
#[test]
fn from_elsewhere_by_tls_with_a_token() {
    if !has_skopeo() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(path("certs")).unwrap();
    for (name, text) in [
        ("cert.pem", made.cert.pem()),
        ("key.pem", made.signing_key.serialize_pem()),
        ("certs/ca.crt", made.cert.pem()),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    let outside = free_port();
    let listen = format!("127.0.0.1:{},0.0.0.0:{outside}", free_port());
    let registry = {
        let port = listen[10..].split(',').next().unwrap().parse().unwrap();
        let mut daemon = support::Daemon::new();
        for (name, value) in [
            ("NEAP_REGISTRY_LISTEN", listen.clone()),
            ("NEAP_REGISTRY_TLS_CERT", path("cert.pem")),
            ("NEAP_REGISTRY_TLS_KEY", path("key.pem")),
        ] {
            daemon.env.push((name.into(), value));
        }
        daemon.up();
        let registry = Registry { daemon, port };
        registry.wait();
        registry
    };
    let manifest = real_image(&registry, "shop/api", "1.0", 5, "amd64");
    let token = registry.daemon.ok(&["token", "create", "laptop"]).trim().to_owned();
    let from = format!("docker://localhost:{outside}/shop/api:1.0");
    let (certs, creds) = (path("certs"), format!("me:{token}"));
    let seen = ok("skopeo", &["inspect", "--raw", "--cert-dir", &certs, "--creds", &creds, &from]);
    assert_eq!(seen.as_bytes(), manifest);
    let refused = run("skopeo", &["inspect", "--raw", "--cert-dir", &certs, &from]);
    assert!(!refused.status.success(), "{refused:?}");
    let to = format!("docker://localhost:{outside}/copy:1");
    let down = format!("dir:{}", path("down"));
    ok("skopeo", &["copy", "--src-cert-dir", &certs, "--src-creds", &creds, &from, &down]);
    let refused = run("skopeo", &["copy", "--dest-cert-dir", &certs, "--dest-creds", &creds, &down, &to]);
    assert!(!refused.status.success(), "a viewer pushes nothing: {refused:?}");
}
