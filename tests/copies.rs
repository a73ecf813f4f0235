//! Images copied from one registry to another.

#[path = "support/distribution.rs"]
mod distribution;
#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;
#[path = "support/upstream.rs"]
mod upstream;

use std::process::Stdio;

use distribution::Distribution;
use oci::{INDEX, MANIFEST, Registry, descriptor, digest, noise};
use serde_json::{Value, json};
use upstream::{Mode, Upstream};

fn index(registry: &Registry, repository: &str) -> (String, Vec<u8>, Vec<u8>) {
    let amd = registry.push_image(repository, "amd", &[&noise(1, 2_000_000), b"shared"]);
    let arm = registry.push_image(repository, "arm", &[&noise(2, 500_000), b"shared"]);
    let of = |manifest: &[u8], architecture: &str, variant: Option<&str>| {
        let mut one = descriptor(MANIFEST, manifest);
        one["platform"] = json!({ "os": "linux", "architecture": architecture });
        if let Some(variant) = variant {
            one["platform"]["variant"] = json!(variant);
        }
        one
    };
    let manifests = [of(&amd, "amd64", None), of(&arm, "arm64", Some("v8"))];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
    registry.put_manifest(repository, "all", INDEX, index.as_bytes()).is(201);
    (index, amd, arm)
}

#[test]
fn images_are_copied_whole() {
    let (from, to) = (Registry::start(), Registry::start());
    let (index, amd, arm) = index(&from, "team/app");
    let copy = |args: &[&str]| to.daemon.json(&[&["registry", "copy"], args, &["--format", "json"]].concat());
    let source = format!("http://127.0.0.1:{}/team/app:all", from.port);
    let done = copy(&[&source, "app"]);
    assert_eq!(
        (&done["digest"], &done["of"], &done["blobs"]),
        (&json!(digest(index.as_bytes())), &json!(5), &json!(5))
    );
    // The tag is that of the image.
    assert_eq!(to.get("/v2/app/manifests/all").is(200).body, index.as_bytes());
    assert_eq!(to.get(&format!("/v2/app/manifests/{}", digest(&arm))).is(200).body, arm);
    assert_eq!(to.get(&format!("/v2/app/blobs/{}", digest(&noise(1, 2_000_000)))).is(200).body, noise(1, 2_000_000));
    // What is there is not sent again; within the registry nothing is.
    assert_eq!(copy(&[&source, "app:again"])["sent"], 0);
    assert_eq!(copy(&["app:all", "other/app"])["digest"], done["digest"]);
    assert_eq!(to.get("/v2/other/app/manifests/all").is(200).body, index.as_bytes());
    // An index of indexes that hold the same: what is held comes first.
    let of = |kind: &str, held: &[&str]| {
        let held: Vec<Value> = held.iter().map(|one| descriptor(kind, one.as_bytes())).collect();
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": held, "annotations": { "of": held.len().to_string() } }).to_string()
    };
    let inner = of(INDEX, &[&index]);
    let outer = of(INDEX, &[&index, &inner]);
    from.put_manifest("team/app", "inner", INDEX, inner.as_bytes()).is(201);
    from.put_manifest("team/app", "outer", INDEX, outer.as_bytes()).is(201);
    copy(&[&format!("http://127.0.0.1:{}/team/app:outer", from.port), "nested"]);
    assert_eq!(to.get("/v2/nested/manifests/outer").is(200).body, outer.as_bytes());
    // One of an index.
    assert_eq!(copy(&[&source, "small:1", "--platform", "linux/arm64"])["digest"], digest(&arm));
    assert_eq!(to.get("/v2/small/manifests/1").is(200).body, arm);
    let (_, said) = to.daemon.fails(&["registry", "copy", &source, "x", "--platform", "windows/amd64"]);
    assert!(said.contains("linux/amd64, linux/arm64/v8"), "{said}");
    // By its digest, under which it is there as well; and none that is not there.
    let by = format!("http://127.0.0.1:{}/team/app@{}", from.port, digest(&amd));
    copy(&[&by, "by"]);
    assert_eq!(to.get(&format!("/v2/by/manifests/{}", digest(&amd))).is(200).body, amd);
    let (_, said) = to.daemon.fails(&["registry", "copy", "none:1", "x"]);
    assert!(said.contains("copy of none:1 to x") && said.contains("no manifest 1"), "{said}");
    let (_, said) = to.daemon.fails(&["registry", "copy", "http://127.0.0.1:1/x", "x"]);
    assert!(said.contains("cannot be asked"), "{said}");
    let said = to.daemon.ok(&["registry", "copy", "app:all", "app:last"]);
    assert!(said.contains("5 blobs") && said.contains("0B sent"), "{said}");

    // A source that breaks off leaves nothing half there, and a push is an event.
    let between = Upstream::before(from.port);
    between.set(Mode::Cut(1000));
    let (_, said) =
        to.daemon.fails(&["registry", "copy", &format!("http://127.0.0.1:{}/team/app:all", between.port), "cut:1"]);
    assert!(said.contains("broke off"), "{said}");
    to.get("/v2/cut/manifests/1").is(404);
    let uploads = std::fs::read_dir(to.daemon.data().join("registry/uploads")).unwrap().count();
    assert_eq!(uploads, 0);
    assert!(to.daemon.log().contains("event=\"image.pushed\" subject=\"small:1\""));

    // By a script, and up to another one.
    let file = to.daemon.data().join("copy.lua");
    let up = format!("http://127.0.0.1:{}/back/app:all", from.port);
    std::fs::write(
        &file,
        format!("local done = registry.copy {{ from = 'app:all', to = '{up}' }}\nprint(done.digest, done.done)"),
    )
    .unwrap();
    assert_eq!(to.daemon.ok(&["run", file.to_str().unwrap()]), format!("{}\ttrue\n", digest(index.as_bytes())));
    assert_eq!(from.get("/v2/back/app/manifests/all").is(200).body, index.as_bytes());
}

#[test]
fn images_are_pushed_to_a_registry_that_asks_who_one_is() {
    if !distribution::is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let peer = Distribution::start(folder.path(), true);
    let port = peer.port;
    // And one of ours that wants a token, which clients of registries get for a name and a password.
    let strict = Registry::with(&[("NEAP_REGISTRY_ACCESS", "token")]);
    let token = strict.daemon.ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();

    let own = Registry::start();
    let manifest = own.push_image("app", "1", &[&noise(5, 3_000_000), b"two"]);
    let login = |port: u16, user: &str, password: &str| {
        let at = format!("127.0.0.1:{port}");
        let mut command =
            own.daemon.command(&["registry", "login", &at, "-u", user, "--password-stdin", "--unverified"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), password.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    for (port, user, password) in [(port, "neap", "secret"), (strict.port, "ci", token.as_str())] {
        let to = format!("http://127.0.0.1:{port}/team/app:1");
        let (_, said) = own.daemon.fails(&["registry", "copy", "app:1", &to]);
        assert!(said.contains("without a login") || said.contains("no token"), "{said}");
        login(port, user, password);
        own.daemon.ok(&["registry", "copy", "app:1", &to]);
        // And back again, as it was.
        own.daemon.ok(&["registry", "copy", &to, &format!("back/p{port}:1")]);
        assert_eq!(own.get(&format!("/v2/back/p{port}/manifests/1")).is(200).body, manifest);
        let resolved = own.daemon.ok(&["registry", "resolve", &to]);
        assert_eq!(resolved.trim(), format!("127.0.0.1:{port}/team/app@{}", digest(&manifest)));
    }
    let log: Value = json!(own.daemon.log());
    assert!(!log.to_string().contains("secret"), "a password is in the log");
}

#[test]
fn a_folder_of_dockers_registry_is_taken_over() {
    if !distribution::is_there() {
        return;
    }
    let own = Registry::start();
    // Beside the daemon's: files are shared.
    let folder = own.daemon.data().parent().unwrap().join("distribution");
    std::fs::create_dir_all(&folder).unwrap();
    let peer = Distribution::start(&folder, false);
    let port = peer.port;
    let (index, amd, _) = index(&own, "app");
    let broken = own.push_image("broken", "1", &[&noise(8, 10_000)]);
    let to = |name: &str| format!("http://127.0.0.1:{port}/{name}");
    own.daemon.ok(&["registry", "copy", "app:all", &to("team/app:all")]);
    own.daemon.ok(&["registry", "copy", "app:amd", &to("team/deep/er/app:1.0")]);
    own.daemon.ok(&["registry", "copy", "broken:1", &to("broken:1")]);
    drop(peer);
    let hex = digest(&noise(8, 10_000)).replace("sha256:", "");
    let blob = folder.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    std::fs::write(&blob, noise(9, 10_000)).unwrap();

    let fresh = Registry::start();
    let (_, said) = fresh.daemon.fails(&["registry", "import", "/nowhere"]);
    assert!(said.contains("rootdirectory"), "{said}");
    let output = fresh.daemon.neap(&["registry", "import", folder.to_str().unwrap(), "--format", "json"]);
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success(), "something was left out: {done}");
    assert_eq!((&done["repositories"], &done["tags"], &done["left_out"]), (&json!(3), &json!(2), &json!(1)), "{done}");
    assert!(done["left"][0].as_str().unwrap().contains(&format!("broken@{}", digest(&broken))), "{done}");
    assert_eq!(fresh.get("/v2/team/app/manifests/all").is(200).body, index.as_bytes());
    assert_eq!(fresh.get("/v2/team/deep/er/app/manifests/1.0").is(200).body, amd);
    let large = noise(1, 2_000_000);
    assert_eq!(fresh.get(&format!("/v2/team/app/blobs/{}", digest(&large))).is(200).body, large);
    fresh.get("/v2/broken/manifests/1").is(404);
    fresh.daemon.ok(&["registry", "scrub"]);
    // Once more brings nothing more; and by a script, of some.
    let file = fresh.daemon.data().join("import.lua");
    let text = format!(
        "local done = registry.import {{ folder = '{}', prefix = 'team/deep' }}\nprint(done.repositories, done.blobs, done.left_out)",
        folder.display()
    );
    std::fs::write(&file, text).unwrap();
    assert_eq!(fresh.daemon.ok(&["run", file.to_str().unwrap()]), "1\t0\t0\n");
    // The folder may go.
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(fresh.get(&format!("/v2/team/app/blobs/{}", digest(&large))).is(200).body, large);
}
