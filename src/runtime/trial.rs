//! What is decided in one turn of the conductor, and how it is taken apart where it cannot be written down, or breaks off by
//! a fault of ours: in halves, until what it was is left by itself, and all else has gone on.

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::oneshot;

use super::Message;
use crate::engines::Observed;
use crate::model::name::Name;
use crate::model::{Error, Result};

/// Messages to take in, and services to look at.
#[derive(Default)]
pub struct Turn {
    /// Yet to be taken in.
    pub queue: VecDeque<Message>,
    /// Taken in, of those that can come again.
    pub taken: Vec<Message>,
    /// What was found to run for nobody, and is put away once the rest is written down.
    pub strays: Vec<Observed>,
    /// Who waits, and the answer.
    pub replies: Vec<(oneshot::Sender<Result<()>>, Result<()>)>,
    /// Services to look at.
    pub scope: BTreeSet<Name>,
    /// Whether that is done in this turn: what messages change is else looked at later, by itself.
    pub looks: bool,
    /// Whether it is about one message, and nothing else was due.
    pub alone: bool,
    /// How many messages it began with.
    pub began: usize,
}

/// What became of a turn that could not be.
pub enum Parted {
    /// These, each by itself.
    Into(Vec<Turn>),
    /// A message that cannot be taken in.
    Message,
    /// A service that cannot be looked at.
    Service(Name),
}

impl Turn {
    /// One about all of these.
    pub fn new(queue: VecDeque<Message>, scope: BTreeSet<Name>) -> Self {
        let alone = queue.len() == 1 && scope.is_empty();
        Turn { queue, scope, looks: true, alone, ..Turn::default() }
    }

    fn taking(messages: Vec<Message>) -> Self {
        Turn { queue: messages.into(), ..Turn::default() }
    }

    /// One that looks at these services.
    pub fn looking(scope: BTreeSet<Name>) -> Self {
        Turn { scope, looks: true, ..Turn::default() }
    }

    /// Tells all who wait that nothing of it was done.
    pub fn refuse(&mut self, error: &Error) {
        for (reply, _) in self.replies.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Takes it apart.
    pub fn part(mut self) -> Parted {
        let mut messages = std::mem::take(&mut self.taken);
        messages.extend(self.queue);
        // A message may be the culprit and gone already: what else it was about is not judged for it.
        if self.looks && self.began > 0 {
            let taking = (!messages.is_empty()).then(|| Turn::taking(messages));
            return Parted::Into(taking.into_iter().chain([Turn::looking(self.scope)]).collect());
        }
        if !self.looks {
            match (self.began, messages.len()) {
                (..=1, _) => return Parted::Message,
                (_, 0) => return Parted::Into(Vec::new()),
                (_, 1) => return Parted::Into(vec![Turn::taking(messages)]),
                _ => {}
            }
            let second = messages.split_off(messages.len() / 2);
            return Parted::Into(vec![Turn::taking(messages), Turn::taking(second)]);
        }
        let mut first = self.scope;
        let Some(middle) = first.iter().nth(first.len() / 2).cloned() else { return Parted::Into(Vec::new()) };
        if first.len() == 1 {
            return Parted::Service(middle);
        }
        let second = first.split_off(&middle);
        Parted::Into(vec![Turn::looking(first), Turn::looking(second)])
    }
}

/// Of what tells how things are now, the newest: an outage of the store does not pile up what is long past.
pub fn only_newest(messages: &mut Vec<Message>) {
    let mut seen = BTreeSet::new();
    let about = |message: &Message| match message {
        Message::Nodes(_) => Some("nodes".to_owned()),
        Message::Natives(_) => Some("natives".to_owned()),
        Message::Health { task, .. } => Some(format!("health {task}")),
        _ => None,
    };
    let mut kept: Vec<Message> = Vec::new();
    for message in messages.drain(..).rev() {
        if about(&message).is_none_or(|about| seen.insert(about)) {
            kept.push(message);
        }
    }
    kept.reverse();
    *messages = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::TaskId;
    use crate::model::task::Health;

    // Tries turns until none is left, as the conductor does; what was found, and how many tries that took.
    fn find(turn: Turn, is_bad: impl Fn(&Turn) -> bool) -> (usize, Vec<String>, usize) {
        let (mut trials, mut messages, mut services, mut tries) = (VecDeque::from([turn]), 0, Vec::new(), 0);
        while let Some(mut trial) = trials.pop_front() {
            tries += 1;
            trial.began = trial.queue.len();
            if !is_bad(&trial) {
                continue;
            }
            match trial.part() {
                Parted::Into(parts) => parts.into_iter().rev().for_each(|part| trials.push_front(part)),
                Parted::Message => messages += 1,
                Parted::Service(name) => services.push(name.to_string()),
            }
        }
        (messages, services, tries)
    }

    #[test]
    fn of_what_is_only_known_now_the_newest_is_kept() {
        let health = |number: u128, health| Message::Health {
            task: TaskId::numbered(number),
            health,
            reason: None,
            restart: false,
        };
        let mut all = vec![
            Message::Nodes(std::sync::Arc::default()),
            health(1, Health::Healthy),
            rejected(7),
            health(2, Health::Healthy),
            health(1, Health::Unhealthy),
            rejected(7),
            Message::Nodes(std::sync::Arc::default()),
        ];
        only_newest(&mut all);
        assert_eq!(all.len(), 5);
        assert!(matches!(all[0], Message::Rejected(..)), "what happened stays, in its order");
        assert!(matches!(all[2], Message::Health { health: Health::Unhealthy, .. }));
        assert!(matches!(all[4], Message::Nodes(_)));
    }

    fn rejected(number: u128) -> Message {
        Message::Rejected(TaskId::numbered(number), String::new())
    }

    #[test]
    fn the_culprits_are_found_and_nothing_else() {
        let names: BTreeSet<Name> = (0..1000).map(|number| format!("s{number}").parse().unwrap()).collect();
        let all = || Turn::new((0..256).map(rejected).collect(), names.clone());
        let bad_service = |turn: &Turn| turn.looks && (turn.scope.contains("s7") || turn.scope.contains("s900"));
        let (messages, services, tries) = find(all(), bad_service);
        assert_eq!((messages, services), (0, vec!["s7".to_owned(), "s900".to_owned()]));
        assert!(tries < 60, "{tries} tries");
        let bad = |message: &Message| matches!(message, Message::Rejected(id, _) if *id == TaskId::numbered(3));
        let bad_message = |turn: &Turn| turn.queue.iter().any(bad);
        let (messages, services, _) = find(all(), bad_message);
        assert_eq!((messages, services.len()), (1, 0));
        assert_eq!(find(Turn::new(VecDeque::new(), BTreeSet::new()), |_| true).0, 0);
    }
}
