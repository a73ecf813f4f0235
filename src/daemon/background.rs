//! Starts daemon and agent in the background, and ends them: as a systemd unit where systemd runs, else as a process.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::model::{Error, Kind, Result};

/// Where systemd's own folder says that it runs.
const SYSTEMD: &str = "/run/systemd/system";
/// Where units of the host's owner are.
const UNITS: &str = "/etc/systemd/system";
/// How long one that is told to end may take.
const END: Duration = Duration::from_secs(20);

/// How it was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// As a systemd unit of this name, which also starts with the host.
    Unit(String),
    /// As a process, with the file that its log goes to.
    Process(u32, PathBuf),
}

impl std::fmt::Display for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Started::Unit(name) => write!(f, "unit {name}.service (log: journalctl -u {name})"),
            Started::Process(pid, log) => {
                write!(f, "process {pid} (log: {}); start it with the host yourself", log.display())
            }
        }
    }
}

/// Starts this program with `arguments` as `name`.
pub fn start(name: &str, arguments: &[String], data: &Path) -> Result<Started> {
    let program = std::env::current_exe().map_err(|error| Error::io("program", "find its own file", &error))?;
    if has_systemd() {
        let path = Path::new(UNITS).join(format!("{name}.service"));
        let subject = path.display().to_string();
        std::fs::write(&path, unit(name, &program, arguments))
            .map_err(|error| Error::io(subject, "write it", &error))?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", &format!("{name}.service")])?;
        return Ok(Started::Unit(name.to_owned()));
    }
    let path = data.join(format!("{name}.log"));
    let failed = |error: std::io::Error| Error::io(path.display().to_string(), "write to it", &error);
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
        .create(data)
        .map_err(failed)?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    let child = command.spawn().map_err(|error| Error::io(format!("neap {name}"), "start it", &error))?;
    Ok(Started::Process(child.id(), path))
}

/// Ends whatever uses the data folder, and its unit where there is one.
pub fn stop(name: &str, data: &Path) -> Result<()> {
    let path = Path::new(UNITS).join(format!("{name}.service"));
    // A unit for another folder is somebody else's.
    let is_its = std::fs::read_to_string(&path).is_ok_and(|text| names_folder(&text, data));
    if has_systemd() && is_its {
        systemctl(&["disable", "--now", &format!("{name}.service")])?;
        std::fs::remove_file(&path).map_err(|error| Error::io(path.display().to_string(), "remove it", &error))?;
        systemctl(&["daemon-reload"])?;
    }
    let Some(pid) = super::holder(data)? else { return Ok(()) };
    let subject = || format!("process {pid}, which uses {}", data.display());
    let failed = |error: nix::errno::Errno| Error::io(subject(), "end it", &error.into());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).map_err(failed)?;
    let until = Instant::now() + END;
    while super::is_held(data)? {
        if Instant::now() > until {
            return Err(Error::new(Kind::Timeout, subject(), format!("did not end within {} s", END.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn names_folder(unit: &str, data: &Path) -> bool {
    let words = format!("--data {}", quoted(&data.display().to_string()));
    unit.find(&words).is_some_and(|at| unit[at + words.len()..].starts_with(char::is_whitespace))
}

fn has_systemd() -> bool {
    nix::unistd::geteuid().is_root() && Path::new(SYSTEMD).is_dir()
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let subject = || format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Error::io(subject(), "run it", &error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(Kind::Failed, subject(), "failed").cause(String::from_utf8_lossy(&output.stderr).trim()))
}

// Only the process itself is ended with the unit: keepers, replicas and the balancer go on without it.
fn unit(name: &str, program: &Path, arguments: &[String]) -> String {
    let words: Vec<String> = std::iter::once(program.display().to_string()).chain(arguments.iter().cloned()).collect();
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let what = if name == "neap" { "Neap's daemon" } else { "Neap's agent" };
    format!(
        "[Unit]\nDescription={what}\nStartLimitIntervalSec=0\nWants=network-online.target\nAfter=network-online.target docker.service\n\n\
         [Service]\nExecStart={}\nRestart=always\nRestartSec=1\nKillMode=process\nLimitNOFILE=1048576\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        words.join(" ")
    )
}

// systemd.service(5), command lines: quotes, and % and $ doubled.
fn quoted(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%$".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("\"{word}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_spares_what_it_started() {
        let arguments = ["up", "--data", "/var/lib/my data", "--cluster", "50%$x"].map(str::to_owned);
        let text = unit("neap", Path::new("/usr/local/bin/neap"), &arguments);
        let line = "ExecStart=/usr/local/bin/neap up --data \"/var/lib/my data\" --cluster 50%%$$x\n";
        assert!(text.contains(line), "{text}");
        assert!(names_folder(&text, Path::new("/var/lib/my data")) && !names_folder(&text, Path::new("/var/lib/my")));
        assert!(text.contains("KillMode=process\n") && text.contains("After=network-online.target docker.service\n"));
    }
}
