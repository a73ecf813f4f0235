//! A registry that is kept in a bucket of S3 as well: what is acknowledged is there, and an empty host finds it.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/s3.rs"]
mod s3;
#[path = "support/mod.rs"]
mod support;

use std::sync::atomic::Ordering;

use oci::{INDEX, MANIFEST, Registry, descriptor, digest, image, noise};
use s3::{Bucket, Mode};
use support::{Daemon, eventually};

fn with(bucket: &Bucket, env: &[(&str, &str)]) -> Registry {
    let mut all: Vec<(String, String)> = bucket.env();
    all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let registry = Registry::with(&all);
    whole(&registry);
    registry
}

fn stats(registry: &Registry) -> serde_json::Value {
    registry.daemon.json(&["registry", "stats", "--format", "json"])["replica"].clone()
}

fn whole(registry: &Registry) {
    eventually("the bucket has everything", 30, || (stats(registry)["state"] == "whole").then_some(()));
}

fn blob(bucket: &Bucket, digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:").unwrap();
    !bucket.names(&format!("blobs/sha256/{}/{hex}", &hex[..2])).is_empty()
}

#[test]
fn what_is_pushed_is_in_the_bucket_and_an_empty_host_finds_it() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    // One that is sent in parts.
    let large = noise(1, 40 << 20);
    let small = noise(2, 100_000);
    let manifest = first.push_image("shop/api", "1.0", &[&large, &small]);
    for bytes in [&large, &small, &b"{\"image\":\"1.0\"}".to_vec()] {
        assert!(blob(&bucket, &digest(bytes)));
    }
    let other = first.push_image("shop/web", "2.0", &[&small]);
    let index =
        serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &manifest)] });
    first.put_manifest("shop/api", "all", INDEX, index.to_string().as_bytes()).is(201);
    let mut signed = image(b"{\"image\":\"1.0\"}", &[]);
    signed["subject"] = descriptor(MANIFEST, &manifest);
    first.put_manifest("shop/api", "signature", MANIFEST, signed.to_string().as_bytes()).is(201);
    first.put_manifest("shop/api", "gone", MANIFEST, &manifest).is(201);
    first.delete("/v2/shop/api/manifests/gone").is(202);
    first.delete(&format!("/v2/shop/web/manifests/{}", digest(&other))).is(202);
    first.daemon.ok(&["registry", "rule", "set", "shop/*", "--immutable", "v*"]);
    first.daemon.ok(&["registry", "cache", "set", "hub", "docker.io"]);
    let (port, told) = (first.port, stats(&first));
    assert_eq!(told["waiting"], 0, "{told}");
    assert!(told["sent"].as_u64().unwrap() > 40 << 20, "{told}");
    assert!(first.get("/metrics").is(200).body.windows(27).any(|part| part == b"neap_registry_bucket_whole "));
    drop(first);

    let second = with(&bucket, &[]);
    assert_ne!(second.port, port);
    assert_eq!(second.get("/v2/shop/api/tags/list").json()["tags"], serde_json::json!(["1.0", "all", "signature"]));
    assert_eq!(second.get("/v2/shop/api/manifests/1.0").is(200).body, manifest);
    second.get("/v2/shop/web/manifests/2.0").is(404);
    let referrers = second.get(&format!("/v2/shop/api/referrers/{}", digest(&manifest))).json();
    assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1);
    let at = format!("/v2/shop/api/blobs/{}", digest(&large));
    second.head(&at).is(200);
    // It is not here yet, and comes: a part of it, and all.
    assert_eq!(second.ask("GET", &at, &[("Range", "bytes=1000-1999")], b"").is(206).body, large[1000..2000]);
    assert!(second.get(&at).is(200).body == large);
    assert_eq!(second.get(&at).is(200).body.len(), large.len());
    let rules = second.daemon.json(&["registry", "rule", "ls", "--format", "json"]);
    assert_eq!(rules[0]["repositories"], "shop/*");
    assert_eq!(second.daemon.json(&["registry", "cache", "ls", "--format", "json"])[0]["prefix"], "hub");
    // What is there is not sent again, also where it is of another repository.
    let before = bucket.names("blobs/");
    second.push_image("shop/api", "3.0", &[&small]);
    assert!(bucket.names("blobs/").len() == before.len() + 1);
    assert_eq!(
        second.daemon.json(&["registry", "inspect", "shop/api:1.0", "--format", "json"])["config"]["image"],
        "1.0"
    );
}

#[test]
fn whoever_was_taken_over_from_serves_nothing_more() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    let manifest = first.push_image("app", "1", &[b"one"]);
    let second = with(&bucket, &[]);
    assert_eq!(second.get("/v2/app/manifests/1").is(200).body, manifest);
    // It finds out with the next push, which is not acknowledged.
    let config = first.push("app", b"{}");
    assert_eq!(config, digest(b"{}"));
    let late = image(b"{}", &[]).to_string().into_bytes();
    let refused = first.put_manifest("app", "late", MANIFEST, &late).is(503);
    let why = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(why.contains("another host has it") || why.contains("over"), "{why}");
    eventually("it does not serve", 10, || (first.get("/v2/app/manifests/1").status == 503).then_some(()));
    assert_eq!(stats(&first)["state"], "lost");
    second.get("/v2/app/manifests/late").is(404);
    second.push_image("app", "2", &[b"two"]);
    // It touches nothing there any more.
    bucket.age("blobs/sha256/00/", "00".repeat(32) + ".abc", 2 * 24 * 60 * 60);
    first.daemon.fails(&["registry", "scrub"]);
    assert_eq!(bucket.names("blobs/sha256/00/0000").len(), 1);
    // Started again it does not take it back by itself.
    let mut first = first;
    first.restart();
    eventually("it is told whose it is", 20, || (stats(&first)["state"] == "lost").then_some(()));
    let why = first.get("/v2/app/manifests/1").is(503);
    assert!(String::from_utf8_lossy(&why.body).contains("empty folder"), "{why:?}");
    second.push_image("app", "3", &[b"three"]);
    assert_eq!(second.get("/v2/app/tags/list").json()["tags"], serde_json::json!(["1", "2", "3"]));
}

#[test]
fn one_at_which_nothing_happens_finds_out_as_well() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    first.push_image("app", "1", &[b"one"]);
    let second = with(&bucket, &[]);
    eventually("it does not serve", 30, || (first.get("/v2/app/manifests/1").status == 503).then_some(()));
    second.get("/v2/app/manifests/1").is(200);
}

#[test]
fn what_comes_only_in_part_is_not_served() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    let manifest = first.push_image("app", "1", &[b"one"]);
    drop(first);
    // What follows the snapshot is read once before it is taken over, and not again.
    bucket.taken();
    bucket.set(Mode::Unread("/log/"));
    let second = Registry::with(&bucket.env().iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>());
    eventually("it is taken over", 30, || {
        bucket.taken().iter().any(|line| line.starts_with("PUT") && line.contains("/log/")).then_some(())
    });
    bucket.set(Mode::Down);
    for _ in 0..20 {
        second.get("/v2/app/manifests/1").is(503);
        second.get("/v2/app/tags/list").is(503);
        let put = second.put_manifest("app", "2", MANIFEST, &manifest);
        assert_eq!(put.status, 503, "{put:?}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    bucket.set(Mode::Pass);
    whole(&second);
    assert_eq!(second.get("/v2/app/manifests/1").is(200).body, manifest);
}

#[test]
fn a_bucket_that_does_not_answer_keeps_nobody_from_pulling() {
    let bucket = Bucket::start();
    let mut registry = with(&bucket, &[]);
    let manifest = registry.push_image("app", "1", &[b"one"]);
    bucket.set(Mode::Down);
    registry.push("app", b"{}");
    let late = image(b"{}", &[]).to_string().into_bytes();
    registry.put_manifest("app", "late", MANIFEST, &late).is(503);
    assert_eq!(registry.get("/v2/app/manifests/1").is(200).body, manifest);
    registry.restart();
    assert_eq!(registry.get("/v2/app/manifests/1").is(200).body, manifest);
    assert_eq!(registry.get(&format!("/v2/app/blobs/{}", digest(b"one"))).is(200).body, b"one");
    eventually("it says why", 20, || {
        let told = stats(&registry);
        (told["state"] == "waiting" && told["why"].as_str()?.contains("s3://bucket")).then_some(())
    });
    registry.put_manifest("app", "late", MANIFEST, &late).is(503);
    bucket.set(Mode::Pass);
    whole(&registry);
    registry.put_manifest("app", "late", MANIFEST, &late).is(201);
    // An empty host that cannot ask says so, and not that there is nothing.
    bucket.set(Mode::Down);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bucket-watch.lua");
    registry.daemon.ok(&["script", "push", "bucket-watch", script]);
    registry.push("app", b"{ }");
    eventually("it is seen", 40, || {
        registry.daemon.ok(&["cron", "run", "bucket-watch"]);
        registry.daemon.log().contains("s3://bucket/some/where is whole: s3://").then_some(())
    });
    let mut env = bucket.env();
    env.push(("NEAP_REGISTRY_GRACE".into(), "1h".into()));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let empty = Registry::with(&env);
    empty.get("/v2/app/manifests/1").is(503);
    empty.get("/v2/app/tags/list").is(503);
    empty.get("/v2/").is(200);
    bucket.set(Mode::Pass);
    whole(&empty);
    assert_eq!(empty.get("/v2/app/manifests/late").is(200).body, late);
}

#[test]
fn what_was_here_before_is_brought_there_while_pushes_go_on() {
    let mut registry = Registry::start();
    let manifests: Vec<Vec<u8>> =
        (0..60).map(|n| registry.push_image(&format!("app{}", n % 7), &format!("{n}"), &[&noise(n, 5000)])).collect();
    let bucket = Bucket::start();
    bucket.set(Mode::Hold);
    registry.daemon.kill();
    registry.daemon.env.extend(bucket.env());
    registry.daemon.up();
    registry.wait();
    assert_ne!(stats(&registry)["state"], "whole");
    assert_eq!(registry.get("/v2/app0/manifests/0").is(200).body, manifests[0]);
    bucket.set(Mode::Pass);
    whole(&registry);
    registry.push_image("app0", "after", &[b"after"]);
    // Killed on the way it goes on: what is there stays there.
    drop(registry);
    let second = with(&bucket, &[]);
    for (n, manifest) in manifests.iter().enumerate() {
        assert_eq!(second.get(&format!("/v2/app{}/manifests/{n}", n % 7)).is(200).body, *manifest);
        assert_eq!(
            second.get(&format!("/v2/app{}/blobs/{}", n % 7, digest(&noise(n as u64, 5000)))).is(200).body.len(),
            5000
        );
    }
    second.get("/v2/app0/manifests/after").is(200);
}

#[test]
fn what_takes_too_much_of_the_disk_goes_and_comes_again() {
    let bucket = Bucket::start();
    let registry = with(&bucket, &[("NEAP_REGISTRY_LOCAL", "3MB")]);
    let layers: Vec<Vec<u8>> = (0..8).map(|n| noise(100 + n, 1_000_000)).collect();
    for (n, layer) in layers.iter().enumerate() {
        registry.push_image("app", &n.to_string(), &[layer]);
    }
    let here = || {
        let folder = registry.daemon.data().join("registry/blobs/sha256");
        let files =
            std::fs::read_dir(folder).unwrap().flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    eventually("what is too much goes", 60, || (here() <= 3_000_000).then_some(()));
    assert!(stats(&registry)["evicted"].as_u64().unwrap() >= 5);
    let sent = bucket.sent.load(Ordering::Relaxed);
    for layer in &layers {
        assert!(registry.get(&format!("/v2/app/blobs/{}", digest(layer))).is(200).body == *layer);
    }
    assert!(bucket.sent.load(Ordering::Relaxed) >= sent + 5_000_000);
    // Twenty who want one that is not here get it, and it is fetched once.
    eventually("what is too much goes again", 60, || (here() <= 3_000_000).then_some(()));
    let folder = registry.daemon.data().join("registry/blobs/sha256");
    let gone = layers.iter().find(|layer| {
        let name = digest(layer);
        !folder.join(&name[7..9]).join(&name[7..]).exists()
    });
    let gone = gone.unwrap();
    let before = bucket.sent.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(registry.get(&format!("/v2/app/blobs/{}", digest(gone))).is(200).body == *gone));
        }
    });
    assert_eq!(bucket.sent.load(Ordering::Relaxed) - before, 1_000_000);
    // The same through a scrub, and where the bucket has lost one that is here.
    registry.daemon.ok(&["registry", "scrub"]);
    let hex = digest(gone)[7..].to_owned();
    let named = || bucket.names(&format!("blobs/sha256/{}/{hex}", &hex[..2]));
    let before = named();
    assert_eq!(before.len(), 1);
    assert!(bucket.objects.lock().unwrap().remove(&format!("some/where/{}", before[0])).is_some());
    registry.daemon.ok(&["registry", "scrub"]);
    assert_eq!(named().len(), 1, "it is brought there again");
    // What belongs to nothing, and has done so for long, goes; what is young may be somebody's.
    bucket.age("blobs/sha256/00/", "00".repeat(32) + ".abc", 2 * 24 * 60 * 60);
    bucket.age("blobs/sha256/00/", "00".repeat(32) + ".new", 60);
    registry.daemon.ok(&["registry", "scrub"]);
    let left = bucket.names("blobs/sha256/00/0000");
    assert!(left.len() == 1 && left[0].ends_with(".new"), "{left:?}");
}

#[test]
fn an_answer_that_is_lost_is_no_other_host() {
    let bucket = Bucket::start();
    let registry = with(&bucket, &[]);
    registry.push_image("app", "1", &[b"one"]);
    let manifest = image(b"{\"image\":\"1\"}", &[b"one"]).to_string().into_bytes();
    bucket.set(Mode::Deaf);
    std::thread::scope(|scope| {
        let push = scope.spawn(|| registry.put_manifest("app", "2", MANIFEST, &manifest));
        eventually("it tries", 20, || (bucket.names("log/").len() >= 3).then_some(()));
        bucket.set(Mode::Pass);
        push.join().unwrap().is(201);
    });
    let second = with(&bucket, &[]);
    assert_eq!(second.get("/v2/app/manifests/2").is(200).body, manifest);
}

#[test]
fn many_changes_become_a_snapshot_and_what_is_older_goes() {
    let bucket = Bucket::start();
    let registry = with(&bucket, &[]);
    registry.push_image("app", "0", &[b"one"]);
    let manifest = image(b"{\"image\":\"0\"}", &[b"one"]).to_string().into_bytes();
    for n in 1..1200 {
        registry.put_manifest("app", &format!("t{}", n % 50), MANIFEST, &manifest).is(201);
    }
    eventually("snapshots are written", 20, || {
        let (log, snapshots) = (bucket.names("log/").len(), bucket.names("snapshot/").len());
        (snapshots == 2 && log < 1100).then_some(())
    });
    // One that is damaged is not the only one.
    let last = bucket.names("snapshot/").pop().unwrap();
    bucket.objects.lock().unwrap().get_mut(&format!("some/where/{last}")).unwrap().bytes.truncate(100);
    registry.put_manifest("app", "last", MANIFEST, &manifest).is(201);
    let second = with(&bucket, &[]);
    assert_eq!(second.get("/v2/app/tags/list").json()["tags"].as_array().unwrap().len(), 52);
    second.get("/v2/app/manifests/last").is(200);
    assert_eq!(second.get(&format!("/v2/app/blobs/{}", digest(b"one"))).is(200).body, b"one");
}

#[test]
fn what_nobody_needs_goes_from_the_bucket_as_well() {
    let bucket = Bucket::start();
    let registry = with(&bucket, &[("NEAP_REGISTRY_GRACE", "1s")]);
    let manifest = registry.push_image("app", "1", &[b"one", b"both"]);
    registry.push_image("app", "2", &[b"two", b"both"]);
    registry.delete(&format!("/v2/app/manifests/{}", digest(&manifest))).is(202);
    eventually("it is not needed any more", 20, || {
        registry.daemon.ok(&["registry", "gc"]);
        (!blob(&bucket, &digest(b"one"))).then_some(())
    });
    assert!(blob(&bucket, &digest(b"two")) && blob(&bucket, &digest(b"both")));
    // It comes again.
    registry.push_image("app", "1", &[b"one", b"both"]);
    assert!(blob(&bucket, &digest(b"one")));
    let second = with(&bucket, &[]);
    assert_eq!(second.get(&format!("/v2/app/blobs/{}", digest(b"one"))).is(200).body, b"one");
}

#[test]
fn what_cannot_be_is_said() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    first.push_image("app", "1", &[b"one"]);
    // Images of its own are not lost for those of a bucket.
    let mut other = Registry::start();
    let manifest = other.push_image("other", "1", &[b"two"]);
    other.daemon.kill();
    other.daemon.env.extend(bucket.env());
    other.daemon.up();
    other.wait();
    let refused = eventually("it is refused", 20, || {
        let answer = other.get("/v2/other/manifests/1");
        String::from_utf8_lossy(&answer.body).contains("images of its own").then_some(answer)
    });
    assert_eq!(refused.status, 503);
    assert_eq!(stats(&other)["state"], "lost");
    other.daemon.kill();
    other.daemon.env.retain(|(name, _)| !name.contains("BUCKET") && !name.contains("ENDPOINT"));
    other.daemon.up();
    other.wait();
    assert_eq!(other.get("/v2/other/manifests/1").is(200).body, manifest);
    let fails = |env: &[(&str, &str)], words: &str| {
        let mut daemon = Daemon::new();
        daemon.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        daemon.spawn();
        let status = daemon.child.as_mut().unwrap().wait().unwrap();
        assert!(!status.success() && daemon.log().contains(words), "{words}: {}", daemon.log());
    };
    fails(&[("NEAP_REGISTRY_BUCKET", "http://x")], "s3://BUCKET");
    fails(&[("NEAP_REGISTRY_BUCKET", "s3://images"), ("NEAP_REGISTRY_ENDPOINT", "localhost:9000")], "is no address");
    fails(&[("NEAP_REGISTRY_LOCAL", "1GB")], "--registry-bucket");
}

#[test]
fn a_bucket_without_conditions_is_told_of() {
    let bucket = Bucket::start();
    bucket.set(Mode::Unconditional);
    let registry = with(&bucket, &[]);
    registry.push_image("app", "1", &[b"one"]);
    assert!(registry.daemon.log().contains("If-None-Match"), "{}", registry.daemon.log());
}
