//! Finds places with as little asking as possible: keeps courts and groups from one decision to the next, and takes over
//! only what has changed in between. What is found is what a scan of all nodes would find.

use super::board::{Board, Claim};
use super::class::{Case, Outcome};
use super::court::Court;
use super::group::Group;
use super::lookup::Lookup;
use super::place::{Answer, Ask, Filter, Placement, Refusals, SlotAsk, nowhere};
use super::reads::Judge;
use crate::model::id::Slot;
use crate::model::name::Name;
use crate::model::service::OnPolicyError;
use crate::model::{Error, Kind, Result};

/// Most nodes in all groups that are kept together.
const MAX_GROUPED: usize = 600_000;
/// Most courts that are kept.
const MAX_COURTS: usize = 64;
/// How often in a row a policy may read something new before it is given up.
const MAX_GROWTH: usize = 1000;

/// Where judges come from.
pub trait Bench {
    /// A text that stands for the judges of `ask`: equal texts, equal judges.
    fn key(&mut self, ask: &Ask) -> Result<String>;
    /// The judges.
    fn judges(&mut self, ask: &Ask) -> Result<Vec<Box<dyn Judge>>>;
    /// The same question by the policy that stands in for a failed one.
    fn stand_in(&self, ask: &Ask) -> Ask;
}

/// Courts and groups, each kept for the next time, the last used last.
#[derive(Default)]
pub struct Ledger {
    courts: Vec<(String, Court)>,
    groups: Vec<Kept>,
    // What was placed in this pass already, which the asks know nothing of.
    placed: Lookup<Name, Vec<u32>>,
    // The board's stamp as the pass began.
    began: u64,
}

struct Kept {
    court: String,
    filter: Filter,
    group: Box<Group>,
}

impl Ledger {
    /// A pass begins on `board`: asks know all that was placed before it.
    pub fn begin(&mut self, board: &Board) {
        self.placed.clear();
        self.began = board.stamp();
    }

    /// A pass is over; `board` has taken on what was placed in it. The next pass comes with another board, on which the
    /// same changes, or others, were made anew: from where this pass began.
    pub fn end(&mut self, board: &Board) {
        let Some(changed) = board.changed_since(self.began) else { return };
        let changed: Vec<u32> = changed.collect();
        for kept in &mut self.groups {
            kept.group.begin_again(board, self.began, &changed);
        }
    }

    /// Answers one ask; `board` takes on what is placed.
    pub fn place(&mut self, board: &mut Board, ask: &Ask, bench: &mut dyn Bench) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::with_capacity(ask.slots.len());
        let mut failure = self.place_all(board, ask, &ask.slots, bench, &mut answers).err();
        if let Some(error) = failure.as_ref().filter(|error| error.kind == Kind::Script)
            && ask.on_error == OnPolicyError::Spread
        {
            let (note, begun) = (format!("{error}; the built-in spread serves"), answers.len());
            let stand_in = bench.stand_in(ask);
            failure = self.place_all(board, &stand_in, &ask.slots[begun..], bench, &mut answers).err();
            for answer in &mut answers[begun..] {
                answer.note = Some(note.clone());
            }
        }
        // A script that failed for one task is not asked about the others: each try may take its whole budget.
        if let Some(error) = failure {
            answers.resize(ask.slots.len(), Answer { place: Err(Box::new(error)), note: None });
        }
        let found = answers.iter().filter_map(|answer| answer.place.as_ref().ok());
        self.placed.or_insert(ask.service.clone(), Vec::new()).extend(found.map(|placement| placement.at));
        answers
    }

    fn place_all(
        &mut self,
        board: &mut Board,
        ask: &Ask,
        slots: &[SlotAsk],
        bench: &mut dyn Bench,
        answers: &mut Vec<Answer>,
    ) -> Result<()> {
        let court_key = bench.key(ask)?;
        let mut court = match self.courts.iter().position(|(key, _)| *key == court_key) {
            Some(at) => self.courts.remove(at).1,
            None => Court::new(bench.judges(ask)?),
        };
        let was_fickle = court.fickle;
        let result = self.place_slots(board, ask, slots, &court_key, &mut court, answers);
        if court.fickle && !was_fickle {
            let names: Vec<String> = ask.policies.iter().map(|policy| format!("\"{}\"", policy.name)).collect();
            let note = format!(
                "policy {} answers differently to the same question; nothing is remembered of it from now on: a policy should depend on its arguments alone",
                names.join(", ")
            );
            if let Some(answer) = answers.last_mut() {
                answer.note = Some(note);
            }
        }
        // After a failure nothing is known of the state that it left.
        if result.is_ok() {
            if self.courts.len() >= MAX_COURTS {
                let (gone, _) = self.courts.remove(0);
                self.groups.retain(|kept| kept.court != gone);
            }
            self.courts.push((court_key, court));
        } else {
            self.groups.retain(|kept| kept.court != court_key);
        }
        result
    }

    fn place_slots(
        &mut self,
        board: &mut Board,
        ask: &Ask,
        slots: &[SlotAsk],
        court_key: &str,
        court: &mut Court,
        answers: &mut Vec<Answer>,
    ) -> Result<()> {
        let placed = self.placed.get(&ask.service).into_iter().flatten().map(|at| *at as usize);
        let on: Vec<usize> = ask.on.iter().filter_map(|node| board.position(node)).chain(placed).collect();
        let mut current: Option<Box<Group>> = None;
        let mut growth = 0;
        let mut next = 0;
        let mut task = ask.task(&Slot::Replica(0));
        let mut kind = 0;
        while let Some(wanted) = slots.get(next) {
            task.slot.clone_from(&wanted.slot);
            // Policies seldom read which of its service's tasks it is: then one number stands for all of them.
            if current.is_none() || court.reads_slot() {
                kind = court.task_kind(&task);
            }
            let case = Case { task: &task, kind };
            let group = match current
                .take()
                .filter(|group| group.fits(board, court))
                .or_else(|| self.take(board, court_key, court, &ask.filter))
            {
                Some(group) if court.fickle => {
                    drop(group);
                    None
                }
                Some(mut group) => match group.turn_to(board, court, case, on.iter().copied())? {
                    Outcome::Done(()) => Some(group),
                    Outcome::Outgrown => None,
                },
                None => None,
            };
            let built = match group {
                Some(group) => Outcome::Done(group),
                None => match Group::build(board, court, ask.filter.clone(), case)? {
                    Outcome::Done(group) => Outcome::Done(Box::new(group)),
                    Outcome::Outgrown => Outcome::Outgrown,
                },
            };
            let mut outgrown = true;
            if let Outcome::Done(group) = built {
                let mut work = Work { board, court, group, ask, case, outgrown: false };
                if let Some(place) = work.one(wanted)? {
                    answers.push(Answer { place: place.map_err(Box::new), note: None });
                    next += 1;
                }
                outgrown = work.outgrown;
                if !outgrown {
                    current = Some(work.group);
                }
            }
            growth += usize::from(outgrown);
            if growth > MAX_GROWTH {
                return Err(Error::new(Kind::Script, "policy", "reads something new each time it is asked"));
            }
        }
        if let Some(group) = current {
            self.keep(court_key, &ask.filter, group);
        }
        Ok(())
    }

    // A group from before that still stands for the same nodes and reads.
    fn take(&mut self, board: &Board, court_key: &str, court: &Court, filter: &Filter) -> Option<Box<Group>> {
        let at = self.groups.iter().position(|kept| kept.court == court_key && kept.filter == *filter)?;
        let kept = self.groups.remove(at);
        kept.group.fits(board, court).then_some(kept.group)
    }

    fn keep(&mut self, court: &str, filter: &Filter, group: Box<Group>) {
        self.groups.push(Kept { court: court.to_owned(), filter: filter.clone(), group });
        let mut total: usize = self.groups.iter().map(|kept| kept.group.size()).sum();
        while total > MAX_GROUPED && self.groups.len() > 1 {
            total -= self.groups.remove(0).group.size();
        }
    }
}

/// One task being placed.
struct Work<'a> {
    board: &'a mut Board,
    court: &'a mut Court,
    group: Box<Group>,
    ask: &'a Ask,
    case: Case<'a>,
    // Something new was read: the group is void, what was placed stands.
    outgrown: bool,
}

impl Work<'_> {
    // Nothing if it has to be tried again with another group.
    fn one(&mut self, wanted: &SlotAsk) -> Result<Option<Result<Placement>>> {
        let stays = wanted.stays.as_ref().and_then(|stay| Some((self.board.position(&stay.node)?, stay.min_gain)));
        let own = stays.map(|(at, _)| at);
        let gone = wanted.stays.as_ref().is_none_or(|stay| stay.gone);
        let counted: Vec<usize> = wanted.replaces.iter().filter_map(|node| self.board.position(node)).collect();
        let replaced: Vec<usize> = counted.iter().copied().chain(own).collect();
        let was_current = self.group.is_current(self.board);
        self.discount(&counted, -1);
        self.count_itself(own, -1);
        let ready = self.catch_up(&replaced);
        let found = match &wanted.slot {
            _ if self.outgrown || ready.is_err() => None,
            Slot::Node(node) => {
                let at = self.board.position(node);
                at.and_then(|at| Some((at, self.group.candidate(at)?)))
            }
            Slot::Replica(_) => self.group.best(),
        };
        let before = own.filter(|_| ready.is_ok() && !self.outgrown).and_then(|at| self.group.candidate(at));
        // Where it is, it stays, unless another place is better by more than was asked for.
        let found = match (found, stays, before) {
            (Some((_, best)), Some((at, min_gain)), Some(score)) if best - score <= min_gain => Some((at, score)),
            (found, ..) => found,
        };
        let refusals = match found {
            None if ready.is_ok() && !self.outgrown => Some(self.refusals(&wanted.slot)),
            _ => None,
        };
        self.discount(&counted, 1);
        if found.is_none() || !gone {
            self.count_itself(own, 1);
        }
        ready?;
        let place = match (found, refusals) {
            (Some((at, score)), _) => {
                if gone || own != Some(at) {
                    self.board.alter_at(at, &self.ask.service, true, &self.ask.filter.claim, 1);
                }
                // A failure from here on is the next task's: this one has its place.
                let caught = self.catch_up(&replaced).and_then(|()| self.catch_up(&[at]));
                self.outgrown |= caught.is_err();
                Ok(Placement { at: at as u32, score, before })
            }
            (None, Some(refusals)) => {
                self.catch_up(&replaced)?;
                Err(nowhere(&self.ask.service, &refusals))
            }
            (None, None) => return Ok(None),
        };
        if was_current && !self.outgrown {
            self.group.mark_current(self.board);
        }
        Ok(Some(place))
    }

    fn discount(&mut self, nodes: &[usize], sign: i64) {
        for at in nodes {
            self.board.alter_at(*at, &self.ask.service, true, &Claim::default(), sign);
        }
    }

    // A task that is asked about again, with all that is reserved for it.
    fn count_itself(&mut self, at: Option<usize>, sign: i64) {
        if let Some(at) = at {
            self.board.alter_at(at, &self.ask.service, true, &self.ask.filter.claim, sign);
        }
    }

    fn refusals(&self, slot: &Slot) -> Refusals {
        match slot {
            Slot::Node(node) => {
                let only = self.board.position(node);
                self.group.refusals(self.board, &|at| only == Some(at))
            }
            Slot::Replica(_) => self.group.refusals(self.board, &|_| true),
        }
    }

    fn catch_up(&mut self, nodes: &[usize]) -> Result<()> {
        for at in nodes {
            let Some(seat) = self.board.seat(*at).cloned() else { continue };
            if self.outgrown {
                return Ok(());
            }
            let outcome = self.group.changed(*at, &seat, self.board, self.court, self.case)?;
            self.outgrown = matches!(outcome, Outcome::Outgrown);
        }
        Ok(())
    }
}
