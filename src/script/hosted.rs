//! One bundle loaded for one kind: the registrations of that kind, ready to be called. The other kinds' are read past;
//! they have VMs of their own. Without a kind, all are kept: to see what a bundle registers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Function, Lua, Value};

use super::api::HostEnv;
use super::budget::{self, Beat, Budget};
use super::files::Files;
use super::registration::{self, Facts};
use super::sink::Sink;
use super::value::raise;
use super::{api, report, require, stdlib, vm};
use crate::model::bundle::{Bundle, HostedKind, Registration};
use crate::model::{Error, Kind, Result};

/// A bundle's registrations.
pub struct Hosted {
    /// The VM.
    pub lua: Lua,
    /// Its time.
    pub budget: Budget,
    /// Where `print` goes now.
    pub sink: Sink,
    /// What was registered.
    pub entries: Entries,
    /// Another number for each VM of a thread.
    pub serial: u64,
    files: Rc<dyn Files>,
}

/// Registrations that were begun, `policy "name"`, and have not got their table yet: where they stand.
type Open = BTreeMap<(HostedKind, String), (String, u32)>;

/// Registrations by kind and name.
pub type Entries = BTreeMap<(HostedKind, String), Entry>;

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

impl Hosted {
    /// Loads the entries of `bundle` for `kind`. A file that fails fails all of it.
    pub fn load(
        bundle: &Arc<Bundle>,
        kind: Option<HostedKind>,
        is_library: bool,
        beat: Beat,
        env: &HostEnv,
    ) -> Result<Self> {
        let prefix = if is_library { format!("{}/", stdlib::OWNER) } else { String::new() };
        Self::load_from(Rc::new(bundle.clone()), &bundle.entries, kind, &prefix, beat, env)
    }

    /// Loads `entries`, read from `files`; their paths are shown behind `prefix`.
    pub fn load_from(
        files: Rc<dyn Files>,
        entries: &[String],
        kind: Option<HostedKind>,
        prefix: &str,
        beat: Beat,
        env: &HostEnv,
    ) -> Result<Self> {
        let broken = |error: mlua::Error| Error::internal("script host", "cannot make a VM").cause(error);
        let lua = vm::new().map_err(broken)?;
        let budget = Budget::attach(&lua, beat);
        let registered: Rc<RefCell<Entries>> = Rc::default();
        let open: Rc<RefCell<Open>> = Rc::default();
        let phase = api::Phase::default();
        let sink = Sink::default();
        api::install_hosted(&lua, kind, &phase, &sink, env).map_err(broken)?;
        require::install(&lua, files.clone()).map_err(broken)?;
        for other in HostedKind::ALL {
            let (registered, open, phase) = (registered.clone(), open.clone(), phase.clone());
            let mine = kind.is_none_or(|kind| kind == other);
            let registrar = lua.create_function(move |lua, (name, table): (Value, Value)| {
                phase.require_loading(other.as_str())?;
                let word = other.as_str();
                let Value::String(name) = &name else {
                    let message = format!("needs a name before its table, not {}", type_of(&name));
                    let help = format!("write {word} \"name\" {{ ... }}");
                    return Err(raise(Error::new(Kind::Script, word, message).help(help)));
                };
                let register =
                    registrar(lua, other, name.to_str()?.to_owned(), registered.clone(), open.clone(), mine)?;
                // `policy("name", { ... })` is the same.
                match table {
                    Value::Nil => Ok(Value::Function(register)),
                    table => register.call::<Value>(table),
                }
            });
            lua.globals().set(other.as_str(), registrar.map_err(broken)?).map_err(broken)?;
        }
        let _ = lua.set_memory_limit(lua.used_memory() + budget::GROWTH);
        vm::seal(&lua).map_err(broken)?;
        // One budget for all of them.
        let begun = std::time::Instant::now();
        for entry in entries {
            let subject = format!("script {entry}");
            let source = files.read(entry).ok_or_else(|| Error::not_found(subject.clone()))?;
            let chunk = lua.load(source).set_name(format!("={prefix}{entry}")).set_mode(mlua::chunk::ChunkMode::Text);
            budget
                .run(budget::LOAD.saturating_sub(begun.elapsed()), || chunk.exec())
                .map_err(|error| report::explain(&subject, &error, &|file| find_source(&*files, file), None))?;
        }
        if let Some(((kind, name), (file, line))) = open.borrow().iter().next() {
            let message = format!("is given no table\n  --> {file}:{line}");
            let help = format!("write {} \"{name}\" {{ ... }}", kind.as_str());
            return Err(Error::new(Kind::Script, format!("{} \"{name}\"", kind.as_str()), message).help(help));
        }
        phase.running.set(true);
        // Counted from what is loaded: a big bundle is no reason to deny a call its memory.
        let _ = lua.set_memory_limit(lua.used_memory() + budget::GROWTH);
        let entries = std::mem::take(&mut *registered.borrow_mut());
        Ok(Hosted { lua, budget, sink, entries, serial: 0, files })
    }

    /// One registration.
    pub fn entry(&self, kind: HostedKind, name: &str) -> Result<&Entry> {
        self.entries.get(&(kind, name.to_owned())).ok_or_else(|| {
            Error::new(Kind::Script, format!("{} \"{name}\"", kind.as_str()), "is not registered any more")
        })
    }

    /// What was registered, for lists and for the check of names.
    pub fn registrations<'a>(&'a self, bundle: &'a str) -> impl Iterator<Item = (Registration, &'a Facts)> {
        self.entries.iter().map(move |((kind, name), entry)| {
            let registration = Registration {
                kind: *kind,
                name: name.clone(),
                bundle: bundle.to_owned(),
                file: entry.file.clone(),
                line: entry.line,
            };
            (registration, &entry.facts)
        })
    }

    /// An error in a call into this VM, with the source line.
    pub fn explain(&self, subject: &str, error: &mlua::Error, call: &str) -> Error {
        if is_memory(error) {
            self.budget.exceeded();
        }
        report::explain(subject, error, &|file| find_source(&*self.files, file), Some(call))
    }
}

/// Whether a call has used up its VM's memory.
pub fn is_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } | mlua::Error::WithContext { cause, .. } => is_memory(cause),
        _ => false,
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
    given: String,
    registered: Rc<RefCell<Entries>>,
    open: Rc<RefCell<Open>>,
    mine: bool,
) -> mlua::Result<Function> {
    registration::check_name(kind, &given).map_err(raise)?;
    let (file, line) = api::position(lua);
    open.borrow_mut().insert((kind, given.clone()), (file.clone(), line));
    lua.create_function(move |_, table: Value| {
        open.borrow_mut().remove(&(kind, given.clone()));
        let Value::Table(table) = table else {
            let (word, got) = (kind.as_str(), type_of(&table));
            let error = Error::new(Kind::Script, format!("{word} \"{given}\""), format!("expected a table, got {got}"));
            return Err(raise(error.help(format!("write {word} \"{given}\" {{ ... }}"))));
        };
        // Whatever is wrong in a script is the script's fault, and has its exit code.
        let read = registration::read(kind, &given, &table, &file, line);
        let (name, entry) = read.map_err(|error| raise(Error { kind: Kind::Script, ..error }))?;
        let mut registered = registered.borrow_mut();
        if !mine {
            return Ok(());
        }
        let key = (kind, name);
        if let Some(first) = registered.get(&key) {
            let message = format!("is registered twice; the first stands at {}:{}", first.file, first.line);
            return Err(raise(Error::new(Kind::Conflict, format!("{} \"{}\"", kind.as_str(), key.1), message)));
        }
        registered.insert(key, entry);
        Ok(())
    })
}

/// A value as the name of its type, for what was expected to be another.
pub fn type_of(value: &Value) -> String {
    match value {
        Value::Nil => "nothing".to_owned(),
        Value::Number(number) if number.is_nan() => "nan".to_owned(),
        other => format!("a {}", other.type_name()),
    }
}
