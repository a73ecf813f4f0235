//! Credentials for registries, as `docker login` leaves them: `config.json` in the folder that `DOCKER_CONFIG` names,
//! else in `~/.docker`; and the credential helpers that it names.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use serde_json::Value;

use super::{Address, raw};
use crate::model::registry::{self, Login};
use crate::model::{Error, Kind, Result};

/// What Docker Hub is called there.
const HUB: &str = "https://index.docker.io/v1/";

/// How long a credential helper has.
const HELPER: Duration = Duration::from_secs(10);

// The registry of an image, as in `config.json`.
fn registry(image: &str) -> &str {
    match registry::of_image(image) {
        registry::HUB => HUB,
        host => host,
    }
}

/// What the registry of `image` is told: the cluster's login there, else what Docker has here; nothing is an anonymous
/// pull.
pub async fn of(login: Option<&Login>, image: &str) -> Option<DockerCredentials> {
    if let Some(login) = login {
        return Some(as_docker(login));
    }
    let image = image.to_owned();
    // A credential helper is a program of its own.
    tokio::task::spawn_blocking(move || find(&image)).await.ok().flatten()
}

fn as_docker(login: &Login) -> DockerCredentials {
    let address = if login.registry == registry::HUB { HUB } else { &login.registry };
    let found = DockerCredentials { serveraddress: Some(address.to_owned()), ..DockerCredentials::default() };
    let password = Some(login.password.clone());
    match login.username.as_str() {
        registry::TOKEN => DockerCredentials { identitytoken: password, ..found },
        name => DockerCredentials { username: Some(name.to_owned()), password, ..found },
    }
}

/// The login that Docker has here for the registry of `image`.
pub fn find_login(image: &str) -> Option<Login> {
    let found = find(image)?;
    let registry = registry::of_image(image).to_owned();
    match found.identitytoken {
        Some(token) => Some(Login { registry, username: registry::TOKEN.to_owned(), password: token }),
        None => Some(Login { registry, username: found.username?, password: found.password? }),
    }
}

/// Lets the first of these Docker Engines that can be asked ask the registry whether it takes a login.
pub async fn verify(engines: Vec<(&Address, Docker)>, login: &Login) -> Result<()> {
    let found = as_docker(login);
    let body = serde_json::json!({
        "username": found.username.unwrap_or_default(),
        "password": found.password.unwrap_or_default(),
        "identitytoken": found.identitytoken.unwrap_or_default(),
        "serveraddress": found.serveraddress,
    });
    let subject = || format!("login at {}", login.registry);
    const HELP: &str = "the Docker Engine beside the daemon asks it; --unverified keeps a login without asking";
    for (address, docker) in engines {
        let error = match raw::call(address, &docker, "POST", "/auth", Some(&body)).await {
            Ok(Some(_)) => return Ok(()),
            // Not spoken to in that way: by TLS or ssh.
            Ok(None) => continue,
            Err(error) => error,
        };
        let why = error.cause.unwrap_or_default();
        return Err(match is_refusal(&why) {
            true => Error::new(Kind::Forbidden, subject(), "the registry does not take it").cause(why),
            false => Error::new(Kind::Unavailable, subject(), "the registry cannot be asked").cause(why).help(HELP),
        });
    }
    Err(Error::new(Kind::Unavailable, subject(), "there is no Docker Engine that could ask the registry").help(HELP))
}

// Docker tells the registry's answer in words alone.
fn is_refusal(why: &str) -> bool {
    let why = why.to_lowercase();
    let refused =
        ["status: 401", "status: 403", "unauthorized", "forbidden", "denied:", "access denied", "incorrect username"];
    !why.contains("dial ") && refused.iter().any(|word| why.contains(word))
}

// What is known for the registry of `image`; nothing is an anonymous pull.
fn find(image: &str) -> Option<DockerCredentials> {
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

// One that waits for somebody who is not there, to unlock it, say, is ended: whoever wants an image waits for it.
fn within(most: Duration, mut child: Child, helper: &str) -> Option<Output> {
    let until = Instant::now() + most;
    // It says little enough for the pipe to hold.
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= until {
            tracing::warn!(helper, "a credential helper did not answer within {most:?}, and was ended");
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().ok()
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
    let output = within(HELPER, child, helper)?;
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
    fn refusals() {
        for why in [
            "login attempt to http://r/v2/ failed with status: 401 Unauthorized",
            "unauthorized: no",
            "denied: requested access denied",
        ] {
            assert!(is_refusal(why), "{why}");
        }
        for why in [
            "Get \"http://r/v2/\": dial tcp 10.0.0.1:5000: connect: permission denied",
            "no such host",
            "it does not answer",
        ] {
            assert!(!is_refusal(why), "{why}");
        }
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
