//! `neap script`: hosted scripts of the whole cluster.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::output::{self, Format, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::scripts::{Back, Push, ScriptStatus};
use crate::client::{Cluster, show};
use crate::model::bundle::{Bundle, is_entry};
use crate::model::{Error, Kind, Result};
use crate::script::bring::bring;

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// Make scripts serve the whole cluster: neap script push shop policies/*.lua cron/*.lua
    Push {
        /// Their owner's name: what they are replaced, rolled back and removed by
        name: String,
        /// Files and folders; of a folder every .lua outside of lib/ that does not end with _test.lua
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// List owners and what their scripts register
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show scripts as they serve, or one file of them
    Show {
        /// The owner
        name: String,
        /// Only this file
        file: Option<String>,
        /// An earlier version, by the beginning of its hash
        #[arg(long)]
        version: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Compare what serves with files, or with an earlier version
    Diff {
        /// The owner
        name: String,
        /// Files and folders, as for push
        files: Vec<PathBuf>,
        /// An earlier version, by the beginning of its hash
        #[arg(long, conflicts_with = "files")]
        version: Option<String>,
    },
    /// Go back to an earlier version
    Rollback {
        /// The owner
        name: String,
        /// Which one, by the beginning of its hash [default: the one before]
        #[arg(long, visible_alias = "version", value_name = "HASH")]
        to: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove scripts that no service uses
    #[command(visible_alias = "remove")]
    Rm {
        /// The owners
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Load scripts in a throw-away VM and say what they register, or what is wrong with them
    Check {
        /// Files and folders, as for push
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Ask the daemon as well whether they could serve under this owner's name
        #[arg(long, value_name = "OWNER")]
        push_as: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show what was called how often, how long it took, and what failed
    Top {
        #[command(flatten)]
        format: FormatArg,
        /// Show again every 2 seconds
        #[arg(long, short)]
        watch: bool,
    },
    /// Write type definitions for editors, with a configuration that luau-lsp takes as it is
    Types {
        /// Folder to write them to
        folder: PathBuf,
    },
}

/// Runs a subcommand. `cluster` is made only where a daemon is asked.
pub async fn main(command: Command, cluster: impl Fn() -> Result<RemoteCluster>) -> Result<()> {
    match command {
        Command::Push { name, files, format } => {
            let push = Push { bundle: read(&files)?, check_only: false };
            let status = cluster()?.push_scripts(&name, push, "").await?;
            output::print(format.format, &status, || pushed(&status))
        }
        Command::Ls { format } => {
            let all = cluster()?.scripts().await?;
            output::print(format.format, &all, || show::scripts(&all))
        }
        Command::Show { name, file, version, format } => {
            let source = cluster()?.script(&name, version.as_deref()).await?;
            let Some(file) = file else {
                return output::print(format.format, &source, || show::source(&source));
            };
            let text = source.bundle.files.get(&file).ok_or_else(|| {
                let hint = crate::model::suggest::hint(&file, source.bundle.files.keys().map(String::as_str));
                Error::new(Kind::NotFound, format!("scripts \"{name}\""), format!("have no file {file:?}{hint}"))
            })?;
            output::print(format.format, text, || text.trim_end().to_owned())
        }
        Command::Diff { name, files, version } => {
            let cluster = cluster()?;
            let active = cluster.script(&name, None).await?.bundle;
            let other = match (&version, files.is_empty()) {
                (Some(version), _) => cluster.script(&name, Some(version)).await?.bundle,
                (None, false) => read(&files)?,
                (None, true) => return Err(Error::invalid("diff", "compares with what? name files, or --version")),
            };
            // What serves is on the left of files, and on the right of what was before it.
            let (old, new) = if version.is_some() { (&other, &active) } else { (&active, &other) };
            let text = diff(old, new);
            output::line(if text.is_empty() { "no difference" } else { text.trim_end() })
        }
        Command::Rollback { name, to, format } => {
            let status = cluster()?.rollback_scripts(&name, Back { to }, "").await?;
            output::print(format.format, &status, || pushed(&status))
        }
        Command::Rm { names } => {
            let cluster = cluster()?;
            output::each(names, async |name| {
                cluster.remove_scripts(&name).await?;
                output::line(&name)
            })
            .await
        }
        Command::Check { files, push_as, format } => {
            let bundle = read(&files)?;
            let name = push_as.clone().unwrap_or_else(|| "check".into());
            let inspected = crate::script::host::inspect(std::sync::Arc::new(bundle.clone()), &bundle.hash())?;
            refuse_library_names(&inspected)?;
            let registrations: Vec<_> = inspected.registrations.values().map(|(found, _)| found.clone()).collect();
            if push_as.is_some() {
                cluster()?.push_scripts(&name, Push { bundle, check_only: true }, "").await?;
            }
            output::print(format.format, &registrations, || show::registrations(&registrations))
        }
        Command::Top { format, watch } => {
            let cluster = cluster()?;
            loop {
                let calls = cluster.script_calls().await?;
                let again = watch && std::io::stdout().is_terminal() && format.format == Format::Table;
                if again {
                    output::line("\x1b[2J\x1b[H")?;
                }
                output::print(format.format, &calls, || show::script_calls(&calls))?;
                if !again {
                    return Ok(());
                }
                tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            }
        }
        Command::Types { folder } => {
            let written = crate::script::types::write(&folder)?;
            output::line(&written.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n"))
        }
    }
}

// What the library has is nobody else's; that needs no daemon to be known.
fn refuse_library_names(inspected: &crate::script::host::Inspected) -> Result<()> {
    use crate::script::{host, stdlib};
    let library = host::inspect(stdlib::bundle(), stdlib::OWNER)?;
    match inspected.registrations.iter().find(|(key, _)| library.registrations.contains_key(key)) {
        Some(((kind, name), (found, _))) => {
            let message = format!("is the library's; {}:{} registers it again", found.file, found.line);
            Err(Error::new(Kind::Conflict, format!("{} \"{name}\"", kind.as_str()), message)
                .help("choose another name"))
        }
        None => Ok(()),
    }
}

fn pushed(status: &ScriptStatus) -> String {
    format!(
        "scripts \"{}\": version {}\n{}",
        status.set.name,
        status.set.active,
        show::registrations(&status.registrations)
    )
}

// Files and folders as one bundle; paths are relative to the folder that holds them all.
fn read(files: &[PathBuf]) -> Result<Bundle> {
    let failed = |path: &Path, error: std::io::Error| Error::io(path.display().to_string(), "find it", &error);
    let mut root: Option<PathBuf> = None;
    let mut found = Vec::new();
    for path in files {
        let path = std::fs::canonicalize(path).map_err(|error| failed(path, error))?;
        let (folder, pattern) = match path.is_dir() {
            true => (path.clone(), None),
            false => (path.parent().unwrap_or(Path::new("/")).to_owned(), Some(path)),
        };
        root = Some(match root {
            None => folder.clone(),
            Some(root) => common(&root, &folder),
        });
        found.push((folder, pattern));
    }
    let root = root.unwrap_or_else(|| PathBuf::from("."));
    let mut patterns = Vec::new();
    for (folder, file) in found {
        let inner = |path: &Path| {
            let inner = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().into_owned();
            glob::Pattern::escape(&inner)
        };
        match file {
            Some(file) => patterns.push(inner(&file)),
            None => {
                let subject = format!("folder {}", folder.display());
                let pattern = format!("{}/**/*.lua", glob::Pattern::escape(&folder.to_string_lossy()));
                let paths =
                    glob::glob(&pattern).map_err(|error| Error::internal(subject.clone(), error.to_string()))?;
                let own = |path: &PathBuf| path.strip_prefix(&folder).is_ok_and(|own| is_entry(&own.to_string_lossy()));
                let before = patterns.len();
                patterns.extend(paths.flatten().filter(own).map(|path| inner(&path)));
                if patterns.len() == before {
                    return Err(Error::new(Kind::NotFound, subject, "holds no scripts"));
                }
            }
        }
    }
    bring(&root, &patterns)
}

fn common(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(x, y)| x == y).map(|(x, _)| x).collect()
}

fn diff(old: &Bundle, new: &Bundle) -> String {
    let paths: std::collections::BTreeSet<&String> = old.files.keys().chain(new.files.keys()).collect();
    let mut text = String::new();
    for path in paths {
        let (before, after) = (old.files.get(path), new.files.get(path));
        if before == after {
            continue;
        }
        let empty = String::new();
        let (before, after) = (before.unwrap_or(&empty), after.unwrap_or(&empty));
        let difference = similar::TextDiff::from_lines(before, after);
        text.push_str(&difference.unified_diff().header(path, path).to_string());
    }
    text
}
