//! Runs a command beside a task, with the task's environment.

use std::path::Path;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;

use super::taskdir::{TaskFile, identity};
use crate::engines::ExecResult;
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// Runs `command` for the task of `folder`; what runs longer than `timeout` is killed with all that it started.
pub async fn run(folder: &Path, command: &[String], timeout: Duration) -> Result<ExecResult> {
    let file = TaskFile::read(folder)?;
    let subject = format!("task {}.{}", file.request.service, file.request.slot);
    let Some((program, args)) = command.split_first() else {
        return Err(Error::invalid(subject, "the command to run is empty"));
    };
    let failed = |error: std::io::Error| Error::io(format!("{subject}: command {program:?}"), "run it", &error);
    let mut process = tokio::process::Command::new(program);
    process.args(args).env_clear().envs(file.environment()).process_group(0).kill_on_drop(true);
    process
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    if let Some(workdir) = &file.request.spec.workdir {
        process.current_dir(workdir);
    }
    if let Some(user) = &file.request.spec.user
        && nix::unistd::geteuid().is_root()
    {
        let who = identity(user).map_err(|why| Error::invalid(subject.clone(), why))?;
        process.uid(who.uid.as_raw()).gid(who.gid.as_raw());
    }
    let mut child = process.spawn().map_err(failed)?;
    let group = child.id().map(|pid| nix::unistd::Pid::from_raw(pid.cast_signed()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async {
        let output = async { tokio::join!(first_bytes(stdout), first_bytes(stderr)) };
        let (status, (mut text, errors)) = tokio::join!(child.wait(), output);
        text.push_str(&errors);
        status.map(|status| (status, text))
    };
    let finished = tokio::time::timeout(timeout.std(), run).await;
    if finished.is_err()
        && let Some(group) = group
    {
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
    }
    match finished {
        Ok(Ok((status, output))) => {
            use std::os::unix::process::ExitStatusExt;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
            Ok(ExecResult { code, output })
        }
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(Error::new(
            Kind::Timeout,
            format!("{subject}: command {program:?}"),
            format!("no end within {timeout}"),
        )),
    }
}

// The first 4 KiB; what follows is read and dropped, so that the command does not block on a full pipe.
async fn first_bytes(source: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut source) = source else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length) = source.read(&mut buffer).await
        && length > 0
    {
        let room = 4096_usize.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&buffer[..room]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}
