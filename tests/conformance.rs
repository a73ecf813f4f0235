//! The cases of the distribution specification's conformance suite that `oci.rs` does not have: each as a client would ask it.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use oci::{Answer, INDEX, MANIFEST, Registry, descriptor, digest, image, long_digest, noise};
use serde_json::{Value, json};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn patch(registry: &Registry, at: &str, range: &str, bytes: &[u8]) -> Answer {
    registry.ask("PATCH", at, &[("Content-Range", range), ("Content-Type", "application/octet-stream")], bytes)
}

fn put(registry: &Registry, at: &str, digest: &str, headers: &[(&str, &str)], bytes: &[u8]) -> Answer {
    registry.ask("PUT", &format!("{at}?digest={digest}"), headers, bytes)
}

// As the one of an index of its own, by another algorithm.
fn long(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": long_digest(bytes), "size": bytes.len() })
}

#[test]
fn what_is_not_there() {
    let registry = Registry::start();
    let never = digest(b"never");
    registry.get(&format!("/v2/app/manifests/{never}")).fails(404, "MANIFEST_UNKNOWN");
    registry.head(&format!("/v2/app/manifests/{never}")).is(404);
    registry.head("/v2/app/manifests/none").is(404);
    for bad in ["sha256:baddigeststring", "sha256:", "sha1024:00"] {
        registry.get(&format!("/v2/app/manifests/{bad}")).is(400);
        registry.put_manifest("app", bad, MANIFEST, b"{}").is(400);
    }
    let none = registry.get(&format!("/v2/nobody/referrers/{never}")).is(200);
    assert_eq!((none.header("content-type"), &none.json()["manifests"]), (INDEX, &json!([])));
    for path in ["manifests/none", &format!("manifests/{never}"), &format!("blobs/{never}")] {
        registry.delete(&format!("/v2/nobody/{path}")).is(404);
    }
    registry.get("/v2/nobody/tags/list?n=-1").is(400);
}

#[test]
fn blobs_in_pieces() {
    let registry = Registry::start();
    let (first, second) = (noise(1, 700), noise(2, 300));
    let all = [first.clone(), second.clone()].concat();
    // Closed by a request without a body.
    let at = registry.begin("app");
    patch(&registry, &at, "0-699", &first).is(202);
    patch(&registry, &at, "700-999", &second).is(202);
    put(&registry, &at, &digest(&all), &[], b"").is(201);
    // The first piece is not at the beginning: where to go on is said.
    let at = registry.begin("app");
    let refused = patch(&registry, &at, "10-709", &first).is(416);
    assert_eq!((refused.header("location"), refused.header("range")), (at.as_str(), "0-0"));
    patch(&registry, &at, "0-699", &first).is(202);
    // The last one comes with the end, and does not follow: nothing is lost by that.
    put(&registry, &at, &digest(&all), &[("Content-Range", "800-1099")], &second).is(416);
    let so_far = registry.get(&at).is(204);
    assert_eq!(so_far.header("range"), "0-699");
    put(&registry, &at, &digest(&all), &[("Content-Range", "700-999")], &second).is(201);
    assert_eq!(registry.get(&format!("/v2/app/blobs/{}", digest(&all))).is(200).body, all);
    // Not what it is said to be: after pieces, with the last of them, and after a stream.
    let wrong = digest(b"something else");
    let at = registry.begin("app");
    patch(&registry, &at, "0-699", &first).is(202);
    put(&registry, &at, &wrong, &[], b"").fails(400, "DIGEST_INVALID");
    registry.get(&at).fails(404, "BLOB_UPLOAD_UNKNOWN");
    let at = registry.begin("app");
    patch(&registry, &at, "0-699", &first).is(202);
    put(&registry, &at, &wrong, &[("Content-Range", "700-999")], &second).fails(400, "DIGEST_INVALID");
    let at = registry.begin("app");
    let chunk = [format!("{:x}\r\n", first.len()).as_bytes(), &first, b"\r\n0\r\n\r\n"].concat();
    registry.ask("PATCH", &at, &[("Transfer-Encoding", "chunked")], &chunk).is(202);
    put(&registry, &at, &wrong, &[], b"").fails(400, "DIGEST_INVALID");
    registry.head(&format!("/v2/app/blobs/{wrong}")).is(404);
    // Given up, it is nobody's to go on with.
    let at = registry.begin("app");
    patch(&registry, &at, "0-699", &first).is(202);
    registry.delete(&at).is(204);
    registry.get(&at).fails(404, "BLOB_UPLOAD_UNKNOWN");
    patch(&registry, &at, "700-999", &second).fails(404, "BLOB_UPLOAD_UNKNOWN");
    put(&registry, &at, &digest(&all), &[], b"").fails(404, "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn blobs_that_are_mounted_or_not() {
    let registry = Registry::start();
    let blob = noise(3, 500);
    let known = registry.push("from", &blob);
    let post = |query: &str| registry.ask("POST", &format!("/v2/to/blobs/uploads/?{query}"), &[], b"");
    // Without a source, with one that has it not, and with what is no digest: it is sent instead.
    for query in [
        format!("mount={known}"),
        format!("mount={}&from=from", digest(b"never")),
        format!("mount={known}&from=nobody"),
        "mount=sha256:x&from=from".to_owned(),
        "mount=blake3:00&from=from".to_owned(),
    ] {
        let at = post(&query).is(202).header("location").to_owned();
        put(&registry, &at, &known, &[("Content-Type", "application/octet-stream")], &blob).is(201);
        registry.delete(&format!("/v2/to/blobs/{known}")).is(202);
    }
    registry.head(&format!("/v2/to/blobs/{known}")).is(404);
    let mounted = post(&format!("mount={known}&from=from")).is(201);
    assert_eq!(mounted.header("docker-content-digest"), known);
    assert_eq!(registry.get(mounted.header("location")).is(200).body, blob);
}

#[test]
fn by_the_longer_algorithm_all_is_the_same() {
    let registry = Registry::start();
    let blob = noise(4, 2000);
    let name = long_digest(&blob);
    let at = format!("/v2/app/blobs/{name}");
    registry.ask("POST", &format!("/v2/app/blobs/uploads/?digest={name}"), &[], &blob).is(201);
    assert_eq!(registry.head(&at).is(200).header("docker-content-digest"), name);
    assert_eq!(registry.ask("GET", &at, &[("Range", "bytes=10-19")], b"").is(206).body, &blob[10..20]);
    registry.ask("POST", &format!("/v2/other/blobs/uploads/?mount={name}&from=app"), &[], b"").is(201);
    let wrong = long_digest(b"other");
    registry.ask("POST", &format!("/v2/app/blobs/uploads/?digest={wrong}"), &[], &blob).fails(400, "DIGEST_INVALID");
    registry.delete(&at).is(202);
    registry.get(&at).is(404);
    registry.get(&format!("/v2/other/blobs/{name}")).is(200);
    // Begun for the one, and ended by the other.
    let begun = registry.ask("POST", "/v2/app/blobs/uploads/?digest-algorithm=sha512", &[], b"").is(202);
    put(&registry, begun.header("location"), &digest(&blob), &[], &blob).is(201);

    // An index of it, with images of it, of blobs of it; and what says something of it.
    let config = b"{}";
    for bytes in [&config[..], &blob] {
        registry.ask("POST", &format!("/v2/deep/blobs/uploads/?digest={}", long_digest(bytes)), &[], bytes).is(201);
    }
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": long(CONFIG, config),
        "layers": [long("application/vnd.oci.image.layer.v1.tar", &blob)] })
    .to_string();
    registry.put_manifest("deep", &long_digest(manifest.as_bytes()), MANIFEST, manifest.as_bytes()).is(201);
    registry.put_manifest("deep", &wrong, MANIFEST, manifest.as_bytes()).fails(400, "DIGEST_INVALID");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [long(MANIFEST, manifest.as_bytes())] });
    let (index, of) = (index.to_string(), format!("/v2/deep/manifests/{}", long_digest(index.to_string().as_bytes())));
    registry.ask("PUT", &format!("{of}?tag=all"), &[("Content-Type", INDEX)], index.as_bytes()).is(201);
    let by_tag = registry.get("/v2/deep/manifests/all").is(200);
    assert_eq!(by_tag.header("docker-content-digest"), long_digest(index.as_bytes()));
    let says = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "a/b", "config": long(CONFIG, config), "layers": [],
        "subject": long(INDEX, index.as_bytes()) })
    .to_string();
    let said = registry.put_manifest("deep", &long_digest(says.as_bytes()), MANIFEST, says.as_bytes()).is(201);
    assert_eq!(said.header("oci-subject"), long_digest(index.as_bytes()));
    let all = registry.get(&format!("/v2/deep/referrers/{}", long_digest(index.as_bytes()))).is(200).json();
    assert_eq!(all["manifests"][0]["digest"], long_digest(says.as_bytes()));
    registry.delete(&of).is(202);
    registry.get(&of).is(404);
}

#[test]
fn ranges_that_are_none() {
    let registry = Registry::start();
    let blob = noise(5, 1000);
    let at = format!("/v2/app/blobs/{}", registry.push("app", &blob));
    for range in ["bytes=500-0", "bytes=1000-", "bytes=-0"] {
        let refused = registry.ask("GET", &at, &[("Range", range)], b"").is(416);
        assert_eq!(refused.header("content-range"), "bytes */1000", "{range}");
    }
    assert_eq!(registry.ask("GET", &at, &[("Range", "bytes=999-5000")], b"").is(206).body, &blob[999..]);
}

#[test]
fn manifests_of_every_kind() {
    let registry = Registry::start();
    let (config, layer) = (b"{}", noise(6, 100));
    registry.push("app", config);
    registry.push("app", &layer);
    let plain = image(config, &[&layer]);
    let push = |of: &Value, headers: &[(&str, &str)]| {
        let bytes = of.to_string().into_bytes();
        let answer = registry.ask("PUT", &format!("/v2/app/manifests/{}", digest(&bytes)), headers, &bytes).is(201);
        let back = registry.get(answer.header("location")).is(200);
        assert_eq!(
            (back.body, back.headers["docker-content-digest"].as_str()),
            (bytes.clone(), digest(&bytes).as_str())
        );
        back.headers["content-type"].clone()
    };
    let with = |key: &str, value: Value| {
        let mut of = plain.clone();
        of[key] = value;
        of
    };
    // Fields that are nobody's, data within a descriptor, no layers, and what is to be had elsewhere only.
    push(&with("org.example.more", json!({ "a": [1, null] })), &[("Content-Type", MANIFEST)]);
    let mut data = plain.clone();
    data["config"]["data"] = json!("e30=");
    push(&data, &[("Content-Type", MANIFEST)]);
    push(&with("layers", Value::Null), &[("Content-Type", MANIFEST)]);
    let elsewhere = json!([{ "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "digest": digest(b"far"), "size": 9 }]);
    push(&with("layers", elsewhere), &[("Content-Type", MANIFEST)]);
    // What it is called by whoever sends it, or by itself.
    assert_eq!(
        push(&with("annotations", json!({ "a": "1" })), &[("Content-Type", &format!("{MANIFEST}; charset=utf-8"))]),
        MANIFEST
    );
    assert_eq!(push(&with("annotations", json!({ "a": "2" })), &[]), MANIFEST);
    // An index that is an artifact, of nothing.
    push(
        &json!({ "schemaVersion": 2, "mediaType": INDEX, "artifactType": "a/b", "manifests": [] }),
        &[("Content-Type", INDEX)],
    );
    // All that is missing is told at once.
    let missing = image(b"no config", &[b"no layer", b"none either"]).to_string();
    let refused = registry.put_manifest("app", "x", MANIFEST, missing.as_bytes()).fails(404, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(refused.json()["errors"][0]["detail"].as_array().unwrap().len(), 3);
    // A repository without a tag is one.
    assert_eq!(registry.get("/v2/app/tags/list").is(200).json(), json!({ "name": "app", "tags": [] }));
}

#[test]
fn tags_come_with_a_manifest() {
    let registry = Registry::start();
    let plain = registry.push_image("app", "first", &[b"layer"]);
    for name in [digest(&plain), long_digest(&plain)] {
        let put = |query: &str| {
            registry.ask("PUT", &format!("/v2/app/manifests/{name}?{query}"), &[("Content-Type", MANIFEST)], &plain)
        };
        assert_eq!(put("tag=a&tag=b&tag=a").is(201).header("oci-tag"), "a, b");
        for tag in ["a", "b"] {
            assert_eq!(
                registry.head(&format!("/v2/app/manifests/{tag}")).is(200).header("docker-content-digest"),
                name
            );
        }
        assert!(!put("").is(201).headers.contains_key("oci-tag"));
        for bad in ["tag=", "tag=.x", "tag=a/b", "tag=ok&tag=-"] {
            put(bad).is(400);
        }
        registry.get("/v2/app/manifests/ok").is(404);
        let many = |count: usize| (0..count).map(|number| format!("tag=t{number}&")).collect::<String>();
        put(&many(11)).is(201);
        put(&many(101)).is(414);
    }
    // By a tag there is that one alone.
    let one = registry.ask("PUT", "/v2/app/manifests/only?tag=more", &[("Content-Type", MANIFEST)], &plain).is(201);
    assert!(!one.headers.contains_key("oci-tag"));
    registry.get("/v2/app/manifests/more").is(404);
}

#[test]
fn what_says_something_of_another() {
    let registry = Registry::start();
    let subject = registry.push_image("app", "it", &[b"layer"]);
    let of = digest(&subject);
    let index = |extra: Value| {
        let mut index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": descriptor(MANIFEST, &subject),
            "annotations": { "who": "index" } });
        extra.as_object().unwrap().iter().for_each(|(key, value)| index[key] = value.clone());
        index.to_string()
    };
    let (typed, plain) = (index(json!({ "artifactType": "application/vnd.a+json" })), index(json!({})));
    for one in [&typed, &plain] {
        let said = registry.put_manifest("app", &digest(one.as_bytes()), INDEX, one.as_bytes()).is(201);
        assert_eq!(said.header("oci-subject"), of);
    }
    let asked = |query: &str| registry.get(&format!("/v2/app/referrers/{of}{query}")).is(200);
    let all = asked("").json()["manifests"].as_array().unwrap().clone();
    let find = |text: &str| all.iter().find(|one| one["digest"] == digest(text.as_bytes())).unwrap().clone();
    assert_eq!(find(&typed)["artifactType"], "application/vnd.a+json");
    // An index without a kind of its own has none: there is no config to take it from.
    assert!(find(&plain).get("artifactType").is_none());
    assert_eq!((&find(&plain)["annotations"]["who"], &find(&plain)["mediaType"]), (&json!("index"), &json!(INDEX)));
    let some = asked("?artifactType=application%2Fvnd.a%2Bjson");
    assert_eq!(
        (some.json()["manifests"].as_array().unwrap().len(), some.header("oci-filters-applied")),
        (1, "artifactType")
    );
    let none = asked("?artifactType=b");
    assert_eq!((&none.json()["manifests"], none.header("oci-filters-applied")), (&json!([]), "artifactType"));
    // They remain when it goes, and it may come again.
    registry.delete(&format!("/v2/app/manifests/{of}")).is(202);
    assert_eq!(asked("").json()["manifests"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_deleted_is_not_there() {
    let registry = Registry::start();
    let child = registry.push_image("app", "child", &[b"layer"]);
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &child)] }).to_string();
    registry.put_manifest("app", "all", INDEX, index.as_bytes()).is(201);
    let at = format!("/v2/app/manifests/{}", digest(&child));
    // What an image is made of is not deleted, and it is said what may be asked instead.
    let refused = registry.delete(&format!("/v2/app/blobs/{}", digest(b"layer"))).fails(405, "UNSUPPORTED");
    assert_eq!(refused.header("allow"), "GET, HEAD");
    registry.delete(&at).is(202);
    registry.get(&at).fails(404, "MANIFEST_UNKNOWN");
    registry.head(&at).is(404);
    registry.delete(&at).fails(404, "MANIFEST_UNKNOWN");
    // The index that held it is what it was.
    assert_eq!(registry.get("/v2/app/manifests/all").is(200).body, index.as_bytes());
}
