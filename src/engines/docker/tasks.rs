//! What is known of the tasks on all hosts, and told on. States only move forward, whatever order answers come in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::engines::{Observed, ObservedState, Sight};
use crate::model::id::TaskId;

/// A task on a host.
#[derive(Default)]
struct Known {
    // The host's name.
    host: String,
    // The container's id, once there is one.
    container: Option<String>,
    seen: Option<Observed>,
    // Its host was away: what is seen is told again though it is no news.
    stale: bool,
    // A start is on its way.
    starting: bool,
    // It was told to end; a start that is on its way stops where it is.
    forbidden: bool,
    // Whoever would restart it is told not to.
    held: bool,
    // Said with whatever is told next.
    warnings: Vec<String>,
}

/// All of them.
#[derive(Default)]
pub struct Tasks {
    known: Mutex<BTreeMap<TaskId, Known>>,
    observer: Mutex<Option<mpsc::UnboundedSender<Sight>>>,
}

impl Tasks {
    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything told from now on goes to the receiver.
    pub fn observe(&self) -> mpsc::UnboundedReceiver<Sight> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    fn tell(&self, sight: Sight) {
        if let Some(observer) = self.observer.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            let _ = observer.send(sight);
        }
    }

    /// All that was seen last.
    pub fn list(&self) -> Vec<Observed> {
        self.known().values().filter_map(|known| known.seen.clone()).collect()
    }

    /// Host and container of a task that has one.
    pub fn place(&self, task: &TaskId) -> Option<(String, String)> {
        self.known().get(task).and_then(|known| Some((known.host.clone(), known.container.clone()?)))
    }

    /// A start begins; false where one is on its way or was forbidden.
    pub fn begin_start(&self, task: &TaskId, host: &str) -> bool {
        let mut all = self.known();
        let known = all.entry(*task).or_default();
        if known.starting || known.forbidden {
            return false;
        }
        host.clone_into(&mut known.host);
        known.starting = true;
        true
    }

    /// A start is over.
    pub fn end_start(&self, task: &TaskId) {
        if let Some(known) = self.known().get_mut(task) {
            known.starting = false;
        }
    }

    /// Whether a start is on its way.
    pub fn is_starting(&self, task: &TaskId) -> bool {
        self.known().get(task).is_some_and(|known| known.starting)
    }

    /// Whether it was told to end before it was started.
    pub fn is_forbidden(&self, task: &TaskId) -> bool {
        self.known().get(task).is_some_and(|known| known.forbidden)
    }

    /// Forbids a start; the task's container, if there is one already.
    pub fn forbid(&self, task: &TaskId) -> Option<(String, String)> {
        let mut all = self.known();
        let known = all.entry(*task).or_default();
        known.forbidden = true;
        known.container.clone().map(|container| (known.host.clone(), container))
    }

    /// A container of the task is there.
    pub fn found(&self, task: &TaskId, host: &str, container: &str) {
        let mut all = self.known();
        let known = all.entry(*task).or_default();
        host.clone_into(&mut known.host);
        known.container = Some(container.to_owned());
    }

    /// Said with what is told next.
    pub fn warn(&self, task: &TaskId, warning: &str) {
        if let Some(known) = self.known().get_mut(task) {
            known.warnings.push(warning.to_owned());
        }
    }

    /// Takes in and tells what was seen, unless it is older than what is known.
    pub fn report(&self, mut observed: Observed) {
        let mut all = self.known();
        let Some(known) = all.get_mut(&observed.task) else { return };
        let last = known.seen.as_ref().map(|seen| rank(&seen.state));
        if last.is_some_and(|last| last > rank(&observed.state) || last == OVER) {
            return;
        }
        observed.warnings.append(&mut known.warnings);
        if known.seen.as_ref() == Some(&observed) && !known.stale {
            return;
        }
        known.stale = false;
        known.seen = Some(observed.clone());
        // Told under the lock, so that nothing is told in another order than it was taken in.
        self.tell(Sight::Task(observed));
    }

    /// Tells a warning at once, if it was seen before.
    pub fn say(&self, task: &TaskId, warning: &str) {
        let all = self.known();
        if let Some(mut seen) = all.get(task).and_then(|known| known.seen.clone()) {
            seen.warnings.push(warning.to_owned());
            self.tell(Sight::Task(seen));
        }
    }

    /// Whether anybody hears what is told.
    pub fn is_observed(&self) -> bool {
        self.observer.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|to| !to.is_closed())
    }

    /// Tells that somebody else has changed or removed what a task runs in; told before its end.
    pub fn changed(&self, task: &TaskId, why: &str) {
        let all = self.known();
        let runs = |known: &Known| !known.forbidden && known.seen.as_ref().is_none_or(|seen| rank(&seen.state) != OVER);
        if all.get(task).is_some_and(runs) {
            self.tell(Sight::Changed(*task, why.to_owned()));
        }
    }

    /// Whether some are neither at rest nor over.
    pub fn under_way(&self) -> bool {
        self.known().values().any(|known| match known.seen.as_ref().map(|seen| rank(&seen.state)) {
            Some(OVER) => false,
            Some(RUNNING) => known.forbidden,
            _ => known.container.is_some() || known.starting,
        })
    }

    /// Whether nobody has begun to keep it from being restarted yet.
    pub fn begin_hold(&self, task: &TaskId) -> bool {
        self.known().get_mut(task).is_some_and(|known| !std::mem::replace(&mut known.held, true))
    }

    /// Whether it was seen running last, with these ports.
    pub fn runs_with(&self, task: &TaskId, now: &BTreeMap<String, String>) -> bool {
        let all = self.known();
        let seen = all.get(task).and_then(|known| known.seen.as_ref());
        seen.is_some_and(|seen| matches!(&seen.state, ObservedState::Running { ports, .. } if ports == now))
    }

    /// Whether its end was told.
    pub fn is_over(&self, task: &TaskId) -> bool {
        self.known().get(task).and_then(|known| known.seen.as_ref()).is_some_and(|seen| rank(&seen.state) == OVER)
    }

    /// Whether it is known, and its end was not told yet.
    pub fn is_open(&self, task: &TaskId) -> bool {
        let all = self.known();
        all.get(task).is_some_and(|known| known.seen.as_ref().is_none_or(|seen| rank(&seen.state) != OVER))
    }

    /// Those that have a container, with its id.
    pub fn with_container(&self) -> Vec<(TaskId, String)> {
        let all = self.known();
        all.iter().filter_map(|(id, known)| Some((*id, known.container.clone()?))).collect()
    }

    /// It is no more.
    pub fn forget(&self, task: &TaskId) {
        self.known().remove(task);
    }

    /// Before a host's containers are listed: tasks whose container may be missing in the list because it is being made.
    pub fn begin_stock(&self, host: &str) -> BTreeSet<TaskId> {
        let mut all = self.known();
        let mut making = BTreeSet::new();
        for (id, known) in all.iter_mut().filter(|(_, known)| known.host == host) {
            known.stale = true;
            if known.container.is_none() {
                making.insert(*id);
            }
        }
        making
    }

    /// After it: these are there. Whoever is missing has gone while nobody looked.
    pub fn end_stock(&self, host: &str, mut present: BTreeSet<TaskId>) {
        let all = self.known();
        let new = all.iter().filter(|(id, known)| known.host == host && (known.starting || present.contains(id)));
        present = new.map(|(id, _)| *id).collect();
        self.tell(Sight::Node(host.into(), present));
    }

    /// Ended or never begun, and not in `keep`: with host and container.
    pub fn unwanted(&self, keep: &BTreeSet<TaskId>) -> Vec<TaskId> {
        let all = self.known();
        let over = |known: &Known| known.seen.as_ref().is_some_and(|seen| rank(&seen.state) == OVER);
        all.iter().filter(|(id, known)| !keep.contains(id) && over(known)).map(|(id, _)| *id).collect()
    }
}

const RUNNING: u8 = 2;
const OVER: u8 = 3;

fn rank(state: &ObservedState) -> u8 {
    match state {
        ObservedState::Preparing { .. } => 0,
        ObservedState::Starting => 1,
        ObservedState::Running { .. } => RUNNING,
        ObservedState::Ended { .. } | ObservedState::Rejected { .. } | ObservedState::NoRoom { .. } => OVER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Timestamp;
    use crate::model::task::Exit;

    #[test]
    fn what_comes_late_changes_nothing() {
        let tasks = Tasks::default();
        let mut told = tasks.observe();
        let id = TaskId::numbered(1);
        assert!(tasks.begin_start(&id, "a"));
        assert!(!tasks.begin_start(&id, "a"), "one start at a time");
        let ended = ObservedState::Ended { exit: Exit::Code(0), finished_at: Timestamp(1) };
        for state in [ObservedState::Starting, ended.clone(), ObservedState::Starting, ended] {
            tasks.report(Observed { task: id, state, warnings: Vec::new() });
        }
        let mut seen = Vec::new();
        while let Ok(Sight::Task(observed)) = told.try_recv() {
            seen.push(rank(&observed.state));
        }
        assert_eq!(seen, [1, OVER]);
    }

    #[test]
    fn a_task_that_is_being_started_is_not_missed() {
        let tasks = Tasks::default();
        let (gone, new) = (TaskId::numbered(1), TaskId::numbered(2));
        tasks.found(&gone, "a", "x");
        let present = tasks.begin_stock("a");
        tasks.begin_start(&new, "a");
        let mut told = tasks.observe();
        tasks.end_stock("a", present);
        match told.try_recv() {
            Ok(Sight::Node(node, present)) => {
                assert_eq!((&*node, present), ("a", BTreeSet::from([new])));
            }
            other => panic!("{other:?}"),
        }
    }
}
