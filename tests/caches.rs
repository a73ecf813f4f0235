//! Copies of other registries: fetched once, served whatever becomes of the other.

#[path = "support/distribution.rs"]
mod distribution;
#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use distribution::Distribution;
use oci::{INDEX, MANIFEST, Registry, ask, descriptor, digest, image, noise, read};
use serde_json::{Value, json};
use support::eventually;
use upstream::{Mode, Upstream};

// A registry, something before it, and one that caches it below `hub`.
struct Tried {
    origin: Registry,
    between: Arc<Upstream>,
    cache: Registry,
}

impl Tried {
    fn new() -> Self {
        Self::below("hub")
    }

    fn below(prefix: &str) -> Self {
        let (origin, cache) = (Registry::start(), Registry::start());
        let between = Upstream::before(origin.port);
        cache.daemon.ok(&["registry", "cache", "set", prefix, &format!("http://127.0.0.1:{}", between.port)]);
        Tried { origin, between, cache }
    }

    fn stats(&self) -> Value {
        self.cache.daemon.json(&["registry", "cache", "ls", "--format", "json"])[0].clone()
    }

    // As clients pull: HEAD by tag, GET by digest, config and layers.
    fn pull(&self, repository: &str, tag: &str) -> Vec<u8> {
        let head = self.cache.head(&format!("/v2/{repository}/manifests/{tag}")).is(200);
        let manifest = self.cache.get(&format!("/v2/{repository}/manifests/{}", head.header("docker-content-digest")));
        let manifest = manifest.is(200).body;
        let read: Value = serde_json::from_slice(&manifest).unwrap();
        let blobs = read["layers"].as_array().into_iter().flatten().chain([&read["config"]]);
        for blob in blobs.filter_map(|blob| blob["digest"].as_str()) {
            let bytes = self.cache.get(&format!("/v2/{repository}/blobs/{blob}")).is(200).body;
            assert_eq!(digest(&bytes), blob);
        }
        manifest
    }
}

#[test]
fn images_are_fetched_once_and_served_without_their_registry() {
    let mut tried = Tried::new();
    let layer = noise(1, 3_000_000);
    let manifest = tried.origin.push_image("shop/api", "1", &[&layer, b"small"]);
    assert_eq!(tried.pull("hub/shop/api", "1"), manifest);
    let asked = tried.between.taken();
    // The tag is asked for once, and each blob.
    assert_eq!(asked.iter().filter(|one| one.contains("/manifests/")).count(), 1, "{asked:?}");
    assert_eq!(asked.iter().filter(|one| one.starts_with("GET") && one.contains("/blobs/")).count(), 3, "{asked:?}");
    // Once more: whether the tag is where it was.
    assert_eq!(tried.pull("hub/shop/api", "1"), manifest);
    assert_eq!(tried.between.taken(), ["HEAD /v2/shop/api/manifests/1"]);
    let stats = tried.stats();
    assert_eq!((&stats["misses"], &stats["stale"], &stats["prefix"]), (&json!(4), &json!(0), &json!("hub")));
    assert!(stats["hits"].as_u64().unwrap() >= 5 && stats["fetched"].as_u64().unwrap() > 3_000_000, "{stats}");

    // A tag that moves is followed; another tag of what is known costs its manifest alone.
    let second = tried.origin.push_image("shop/api", "1", &[&layer, b"other"]);
    assert_eq!(tried.pull("hub/shop/api", "1"), second);
    let asked = tried.between.taken();
    assert!(!asked.iter().any(|one| one.contains(&digest(&layer))), "{asked:?}");
    assert_eq!(tried.cache.get("/v2/hub/shop/api/tags/list").is(200).json()["tags"], json!(["1"]));

    // An index, what it holds, and what says something of it.
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &second)] }).to_string();
    tried.origin.put_manifest("shop/api", "all", INDEX, index.as_bytes()).is(201);
    let got = tried.cache.get("/v2/hub/shop/api/manifests/all").is(200);
    assert_eq!((got.body.as_slice(), got.header("content-type")), (index.as_bytes(), INDEX));
    let mut signature: Value = image(b"{\"image\":\"1\"}", &[]);
    signature["subject"] = descriptor(MANIFEST, &second);
    tried.origin.put_manifest("shop/api", "sig", MANIFEST, signature.to_string().as_bytes()).is(201);
    let referrers = tried.cache.get(&format!("/v2/hub/shop/api/referrers/{}", digest(&second))).is(200).json();
    assert_eq!(referrers["manifests"][0]["digest"], digest(signature.to_string().as_bytes()));

    // Gone: all that was asked for is there, also behind a restart, and says what it is.
    tried.between.set(Mode::Answer(503, ""));
    let stale = tried.cache.get("/v2/hub/shop/api/manifests/1").is(200);
    assert_eq!(stale.body, second);
    assert!(stale.header("warning").starts_with("110 neap"), "{stale:?}");
    assert_eq!(tried.pull("hub/shop/api", "1"), second);
    assert_eq!(tried.cache.get("/v2/hub/shop/api/tags/list").is(200).json()["tags"], json!(["1", "all"]));
    let stats = tried.stats();
    assert!(stats["stale"].as_u64().unwrap() >= 2 && stats["failing"].as_str().unwrap().contains("503"), "{stats}");
    tried.cache.restart();
    assert_eq!(tried.pull("hub/shop/api", "1"), second);
    tried.cache.get("/v2/hub/shop/api/manifests/2").is(502);
    tried.cache.get("/v2/hub/none/manifests/2").is(502);

    // Back again. What is deleted there is no more a tag here; by its digest it is.
    tried.between.set(Mode::Pass);
    tried.cache.restart();
    tried.origin.delete("/v2/shop/api/manifests/1").is(202);
    tried.cache.get("/v2/hub/shop/api/manifests/1").fails(404, "MANIFEST_UNKNOWN");
    tried.cache.get(&format!("/v2/hub/shop/api/manifests/{}", digest(&second))).is(200);
    tried.cache.get("/v2/hub/shop/api/manifests/none").fails(404, "MANIFEST_UNKNOWN");
    tried.cache.get("/v2/hub/none/tags/list").fails(404, "NAME_UNKNOWN");
    tried.cache.get(&format!("/v2/hub/shop/api/blobs/{}", digest(b"none"))).fails(404, "BLOB_UNKNOWN");
}

#[test]
fn one_fetch_serves_all_who_wait_while_it_comes() {
    let tried = Tried::new();
    let layer = noise(2, 8_000_000);
    let manifest = tried.origin.push_image("big", "1", &[&layer]);
    tried.cache.get("/v2/hub/big/manifests/1").is(200);
    tried.between.taken();
    tried.between.set(Mode::Hold(4_000_000));
    let path = format!("/v2/hub/big/blobs/{}", digest(&layer));
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut clients: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = tried.cache.connect();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    // Each has half of it, while the rest is not sent yet.
    for client in &mut clients {
        let mut half = vec![0; 3_000_000];
        client.read_exact(&mut half).unwrap();
        let body = half.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(half[body..], layer[..half.len() - body]);
        assert!(String::from_utf8_lossy(&half[..body]).contains("content-length: 8000000"));
    }
    // How large it is, is known; a part that is there is given; nothing is kept that has not come.
    assert_eq!(tried.cache.head(&path).is(200).header("content-length"), "8000000");
    let part = tried.cache.ask("GET", &path, &[("Range", "bytes=1000-1999")], b"").is(206);
    assert_eq!(part.body, layer[1000..2000]);
    let seen = tried.between.taken();
    assert_eq!(seen, [format!("GET /v2/big/blobs/{}", digest(&layer))]);
    tried.between.set(Mode::Pass);
    for client in &mut clients {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert_eq!(rest[rest.len() - 1_000_000..], layer[7_000_000..]);
    }
    assert_eq!(tried.between.taken(), Vec::<String>::new());
    assert_eq!(tried.pull("hub/big", "1"), manifest);
}

#[test]
fn what_breaks_off_goes_on_and_what_is_wrong_is_not_kept() {
    let tried = Tried::new();
    let layer = noise(3, 5_000_000);
    tried.origin.push_image("a", "1", &[&layer]);
    tried.cache.get("/v2/hub/a/manifests/1").is(200);
    tried.between.taken();
    // It ends too early, again and again: each time the rest is asked for.
    tried.between.set(Mode::Cut(2_000_000));
    let path = format!("/v2/hub/a/blobs/{}", digest(&layer));
    assert_eq!(tried.cache.get(&path).is(200).body, layer);
    let seen = tried.between.taken();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen[1].contains("bytes=") && seen[2].contains("bytes="), "{seen:?}");

    // Without a byte of progress it is given up, and whoever waited gets no whole body.
    let second = noise(4, 100_000);
    tried.origin.push_image("b", "1", &[&second]);
    tried.cache.get("/v2/hub/b/manifests/1").is(200);
    let path = format!("/v2/hub/b/blobs/{}", digest(&second));
    let broken = |path: &str| {
        let mut stream = tried.cache.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    };
    for mode in [Mode::Cut(0), Mode::Wrong] {
        tried.between.set(mode.clone());
        let got = broken(&path);
        let body = got.windows(4).position(|four| four == b"\r\n\r\n").map_or(got.len(), |at| at + 4);
        assert!(got.len() - body < second.len(), "{mode:?}: {} bytes of {}", got.len() - body, second.len());
        // Nobody else has it either.
        assert!(tried.cache.daemon.json(&["registry", "gc", "--dry-run", "--format", "json"])["blobs"] == 0);
    }
    tried.between.set(Mode::Pass);
    assert_eq!(tried.cache.get(&path).is(200).body, second);

    // A manifest that is not what it is called after is not taken.
    let third = tried.origin.push_image("c", "1", &[b"third"]);
    tried.between.set(Mode::Lie);
    tried.cache.get(&format!("/v2/hub/c/manifests/{}", digest(&third))).is(502);
    tried.cache.get("/v2/hub/c/manifests/1").is(502);
    tried.between.set(Mode::Pass);
    assert_eq!(tried.cache.get("/v2/hub/c/manifests/1").is(200).body, third);
}

#[test]
fn an_upstream_that_is_asked_too_much_is_left_alone() {
    let tried = Tried::new();
    let manifest = tried.origin.push_image("a", "1", &[b"layer"]);
    tried.pull("hub/a", "1");
    tried.between.set(Mode::Answer(429, "retry-after: 300\r\n"));
    for _ in 0..5 {
        assert_eq!(tried.pull("hub/a", "1"), manifest);
    }
    tried.cache.get("/v2/hub/b/manifests/1").fails(429, "TOOMANYREQUESTS");
    let seen = tried.between.taken();
    assert_eq!(seen.iter().filter(|one| one.starts_with("HEAD")).count(), 1, "asked once since: {seen:?}");

    // One that says nothing is not waited for where there is a copy.
    let silent = Tried::new();
    silent.origin.push_image("a", "1", &[b"layer"]);
    silent.pull("hub/a", "1");
    silent.between.set(Mode::Silent);
    let started = std::time::Instant::now();
    silent.pull("hub/a", "1");
    silent.pull("hub/a", "1");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    silent.between.set(Mode::Pass);
}

#[test]
fn nobody_pushes_to_a_copy_and_all_else_is_as_it_was() {
    let mut tried = Tried::below("/");
    tried.origin.push_image("base", "1", &[b"base layer"]);
    let own = tried.cache.push_image("own/app", "1", &[b"own layer"]);
    // Both are there, each in its own name; what is somebody's own is not asked for elsewhere.
    tried.pull("base", "1");
    tried.between.taken();
    assert_eq!(tried.pull("own/app", "1"), own);
    tried.cache.get("/v2/own/app/manifests/2").fails(404, "MANIFEST_UNKNOWN");
    assert_eq!(tried.between.taken(), Vec::<String>::new());
    let (config, layer) = (b"{\"image\":\"1\"}".as_slice(), b"mine".as_slice());
    tried.cache.push("base", config);
    tried.cache.push("base", layer);
    let mine = image(config, &[layer]).to_string();
    let refused = tried.cache.put_manifest("base", "2", MANIFEST, mine.as_bytes()).fails(403, "DENIED");
    assert!(String::from_utf8_lossy(&refused.body).contains("push to another name"), "{refused:?}");

    let daemon = &tried.cache.daemon;
    let between = format!("http://127.0.0.1:{}", tried.between.port);
    daemon.ok(&["registry", "cache", "set", "hub/", &between, "--keep", "1s"]);
    tried.cache.ask("POST", "/v2/hub/x/blobs/uploads/", &[], b"").fails(403, "DENIED");
    tried.cache.put_manifest("hub/x", "1", MANIFEST, mine.as_bytes()).fails(403, "DENIED");
    let (_, said) = daemon.fails(&["registry", "cache", "set", "own", &between]);
    assert!(said.contains("own/app was pushed here"), "{said}");
    let (_, said) = daemon.fails(&["registry", "cache", "set", "x", "nginx"]);
    assert!(said.contains("has no host"), "{said}");
    let (_, said) = daemon.fails(&["registry", "cache", "set", "X", "docker.io"]);
    assert!(said.contains("lower-case"), "{said}");
    let (_, said) = daemon.fails(&["registry", "cache", "rm", "none"]);
    assert!(said.contains("\"hub\""), "{said}");

    // The longer prefix; what nobody asks for goes.
    tried.pull("hub/base", "1");
    let gone = eventually("the copy is dropped", 20, || {
        let done = tried.cache.daemon.json(&["registry", "gc", "--format", "json"]);
        (done["copies"] == 1).then_some(done)
    });
    assert_eq!(gone["copies"], 1);
    let names = tried.cache.get("/v2/_catalog").is(200).json()["repositories"].clone();
    assert_eq!(names, json!(["base", "own/app"]));
    // Of a cache that is let go of, what was fetched stays for a while.
    tried.pull("hub/base", "1");
    tried.cache.daemon.ok(&["registry", "cache", "rm", "hub", "/"]);
    tried.cache.restart();
    tried.between.set(Mode::Answer(500, ""));
    tried.pull("hub/base", "1");
    tried.pull("base", "1");
    assert_eq!(tried.cache.daemon.json(&["registry", "cache", "ls", "--format", "json"]), json!([]));

    // The same by scripts.
    let file = tried.cache.daemon.data().join("caches.lua");
    let text = format!(
        "local cache = registry.set_cache('hub', {{ upstream = '{between}', keep = '2d' }})\n\
         print(cache.prefix, cache.keep, #registry.caches(), registry.caches()[1].hits)\n\
         registry.remove_cache 'hub'\nprint(#registry.caches())\n\
         print(pcall(registry.set_cache, 'hub', {{ upstream = '{between}', kept = 1 }}))"
    );
    std::fs::write(&file, text).unwrap();
    let said = tried.cache.daemon.ok(&["run", file.to_str().unwrap()]);
    assert!(said.starts_with("hub\t2d\t1\t0\n0\nfalse\t") && said.contains("kept"), "{said}");
}

#[test]
fn upstreams_are_told_who_asks() {
    // By a token that is got for a name and a password.
    let origin = Registry::with(&[("NEAP_REGISTRY_ACCESS", "token")]);
    let secret = origin.daemon.ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();
    let who = format!("Bearer {secret}");
    let push = |path: &str, body: &[u8], method: &str| {
        let headers = [("Authorization", who.as_str()), ("Content-Type", MANIFEST)];
        origin.ask(method, path, &headers, body).is(201);
    };
    let config = b"{}".as_slice();
    push(&format!("/v2/a/blobs/uploads/?digest={}", digest(config)), config, "POST");
    let manifest = image(config, &[]).to_string();
    push("/v2/a/manifests/1", manifest.as_bytes(), "PUT");
    let cache = Registry::start();
    let at = format!("127.0.0.1:{}", origin.port);
    cache.daemon.ok(&["registry", "cache", "set", "corp", &at]);
    let refused = cache.get("/v2/corp/a/manifests/1").fails(403, "DENIED");
    assert!(String::from_utf8_lossy(&refused.body).contains("no token"), "{refused:?}");
    login(&cache, &at, "ci", &secret);
    assert_eq!(cache.get("/v2/corp/a/manifests/1").is(200).body, manifest.as_bytes());
    assert_eq!(cache.get(&format!("/v2/corp/a/blobs/{}", digest(config))).is(200).body, config);
    // A login that is not good any more: what is kept is served.
    origin.daemon.ok(&["token", "rm", "ci"]);
    cache.get("/v2/corp/a/manifests/1").is(200);
    let log = cache.daemon.log();
    assert!(!log.contains(&secret), "the log has a password");
}

fn login(cache: &Registry, at: &str, user: &str, password: &str) {
    let mut command = cache.daemon.command(&["registry", "login", at, "-u", user, "--password-stdin", "--unverified"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

// Debian's registry, with a name and a password, as the upstream of ours; skopeo pulls through.
#[test]
fn another_registry_is_cached_by_name_and_password() {
    let has = |program: &str| {
        let is_there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
        assert!(is_there || std::env::var("CI").as_deref() != Ok("true"), "{program} is not installed");
        if !is_there {
            println!("skipped: {program} is not installed");
        }
        is_there
    };
    if !distribution::is_there() || !has("skopeo") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let peer = Distribution::start(folder.path(), true);
    let port = peer.port;

    let own = Registry::start();
    let manifest = own.push_image("team/app", "1.0", &[&noise(7, 2_000_000), b"two"]);
    let skopeo = |args: &[&str]| {
        let output = Command::new("skopeo").args(args).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{args:?} {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let from = format!("docker://127.0.0.1:{}/team/app:1.0", own.port);
    let to = format!("docker://127.0.0.1:{port}/team/app:1.0");
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    skopeo(&[&["copy", "--preserve-digests"], &insecure[..], &["--dest-creds", "neap:secret", &from, &to]].concat());

    let at = format!("127.0.0.1:{port}");
    own.daemon.ok(&["registry", "cache", "set", "old", &format!("{at}/team")]);
    own.get("/v2/old/app/manifests/1.0").fails(403, "DENIED");
    login(&own, &at, "neap", "secret");
    let through = format!("docker://127.0.0.1:{}/old/app", own.port);
    let tags: Value = serde_json::from_str(&skopeo(&["list-tags", "--tls-verify=false", &through])).unwrap();
    assert_eq!(tags["Tags"], json!(["1.0"]));
    let place = format!("dir:{}", folder.path().join("pulled").display());
    skopeo(&["copy", "--src-tls-verify=false", &format!("{through}:1.0"), &place]);
    assert_eq!(std::fs::read(folder.path().join("pulled/manifest.json")).unwrap(), manifest);
    let listed = own.daemon.ok(&["registry", "cache", "ls"]);
    assert!(listed.contains("old/") && listed.contains(&format!("{at}/team")) && listed.contains("ok"), "{listed}");
    let mut stream = own.connect();
    stream.write_all(b"HEAD /v2/old/app/manifests/1.0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let head = read(&mut BufReader::new(stream), true).unwrap().is(200);
    assert_eq!(head.header("docker-content-digest"), digest(&manifest));
    assert_eq!(ask(own.port, "GET", "/v2/old/app/manifests/1.0", &[], b"").unwrap().is(200).body, manifest);
}

#[test]
fn what_is_pushed_is_nobodys_copy_and_what_is_elsewhere_is_not_told() {
    let mut tried = Tried::below("/");
    let manifest = tried.origin.push_image("base", "1", &[b"base layer"]);
    tried.pull("base", "1");
    let daemon = &tried.cache.daemon;
    // A cache of everything leaves quotas and pruning as they are, for what is somebody's own.
    daemon.ok(&["registry", "rule", "set", "own/*", "--quota", "1KB"]);
    let large = noise(9, 5000);
    let at = format!("/v2/own/app/blobs/uploads/?digest={}", digest(&large));
    tried.cache.ask("POST", &at, &[], &large).fails(403, "DENIED");
    tried.cache.push_image("own/app", "old", &[b"small"]);
    let pruned = daemon.json(&["registry", "prune", "*", "--keep", "0", "--format", "json"]);
    assert_eq!((&pruned["images"][0]["tag"], pruned["images"].as_array().unwrap().len()), (&json!("old"), 1));

    // A manifest of the upstream names what is here, in a repository that is nobody else's business, and not there.
    let secret = noise(10, 5000);
    tried.cache.push("secret/app", &secret);
    tried.cache.push("secret/app", b"{}");
    let own = image(b"{}", &[&secret]).to_string();
    tried.cache.put_manifest("secret/app", "1", MANIFEST, own.as_bytes()).is(201);
    let named = image(b"{\"image\":\"1\"}", &[]);
    let mut lie: Value = named.clone();
    lie["layers"] =
        json!([{ "mediaType": "x/y", "digest": digest(&secret), "size": secret.len(), "urls": ["http://elsewhere/"] }]);
    let lie = lie.to_string();
    tried.origin.put_manifest("base", "lie", MANIFEST, lie.as_bytes()).is(201);
    assert_eq!(tried.cache.get("/v2/base/manifests/lie").is(200).body, lie.as_bytes());
    tried.cache.get(&format!("/v2/base/blobs/{}", digest(&secret))).fails(404, "BLOB_UNKNOWN");

    // A page of some proxy is no manifest: what is kept is served.
    tried.between.set(Mode::Answer(200, "content-type: text/html\r\n"));
    let stale = tried.cache.get("/v2/base/manifests/1").is(200);
    assert!(stale.body == manifest && stale.header("warning").contains("no manifest"), "{stale:?}");
    tried.between.set(Mode::Pass);

    // Without the cache somebody pushes what was a copy: it is theirs, and no collection takes it.
    daemon.ok(&["registry", "cache", "set", "/", &format!("http://127.0.0.1:{}", tried.between.port), "--keep", "1s"]);
    tried.pull("base", "1");
    daemon.ok(&["registry", "cache", "rm", "/"]);
    tried.cache.put_manifest("base", "mine", MANIFEST, &manifest).is(201);
    daemon.ok(&["registry", "cache", "set", "/", &format!("http://127.0.0.1:{}", tried.between.port), "--keep", "1s"]);
    eventually("the other copy is dropped", 20, || {
        let done = daemon.json(&["registry", "gc", "--format", "json"]);
        (done["copies"].as_u64().unwrap() >= 1).then_some(())
    });
    assert_eq!(tried.cache.get("/v2/base/manifests/mine").is(200).body, manifest);
    tried.cache.restart();
    assert_eq!(tried.cache.get("/v2/base/manifests/mine").is(200).body, manifest);
}

// As containerd asks: by the names of the other registry, which it says.
#[test]
fn a_mirror_is_asked_by_the_names_of_its_registry() {
    let tried = Tried::new();
    let manifest = tried.origin.push_image("shop/api", "1", &[b"layer"]);
    let ns = format!("127.0.0.1:{}", tried.between.port);
    let at = |path: &str| tried.cache.get(&format!("/v2/shop/api/{path}?ns={ns}"));
    assert_eq!(
        tried.cache.head(&format!("/v2/shop/api/manifests/1?ns={ns}")).is(200).header("docker-content-digest"),
        digest(&manifest)
    );
    assert_eq!(at(&format!("manifests/{}", digest(&manifest))).is(200).body, manifest);
    assert_eq!(at(&format!("blobs/{}", digest(b"layer"))).is(200).body, b"layer");
    // It is the copy that others pull, and none of the registry's own.
    assert_eq!(tried.cache.get("/v2/hub/shop/api/manifests/1").is(200).body, manifest);
    tried.cache.get("/v2/shop/api/manifests/1").is(404);
    // Of a registry that is not cached, nothing: whoever asks goes there.
    tried.cache.get("/v2/shop/api/manifests/1?ns=docker.io").fails(404, "NAME_UNKNOWN");
    tried.cache.get("/v2/shop/api/manifests/1?ns=%2F%2F").fails(404, "NAME_UNKNOWN");
    // A part of a registry is asked for what is in it.
    tried.cache.daemon.ok(&["registry", "cache", "set", "part", &format!("http://{ns}/shop")]);
    at(&format!("manifests/{}", digest(&manifest))).is(200);
    let known = tried.cache.get("/v2/_catalog").json();
    assert_eq!(known["repositories"], json!(["hub/shop/api", "part/api"]));
    // Rules are for what it is called here.
    tried.cache.daemon.ok(&["registry", "rule", "set", "part/*", "--pull", "known"]);
    at("manifests/1").fails(401, "UNAUTHORIZED");
}
