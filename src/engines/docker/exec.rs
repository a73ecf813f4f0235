//! Commands in a container, and questions in its network.

use std::io;

use bollard::Docker;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use futures_util::StreamExt;

use super::{Address, trouble};
use crate::engines::ExecResult;
use crate::engines::hosts::{ProbeAsk, Probed};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};
use crate::network::inside;

/// Most of its output that is kept.
const OUTPUT: usize = 4096;

/// Asks a port in the network of a container of this host.
pub async fn probe(address: &Address, docker: &Docker, container: &str, ask: &ProbeAsk) -> Result<Probed> {
    let subject = || format!("task {}", ask.task);
    if !address.is_local() {
        let message = format!("a check in its own network needs an agent on node \"{}\"", address.name);
        return Err(Error::new(Kind::Unsupported, subject(), message)
            .help("publish the port and ask it by name, or run a command in the container (exec)"));
    }
    let inspected = tokio::time::timeout(ask.timeout.std(), docker.inspect_container(container, None)).await;
    let late = |_| Error::new(Kind::Unavailable, subject(), "the Docker Engine does not answer").retry(true);
    let inspected = inspected.map_err(late)?;
    let inspected = inspected.map_err(|error| trouble::error(subject(), "look at its container", &error))?;
    let id = inspected.id.unwrap_or_else(|| container.to_owned());
    let pid = inspected.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
    let Some(pid) = pid.filter(|pid| *pid > 0) else { return Ok(Err("its container does not run".into())) };
    inside::ask((pid, &id), ask.port, ask.path.as_deref(), ask.timeout.std()).await.map_err(|error| {
        let (help, why) = match error.kind() {
            io::ErrorKind::PermissionDenied => ("run the daemon, or the agent, as root", "is closed to this user"),
            _ => ("the Docker Engine must run on the same host, and not in a virtual machine", "cannot be entered"),
        };
        Error::new(Kind::Unsupported, subject(), format!("the network of its container {why}")).cause(error).help(help)
    })
}

/// Runs a command and waits for its end; one that is late is ended where that can be done.
pub async fn run(
    address: &Address,
    docker: &Docker,
    subject: String,
    container: &str,
    command: &[String],
    timeout: Duration,
) -> Result<ExecResult> {
    let failed = |error| trouble::error(subject.clone(), "run a command in its container", &error);
    let begun = std::sync::OnceLock::new();
    let work = async {
        let config = ExecConfig {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..ExecConfig::default()
        };
        let exec = docker.create_exec(container, config).await.map_err(failed)?;
        let _ = begun.set(exec.id.clone());
        let mut output = Vec::new();
        if let StartExecResults::Attached { output: mut parts, .. } =
            docker.start_exec(&exec.id, None::<StartExecOptions>).await.map_err(failed)?
        {
            while let Some(part) = parts.next().await {
                let bytes = part.map_err(failed)?.into_bytes();
                output.extend_from_slice(&bytes[..bytes.len().min(OUTPUT - output.len())]);
            }
        }
        let ended = docker.inspect_exec(&exec.id).await.map_err(failed)?;
        let code = i32::try_from(ended.exit_code.unwrap_or(-1)).unwrap_or(-1);
        Ok(ExecResult { code, output: String::from_utf8_lossy(&output).into_owned() })
    };
    if let Ok(result) = tokio::time::timeout(timeout.std(), work).await {
        return result;
    }
    if let Some(exec) = begun.into_inner() {
        end(address, docker, (container, &exec)).await;
    }
    Err(Error::new(Kind::Timeout, subject, format!("the command did not end within {timeout}")))
}

/// The same in any container of a Docker Engine, by its name or id.
pub async fn in_container(
    address: &Address,
    container: &str,
    command: &[String],
    timeout: Duration,
) -> Result<ExecResult> {
    let failed = |error| trouble::error(format!("Docker Engine {}", address.url), "connect to it", &error);
    let connect = async { address.client().await?.negotiate_version().await.map_err(failed) };
    let late = |_| {
        Error::new(Kind::Timeout, format!("Docker Engine {}", address.url), format!("does not answer within {timeout}"))
    };
    let docker = tokio::time::timeout(timeout.std(), connect).await.map_err(late)??;
    run(address, &docker, format!("container \"{container:.70}\""), container, command, timeout).await
}

/// How long the Docker Engine has to say which process a command is.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

// Docker has no way to end a command, the kernel of its host has. Elsewhere it goes on until it ends, or its container.
async fn end(address: &Address, docker: &Docker, (container, exec): (&str, &str)) {
    if !address.is_local() {
        return;
    }
    let asked = async {
        let command = docker.inspect_exec(exec).await.ok().filter(|command| command.running == Some(true))?;
        // By its id, which is what its processes can be known by.
        let id = docker.inspect_container(container, None).await.ok()?.id?;
        Some((u32::try_from(command.pid?).ok()?, id))
    };
    if let Ok(Some((pid, id))) = tokio::time::timeout(PATIENCE, asked).await {
        inside::kill(pid, &id);
    }
}
