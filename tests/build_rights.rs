//! Who may build images, let Docker Engines push and pull, and go on with uploads: by the control API, with tokens.

#[path = "support/oci.rs"]
mod oci;
#[path = "support/mod.rs"]
mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use oci::{Registry, digest};
use serde_json::{Value, json};
use support::free_port;

struct Api {
    registry: Registry,
    port: u16,
}

impl Api {
    fn ask(&self, who: &str, method: &str, path: &str, body: &Value) -> (u16, String) {
        let url = format!("https://127.0.0.1:{}/v1/image-registry/{path}", self.port);
        let header = format!("Authorization: Bearer {who}");
        let mut curl = Command::new("curl")
            .args(["-sk", "-m", "20", "-w", "\n%{http_code}", "-X", method, "-H", &header, "--data-binary", "@-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        curl.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let output = curl.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (said, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), said.to_owned())
    }

    #[track_caller]
    fn is(&self, status: u16, who: &str, method: &str, path: &str, body: &Value) -> String {
        let (is, said) = self.ask(who, method, path, body);
        assert_eq!(is, status, "{method} {path} {body}: {said}");
        said
    }
}

#[test]
fn who_may_build_push_and_pull() {
    let port = free_port();
    let registry = Registry::with(&[("NEAP_LISTEN", &format!("127.0.0.1:{port}"))]);
    let token = |args: &[&str]| registry.daemon.ok(&[&["token", "create"], args].concat()).trim().to_owned();
    let viewer = token(&["sees", "--role", "viewer"]);
    let (shop, all) =
        (token(&["shop", "--role", "deployer", "--prefix", "shop/"]), token(&["all", "--role", "deployer"]));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), "f").unwrap();
    let copy = format!("{}:/f", folder.path().join("f").display());
    for image in ["secret/base:1", "other/base:1", "shop/base:1"] {
        registry.daemon.ok(&["registry", "build", image, "--copy", &copy]);
    }
    registry.daemon.ok(&["registry", "rule", "set", "secret/*", "--pull", "nobody-at-all", "--push", "nobody-at-all"]);
    let api = Api { registry, port };
    let base = |image: &str, from: &str| json!({ "image": image, "from": from, "tree": true });
    let none = Value::Null;

    // Whoever only looks makes nothing.
    api.is(403, &viewer, "POST", "base", &base("a:1", "other/base:1"));
    api.is(403, &viewer, "POST", "uploads?repository=a", &none);
    api.is(403, &viewer, "POST", "build", &json!({ "image": "a:1", "layers": [] }));
    api.is(403, &viewer, "POST", "pull", &json!({ "image": "shop/base:1" }));
    api.is(403, &viewer, "POST", "push", &json!({ "image": "a:1" }));
    api.is(200, &viewer, "GET", "door", &none);

    // From what one may pull, to where one may push: by prefix and by rule.
    assert!(api.is(200, &all, "POST", "base", &base("a:1", "other/base:1")).contains("\"done\":true"));
    api.is(403, &all, "POST", "base", &base("a:1", "secret/base:1"));
    api.is(403, &all, "POST", "base", &base("secret/a:1", "other/base:1"));
    assert!(api.is(200, &shop, "POST", "base", &base("shop/a:1", "shop/base:1")).contains("\"done\":true"));
    api.is(403, &shop, "POST", "base", &base("shop/a:1", "other/base:1"));
    api.is(403, &shop, "POST", "base", &base("other/a:1", "shop/base:1"));
    api.is(403, &all, "POST", "uploads?repository=secret/a", &none);
    api.is(403, &shop, "POST", "uploads?repository=other", &none);
    api.is(403, &shop, "POST", "build", &json!({ "image": "other/a:1", "layers": [] }));

    // An upload is of its repository, a piece once more is none more, and one that does not follow is refused.
    let upload: String = serde_json::from_str(&api.is(200, &shop, "POST", "uploads?repository=shop/a", &none)).unwrap();
    let piece = |offset: u64| json!({ "offset": offset, "bytes": "cGllY2U=" });
    let at = |repository: &str| format!("uploads/{upload}?repository={repository}");
    assert_eq!(api.is(200, &shop, "PATCH", &at("shop/a"), &piece(0)), "5");
    assert_eq!(api.is(200, &shop, "PATCH", &at("shop/a"), &piece(0)), "5");
    api.is(400, &shop, "PATCH", &at("shop/a"), &piece(9));
    api.is(400, &shop, "PATCH", &at("shop/a"), &json!({ "offset": 5, "bytes": "not base64" }));
    api.is(404, &shop, "PATCH", &at("shop/b"), &piece(5));
    api.is(403, &shop, "PATCH", &at("other"), &piece(5));
    let end = |bytes: &[u8]| format!("{}&digest={}", at("shop/a"), digest(bytes));
    assert_eq!(api.is(200, &shop, "PUT", &end(b"piece"), &none), "5");
    // Its answer may have been lost.
    assert_eq!(api.is(200, &shop, "PUT", &end(b"piece"), &none), "5");
    api.is(404, &shop, "PUT", &end(b"other"), &none);
    api.is(200, &shop, "DELETE", &at("shop/a"), &none);
    // A base that somebody made up shows nothing that is not in the repository.
    let layer = api.registry.get("/v2/other/base/manifests/1").is(200).json();
    let made_up =
        json!({ "name": "x", "digest": digest(b"x"), "media_type": layer["mediaType"], "manifest": layer.to_string() });
    let ask = json!({ "image": "shop/stolen:1", "base": made_up, "layers": [], "settings": {} });
    assert!(api.is(404, &shop, "POST", "build", &ask).contains("no blob"));

    // What hosts have is for those whose names they are.
    api.is(403, &shop, "POST", "push", &json!({ "image": "db:1", "to": "shop/x:1" }));
    api.is(403, &shop, "POST", "push", &json!({ "image": "reg.other:5000/shop/db:1", "to": "shop/x:1" }));
    api.is(403, &shop, "POST", "push", &json!({ "image": "dbcafe", "to": "shop/x:1" }));
    api.is(403, &shop, "POST", "push", &json!({ "image": "shop/x:1", "to": "other/x:1" }));
    api.is(403, &all, "POST", "push", &json!({ "image": "x:1", "to": "registry.example.com/x:1" }));
    api.is(403, &all, "POST", "push", &json!({ "image": "x:1", "to": "secret/x:1" }));
    api.is(403, &all, "POST", "pull", &json!({ "image": "secret/base:1" }));
    api.is(403, &shop, "POST", "pull", &json!({ "image": "other/base:1" }));
    // This engine has no images, and says so of each node; who may ask is not in the way.
    let said = api.is(200, &shop, "POST", "pull", &json!({ "image": "shop/base:1" }));
    assert!(said.contains("has no images") && said.contains("\"done\":true"), "{said}");
    assert!(api.registry.daemon.log().contains("action=\"image.push\" subject=\"secret/x:1\""));
}
