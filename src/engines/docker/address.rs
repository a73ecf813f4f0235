//! Where a Docker Engine is reached: `unix:///path`, `tcp://host:port`, `ssh://user@host`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use bollard::Docker;

use super::tunnel;
use crate::model::{Error, Kind, Result};

/// The socket of a Docker Engine on this host.
pub const DEFAULT: &str = "unix:///var/run/docker.sock";

/// How long a request may take, in seconds; those that take longer by their nature have their own.
const TIMEOUT: u64 = 60;

/// One Docker Engine: its node's name, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The node's name, which is its identity as well.
    pub name: String,
    /// The URL.
    pub url: String,
    /// A folder with `ca.pem`, `cert.pem` and `key.pem`, for tcp with TLS.
    pub certificates: Option<PathBuf>,
}

impl Address {
    /// Reads `URL` or `NAME=URL`; `here` is this host's name.
    pub fn read(text: &str, certificates: Option<&Path>, here: &str) -> Result<Self> {
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains("://") => (Some(name), url),
            _ => (None, text),
        };
        let subject = || format!("Docker Engine {text:.120?}");
        let forms =
            "write unix:///var/run/docker.sock, tcp://host:2376 or ssh://user@host, with NAME= before it if wanted";
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| Error::invalid(subject(), "is no address").help(forms))?;
        let host = match scheme {
            "unix" if rest.starts_with('/') => here.to_owned(),
            "unix" => return Err(Error::invalid(subject(), "is not an absolute path").help(forms)),
            "tcp" | "http" | "https" | "ssh" => {
                let host = rest.split('/').next().unwrap_or_default();
                let host = host.rsplit('@').next().unwrap_or_default();
                let host = match host.rsplit_once(':') {
                    Some((host, port)) if port.parse::<u16>().is_ok() => host,
                    Some(_) if !host.starts_with('[') => {
                        return Err(Error::invalid(subject(), "has a port that is none").help(forms));
                    }
                    _ if scheme != "ssh" => return Err(Error::invalid(subject(), "has no port").help(forms)),
                    _ => host,
                };
                host.trim_matches(['[', ']']).to_owned()
            }
            other => {
                return Err(Error::invalid(subject(), format!("has scheme {other:.20?}")).help(forms));
            }
        };
        if host.is_empty() {
            return Err(Error::invalid(subject(), "names no host").help(forms));
        }
        Ok(Address {
            name: name.unwrap_or(&host).to_owned(),
            url: url.to_owned(),
            certificates: certificates.map(Path::to_owned).filter(|_| matches!(scheme, "tcp" | "https")),
        })
    }

    /// Whether the engine shares this host's files.
    pub fn is_local(&self) -> bool {
        self.url.starts_with("unix://")
    }

    /// The host part, for ports that are opened there; loopback for a socket of this host.
    pub fn host(&self) -> String {
        let Some((_, rest)) = self.url.split_once("://").filter(|(scheme, _)| *scheme != "unix") else {
            return "127.0.0.1".into();
        };
        let host = rest.split('/').next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
        match host.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            _ => host.to_owned(),
        }
    }

    /// The same as an address, where it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host().trim_matches(['[', ']']).parse().ok().filter(|_| !self.is_local())
    }

    /// A client. Nothing is sent yet, but to connect by ssh.
    pub async fn client(&self) -> Result<Docker> {
        let made = match (self.url.split_once("://").map(|(scheme, _)| scheme), &self.certificates) {
            (Some("unix"), _) => Docker::connect_with_unix(&self.url, TIMEOUT, bollard::API_DEFAULT_VERSION),
            (Some("ssh"), _) => {
                let socket = tunnel::socket(&self.url).await?;
                Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT, bollard::API_DEFAULT_VERSION)
            }
            (_, Some(folder)) => {
                for file in ["key.pem", "cert.pem", "ca.pem"] {
                    if !folder.join(file).is_file() {
                        let subject = format!("certificates {}", folder.display());
                        return Err(Error::not_found(subject).cause(format!("there is no {file}")));
                    }
                }
                let [key, cert, ca] = ["key.pem", "cert.pem", "ca.pem"].map(|file| folder.join(file));
                Docker::connect_with_ssl(&self.url, &key, &cert, &ca, TIMEOUT, bollard::API_DEFAULT_VERSION)
            }
            _ => Docker::connect_with_http(&self.url, TIMEOUT, bollard::API_DEFAULT_VERSION),
        };
        made.map_err(|error| {
            Error::new(Kind::Unavailable, format!("Docker Engine {}", self.url), "cannot be reached").cause(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let got = match Address::read(text, None, "here") {
            Ok(address) => format!("{} {} {}", address.name, address.url, address.host()),
            Err(error) => error.message,
        };
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn grammar() {
        check("unix:///var/run/docker.sock", "here unix:///var/run/docker.sock 127.0.0.1");
        check("tcp://10.0.0.1:2376", "10.0.0.1 tcp://10.0.0.1:2376 10.0.0.1");
        check("tcp://[fd00::1]:2376", "fd00::1 tcp://[fd00::1]:2376 [fd00::1]");
        check("eu-1=ssh://root@10.0.0.1", "eu-1 ssh://root@10.0.0.1 10.0.0.1");
        check("ssh://root@eu-1:22", "eu-1 ssh://root@eu-1:22 eu-1");
        check("tcp://10.0.0.1", "has no port");
        check("tcp://:2375", "names no host");
        check("docker.sock", "is no address");
        check("unix://docker.sock", "is not an absolute path");
        check("npipe:////./pipe/docker", "has scheme \"npipe\"");
    }
}
