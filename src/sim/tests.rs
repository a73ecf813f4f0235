//! Runs files of tests: each test on a thread, a cluster and a VM of its own.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::model::bundle::TESTS;
use crate::model::{Error, Kind, Result};
use crate::script::api::services::Context;
use crate::script::api::test::{Cases, Setup, Stage};
use crate::script::run::{Script, Tests};

/// The seed where none is given: the same each time.
const SEED: u64 = 1;
/// How often, by the simulation's clock, it is looked at whether a test has had its time.
const LOOK: Duration = Duration::from_secs(60);

/// How tests are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only those whose name holds this.
    pub filter: Option<String>,
    /// A seed in place of the tests' own.
    pub seed: Option<u64>,
    /// How long one test may take, by the machine's clock.
    pub timeout: Duration,
    /// Where the user is.
    pub cwd: PathBuf,
}

/// A test of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its line.
    pub line: u32,
}

/// What became of a test.
#[derive(Debug)]
pub struct Report {
    /// The test.
    pub test: Named,
    /// How it ended.
    pub result: Result<()>,
    /// What it printed.
    pub output: String,
    /// What decided all randomness.
    pub seed: u64,
    /// How long it took, by the machine's clock.
    pub took: Duration,
    /// How much time went by in the simulation.
    pub simulated: crate::model::units::Duration,
}

/// The files that `paths` stand for: files as they are, of folders those that end with `_test.lua`, by name.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let about = |error: std::io::Error| Error::io(path.display().to_string(), "read it", &error);
        if !std::fs::metadata(path).map_err(about)?.is_dir() {
            found.push(path.clone());
            continue;
        }
        let before = found.len();
        let mut open = vec![path.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).map_err(about)? {
                let entry = entry.map_err(about)?;
                if entry.file_type().map_err(about)?.is_dir() {
                    open.push(entry.path());
                } else if entry.file_name().to_string_lossy().ends_with(TESTS) {
                    found.push(entry.path());
                }
            }
        }
        if found.len() == before {
            return Err(Error::not_found(format!("tests in {}", path.display()))
                .help(format!("of a folder, files are run whose names end with {TESTS}")));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The tests of a file, in order, those that the options ask for.
pub fn list(file: &Path, options: &Options) -> Result<Vec<Named>> {
    let (file, cwd) = (file.to_owned(), options.cwd.clone());
    let all = apart(options.timeout, move |interrupted| {
        super::alone(async move {
            let stage = super::start(&Setup::default(), SEED).await?;
            let tests = load(&file, &cwd, &stage, interrupted).await?;
            let cases = tests.cases.borrow();
            Ok(cases.iter().map(|case| Named { name: case.name.clone(), line: case.line }).collect::<Vec<_>>())
        })?
    })?;
    Ok(match &options.filter {
        None => all,
        Some(part) => all.into_iter().filter(|test| test.name.contains(part.as_str())).collect(),
    })
}

/// Runs one test of a file.
pub fn run(file: &Path, test: &Named, options: &Options) -> Report {
    let begun = Instant::now();
    let (file, cwd, name, asked) = (file.to_owned(), options.cwd.clone(), test.name.clone(), options.seed);
    let done = apart(options.timeout, move |interrupted| super::alone(one(&file, &cwd, &name, asked, interrupted)));
    let failed = |error| Done { result: Err(error), ..Done::default() };
    let Done { result, output, seed, simulated } = done.unwrap_or_else(failed);
    Report { test: test.clone(), result, output, seed, took: begun.elapsed(), simulated }
}

struct Done {
    result: Result<()>,
    output: String,
    seed: u64,
    simulated: crate::model::units::Duration,
}

impl Default for Done {
    fn default() -> Self {
        Done { result: Ok(()), output: String::new(), seed: SEED, simulated: crate::model::units::Duration::default() }
    }
}

async fn one(file: &Path, cwd: &Path, name: &str, asked: Option<u64>, interrupted: Arc<AtomicBool>) -> Done {
    let mut done = Done::default();
    // Its cluster is described in the file: a first look finds that, and is forgotten.
    let described = async {
        let stage = super::start(&Setup::default(), SEED).await?;
        let tests = load(file, cwd, &stage, interrupted.clone()).await?;
        let cases = tests.cases.borrow();
        let found = cases.iter().find(|case| case.name == name);
        found.map(|case| case.setup.clone()).ok_or_else(|| Error::not_found(format!("test \"{name:.80}\"")))
    };
    let setup = match described.await {
        Ok(setup) => setup,
        Err(error) => return Done { result: Err(error), ..done },
    };
    done.seed = asked.or(setup.seed).unwrap_or(SEED);
    let stage = match super::start(&setup, done.seed).await {
        Ok(stage) => stage,
        Err(error) => return Done { result: Err(error), ..done },
    };
    let begun = stage.reach.clock.now();
    let tests = match load(file, cwd, &stage, interrupted.clone()).await {
        Ok(tests) => tests,
        Err(error) => return Done { result: Err(error), ..done },
    };
    done.result = tokio::select! {
        biased;
        result = tests.run(name, &stage) => result,
        () = time_is_over(&interrupted) => {
            let help = "does it wait for something that never happens?";
            Err(Error::new(Kind::Timeout, format!("test \"{name}\""), "was interrupted: it has had its time").help(help))
        }
    };
    done.output = tests.output.text();
    done.simulated = stage.reach.clock.now().since(begun);
    done
}

async fn time_is_over(interrupted: &AtomicBool) {
    while !interrupted.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn load(file: &Path, cwd: &Path, stage: &Stage, interrupted: Arc<AtomicBool>) -> Result<Tests> {
    let script = Script { path: file.to_owned(), args: Vec::new(), cwd: cwd.to_owned() };
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let reporter = Rc::new(|_: &str, _: &crate::client::ServiceStatus| {});
    let context = Context { cluster: stage.cluster.clone(), reporter, folder, reach: stage.reach.clone() };
    Tests::load(&script, &context, Cases::default(), interrupted).await
}

// On a thread of its own, whose VMs and tasks go with it; told to stop once its time is over.
fn apart<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce(Arc<AtomicBool>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    let flag = interrupted.clone();
    std::thread::Builder::new()
        .name("simulation".into())
        .stack_size(8 << 20)
        .spawn(move || {
            let _ = sender.send(work(flag));
        })
        .map_err(|error| Error::io("simulation", "start its thread", &error))?;
    let broke = || Error::internal("simulation", "broke; what was printed says more");
    match receiver.recv_timeout(timeout) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(broke()),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            interrupted.store(true, Ordering::Relaxed);
            // A turn of the simulation may still take a moment.
            receiver.recv_timeout(timeout.max(Duration::from_secs(5))).unwrap_or_else(|_| {
                let message = format!("did not end within {}", crate::model::units::Duration::from(timeout));
                Err(Error::new(Kind::Timeout, "simulation", message))
            })
        }
    }
}
