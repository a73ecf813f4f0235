//! Compose files (compose-spec.io) as stacks of ordinary service descriptions. What cannot be had is named with its line.

mod deploy;
mod fields;
mod interpolate;
mod merge;
mod mounts;
mod place;
mod ports;
mod service;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value as Json, json};

pub use self::fields::words;
use self::fields::{Fields, Refused, wrong};
use self::yaml::{At, Entry, Node, Value};
use crate::model::name::Name;
use crate::model::objects::NetworkSpec;
use crate::model::service::ServiceSpec;
use crate::model::stack::{MAX_SERVICES, NAMESPACE, Need, Stack, StackNetwork, StackValue, Until, stack_name};
use crate::model::{Error, Kind, Result};

/// Reads a file.
pub type Read<'a> = &'a dyn Fn(&Path) -> Result<String>;

/// What a file is read with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The stack's name; the file's own `name`, or its folder's, where there is none.
    pub name: Option<String>,
    /// Variables for `${...}`: they count before those of `.env`.
    pub variables: BTreeMap<String, String>,
    /// Profiles whose services are wanted; `*`: all.
    pub profiles: BTreeSet<String>,
    /// A file of variables instead of the `.env` beside the first file.
    pub env_file: Option<PathBuf>,
}

/// The variables of this process that are text.
pub fn environment() -> BTreeMap<String, String> {
    let text = |text: std::ffi::OsString| text.into_string().ok();
    std::env::vars_os().filter_map(|(key, value)| Some((text(key)?, text(value)?))).collect()
}

/// What is known while a file is being read.
struct Context<'a> {
    stack: Name,
    folder: PathBuf,
    variables: BTreeMap<String, String>,
    read: Read<'a>,
    // Where the service that is being read stands.
    at: At,
    services: BTreeSet<String>,
    networks: BTreeMap<String, StackNetwork>,
    volumes: BTreeMap<String, (String, Map<String, Json>)>,
    values: BTreeMap<&'static str, BTreeMap<String, StackValue>>,
    // Networks and values that a service uses.
    used: BTreeSet<(&'static str, String)>,
    warnings: Vec<String>,
}

impl Context<'_> {
    fn warn(&mut self, at: &At, path: &str, why: &str) {
        self.warnings.push(format!("{at}: {path}: left out: {why}"));
    }

    // A path of the host: relative ones begin where the file is.
    fn path(&self, path: &str) -> PathBuf {
        let home = || self.variables.get("HOME").map(PathBuf::from);
        let whole = match path.strip_prefix("~/") {
            Some(rest) => home().unwrap_or_default().join(rest),
            None if path == "~" => home().unwrap_or_default(),
            None => self.folder.join(path),
        };
        clean(&whole)
    }

    fn has_service(&self, key: &str) -> bool {
        self.services.contains(key)
    }

    // As Docker names a stack's services, in the letters that DNS takes.
    fn service_name(&self, key: &str) -> std::result::Result<String, String> {
        let name = format!("{}-{}", self.stack, key.to_lowercase().replace(['_', '.'], "-"));
        match name.parse::<Name>() {
            Ok(name) => Ok(name.to_string()),
            Err(error) => Err(format!("{} {}", error.subject, error.message)),
        }
    }

    fn network(&mut self, key: &str) -> std::result::Result<String, String> {
        let found = self.networks.get(key).map(|network| network.spec.name.clone());
        let name = match found {
            Some(name) => name,
            None if key == "default" => {
                let name = format!("{}_default", self.stack);
                let labels = BTreeMap::from([(NAMESPACE.to_owned(), self.stack.to_string())]);
                let spec = NetworkSpec { name: name.clone(), labels, ..NetworkSpec::default() };
                self.networks.insert(key.to_owned(), StackNetwork { external: false, spec });
                name
            }
            None => return Err(unknown("network", key, self.networks.keys())),
        };
        self.used.insert(("networks", key.to_owned()));
        Ok(name)
    }

    fn volume(&self, key: &str, target: &str) -> std::result::Result<Json, String> {
        let Some((name, options)) = self.volumes.get(key) else {
            return Err(unknown("volume", key, self.volumes.keys()));
        };
        let mut mount = options.clone();
        mount.extend([
            ("type".to_owned(), json!("volume")),
            ("source".to_owned(), json!(name)),
            ("target".to_owned(), json!(target)),
        ]);
        Ok(Json::Object(mount))
    }

    fn value(&mut self, of: &'static str, key: &str) -> std::result::Result<String, String> {
        let known = self.values.entry(of).or_default();
        let Some(value) = known.get(key) else {
            return Err(unknown(of.trim_end_matches('s'), key, known.keys()));
        };
        let name = value.name.clone();
        self.used.insert((of, key.to_owned()));
        Ok(name)
    }
}

// Without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}

fn unknown<'a>(what: &str, key: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let near = crate::model::suggest::nearest(key, known).map(|near| format!("; did you mean \"{near}\"?"));
    format!("there is no {what} {key:.70?} under {what}s:{}", near.unwrap_or_default())
}

/// Reads files, each on top of the one before, as a stack.
pub fn load(files: &[PathBuf], options: &Options, read: Read<'_>) -> Result<Stack> {
    let first = files.first().ok_or_else(|| Error::invalid("stack", "names no Compose file"))?;
    let folder = first.parent().map(clean).unwrap_or_default();
    let mut variables = BTreeMap::new();
    let env = options.env_file.clone().unwrap_or_else(|| folder.join(".env"));
    match read(&env) {
        Ok(text) => {
            let found = interpolate::env_file(&env.display().to_string(), &text, &options.variables)?;
            variables.extend(found.into_iter().filter_map(|(key, value)| Some((key, value?))));
        }
        Err(error) if options.env_file.is_some() || error.kind != Kind::NotFound => return Err(error),
        Err(_) => {}
    }
    variables.extend(options.variables.clone());
    let texts = files.iter().map(|file| Ok((file.display().to_string(), read(file)?)));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    // What it is called is a variable of its own, which the files may use.
    let of_folder = || folder.file_name().map(|name| name.to_string_lossy().into_owned());
    const PROJECT: &str = "COMPOSE_PROJECT_NAME";
    let mut name = options.name.clone().or_else(|| variables.get(PROJECT).filter(|name| !name.is_empty()).cloned());
    if name.is_none() {
        for (file, text) in &texts {
            let mut node = yaml::parse(file, text)?;
            if let Value::Map(map) = &mut node.value {
                map.retain(|(key, ..)| key == "name");
                interpolate::tree(&mut node, &variables, &mut interpolate::Filled::default())?;
            }
            name = Fields::of("", &node)?.text("name")?.or(name);
        }
    }
    let name = name.or_else(of_folder).unwrap_or_default();
    variables.insert(PROJECT.to_owned(), stack_name(&name));
    let (mut document, mut filled): (Option<Node>, _) = (None, interpolate::Filled::default());
    for (file, text) in &texts {
        let mut node = yaml::parse(file, text)?;
        interpolate::tree(&mut node, &variables, &mut filled)?;
        document = Some(match document {
            Some(base) => merge::merge(base, node, &mut Vec::new()),
            None => node,
        });
    }
    let document = document.ok_or_else(|| Error::invalid("stack", "names no Compose file"))?;
    let mut root = Fields::of("", &document)?;
    root.text("version")?;
    root.text("name")?;
    let stack: Name = stack_name(&name).parse().map_err(|error: Error| {
        Error::invalid("stack", format!("{} {}", error.subject, error.message)).help("name it")
    })?;
    let mut context = Context {
        stack,
        folder,
        variables,
        read,
        at: document.at.clone(),
        services: BTreeSet::new(),
        networks: BTreeMap::new(),
        volumes: BTreeMap::new(),
        values: BTreeMap::new(),
        used: BTreeSet::new(),
        warnings: Vec::new(),
    };
    for (variable, at) in filled.missing {
        context.warnings.push(format!("{at}: variable {variable} is not set; nothing stands in its place"));
    }
    networks(&mut context, &mut root)?;
    volumes(&mut context, &mut root)?;
    for of in ["secrets", "configs"] {
        values(&mut context, &mut root, of)?;
    }
    let (services, depends_on) = services(&mut context, &mut root, options)?;
    const ROOT: [Refused; 2] =
        [("include", "name all files (-c), or write it out"), ("models", "they are not made here")];
    root.finish(&ROOT)?;
    let used = |of: &'static str, key: &String| context.used.contains(&(of, key.clone()));
    let mut values = std::mem::take(&mut context.values);
    let mut kept = |of: &'static str| {
        let all = values.remove(of).unwrap_or_default();
        all.into_iter().filter(|(key, _)| used(of, key)).collect::<BTreeMap<_, _>>()
    };
    let (secrets, configs) = (kept("secrets"), kept("configs"));
    let networks = context.networks.iter().filter(|(key, _)| used("networks", key));
    let stack = Stack {
        name: context.stack.clone(),
        services,
        depends_on,
        networks: networks.map(|(key, network)| (key.clone(), network.clone())).collect(),
        secrets,
        configs,
        warnings: context.warnings,
    };
    stack.order().map_err(|error| Error::invalid(document.at.file.to_string(), error.message))?;
    Ok(stack)
}

fn entries<'a>(root: &mut Fields<'a>, key: &'static str) -> Result<&'a [Entry]> {
    match root.take(key) {
        None => Ok(&[]),
        Some(node) => match &node.value {
            Value::Map(map) => Ok(map),
            _ => Err(wrong(&node.at, key, format!("is {}, not a mapping", node.kind()))),
        },
    }
}

fn networks(context: &mut Context<'_>, root: &mut Fields<'_>) -> Result<()> {
    for (key, _, node) in entries(root, "networks")? {
        let mut fields = Fields::of(format!("networks.{key}"), node)?;
        let (external, name) = mounts::external(&mut fields)?;
        let pairs = |fields: &mut Fields<'_>, key| -> Result<BTreeMap<String, String>> {
            Ok(fields.pairs(key)?.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect())
        };
        let mut spec = NetworkSpec {
            name: name.unwrap_or_else(|| if external { key.clone() } else { format!("{}_{key}", context.stack) }),
            driver: fields.text("driver")?,
            internal: fields.flag("internal")?.unwrap_or(false),
            attachable: fields.flag("attachable")?,
            ipv6: fields.flag("enable_ipv6")?.unwrap_or(false),
            options: pairs(&mut fields, "driver_opts")?,
            labels: pairs(&mut fields, "labels")?,
            ..NetworkSpec::default()
        };
        fields.flag("enable_ipv4")?;
        if let Some(node) = fields.take("ipam") {
            let mut ipam = Fields::of(fields.path_of("ipam"), node)?;
            let path = ipam.path_of("config");
            if let Some(node) = ipam.take("config") {
                for node in fields::list(&path, node)? {
                    let mut config = Fields::of(path.clone(), node)?;
                    spec.subnets.extend(config.text("subnet")?);
                    spec.gateways.extend(config.text("gateway")?);
                    let why = "the engine gives addresses of the whole subnet";
                    config.finish(&[("ip_range", why), ("aux_addresses", why)])?;
                }
            }
            ipam.text("driver")?;
            ipam.finish(&[("options", "the engine's own driver is used")])?;
        }
        fields.finish(&[])?;
        if !external {
            spec.labels.insert(NAMESPACE.to_owned(), context.stack.to_string());
            spec.validate().map_err(|error| wrong(&node.at, &format!("networks.{key}"), error))?;
        }
        context.networks.insert(key.clone(), StackNetwork { external, spec });
    }
    Ok(())
}

fn volumes(context: &mut Context<'_>, root: &mut Fields<'_>) -> Result<()> {
    for (key, _, node) in entries(root, "volumes")? {
        let mut fields = Fields::of(format!("volumes.{key}"), node)?;
        let (external, name) = mounts::external(&mut fields)?;
        let mut options = mounts::volume_options(&mut fields)?;
        fields.finish(&[])?;
        let name = name.unwrap_or_else(|| if external { key.clone() } else { format!("{}_{key}", context.stack) });
        if external {
            options.clear();
        } else {
            let labels = service::table(&mut options, "volume_labels");
            labels.insert(NAMESPACE.into(), json!(context.stack));
        }
        context.volumes.insert(key.clone(), (name, options));
    }
    Ok(())
}

fn values(context: &mut Context<'_>, root: &mut Fields<'_>, of: &'static str) -> Result<()> {
    for (key, at, node) in entries(root, of)? {
        let path = format!("{of}.{key}");
        let mut fields = Fields::of(path.clone(), node)?;
        let (external, name) = mounts::external(&mut fields)?;
        let (file, variable) = (fields.text("file")?, fields.text("environment")?);
        let content = if of == "configs" { fields.text("content")? } else { None };
        fields.pairs("labels")?;
        fields.finish(&[
            ("driver", "it is kept in the cluster's own store"),
            ("template_driver", "`${...}` in the file's content is filled in where it is written as content:"),
        ])?;
        let value = match (external, file, variable, content) {
            (true, ..) => None,
            (_, Some(file), None, None) => {
                Some((context.read)(&context.path(&file)).map_err(|error| wrong(at, &path, error))?)
            }
            (_, None, Some(variable), None) => {
                let value = context.variables.get(&variable);
                Some(value.cloned().ok_or_else(|| wrong(at, &path, format!("variable {variable:.60?} is not set")))?)
            }
            (_, None, None, Some(content)) => Some(content),
            _ => {
                return Err(wrong(
                    at,
                    &path,
                    "says not whence it comes: one of external, file, environment (or content)",
                ));
            }
        };
        let name = name.unwrap_or_else(|| if external { key.clone() } else { format!("{}/{key}", context.stack) });
        context.values.entry(of).or_default().insert(key.clone(), StackValue { name, value });
    }
    Ok(())
}

type Services = (BTreeMap<String, Json>, BTreeMap<String, BTreeMap<String, Need>>);

fn services(context: &mut Context<'_>, root: &mut Fields<'_>, options: &Options) -> Result<Services> {
    let all = entries(root, "services")?;
    let mut wanted = Vec::new();
    for (key, at, node) in all {
        let path = format!("services.{key}");
        let mut fields = Fields::of(path.clone(), node)?;
        let profiles = fields.texts("profiles")?;
        let chosen = |profile: &String| options.profiles.contains(profile) || options.profiles.contains("*");
        if profiles.is_empty() || profiles.iter().any(chosen) {
            wanted.push((key, at, node));
        }
    }
    if wanted.is_empty() {
        return Err(Error::invalid(context.at.file.to_string(), "has no services")
            .help("those with profiles are wanted where a profile is chosen (--profile)"));
    }
    if wanted.len() > MAX_SERVICES {
        let message = format!("has {} services, more than {MAX_SERVICES}", wanted.len());
        return Err(Error::new(crate::model::Kind::Exhausted, context.at.file.to_string(), message));
    }
    context.services = wanted.iter().map(|(key, ..)| (*key).clone()).collect();
    let (mut services, mut depends_on) = (BTreeMap::new(), BTreeMap::new());
    let mut names: BTreeMap<String, &String> = BTreeMap::new();
    for (key, at, node) in wanted {
        context.at = at.clone();
        let (spec, waits) = service::service(context, key, node)?;
        if let Some(other) = names.insert(spec["name"].to_string(), key) {
            let why = format!("comes to the same name as {other:.60?}: {}", spec["name"]);
            return Err(wrong(at, &format!("services.{key}"), why));
        }
        services.insert(key.clone(), (spec, at, node));
        if !waits.is_empty() {
            depends_on.insert(key.clone(), waits);
        }
    }
    let awaited: Vec<(&String, &String)> = depends_on
        .iter()
        .flat_map(|(key, waits)| waits.iter().map(move |(needed, need)| (key, needed, need)))
        .filter(|(_, _, need)| need.until == Until::Completed)
        .map(|(key, needed, _)| (key, needed))
        .collect();
    for (key, needed) in awaited {
        let Some((spec, at, _)) = services.get_mut(needed) else { continue };
        deploy::ends(spec).map_err(|why| {
            wrong(at, &format!("services.{needed}"), format!("{key} waits for its end, and {why}"))
                .help("give it restart: 'no', or on-failure")
        })?;
    }
    let mut all = BTreeMap::new();
    for (key, (spec, at, node)) in services {
        ServiceSpec::read(&spec).map_err(|error| {
            let (at, help) = (place::of(node, &error.message).unwrap_or(at), error.help.clone());
            let wrong = wrong(at, &format!("services.{key}"), error.message);
            help.map_or(wrong.clone(), |help| wrong.help(help))
        })?;
        all.insert(key, spec);
    }
    Ok((all, depends_on))
}

#[cfg(test)]
mod tests;
