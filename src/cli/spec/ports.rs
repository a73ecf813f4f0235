//! `--publish` in Docker's two forms, and with a name.

use serde_json::{Map, Value, json};

use super::table;
use crate::model::port::{PortSpec, Protocol};
use crate::model::{Error, Result};

/// Puts published ports into a description and takes others out, by their targets.
pub fn describe(spec: &mut Map<String, Value>, publish: &[String], remove: &[String]) -> Result<()> {
    for text in remove {
        let (target, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol: Protocol =
            protocol.parse().map_err(|error: Error| error.about(format!("--publish-rm {text:.60?}")))?;
        let target = target.rsplit(':').next().unwrap_or_default();
        let number: u16 = target
            .parse()
            .map_err(|_| Error::invalid(format!("--publish-rm {text:.60?}"), "is not a port; it is the target's"))?;
        let is_it = |port: PortSpec| port.container_port() == Some(number) && port.protocol == protocol;
        table(spec, "ports").retain(|_, port| !read(port).is_some_and(is_it));
    }
    let publish = publish.iter().map(|text| each(text)).collect::<Result<Vec<_>>>()?.concat();
    for text in &publish {
        let (name, port) = one(text)?;
        let ports = table(spec, "ports");
        let name = name.unwrap_or_else(|| {
            let is_same = |other: PortSpec| {
                (other.address, other.published, other.protocol) == (port.address, port.published, port.protocol)
            };
            let same = ports.iter().find(|(_, other)| read(other).is_some_and(is_same));
            let name = match same {
                Some((name, _)) => return name.clone(),
                None if publish.len() == 1 && ports.is_empty() => return "http".to_owned(),
                None => format!("p{}", port.container_port().unwrap_or_default()),
            };
            // The same target in the other protocol, or published once more.
            let others = [
                name.clone(),
                format!("{name}-{}", port.protocol.as_str()),
                format!("{name}-{}", port.published.unwrap_or_default()),
            ];
            others.into_iter().find(|name| !ports.contains_key(name)).unwrap_or(name)
        });
        ports.insert(name, json!(port));
    }
    Ok(())
}

// `8000-8002:9000-9002/tcp` is three ports.
fn each(text: &str) -> Result<Vec<String>> {
    let wrong = |why: &str| Error::invalid(format!("--publish {text:.80?}"), why);
    let (ports, protocol) =
        text.split_once('/').map_or((text, String::new()), |(ports, rest)| (ports, format!("/{rest}")));
    let (head, target) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (address, published) = head.rsplit_once(':').map_or((String::new(), head), |(a, p)| (format!("{a}:"), p));
    let range = |text: &str| {
        let (first, last) = text.split_once('-')?;
        Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?))
    };
    let (Some(target), published) = (range(target), range(published)) else { return Ok(vec![text.to_owned()]) };
    if text.contains('=') {
        return Err(
            wrong("names a range of ports, which has no name of its own").help("write each of its ports, or no name")
        );
    }
    let Some(published) =
        published.filter(|(first, last)| first <= last && last - first == target.1.wrapping_sub(target.0))
    else {
        return Err(wrong("names ranges of different length").help("write 8000-8002:8000-8002"));
    };
    let pairs = (published.0..=published.1).zip(target.0..=target.1);
    Ok(pairs.map(|(published, target)| format!("{address}{published}:{target}{protocol}")).collect())
}

fn read(port: &Value) -> Option<PortSpec> {
    serde_json::from_value(port.clone()).ok()
}

fn one(text: &str) -> Result<(Option<String>, PortSpec)> {
    let fields = crate::model::spellings::comma_separated(text);
    let fields = fields.map_err(|why| Error::invalid(format!("--publish {text:.80?}"), why))?;
    let keys = [
        "published",
        "target",
        "protocol",
        "mode",
        "balance",
        "accept-proxy",
        "send-proxy",
        "max-connections",
        "idle-timeout",
        "access-log",
    ];
    let is_long = fields.iter().all(|field| field.split_once('=').is_some_and(|(key, _)| keys.contains(&key)));
    if !is_long {
        return match text.split_once('=') {
            Some((name, port)) => Ok((Some(name.to_owned()), port.parse()?)),
            None => Ok((None, text.parse()?)),
        };
    }
    let mut port = PortSpec::default();
    for field in &fields {
        let (key, value) = field.split_once('=').unwrap_or_default();
        let number = || match value.parse::<u16>() {
            Ok(0) | Err(_) => Err(Error::invalid(
                format!("--publish {text:.80?}"),
                format!("{key} is not a port between 1 and 65535"),
            )),
            Ok(number) => Ok(Some(number)),
        };
        let about = |error: Error| error.about(format!("--publish {text:.80?}"));
        match (key, value) {
            ("published", _) => port.published = number()?,
            ("target", _) => port.target = number()?,
            ("protocol", _) => port.protocol = value.parse().map_err(about)?,
            ("mode", _) => port.mode = value.parse().map_err(about)?,
            // What Docker has no words for is read as in a description.
            (key, _) => {
                let value = match key {
                    "accept-proxy" => value.parse().map(Value::Bool).ok(),
                    "max-connections" => value.parse::<u32>().map(Value::from).ok(),
                    _ => None,
                }
                .unwrap_or_else(|| json!(value));
                let mut whole = json!(port);
                whole[key.replace('-', "_")] = value;
                port = crate::model::strict::read(&format!("--publish {text:.80?}"), &whole)?;
            }
        }
    }
    if port.target.is_none() {
        return Err(Error::invalid(format!("--publish {text:.80?}"), "has no target"));
    }
    Ok((None, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &Value, publish: &[&str], remove: &[&str], expected: &Value) {
        let mut spec = Map::from_iter([("ports".to_owned(), before.clone())]);
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let got = match describe(&mut spec, &texts(publish), &texts(remove)) {
            Ok(()) => spec["ports"].clone(),
            Err(error) => json!(error.message),
        };
        assert_eq!(got, *expected, "for {publish:?} {remove:?}");
    }

    #[test]
    fn forms_and_names() {
        let port = |published: u16, target: u16| json!({ "published": published, "target": target, "protocol": "tcp", "balance": "round_robin" });
        check(&json!({}), &["80:8080"], &[], &json!({ "http": port(80, 8080) }));
        check(&json!({}), &["80:8080", "81:9000"], &[], &json!({ "p8080": port(80, 8080), "p9000": port(81, 9000) }));
        check(&json!({}), &["published=80,target=8080,mode=ingress"], &[], &json!({ "http": port(80, 8080) }));
        check(&json!({}), &["admin=81:9000"], &[], &json!({ "admin": port(81, 9000) }));
        // A further port of a service that has one keeps that one.
        let both = json!({ "http": "80:8080", "p9000": port(81, 9000) });
        check(&json!({ "http": "80:8080" }), &["81:9000"], &[], &both);
        check(&json!({ "http": "80:8080" }), &["80:9000"], &[], &json!({ "http": port(80, 9000) }));
        check(&both, &[], &["9000"], &json!({ "http": "80:8080" }));
        let mut host = port(80, 8080);
        host["mode"] = "host".into();
        check(&json!({}), &["published=80,target=8080,mode=host"], &[], &json!({ "http": host }));
        let mut udp = port(53, 53);
        (udp["mode"], udp["protocol"]) = ("host".into(), "udp".into());
        check(&json!({}), &["published=53,target=53,mode=host,protocol=udp"], &[], &json!({ "http": udp }));
        // Both protocols of one port, and one of them taken out.
        let dns = |protocol: &str| format!("mode=host,published=53,target=53,protocol={protocol}");
        let mut tcp = udp.clone();
        tcp["protocol"] = "tcp".into();
        check(&json!({}), &[&dns("tcp"), &dns("udp")], &[], &json!({ "p53": tcp, "p53-udp": udp }));
        check(&json!({ "p53": tcp, "p53-udp": udp }), &[], &["53/udp"], &json!({ "p53": tcp }));
        let three = json!({ "p9000": port(80, 9000), "p9001": port(81, 9001), "p9002": port(82, 9002) });
        check(&json!({}), &["80-82:9000-9002"], &[], &three);
        check(&json!({}), &["80-82:9000-9001"], &[], &json!("names ranges of different length"));
        check(&json!({}), &["80:9000-9001"], &[], &json!("names ranges of different length"));
        check(&json!({}), &["target=80,protocol=sctp"], &[], &json!("is not forwarded; tcp and udp are"));
        check(&json!({}), &["published=80"], &[], &json!("has no target"));
    }
}
