//! Who may do what at the image registry.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use oci::{MANIFEST, Registry, digest, image, noise};
use serde_json::json;

#[test]
fn who_may_do_what() {
    let registry = Registry::with(&[("NEAP_REGISTRY_ACCESS", "token")]);
    let token = |name: &str, role: &str, prefix: &str| {
        registry.daemon.ok(&["token", "create", name, "--role", role, "--prefix", prefix]).trim().to_owned()
    };
    let (deployer, viewer, shop) =
        (token("ci", "deployer", ""), token("look", "viewer", ""), token("shop", "deployer", "shop/"));
    let bearer = |secret: &str| format!("Bearer {secret}");
    let basic = |secret: &str| {
        use base64::Engine;
        format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("whoever:{secret}")))
    };
    let ask = |method: &str, path: &str, who: &str, body: &[u8]| {
        let fields = [("Authorization", who), ("Content-Type", MANIFEST)];
        registry.ask(method, path, if who.is_empty() { &fields[1..] } else { &fields }, body)
    };
    // Whoever brings nothing is told how to ask for a token, and what for.
    let none = registry.get("/v2/").fails(401, "UNAUTHORIZED");
    assert_eq!(none.header("www-authenticate"), r#"Bearer realm="http://registry/v2/token",service="registry""#);
    let none = registry.get("/v2/shop/api/tags/list").is(401);
    assert!(none.header("www-authenticate").ends_with(r#",scope="repository:shop/api:pull,push""#), "{none:?}");
    ask("GET", "/v2/", &bearer("nonsense"), b"").fails(401, "UNAUTHORIZED");
    ask("GET", "/v2/", "Digest x", b"").fails(401, "UNAUTHORIZED");
    ask("GET", "/v2/", &basic(&viewer), b"").is(200);
    registry.get("/v2/token").is(401);
    ask("GET", "/v2/token?service=registry", &basic("nonsense"), b"").is(401);
    let given = ask("GET", "/v2/token?service=registry&scope=repository:a:pull", &basic(&deployer), b"").is(200).json();
    let given = bearer(given["token"].as_str().unwrap());

    let blob = noise(9, 1000);
    let push = |repository: &str, who: &str| {
        ask("POST", &format!("/v2/{repository}/blobs/uploads/?digest={}", digest(&blob)), who, &blob)
    };
    push("shop/api", &given).is(201);
    push("other", &bearer(&deployer)).is(201);
    push("shop/api", &bearer(&shop)).is(201);
    push("shop/api", &bearer(&viewer)).fails(403, "DENIED");
    push("shop/api", "").fails(401, "UNAUTHORIZED");
    push("other", &bearer(&shop)).fails(403, "DENIED");
    let at = |repository: &str| format!("/v2/{repository}/blobs/{}", digest(&blob));
    ask("GET", &at("shop/api"), &bearer(&viewer), b"").is(200);
    ask("GET", &at("other"), &bearer(&shop), b"").fails(403, "DENIED");
    ask("DELETE", &at("other"), &bearer(&viewer), b"").fails(403, "DENIED");
    // What may not be seen is not mounted from there: it has to be sent.
    let mount = |from: &str, who: &str| {
        ask("POST", &format!("/v2/shop/mine/blobs/uploads/?mount={}&from={from}", digest(&blob)), who, b"")
    };
    mount("other", &bearer(&shop)).is(202);
    mount("shop/api", &bearer(&shop)).is(201);
    // Lists hold what may be seen.
    ask("PUT", "/v2/shop/api/manifests/1", &bearer(&deployer), image(&blob, &[]).to_string().as_bytes()).is(201);
    ask("PUT", "/v2/other/manifests/1", &bearer(&deployer), image(&blob, &[]).to_string().as_bytes()).is(201);
    ask("PUT", "/v2/zoo/blobs/uploads/x?digest=x", &bearer(&shop), b"").is(403);
    let all = |who: &str| ask("GET", "/v2/_catalog?n=1", who, b"").is(200).json()["repositories"].clone();
    assert_eq!((all(&bearer(&viewer)), all(&bearer(&shop))), (json!(["other"]), json!(["shop/api"])));
    // One that is removed is of no use at once.
    registry.daemon.ok(&["token", "rm", "look"]);
    ask("GET", &at("shop/api"), &bearer(&viewer), b"").is(401);
}

#[test]
fn everybody_pulls_and_some_push() {
    let registry = Registry::with(&[("NEAP_REGISTRY_ACCESS", "pull")]);
    let secret = registry.daemon.ok(&["token", "create", "ci", "--role", "deployer"]).trim().to_owned();
    let who = format!("Bearer {secret}");
    let blob = noise(10, 1000);
    let at = format!("/v2/a/blobs/uploads/?digest={}", digest(&blob));
    registry.ask("POST", &at, &[], &blob).fails(401, "UNAUTHORIZED");
    registry.ask("POST", &at, &[("Authorization", &who)], &blob).is(201);
    assert_eq!(registry.get(&format!("/v2/a/blobs/{}", digest(&blob))).is(200).body, blob);
    // Docker asks once how to say who it is, and shows what anybody gets.
    registry.get("/v2/").is(401);
    let anybody = registry.get("/v2/token?service=registry").is(200).json()["token"].as_str().unwrap().to_owned();
    let anybody = format!("Bearer {anybody}");
    registry.ask("GET", "/v2/", &[("Authorization", &anybody)], b"").is(200);
    registry.ask("GET", "/v2/_catalog", &[("Authorization", &anybody)], b"").is(200);
    registry.ask("POST", &at, &[("Authorization", &anybody)], &blob).is(401);
    registry.ask("GET", "/v2/", &[("Authorization", "Bearer wrong")], b"").is(401);
}
