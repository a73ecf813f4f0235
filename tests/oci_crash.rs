//! What the image registry promises through kill -9: what it has acknowledged is there, whole; nothing half there is served; what was cut off
//! can be done again.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use oci::{MANIFEST, Registry, digest, image, noise};

// What clients were told to be there.
#[derive(Default)]
struct Told {
    blobs: BTreeMap<String, (String, Vec<u8>)>,
    manifests: BTreeMap<String, Vec<u8>>,
    deleted: Vec<String>,
}

// Pushes images until the registry is gone, each of a layer of its own and one that all share; every fourth is deleted again.
fn push_until_gone(port: u16, client: u64, first: u64, told: &Mutex<Told>, ended: &AtomicBool) {
    for number in first.. {
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let repository = format!("app{}", client % 2);
        let parts = [
            noise(client * 1_000_000_000 + number, 50_000),
            noise(number, 20_000),
            format!("{{\"n\":{number}}}").into_bytes(),
        ];
        for bytes in &parts {
            let name = digest(bytes);
            let at = format!("/v2/{repository}/blobs/uploads/?digest={name}");
            match oci::ask(port, "POST", &at, &[], bytes) {
                Ok(answer) if answer.status == 201 => {
                    let at = format!("/v2/{repository}/blobs/{name}");
                    told.lock().unwrap().blobs.insert(at, (name, bytes.clone()));
                }
                // Its end is what this is about.
                Ok(answer) => panic!("{answer:?}"),
                Err(_) => return,
            }
        }
        let manifest = image(&parts[2], &[&parts[0], &parts[1]]).to_string().into_bytes();
        let at = format!("/v2/{repository}/manifests/c{client}-{number}");
        match oci::ask(port, "PUT", &at, &[("Content-Type", MANIFEST)], &manifest) {
            Ok(answer) if answer.status == 201 => _ = told.lock().unwrap().manifests.insert(at.clone(), manifest),
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => return,
        }
        if number % 4 == 3 {
            // From here on nobody can say whether it is there, until it is known to be gone.
            let known = told.lock().unwrap().manifests.remove(&at);
            assert!(known.is_some());
            match oci::ask(port, "DELETE", &at, &[], b"") {
                Ok(answer) if answer.status == 202 => told.lock().unwrap().deleted.push(at),
                Ok(answer) => panic!("{answer:?}"),
                Err(_) => return,
            }
        }
    }
}

// `keeps`: also what no image is made of.
fn verify(registry: &Registry, told: &Told, keeps: bool) {
    for (at, (name, bytes)) in told.blobs.iter().filter(|_| keeps) {
        let found = registry.get(at);
        assert_eq!(found.status, 200, "{at} was acknowledged");
        assert!(found.body == *bytes && digest(&found.body) == *name, "{at} is another");
    }
    for (at, manifest) in &told.manifests {
        assert!(registry.get(at).is(200).body == *manifest, "{at}");
    }
    told.deleted.iter().for_each(|at| _ = registry.get(at).is(404));
    // Whatever has a blob's name is it, acknowledged or not.
    let folder = registry.daemon.data().join("registry/blobs/sha256");
    for within in std::fs::read_dir(folder).unwrap().flatten() {
        for file in std::fs::read_dir(within.path()).unwrap().flatten() {
            let name = format!("sha256:{}", file.file_name().to_string_lossy());
            assert_eq!(digest(&std::fs::read(file.path()).unwrap()), name);
        }
    }
    // All tags lead somewhere, and all that is named is there.
    for repository in ["app0", "app1"] {
        let tags = registry.get(&format!("/v2/{repository}/tags/list"));
        let tags = if tags.status == 200 { tags.json()["tags"].as_array().unwrap().clone() } else { Vec::new() };
        for tag in tags {
            let manifest =
                registry.get(&format!("/v2/{repository}/manifests/{}", tag.as_str().unwrap())).is(200).json();
            let layers = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
            for part in layers {
                let at = format!("/v2/{repository}/blobs/{}", part["digest"].as_str().unwrap());
                registry.head(&at).is(200);
            }
        }
    }
    let scrubbed = registry.daemon.neap(&["registry", "scrub"]);
    assert!(scrubbed.status.success(), "{scrubbed:?}");
}

fn load_until_gone(registry: &Registry, told: &Mutex<Told>, kill: impl FnOnce()) {
    // No tag twice: what one was deleted in is not what another pushes.
    static ROUND: AtomicU64 = AtomicU64::new(0);
    let first = ROUND.fetch_add(1, Ordering::SeqCst) * 1_000_000;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let ended = &ended;
                scope.spawn(move || push_until_gone(registry.port, client, first, told, ended))
            })
            .collect();
        kill();
        // Whoever hangs on for another reason is let go, and the test fails below.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while clients.iter().any(|client| !client.is_finished()) {
            if std::time::Instant::now() > until {
                ended.store(true, Ordering::SeqCst);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    assert!(!ended.load(Ordering::SeqCst), "it was to be killed");
}

#[test]
fn killed_at_each_point_of_a_push() {
    let mut registry = Registry::start();
    let told = Mutex::new(Told::default());
    for point in [
        "registry.receiving:90",
        "registry.before-sync:60",
        "registry.before-rename:61",
        "registry.after-rename:50",
        "registry.before-index:70",
        "registry.before-commit:60",
        "registry.after-commit:60",
    ] {
        registry.daemon.kill();
        registry.daemon.env.push(("NEAP_FAULT".into(), point.into()));
        registry.daemon.up();
        registry.wait();
        load_until_gone(&registry, &told, || {});
        registry.daemon.env.pop();
        registry.restart();
        verify(&registry, &told.lock().unwrap(), true);
    }
    let told = told.into_inner().unwrap();
    assert!(told.blobs.len() > 20 && told.manifests.len() > 3 && !told.deleted.is_empty(), "it did something");
    // What was cut off can be done again.
    let manifest = registry.push_image("app0", "again", &[&noise(3, 50_000)]);
    assert_eq!(registry.get("/v2/app0/manifests/again").is(200).body, manifest);
}

// At any point, with a collection beside that has much to do.
#[test]
fn killed_at_random_while_it_collects() {
    // Long enough for a push, and short enough for what the round before has deleted.
    let mut registry = Registry::with(&[("NEAP_REGISTRY_GRACE", "4s")]);
    let told = Mutex::new(Told::default());
    for round in 0..5_u64 {
        let program = registry.daemon.child.as_ref().unwrap().id();
        load_until_gone(&registry, &told, || {
            let collecting = [
                registry.daemon.command(&["registry", "gc"]).spawn(),
                registry.daemon.command(&["registry", "gc"]).spawn(),
            ];
            // At another moment each time, the same in each run of the test.
            std::thread::sleep(std::time::Duration::from_millis(150 + round * 83));
            let pid = nix::unistd::Pid::from_raw(i32::try_from(program).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            collecting.into_iter().for_each(|one| _ = one.unwrap().wait());
        });
        registry.restart();
        verify(&registry, &told.lock().unwrap(), false);
    }
    assert!(told.into_inner().unwrap().blobs.len() > 20);
}

// Between the index and the file: the file belongs to nothing, and is served to nobody.
#[test]
fn killed_while_it_removes() {
    let mut registry = Registry::with(&[("NEAP_REGISTRY_GRACE", "0s"), ("NEAP_FAULT", "registry.before-unlink")]);
    let blob = noise(77, 10_000);
    let name = registry.push("app", &blob);
    assert!(!registry.daemon.neap(&["registry", "gc"]).status.success(), "it was to be killed");
    registry.daemon.env.retain(|(variable, _)| variable != "NEAP_FAULT");
    registry.restart();
    registry.get(&format!("/v2/app/blobs/{name}")).is(404);
    let path = registry.daemon.data().join("registry/blobs/sha256").join(&name[7..9]).join(&name[7..]);
    assert!(path.exists(), "a file without an entry");
    registry.push("app", &blob);
    assert!(registry.get(&format!("/v2/app/blobs/{name}")).is(200).body == blob);
}
