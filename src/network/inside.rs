//! Asks a replica in its own network, where nothing need be published. A socket belongs to the network that it was made
//! in, whoever uses it from where later: so only its making takes place inside.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::probe;

/// Asks `port` on the loopback of the network that process `pid` is in, if that is `whose` process. With a path it is a GET.
/// The inner error says why it does not pass, the outer one why it could not be asked.
pub async fn ask(
    (pid, whose): (u32, &str),
    port: u16,
    path: Option<&str>,
    timeout: Duration,
) -> io::Result<Result<(), String>> {
    // Held open before it is looked whose it is: the number may be another process's by then.
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    if !belongs(pid, whose) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("process {pid} of this host is not the container's"),
        ));
    }
    Ok(asked(entered(network).await?, port, path, timeout).await)
}

/// Ends process `pid` with those that it started, if that is `whose` process. Permission may be lacking: then it goes on.
pub fn kill(pid: u32, whose: &str) {
    use nix::sys::signal::{Signal, killpg};
    let Ok(number) = i32::try_from(pid).map(nix::unistd::Pid::from_raw) else { return };
    // A command in a container has a session of its own, so its group is nobody else's.
    if belongs(pid, whose) && nix::unistd::getpgid(Some(number)) == Ok(number) {
        let _ = killpg(number, Signal::SIGKILL);
    }
}

// A container's id is in the name of its control group, or in those of the files that Docker mounts into it.
fn belongs(pid: u32, container: &str) -> bool {
    let holds =
        |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).is_ok_and(|text| text.contains(container));
    holds("cgroup") || holds("mountinfo")
}

async fn asked(sockets: Sockets, port: u16, path: Option<&str>, timeout: Duration) -> Result<(), String> {
    let address = format!("127.0.0.1:{port}");
    let dial = dial(sockets, port);
    match path {
        Some(path) => probe::get(dial, &address, path, timeout).await,
        None => probe::opens(dial, &address, timeout).await,
    }
}

/// One of each family; none where the host has switched IPv6 off.
type Sockets = (TcpSocket, Option<TcpSocket>);

fn both() -> io::Result<Sockets> {
    Ok((TcpSocket::new_v4()?, TcpSocket::new_v6().ok()))
}

// On a thread of its own, which ends in the network that it entered.
async fn entered(network: File) -> io::Result<Sockets> {
    let (sender, made) = oneshot::channel();
    std::thread::Builder::new().name("inside".into()).spawn(move || {
        let sockets = setns(&network, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| both());
        let _ = sender.send(sockets);
    })?;
    made.await.map_err(|_| io::Error::other("the thread that entered it is gone"))?
}

async fn dial((v4, v6): Sockets, port: u16) -> io::Result<TcpStream> {
    let refused = match v4.connect(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    // It may listen on ::1 alone.
    match v6 {
        Some(v6) => v6.connect(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await.map_err(|_| refused),
        None => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asks_on_the_loopback_of_either_family() {
        let patience = Duration::from_secs(5);
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(host).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(asked(both().unwrap(), port, None, patience).await, Ok(()), "{host}");
            drop(listener);
            let why = asked(both().unwrap(), port, Some("/"), patience).await.unwrap_err();
            assert!(why.contains("GET /") && why.contains("refused"), "{why}");
        }
    }

    #[tokio::test]
    async fn what_is_gone_cannot_be_asked() {
        let patience = Duration::from_secs(1);
        let error = ask((u32::MAX, "x"), 1, None, patience).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // Nor is another process asked in its place.
        let error = ask((std::process::id(), "0123456789abcdef"), 1, None, patience).await.unwrap_err();
        assert!(error.to_string().contains("is not the container's"), "{error}");
    }
}
