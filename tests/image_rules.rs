//! Rules for repositories of the image registry, users with passwords, and what goes by itself.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use oci::{Answer, INDEX, MANIFEST, Registry, descriptor, digest, image, noise};
use serde_json::{Value, json};
use support::{eventually, free_port};

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn push_as(registry: &Registry, who: &str, repository: &str, tag: &str) -> Answer {
    let blob = b"{}".as_slice();
    let at = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(blob));
    let sent = registry.ask("POST", &at, &[("Authorization", who)], blob);
    if sent.status != 201 {
        return sent;
    }
    let headers = [("Authorization", who), ("Content-Type", MANIFEST)];
    let manifest = image(blob, &[]).to_string();
    registry.ask("PUT", &format!("/v2/{repository}/manifests/{tag}"), &headers, manifest.as_bytes())
}

#[test]
fn rules_say_who_may_do_what() {
    let api = free_port();
    let mut registry = Registry::with(&[("NEAP_LISTEN", &format!("127.0.0.1:{api}"))]);
    let token = |name: &str, role: &str| {
        let secret = registry.daemon.ok(&["token", "create", name, "--role", role]).trim().to_owned();
        format!("Bearer {secret}")
    };
    let (ci, release, admin) = (token("ci", "deployer"), token("release", "deployer"), token("boss", "admin"));
    registry.daemon.ok(&["registry", "rule", "set", "shop/*", "--push", "ci,release", "--delete", "release"]);
    registry.daemon.ok(&["registry", "rule", "set", "secret/*", "--pull", "ci", "--push", "known"]);
    let tags =
        |who: &[(&str, &str)], repository: &str| registry.ask("GET", &format!("/v2/{repository}/tags/list"), who, b"");
    // Whoever a rule wants to know says so; Docker is told at once that it may have to.
    let asked = registry.get("/v2/").is(401);
    assert!(asked.header("www-authenticate").starts_with("Bearer realm="), "{asked:?}");
    registry.ask("GET", "/v2/", &[("Authorization", &ci)], b"").is(200);
    let anybody = registry.get("/v2/token").is(200).json()["token"].as_str().unwrap().to_owned();
    let anybody = format!("Bearer {anybody}");
    registry.ask("GET", "/v2/", &[("Authorization", &anybody)], b"").is(200);
    push_as(&registry, &anybody, "shop/api", "1").fails(401, "UNAUTHORIZED");
    push_as(&registry, "Bearer nonsense", "shop/api", "1").fails(401, "UNAUTHORIZED");
    push_as(&registry, &ci, "shop/api", "1").is(201);
    push_as(&registry, &anybody, "other", "1").is(201);
    tags(&[], "shop/api").is(200);
    let gone = |who: &str| registry.ask("DELETE", "/v2/shop/api/manifests/1", &[("Authorization", who)], b"");
    let refused = gone(&ci).fails(403, "DENIED");
    assert!(String::from_utf8_lossy(&refused.body).contains("a rule names who may"), "{refused:?}");
    gone(&release).is(202);
    push_as(&registry, &admin, "shop/api", "1").is(201);

    push_as(&registry, &release, "secret/plan", "1").is(201);
    tags(&[("Authorization", &release)], "secret/plan").fails(403, "DENIED");
    tags(&[], "secret/plan").fails(401, "UNAUTHORIZED");
    tags(&[("Authorization", &ci)], "secret/plan").is(200);
    // Nobody mounts from where they do not see, and lists hold what is seen.
    let blob = digest(b"{}");
    let mount = format!("/v2/other/blobs/uploads/?mount={blob}&from=secret/plan");
    registry.ask("POST", &mount, &[], b"").is(202);
    let names =
        |who: &[(&str, &str)]| registry.ask("GET", "/v2/_catalog", who, b"").is(200).json()["repositories"].clone();
    assert_eq!(names(&[("Authorization", &anybody)]), json!(["other", "shop/api"]));
    assert_eq!(names(&[("Authorization", &ci)]), json!(["other", "secret/plan", "shop/api"]));

    // They hold for the control API as well: as that of a token, by TLS.
    let asks = |who: &str, method: &str, path: &str| {
        let url = format!("https://127.0.0.1:{api}{path}");
        let header = format!("Authorization: {who}");
        let output = std::process::Command::new("curl")
            .args(["-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-H", &header, &url])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(asks(&release, "GET", "/v1/images/secret%2Fplan/tags"), "403");
    assert_eq!(asks(&ci, "GET", "/v1/images/secret%2Fplan/tags"), "200");
    assert_eq!(asks(&ci, "DELETE", "/v1/images/shop%2Fapi%3A1"), "403");
    assert_eq!(asks(&ci, "POST", "/v1/image-registry/prune"), "400", "nothing is said of what is to go");
    assert_eq!(asks(&release, "DELETE", "/v1/images/shop%2Fapi%3A1"), "200");
    push_as(&registry, &release, "shop/api", "1").is(201);

    // They hold behind a restart, are listed, and go.
    registry.restart();
    push_as(&registry, &anybody, "shop/api", "2").fails(401, "UNAUTHORIZED");
    let listed = registry.daemon.ok(&["registry", "rule", "ls"]);
    assert!(listed.contains("ci,release") && listed.contains("secret/*"), "{listed}");
    let (_, said) = registry.daemon.fails(&["registry", "rule", "set", "x/*"]);
    assert!(said.contains("says nothing"), "{said}");
    let (_, said) = registry.daemon.fails(&["registry", "rule", "rm", "none"]);
    assert!(said.contains("none"), "{said}");
    registry.daemon.ok(&["registry", "rule", "rm", "shop/*", "secret/*"]);
    push_as(&registry, "", "shop/api", "2").is(201);
    registry.get("/v2/").is(200);
}

#[test]
fn tags_that_stay_and_repositories_that_are_full() {
    let registry = Registry::start();
    let file = registry.daemon.data().join("rules.lua");
    let text = "registry.set_rule('shop/*', { immutable = { 'v*' }, quota = '3MB' })\n\
                for _, one in registry.rules() do print(one.repositories, one.rule.immutable[1], one.rule.quota) end\n\
                print(pcall(registry.set_rule, 'x', { quotas = 1 }))";
    std::fs::write(&file, text).unwrap();
    let said = registry.daemon.ok(&["run", file.to_str().unwrap()]);
    assert!(said.starts_with("shop/*\tv*\t3000000\nfalse\t") && said.contains("quotas"), "{said}");
    let first = registry.push_image("shop/api", "v1", &[&noise(1, 1_000_000)]);
    // The same again is no change; another is.
    registry.put_manifest("shop/api", "v1", MANIFEST, &first).is(201);
    let config = b"{\"image\":\"x\"}";
    registry.push("shop/api", config);
    let other = image(config, &[]).to_string();
    let refused = registry.put_manifest("shop/api", "v1", MANIFEST, other.as_bytes()).fails(403, "DENIED");
    assert!(String::from_utf8_lossy(&refused.body).contains("immutable"), "{refused:?}");
    registry.put_manifest("shop/api", "live", MANIFEST, other.as_bytes()).is(201);
    registry.put_manifest("shop/api", "live", MANIFEST, &first).is(201);
    registry.delete("/v2/shop/api/manifests/v1").fails(403, "DENIED");
    registry.delete(&format!("/v2/shop/api/manifests/{}", digest(&first))).fails(403, "DENIED");
    let (_, said) = registry.daemon.fails(&["registry", "rm", "shop/api:v1"]);
    assert!(said.contains("immutable"), "{said}");
    registry.delete("/v2/shop/api/manifests/live").is(202);
    // Nor what such a tag leads to by an index.
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, other.as_bytes())] });
    registry.put_manifest("shop/api", "v2", INDEX, index.to_string().as_bytes()).is(201);
    registry.delete(&format!("/v2/shop/api/manifests/{}", digest(other.as_bytes()))).fails(403, "DENIED");

    // A megabyte is there, and two more are too many with what is there; what is there already costs nothing.
    let large = noise(2, 2_500_000);
    let at = format!("/v2/shop/api/blobs/uploads/?digest={}", digest(&large));
    let refused = registry.ask("POST", &at, &[], &large).fails(403, "DENIED");
    assert!(String::from_utf8_lossy(&refused.body).contains("may hold 2.9MiB, and would hold 3.3MiB"), "{refused:?}");
    registry.head(&format!("/v2/shop/api/blobs/{}", digest(&large))).is(404);
    registry.push("free", &large);
    let mount = format!("/v2/shop/api/blobs/uploads/?mount={}&from=free", digest(&large));
    registry.ask("POST", &mount, &[], b"").fails(403, "DENIED");
    registry.push("shop/api", &noise(1, 1_000_000));
    registry.push("shop/web", &large);
    let text = "print(registry.resolve 'shop/api:v1')\nregistry.remove_rule 'shop/*'\nprint(#registry.rules())";
    std::fs::write(&file, text).unwrap();
    let said = registry.daemon.ok(&["run", file.to_str().unwrap()]);
    assert_eq!(said, format!("127.0.0.1:{}/shop/api@{}\n0\n", registry.port, digest(&first)));
    let (_, said) = registry.daemon.fails(&["registry", "resolve", "shop/api:none"]);
    assert!(said.contains("there is no manifest none"), "{said}");
}

#[test]
fn users_with_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    // neap, secret.
    let neap = "neap:$2b$04$qbJ/MKgCGBDS0aZW6WXVZ.9NzSRc7BLy/O5ddcL4hGtImmsdyIRJ2\n";
    std::fs::write(&path, neap).unwrap();
    let env = [("NEAP_REGISTRY_HTPASSWD", path.to_str().unwrap()), ("NEAP_REGISTRY_ACCESS", "token")];
    let registry = Registry::with(&env);
    let token = registry.daemon.ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();
    let who = basic("neap", "secret");
    for wrong in [basic("neap", "wrong"), basic("other", "secret"), "Basic ???".into()] {
        registry.ask("GET", "/v2/", &[("Authorization", &wrong)], b"").fails(401, "UNAUTHORIZED");
    }
    registry.ask("GET", "/v2/", &[("Authorization", &who)], b"").is(200);
    push_as(&registry, &who, "shop/api", "1").is(201);
    // As Docker does it: a token for the name and the password. Neap's own go on beside them.
    let given = registry.ask("GET", "/v2/token", &[("Authorization", &who)], b"").is(200).json();
    let bearer = format!("Bearer {}", given["token"].as_str().unwrap());
    registry.ask("GET", "/v2/shop/api/tags/list", &[("Authorization", &bearer)], b"").is(200);
    registry.ask("GET", "/v2/token", &[("Authorization", &basic("neap", "no"))], b"").fails(401, "UNAUTHORIZED");
    push_as(&registry, &basic("anything", &token), "shop/api", "2").is(201);
    // A rule knows them by name.
    registry.daemon.ok(&["registry", "rule", "set", "shop/*", "--push", "ci"]);
    push_as(&registry, &who, "shop/api", "3").fails(403, "DENIED");
    push_as(&registry, &bearer, "shop/web", "3").fails(403, "DENIED");
    push_as(&registry, &bearer, "else", "3").is(201);
    // Who says nothing sees nothing, whatever else is let in: nothing is mounted out of what is not theirs to see.
    registry.daemon.ok(&["registry", "rule", "set", "open/*", "--push", "anybody", "--pull", "anybody"]);
    let given = registry.get("/v2/token").is(200).json()["token"].as_str().unwrap().to_owned();
    let anybody = format!("Bearer {given}");
    let mount = format!("/v2/open/x/blobs/uploads/?mount={}&from=shop/api", digest(b"{}"));
    registry.ask("POST", &mount, &[("Authorization", &anybody)], b"").is(202);
    push_as(&registry, &anybody, "open/x", "1").is(201);
    registry.ask("GET", "/v2/shop/api/tags/list", &[("Authorization", &anybody)], b"").fails(401, "UNAUTHORIZED");
    // The file is read again; one that cannot be read changes nothing.
    std::fs::write(&path, format!("{neap}broken\n")).unwrap();
    eventually("it is told", 10, || {
        registry.ask("GET", "/v2/", &[("Authorization", &who)], b"").is(200);
        registry.daemon.log().contains("stay as they were").then_some(())
    });
    std::fs::write(&path, "").unwrap();
    eventually("the user is gone", 10, || {
        (registry.ask("GET", "/v2/", &[("Authorization", &who)], b"").status == 401).then_some(())
    });
    let said = registry.daemon.log();
    assert!(!said.contains("secret"), "a password is in the log");
}

#[test]
fn what_is_old_or_too_much_goes() {
    let registry = Registry::start();
    for number in 1..=5 {
        registry.push_image("shop/api", &format!("pr-{number}"), &[format!("layer {number}").as_bytes()]);
    }
    let kept = registry.push_image("shop/api", "1.0", &[b"kept"]);
    registry.push_image("other", "pr-1", &[b"else"]);
    let prune = |args: &[&str]| {
        let all = [&["registry", "prune"], args, &["--format", "json"]].concat();
        registry.daemon.json(&all)
    };
    let tags = |repository: &str| {
        registry.get(&format!("/v2/{repository}/tags/list")).json()["tags"].as_array().cloned().unwrap_or_default()
    };
    let gone = |value: &Value| value["images"].as_array().unwrap().len();
    // Only said; then done: the oldest, by when they were set.
    assert_eq!(gone(&prune(&["shop/*", "--tags", "pr-*", "--keep", "2", "--dry-run"])), 3);
    assert_eq!(tags("shop/api").len(), 6);
    let said = registry.daemon.ok(&["registry", "prune", "shop/*", "--tags", "pr-*", "--keep", "2"]);
    assert!(said.contains("shop/api:pr-3 sha256:") && said.contains("3 gone"), "{said}");
    assert_eq!(tags("shop/api"), ["1.0", "pr-4", "pr-5"]);
    assert_eq!(tags("other"), ["pr-1"]);
    // All of it is younger than an hour.
    assert_eq!(gone(&prune(&["*", "--older-than", "1h"])), 0);
    assert_eq!(gone(&prune(&["*", "--keep", "0", "--older-than", "1h", "--untagged"])), 0);
    // What is in use stays, by tag or by digest, and so does what a rule keeps.
    registry.daemon.ok(&["registry", "rule", "set", "*", "--immutable", "pr-5"]);
    let file = registry.daemon.data().join("prune.lua");
    let text = format!(
        "local gone = registry.prune {{ repositories = 'shop/*', keep = 0, dry_run = true,\n\
         in_use = {{ '127.0.0.1:5000/shop/api@{}' }} }}\n\
         print(#gone.images, gone.images[1].tag, gone.in_use, gone.immutable)\n\
         print(pcall(registry.prune, {{ repositories = '*' }}))",
        digest(&kept)
    );
    std::fs::write(&file, text).unwrap();
    let said = registry.daemon.ok(&["run", file.to_str().unwrap()]);
    assert!(said.starts_with("1\tpr-4\t1\t1\nfalse\t") && said.contains("says nothing of what goes"), "{said}");

    // Manifests that nothing leads to: not those of an index, nor a signature of what is there.
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(MANIFEST, &kept)] }).to_string();
    registry.put_manifest("shop/api", "all", INDEX, index.as_bytes()).is(201);
    let config = b"{\"image\":\"1.0\"}".as_slice();
    let mut signature = image(config, &[]);
    signature["subject"] = descriptor(MANIFEST, &kept);
    let signature = signature.to_string();
    registry.put_manifest("shop/api", &digest(signature.as_bytes()), MANIFEST, signature.as_bytes()).is(201);
    registry.delete("/v2/shop/api/manifests/1.0").is(202);
    let done = prune(&["shop/*", "--untagged", "--older-than", "1ms"]);
    // Tags that are older than that as well, but for the one that a rule keeps.
    let names: Vec<&str> = done["images"].as_array().unwrap().iter().filter_map(|one| one["tag"].as_str()).collect();
    assert_eq!(names, ["all", "pr-4"]);
    registry.head(&format!("/v2/shop/api/manifests/{}", digest(&kept))).is(404);
    registry.head(&format!("/v2/shop/api/manifests/{}", digest(signature.as_bytes()))).is(404);
    assert_eq!(tags("shop/api"), ["pr-5"]);
    // A script does it at night.
    registry.daemon.ok(&["script", "push", "retention", concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/retention.lua")]);
    registry.daemon.ok(&["cron", "run", "retention"]);
    assert_eq!(tags("shop/api"), ["pr-5"]);
}

#[test]
fn the_registry_in_numbers() {
    let registry = Registry::start();
    registry.push_image("shop/api", "1", &[&noise(1, 100_000)]);
    registry.get("/v2/shop/api/manifests/1").is(200);
    registry.get("/v2/shop/api/manifests/2").is(404);
    registry.get("/nothing").is(404);
    let answer = registry.get("/metrics").is(200);
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        r#"neap_registry_requests_total{kind="manifest",method="PUT",status="2xx"} 1"#,
        r#"neap_registry_requests_total{kind="manifest",method="GET",status="4xx"} 1"#,
        r#"neap_registry_request_seconds_count{kind="manifest"} 3"#,
        r#"neap_registry_repository_bytes{repository="shop/api"} "#,
        "neap_registry_blobs 2",
        "neap_registry_received_bytes_total 100013",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // As Prometheus reads it.
    let checked =
        std::process::Command::new("promtool").args(["check", "metrics"]).stdin(std::process::Stdio::piped()).spawn();
    match checked {
        Ok(mut child) => {
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{text}");
        }
        Err(_) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "promtool is not installed");
            println!("skipped: promtool is not installed");
        }
    }
    let stats = registry.daemon.json(&["registry", "stats", "--format", "json"]);
    assert_eq!((&stats["held"]["tags"], &stats["held"]["largest"][0]["name"]), (&json!(1), &json!("shop/api")));
    let shown = registry.daemon.ok(&["registry", "stats"]);
    assert!(shown.contains("shop/api") && shown.contains("manifest") && shown.contains(" ms"), "{shown}");
    let file = registry.daemon.data().join("stats.lua");
    std::fs::write(&file, "local stats = registry.stats()\nprint(stats.held.blobs, stats.received)").unwrap();
    assert_eq!(registry.daemon.ok(&["run", file.to_str().unwrap()]), "2\t100013\n");
}

#[test]
fn an_address_that_asks_too_much_is_told_to_wait() {
    let registry = Registry::with(&[("NEAP_REGISTRY_RATE", "5")]);
    let refused = (0..200).map(|_| registry.get("/v2/")).find(|answer| answer.status != 200);
    let refused = refused.expect("no request was one too many").fails(429, "TOOMANYREQUESTS");
    assert_eq!(refused.header("retry-after"), "1");
    eventually("it may ask again", 10, || (registry.get("/v2/").status == 200).then_some(()));
}
