//! The image registry of a Swarm that is kept in a bucket as well: another host takes over with all that was acknowledged.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/oci.rs"]
mod oci;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/s3.rs"]
mod s3;
#[path = "support/mod.rs"]
mod support;

use lab::{Lab, LabDaemon};
use s3::Bucket;
use support::eventually;

// The status and the body of an answer of a host's door.
fn asked(lab: &Lab, node: &str, path: &str, more: &[&str]) -> (String, String) {
    let url = format!("http://127.0.0.1:5000{path}");
    let output = lab.exec(node, &[&["curl", "-s", "-m", "60", "-w", "\n%{http_code}"], more, &[&url]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.to_owned(), body.to_owned())
}

fn put(lab: &Lab, node: &str, tag: &str) -> String {
    let text = |bytes: &str| {
        format!("@{}", {
            let path = lab.folder().join("body");
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        })
    };
    let (config, layer) = (format!("{{\"image\":\"{tag}\"}}"), format!("layer of {tag}"));
    for bytes in [&config, &layer] {
        let at = format!("/v2/app/blobs/uploads/?digest={}", oci::digest(bytes.as_bytes()));
        let (status, body) = asked(lab, node, &at, &["-X", "POST", "--data-binary", &text(bytes)]);
        assert_eq!(status, "201", "{body}");
    }
    let manifest = oci::image(config.as_bytes(), &[layer.as_bytes()]).to_string();
    let kind = format!("Content-Type: {}", oci::MANIFEST);
    let at = format!("/v2/app/manifests/{tag}");
    asked(lab, node, &at, &["-X", "PUT", "-H", &kind, "--data-binary", &text(&manifest)]).0
}

fn has(lab: &Lab, node: &str, tag: &str) -> bool {
    let (status, body) = asked(lab, node, &format!("/v2/app/manifests/{tag}"), &[]);
    let layer = oci::digest(format!("layer of {tag}").as_bytes());
    status == "200"
        && body.contains(&layer)
        && asked(lab, node, &format!("/v2/app/blobs/{layer}"), &[]) == ("200".into(), format!("layer of {tag}"))
}

#[test]
fn another_host_takes_over_with_what_the_bucket_holds() {
    if lab::missing().is_some() {
        return;
    }
    let lab = Lab::up(3, 3);
    let bucket = Bucket::at("0.0.0.0");
    let endpoint = format!("http://{}:{}", lab.host_address(), bucket.port);
    let env: Vec<String> = bucket
        .env()
        .into_iter()
        .filter(|(name, _)| !name.contains("ENDPOINT"))
        .map(|(name, value)| format!("{name}={value}"))
        .chain([format!("NEAP_REGISTRY_ENDPOINT={endpoint}"), "NEAP_REGISTRY_ACCESS=open".to_owned()])
        .collect();
    let env: Vec<&str> = env.iter().map(String::as_str).collect();
    let keeps: &[&str] = &["--roles", "registry"];
    let daemons =
        [("n1", &[][..]), ("n2", keeps), ("n3", keeps)].map(|(node, flags)| LabDaemon::new(&lab, node, flags));
    let plain: &[&str] = &[];
    daemons[0].up(plain);
    daemons[1].up(&env);
    let keeper = || daemons[0].neap(&["registry", "keeper"]);
    let keeper = || String::from_utf8_lossy(&keeper().stdout).into_owned();
    eventually("n2 keeps them", 30, || keeper().starts_with("n2").then_some(()));
    daemons[2].up(&env);
    eventually("n3 could as well", 30, || keeper().contains("n3").then_some(()));
    eventually("it is open", 30, || (put(&lab, "n1", "one") == "201").then_some(()));
    assert_eq!(put(&lab, "n3", "two"), "201");
    // It is gone, without a word: what it has acknowledged is with the next one.
    daemons[1].end("KILL");
    assert_eq!(asked(&lab, "n1", "/v2/app/tags/list", &[]).0, "503");
    eventually("n3 keeps them", 60, || keeper().starts_with("n3").then_some(()));
    eventually("n3 serves them", 30, || has(&lab, "n1", "one").then_some(()));
    assert!(has(&lab, "n3", "two"));
    assert_eq!(put(&lab, "n1", "three"), "201");
    // It comes back, thinks for a moment that it keeps them, and is a door.
    daemons[1].up(&env);
    eventually("the door of n2 leads to n3", 60, || has(&lab, "n2", "three").then_some(()));
    assert_eq!(put(&lab, "n2", "four"), "201");
    assert!(keeper().starts_with("n3"), "{}", keeper());
    // By word of mouth, with what has come since.
    daemons[0].ok(&["registry", "keeper", "n2"]);
    eventually("n2 serves them", 60, || has(&lab, "n3", "four").then_some(()));
    assert_eq!(put(&lab, "n3", "five"), "201");
    for tag in ["one", "two", "three", "four", "five"] {
        assert!(has(&lab, "n1", tag), "{tag}");
    }
    daemons[0].ok(&["registry", "keeper", "n3"]);
    eventually("n3 serves them again", 60, || has(&lab, "n2", "five").then_some(()));
    assert_eq!(put(&lab, "n2", "six"), "201");
}
