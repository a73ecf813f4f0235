//! What Docker's command line takes besides what clap does.

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};

use super::Cli;

/// The program's own command line; says what is wrong with it and ends where something is.
pub fn parse() -> Cli {
    read(std::env::args_os().collect()).unwrap_or_else(|mut error| {
        // A flag behind `--` would become the command of a container.
        if error.kind() == ErrorKind::UnknownArgument {
            error.remove(ContextKind::Suggested);
        }
        error.exit()
    })
}

fn read(line: Vec<std::ffi::OsString>) -> Result<Cli, clap::Error> {
    let matches = match Cli::command().try_get_matches_from(&line) {
        // `--detach=false`, which stands in every second script. Only now, so that help shows plain flags.
        Err(error) if error.kind() == ErrorKind::TooManyValues => {
            with_booleans(Cli::command()).try_get_matches_from(&line).map_err(|_| error)
        }
        read => read,
    }?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))
}

// Every flag takes a value too, behind `=`.
fn with_booleans(command: Command) -> Command {
    let boolean = |arg: Arg| {
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            return arg;
        }
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .value_parser(|text: &str| match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                _ => Err("true or false"),
            })
    };
    command.mut_args(boolean).mut_subcommands(with_booleans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Result<Cli, ErrorKind> {
        read(line.split(' ').map(Into::into).collect()).map_err(|error| error.kind())
    }

    fn detaches(line: &str) -> Option<bool> {
        match told(line).ok()?.command {
            super::super::Command::Service(super::super::service::Command::Rm { detach, .. }) => Some(detach),
            _ => None,
        }
    }

    #[test]
    fn flags_take_values_as_dockers_do() {
        assert_eq!(detaches("neap service rm web"), Some(false));
        assert_eq!(detaches("neap service rm --detach web"), Some(true));
        assert_eq!(detaches("neap service rm --detach=true web"), Some(true));
        assert_eq!(detaches("neap service rm --detach=false web"), Some(false));
        assert_eq!(told("neap service rm --detach=maybe web").err(), Some(ErrorKind::TooManyValues));
    }

    #[test]
    fn what_is_not_known_is_no_image() {
        for flag in ["--replica 3", "--oom-kill", "-z", "--credential 1"] {
            let line = format!("neap service create --name web {flag} nginx --port 80");
            assert_eq!(told(&line).err(), Some(ErrorKind::UnknownArgument), "{line}");
        }
        assert!(told("neap service create --name web nginx --port 80 -z").is_ok());
        assert!(told("neap service create --name web -- ./serve --port 80 -z").is_ok());
    }
}
