//! `neap repl`: reads lines, on a thread of its own; the session evaluates them on this one.

use std::borrow::Cow;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context as LineContext, Editor, Helper};
use tokio::sync::{Notify, mpsc};

use super::host::Here;
use super::{Global, output, progress, up};
use crate::client::Cluster;
use crate::client::hosting::Hosting;
use crate::daemon::Standalone;
use crate::daemon::config;
use crate::model::{Error, Kind, Result};
use crate::script::api::Reach;
use crate::script::api::describe::Described;
use crate::script::api::services::Context;
use crate::script::repl::{Checker, Session, colour};

/// Lines that the history keeps.
const HISTORY: usize = 5000;
/// How long a completion may keep the user waiting.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(500);

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Run without a daemon: a temporary cluster on this machine, gone when the session ends
    #[arg(long)]
    standalone: bool,
    /// Evaluate this instead of reading lines, and end
    #[arg(long, short, value_name = "CODE")]
    eval: Option<String>,
}

/// Runs a session.
pub fn main(args: &Args, global: &Global) -> Result<()> {
    if args.standalone {
        up::start_log("error")?;
        return super::threaded(async {
            let cluster = Standalone::start().await?;
            let result = tokio::task::LocalSet::new().run_until(attached(args, cluster.cluster(), None)).await;
            cluster.end().await;
            result
        });
    }
    let cluster: Arc<dyn Cluster> = Arc::new(global.cluster()?);
    let file = global.load()?;
    super::single(async {
        let hosting: Rc<dyn Hosting> = Rc::new(Here::silent(file));
        tokio::task::LocalSet::new().run_until(attached(args, cluster, Some(hosting))).await
    })
}

async fn attached(args: &Args, cluster: Arc<dyn Cluster>, hosting: Option<Rc<dyn Hosting>>) -> Result<()> {
    let info = cluster.info().await?;
    let cwd = std::env::current_dir().map_err(|error| Error::io("working folder", "find it", &error))?;
    let reporter = Rc::new(progress::Reporter::default().into_report());
    let context = Context {
        cluster,
        reporter,
        folder: cwd.clone(),
        reach: Reach::default(),
        described: Described::default(),
        hosting,
    };
    let stop = Stop::listen()?;
    let session = Rc::new(Session::new(context, cwd, stop.flag.clone())?);
    if let Some(code) = &args.eval {
        return piped(&session, &stop, code).await;
    }
    if !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| Error::io("standard input", "read it", &error))?;
        return piped(&session, &stop, &text).await;
    }
    output::line(&format!(
        "neap {}, cluster {}, engine {}. help() helps, Tab completes, Ctrl-D ends.",
        info.version, info.cluster, info.engine
    ))?;
    interactive(session, stop, format!("{}> ", info.cluster)).await
}

// Statement by statement, up to the first that fails.
async fn piped(session: &Session, stop: &Stop, text: &str) -> Result<()> {
    let checker = Checker::new();
    let mut pending = String::new();
    let mut first = 1;
    for (number, line) in text.lines().enumerate() {
        if pending.is_empty() {
            first = number + 1;
        }
        pending.push_str(line);
        pending.push('\n');
        if checker.wants_more(&pending) {
            continue;
        }
        let code = std::mem::take(&mut pending);
        if !code.trim().is_empty()
            && let Some(shown) = evaluate(session, stop, &code).await.map_err(|error| at_line(first, error))?
        {
            output::line(&shown)?;
        }
    }
    match pending.trim().is_empty() {
        true => Ok(()),
        false => evaluate(session, stop, &pending).await.map(drop).map_err(|error| at_line(first, error)),
    }
}

// Of a pipe's text the line is what finds the mistake.
fn at_line(number: usize, error: Error) -> Error {
    let subject = match error.subject.is_empty() {
        true => format!("line {number}"),
        false => format!("line {number}: {}", error.subject),
    };
    Error { subject, ..error }
}

async fn evaluate(session: &Session, stop: &Stop, code: &str) -> Result<Option<String>> {
    let interrupted = || Err(Error::new(Kind::Failed, "evaluation", "was interrupted"));
    tokio::select! {
        result = session.eval(code) => result,
        () = stop.notice.notified() => interrupted(),
    }
}

// Ctrl-C ends an evaluation, whether it computes or waits.
struct Stop {
    flag: Arc<AtomicBool>,
    notice: Arc<Notify>,
}

impl Stop {
    fn listen() -> Result<Self> {
        let failed = |error: std::io::Error| Error::io("signals", "wait for them", &error);
        let stop = Stop { flag: Arc::default(), notice: Arc::default() };
        let (flag, notice) = (stop.flag.clone(), stop.notice.clone());
        // On a thread of its own: this one may be busy with a script that never waits.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        // Before anything is evaluated: a signal that nobody waits for ends the process as it stands.
        let mut interrupts = {
            use tokio::signal::unix::{SignalKind, signal};
            let _inside = runtime.enter();
            signal(SignalKind::interrupt()).map_err(failed)?
        };
        let wait = move || {
            runtime.block_on(async {
                while interrupts.recv().await.is_some() {
                    flag.store(true, Ordering::Relaxed);
                    notice.notify_waiters();
                }
            });
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
        Ok(stop)
    }
}

/// What the thread that reads asks of the session.
enum Request {
    Eval(String, std::sync::mpsc::Sender<()>),
    Complete(String, std::sync::mpsc::Sender<(usize, Vec<String>)>),
}

async fn interactive(session: Rc<Session>, stop: Stop, prompt: String) -> Result<()> {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let colours = std::env::var_os("NO_COLOR").is_none();
    let reader = std::thread::Builder::new()
        .name("lines".into())
        .spawn(move || read_lines(&sender, &prompt, colours))
        .map_err(|error| Error::io("REPL", "start reading lines", &error))?;
    while let Some(request) = requests.recv().await {
        match request {
            Request::Eval(code, done) => {
                match evaluate(&session, &stop, &code).await {
                    Ok(Some(text)) => output::line(&text)?,
                    Ok(None) => {}
                    Err(error) => output::print_error(&error),
                }
                let _ = done.send(());
            }
            Request::Complete(line, reply) => {
                let _ = reply.send(session.complete(&line).await);
            }
        }
    }
    reader.join().unwrap_or_else(|_| Err(Error::internal("REPL", "broke while it read lines")))
}

fn history_file() -> Option<PathBuf> {
    let folder = config::state_folder();
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("repl_history"))
}

fn read_lines(requests: &mpsc::UnboundedSender<Request>, prompt: &str, colours: bool) -> Result<()> {
    let broken = |error: ReadlineError| Error::internal("terminal", "cannot be read from").cause(error);
    let config = Config::builder()
        .max_history_size(HISTORY)
        .map_err(broken)?
        .completion_type(CompletionType::List)
        .auto_add_history(false)
        .build();
    let mut editor: Editor<Lines, FileHistory> = Editor::with_config(config).map_err(broken)?;
    let shown = if colours { format!("\x1b[1;34m{prompt}\x1b[0m") } else { prompt.to_owned() };
    editor.set_helper(Some(Lines { checker: Checker::new(), requests: requests.clone(), colours, shown }));
    let history = history_file();
    if let Some(history) = &history {
        let _ = editor.load_history(history);
    }
    loop {
        match editor.readline(prompt) {
            Ok(line) if line.trim().is_empty() => {}
            // Words that people type before they have read anything.
            Ok(line) if matches!(line.trim(), "exit" | "quit" | "exit()" | "quit()") => return Ok(()),
            Ok(line) => {
                let _ = editor.add_history_entry(line.as_str());
                // Written at once: several sessions share it, and one may be killed.
                if let Some(history) = &history {
                    let _ = editor.append_history(history);
                }
                let (done, wait) = std::sync::mpsc::channel();
                if requests.send(Request::Eval(line, done)).is_err() || wait.recv().is_err() {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(broken(error)),
        }
    }
}

struct Lines {
    checker: Checker,
    requests: mpsc::UnboundedSender<Request>,
    colours: bool,
    shown: String,
}

impl Lines {
    fn ask(&self, line: &str) -> (usize, Vec<String>) {
        let (reply, answer) = std::sync::mpsc::channel();
        let nothing = (line.len(), Vec::new());
        match self.requests.send(Request::Complete(line.to_owned(), reply)) {
            Ok(()) => answer.recv_timeout(PATIENCE).unwrap_or(nothing),
            Err(_) => nothing,
        }
    }
}

impl Helper for Lines {}

impl Completer for Lines {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &LineContext<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, names) = self.ask(&line[..at]);
        let pair = |name: String| Pair { display: name.clone(), replacement: name };
        Ok((start, names.into_iter().map(pair).collect()))
    }
}

impl Hinter for Lines {
    type Hint = String;

    // The arguments of what was just written.
    fn hint(&self, line: &str, at: usize, _: &LineContext<'_>) -> Option<String> {
        if at < line.len() {
            return None;
        }
        crate::script::repl::hint(line)
    }
}

impl Highlighter for Lines {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if self.colours { Cow::Owned(colour(line)) } else { Cow::Borrowed(line) }
    }

    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, _: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Borrowed(&self.shown)
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        if self.colours { Cow::Owned(format!("\x1b[2m{hint}\x1b[0m")) } else { Cow::Borrowed(hint) }
    }

    fn highlight_char(&self, _: &str, _: usize, _: CmdKind) -> bool {
        self.colours
    }
}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match self.checker.wants_more(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}
