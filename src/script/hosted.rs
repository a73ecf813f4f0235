//! One bundle loaded for one kind: the registrations of that kind, ready to be called. The other kinds' are read past;
//! they have VMs of their own.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Function, Lua, Table, Value};
use serde::Deserialize;

use super::budget::{self, Budget};
use super::files::Files;
use super::value::{raise, to_json};
use super::{api, report, require, stdlib, vm};
use crate::model::bundle::{Bundle, HostedKind, Registration};
use crate::model::check::{CheckSpec, OnFail};
use crate::model::name::Name;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result, suggest};

/// A bundle's registrations of one kind.
pub struct Hosted {
    /// The VM.
    pub lua: Lua,
    /// Its time.
    pub budget: Budget,
    /// What was registered, by name.
    pub entries: BTreeMap<String, Entry>,
    files: Rc<dyn Files>,
}

/// One registration: its functions and its plain fields.
pub struct Entry {
    /// Functions by field.
    pub functions: BTreeMap<String, Function>,
    /// What the user gave besides.
    pub facts: Facts,
    /// Where it stands.
    pub file: String,
    /// Where in the file.
    pub line: u32,
}

/// A registration's fields that are no functions.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Times and thresholds of a check.
    #[serde(skip)]
    pub check: CheckSpec,
    /// How long a rollout may take in all.
    pub deadline: Option<Duration>,
    /// The options that it knows; none: any.
    pub options: Option<Vec<String>>,
}

// Functions, whether they are required, and plain fields of each kind.
fn fields(kind: HostedKind) -> (&'static [(&'static str, bool)], &'static [&'static str]) {
    match kind {
        HostedKind::Policy => (&[("filter", false), ("score", false)], &["options"]),
        HostedKind::Check => {
            (&[("run", true)], &["every", "timeout", "healthy", "unhealthy", "start_period", "on_fail", "options"])
        }
        HostedKind::Rollout => (&[("step", true)], &["deadline", "options"]),
    }
}

impl Hosted {
    /// Loads the entries of `bundle` for `kind`. A file that fails fails all of it.
    pub fn load(bundle: &Arc<Bundle>, kind: HostedKind, is_library: bool) -> Result<Self> {
        let prefix = if is_library { format!("{}/", stdlib::OWNER) } else { String::new() };
        Self::load_from(Rc::new(bundle.clone()), &bundle.entries, kind, &prefix)
    }

    /// Loads `entries`, read from `files`; their paths are shown behind `prefix`.
    pub fn load_from(files: Rc<dyn Files>, entries: &[String], kind: HostedKind, prefix: &str) -> Result<Self> {
        let broken = |error: mlua::Error| Error::internal("script host", "cannot make a VM").cause(error);
        let lua = vm::new().map_err(broken)?;
        let budget = Budget::attach(&lua);
        let registered: Rc<std::cell::RefCell<BTreeMap<String, Entry>>> = Rc::default();
        let phase = api::Phase::default();
        api::install_hosted(&lua, kind, &phase).map_err(broken)?;
        require::install(&lua, files.clone()).map_err(broken)?;
        for other in HostedKind::ALL {
            let registered = registered.clone();
            let mine = other == kind;
            let registrar =
                lua.create_function(move |lua, name: String| registrar(lua, other, name, registered.clone(), mine));
            lua.globals().set(other.as_str(), registrar.map_err(broken)?).map_err(broken)?;
        }
        let _ = lua.set_memory_limit(lua.used_memory() + budget::GROWTH);
        vm::seal(&lua).map_err(broken)?;
        for entry in entries {
            let subject = format!("script {entry}");
            let source = files.read(entry).ok_or_else(|| Error::not_found(subject.clone()))?;
            let chunk = lua.load(source).set_name(format!("={prefix}{entry}"));
            budget
                .run(budget::LOAD, || chunk.exec())
                .map_err(|error| report::explain(&subject, &error, &|file| find_source(&*files, file), None))?;
        }
        phase.running.set(true);
        // Counted from what is loaded: a big bundle is no reason to deny a call its memory.
        let _ = lua.set_memory_limit(lua.used_memory() + budget::GROWTH);
        let entries = std::mem::take(&mut *registered.borrow_mut());
        Ok(Hosted { lua, budget, entries, files })
    }

    /// What was registered, for lists and for the check of names.
    pub fn registrations(&self, kind: HostedKind, bundle: &str) -> Vec<Registration> {
        let entries = self.entries.iter();
        entries
            .map(|(name, entry)| Registration {
                kind,
                name: name.clone(),
                bundle: bundle.to_owned(),
                file: entry.file.clone(),
                line: entry.line,
            })
            .collect()
    }

    /// An error in a call into this VM, with the source line.
    pub fn explain(&self, subject: &str, error: &mlua::Error, call: &str) -> Error {
        report::explain(subject, error, &|file| find_source(&*self.files, file), Some(call))
    }
}

fn find_source(files: &dyn Files, file: &str) -> Option<String> {
    match file.strip_prefix("@neap/") {
        Some(inner) => stdlib::source(inner).map(str::to_owned),
        None => files.read(file),
    }
}

// `policy "name"` gives a function that takes the table.
fn registrar(
    lua: &Lua,
    kind: HostedKind,
    name: String,
    registered: Rc<std::cell::RefCell<BTreeMap<String, Entry>>>,
    mine: bool,
) -> mlua::Result<Function> {
    let word = kind.as_str();
    name.parse::<Name>().map_err(raise)?;
    let (file, line) = api::position(lua);
    lua.create_function(move |_, table: Table| {
        let subject = format!("{word} \"{name}\"");
        let entry = read_entry(kind, &subject, &table, &file, line).map_err(raise)?;
        let mut registered = registered.borrow_mut();
        if !mine {
            return Ok(());
        }
        if let Some(first) = registered.get(&name) {
            let error = Error::new(
                Kind::Conflict,
                subject,
                format!("is registered twice; the first stands at {}:{}", first.file, first.line),
            );
            return Err(raise(error));
        }
        registered.insert(name.clone(), entry);
        Ok(())
    })
}

fn read_entry(kind: HostedKind, subject: &str, table: &Table, file: &str, line: u32) -> Result<Entry> {
    let (functions, plain) = fields(kind);
    let mut entry = Entry { functions: BTreeMap::new(), facts: Facts::default(), file: file.to_owned(), line };
    let rest = serde_json::Map::new();
    let mut rest = rest;
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair.map_err(|error| Error::new(Kind::Script, subject, error.to_string()))?;
        let Value::String(key) = &key else {
            return Err(Error::new(Kind::Script, subject, "holds a value without a name")
                .help(format!("write {} \"name\" {{ field = value }}", kind.as_str())));
        };
        let key = key.to_string_lossy();
        if functions.iter().any(|(name, _)| *name == key) {
            let Value::Function(function) = value else {
                return Err(Error::new(
                    Kind::Script,
                    subject,
                    format!("{key}: expected a function, got a {}", value.type_name()),
                ));
            };
            entry.functions.insert(key, function);
        } else if plain.contains(&key.as_str()) {
            rest.insert(key, to_json(&value).map_err(|error| error.about(subject))?);
        } else {
            let known = functions.iter().map(|(name, _)| *name).chain(plain.iter().copied());
            let hint = suggest::hint(&key, known.collect::<Vec<_>>());
            return Err(Error::new(Kind::Script, subject, format!("unknown field \"{key:.60}\"{hint}")));
        }
    }
    if let Some((missing, _)) =
        functions.iter().find(|(name, required)| *required && !entry.functions.contains_key(*name))
    {
        return Err(Error::new(Kind::Script, subject, format!("{missing} is missing")));
    }
    if entry.functions.is_empty() {
        return Err(Error::new(Kind::Script, subject, "has neither filter nor score"));
    }
    if kind == HostedKind::Check {
        let options = rest.remove("options");
        let timing: Timing = crate::model::strict::read(subject, &serde_json::Value::Object(rest))?;
        entry.facts.check = CheckSpec {
            every: timing.every,
            timeout: timing.timeout,
            healthy: timing.healthy,
            unhealthy: timing.unhealthy,
            start_period: timing.start_period,
            on_fail: timing.on_fail,
            ..CheckSpec::default()
        };
        rest = serde_json::Map::new();
        rest.extend(options.map(|options| ("options".to_owned(), options)));
    }
    let facts: Facts = crate::model::strict::read(subject, &serde_json::Value::Object(rest))?;
    entry.facts = Facts { check: std::mem::take(&mut entry.facts.check), ..facts };
    Ok(entry)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Timing {
    every: Option<Duration>,
    timeout: Option<Duration>,
    healthy: Option<u32>,
    unhealthy: Option<u32>,
    start_period: Option<Duration>,
    on_fail: Option<OnFail>,
}
