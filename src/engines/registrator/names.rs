//! What a container is registered as, from its environment and its labels: the names of Registrator.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::{ContainerInspectResponse, HealthStatusEnum};

use super::{Registered, Rules, Where};
use crate::engines::docker::container::labels;
use crate::engines::docker::spec;
use crate::model::catalog::{
    CatalogCheck, CheckKind, CheckRun, CheckStatus, GrpcCheck, HttpCheck, Instance, MAX_ENTRIES, MAX_TEXT, Origin,
    check_name, place,
};
use crate::model::units::Duration;

/// Swarm's own label with the name of the service that a container is of.
const SWARM_SERVICE: &str = "com.docker.swarm.service.name";
/// Networks that carry what is published, and reach nobody.
const PLUMBING: [&str; 2] = ["ingress", "docker_gwbridge"];

/// Complaints that are remembered.
const MOST_TOLD: usize = 1000;

// What is said of one port: by the words behind `SERVICE_`, in small letters, and which of them name that port.
struct Words {
    all: BTreeMap<String, String>,
    own: BTreeSet<String>,
}

/// What a running container is registered as; nothing where it is one of Neap's replicas, which have names of their own.
/// `told` holds what was complained about already: the same container is looked at again and again.
pub fn registered(inspected: &ContainerInspectResponse, rules: &Rules, told: &mut BTreeSet<String>) -> Vec<Registered> {
    let labels = labels(inspected);
    let state = inspected.state.clone().unwrap_or_default();
    let runs = state.running == Some(true) && state.paused != Some(true) && state.restarting != Some(true);
    if !runs || spec::task_of(&labels, &rules.cluster).is_some() {
        return Vec::new();
    }
    let config = inspected.config.clone().unwrap_or_default();
    // An environment names what labels do not.
    let env = config.env.unwrap_or_default();
    let env = env.iter().filter_map(|pair| pair.split_once('='));
    let said = said_of(env.chain(labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
    let container = inspected.name.as_deref().unwrap_or_default().trim_start_matches('/');
    let image = config.image.unwrap_or_default();
    let base = labels.get(SWARM_SERVICE).map_or_else(|| base_name(&image), String::as_str);
    let ports = ports(inspected, rules);
    let mut all = Vec::new();
    for port in &ports {
        let words = words_of(&said, port.exposed);
        if words.all.get("ignore").is_some_and(|ignore| !ignore.is_empty()) {
            continue;
        }
        let named = words.all.get("name").filter(|name| !name.is_empty());
        if rules.explicit && named.is_none() {
            continue;
        }
        let mut name = named.map_or(base, String::as_str).to_owned();
        if ports.len() > 1 && !words.own.contains("name") {
            name = format!("{name}-{}", port.exposed);
        }
        let own = if port.is_udp { ":udp" } else { "" };
        let id = words.all.get("id").filter(|id| !id.is_empty()).cloned();
        let id = id.unwrap_or_else(|| format!("{}:{container}:{}{own}", rules.hostname, port.exposed));
        let mut tags = tags_of(&words);
        tags.extend(rules.tags.iter().cloned());
        tags.extend(port.is_udp.then(|| "udp".to_owned()));
        let mut seen = BTreeSet::new();
        tags.retain(|tag| !tag.is_empty() && tag.len() <= MAX_TEXT && seen.insert(tag.clone()));
        tags.truncate(MAX_ENTRIES);
        let meta = meta_of(&words);
        let instance = Instance {
            service: name,
            tags,
            address: port.address.clone(),
            port: port.number,
            meta: meta.take(MAX_ENTRIES).collect(),
            origin: Origin::Container,
            id,
            ..Instance::default()
        };
        if let Err(error) = instance.check() {
            complain(told, container, &format!("it is not registered: {error}"));
            continue;
        }
        let mut checks: Vec<CatalogCheck> = health(inspected, &instance).into_iter().collect();
        match check(&words.all, &instance) {
            Ok(check) => checks.extend(check.filter(|check| check.check().is_ok())),
            Err(why) => complain(told, container, &why),
        }
        all.push(Registered { instance, checks });
    }
    all
}

/// What a service of Neap's own says of one of its ports in those words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnWords {
    /// It is not to be registered.
    pub ignore: bool,
    /// Another name beside its own.
    pub name: Option<String>,
    /// Further tags.
    pub tags: Vec<String>,
    /// Further entries of its table.
    pub meta: BTreeMap<String, String>,
}

/// What is said of the port with this number in the container, by environment and labels, the later ones before the earlier;
/// `several`: it is not the only one, and so a name that is not said of it alone has its number behind it.
pub fn own_words<'a>(said: impl Iterator<Item = (&'a str, &'a str)>, port: Option<u16>, several: bool) -> OwnWords {
    let said = said_of(said);
    if said.is_empty() {
        return OwnWords::default();
    }
    let words = words_of(&said, port.unwrap_or_default());
    let text = |key: &str| words.all.get(key).filter(|value| !value.is_empty());
    let mut tags = tags_of(&words);
    tags.retain(|tag| !tag.is_empty() && tag.len() <= MAX_TEXT);
    OwnWords {
        ignore: text("ignore").is_some(),
        name: text("name")
            .map(|name| match port.filter(|_| several && !words.own.contains("name")) {
                Some(port) => format!("{name}-{port}"),
                None => name.clone(),
            })
            .filter(|name| check_name("service", name).is_ok()),
        tags: tags.into_iter().take(MAX_ENTRIES - 2).collect(),
        meta: meta_of(&words).take(MAX_ENTRIES - 2).collect(),
    }
}

// By the words behind `SERVICE_`, in small letters.
fn said_of<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let of = |key: &str| key.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("SERVICE_"));
    pairs.filter(|(key, _)| of(key)).map(|(key, value)| (key[8..].to_lowercase(), value.to_owned())).collect()
}

fn tags_of(words: &Words) -> Vec<String> {
    words.all.get("tags").map(|tags| split_tags(tags)).unwrap_or_default()
}

fn meta_of(words: &Words) -> impl Iterator<Item = (String, String)> {
    let is_meta = |key: &str| !matches!(key, "name" | "id" | "tags" | "ignore") && !key.starts_with("check_");
    let meta = words.all.iter().filter(move |(key, value)| is_meta(key) && key.len() <= 128 && value.len() <= MAX_TEXT);
    meta.map(|(key, value)| (key.clone(), value.clone()))
}

fn complain(told: &mut BTreeSet<String>, container: &str, why: &str) {
    // Others come and go.
    if told.len() > MOST_TOLD {
        told.clear();
    }
    if told.insert(format!("{container}: {why}")) {
        tracing::warn!(container, why, "a container asks for what is not done");
    }
}

// `registry.example/shop/api:1.2@sha256:…` is `api`.
fn base_name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default()
}

// `SERVICE_X`, and before it `SERVICE_80_X`.
fn words_of(said: &BTreeMap<String, String>, port: u16) -> Words {
    let mut words = Words { all: BTreeMap::new(), own: BTreeSet::new() };
    let mine = format!("{port}_");
    for (key, value) in said {
        let number = key.split_once('_').filter(|(number, _)| number.bytes().all(|c| c.is_ascii_digit()));
        match (key.strip_prefix(&mine), number) {
            (Some(word), _) => {
                words.all.insert(word.to_owned(), value.clone());
                words.own.insert(word.to_owned());
            }
            // Another port's.
            (None, Some(_)) => {}
            (None, None) => {
                words.all.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    words
}

// Between commas; `\,` is one.
fn split_tags(text: &str) -> Vec<String> {
    let mut tags = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next_if_eq(&',').is_some() => tags.last_mut().unwrap_or(&mut String::new()).push(','),
            ',' => tags.push(String::new()),
            other => tags.last_mut().unwrap_or(&mut String::new()).push(other),
        }
    }
    tags.into_iter().map(|tag| tag.trim().to_owned()).collect()
}

struct Port {
    exposed: u16,
    is_udp: bool,
    address: String,
    number: u16,
}

fn ports(inspected: &ContainerInspectResponse, rules: &Rules) -> Vec<Port> {
    let Some(network) = &inspected.network_settings else { return Vec::new() };
    let mode = inspected.host_config.as_ref().and_then(|config| config.network_mode.as_deref()).unwrap_or_default();
    let exposed = inspected.config.as_ref().and_then(|config| config.exposed_ports.clone()).unwrap_or_default();
    let read = |text: &str| {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let known = matches!(protocol, "tcp" | "udp");
        port.parse::<u16>().ok().filter(|_| known).map(|port| (port, protocol == "udp"))
    };
    let bound = network.ports.clone().unwrap_or_default();
    let mut all: BTreeMap<(u16, bool), Port> = BTreeMap::new();
    let mut put = |(exposed, is_udp): (u16, bool), address: &str, number: u16| {
        let port = Port { exposed, is_udp, address: address.to_owned(), number };
        all.entry((exposed, is_udp)).or_insert(port);
    };
    match (&rules.at, mode) {
        // What it listens on it listens on there.
        (_, "host") => {
            for port in exposed.iter().filter_map(|text| read(text)) {
                put(port, &rules.address, port.0);
            }
        }
        (Where::Host, _) => {
            for (text, bindings) in &bound {
                let binding = bindings.iter().flatten().find(|binding| binding.host_port.is_some());
                let number = binding.and_then(|binding| binding.host_port.as_ref()?.parse().ok());
                let (Some(port), Some(number)) = (read(text), number) else { continue };
                let at = binding.and_then(|binding| binding.host_ip.as_deref()).unwrap_or_default();
                // Opened on one address alone, it is reached there.
                let at = if matches!(at, "" | "0.0.0.0" | "::") { &rules.address } else { at };
                put(port, at, number);
            }
        }
        (Where::Inside(wanted), _) => {
            let Some(address) = inside(inspected, mode, wanted.as_deref()) else { return Vec::new() };
            for port in exposed.iter().chain(bound.keys()).filter_map(|text| read(text)) {
                put(port, &address, port.0);
            }
        }
    }
    all.into_values().collect()
}

// Its own address: on the network that is asked for, or the one that it was made in, or the first by name.
fn inside(inspected: &ContainerInspectResponse, mode: &str, wanted: Option<&str>) -> Option<String> {
    let networks = inspected.network_settings.as_ref()?.networks.as_ref()?;
    let mut all: Vec<_> = networks.iter().filter(|(name, _)| !PLUMBING.contains(&name.as_str())).collect();
    if let Some(wanted) = wanted {
        all.retain(|(name, _)| *name == wanted);
    }
    let is_own = |name: &str| name == mode || (mode == "default" && name == "bridge");
    all.sort_by_key(|(name, _)| (!is_own(name), name.as_str()));
    all.into_iter().find_map(|(_, endpoint)| {
        let given = [&endpoint.ip_address, &endpoint.global_ipv6_address];
        given.into_iter().flatten().find(|address| !address.is_empty()).cloned()
    })
}

// What Docker's own HEALTHCHECK says.
fn health(inspected: &ContainerInspectResponse, instance: &Instance) -> Option<CatalogCheck> {
    let health = inspected.state.as_ref()?.health.as_ref()?;
    let last = health.log.as_ref().and_then(|log| log.last()?.output.as_deref()).unwrap_or_default().trim();
    let (status, said) = match health.status? {
        HealthStatusEnum::HEALTHY => (CheckStatus::Passing, last),
        HealthStatusEnum::STARTING => (CheckStatus::Critical, "has not passed its check yet"),
        HealthStatusEnum::UNHEALTHY => (CheckStatus::Critical, last),
        _ => return None,
    };
    let mut check = CatalogCheck {
        id: format!("docker:{}", instance.id),
        name: "Docker HEALTHCHECK".into(),
        instance: instance.id.clone(),
        status,
        origin: Origin::Container,
        ..CatalogCheck::default()
    };
    let printable: String = said.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    check.say(printable.trim());
    Some(check)
}

// `SERVICE_CHECK_…`; an error says why it cannot be.
fn check(words: &BTreeMap<String, String>, instance: &Instance) -> Result<Option<CatalogCheck>, String> {
    let word = |key: &str| words.get(&format!("check_{key}")).map(String::as_str).filter(|value| !value.is_empty());
    let period = |key: &str, default: u64| match word(key) {
        None => Ok(Duration::from_secs(default)),
        Some(text) => {
            text.parse::<Duration>().map_err(|error| format!("SERVICE_CHECK_{}: {error}", key.to_uppercase()))
        }
    };
    let place = place(&instance.address, instance.port);
    let url = |scheme: &str, path: &str| {
        let method = word("http_method").or(word("https_method")).unwrap_or_default().to_owned();
        let path = path.trim_start_matches('/');
        let tls_skip_verify = word("tls_skip_verify").is_some_and(|flag| flag != "false");
        CheckKind::Http(HttpCheck {
            url: format!("{scheme}://{place}/{path}"),
            method,
            tls_skip_verify,
            ..HttpCheck::default()
        })
    };
    let kind = if let Some(path) = word("http") {
        url("http", path)
    } else if let Some(path) = word("https") {
        url("https", path)
    } else if word("tcp").is_some() {
        CheckKind::Tcp(place.clone())
    } else if word("ttl").is_some() {
        CheckKind::Ttl(period("ttl", 30)?.max(Duration::from_secs(1)))
    } else if word("grpc").is_some() {
        // `true` alone, or the service that is asked about.
        let service = word("grpc").filter(|service| *service != "true").unwrap_or_default().to_owned();
        let flag = |key: &str| word(key).is_some_and(|flag| flag != "false");
        let (tls, tls_skip_verify) = (flag("grpc_use_tls"), flag("tls_skip_verify"));
        CheckKind::Grpc(GrpcCheck { address: place.clone(), service, tls, tls_skip_verify })
    } else if let Some(other) = ["cmd", "script"].into_iter().find(|key| word(key).is_some()) {
        return Err(format!("SERVICE_CHECK_{} is not run", other.to_uppercase()));
    } else {
        return Ok(None);
    };
    let status = match word("initial_status") {
        None => CheckStatus::Critical,
        Some(text) => text.parse().map_err(|_| format!("SERVICE_CHECK_INITIAL_STATUS: {text:.40?}"))?,
    };
    Ok(Some(CatalogCheck {
        id: format!("service:{}", instance.id),
        name: format!("Service '{}' check", instance.service),
        instance: instance.id.clone(),
        status,
        run: Some(CheckRun {
            kind,
            interval: period("interval", 10)?.max(Duration::from_secs(1)),
            timeout: period("timeout", 10)?,
            success_before_passing: 0,
            failures_before_warning: 0,
            failures_before_critical: 0,
            // A container that is there is registered.
            deregister_after: None,
        }),
        origin: Origin::Container,
        ..CatalogCheck::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(inspected: &ContainerInspectResponse, rules: &Rules) -> Vec<Registered> {
        super::registered(inspected, rules, &mut BTreeSet::new())
    }
    use serde_json::{Value, json};

    fn rules() -> Rules {
        Rules {
            at: Where::Host,
            hostname: "eu-1".into(),
            address: "10.0.0.1".into(),
            cluster: "c".into(),
            explicit: false,
            tags: Vec::new(),
        }
    }

    fn container(env: &[&str], labels: &Value, ports: &Value) -> ContainerInspectResponse {
        serde_json::from_value(json!({
            "Name": "/nginx-1",
            "State": { "Running": true, "Status": "running" },
            "Config": { "Image": "registry.example:5000/shop/nginx:1.27@sha256:abc", "Env": env, "Labels": labels,
                "ExposedPorts": { "80/tcp": {}, "443/tcp": {} } },
            "HostConfig": { "NetworkMode": "back" },
            "NetworkSettings": { "Ports": ports, "Networks": {
                "ingress": { "IPAddress": "10.255.0.4" }, "back": { "IPAddress": "10.7.0.4" } } },
        }))
        .unwrap()
    }

    fn one() -> Value {
        json!({ "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }], "443/tcp": null })
    }

    fn shown(all: &[Registered]) -> Vec<String> {
        let show = |found: &Registered| {
            let instance = &found.instance;
            format!("{} {} {}:{}", instance.service, instance.id, instance.address, instance.port)
        };
        all.iter().map(show).collect()
    }

    #[test]
    fn names_as_registrator_gives_them() {
        let found = registered(&container(&[], &json!({}), &one()), &rules());
        assert_eq!(shown(&found), ["nginx eu-1:nginx-1:80 10.0.0.1:8080"]);
        let two = json!({ "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8080" }],
            "53/udp": [{ "HostIp": "", "HostPort": "53" }] });
        let env = ["SERVICE_NAME=web", "SERVICE_80_NAME=front", "SERVICE_TAGS=a,b\\,c, d", "SERVICE_REGION=eu"];
        let found = registered(&container(&env, &json!({ "SERVICE_80_TAGS": "x" }), &two), &rules());
        assert_eq!(shown(&found), ["web-53 eu-1:nginx-1:53:udp 10.0.0.1:53", "front eu-1:nginx-1:80 127.0.0.1:8080"]);
        assert_eq!(found[0].instance.tags, ["a", "b,c", "d", "udp"]);
        assert_eq!(found[1].instance.tags, ["x"]);
        assert_eq!(found[0].instance.meta, BTreeMap::from([("region".to_owned(), "eu".to_owned())]));
        let labels = json!({ "com.docker.swarm.service.name": "shop_api" });
        assert_eq!(
            shown(&registered(&container(&[], &labels, &one()), &rules()))[0].split(' ').next(),
            Some("shop_api")
        );
        let inside = Rules { at: Where::Inside(None), ..rules() };
        let found = registered(&container(&["SERVICE_443_IGNORE=1", "SERVICE_ID=own"], &json!({}), &one()), &inside);
        assert_eq!(shown(&found), ["nginx-80 own 10.7.0.4:80"]);
    }

    #[test]
    fn what_is_not_to_be_registered_is_not() {
        let none = |env: &[&str], labels: Value, rules: &Rules| {
            assert_eq!(registered(&container(env, &labels, &one()), rules), Vec::new(), "{env:?} {labels}");
        };
        none(&["SERVICE_IGNORE=true"], json!({}), &rules());
        none(&[], json!({ "SERVICE_IGNORE": "true" }), &rules());
        none(&[], json!({}), &Rules { explicit: true, ..rules() });
        let task = json!({ spec::CLUSTER: "c", "neap.task": crate::model::id::TaskId::numbered(1).to_string() });
        none(&[], task, &rules());
        let mut paused = container(&[], &json!({}), &one());
        paused.state.as_mut().unwrap().paused = Some(true);
        assert_eq!(registered(&paused, &rules()), Vec::new());
    }

    #[test]
    fn checks_of_docker_and_of_registrator() {
        let env = ["SERVICE_CHECK_HTTP=/healthz", "SERVICE_CHECK_INTERVAL=5s", "SERVICE_80_CHECK_TIMEOUT=1s"];
        let mut with = container(&env, &json!({}), &one());
        with.state.as_mut().unwrap().health = serde_json::from_value(
            json!({ "Status": "unhealthy", "Log": [{ "Output": "a" }, { "Output": "b\u{7}\n" }] }),
        )
        .unwrap();
        let found = registered(&with, &rules());
        let [docker, own] = found[0].checks.as_slice() else { panic!("{found:?}") };
        assert_eq!((docker.status, docker.output.as_str()), (CheckStatus::Critical, "b"));
        let run = own.run.as_ref().unwrap();
        assert!(matches!(&run.kind, CheckKind::Http(http) if http.url == "http://10.0.0.1:8080/healthz"), "{run:?}");
        assert_eq!((run.interval, run.timeout), (Duration::from_secs(5), Duration::from_secs(1)));
        for (env, why) in [("SERVICE_CHECK_CMD=true", "CMD is not run"), ("SERVICE_CHECK_TTL=soon", "CHECK_TTL")] {
            let words = BTreeMap::from([(env[8..].split_once('=').unwrap().0.to_lowercase(), "soon".to_owned())]);
            assert!(check(&words, &found[0].instance).unwrap_err().contains(why), "{env}");
        }
    }

    #[test]
    fn words_of_neaps_own_services() {
        let said = [
            ("SERVICE_TAGS", "v1,eu\\,west"),
            ("SERVICE_80_TAGS", "edge"),
            ("service_name", "front"),
            ("SERVICE_REGION", "eu"),
            ("SERVICE_443_IGNORE", "1"),
            ("OTHER", "x"),
        ];
        let words = |port: u16, several: bool| own_words(said.into_iter(), Some(port), several);
        let meta = BTreeMap::from([("region".to_owned(), "eu".to_owned())]);
        let name = |text: &str| Some(text.to_owned());
        assert_eq!(
            words(80, false),
            OwnWords { ignore: false, name: name("front"), tags: vec!["edge".into()], meta: meta.clone() }
        );
        let tags = vec!["v1".to_owned(), "eu,west".to_owned()];
        assert_eq!(words(8080, true), OwnWords { ignore: false, name: name("front-8080"), tags, meta });
        assert!(words(443, true).ignore);
        assert_eq!(own_words([("PATH", "/bin")].into_iter(), None, false), OwnWords::default());
    }
}
