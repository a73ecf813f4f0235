//! Routes: which HTTP requests go where.

mod balance;
mod own;
mod path;
mod shares;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::clock::Timestamp;
use super::constraint::{parse_range, within};
use super::error::{Error, Result};
use super::name::Name;
use super::units::{Bytes, Duration};
use balance::is_token;
pub use balance::{HashBy, RouteBalance};
pub use path::plain_path;
pub use shares::RouteShare;
use shares::{Shares, shares};

/// Longest path of a route, in bytes.
const MAX_PATH: usize = 1024;
/// Most addresses and networks of proxies.
const MAX_PROXIES: usize = 64;
/// Longest script of a route, in bytes.
const MAX_CHOOSE: usize = 16 * 1024;
/// Most tries beyond the first.
const MAX_RETRIES: u32 = 10;

/// A route: requests for a host and a path. Written as `"shop.example.com/api"`, or as a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", default, deny_unknown_fields)]
#[schemars(rename = "RouteSpec")]
pub struct RouteSpec {
    /// The host: `shop.example.com`; `*.example.com` for all with one or more names before that; any where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path that requests begin with, whole names of it: `/api` is `/api` and `/api/x`, not `/apix`. Any where it is not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Which of several routes that fit is taken: the highest; then the more exact host, then the longer path (0).
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// The port that every host's balancer listens on (80; with `tls` 443).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<u16>,
    /// The address to listen on; all interfaces where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The service's port, by its name; the only one where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Ends TLS here, with this certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RouteTls>,
    /// Lets TLS through to the service as it is: which one follows from the name that is asked for (SNI) alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub passthrough: bool,
    /// Answers with a redirect in place of the service: `"https"`, to the same address there; or a URL, to which the path that was
    /// asked for is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// Whether `path` is taken off before the request goes on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strip_path: bool,
    /// What the service speaks (http).
    #[serde(skip_serializing_if = "is_http")]
    pub protocol: RouteProtocol,
    /// How a replica is chosen: `round_robin`, `least_connections`, `power_of_two`; or `hash:ip`, `hash:path`, `hash:header:NAME`,
    /// `hash:cookie:NAME`, always the same one for the same text (round_robin).
    #[serde(skip_serializing_if = "RouteBalance::is_default")]
    #[schemars(with = "String")]
    pub balance: RouteBalance,
    /// The name of a cookie by which a client comes to the same replica each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// How often a request is tried elsewhere that can be repeated and was not answered at all (2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// How long a replica has to begin its answer (60s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Largest body of a request; any where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Bytes>,
    /// Where a line for each request is sent as GELF over UDP: `10.0.0.5:12201`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub access_log: Option<SocketAddr>,
    /// Whether every connection begins with a word of the PROXY protocol, as from a proxy in front that says whose it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accept_proxy: bool,
    /// Whether connections to the service begin with such a word: `v1` or `v2`. Each request then has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_proxy: Option<ProxyVersion>,
    /// Addresses and networks (`10.0.0.0/8`) of proxies in front of the balancer: what they say of the client is believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<String>,
    /// A script that chooses among the services of `to` for each request: `return function(request) ... end`, which returns a service's
    /// name, or nil for whoever has the shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choose: Option<String>,
    /// Whose requests they are, where the route stands for itself: a service's name, or several with their shares. A service's own
    /// routes are its own.
    #[serde(deserialize_with = "shares", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Shares")]
    pub to: Vec<RouteShare>,
}

/// A route that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// Its name.
    pub name: Name,
    /// What it is described as.
    pub spec: RouteSpec,
    /// When it was described so.
    pub changed_at: Timestamp,
}

/// What a service speaks behind a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteProtocol {
    /// HTTP/1.1, WebSocket with it.
    #[default]
    Http,
    /// HTTP/2 without TLS, as gRPC's servers do.
    H2c,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
}

/// Where a route's certificate is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTls {
    /// The certificate and those of its issuers, PEM: a file on the daemon's host, or a secret as `secret:NAME`.
    pub certificate: String,
    /// Its key, PEM: likewise.
    pub key: String,
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn is_http(protocol: &RouteProtocol) -> bool {
    *protocol == RouteProtocol::Http
}

impl RouteSpec {
    /// The port that it is listened for on.
    pub fn port_number(&self) -> u16 {
        self.listen.unwrap_or(if self.has_tls() { 443 } else { 80 })
    }

    /// Whether clients speak TLS, wherever it ends.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some() || self.passthrough
    }

    /// The path that requests begin with, without a slash at its end.
    pub fn prefix(&self) -> &str {
        self.path.as_deref().unwrap_or_default().trim_end_matches('/')
    }

    /// Whether what comes from this address may say by way of whom it came.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|proxy| within(Some(address), proxy))
    }

    /// Whether it is for requests that name this host, in lower case and without a port.
    pub fn is_for(&self, host: &str) -> bool {
        self.host.as_deref().is_none_or(|own| match own.strip_prefix('*') {
            Some(rest) => host.len() > rest.len() && host.ends_with(rest),
            None => own == host,
        })
    }

    /// Whether it is for hosts of another as well, whatever their ports and paths.
    pub fn covers(&self, other: &RouteSpec) -> bool {
        let Some(host) = self.host.as_deref() else { return true };
        let theirs = other.host.as_deref().unwrap_or("*");
        match host.strip_prefix('*') {
            Some(rest) => theirs.ends_with(rest),
            None => host == theirs,
        }
    }

    /// As it is shown and told from others: `https://shop.example.com:8443/api`.
    pub fn shown(&self) -> String {
        let (scheme, usual) = if self.has_tls() { ("https", 443) } else { ("http", 80) };
        let host = self.host.as_deref().unwrap_or("*");
        let port = self.port_number();
        let port = if port == usual { String::new() } else { format!(":{port}") };
        format!("{scheme}://{host}{port}{}", self.path.as_deref().unwrap_or("/"))
    }

    /// An error unless it can be one that stands for itself.
    pub fn validate_alone(&self, name: &Name) -> Result<()> {
        let what = format!("route \"{name}\"");
        self.validate(&what)?;
        let wrong = |why: &str, help: &str| Err(Error::invalid(format!("{what}, to"), why.to_owned()).help(help));
        match (&self.redirect, self.to.len()) {
            (Some(_), 0) => {}
            (Some(_), _) => return wrong("goes nowhere with a redirect", "leave one of the two out"),
            (None, 0) => return wrong("names no service", "write to = \"shop\", or several with their weights"),
            (None, 65..) => return wrong("names more than 64 services", "split them into several routes"),
            (None, _) => {}
        }
        if self.port.is_some() {
            return wrong("says the port", "write to = {{ service = \"shop\", port = \"http\" }}");
        }
        if self.choose.is_some() && self.to.len() < 2 {
            return Err(Error::invalid(format!("{what}, choose"), "has nothing to choose between")
                .help("name several services: to = { \"shop\", { service = \"shop-next\", weight = 0 } }"));
        }
        if self.redirect.is_none() && self.to.iter().all(|share| share.weight == 0) {
            return wrong("gives nobody a share", "give one of them a weight");
        }
        if self.to.iter().any(|share| share.weight > 1_000_000) {
            return wrong("has a weight over 1000000", "weights count beside each other: 95 and 5");
        }
        Ok(())
    }

    /// An error unless it can be one of a service.
    pub fn validate_of(&self, what: &str) -> Result<()> {
        if !self.to.is_empty() {
            return Err(Error::invalid(format!("{what}, to"), "is for routes that stand for themselves")
                .help("leave it out: a service's routes are its own"));
        }
        if self.choose.is_some() {
            return Err(Error::invalid(format!("{what}, choose"), "is for routes that lead to several services")
                .help("write a route that stands for itself: route \"NAME\" { to = ..., choose = ... }"));
        }
        self.validate(what)
    }

    fn validate(&self, what: &str) -> Result<()> {
        let wrong = |field: &str, why: &str, help: &str| {
            Err(Error::invalid(format!("{what}, {field}"), why.to_owned()).help(help.to_owned()))
        };
        if let Some(host) = &self.host {
            let bare = host.strip_prefix("*.").unwrap_or(host);
            let label = |label: &str| {
                let plain = label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_');
                !label.is_empty() && label.len() <= 63 && plain
            };
            let is_address = bare.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let is_address = is_address.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
            if bare.len() > 253 || !(is_address || bare.split('.').all(label)) {
                return wrong(
                    "host",
                    "is no host name in lower case",
                    "write \"shop.example.com\" or \"*.example.com\"",
                );
            }
        }
        if let Some(path) = &self.path {
            let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\".contains(&byte));
            if !path.starts_with('/') || path.len() > MAX_PATH || !plain || path.contains("//") {
                return wrong("path", "is no path", "write \"/api\", percent-encoded where a URL has to be");
            }
            if let Err(why) = plain_path(path) {
                return wrong("path", why, "write the path as it is asked for");
            }
        }
        if self.listen == Some(0) {
            return wrong("listen", "port 0 is none", "write a port between 1 and 65535");
        }
        if self.sticky.as_deref().is_some_and(|name| !is_token(name)) {
            return wrong("sticky", "is no name of a cookie", "use letters, digits, \"-\" and \"_\"");
        }
        if self.retries.is_some_and(|retries| retries > MAX_RETRIES) {
            return wrong("retries", "are more than 10", "two are enough where one replica of several fails");
        }
        if self.timeout.is_some_and(|timeout| timeout.millis() == 0) {
            return wrong("timeout", "is no time at all", "leave it out for 60s");
        }
        if self.trusted_proxies.len() > MAX_PROXIES {
            return wrong("trusted_proxies", "are more than 64", "name the networks that they are in");
        }
        if self.trusted_proxies.iter().any(|proxy| parse_range(proxy).is_none()) {
            let help = "write \"10.0.0.1\" or \"10.0.0.0/8\"";
            return wrong("trusted_proxies", "holds what is neither an address nor a network", help);
        }
        if let Some(tls) = &self.tls {
            for (field, place) in [("tls.certificate", &tls.certificate), ("tls.key", &tls.key)] {
                let named = place.strip_prefix("secret:");
                if !named.map_or(place.starts_with('/'), |name| !name.is_empty()) {
                    let help = "write \"/etc/ssl/shop.pem\", or \"secret:shop/tls\"";
                    return wrong(field, "is neither a whole path nor a secret", help);
                }
            }
        }
        if let Some(to) = &self.redirect {
            let is_url = to.starts_with("http://") || to.starts_with("https://");
            let plain = to.bytes().all(|byte| byte.is_ascii_graphic()) && to.len() <= MAX_PATH;
            if !plain || !(to == "https" || is_url) {
                return wrong(
                    "redirect",
                    "is neither \"https\" nor a URL",
                    "write \"https\", or \"https://www.example.com\"",
                );
            }
            if to == "https" && self.tls.is_some() {
                return wrong("redirect", "would go round and round", "redirect the route without tls to this one");
            }
            if self.port.is_some() {
                return wrong("port", "goes nowhere with a redirect", "leave one of the two out");
            }
        }
        if self.choose.as_ref().is_some_and(|source| source.len() > MAX_CHOOSE) {
            return wrong("choose", "is longer than 16 KiB", "make it shorter");
        }
        if self.send_proxy.is_some() && self.protocol == RouteProtocol::H2c {
            let help = "leave it out: requests of many clients share a connection there";
            return wrong("send_proxy", "goes with protocol http alone", help);
        }
        if self.passthrough {
            let by_ip = matches!(self.balance, RouteBalance::Hash(HashBy::Ip));
            let said = [
                ("path", self.path.is_some()),
                ("choose", self.choose.is_some()),
                ("tls", self.tls.is_some()),
                ("redirect", self.redirect.is_some()),
                ("strip_path", self.strip_path),
                ("protocol", self.protocol != RouteProtocol::default()),
                ("balance", matches!(self.balance, RouteBalance::Hash(_)) && !by_ip),
                ("sticky", self.sticky.is_some()),
                ("retries", self.retries.is_some()),
                ("timeout", self.timeout.is_some()),
                ("max_body", self.max_body.is_some()),
                ("access_log", self.access_log.is_some()),
                ("trusted_proxies", !self.trusted_proxies.is_empty()),
            ];
            if let Some((field, _)) = said.into_iter().find(|(_, said)| *said) {
                let help = "leave it out, or end TLS here (tls = ...): what goes through is not looked into";
                return wrong(field, "does not go with passthrough", help);
            }
        }
        if self.strip_path && self.prefix().is_empty() {
            return wrong("strip_path", "has no path to take off", "name the path");
        }
        Ok(())
    }
}

impl FromStr for RouteSpec {
    type Err = Error;

    /// `HOST`, `HOST/PATH`, `/PATH`, each with `http://` before it if wanted; a port behind the host is listened on.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::invalid(format!("route {text:.80?}"), why)
                .help("write \"shop.example.com\", \"shop.example.com:8080/api\" or \"/api\"")
        };
        if text.starts_with("https://") {
            return Err(Error::invalid(format!("route {text:.80?}"), "needs a certificate for https")
                .help("write { host = \"shop.example.com\", tls = { certificate = ..., key = ... } }, or --tls-certificate and --tls-key"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let cut = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(cut);
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, Some(port.parse::<u16>().map_err(|_| wrong("has a port that is none"))?))
            }
            _ => (host, None),
        };
        let given = |text: &str| (!text.is_empty() && text != "*").then(|| text.to_owned());
        if host.is_empty() && path.is_empty() {
            return Err(wrong("is empty"));
        }
        let spec = RouteSpec {
            host: given(host).map(|host| host.to_ascii_lowercase()),
            path: given(path),
            listen: port,
            ..RouteSpec::default()
        };
        spec.validate(&format!("route {text:.80?}"))?;
        Ok(spec)
    }
}

impl<'de> Deserialize<'de> for RouteSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = RouteSpec;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a route such as \"shop.example.com/api\", or a table")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RouteSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RouteSpec, A::Error> {
                RouteSpec::deserialize(de::value::MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for RouteSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RouteSpec::serialize(self, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms() {
        let shown = |text: &str| match text.parse::<RouteSpec>() {
            Ok(spec) => spec.shown(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown("shop.example.com"), "http://shop.example.com/");
        assert_eq!(shown("Shop.Example.com:8080/api"), "http://shop.example.com:8080/api");
        assert_eq!(shown("*.example.com"), "http://*.example.com/");
        assert_eq!(shown("/api"), "http://*/api");
        assert_eq!(shown("*:8080"), "http://*:8080/");
        assert_eq!(shown("[::1]:8080/x"), "http://[::1]:8080/x");
        for wrong in ["", "https://a", "a b", "a:99999", "a//b", "a/b?c", "a_b..c", "-:x/", "a/\u{e4}"] {
            let refused = wrong.parse::<RouteSpec>().unwrap_err();
            assert!(refused.help.is_some(), "{wrong:?}: {refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_route_or_an_error(text in "\\PC{0,40}") {
            let _ = text.parse::<RouteSpec>();
        }
    }
}
