//! `neap run`: a user's script in the user's own process, with everything that the user may do.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlua::{Lua, MultiValue, Value};

use super::api::test::{Cases, Stage};
use super::api::{self, services};
use super::files::Files;
use super::sink::Output;
use super::{report, require, stdlib, value, vm};
use crate::model::bundle::HostedKind;
use crate::model::{Error, Kind, Result};

/// Memory that a user's script may hold, in bytes.
const MEMORY: usize = 1 << 30;

/// What to run.
pub struct Script {
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where the user is.
    pub cwd: PathBuf,
}

/// Files below a folder of the user's.
pub struct Disk(pub PathBuf);

impl Files for Disk {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.0.join(path)).ok()
    }
}

/// Runs the script to its end, or until `interrupted` is set. Call inside a `LocalSet`: its requests run on this thread.
pub async fn run(script: &Script, context: services::Context, interrupted: Arc<AtomicBool>) -> Result<()> {
    let disk = Rc::new(Disk(script.folder()));
    let (lua, _) = prepare_with(script, &context, disk.clone(), interrupted, |_| Ok(()))
        .map_err(|error| Error::internal(script.subject(), "cannot make a VM").cause(error))?;
    script.load(&lua, &*disk).await
}

impl Script {
    fn subject(&self) -> String {
        format!("script {}", self.path.display())
    }

    fn folder(&self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).to_owned()
    }

    // Runs its top level.
    async fn load(&self, lua: &Lua, files: &dyn Files) -> Result<()> {
        let subject = self.subject();
        let source = std::fs::read(&self.path).map_err(|error| Error::io(subject.clone(), "read it", &error))?;
        let source =
            String::from_utf8(source).map_err(|_| Error::new(Kind::Script, subject.clone(), "is not UTF-8 text"))?;
        let file = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let args: MultiValue = self
            .args
            .iter()
            .map(|arg| lua.create_string(arg).map(Value::String))
            .collect::<mlua::Result<_>>()
            .map_err(|error| Error::internal(subject.clone(), error.to_string()))?;
        let chunk = lua.load(strip_shebang(&source)).set_name(format!("={file}"));
        match chunk.call_async::<()>(args).await {
            Err(error) if is_closed_pipe(&error) => Ok(()),
            other => other.map_err(|error| explain(&subject, &error, files)),
        }
    }
}

// A closed pipe (`neap run x.lua | head`) ends the script quietly, as it does other programs.
fn is_closed_pipe(error: &mlua::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn explain(subject: &str, error: &mlua::Error, files: &dyn Files) -> Error {
    let find = |name: &str| match name.strip_prefix("@neap/") {
        Some(inner) => stdlib::source(inner).map(str::to_owned),
        None => files.read(name),
    };
    report::explain(subject, error, &find, None)
}

/// A file of tests, loaded for one cluster.
pub struct Tests {
    /// What it has registered.
    pub cases: Cases,
    /// What it prints.
    pub output: Output,
    lua: Lua,
    disk: Rc<Disk>,
}

impl Tests {
    /// Loads it, with everything that a user's own scripts may do.
    pub async fn load(
        script: &Script,
        context: &services::Context,
        cases: Cases,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self> {
        let (disk, output) = (Rc::new(Disk(script.folder())), Output::default());
        let install = |lua: &Lua| {
            api::test::install(lua, &cases)?;
            for (name, mark) in [("print", ""), ("warn", "warning: ")] {
                let output = output.clone();
                let print = lua.create_function(move |_, values: MultiValue| {
                    output.line(&format!("{mark}{}", api::join(&values)?));
                    Ok(())
                })?;
                lua.globals().set(name, print)?;
            }
            Ok(())
        };
        let (lua, _) = prepare_with(script, context, disk.clone(), interrupted, install)
            .map_err(|error| Error::internal(script.subject(), "cannot make a VM").cause(error))?;
        script.load(&lua, &*disk).await?;
        cases.borrow().whole()?;
        Ok(Tests { cases, output, lua, disk })
    }

    /// Runs one of its tests on the cluster that it was loaded for.
    pub async fn run(&self, name: &str, stage: &Stage) -> Result<()> {
        let subject = format!("test \"{name}\"");
        let found = self.cases.borrow().cases.iter().find(|case| case.name == name).map(|case| case.run.clone());
        let run = found.ok_or_else(|| Error::not_found(subject.clone()))?;
        let explain = |error: mlua::Error| explain(&subject, &error, &*self.disk);
        let table = stage.table(&self.lua, name).map_err(explain)?;
        run.call_async::<Value>(table).await.map(drop).map_err(explain)
    }
}

fn refuse_tests(lua: &Lua) -> mlua::Result<()> {
    let refuse = lua.create_function(|_, _: MultiValue| {
        let error = Error::new(Kind::Script, "test", "works in `neap test`");
        Err::<(), _>(value::raise(error.help("put it into a file that ends with _test.lua: neap test FILE")))
    })?;
    lua.globals().set("test", refuse)
}

/// A VM with everything that a user's own scripts may do, and with what `more` sets; its names as they are before
/// anything of the user's.
pub fn prepare_with(
    script: &Script,
    context: &services::Context,
    files: Rc<dyn Files>,
    interrupted: Arc<AtomicBool>,
    more: impl FnOnce(&Lua) -> mlua::Result<()>,
) -> mlua::Result<(Lua, mlua::Table)> {
    let lua = vm::new()?;
    lua.set_memory_limit(MEMORY)?;
    // A loop that never waits is ended here; one that waits, by whoever waits with it.
    lua.set_interrupt(move |_| match interrupted.load(Ordering::Relaxed) {
        true => Err(mlua::Error::runtime("was interrupted")),
        false => Ok(mlua::VmState::Continue),
    });
    api::formats::install(&lua)?;
    api::time::install(&lua, Some(&context.reach.clock), None)?;
    api::http::install(&lua, None, &context.reach.network)?;
    api::seed(&lua, &*context.reach.clock)?;
    api::load::install(&lua, context.reach.simulated)?;
    api::local::install(&lua, &script.cwd, &script.args, context.reach.simulated)?;
    api::cluster::install_with(&lua, context)?;
    api::compose::install(&lua, &script.cwd, context)?;
    for kind in HostedKind::ALL {
        let word = kind.as_str();
        let refuse = lua.create_function(move |_, _: MultiValue| {
            Err::<(), _>(value::raise(
                Error::new(Kind::Script, word, format!("{word} belongs in a hosted script"))
                    .help(format!("put it into a file of its own and bring it along: apply {{ with = scripts \"policies/*.lua\" }}, where the file says {word} \"name\" {{ ... }}")),
            ))
        })?;
        lua.globals().set(word, refuse)?;
    }
    let print = lua.create_function(|_, values: MultiValue| {
        use std::io::Write;
        let line = api::join(&values)?;
        writeln!(std::io::stdout(), "{line}").map_err(mlua::Error::external)
    })?;
    lua.globals().set("print", print)?;
    let warn = lua.create_function(|_, values: MultiValue| {
        eprintln!("warning: {}", api::join(&values)?);
        Ok(())
    })?;
    lua.globals().set("warn", warn)?;
    require::install(&lua, files)?;
    refuse_tests(&lua)?;
    more(&lua)?;
    let names = lua.globals();
    vm::seal(&lua)?;
    Ok((lua, names))
}

// `#!/usr/bin/env -S neap run` makes a script executable; the line stays, as a comment, so that numbers are right.
fn strip_shebang(source: &str) -> String {
    source.strip_prefix("#!").map_or_else(|| source.to_owned(), |rest| format!("--{rest}"))
}
