//! Where `print` goes: to the daemon's log, and to what is kept of the run that prints.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::model::cron::MAX_OUTPUT;

/// What one run printed: the end of it, where it is too long.
#[derive(Debug, Clone, Default)]
pub struct Output(Rc<RefCell<(String, bool)>>);

impl Output {
    /// Adds a line.
    pub fn line(&self, line: &str) {
        let mut kept = self.0.borrow_mut();
        kept.0.push_str(line);
        kept.0.push('\n');
        if kept.0.len() > 2 * MAX_OUTPUT {
            let cut = kept.0.ceil_char_boundary(kept.0.len() - MAX_OUTPUT);
            kept.0.drain(..cut);
            kept.1 = true;
        }
    }

    /// All that is kept.
    pub fn text(&self) -> String {
        let kept = self.0.borrow();
        let from = kept.0.ceil_char_boundary(kept.0.len().saturating_sub(MAX_OUTPUT));
        let cut = if kept.1 || from > 0 { "...\n" } else { "" };
        format!("{cut}{}", &kept.0[from..])
    }
}

/// The output of the run that computes right now, if it keeps one.
#[derive(Debug, Clone, Default)]
pub struct Sink(Rc<RefCell<Option<Output>>>);

impl Sink {
    /// Takes a line.
    pub fn line(&self, line: &str) {
        if let Some(output) = &*self.0.borrow() {
            output.line(line);
        }
    }

    /// Makes all that `future` prints go to `output`, whatever else runs in the same VM in between.
    pub fn keep<F: Future>(&self, output: Output, future: F) -> Kept<F> {
        Kept { sink: self.clone(), output, future: Box::pin(future) }
    }
}

/// A future whose printing is kept.
pub struct Kept<F> {
    sink: Sink,
    output: Output,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Kept<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        *this.sink.0.borrow_mut() = Some(this.output.clone());
        let result = this.future.as_mut().poll(context);
        *this.sink.0.borrow_mut() = None;
        result
    }
}
