//! What every command prints: errors, formats, versions.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Global;
use crate::client::Cluster;
use crate::client::remote::RemoteCluster;
use crate::model::{Error, Result};

/// How results are printed.
#[derive(clap::Args, Clone)]
pub struct FormatArg {
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Output formats.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Prints a value as JSON, or the text for people.
pub fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    let text = match format {
        Format::Json => {
            serde_json::to_string_pretty(value).map_err(|error| Error::internal("output", error.to_string()))?
        }
        Format::Table => text(),
    };
    line(&text)
}

/// Prints a line. A reader that has gone (`| head`) ends the program quietly.
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io("standard output", "write to it", &error)),
        Ok(()) => Ok(()),
    }
}

/// Prints a text as it is.
pub fn raw(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes bytes as they are.
pub fn bytes(all: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(all).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io("standard output", "write to it", &error)),
        Ok(()) => Ok(()),
    }
}

/// Does it for each, whatever becomes of the others; each error is told, the last one as the command's own.
pub async fn each<T>(of: impl IntoIterator<Item = T>, mut act: impl AsyncFnMut(T) -> Result<()>) -> Result<()> {
    let mut failed = None;
    for one in of {
        if let Err(error) = act(one).await
            && let Some(earlier) = failed.replace(error)
        {
            print_error(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Prints an error to standard error, coloured on a terminal.
pub fn print_error(error: &Error) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (red, plain) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{red}error{plain}: {error}");
}

/// Prints a warning to standard error, coloured on a terminal.
pub fn warn(message: impl std::fmt::Display) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (yellow, plain) = if colour { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
    eprintln!("{yellow}warning{plain}: {message}");
}

/// Says that what was answered is old: once in a while, however much is asked.
pub fn print_age(age: std::time::Duration) {
    static LAST: std::sync::Mutex<Option<std::time::Instant>> = std::sync::Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if last.is_some_and(|at| at.elapsed() < std::time::Duration::from_secs(5)) {
        return;
    }
    *last = Some(std::time::Instant::now());
    let age = crate::model::units::Duration::from_secs(age.as_secs());
    warn(format!("no daemon leads for now; this is what stood {age} ago"));
}

/// `neap version`.
pub async fn version(args: &FormatArg, global: &Global) -> Result<()> {
    let ours = env!("CARGO_PKG_VERSION");
    let daemon = match global.endpoint() {
        Ok(endpoint) => RemoteCluster::new(endpoint).info().await.ok(),
        Err(_) => None,
    };
    let value = serde_json::json!({ "client": ours, "daemon": daemon });
    print(args.format, &value, || match &daemon {
        Some(info) => format!(
            "neap {ours}\ndaemon {} (cluster {}, engine {}, pid {})",
            info.version, info.cluster, info.engine, info.pid
        ),
        None => format!("neap {ours}\nno daemon answers"),
    })
}
