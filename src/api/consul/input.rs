//! What clients send: JSON whose keys are known whatever their case, and Go's durations.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::model::catalog::{
    CatalogCheck, CatalogNode, CheckKind, CheckRun, CheckStatus, GrpcCheck, HttpCheck, Instance, Origin, TaggedAddress,
    Weights,
};
use crate::model::{Error, Kind, Result, units};

// What Go's clients send where nothing is set.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// An object whose keys are known whatever their case.
pub struct Fields(Map<String, Value>);

fn folded(key: &str) -> String {
    key.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

impl Fields {
    /// From a request's body.
    pub fn read(body: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Error::invalid("request body", "Request decode failed: is not JSON").cause(error))?;
        Fields::of("request body", value)
    }

    /// From a part of one.
    pub fn of(what: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields(map.into_iter().map(|(key, value)| (folded(&key), value)).collect())),
            Value::Null => Ok(Fields(Map::new())),
            _ => Err(Error::invalid(what, "is not an object")),
        }
    }

    /// Whether a field is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.0.get(&folded(key)).is_some_and(|value| !value.is_null())
    }

    /// Whether nothing is said in it: some clients send empty objects.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(is_nothing)
    }

    fn take(&mut self, key: &str) -> Value {
        self.0.remove(&folded(key)).unwrap_or_default()
    }

    /// A text; empty where there is none.
    pub fn text(&mut self, key: &str) -> Result<String> {
        match self.take(key) {
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text),
            _ => Err(Error::invalid(key, "is not a string")),
        }
    }

    /// True or false.
    pub fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(flag),
            _ => Err(Error::invalid(key, "is neither true nor false")),
        }
    }

    /// A whole number; 0 where there is none.
    pub fn number<T: TryFrom<u64> + Default>(&mut self, key: &str) -> Result<T> {
        let wrong = || Error::invalid(key, "is not a number in its bounds");
        match self.take(key) {
            Value::Null => Ok(T::default()),
            Value::Number(number) => {
                // Some clients send whole numbers with a fraction of nothing.
                let whole = number
                    .as_u64()
                    .or_else(|| number.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0).map(|n| n as u64));
                whole.and_then(|number| T::try_from(number).ok()).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }

    /// Texts.
    pub fn texts(&mut self, key: &str) -> Result<Vec<String>> {
        let wrong = || Error::invalid(key, "is not a list of strings");
        match self.take(key) {
            Value::Null => Ok(Vec::new()),
            Value::Array(all) => {
                let text = |value: Value| if let Value::String(text) = value { Ok(text) } else { Err(wrong()) };
                all.into_iter().map(text).collect()
            }
            _ => Err(wrong()),
        }
    }

    /// A table of texts.
    pub fn table(&mut self, key: &str) -> Result<BTreeMap<String, String>> {
        let wrong = || Error::invalid(key, "is not an object of strings");
        match self.take(key) {
            Value::Null => Ok(BTreeMap::new()),
            Value::Object(map) => {
                let pair = |(key, value)| if let Value::String(text) = value { Ok((key, text)) } else { Err(wrong()) };
                map.into_iter().map(pair).collect()
            }
            _ => Err(wrong()),
        }
    }

    /// An object in it.
    pub fn object(&mut self, key: &str) -> Result<Fields> {
        Fields::of(key, self.take(key))
    }

    /// Objects in it.
    pub fn objects(&mut self, key: &str) -> Result<Vec<Fields>> {
        match self.take(key) {
            Value::Null => Ok(Vec::new()),
            Value::Array(all) => all.into_iter().map(|value| Fields::of(key, value)).collect(),
            _ => Err(Error::invalid(key, "is not a list")),
        }
    }

    /// As a session has it: a small number is one of seconds (as in Consul).
    pub fn lock_delay(&mut self, key: &str) -> Result<Option<units::Duration>> {
        match self.0.get(&folded(key)).and_then(Value::as_u64) {
            Some(seconds @ ..1000) => Ok(Some(units::Duration::from_secs(seconds))),
            _ => self.duration(key),
        }
    }

    /// Nanoseconds, or text.
    pub fn duration(&mut self, key: &str) -> Result<Option<units::Duration>> {
        let wrong =
            || Error::invalid(key, "is no duration").help("write \"10s\", \"1m30s\" or a number of nanoseconds");
        match self.take(key) {
            Value::Null => Ok(None),
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) => period(&text).map(|period| Some(period.into())).ok_or_else(wrong),
            Value::Number(number) => {
                let nanos = number.as_u64().ok_or_else(wrong)?;
                Ok(Some(Duration::from_nanos(nanos).into()))
            }
            _ => Err(wrong()),
        }
    }

    /// A node.
    pub fn node(&mut self) -> Result<CatalogNode> {
        Ok(CatalogNode {
            name: self.text("Node")?,
            id: self.text("ID")?,
            address: self.text("Address")?,
            tagged_addresses: self.table("TaggedAddresses")?,
            meta: self.table("NodeMeta")?,
        })
    }

    /// The same as transactions have it: with the meta data under another name.
    pub fn node_of_txn(&mut self) -> Result<CatalogNode> {
        let meta = self.table("Meta")?;
        Ok(CatalogNode { meta, ..self.node()? })
    }

    /// An instance as transactions have it. `only_id`: it is to be found, and no more than its id has to be said.
    pub fn instance_of_txn(&mut self, only_id: bool) -> Result<Instance> {
        if !only_id {
            return self.instance("Service", Origin::Catalog);
        }
        let said = [self.text("ID")?, self.text("Service")?];
        match said.into_iter().find(|id| !id.is_empty()) {
            None => Err(Error::invalid("service", "Missing service ID")),
            Some(id) => Ok(Instance { id, ..Instance::default() }),
        }
    }

    /// An instance; `name` is the key of its service's name.
    pub fn instance(&mut self, name: &str, origin: Origin) -> Result<Instance> {
        let service = self.text(name)?;
        if service.is_empty() {
            return Err(Error::invalid("service", "Missing service name"));
        }
        let id = self.text("ID")?;
        let mut tagged_addresses = BTreeMap::new();
        let tagged = self.object("TaggedAddresses")?;
        for (key, value) in tagged.0 {
            let mut fields = Fields::of("TaggedAddresses", value)?;
            tagged_addresses
                .insert(key, TaggedAddress { address: fields.text("Address")?, port: fields.number("Port")? });
        }
        let weights = match self.has("Weights") {
            true => {
                let mut fields = self.object("Weights")?;
                Weights { passing: fields.number("Passing")?, warning: fields.number("Warning")? }
            }
            false => Weights::default(),
        };
        if !matches!(self.text("Kind")?.as_str(), "" | "typical") {
            return Err(Error::invalid(
                format!("service {service:.60?}"),
                "is a part of a service mesh, which Neap has none of",
            ));
        }
        Ok(Instance {
            id: if id.is_empty() { service.clone() } else { id },
            service,
            tags: self.texts("Tags")?,
            address: self.text("Address")?,
            port: self.number("Port")?,
            meta: self.table("Meta")?,
            tagged_addresses,
            weights,
            enable_tag_override: self.flag("EnableTagOverride")?,
            origin,
        })
    }

    /// A check by its id, or else its name.
    pub fn check(&mut self, origin: Origin) -> Result<CatalogCheck> {
        let mut check = self.own_check(origin)?;
        if check.name.is_empty() {
            check.name.clone_from(&check.id);
        }
        if check.id.is_empty() {
            check.id.clone_from(&check.name);
        }
        Ok(check)
    }

    /// A check that may have neither, being that of what it is given with.
    pub fn own_check(&mut self, origin: Origin) -> Result<CatalogCheck> {
        let (mut id, name) = (self.text("CheckID")?, self.text("Name")?);
        if id.is_empty() {
            id = self.text("ID")?;
        }
        let status = match self.text("Status")?.as_str() {
            "" => CheckStatus::Critical,
            status => status.parse()?,
        };
        let mut check = CatalogCheck {
            id,
            name,
            instance: self.text("ServiceID")?,
            status,
            notes: self.text("Notes")?,
            run: self.run()?,
            origin,
            ..CatalogCheck::default()
        };
        check.say(&self.text("Output")?);
        Ok(check)
    }

    fn run(&mut self) -> Result<Option<CheckRun>> {
        for key in ["Script", "H2PING", "OSService"] {
            if self.0.get(&folded(key)).is_some_and(|value| !is_nothing(value)) {
                let message = format!("checks with {key} are not run");
                let help =
                    "HTTP, TCP, UDP, GRPC, TTL, Args (with DockerContainerID in a container) and AliasService are";
                return Err(Error::new(Kind::Invalid, "check", message).help(help));
            }
        }
        // And an older name for it.
        let mut words = self.texts("Args")?;
        words.extend(self.texts("ScriptArgs")?);
        let (ttl, interval, timeout) = (self.duration("TTL")?, self.duration("Interval")?, self.duration("Timeout")?);
        let (http, tcp, udp) = (self.text("HTTP")?, self.text("TCP")?, self.text("UDP")?);
        let (grpc, container) = (self.text("GRPC")?, self.text("DockerContainerID")?);
        let alias = (self.text("AliasNode")?, self.text("AliasService")?);
        let short = |period: units::Duration| period.millis() < 1;
        let kind = if let Some(ttl) = ttl.filter(|ttl| !short(*ttl)) {
            CheckKind::Ttl(ttl)
        } else if !http.is_empty() {
            let mut header = BTreeMap::new();
            if let Value::Object(map) = self.take("Header") {
                for (name, value) in map {
                    header.insert(name.clone(), Fields([(folded(&name), value)].into_iter().collect()).texts(&name)?);
                }
            }
            CheckKind::Http(HttpCheck {
                url: http,
                method: self.text("Method")?,
                header,
                body: self.text("Body")?,
                tls_skip_verify: self.flag("TLSSkipVerify")?,
            })
        } else if !tcp.is_empty() {
            CheckKind::Tcp(tcp)
        } else if !udp.is_empty() {
            CheckKind::Udp(udp)
        } else if !grpc.is_empty() {
            CheckKind::Grpc(GrpcCheck {
                tls: self.flag("GRPCUseTLS")?,
                tls_skip_verify: self.flag("TLSSkipVerify")?,
                ..GrpcCheck::parse(&grpc)
            })
        } else if !container.is_empty() {
            if words.is_empty() {
                return Err(Error::invalid("check", "DockerContainerID: Args, the command, is missing"));
            }
            CheckKind::Container { container, command: words }
        } else if !words.is_empty() {
            CheckKind::Command(words)
        } else if alias != (String::new(), String::new()) {
            CheckKind::Alias { node: alias.0, instance: alias.1 }
        } else {
            return Ok(None);
        };
        let needs_interval = !matches!(kind, CheckKind::Ttl(_) | CheckKind::Alias { .. });
        let interval = match interval.filter(|interval| !short(*interval)) {
            Some(interval) => interval,
            None if needs_interval => {
                return Err(Error::invalid(
                    "check",
                    "Interval must be > 0 for Script, HTTP, TCP, UDP, gRPC and Docker checks",
                ));
            }
            None => units::Duration::from_secs(10),
        };
        Ok(Some(CheckRun {
            kind,
            // Whoever asks for a millisecond is given a second (as in Consul).
            interval: interval.max(units::Duration::from_secs(1)),
            timeout: timeout.filter(|timeout| !short(*timeout)).unwrap_or(units::Duration::from_secs(10)),
            success_before_passing: self.number("SuccessBeforePassing")?,
            failures_before_warning: self.number("FailuresBeforeWarning")?,
            failures_before_critical: self.number("FailuresBeforeCritical")?,
            deregister_after: self.duration("DeregisterCriticalServiceAfter")?,
        }))
    }
}

/// Whether a registration has a check that is a command.
pub fn has_command(body: &[u8]) -> bool {
    let Ok(mut fields) = Fields::read(body) else { return false };
    let says = |fields: &Fields| {
        ["Args", "ScriptArgs"].iter().any(|key| fields.0.get(&folded(key)).is_some_and(|value| !is_nothing(value)))
    };
    let own = says(&fields);
    let one = fields.object("Check").is_ok_and(|check| says(&check));
    own || one || fields.objects("Checks").is_ok_and(|all| all.iter().any(says))
}

/// What a body is about, for the audit log; empty where it does not say.
pub fn named(body: &[u8]) -> String {
    let Ok(mut fields) = Fields::read(body) else { return String::new() };
    let keys = ["ServiceID", "ID", "CheckID", "Name", "Node"];
    keys.into_iter().find_map(|key| fields.text(key).ok().filter(|text| !text.is_empty())).unwrap_or_default()
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `500ms`; a number alone is none.
pub fn period(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[end..];
        any = true;
    }
    // A hundred years are long enough.
    any.then(|| Duration::from_secs_f64(seconds.min(3.2e9)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let millis = |text: &str| period(text).map(|period| period.as_millis());
        assert_eq!(millis("10s"), Some(10_000));
        assert_eq!(millis("1h1m1.5s"), Some(3_661_500));
        assert_eq!((millis("250ms"), millis("0"), millis("0s")), (Some(250), Some(0), Some(0)));
        assert_eq!([millis(""), millis("10"), millis("10x"), millis("s"), millis("-1s"), millis("1..2s")], [None; 6]);
    }

    #[test]
    fn keys_are_known_whatever_their_case() {
        let body = br#"{"id":"web-1","NAME":"web","tagged_addresses":{"lan":{"address":"10.0.0.1","Port":80}},
            "EnableTagOverride":true,"port":8080.0,"weights":{"passing":3},"whatever":1}"#;
        let mut fields = Fields::read(body).unwrap();
        let instance = fields.instance("Name", Origin::Agent).unwrap();
        assert_eq!((instance.id.as_str(), instance.service.as_str(), instance.port), ("web-1", "web", 8080));
        assert_eq!(instance.tagged_addresses["lan"].port, 80);
        assert!(instance.enable_tag_override);
        assert_eq!(instance.weights, Weights { passing: 3, warning: 0 });
    }

    #[test]
    fn checks_say_how_they_are_run() {
        let check = |json: &str| Fields::read(json.as_bytes()).unwrap().check(Origin::Agent);
        let ttl = check(r#"{"Name":"alive","TTL":"15s","Status":"passing"}"#).unwrap();
        assert_eq!((ttl.id.as_str(), ttl.status), ("alive", CheckStatus::Passing));
        assert_eq!(ttl.run.unwrap().kind, CheckKind::Ttl(units::Duration::from_secs(15)));
        // What is there and says nothing is not there.
        let plain =
            r#"{"Args":[],"GRPC":"","DockerContainerID":"","TTL":"","HTTP":"","TCP":"127.0.0.1:1","Interval":"5s"}"#;
        assert_eq!(check(plain).unwrap().run.unwrap().kind, CheckKind::Tcp("127.0.0.1:1".into()));
        assert!(Fields::read(br#"{"HTTP":"","TLSSkipVerify":false,"Args":null,"Header":{}}"#).unwrap().is_empty());
        let http = check(r#"{"CheckID":"c","HTTP":"http://127.0.0.1/","Interval":"10ms","Header":{"X-A":["1","2"]}}"#);
        let run = http.unwrap().run.unwrap();
        assert_eq!(run.interval, units::Duration::from_secs(1));
        assert!(matches!(run.kind, CheckKind::Http(http) if http.header["X-A"] == ["1", "2"]));
        for (json, why) in [
            (r#"{"Name":"x","HTTP":"http://a"}"#, "Interval"),
            (r#"{"Name":"x","Args":["true"]}"#, "Interval"),
            (r#"{"Name":"x","Args":"true","Interval":"1s"}"#, "not a list"),
            (r#"{"Name":"x","GRPC":"127.0.0.1:1"}"#, "Interval"),
            (r#"{"Name":"x","H2PING":"127.0.0.1:1","Interval":"1s"}"#, "H2PING"),
            (r#"{"Name":"x","DockerContainerID":"shop","Interval":"1s"}"#, "the command, is missing"),
            (r#"{"Name":"x","TTL":"soon"}"#, "duration"),
            (r#"{"Name":"x","Status":"fine"}"#, "fine"),
            (r#"{"Name":7}"#, "not a string"),
        ] {
            let error = check(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}
