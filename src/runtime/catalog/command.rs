//! A check that is a command on its host.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::model::catalog::{CheckStatus, MAX_OUTPUT};

/// What the registry's bucket is told.
const BUCKET: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// Runs it once: 0 passes, 1 warns, all else is critical. What it leaves running is ended with it.
pub async fn run(words: &[String], timeout: Duration) -> (CheckStatus, String) {
    let Some((program, arguments)) = words.split_first() else { return (CheckStatus::Critical, "no command".into()) };
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What only the daemon is to know stays with it.
    let is_ours = |name: &str| name.starts_with("NEAP_") || BUCKET.contains(&name);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    let mut child = match command.process_group(0).kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) => return (CheckStatus::Critical, format!("{program}: {error}")),
    };
    let _group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let mut said = Vec::new();
    let work = async {
        // What it has started may hold its output open for longer than it lives.
        let read = async { tokio::join!(head(&mut out), head(&mut err)) };
        tokio::pin!(read);
        let status = tokio::select! {
            (first, second) = &mut read => {
                said.extend(first);
                said.extend(second);
                child.wait().await
            }
            status = child.wait() => {
                if let Ok((first, second)) = tokio::time::timeout(REST, &mut read).await {
                    said.extend(first);
                    said.extend(second);
                }
                status
            }
        };
        status
    };
    let ended = tokio::time::timeout(timeout, work).await;
    match ended {
        Err(_) => {
            let period = crate::model::units::Duration::from(timeout);
            (CheckStatus::Critical, format!("Timed out ({period}) running check"))
        }
        Ok(Err(error)) => (CheckStatus::Critical, format!("{program}: {error}")),
        Ok(Ok(status)) => judged(status.code(), &String::from_utf8_lossy(&said)),
    }
}

/// What a command's exit code and output come to, wherever it was run.
pub fn judged(code: Option<i32>, said: &str) -> (CheckStatus, String) {
    let status = match code {
        Some(0) => CheckStatus::Passing,
        Some(1) => CheckStatus::Warning,
        _ => CheckStatus::Critical,
    };
    let printable = said.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c });
    (status, printable.collect::<String>().trim().to_owned())
}

/// How long what a command has said is waited for once it has ended.
const REST: Duration = Duration::from_millis(200);

// The command with all that it has started, also where its check is ended in the midst.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

// The beginning of what it says; the rest is read and forgotten, so that it does not wait for a reader.
async fn head(from: &mut Option<impl AsyncReadExt + Unpin>) -> Vec<u8> {
    let (mut kept, mut part) = (Vec::new(), [0; 4096]);
    let Some(from) = from else { return kept };
    while let Ok(count @ 1..) = from.read(&mut part).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&part[..count.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn codes_output_and_time() {
        let shell = |line: &str| vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()];
        let run = |line: &str| {
            let words = shell(line);
            async move { super::run(&words, Duration::from_secs(30)).await }
        };
        assert_eq!(run("echo fine").await, (CheckStatus::Passing, "fine".into()));
        assert_eq!(run("echo so >&2; exit 1").await, (CheckStatus::Warning, "so".into()));
        assert_eq!(run("kill -9 $$").await.0, CheckStatus::Critical);
        assert_eq!(run("yes | head -c 1000000").await.1.len(), MAX_OUTPUT - 1);
        assert!(super::run(&["/none".into()], Duration::from_secs(1)).await.1.contains("No such file"));
        // What it leaves running holds nobody up, and is ended.
        let began = std::time::Instant::now();
        assert_eq!(run("sleep 61 & exit 0").await.0, CheckStatus::Passing);
        let (status, said) = super::run(&shell("sleep 61 & sleep 61"), Duration::from_millis(200)).await;
        assert!(status == CheckStatus::Critical && said.contains("Timed out"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
