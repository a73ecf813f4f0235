//! Ports in Compose's two forms.

use serde_json::{Map, Value as Json};

use super::fields::{Fields, list, text, unsupported, wrong};
use super::service::{set, table};
use super::yaml::{At, Node, Value};
use crate::model::Result;
use crate::model::native::PublishMode;
use crate::model::port::{PortSpec, Protocol};

// A port of a container, and where it is published.
struct Port {
    name: Option<String>,
    spec: PortSpec,
}

/// `ports`.
pub fn ports(fields: &mut Fields<'_>, spec: &mut Map<String, Json>) -> Result<()> {
    let path = fields.path_of("ports");
    let Some(node) = fields.take("ports") else { return Ok(()) };
    let mut found: Vec<Port> = Vec::new();
    for (number, node) in list(&path, node)?.iter().enumerate() {
        let path = format!("{path}[{}]", number + 1);
        match &node.value {
            Value::Map(_) => found.push(long_port(&path, node)?),
            _ => found.extend(short_ports(&path, &node.at, &text(&path, node)?)?),
        }
    }
    let single = found.len() == 1;
    let ports = table(spec, "ports");
    for port in found {
        let target = port.spec.target.unwrap_or_default();
        let name = port.name.unwrap_or_else(|| if single { "http".into() } else { format!("p{target}") });
        let name = match ports.contains_key(&name) {
            // The same port published twice.
            true => format!("{name}-{}", port.spec.published.unwrap_or_default()),
            false => name,
        };
        let mut spec = Map::new();
        set(&mut spec, "target", port.spec.target);
        set(&mut spec, "published", port.spec.published);
        set(&mut spec, "address", port.spec.address.map(|address| address.to_string()));
        set(&mut spec, "protocol", (port.spec.protocol != Protocol::Tcp).then_some(port.spec.protocol.as_str()));
        set(&mut spec, "mode", (port.spec.mode != PublishMode::Ingress).then_some(port.spec.mode.as_str()));
        ports.insert(name, Json::Object(spec));
    }
    Ok(())
}

fn long_port(path: &str, node: &Node) -> Result<Port> {
    let mut fields = Fields::of(path, node)?;
    let target = fields.number::<u16>("target")?;
    let published = fields.text("published")?;
    if target.is_none_or(|target| target == 0) {
        return Err(wrong(&node.at, path, "has no target"));
    }
    let published = match published {
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(wrong(&node.at, path, format!("published {text:.40?} is not a port"))),
        },
        None => None,
    };
    let protocol = protocol(&node.at, path, fields.text("protocol")?.as_deref().unwrap_or("tcp"))?;
    // Without a published port there is nothing to say of where it is published.
    let mode = match (fields.text("mode")?.as_deref(), published) {
        (None | Some("ingress"), _) => PublishMode::Ingress,
        (Some("host"), Some(_)) => PublishMode::Host,
        (Some("host"), None) => {
            return Err(unsupported(&node.at, &format!("{path}.mode host"), "without a published port it has no use"));
        }
        (Some(other), _) => {
            return Err(wrong(&node.at, path, format!("mode {other:.40?} is neither ingress nor host")));
        }
    };
    let address = fields.text("host_ip")?.map(|text| address(&node.at, path, &text)).transpose()?.flatten();
    let name = fields.text("name")?.map(|name| name.to_lowercase().replace(['_', '.', ' '], "-"));
    fields.text("app_protocol")?;
    fields.finish(&[])?;
    Ok(Port { name, spec: PortSpec { target, published, address, protocol, mode, ..PortSpec::default() } })
}

fn protocol(at: &At, path: &str, text: &str) -> Result<Protocol> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Err(unsupported(at, &format!("{path} sctp"), "tcp and udp are forwarded")),
        _ => Err(wrong(at, path, format!("has the unknown protocol {text:.20?}"))),
    }
}

fn address(at: &At, path: &str, text: &str) -> Result<Option<std::net::IpAddr>> {
    let bare = text.trim_matches(['[', ']']);
    if bare.is_empty() {
        return Ok(None);
    }
    bare.parse().map(Some).map_err(|_| wrong(at, path, format!("{text:.60?} is not an address")))
}

// `[ADDRESS:][PUBLISHED:]TARGET[/PROTOCOL]`, both of them perhaps ranges of the same length.
fn short_ports(path: &str, at: &At, text: &str) -> Result<Vec<Port>> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = self::protocol(at, path, protocol)?;
    let mut parts = rest.rsplitn(3, ':');
    let (target, published, host) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let range = |text: &str| -> Result<std::ops::RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => Ok(first..=last),
            _ => Err(wrong(at, path, format!("{text:.40?} is not a port, nor a range of ports"))),
        }
    };
    let targets: Vec<u16> = range(target)?.collect();
    let published: Vec<Option<u16>> = match published {
        None | Some("") => vec![None; targets.len()],
        Some(published) => range(published)?.map(Some).collect(),
    };
    if published.len() != targets.len() {
        return Err(wrong(at, path, format!("{text:.60?} names ranges of different length")));
    }
    let address = host.map(|host| address(at, path, host)).transpose()?.flatten();
    let port = |(target, published)| Port {
        name: None,
        spec: PortSpec { target: Some(target), published, address, protocol, ..PortSpec::default() },
    };
    Ok(targets.into_iter().zip(published).map(port).collect())
}
