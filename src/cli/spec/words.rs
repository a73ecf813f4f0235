//! What stands at the end of a line: an image, a command, arguments.

use serde_json::{Value, json};

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

/// A new command for a service that is there.
#[derive(clap::Args, Default)]
pub struct CommandArgs {
    /// The arguments of the image's entry point, as one text that is split at spaces
    #[arg(long, value_name = "COMMAND", conflicts_with = "command")]
    args: Option<String>,
    /// The command and its arguments, behind --
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl CommandArgs {
    /// Puts it into a description.
    pub fn describe(&self, mut spec: Value) -> Value {
        if let Some(line) = &self.args {
            spec["command"] = json!(line.split_whitespace().collect::<Vec<_>>());
        } else if !self.command.is_empty() {
            spec["command"] = json!(self.command);
        }
        spec
    }
}
