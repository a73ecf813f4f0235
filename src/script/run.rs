//! `neap run`: a user's script in the user's own process, with everything that the user may do.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlua::{MultiValue, Value};

use super::api::{self, services};
use super::files::Files;
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
    let subject = format!("script {}", script.path.display());
    let source = std::fs::read(&script.path).map_err(|error| Error::io(subject.clone(), "read it", &error))?;
    let source =
        String::from_utf8(source).map_err(|_| Error::new(Kind::Script, subject.clone(), "is not UTF-8 text"))?;
    let file = script.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = script.path.parent().unwrap_or(Path::new(".")).to_owned();
    let disk = Rc::new(Disk(folder.clone()));
    let lua = prepare(script, &context, disk.clone(), interrupted)
        .map_err(|error| Error::internal(subject.clone(), "cannot make a VM").cause(error))?;
    let args: MultiValue = script
        .args
        .iter()
        .map(|arg| lua.create_string(arg).map(Value::String))
        .collect::<mlua::Result<_>>()
        .map_err(|error| Error::internal(subject.clone(), error.to_string()))?;
    let chunk = lua.load(strip_shebang(&source)).set_name(format!("={file}"));
    chunk.call_async::<()>(args).await.map_err(|error| {
        let find = |name: &str| match name.strip_prefix("@neap/") {
            Some(inner) => stdlib::source(inner).map(str::to_owned),
            None => disk.read(name),
        };
        report::explain(&subject, &error, &find, None)
    })
}

fn prepare(
    script: &Script,
    context: &services::Context,
    files: Rc<dyn Files>,
    interrupted: Arc<AtomicBool>,
) -> mlua::Result<mlua::Lua> {
    prepare_with(script, context, files, interrupted, |_| Ok(())).map(|(lua, _)| lua)
}

/// A VM with everything that a user's own scripts may do, and with what `more` sets; its names as they are before
/// anything of the user's.
pub fn prepare_with(
    script: &Script,
    context: &services::Context,
    files: Rc<dyn Files>,
    interrupted: Arc<AtomicBool>,
    more: impl FnOnce(&mlua::Lua) -> mlua::Result<()>,
) -> mlua::Result<(mlua::Lua, mlua::Table)> {
    let lua = vm::new()?;
    lua.set_memory_limit(MEMORY)?;
    // A loop that never waits is ended here; one that waits, by whoever waits with it.
    lua.set_interrupt(move |_| match interrupted.load(Ordering::Relaxed) {
        true => Err(mlua::Error::runtime("was interrupted")),
        false => Ok(mlua::VmState::Continue),
    });
    api::formats::install(&lua)?;
    api::time::install(&lua, true)?;
    api::http::install(&lua, None)?;
    api::load::install(&lua)?;
    api::local::install(&lua, &script.cwd, &script.args)?;
    api::cluster::install_with(&lua, context)?;
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
    // A closed pipe (`neap run x.lua | head`) ends the script quietly, as it does other programs.
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
    more(&lua)?;
    let names = lua.globals();
    vm::seal(&lua)?;
    Ok((lua, names))
}

// `#!/usr/bin/env -S neap run` makes a script executable; the line stays, as a comment, so that numbers are right.
fn strip_shebang(source: &str) -> String {
    source.strip_prefix("#!").map_or_else(|| source.to_owned(), |rest| format!("--{rest}"))
}
