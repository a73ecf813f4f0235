//! The image registry against the OCI distribution specification, request by request.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use std::io::{BufReader, Write};

use oci::{INDEX, MANIFEST, Registry, descriptor, digest, image, long_digest, noise, read};
use serde_json::{Value, json};

#[test]
fn what_is_asked_of_any_registry() {
    let registry = Registry::start();
    let base = registry.get("/v2/").is(200);
    assert_eq!(base.header("docker-distribution-api-version"), "registry/2.0");
    registry.get("/v2").is(200);
    registry.get("/").is(404);
    registry.get("/v2/a/nothing/b").is(404);
    let answer = registry.ask("POST", "/v2/a/manifests/x", &[], b"").fails(405, "UNSUPPORTED");
    assert!(answer.header("allow").contains("PUT"), "{answer:?}");
    registry.get("/v2/UPPER/tags/list").fails(400, "NAME_INVALID");
    registry.get("/v2/a/tags/list").fails(404, "NAME_UNKNOWN");
    registry.get("/v2/a/manifests/latest").fails(404, "MANIFEST_UNKNOWN");
    registry.get("/v2/a/manifests/.bad").fails(400, "MANIFEST_INVALID");
    registry.get(&format!("/v2/a/blobs/{}", digest(b""))).fails(404, "BLOB_UNKNOWN");
    registry.get("/v2/a/blobs/sha256:123").fails(400, "DIGEST_INVALID");
    assert_eq!(registry.head(&format!("/v2/a/blobs/{}", digest(b""))).is(404).body, b"");
    assert_eq!(registry.get("/v2/_catalog").is(200).json(), json!({ "repositories": [] }));
}

#[test]
fn blobs_come_in_every_way() {
    let mut registry = Registry::start();
    let blob = noise(1, 300_000);
    let name = digest(&blob);
    let at = format!("/v2/shop/api/blobs/{name}");

    // In one request, and in two.
    let made = registry.ask("POST", &format!("/v2/shop/api/blobs/uploads/?digest={name}"), &[], &blob).is(201);
    assert_eq!((made.header("location"), made.header("docker-content-digest")), (at.as_str(), name.as_str()));
    let upload = registry.begin("two");
    registry.ask("PUT", &format!("{upload}?digest={name}"), &[], &blob).is(201);
    assert_eq!(registry.get(&format!("/v2/two/blobs/{name}")).is(200).body, blob);

    // In pieces, in order.
    let upload = registry.begin("pieces");
    let status = registry.get(&upload).is(204);
    assert_eq!((status.header("range"), status.header("location")), ("0-0", upload.as_str()));
    let piece = |from: usize, to: usize| {
        let range = format!("{from}-{}", to - 1);
        registry.ask("PATCH", &upload, &[("Content-Range", &range)], &blob[from..to])
    };
    let first = piece(0, 100_000).is(202);
    assert_eq!(first.header("range"), "0-99999");
    assert_eq!(first.header("docker-upload-uuid"), upload.rsplit('/').next().unwrap());
    let wrong = piece(200_000, 300_000).fails(416, "BLOB_UPLOAD_INVALID");
    assert_eq!((wrong.header("range"), wrong.header("location")), ("0-99999", upload.as_str()));
    piece(0, 100_000).is(416);
    registry.ask("PATCH", &upload, &[("Content-Range", "100000-100005")], b"x").fails(400, "SIZE_INVALID");
    registry.ask("PATCH", &upload, &[("Content-Range", "x")], b"x").fails(400, "BLOB_UPLOAD_INVALID");
    let most = [("Content-Range", "0-18446744073709551615")];
    registry.ask("PATCH", &upload, &most, b"x").fails(400, "SIZE_INVALID");
    piece(100_000, 200_000).is(202);
    assert_eq!(registry.get(&upload).is(204).header("range"), "0-199999");
    // The last one comes along with the end.
    let last = [("Content-Range", "200000-299999")];
    registry.ask("PUT", &format!("{upload}?digest={name}"), &last, &blob[200_000..]).is(201);
    assert_eq!(registry.get(&format!("/v2/pieces/blobs/{name}")).is(200).body, blob);
    registry.get(&upload).fails(404, "BLOB_UPLOAD_UNKNOWN");

    // Of unknown length, as Docker sends it.
    let upload = registry.begin("streamed");
    let mut stream = registry.connect();
    let head = format!("PATCH {upload} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    for part in blob.chunks(70_000) {
        stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).unwrap();
        stream.write_all(part).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let answer = read(&mut BufReader::new(stream), false).unwrap().is(202);
    assert_eq!(answer.header("range"), "0-299999");
    registry.ask("PUT", &format!("{upload}?digest={name}"), &[], b"").is(201);

    // Nothing at all is a blob as well.
    let upload = registry.begin("nothing");
    registry.ask("PUT", &format!("{upload}?digest={}", digest(b"")), &[], b"").is(201);
    assert_eq!(registry.get(&format!("/v2/nothing/blobs/{}", digest(b""))).is(200).body, b"");

    // Another algorithm: said at the beginning, or at the end.
    let long = long_digest(&blob);
    for query in ["?digest-algorithm=sha512", ""] {
        let answer = registry.ask("POST", &format!("/v2/long/blobs/uploads/{query}"), &[], b"").is(202);
        let upload = answer.header("location").to_owned();
        registry.ask("PATCH", &upload, &[], &blob).is(202);
        registry.ask("PUT", &format!("{upload}?digest={long}"), &[], b"").is(201);
    }
    assert_eq!(registry.get(&format!("/v2/long/blobs/{long}")).is(200).body, blob);
    registry.ask("POST", "/v2/long/blobs/uploads/?digest-algorithm=md5", &[], b"").fails(400, "DIGEST_INVALID");

    // What is something else than was said is none, and its upload is over.
    let upload = registry.begin("wrong");
    let other = digest(b"other");
    registry.ask("PUT", &format!("{upload}?digest={other}"), &[], &blob).fails(400, "DIGEST_INVALID");
    registry.get(&upload).is(404);
    registry.ask("POST", &format!("/v2/wrong/blobs/uploads/?digest={other}"), &[], &blob).fails(400, "DIGEST_INVALID");
    registry.get(&format!("/v2/wrong/blobs/{other}")).is(404);
    let upload = registry.begin("wrong");
    registry.ask("PUT", &upload, &[], &blob).fails(400, "DIGEST_INVALID");
    registry.ask("PUT", &format!("{upload}?digest=sha256:x"), &[], &blob).fails(400, "DIGEST_INVALID");
    assert_eq!(registry.get(&upload).is(204).header("range"), "0-0", "nothing of it was taken");

    // Given up; never begun; of another repository.
    registry.delete(&upload).is(204);
    registry.delete(&upload).fails(404, "BLOB_UPLOAD_UNKNOWN");
    registry.ask("PATCH", "/v2/a/blobs/uploads/x", &[], b"x").fails(404, "BLOB_UPLOAD_UNKNOWN");
    let upload = registry.begin("mine");
    registry.ask("PATCH", &upload.replace("mine", "yours"), &[], b"x").fails(404, "BLOB_UPLOAD_UNKNOWN");

    // It is in the other repository already.
    let mount = |to: &str, from: &str, what: &str| {
        registry.ask("POST", &format!("/v2/{to}/blobs/uploads/?mount={what}&from={from}"), &[], b"")
    };
    let mounted = mount("mounted", "shop/api", &name).is(201);
    assert_eq!(mounted.header("location"), format!("/v2/mounted/blobs/{name}"));
    assert_eq!(registry.get(&format!("/v2/mounted/blobs/{name}")).is(200).body, blob);
    for answer in [mount("else", "nowhere", &name), mount("else", "shop/api", &other), mount("else", "BAD", &name)] {
        assert!(answer.is(202).header("location").starts_with("/v2/else/blobs/uploads/"));
    }
    registry.get(&format!("/v2/else/blobs/{name}")).is(404);

    // A daemon that was killed: the next goes on where it was.
    let upload = registry.begin("resumed");
    registry.ask("PATCH", &upload, &[], &blob[..123_456]).is(202);
    registry.restart();
    assert_eq!(registry.get(&upload).is(204).header("range"), "0-123455");
    let rest = [("Content-Range", "123456-299999")];
    registry.ask("PATCH", &upload, &rest, &blob[123_456..]).is(202);
    registry.ask("PUT", &format!("{upload}?digest={name}"), &[], b"").is(201);
    assert_eq!(registry.get(&at).is(200).body, blob);
}

#[test]
fn a_body_cut_off_leaves_what_came() {
    let registry = Registry::start();
    let blob = noise(2, 500_000);
    let upload = registry.begin("cut");
    let mut stream = registry.connect();
    let head = format!("PATCH {upload} HTTP/1.1\r\nHost: r\r\nContent-Length: {}\r\n\r\n", blob.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&blob[..200_000]).unwrap();
    // Until it is written, and nobody goes on with it any more.
    support::eventually("all of it has come", 20, || {
        let files = std::fs::read_dir(registry.daemon.data().join("registry/uploads")).unwrap().flatten();
        files.into_iter().any(|file| file.metadata().unwrap().len() == 200_000).then_some(())
    });
    drop(stream);
    // What has come is there, and the client is told where to go on.
    let range = registry.get(&upload).is(204).header("range").to_owned();
    let size: usize = range.trim_start_matches("0-").parse::<usize>().unwrap() + 1;
    assert_eq!(size, 200_000, "{range}");
    let range = format!("{size}-{}", blob.len() - 1);
    registry.ask("PATCH", &upload, &[("Content-Range", &range)], &blob[size..]).is(202);
    registry.ask("PUT", &format!("{upload}?digest={}", digest(&blob)), &[], b"").is(201);
}

#[test]
fn blobs_are_pulled_whole_and_in_parts() {
    let registry = Registry::start();
    let blob = noise(3, 2_000_000);
    let name = registry.push("a/b", &blob);
    let at = format!("/v2/a/b/blobs/{name}");
    let head = registry.head(&at).is(200);
    assert_eq!((head.header("content-length"), head.header("docker-content-digest")), ("2000000", name.as_str()));
    let whole = registry.get(&at).is(200);
    assert_eq!((whole.header("accept-ranges"), whole.header("content-type")), ("bytes", "application/octet-stream"));
    assert!(whole.body == blob);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-1000004", 5, 1_000_005),
        ("bytes=1999999-", 1_999_999, 2_000_000),
        ("bytes=-7", 1_999_993, 2_000_000),
        ("bytes=1999990-99999999", 1_999_990, 2_000_000),
    ] {
        let part = registry.ask("GET", &at, &[("Range", range)], b"").is(206);
        assert_eq!(part.header("content-range"), format!("bytes {from}-{}/2000000", to - 1), "{range}");
        assert!(part.body == blob[from..to], "{range}");
    }
    let none = registry.ask("GET", &at, &[("Range", "bytes=2000000-")], b"").is(416);
    assert_eq!(none.header("content-range"), "bytes */2000000");
    assert!(registry.ask("GET", &at, &[("Range", "bytes=0-1,5-6")], b"").is(200).body == blob);
    let tag = whole.header("etag").to_owned();
    assert_eq!(registry.ask("GET", &at, &[("If-None-Match", &tag)], b"").is(304).body, b"");
    assert!(registry.ask("GET", &at, &[("Range", "bytes=0-1"), ("If-Range", "\"x\"")], b"").is(200).body == blob);
    registry.ask("GET", &at, &[("Range", "bytes=0-1"), ("If-Range", &tag)], b"").is(206);
    // Of this repository, not of any.
    registry.get(&format!("/v2/a/blobs/{name}")).fails(404, "BLOB_UNKNOWN");
    registry.get(&at.replace(':', "%3A")).is(200);
}

#[test]
fn manifests_are_kept_byte_for_byte() {
    let registry = Registry::start();
    let layer = noise(4, 1000);
    let manifest = registry.push_image("app", "1.0", &[&layer]);
    let name = digest(&manifest);
    for reference in ["1.0", &name] {
        let at = format!("/v2/app/manifests/{reference}");
        let accept = [("Accept", "application/vnd.docker.distribution.manifest.v2+json"), ("Accept", MANIFEST)];
        let whole = registry.ask("GET", &at, &accept, b"").is(200);
        assert_eq!((whole.header("content-type"), whole.header("docker-content-digest")), (MANIFEST, name.as_str()));
        assert_eq!(whole.body, manifest);
        let head = registry.head(&at).is(200);
        assert_eq!(head.header("content-length"), manifest.len().to_string());
        assert_eq!((head.header("content-type"), head.header("docker-content-digest")), (MANIFEST, name.as_str()));
    }
    // As it came: spaces, order and all.
    let config = b"{}".as_slice();
    registry.push("odd", config);
    let odd = format!("{{\n  \"layers\": [], \"config\": {},\n\"schemaVersion\": 2 }}\n", descriptor("x/y", config));
    let made = registry.put_manifest("odd", "t", MANIFEST, odd.as_bytes()).is(201);
    assert_eq!(made.header("location"), format!("/v2/odd/manifests/{}", digest(odd.as_bytes())));
    assert_eq!(registry.get("/v2/odd/manifests/t").body, odd.as_bytes());

    // By its digest, by the longer one, with tags at once.
    let said = registry.put_manifest("odd", &digest(odd.as_bytes()), MANIFEST, odd.as_bytes()).is(201);
    assert_eq!(said.header("docker-content-digest"), digest(odd.as_bytes()));
    let long = long_digest(odd.as_bytes());
    registry.put_manifest("odd", &format!("{long}?tag=x&tag=y"), MANIFEST, odd.as_bytes()).is(201);
    assert_eq!(registry.get("/v2/odd/manifests/y").is(200).header("docker-content-digest"), long);
    assert_eq!(registry.get("/v2/odd/tags/list").json()["tags"], json!(["t", "x", "y"]));
    registry.put_manifest("odd", &digest(b"x"), MANIFEST, odd.as_bytes()).fails(400, "DIGEST_INVALID");

    // A tag goes to another manifest, and from it.
    registry.put_manifest("odd", "x", MANIFEST, odd.as_bytes()).is(201);
    assert_eq!(registry.get("/v2/odd/manifests/x").header("docker-content-digest"), digest(odd.as_bytes()));
    registry.delete(&format!("/v2/odd/manifests/{long}")).is(202);
    assert_eq!(registry.get("/v2/odd/tags/list").json()["tags"], json!(["t", "x"]));

    // What is none, or names what is not there.
    registry.put_manifest("app", "bad", MANIFEST, b"{").fails(400, "MANIFEST_INVALID");
    registry.put_manifest("app", "bad", MANIFEST, b"").fails(400, "MANIFEST_INVALID");
    registry.put_manifest("app", "b@d", MANIFEST, &manifest).fails(400, "MANIFEST_INVALID");
    let missing = image(config, &[b"nowhere"]).to_string();
    let answer = registry.put_manifest("odd", "bad", MANIFEST, missing.as_bytes()).fails(404, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(answer.json()["errors"][0]["detail"], digest(b"nowhere"));
    let mut wrong: Value = serde_json::from_slice(&manifest).unwrap();
    wrong["layers"][0]["size"] = json!(1);
    registry.put_manifest("app", "bad", MANIFEST, wrong.to_string().as_bytes()).fails(400, "MANIFEST_INVALID");
    wrong["mediaType"] = json!(INDEX);
    registry.put_manifest("app", "bad", MANIFEST, wrong.to_string().as_bytes()).fails(400, "MANIFEST_INVALID");
    // Those of another repository are not there.
    registry.put_manifest("other", "1.0", MANIFEST, &manifest).fails(404, "MANIFEST_BLOB_UNKNOWN");
    registry.get("/v2/app/manifests/bad").is(404);
    registry.get("/v2/other/tags/list").is(404);

    // Layers that are elsewhere only need not be here.
    let mut foreign: Value = serde_json::from_slice(&manifest).unwrap();
    foreign["layers"][0] = json!({ "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest(b"elsewhere"), "size": 9, "urls": ["https://elsewhere.test/"] });
    registry.put_manifest("app", "foreign", MANIFEST, foreign.to_string().as_bytes()).is(201);

    // Large ones, and too large ones.
    let padded = |size: usize| {
        let mut manifest = image(config, &[]);
        manifest["annotations"] = json!({ "x": "y".repeat(size) });
        manifest.to_string()
    };
    registry.put_manifest("odd", "large", MANIFEST, padded(4 << 20).as_bytes()).is(201);
    assert_eq!(registry.get("/v2/odd/manifests/large").is(200).body.len(), padded(4 << 20).len());
    registry.put_manifest("odd", "larger", MANIFEST, padded(9 << 20).as_bytes()).fails(413, "MANIFEST_INVALID");
}

#[test]
fn indexes_artifacts_and_what_refers_to_a_subject() {
    let registry = Registry::start();
    let arm = registry.push_image("multi", "arm", &[b"arm"]);
    let amd = registry.push_image("multi", "amd", &[b"amd"]);
    let index = |of: &[&[u8]]| {
        let manifests: Vec<Value> = of.iter().map(|manifest| descriptor(MANIFEST, manifest)).collect();
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string().into_bytes()
    };
    let both = index(&[&arm, &amd]);
    registry.put_manifest("multi", "latest", INDEX, &both).is(201);
    let found = registry.get("/v2/multi/manifests/latest").is(200);
    assert_eq!((found.header("content-type"), &found.body), (INDEX, &both));
    // One in another, one of nothing, one of what is not here.
    let nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(INDEX, &both)] }).to_string();
    registry.put_manifest("multi", "nested", INDEX, nested.as_bytes()).is(201);
    registry.put_manifest("multi", "empty", INDEX, &index(&[])).is(201);
    registry.put_manifest("multi", "bad", INDEX, &index(&[b"none"])).fails(404, "MANIFEST_BLOB_UNKNOWN");
    // BuildKit's caches are indexes of blobs.
    registry.put_manifest("multi", "cache", INDEX, &index(&[b"arm"])).is(201);
    registry.delete(&format!("/v2/multi/blobs/{}", digest(b"arm"))).fails(405, "UNSUPPORTED");

    // Signatures and SBOMs: of a subject that is here, and of one that is not yet.
    registry.push("multi", b"{}");
    let about = |subject: &[u8], kind: &str, note: &str| {
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "subject": descriptor(MANIFEST, subject),
            "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [],
            "annotations": { "note": note } })
        .to_string()
        .into_bytes()
    };
    let (signature, sbom) = (about(&arm, "application/x-signature", "s"), about(&arm, "application/x-sbom", "b"));
    for artifact in [&signature, &sbom] {
        let made = registry.put_manifest("multi", &digest(artifact), MANIFEST, artifact).is(201);
        assert_eq!(made.header("oci-subject"), digest(&arm));
    }
    let later = about(b"later", "", "l");
    let made = registry.put_manifest("multi", "later", MANIFEST, &later).is(201);
    assert_eq!(made.header("oci-subject"), digest(b"later"));
    let list =
        |subject: &[u8], query: &str| registry.get(&format!("/v2/multi/referrers/{}{query}", digest(subject))).is(200);
    let all = list(&arm, "");
    assert_eq!((all.header("content-type"), all.header("oci-filters-applied")), (INDEX, ""));
    let mut kinds: Vec<Value> =
        all.json()["manifests"].as_array().unwrap().iter().map(|one| one["artifactType"].clone()).collect();
    kinds.sort_by_key(Value::to_string);
    assert_eq!(kinds, ["application/x-sbom", "application/x-signature"]);
    let filtered = list(&arm, "?artifactType=application/x-sbom");
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let one = json!([{ "mediaType": MANIFEST, "digest": digest(&sbom), "size": sbom.len(),
        "artifactType": "application/x-sbom", "annotations": { "note": "b" } }]);
    assert_eq!(filtered.json()["manifests"], one);
    let of_config = list(b"later", "").json();
    assert_eq!(of_config["manifests"][0]["artifactType"], "application/vnd.oci.empty.v1+json");
    assert_eq!(list(b"nobody", "").json()["manifests"], json!([]));
    registry.get(&format!("/v2/none/referrers/{}", digest(b"x"))).is(200);
    registry.get("/v2/multi/referrers/x").fails(400, "DIGEST_INVALID");
    registry.delete(&format!("/v2/multi/manifests/{}", digest(&signature))).is(202);
    assert_eq!(list(&arm, "").json()["manifests"].as_array().unwrap().len(), 1);
    // Many come in pages.
    for number in 0..3 {
        let long = about(&amd, "x/y", &format!("{number}").repeat(1 << 20));
        registry.put_manifest("multi", &digest(&long), MANIFEST, &long).is(201);
    }
    let (mut seen, mut next, mut pages) = (0, format!("/v2/multi/referrers/{}?artifactType=x/y", digest(&amd)), 0);
    while !next.is_empty() {
        let page = registry.get(&next).is(200);
        (seen, pages) = (seen + page.json()["manifests"].as_array().unwrap().len(), pages + 1);
        next = page.header("link").trim_start_matches('<').split('>').next().unwrap_or_default().to_owned();
    }
    assert!(seen == 3 && pages > 1, "{seen} in {pages} pages");
}

#[test]
fn names_come_in_pages() {
    let registry = Registry::start();
    for tag in ["b", "a", "c", "B", "a.1"] {
        registry.push_image("many", tag, &[b"x"]);
    }
    let tags = |query: &str| registry.get(&format!("/v2/many/tags/list{query}")).is(200);
    assert_eq!(tags("").json(), json!({ "name": "many", "tags": ["B", "a", "a.1", "b", "c"] }));
    assert_eq!(tags("").header("link"), "");
    let none = tags("?n=0");
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), ""));
    let (mut seen, mut next) = (Vec::new(), "/v2/many/tags/list?n=2".to_owned());
    while !next.is_empty() {
        let page = registry.get(&next).is(200);
        seen.push(page.json()["tags"].clone());
        let link = page.header("link").to_owned();
        assert!(link.is_empty() || link.ends_with("; rel=\"next\""), "{link}");
        next = link.trim_start_matches('<').split('>').next().unwrap_or_default().to_owned();
    }
    assert_eq!(seen, [json!(["B", "a"]), json!(["a.1", "b"]), json!(["c"])]);
    assert_eq!(tags("?last=a").json()["tags"], json!(["a.1", "b", "c"]));
    assert_eq!(tags("?n=1&last=zz").json()["tags"], json!([]));
    registry.get("/v2/many/tags/list?n=x").is(400);
    for name in ["a/x", "a", "z"] {
        registry.push_image(name, "t", &[b"x"]);
    }
    let all = registry.get("/v2/_catalog").is(200).json();
    assert_eq!(all["repositories"], json!(["a", "a/x", "many", "z"]));
    let page = registry.get("/v2/_catalog?n=2").is(200);
    assert_eq!(page.json()["repositories"], json!(["a", "a/x"]));
    assert_eq!(page.header("link"), "</v2/_catalog?n=2&last=a%2Fx>; rel=\"next\"");
    assert_eq!(registry.get("/v2/_catalog?n=2&last=a%2Fx").json()["repositories"], json!(["many", "z"]));
}

#[test]
fn what_is_deleted_is_gone_and_nothing_else() {
    let registry = Registry::start();
    let layer = noise(5, 1000);
    let one = registry.push_image("app", "one", &[&layer]);
    let two = registry.push_image("app", "two", &[&layer, b"more"]);
    registry.put_manifest("app", "again", MANIFEST, &one).is(201);
    let blob = format!("/v2/app/blobs/{}", digest(&layer));
    // A tag is a name only.
    registry.delete("/v2/app/manifests/again").is(202);
    registry.get("/v2/app/manifests/again").fails(404, "MANIFEST_UNKNOWN");
    registry.get(&format!("/v2/app/manifests/{}", digest(&one))).is(200);
    registry.delete("/v2/app/manifests/again").fails(404, "MANIFEST_UNKNOWN");
    // What images are made of stays.
    let refused = registry.delete(&blob).fails(405, "UNSUPPORTED");
    assert!(refused.json()["errors"][0]["message"].as_str().unwrap().contains("is made of it"), "{refused:?}");
    // A manifest goes with its tags.
    registry.delete(&format!("/v2/app/manifests/{}", digest(&one))).is(202);
    registry.get("/v2/app/manifests/one").is(404);
    assert_eq!(registry.get("/v2/app/tags/list").json()["tags"], json!(["two"]));
    registry.get(&blob).is(200);
    registry.delete(&format!("/v2/app/manifests/{}", digest(&two))).is(202);
    registry.get("/v2/app/tags/list").fails(404, "NAME_UNKNOWN");
    assert_eq!(registry.get("/v2/_catalog").json()["repositories"], json!([]));
    registry.delete(&blob).is(202);
    registry.get(&blob).fails(404, "BLOB_UNKNOWN");
    registry.delete(&blob).fails(404, "BLOB_UNKNOWN");
    // All of it can come again.
    registry.push_image("app", "one", &[&layer]);
    assert_eq!(registry.get(&blob).is(200).body, layer);
}

#[test]
fn many_push_the_same_at_once() {
    let registry = Registry::start();
    let blob = noise(6, 3_000_000);
    let port = registry.port;
    let name = digest(&blob);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..20)
            .map(|number| {
                let (blob, name) = (&blob, &name);
                scope.spawn(move || {
                    let at = format!("/v2/r{}/blobs/uploads/?digest={name}", number % 3);
                    oci::ask(port, "POST", &at, &[], blob).map(|answer| answer.status).unwrap_or_default()
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap_or_default()).collect()
    });
    assert_eq!(statuses, vec![201; 20]);
    for number in 0..3 {
        assert!(registry.get(&format!("/v2/r{number}/blobs/{name}")).is(200).body == blob);
    }
    // One copy, and nothing half there.
    let folder = registry.daemon.data().join("registry");
    let files: Vec<_> = std::fs::read_dir(folder.join("blobs/sha256").join(&name[7..9])).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(std::fs::read_dir(folder.join("uploads")).unwrap().count(), 0);
}
