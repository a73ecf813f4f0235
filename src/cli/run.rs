//! `neap run`.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::{Global, progress, up};
use crate::client::Cluster;
use crate::client::remote::RemoteCluster;
use crate::daemon::Standalone;
use crate::model::{Error, Kind, Result};
use crate::script::api::services::Context;
use crate::script::run::{self, Script};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Run without a daemon: a temporary cluster on this machine, gone when the script ends
    #[arg(long)]
    standalone: bool,
    /// What --standalone logs to standard error
    #[arg(long, env = "NEAP_LOG", default_value = "error", value_name = "FILTER")]
    log: String,
    /// The script
    file: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Runs a script.
pub fn main(args: &Args, global: &Global) -> Result<()> {
    let file = std::path::absolute(&args.file)
        .map_err(|error| Error::io(args.file.display().to_string(), "find it", &error))?;
    if !file.is_file() {
        return Err(Error::not_found(format!("script {}", args.file.display())));
    }
    let cwd = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
    let script = Script { path: file, args: args.args.clone(), cwd };
    if args.standalone {
        up::start_log(&args.log)?;
        return super::threaded(standalone(&script));
    }
    let cluster: Arc<dyn Cluster> = Arc::new(RemoteCluster::new(global.load()?.endpoint(global.host.as_deref())?));
    super::single(async move {
        let local = tokio::task::LocalSet::new();
        local.run_until(interruptible(&script, cluster)).await
    })
}

async fn standalone(script: &Script) -> Result<()> {
    let cluster = Standalone::start().await?;
    let handle = cluster.cluster();
    let local = tokio::task::LocalSet::new();
    let result = local.run_until(interruptible(script, handle)).await;
    cluster.end().await;
    result
}

async fn interruptible(script: &Script, cluster: Arc<dyn Cluster>) -> Result<()> {
    let folder = script.path.parent().map(PathBuf::from).unwrap_or_default();
    let context = Context { cluster, reporter: Rc::new(progress::Reporter::default().into_report()), folder };
    let failed = |error: std::io::Error| Error::io("signals", "wait for them", &error);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
    let interrupted = || Error::new(Kind::Failed, format!("script {}", script.path.display()), "was interrupted");
    tokio::select! {
        result = run::run(script, context) => result,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
    }
}
