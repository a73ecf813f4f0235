//! What stands at the end of a line: an image, a command, arguments.

use serde_json::{Value, json};

use crate::model::{Error, Result};

/// `IMAGE [COMMAND] [ARG...]` at the end of a line, as with Docker, or `-- COMMAND [ARG...]` without an image.
#[derive(clap::Args, Default)]
pub struct Words {
    /// Container image; or a command, behind --
    #[arg(value_name = "IMAGE")]
    first: Option<String>,
    /// A command for it, and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND [ARG]")]
    rest: Vec<String>,
}

impl Words {
    /// Puts them into a description.
    pub fn describe(&self, mut spec: Value) -> Value {
        // What stands there ends the line, so the word before it tells which of the two it is.
        let line: Vec<_> = std::env::args_os().collect();
        let is_command = line.len().checked_sub(self.rest.len() + 2).is_some_and(|before| line[before] == "--");
        let mut command: Vec<&String> = self.rest.iter().collect();
        match &self.first {
            Some(first) if is_command => command.insert(0, first),
            Some(image) => spec["image"] = json!(image),
            None => {}
        }
        if !command.is_empty() {
            spec["command"] = json!(command);
        }
        spec
    }
}

/// One text as words, by the rules of a shell's quotes, as with Docker.
pub fn words(flag: &str, line: &str) -> Result<Value> {
    let split = crate::compose::words(line);
    split.map(|words| json!(words)).map_err(|why| Error::invalid(format!("{flag} {line:.80?}"), why))
}

/// A name for a description that has none: what its image or program is called, the first that is not `taken`.
pub fn name_it(spec: &mut Value, taken: impl Fn(&str) -> bool) {
    let command = |spec: &Value| spec["command"].get(0)?.as_str().map(str::to_owned);
    let Some(called) = spec["image"].as_str().map(str::to_owned).or_else(|| command(spec)) else { return };
    let last = called.split('@').next().and_then(|whole| whole.rsplit('/').next()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = last.split(':').next().unwrap_or_default().chars().map(plain).take(55).collect();
    let name = match name.trim_matches('-') {
        "" => "service",
        name => name,
    };
    let names = std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}-{number}")));
    spec["name"] = names.into_iter().find(|name| !taken(name)).into();
}

/// A new command for a service that is there.
#[derive(clap::Args, Default)]
pub struct CommandArgs {
    /// The arguments of the image's entry point, as one text with a shell's quotes
    #[arg(long, value_name = "COMMAND", conflicts_with = "command")]
    args: Option<String>,
    /// The command and its arguments, behind --
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl CommandArgs {
    /// Puts it into a description.
    pub fn describe(&self, mut spec: Value) -> Result<Value> {
        if let Some(line) = &self.args {
            spec["command"] = words("--args", line)?;
        } else if !self.command.is_empty() {
            spec["command"] = json!(self.command);
        }
        Ok(spec)
    }
}
