//! A registry's bucket that is lost, changed, left and found again, and hosts that wake up late.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/s3.rs"]
mod s3;
#[path = "support/mod.rs"]
mod support;

use oci::{MANIFEST, Registry, digest, image, noise};
use s3::Bucket;
use support::{eventually, signal};

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

// The same registry in another process, in this bucket or in none.
fn again(registry: &mut Registry, bucket: Option<&Bucket>) {
    registry.daemon.stop();
    registry
        .daemon
        .env
        .retain(|(name, _)| !name.contains("BUCKET") && !name.contains("ENDPOINT") && !name.contains("AWS"));
    registry.daemon.env.extend(bucket.map(Bucket::env).unwrap_or_default());
    registry.daemon.up();
    registry.wait();
}

#[test]
fn one_that_is_left_for_a_while_has_everything_again() {
    let bucket = Bucket::start();
    let mut registry = with(&bucket, &[]);
    registry.push_image("app", "1", &[b"one"]);
    again(&mut registry, None);
    registry.push_image("app", "2", &[b"two"]);
    registry.delete("/v2/app/manifests/1").is(202);
    assert!(registry.daemon.json(&["registry", "stats", "--format", "json"])["replica"].is_null());
    again(&mut registry, Some(&bucket));
    whole(&registry);
    registry.push_image("app", "3", &[b"three"]);
    let second = with(&bucket, &[]);
    assert_eq!(second.get("/v2/app/tags/list").json()["tags"], serde_json::json!(["2", "3"]));
    assert_eq!(second.get(&format!("/v2/app/blobs/{}", digest(b"two"))).is(200).body, b"two");
}

#[test]
fn one_that_is_emptied_is_filled_again() {
    let bucket = Bucket::start();
    let registry = with(&bucket, &[]);
    let manifest = registry.push_image("app", "1", &[b"one"]);
    bucket.objects.lock().unwrap().clear();
    eventually("it is seen, and filled again", 30, || (!bucket.names("snapshot/").is_empty()).then_some(()));
    whole(&registry);
    registry.push_image("app", "2", &[b"two"]);
    let second = with(&bucket, &[]);
    assert_eq!(second.get("/v2/app/manifests/1").is(200).body, manifest);
    assert_eq!(second.get(&format!("/v2/app/blobs/{}", digest(b"two"))).is(200).body, b"two");
}

#[test]
fn an_index_of_a_backup_is_not_the_newest() {
    let bucket = Bucket::start();
    let mut registry = with(&bucket, &[]);
    registry.push_image("app", "1", &[b"one"]);
    registry.daemon.stop();
    let index = registry.daemon.data().join("registry/index.redb");
    let backup = std::fs::read(&index).unwrap();
    again(&mut registry, Some(&bucket));
    whole(&registry);
    for n in 2..6 {
        registry.push_image("app", &n.to_string(), &[&noise(n, 1000)]);
    }
    registry.daemon.stop();
    std::fs::write(&index, backup).unwrap();
    again(&mut registry, Some(&bucket));
    whole(&registry);
    assert_eq!(registry.get("/v2/app/tags/list").json()["tags"], serde_json::json!(["1", "2", "3", "4", "5"]));
    assert_eq!(registry.get(&format!("/v2/app/blobs/{}", digest(&noise(5, 1000)))).is(200).body.len(), 1000);
}

#[test]
fn what_is_damaged_there_comes_anew_with_a_push() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    let layer = noise(1, 5000);
    first.push_image("app", "1", &[&layer]);
    drop(first);
    let hex = digest(&layer)[7..].to_owned();
    let name = bucket.names(&format!("blobs/sha256/{}/{hex}", &hex[..2])).remove(0);
    bucket.objects.lock().unwrap().get_mut(&format!("some/where/{name}")).unwrap().bytes[7] ^= 1;
    let second = with(&bucket, &[]);
    let at = format!("/v2/app/blobs/{}", digest(&layer));
    // Whatever comes of it, it is not what it is called after.
    let answer = oci::ask(second.port, "GET", &at, &[], b"");
    assert!(answer.map_or(true, |answer| answer.status != 200 || answer.body != layer));
    eventually("it is not thought to be there", 10, || (second.head(&at).status == 404).then_some(()));
    second.push_image("app", "1", &[&layer]);
    assert!(second.get(&at).is(200).body == layer);
    let third = with(&bucket, &[]);
    assert!(third.get(&at).is(200).body == layer);
}

#[test]
fn one_that_sleeps_through_it_does_not_write_behind_another() {
    let bucket = Bucket::start();
    let first = with(&bucket, &[]);
    first.push_image("app", "0", &[b"one"]);
    let pid = first.daemon.child.as_ref().unwrap().id();
    signal(pid, "STOP");
    let second = with(&bucket, &[]);
    let manifest = image(b"{\"image\":\"0\"}", &[b"one"]).to_string().into_bytes();
    // So much that nothing is left of what came before, but where it was taken over.
    for n in 0..1600 {
        second.put_manifest("app", &format!("t{}", n % 50), MANIFEST, &manifest).is(201);
    }
    eventually("what is older is gone", 20, || (bucket.names("log/").len() < 1200).then_some(()));
    signal(pid, "CONT");
    let late = first.put_manifest("app", "late", MANIFEST, &manifest);
    assert_eq!(late.status, 503, "{late:?}");
    second.put_manifest("app", "last", MANIFEST, &manifest).is(201);
    let third = with(&bucket, &[]);
    let tags = third.get("/v2/app/tags/list").json();
    assert_eq!(tags["tags"].as_array().unwrap().len(), 52, "{tags}");
    third.get("/v2/app/manifests/late").is(404);
}
