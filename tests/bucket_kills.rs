//! kill -9 on the way to a registry's bucket, and from it: what was acknowledged is there, and what was half done is mended.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/s3.rs"]
mod s3;
#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;

use oci::{MANIFEST, Registry, digest, image, noise};
use s3::Bucket;
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

#[test]
fn a_kill_on_the_way_to_taking_it_over_is_mended() {
    for point in ["registry.before-claim", "registry.after-claim", "registry.before-loaded"] {
        let bucket = Bucket::start();
        let mut first = Registry::start();
        let manifest = first.push_image("app", "1", &[b"one"]);
        first.daemon.kill();
        first.daemon.env.extend(bucket.env());
        let dies = |registry: &mut Registry| {
            registry.daemon.env.push(("NEAP_FAULT".into(), point.into()));
            registry.daemon.spawn();
            eventually("it is killed on the way", 30, || registry.daemon.child.as_mut().unwrap().try_wait().unwrap());
            registry.daemon.env.retain(|(name, _)| name != "NEAP_FAULT");
            registry.daemon.kill();
        };
        if point == "registry.before-claim" {
            dies(&mut first);
        }
        first.daemon.up();
        first.wait();
        whole(&first);
        assert_eq!(first.get("/v2/app/manifests/1").is(200).body, manifest);
        drop(first);
        let mut second = Registry { daemon: Daemon::new(), port: support::free_port() };
        second.daemon.env.extend(bucket.env());
        second.daemon.env.push(("NEAP_REGISTRY_LISTEN".into(), format!("127.0.0.1:{}", second.port)));
        if point != "registry.before-claim" {
            dies(&mut second);
        }
        second.daemon.up();
        second.wait();
        whole(&second);
        assert_eq!(second.get("/v2/app/manifests/1").is(200).body, manifest, "{point}");
        assert_eq!(second.get(&format!("/v2/app/blobs/{}", digest(b"one"))).is(200).body, b"one");
        second.push_image("app", "2", &[b"two"]);
    }
}

#[test]
fn what_is_not_whole_yet_is_nobody_elses() {
    let mut first = Registry::start();
    let manifest = first.push_image("app", "1", &[b"one"]);
    let bucket = Bucket::start();
    // What it brings does not get there.
    first.daemon.kill();
    first.daemon.env.extend(bucket.env());
    first.daemon.env.push(("NEAP_FAULT".into(), "registry.before-blob-there:2".into()));
    first.daemon.spawn();
    eventually("it is killed on the way", 30, || first.daemon.child.as_mut().unwrap().try_wait().unwrap());
    let second = Registry::with(&bucket.env().iter().map(|(a, b)| (a.as_str(), b.as_str())).collect::<Vec<_>>());
    eventually("it is told", 30, || {
        let answer = second.get("/v2/app/manifests/1");
        String::from_utf8_lossy(&answer.body).contains("not hold a whole registry yet").then_some(())
    });
    first.daemon.env.retain(|(name, _)| name != "NEAP_FAULT");
    first.daemon.kill();
    first.daemon.up();
    first.wait();
    whole(&first);
    assert_eq!(first.get("/v2/app/manifests/1").is(200).body, manifest);
    first.push_image("app", "2", &[b"two"]);
}

// kill -9 at points of the way to the bucket: what was acknowledged is there for an empty host.
#[test]
fn what_is_acknowledged_is_there_after_a_kill() {
    for point in [
        "registry.before-segment:4",
        "registry.after-segment:4",
        "registry.before-blob-there:7",
        "registry.before-settled:4",
        "registry.after-commit:30",
    ] {
        let bucket: Arc<Bucket> = Bucket::start();
        let registry = with(&bucket, &[("NEAP_FAULT", point)]);
        let mut told = Vec::new();
        'pushes: for n in 0..200_u64 {
            let (config, layer) = (format!("{{\"n\":{n}}}").into_bytes(), noise(n, 3000));
            for bytes in [&config, &layer] {
                let at = format!("/v2/app/blobs/uploads/?digest={}", digest(bytes));
                match oci::ask(registry.port, "POST", &at, &[], bytes) {
                    Ok(answer) => _ = answer.is(201),
                    Err(_) => break 'pushes,
                }
            }
            let manifest = image(&config, &[&layer]).to_string().into_bytes();
            let at = format!("/v2/app/manifests/{n}");
            match oci::ask(registry.port, "PUT", &at, &[("Content-Type", MANIFEST)], &manifest) {
                Ok(answer) => _ = answer.is(201),
                Err(_) => break,
            }
            told.push((at, manifest, layer));
        }
        assert!(
            registry.daemon.log().contains(&format!("fault point {}", point.split(':').next().unwrap())),
            "{point}"
        );
        drop(registry);
        let second = with(&bucket, &[]);
        for (at, manifest, layer) in &told {
            assert_eq!(second.get(at).is(200).body, *manifest, "{point}");
            assert!(second.get(&format!("/v2/app/blobs/{}", digest(layer))).is(200).body == *layer, "{point}");
        }
        // Nothing is named that is not there.
        let tags = second.get("/v2/app/tags/list");
        if tags.status == 200 {
            for tag in tags.json()["tags"].as_array().unwrap() {
                let manifest = second.get(&format!("/v2/app/manifests/{}", tag.as_str().unwrap())).is(200).json();
                let layer = manifest["layers"][0]["digest"].as_str().unwrap();
                assert_eq!(digest(&second.get(&format!("/v2/app/blobs/{layer}")).is(200).body), layer, "{point}");
            }
        }
    }
}
