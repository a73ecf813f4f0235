//! `neap run`.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::host::Here;
use super::{Global, output, progress, up};
use crate::client::Cluster;
use crate::client::hosting::Hosting;
use crate::daemon::Standalone;
use crate::model::{Error, Kind, Result};
use crate::script::api::Reach;
use crate::script::api::describe::Described;
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

// The exit code of a run that a signal has ended, as shells give it: 128 and the signal's number.
static CODE: AtomicU8 = AtomicU8::new(0);

/// The flag that means something else behind the file.
const STANDALONE: &str = "--standalone";

/// Runs a script.
pub fn main(args: &Args, global: &Global) -> Result<()> {
    let file = std::path::absolute(&args.file)
        .map_err(|error| Error::io(args.file.display().to_string(), "find it", &error))?;
    if file.is_dir() {
        let error = Error::invalid(format!("script {}", args.file.display()), "is a folder");
        return Err(error.help("name a file; `neap script push` and `neap test` take folders"));
    }
    if !file.is_file() {
        return Err(Error::not_found(format!("script {}", args.file.display())));
    }
    let cwd = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
    // A script may have a --host of its own, and hardly that.
    if args.args.iter().take_while(|arg| *arg != "--").any(|arg| arg == STANDALONE) {
        let shown = args.file.display();
        output::warn(format!(
            "{STANDALONE} stands behind the file, so the script gets it: neap run {STANDALONE} {shown}"
        ));
    }
    let script = Script { path: file, args: args.args.clone(), cwd };
    if args.standalone {
        up::start_log(&args.log)?;
        return super::threaded(standalone(&script)).map_err(|error| signalled(&error));
    }
    let cluster: Arc<dyn Cluster> = Arc::new(global.cluster()?);
    let file = global.load()?;
    super::single(async move {
        let hosting: Rc<dyn Hosting> = Rc::new(Here::silent(file));
        let local = tokio::task::LocalSet::new();
        local.run_until(interruptible(&script, cluster, Some(hosting))).await
    })
    .map_err(|error| signalled(&error))
}

fn signalled(error: &Error) -> Error {
    let code = CODE.load(Ordering::Relaxed);
    if code > 0 {
        output::print_error(error);
        std::process::exit(i32::from(code));
    }
    error.clone()
}

async fn standalone(script: &Script) -> Result<()> {
    let cluster = Standalone::start().await?;
    let handle = cluster.cluster();
    let local = tokio::task::LocalSet::new();
    let result = local.run_until(interruptible(script, handle, None)).await;
    cluster.end().await;
    result
}

async fn interruptible(script: &Script, cluster: Arc<dyn Cluster>, hosting: Option<Rc<dyn Hosting>>) -> Result<()> {
    let folder = script.path.parent().map(PathBuf::from).unwrap_or_default();
    let reporter = Rc::new(progress::Reporter::default().into_report());
    let described = Described::default();
    let context = Context { cluster, reporter, folder, reach: Reach::default(), described: described.clone(), hosting };
    let (flag, notice) = watch_signals()?;
    let interrupted = || Error::new(Kind::Failed, format!("script {}", script.path.display()), "was interrupted");
    tokio::select! {
        result = run::run(script, context, flag.clone()) => match flag.load(Ordering::Relaxed) {
            true => Err(interrupted()),
            false => result.inspect(|()| {
                for name in described.forgotten() {
                    output::warn(format!("service \"{name}\" is described, and neither planned nor applied"));
                }
            }),
        },
        _ = notice => Err(interrupted()),
    }
}

// On a thread of its own: this one may be busy with a script that never waits.
fn watch_signals() -> Result<(Arc<AtomicBool>, tokio::sync::oneshot::Receiver<()>)> {
    let failed = |error: std::io::Error| Error::io("signals", "wait for them", &error);
    let flag = Arc::new(AtomicBool::new(false));
    let (notice, noticed) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // Before anything of the script runs: a signal that nobody waits for ends the process as it stands.
    let (mut terminate, mut interrupt) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?)
    };
    let set = flag.clone();
    let wait = move || {
        runtime.block_on(async {
            let code = tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            };
            CODE.store(code, Ordering::Relaxed);
            set.store(true, Ordering::Relaxed);
            let _ = notice.send(());
            // The next one is for those who do not want to wait for the cleaning up.
            interrupt.recv().await;
            std::process::exit(130);
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    Ok((flag, noticed))
}
