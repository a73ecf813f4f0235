//! Who may ask what: the rules of the token that a request brings, where tokens are looked at. What is to be changed has to be
//! allowed by name; of what is told, only what may be seen is left.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::input::Fields;
use super::{Call, Consul, Reply, txn};
use crate::model::id::sha256_hex;
use crate::model::rules::{Access, Resource, Rules};
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Found, State};

/// Who asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// The token's name.
    pub name: String,
    /// Its rules.
    pub rules: Rules,
}

/// What was asked, once it is answered.
pub struct Seen {
    /// The method.
    pub method: String,
    /// The path, in parts.
    pub path: Vec<String>,
}

/// What one request may.
#[derive(Debug, Clone)]
pub struct Rights {
    granted: Granted,
    // Where no rule says.
    default: Access,
}

/// The hash by which a token is known; empty for none.
pub fn hashed(secret: &str) -> String {
    let secret = secret.trim();
    if secret.is_empty() { String::new() } else { sha256_hex(secret.as_bytes()) }
}

/// What `call` may; nothing where tokens are not looked at.
pub async fn of(consul: &Consul, call: &Call) -> Result<Option<Rights>> {
    // The one of the host where it was asked, and this one's: the stricter holds.
    let Some(default) = [consul.policy, call.policy].into_iter().flatten().min() else { return Ok(None) };
    match consul.source.granted(&call.token).await? {
        Some(granted) => Ok(Some(Rights { granted, default })),
        None if call.token.is_empty() => {
            let granted = Granted { name: "anonymous".into(), rules: Rules::default() };
            Ok(Some(Rights { granted, default }))
        }
        None => {
            Err(Error::new(Kind::Forbidden, "token", "ACL not found")
                .help("`neap token ls` lists those that are known"))
        }
    }
}

impl Rights {
    fn access(&self, resource: Resource, name: &str) -> Access {
        self.granted.rules.access(resource, name).unwrap_or(self.default)
    }

    fn sees(&self, resource: Resource, name: &str) -> bool {
        self.access(resource, name) >= Access::Read
    }

    /// Whether a key may be read.
    pub fn sees_key(&self, key: &str) -> bool {
        self.sees(Resource::Key, key)
    }

    /// Whether an instance may be seen.
    pub fn sees_instance(&self, found: &Found) -> bool {
        self.sees(Resource::Service, &found.entry.instance.service) && self.sees(Resource::Node, &found.node.node.name)
    }

    /// Whether a rule says that the whole may be read or written.
    pub fn operates(&self, access: Access) -> bool {
        self.granted.rules.access(Resource::Operator, "").is_some_and(|said| said >= access)
    }

    /// The token's name.
    pub fn who(&self) -> &str {
        &self.granted.name
    }

    fn need(&self, access: Access, resource: Resource, name: &str) -> Result<()> {
        match self.access(resource, name) >= access {
            true => Ok(()),
            false => Err(self.refused(access, resource, name)),
        }
    }

    fn refused(&self, access: Access, resource: Resource, name: &str) -> Error {
        let who = &self.granted.name;
        let message = format!("lacks permission '{resource}:{}' on {name:.200?}", access.as_str());
        Error::new(Kind::Forbidden, "Permission denied: token", format!("'{who}' {message}"))
    }

    /// An error unless what is asked may be done; what is only told is looked at by `left`.
    pub fn check(&self, consul: &Consul, call: &Call) -> Result<()> {
        use Access::{Read, Write};
        use Resource::{Agent, Event, Key, Node, Operator, Query, Service, Session};
        let parts: Vec<&str> = call.path.iter().map(String::as_str).collect();
        let is_read = matches!(call.method.as_str(), "GET" | "HEAD");
        let host = consul.host();
        match parts.as_slice() {
            ["kv", key @ ..] => {
                let key = key.join("/");
                match call.method.as_str() {
                    "DELETE" if call.flag("recurse") => self.tree(&key),
                    // Where nothing can be seen, nothing is read.
                    _ if is_read && (call.flag("recurse") || call.flag("keys")) => {
                        match self.granted.rules.most(Key, &key, self.default) >= Read {
                            true => Ok(()),
                            false => Err(self.refused(Read, Key, &key)),
                        }
                    }
                    _ => self.need(if is_read { Read } else { Write }, Key, &key),
                }
            }
            ["txn"] => {
                for touched in txn::touched(&call.body.0)? {
                    match touched {
                        txn::Touched::Key(access, key) => self.need(access, Key, &key)?,
                        txn::Touched::Tree(key) => self.tree(&key)?,
                        txn::Touched::Session(id) => self.of_session(consul, &id)?,
                        txn::Touched::Node(access, node) => {
                            let by_id = |state: &State| Some(state.node_by_id(&node.id)?.node.name.clone());
                            let name = match node.name.is_empty() {
                                true => consul.catalog.read(by_id).unwrap_or_default(),
                                false => node.name.clone(),
                            };
                            self.need(access, Node, &name)?;
                        }
                        txn::Touched::Service { access, node, name, id } => {
                            // Its new name, and the one that it has.
                            if access == Write && !name.is_empty() {
                                self.need(access, Service, &name)?;
                            }
                            self.need_instance(access, consul, &node, &id)?;
                        }
                        txn::Touched::Check { access, node, id, instance } => {
                            self.of_check(access, consul, &node, &id)?;
                            match instance.is_empty() {
                                true if access == Write => self.need(access, Node, &node)?,
                                true => {}
                                false => self.need_instance(access, consul, &node, &instance)?,
                            }
                        }
                    }
                }
                Ok(())
            }
            ["session", "create"] => {
                let node =
                    if call.body.0.is_empty() { String::new() } else { Fields::read(&call.body.0)?.text("Node")? };
                self.need(Write, Session, if node.is_empty() { &host } else { &node })
            }
            // Its node is known to whoever leads alone, who looks again.
            ["session", "destroy" | "renew", id] => self.of_session(consul, id),
            ["event", "fire", name] => self.need(Write, Event, name),
            ["query"] if !is_read => self.need(Write, Query, &Fields::read(&call.body.0)?.text("Name")?),
            ["query", id] if !is_read => {
                let known = consul.catalog.read(|state| state.queries.by_id(id).map(|query| query.name.clone()));
                self.need(Write, Query, known.as_deref().unwrap_or_default())?;
                match call.method.as_str() {
                    "PUT" => self.need(Write, Query, &Fields::read(&call.body.0)?.text("Name")?),
                    _ => Ok(()),
                }
            }
            // It may be asked for by its id.
            ["query", name, "explain"] => {
                let known = consul.catalog.read(|state| state.queries.find(name).map(|query| query.name.clone()));
                self.need(Read, Query, known.as_deref().unwrap_or_default())
            }
            ["agent", "self"] => self.need(Read, Agent, &host),
            ["agent", "maintenance"] => self.need(Write, Node, &host),
            ["agent", "service", "register"] => {
                let mut fields = Fields::read(&call.body.0)?;
                let (name, id) = (fields.text("Name")?, fields.text("ID")?);
                self.need(Write, Service, &name)?;
                // An instance of this id that is there goes for it.
                self.instance(consul, &host, if id.is_empty() { &name } else { &id })
            }
            ["agent", "service", "deregister" | "maintenance", id] => self.instance(consul, &host, id),
            ["agent", "check", "register"] => {
                let mut fields = Fields::read(&call.body.0)?;
                let instance = fields.text("ServiceID")?;
                let (id, name) = (fields.text("CheckID")?, fields.text("Name")?);
                let id = [id, fields.text("ID")?, name].into_iter().find(|id| !id.is_empty()).unwrap_or_default();
                self.of_check(Write, consul, &host, &id)?;
                match instance.is_empty() {
                    true => self.need(Write, Node, &host),
                    false => self.instance(consul, &host, &instance),
                }
            }
            ["agent", "check", _, id] => self.of_check(Write, consul, &host, id),
            ["agent", "service", id] => self.need_instance(Read, consul, &host, id),
            ["agent", "health", "service", "id", id] => self.need_instance(Read, consul, &host, id),
            ["agent", "health", "service", "name", name] => self.need(Read, Service, name),
            ["catalog", "register"] => {
                let mut fields = Fields::read(&call.body.0)?;
                let node = fields.text("Node")?;
                self.need(Write, Node, &node)?;
                let mut checks = fields.objects("Checks")?;
                checks.push(fields.object("Check")?);
                for mut check in checks {
                    let (instance, id, name) = (check.text("ServiceID")?, check.text("CheckID")?, check.text("Name")?);
                    let id = [id, check.text("ID")?, name].into_iter().find(|id| !id.is_empty()).unwrap_or_default();
                    self.instance(consul, &node, &instance)?;
                    self.of_check(Write, consul, &node, &id)?;
                }
                if !fields.has("Service") {
                    return Ok(());
                }
                let mut service = fields.object("Service")?;
                let name = service.text("Service")?;
                self.need(Write, Service, &name)?;
                let id = service.text("ID")?;
                self.instance(consul, &node, if id.is_empty() { &name } else { &id })
            }
            ["catalog", "deregister"] => {
                let mut fields = Fields::read(&call.body.0)?;
                let (node, id, check) = (fields.text("Node")?, fields.text("ServiceID")?, fields.text("CheckID")?);
                if self.access(Node, &node) >= Write {
                    return Ok(());
                }
                match (id.is_empty(), check.is_empty()) {
                    (false, _) => self.instance(consul, &node, &id),
                    (true, false) => self.of_check(Write, consul, &node, &check),
                    (true, true) => Err(self.refused(Write, Node, &node)),
                }
            }
            // It goes past all other rules: what is allowed where no rule says does not come to that.
            ["snapshot"] => {
                let access = if is_read { Read } else { Write };
                match self.operates(access) {
                    true => Ok(()),
                    false => Err(self.refused(access, Operator, "")),
                }
            }
            _ => Ok(()),
        }
    }

    // All keys that begin so are to go.
    fn tree(&self, key: &str) -> Result<()> {
        match self.granted.rules.least(Resource::Key, key, self.default) >= Access::Write {
            true => Ok(()),
            false => Err(self.refused(Access::Write, Resource::Key, key)),
        }
    }

    fn of_session(&self, consul: &Consul, id: &str) -> Result<()> {
        let Some(own) = consul.source.own() else { return Ok(()) };
        match own.kv.session(id)? {
            Some(session) => self.need(Access::Write, Resource::Session, &session.node),
            None => Ok(()),
        }
    }

    // Whoever changes an instance that is there has to be allowed its service.
    fn instance(&self, consul: &Consul, node: &str, id: &str) -> Result<()> {
        self.need_instance(Access::Write, consul, node, id)
    }

    fn need_instance(&self, access: Access, consul: &Consul, node: &str, id: &str) -> Result<()> {
        let known =
            consul.catalog.read(|state| state.instance(node, id).map(|found| found.entry.instance.service.clone()));
        match known {
            Some(service) => self.need(access, Resource::Service, &service),
            None => Ok(()),
        }
    }

    fn of_check(&self, access: Access, consul: &Consul, node: &str, id: &str) -> Result<()> {
        let instance = consul.catalog.read(|state| {
            let check = state.node(node)?.checks.get(id)?;
            Some(check.check.instance.clone())
        });
        match instance {
            Some(instance) if instance.is_empty() => self.need(access, Resource::Node, node),
            Some(instance) => self.need_instance(access, consul, node, &instance),
            None => Ok(()),
        }
    }

    /// What of an answer may be seen.
    pub fn left(&self, seen: &Seen, reply: Reply) -> Reply {
        let path: Vec<&str> = seen.path.iter().map(String::as_str).collect();
        let path = path.as_slice();
        let is_read = matches!(seen.method.as_str(), "GET" | "HEAD");
        if !is_read && path != ["txn"] {
            return reply;
        }
        match reply {
            Reply::Json(index, value) => Reply::Json(index, self.pruned(path, value)),
            Reply::Plain(value) => Reply::Plain(self.pruned(path, value)),
            Reply::Other(status, index, value) => Reply::Other(status, index, self.pruned(path, value)),
            other => other,
        }
    }

    fn pruned(&self, path: &[&str], mut value: Value) -> Value {
        use Resource::{Event, Key, Node, Query, Service, Session};
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let keep = |value: &mut Value, sees: &dyn Fn(&Value) -> bool| {
            if let Some(all) = value.as_array_mut() {
                all.retain(|item| sees(item));
            }
        };
        let keep_named = |value: &mut Value, sees: &dyn Fn(&str, &Value) -> bool| {
            if let Some(all) = value.as_object_mut() {
                all.retain(|name, item| sees(name, item));
            }
        };
        match path {
            ["txn"] => keep(&mut value["Results"], &|item| match item.get("KV") {
                Some(pair) => self.sees(Key, &text(pair, "Key")),
                None => true,
            }),
            ["session", ..] => keep(&mut value, &|item| self.sees(Session, &text(item, "Node"))),
            ["event", "list"] => keep(&mut value, &|item| self.sees(Event, &text(item, "Name"))),
            ["query"] | ["query", _] => keep(&mut value, &|item| self.sees(Query, &text(item, "Name"))),
            ["query", _, "execute"] => keep(&mut value["Nodes"], &|item| self.sees_item(item)),
            // Whoever answers has looked.
            ["kv", ..] => {}
            ["agent", "members"] => keep(&mut value, &|item| self.sees(Node, &text(item, "Name"))),
            ["agent", "services" | "checks"] => keep_named(&mut value, &|_, item| self.sees_item(item)),
            ["catalog", "services"] => keep_named(&mut value, &|name, _| self.sees(Service, name)),
            ["catalog", "node", _] if !value.is_null() => {
                if !self.sees(Node, &text(&value["Node"], "Node")) {
                    return Value::Null;
                }
                keep_named(&mut value["Services"], &|_, item| self.sees_item(item));
            }
            ["catalog", "node-services", _] if !value.is_null() => {
                if !self.sees(Node, &text(&value["Node"], "Node")) {
                    return Value::Null;
                }
                keep(&mut value["Services"], &|item| self.sees_item(item));
            }
            ["catalog", "datacenters"] => {}
            ["catalog" | "health" | "coordinate", ..] => keep(&mut value, &|item| self.sees_item(item)),
            ["prometheus", "targets"] => {
                keep(&mut value, &|item| {
                    let labels = &item["labels"];
                    let (service, node) = (text(labels, "__meta_neap_service"), text(labels, "__meta_neap_node"));
                    self.sees(Service, &service) && self.sees(Node, &node)
                });
            }
            _ => {}
        }
        value
    }

    // What stands for an instance, a check or a node, in whichever form: by the names of both in it.
    fn sees_item(&self, item: &Value) -> bool {
        let (service, node) = (&item["Service"], &item["Node"]);
        let services = [item["ServiceName"].as_str(), service.as_str(), service["Service"].as_str()];
        let nodes = [node.as_str(), node["Node"].as_str()];
        let named = |all: &[Option<&str>], resource| {
            all.iter().flatten().filter(|name| !name.is_empty()).all(|name| self.sees(resource, name))
        };
        named(&services, Resource::Service) && named(&nodes, Resource::Node)
    }
}
