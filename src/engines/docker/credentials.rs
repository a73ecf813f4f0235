//! Credentials for registries, as `docker login` leaves them: `config.json` in the folder that `DOCKER_CONFIG` names,
//! else in `~/.docker`; and the credential helpers that it names.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine;
use bollard::auth::DockerCredentials;
use serde_json::Value;

/// What Docker Hub is called there.
const HUB: &str = "https://index.docker.io/v1/";

/// The registry of an image, as in `config.json`.
pub fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
            if matches!(host, "docker.io" | "index.docker.io") { HUB } else { host }
        }
        _ => HUB,
    }
}

/// What is known for the registry of `image`; nothing is an anonymous pull.
pub fn find(image: &str) -> Option<DockerCredentials> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".docker"))
    })?;
    let text = std::fs::read(folder.join("config.json")).ok()?;
    let config: Value = match serde_json::from_slice(&text) {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, folder = %folder.display(), "config.json is not JSON; images are pulled without credentials");
            return None;
        }
    };
    let registry = registry(image);
    let helper = config["credHelpers"][registry].as_str().or_else(|| config["credsStore"].as_str());
    helper.and_then(|helper| ask(helper, registry)).or_else(|| stored(&config, registry))
}

fn stored(config: &Value, registry: &str) -> Option<DockerCredentials> {
    let auths = config["auths"].as_object()?;
    let bare =
        |name: &str| name.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let entry = auths
        .get(registry)
        .or_else(|| auths.iter().find(|(name, _)| bare(name) == bare(registry)).map(|(_, entry)| entry))?;
    let text = |key: &str| entry[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut found = DockerCredentials {
        username: text("username"),
        password: text("password"),
        identitytoken: text("identitytoken"),
        registrytoken: text("registrytoken"),
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    };
    if let Some(both) = text("auth").and_then(|text| decode(&text)) {
        let (name, password) = both.split_once(':')?;
        found.username = Some(name.to_owned());
        found.password = Some(password.trim_end_matches('\0').to_owned());
    }
    let any = found.username.is_some() || found.identitytoken.is_some() || found.registrytoken.is_some();
    any.then_some(found)
}

// The protocol of Docker's credential helpers: the registry on standard input, JSON on standard output.
fn ask(helper: &str, registry: &str) -> Option<DockerCredentials> {
    if helper.contains('/') {
        return None;
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| tracing::warn!(%error, helper, "a credential helper could not be started"))
        .ok()?;
    child.stdin.take()?.write_all(registry.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    let (name, secret) = (answer["Username"].as_str()?.to_owned(), answer["Secret"].as_str()?.to_owned());
    let mut found = DockerCredentials { serveraddress: Some(registry.to_owned()), ..DockerCredentials::default() };
    if name == "<token>" {
        found.identitytoken = Some(secret);
    } else {
        (found.username, found.password) = (Some(name), Some(secret));
    }
    Some(found)
}

// With or without its padding: both are found.
fn decode(text: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries() {
        assert_eq!(registry("nginx"), HUB);
        assert_eq!(registry("shop/api:1"), HUB);
        assert_eq!(registry("docker.io/library/nginx"), HUB);
        assert_eq!(registry("localhost/app"), "localhost");
        assert_eq!(registry("10.0.0.1:5000/app@sha256:1"), "10.0.0.1:5000");
    }

    #[test]
    fn credentials_that_docker_login_stored() {
        let config = serde_json::json!({ "auths": {
            "10.0.0.1:5000": { "auth": "bWU6c2VjOnJldA==" },
            "https://registry.example/": { "identitytoken": "t" },
            "empty.example": {},
        }});
        let found = stored(&config, "10.0.0.1:5000").unwrap();
        assert_eq!((found.username.as_deref(), found.password.as_deref()), (Some("me"), Some("sec:ret")));
        assert_eq!(stored(&config, "registry.example").unwrap().identitytoken.as_deref(), Some("t"));
        assert_eq!(stored(&config, "empty.example"), None);
        assert_eq!(stored(&config, "other.example"), None);
    }
}
