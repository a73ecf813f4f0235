//! `ssh://`: one ssh connection a Docker Engine, through which its socket is reached as one of this host. The `ssh` of the
//! system makes it, with its configuration, keys and agent; the other side needs sshd and no docker command.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};

use crate::model::{Error, Kind, Result};

/// The other side's socket, where the URL names none.
const SOCKET: &str = "/var/run/docker.sock";
/// How the folders of tunnels begin.
const FOLDER: &str = "neap-ssh-";
/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(12);
/// The word that comes back once there is a connection.
const READY: &str = "ready\n";

/// What of `ssh://[user@]host[:port][/socket]` ssh is told.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    destination: String,
    port: Option<u16>,
    socket: &'a str,
}

fn target(url: &str) -> Option<Target<'_>> {
    let rest = url.strip_prefix("ssh://")?;
    let (authority, socket) = match rest.find('/') {
        Some(at) if rest.len() > at + 1 => rest.split_at(at),
        Some(at) => (&rest[..at], SOCKET),
        None => (rest, SOCKET),
    };
    let (destination, port) = match authority.rsplit_once(':') {
        Some((destination, port)) if !port.contains(']') => (destination, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let (user, host) = destination.rsplit_once('@').map_or((None, destination), |(user, host)| (Some(user), host));
    let host = host.trim_matches(['[', ']']);
    let wrong = destination.starts_with('-') || host.starts_with('-') || host.is_empty() || socket.contains(':');
    let destination = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
    (!wrong).then_some(Target { destination, port, socket })
}

/// A connection. Dropped, it is killed; with the whole process it ends, since the command on the other side reads what this
/// one holds.
struct Tunnel {
    child: Child,
    held: ChildStdin,
    folder: PathBuf,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Tunnel {
    fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    fn is_open(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None)) && self.socket().exists()
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Tunnel>>>;

/// The socket of this host that leads to the engine at `url`; connects if nobody has, or the connection has ended.
pub async fn socket(url: &str) -> Result<PathBuf> {
    static OPEN: Mutex<BTreeMap<String, Slot>> = Mutex::new(BTreeMap::new());
    let slot = OPEN.lock().unwrap_or_else(PoisonError::into_inner).entry(url.to_owned()).or_default().clone();
    let mut slot = slot.lock().await;
    if let Some(tunnel) = slot.as_mut()
        && tunnel.is_open()
    {
        return Ok(tunnel.socket());
    }
    *slot = None;
    let tunnel = open(url).await?;
    let socket = tunnel.socket();
    *slot = Some(tunnel);
    Ok(socket)
}

async fn open(url: &str) -> Result<Tunnel> {
    let failed = |why: String| {
        Error::new(Kind::Unavailable, format!("Docker Engine {url:.120}"), "cannot be reached by ssh").cause(why)
    };
    let target = target(url).ok_or_else(|| failed("write ssh://user@host, with :port if it is not 22".into()))?;
    let folder = folder().map_err(|error| failed(error.to_string()))?;
    let mut command = command(&target, &folder.join("docker.sock"));
    let spawned =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let mut child = spawned.map_err(|error| {
        let _ = std::fs::remove_dir_all(&folder);
        failed(format!("the program ssh cannot be run: {error}"))
    })?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("its output cannot be read".into()));
    };
    let mut tunnel = Tunnel { child, held: stdin, folder };
    let ready = async {
        let _ = tunnel.held.write_all(READY.as_bytes()).await;
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout).take(4096);
        while stdout.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            // A shell over there may greet first.
            if line.ends_with(READY) {
                return true;
            }
            line.clear();
        }
        false
    };
    match tokio::time::timeout(PATIENCE, ready).await {
        Ok(true) => {
            tokio::spawn(hear(stderr, url.to_owned()));
            Ok(tunnel)
        }
        Ok(false) => {
            let mut said = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(1), stderr.take(4096).read_to_end(&mut said)).await;
            let said = String::from_utf8_lossy(&said);
            let said = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("ssh ended").to_owned();
            let port = target.port.map(|port| format!("-p {port} ")).unwrap_or_default();
            Err(failed(said)
                .help(format!("`ssh {port}{} true` must work without being asked anything", target.destination)))
        }
        Err(_) => Err(failed(format!("no connection within {} s", PATIENCE.as_secs())).retry(true)),
    }
}

// What ssh says later, such as that the other side's socket cannot be opened.
async fn hear(stderr: ChildStderr, url: String) {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        if line != last {
            tracing::warn!(url, "ssh says: {line:.300}");
            last = line;
        }
    }
}

fn command(target: &Target<'_>, socket: &Path) -> Command {
    let mut command = Command::new("ssh");
    let forward = format!("{}:{}", socket.display(), target.socket);
    command.args(["-T", "-a", "-x", "-L", &forward]);
    for option in [
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=3",
        "ServerAliveCountMax=3",
        "ExitOnForwardFailure=yes",
        "StreamLocalBindMask=0177",
        // A connection of its own, whatever is shared otherwise: it ends with us.
        "ControlMaster=no",
        "ControlPath=none",
        "RemoteCommand=none",
    ] {
        command.args(["-o", option]);
    }
    if let Some(port) = target.port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["--", &target.destination, "cat"]);
    command
}

// For this user alone, and with a path short enough for a socket.
fn folder() -> std::io::Result<PathBuf> {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    static FIRST: Once = Once::new();
    FIRST.call_once(sweep);
    let folder = std::env::temp_dir().join(format!("{FOLDER}{}-{nanos:x}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

// What processes left that were killed, or that went on as another program under the same id.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.split('-').next()?.parse::<u32>().ok());
        if of.is_some_and(|of| of == std::process::id() || !Path::new(&format!("/proc/{of}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_is_told() {
        let told = |url| target(url).map(|target| (target.destination, target.port, target.socket));
        let told = |url| told(url).map(|(to, port, socket)| (to, port, socket.to_owned()));
        let is = |to: &str, port, socket: &str| Some((to.to_owned(), port, socket.to_owned()));
        assert_eq!(told("ssh://eu-1"), is("eu-1", None, SOCKET));
        assert_eq!(told("ssh://root@[fd00::1]:22"), is("root@fd00::1", Some(22), SOCKET));
        assert_eq!(told("ssh://[fd00::1]"), is("fd00::1", None, SOCKET));
        assert_eq!(told("ssh://root@eu-1:2222"), is("root@eu-1", Some(2222), SOCKET));
        assert_eq!(told("ssh://root@eu-1/run/d.sock"), is("root@eu-1", None, "/run/d.sock"));
        assert_eq!(told("ssh://root@eu-1:22/"), is("root@eu-1", Some(22), SOCKET));
        for wrong in ["ssh://-oProxyCommand=x", "ssh://root@-x", "ssh://", "ssh://a:b", "tcp://a"] {
            assert_eq!(told(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let error = socket("ssh://nobody@127.0.0.1:1").await.unwrap_err().to_string();
        assert!(error.contains("cannot be reached by ssh"), "{error}");
    }
}
