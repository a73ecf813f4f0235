//! The daemon's side of the balancer: finds it or starts it, replaces one of another build, pushes tables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Balancer, Reply, Request, build, socket_path};
use crate::model::{Error, Kind, Result, fault};
use crate::network::table::{Status, Table};

/// How the balancer is started.
#[derive(Debug, Clone)]
pub struct BalancerOptions {
    /// The folder of its control socket.
    pub folder: PathBuf,
    /// The program: this binary.
    pub program: PathBuf,
    /// Whether it ends with this process.
    pub lifeline: bool,
}

/// A connection to the balancer, made anew when it breaks.
pub struct BalancerClient {
    options: BalancerOptions,
    current: Option<Connection>,
    // One that handed over and still serves its last connections.
    leaving: Vec<Connection>,
    // The write end of its standard input: closed when this process ends.
    lifeline: Option<std::process::ChildStdin>,
}

struct Connection {
    stream: BufReader<UnixStream>,
}

const ANSWER: Duration = Duration::from_secs(5);

impl BalancerClient {
    /// A client that has not looked yet.
    pub fn new(options: BalancerOptions) -> Self {
        BalancerClient { options, current: None, leaving: Vec::new(), lifeline: None }
    }

    async fn ask(&mut self, request: &Request) -> Result<Status> {
        if self.current.is_none() {
            self.connect().await?;
        }
        let Some(connection) = &mut self.current else {
            return Err(Error::new(Kind::Unavailable, "balancer", "is not there"));
        };
        let reply = match connection.ask(request).await {
            Ok(reply) => reply,
            Err(error) => {
                self.current = None;
                return Err(error);
            }
        };
        let mut status = reply.status;
        let mut index = 0;
        while index < self.leaving.len() {
            // Its end is the end of its connections. It follows tables as well, for what comes over those.
            let follow = if matches!(request, Request::Table(_)) { request } else { &Request::Status };
            match self.leaving[index].ask(follow).await {
                Ok(old) => {
                    for (task, count) in old.status.connections {
                        *status.connections.entry(task).or_default() += count;
                    }
                    index += 1;
                }
                Err(_) => {
                    self.leaving.remove(index);
                }
            }
        }
        Ok(status)
    }

    async fn connect(&mut self) -> Result<()> {
        if let Ok(mut connection) = Connection::open(&self.options.folder).await
            && let Ok(reply) = connection.ask(&Request::Status).await
        {
            if reply.build == build() {
                self.current = Some(connection);
                return Ok(());
            }
            tracing::info!(pid = reply.status.pid, "the balancer is of another build; its sockets go to a new one");
            self.leaving.push(connection);
            self.start(reply.status.pid).await?;
            return Ok(());
        }
        self.start(0).await
    }

    // Starts a balancer and waits until it answers as a process other than `old`.
    async fn start(&mut self, old: u32) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("balancer", "start it", &error);
        std::fs::create_dir_all(&self.options.folder).map_err(failed)?;
        fault::point("balancer.before-start");
        let mut command = std::process::Command::new(&self.options.program);
        std::os::unix::process::CommandExt::arg0(&mut command, "neap");
        command.arg("balancer").arg(&self.options.folder);
        if self.options.lifeline {
            command.arg("--lifeline").stdin(std::process::Stdio::piped());
        } else {
            command.stdin(std::process::Stdio::null());
        }
        command.env_clear().stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(failed)?;
        self.lifeline = child.stdin.take();
        fault::point("balancer.after-start");
        // Reaped when it ends; the thread sleeps until then.
        std::thread::Builder::new()
            .name("balancer-reaper".into())
            .stack_size(64 * 1024)
            .spawn(move || child.wait())
            .map_err(failed)?;
        let deadline = tokio::time::Instant::now() + ANSWER;
        loop {
            if let Ok(mut connection) = Connection::open(&self.options.folder).await
                && let Ok(reply) = connection.ask(&Request::Status).await
                && reply.status.pid != old
            {
                self.current = Some(connection);
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::new(Kind::Unavailable, "balancer", "did not start within 5s"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[async_trait]
impl Balancer for BalancerClient {
    fn is_left_over(&self) -> bool {
        // A socket without anybody behind it is from before a reboot.
        std::os::unix::net::UnixStream::connect(socket_path(&self.options.folder)).is_ok()
    }

    async fn push(&mut self, table: &Table) -> Result<Status> {
        self.ask(&Request::Table(table.clone())).await
    }

    async fn status(&mut self) -> Result<Status> {
        self.ask(&Request::Status).await
    }

    async fn gone(&mut self) {
        match &mut self.current {
            Some(connection) => {
                // It only speaks when asked, so whatever comes now is its end.
                let _ = connection.stream.fill_buf().await;
                self.current = None;
            }
            None => std::future::pending().await,
        }
    }

    async fn stop(&mut self) -> Result<()> {
        if let Ok(mut connection) = Connection::open(&self.options.folder).await {
            connection.ask(&Request::Stop).await?;
        }
        self.current = None;
        self.lifeline = None;
        Ok(())
    }
}

impl Connection {
    async fn open(folder: &Path) -> std::io::Result<Self> {
        Ok(Connection { stream: BufReader::new(UnixStream::connect(socket_path(folder)).await?) })
    }

    async fn ask(&mut self, request: &Request) -> Result<Reply> {
        let broken = |error: std::io::Error| Error::new(Kind::Unavailable, "balancer", "does not answer").cause(error);
        let mut line = serde_json::to_vec(request).expect("requests are plain data");
        line.push(b'\n');
        let exchange = async {
            self.stream.get_mut().write_all(&line).await?;
            let mut answer = Vec::new();
            self.stream.read_until(b'\n', &mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(ANSWER, exchange)
            .await
            .map_err(|_| Error::new(Kind::Timeout, "balancer", "no answer within 5s"))?
            .map_err(broken)?;
        serde_json::from_slice(&answer).map_err(|error| {
            Error::new(Kind::Unavailable, "balancer", "answers in words of another version").cause(error)
        })
    }
}
