//! Shows that something is waited for: a bar on a terminal, a line a change elsewhere. Always on standard error.

use std::cell::RefCell;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::client::{ServiceStatus, show, wait};

/// How much of a reason is shown on the way.
const REASON: usize = 160;

/// Shows one wait after the other.
#[derive(Default)]
pub struct Reporter {
    bar: Option<(String, ProgressBar)>,
    last: String,
}

impl Reporter {
    /// As the function that scripts report to.
    pub fn into_report(self) -> impl Fn(&str, &ServiceStatus) {
        let reporter = RefCell::new(self);
        move |doing, status| reporter.borrow_mut().report(doing, status)
    }

    /// Shows a state on the way.
    pub fn report(&mut self, doing: &str, status: &ServiceStatus) {
        let name = &status.service.spec.name;
        let state = match &status.release {
            Some(release) if !release.state.is_final() => {
                format!("{}, {} of {} moved", show::state(status), release.moved.len(), status.desired)
            }
            _ => show::state(status),
        };
        let why = wait::why_not(status).filter(|_| !status.settled);
        let state = match why.as_deref().and_then(|why| why.lines().next()) {
            Some(why) => format!("{state}; {}", why.chars().take(REASON).collect::<String>()),
            None => state,
        };
        let line = format!("{doing} {name}: {}/{} healthy, {state}", status.healthy, status.desired);
        if line == self.last {
            return;
        }
        self.last.clone_from(&line);
        if !std::io::stderr().is_terminal() {
            eprintln!("{line}");
            return;
        }
        let key = format!("{doing} {name}");
        if self.bar.as_ref().is_none_or(|(other, bar)| *other != key || bar.is_finished()) {
            let bar = ProgressBar::new(u64::from(status.desired));
            let style = ProgressStyle::with_template("{spinner} {msg:40} [{bar:30}] {pos}/{len} {elapsed}")
                .expect("the template is constant and valid");
            bar.set_style(style.progress_chars("=> "));
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            self.bar = Some((key, bar));
        }
        if let Some((key, bar)) = &self.bar {
            bar.set_length(u64::from(status.desired.max(1)));
            bar.set_position(u64::from(status.healthy));
            bar.set_message(format!("{key}: {state}"));
            let over = status.settled
                || status
                    .release
                    .as_ref()
                    .is_some_and(|release| release.state.is_final() && release.finished_at.is_some());
            if over && status.settled {
                bar.finish();
            }
        }
    }
}

/// Shows how many are left of something, as it becomes less: `n2: 3 replicas left`.
pub struct Left {
    what: &'static str,
    of: String,
    last: Option<usize>,
    bar: Option<ProgressBar>,
}

impl Left {
    /// Of this.
    pub fn new(what: &'static str, of: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
        }
        Left { what, of: of.to_owned(), last: None, bar }
    }

    /// So many, now.
    pub fn report(&mut self, count: usize) {
        if self.last.replace(count) == Some(count) {
            return;
        }
        let line = format!("{}: {count} {} left", self.of, self.what);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None if count > 0 => eprintln!("{line}"),
            None => {}
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
