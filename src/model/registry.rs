//! Logins at image registries: what the cluster's hosts say to a registry that lets nobody in without.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::clock::Timestamp;
use super::error::{Error, Result};

/// Docker Hub, as images name it.
pub const HUB: &str = "docker.io";
/// The user name that marks a password as an identity token, as Docker's credential helpers write it.
pub const TOKEN: &str = "<token>";
/// Longest password, in bytes. Those of some clouds are tokens of several KB.
const MAX_PASSWORD: usize = 32 << 10;

/// The registry of an image: `docker.io`, or a host with its port where it has one.
pub fn of_image(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
            if host == "index.docker.io" {
                HUB
            } else {
                host
            }
        }
        _ => HUB,
    }
}

/// Whether an image is of a registry that its host itself has.
pub fn is_loopback(image: &str) -> bool {
    let host = of_image(image);
    let bare = host.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let bare = bare.unwrap_or_else(|| host.split(':').next().unwrap_or(host));
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A registry's name as it is written in images, from what people and `docker login` write: `https://index.docker.io/v1/`
/// is `docker.io`.
pub fn name(text: &str) -> Result<String> {
    let bare = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    if matches!(bare, "" | HUB | "hub.docker.com" | "index.docker.io" | "index.docker.io/v1" | "registry-1.docker.io") {
        return Ok(HUB.to_owned());
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '[' | ']');
    if bare.len() > 255 || !bare.chars().all(fits) {
        return Err(Error::invalid(format!("registry {text:.60?}"), "is no host, such as registry.example.com:5000"));
    }
    Ok(bare.to_ascii_lowercase())
}

/// A login. Its password is not shown by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The registry.
    pub registry: String,
    /// Who asks; `<token>`: the password is an identity token.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "login of {} at {}", self.username, self.registry)
    }
}

/// A password on its way in. Errors and logs do not repeat it.
#[derive(Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Password(pub String);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not shown)")
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Password(text)),
            _ => Err(serde::de::Error::custom("is not a text")),
        }
    }
}

/// Who pulls an image, and with what. Errors do not repeat what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Credentials {
    /// Who asks; `<token>`: the password is an identity token.
    pub username: String,
    /// The password, or a token.
    pub password: Password,
}

impl<'de> Deserialize<'de> for Credentials {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let fields = value.as_object().filter(|fields| fields.len() == 2);
        let text = |key: &str| fields.and_then(|fields| fields.get(key)?.as_str()).map(str::to_owned);
        match (text("username"), text("password")) {
            (Some(username), Some(password)) => Ok(Credentials { username, password: Password(password) }),
            _ => Err(serde::de::Error::custom("is no table with a username and a password, both of them texts")),
        }
    }
}

impl Credentials {
    /// The login at a registry, with all that it has to be.
    pub fn login(self, registry: &str) -> Result<Login> {
        let registry = name(registry)?;
        let wrong = |why: &str| Err(Error::invalid(format!("login at {registry}"), why));
        if self.username.is_empty() || self.username.len() > 255 || self.username.contains(':') {
            return wrong("username: is empty, longer than 255 bytes, or has a colon");
        }
        if self.password.0.is_empty() || self.password.0.len() > MAX_PASSWORD {
            return wrong("password: is empty, or longer than 32 KiB");
        }
        Ok(Login { registry, username: self.username, password: self.password.0 })
    }
}

/// A login to keep for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginAsk {
    /// Who asks; `<token>`: the password is an identity token.
    pub username: String,
    /// The password, or a token.
    pub password: Password,
    /// Kept without asking the registry whether it is right.
    #[serde(default)]
    pub unverified: bool,
}

/// That there is a login, not what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoginInfo {
    /// The registry.
    pub registry: String,
    /// Who asks.
    pub username: String,
    /// When it was kept.
    pub at: Timestamp,
    /// Whether the registry said that it is right; false where nobody asked.
    pub verified: bool,
    /// The service that it was taken along for (`--with-registry-auth`); none: the whole cluster's.
    pub service: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_of_images() {
        assert_eq!(of_image("nginx"), HUB);
        assert_eq!(of_image("shop/api:1"), HUB);
        assert_eq!(of_image("docker.io/library/nginx"), HUB);
        assert_eq!(of_image("localhost/app"), "localhost");
        assert_eq!(of_image("10.0.0.1:5000/app@sha256:1"), "10.0.0.1:5000");
    }

    #[test]
    fn names_as_people_write_them() {
        for hub in ["", "docker.io", "https://index.docker.io/v1/", "index.docker.io"] {
            assert_eq!(name(hub).unwrap(), HUB, "{hub}");
        }
        assert_eq!(name("https://Registry.Example:5000/").unwrap(), "registry.example:5000");
        for wrong in ["a b", "host/path", "ho\nst", "user@host"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let ask = Credentials { username: "me".into(), password: Password("hunter2".into()) };
        let shown = format!("{ask:?} {:?}", ask.clone().login("docker.io").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        for body in [r#"{"username":"me","password":271828}"#, r#"{"username":"me","password":["271828"]}"#] {
            let error = crate::model::strict::parse::<LoginAsk>("login", body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("password: is not a text") && !error.contains("271828"), "{error}");
        }
    }
}
