//! Runs files of tests: each test on a thread, a cluster and a VM of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::model::bundle::TESTS;
use crate::model::units::Duration as Period;
use crate::model::{Error, Kind, Result};
use crate::script::api::describe::Described;
use crate::script::api::services::Context;
use crate::script::api::test::{Case, Cases, Setup, Stage};
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
#[derive(Debug, Clone)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its line.
    pub line: u32,
    /// Its cluster.
    pub setup: Setup,
}

impl Named {
    /// A file as a whole, for what keeps all of its tests from being run.
    pub fn whole() -> Self {
        Named { name: "the file itself".into(), line: 1, setup: Setup::default() }
    }
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
    pub simulated: Period,
}

impl Report {
    /// Of what could not even be run.
    pub fn broken(test: &Named, error: Error) -> Self {
        let (output, took, simulated) = (String::new(), Duration::ZERO, Period::default());
        Report { test: test.clone(), result: Err(error), output, seed: SEED, took, simulated }
    }
}

/// The files that `paths` stand for: files as they are, of folders those that end with `_test.lua`, by name.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    for path in paths {
        let about = |error: std::io::Error| Error::io(path.display().to_string(), "read it", &error);
        let mut add =
            |path: PathBuf| std::path::absolute(&path).map(|whole| found.entry(whole).or_insert(path)).map(drop);
        if !std::fs::metadata(path).map_err(about)?.is_dir() {
            add(path.clone()).map_err(about)?;
            continue;
        }
        let mut any = false;
        let mut open = vec![path.clone()];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).map_err(about)? {
                let entry = entry.map_err(about)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') {
                    continue;
                }
                if entry.file_type().map_err(about)?.is_dir() {
                    open.push(entry.path());
                } else if name.ends_with(TESTS) {
                    any = true;
                    add(entry.path()).map_err(about)?;
                }
            }
        }
        if !any {
            return Err(Error::not_found(format!("tests in {}", path.display()))
                .help(format!("of a folder, files are run whose names end with {TESTS}")));
        }
    }
    Ok(found.into_values().collect())
}

/// The tests of a file, in order, those that the options ask for.
pub fn list(file: &Path, options: &Options) -> Result<Vec<Named>> {
    let (file, cwd) = (file.to_owned(), options.cwd.clone());
    let all = apart("the file", options.timeout, move |interrupted| {
        super::alone(async {
            let stage = super::start(&Setup::default(), SEED).await?;
            let tests = in_time(&interrupted, load(&file, &cwd, &stage, interrupted.clone())).await?;
            let named = |case: &Case| Named { name: case.name.clone(), line: case.line, setup: case.setup.clone() };
            let cases = tests.cases.borrow();
            Ok(cases.cases.iter().map(named).collect::<Vec<_>>())
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
    let seed = options.seed.or(test.setup.seed).unwrap_or(SEED);
    let (file, cwd, named) = (file.to_owned(), options.cwd.clone(), test.clone());
    let done = apart(&format!("test \"{}\"", test.name), options.timeout, move |interrupted| {
        super::alone(one(&file, &cwd, &named, seed, interrupted))
    });
    let Done { result, output, simulated } =
        done.unwrap_or_else(|error| Done { result: Err(error), output: String::new(), simulated: Period::default() });
    let result = result.map_err(|error| with_subject(error, &format!("test \"{}\"", test.name), options.timeout));
    Report { test: test.clone(), result, output, seed, took: begun.elapsed(), simulated }
}

struct Done {
    result: Result<()>,
    output: String,
    simulated: Period,
}

async fn one(file: &Path, cwd: &Path, test: &Named, seed: u64, interrupted: Arc<AtomicBool>) -> Done {
    let mut done = Done { result: Ok(()), output: String::new(), simulated: Period::default() };
    let work = async {
        let stage = super::start(&test.setup, seed).await?;
        let begun = stage.reach.clock.now();
        let tests = in_time(&interrupted, load(file, cwd, &stage, interrupted.clone())).await?;
        let result = in_time(&interrupted, tests.run(&test.name, &stage)).await;
        done.output = tests.output.text();
        done.simulated = stage.reach.clock.now().since(begun);
        result
    };
    done.result = work.await;
    done
}

// Whose time is over, and what it was, are said by those who know.
fn late() -> Error {
    Error::new(Kind::Timeout, "", "").help("does it wait for something that never happens?")
}

fn with_subject(error: Error, subject: &str, timeout: Duration) -> Error {
    if error.kind != Kind::Timeout || !error.subject.is_empty() {
        return error;
    }
    let message = format!("took longer than {} (--timeout)", Period::from(timeout));
    Error { subject: subject.to_owned(), message, ..error }
}

// Ends what waits for ever; what computes for ever is ended by the same flag in its VM.
async fn in_time<T>(interrupted: &AtomicBool, work: impl Future<Output = Result<T>>) -> Result<T> {
    let over = async {
        while !interrupted.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        result = work => result.map_err(|error| if interrupted.load(Ordering::Relaxed) { late() } else { error }),
        () = over => Err(late()),
    }
}

async fn load(file: &Path, cwd: &Path, stage: &Stage, interrupted: Arc<AtomicBool>) -> Result<Tests> {
    let script = Script { path: file.to_owned(), args: Vec::new(), cwd: cwd.to_owned() };
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let reporter = Rc::new(|_: &str, _: &crate::client::ServiceStatus| {});
    let (cluster, reach) = (stage.cluster.clone(), stage.reach.clone());
    let context = Context { cluster, reporter, folder, reach, described: Described::default(), hosting: None };
    Tests::load(&script, &context, Cases::default(), interrupted).await
}

// On a thread of its own, whose VMs and tasks go with it; told to stop once its time is over.
fn apart<T: Send + 'static>(
    subject: &str,
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
    let result = match receiver.recv_timeout(timeout) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            interrupted.store(true, Ordering::Relaxed);
            // A turn of the simulation may still take a moment.
            receiver.recv_timeout(timeout.max(Duration::from_secs(5)))
        }
        result => result,
    };
    match result {
        Ok(result) => result.map_err(|error| with_subject(error, subject, timeout)),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(with_subject(late(), subject, timeout)),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(Error::internal(subject, "broke; the trace before this says where"))
        }
    }
}
