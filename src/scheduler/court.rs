//! Policies together with all verdicts that they have given: the same reads give the same verdict, so it is asked for
//! once. One hit in many is asked for again; a difference ends the remembering for good.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::board::Board;
use super::lookup::Lookup;
use super::reads::{CountOf, Judge, NodeField, Read, Scope, Sight, TaskFacts, TaskField, Value, Verdict, Whose};
use crate::model::Result;

/// Most verdicts that are remembered.
const MAX_MEMO: usize = 300_000;
/// One remembered verdict in so many is asked for again.
const SAMPLE: u64 = 512;

/// Questions after which it is looked at whether remembering pays.
const WINDOW: u32 = 16_384;
/// Where it does not: windows without it, before it is tried again.
const REST: u32 = 15;

/// Values that were read, as numbers that are equal when they are.
pub type Key = SmallVec<[u64; 6]>;

/// What all judges together say of a candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Sentence {
    /// The first judge's score, which decides, and those of the others, which break ties.
    Scores(f64, Option<Arc<[f64]>>),
    /// Refused, by whom and why.
    Refused(Arc<str>),
}

/// What the judges read, sorted by what it depends on.
#[derive(Debug, Default)]
pub struct Plan {
    /// Of the task.
    pub task: Vec<TaskField>,
    /// Of the node alone.
    pub fixed: Vec<NodeField>,
    /// What changes with the node's own tasks.
    pub local: Vec<Local>,
    /// What changes with the tasks of several nodes.
    pub shared: Vec<Shared>,
    /// Whose tasks are counted.
    pub services: Vec<Whose>,
}

/// A read that changes with what is placed on the node itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Local {
    /// Cores that nothing has reserved.
    FreeCpu,
    /// Memory that nothing has reserved.
    FreeMemory,
    /// Tasks of `services[n]` on the node.
    Count(usize),
}

/// A count over several nodes: of `services[n]`, on those with the same value in a field, or on all.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    /// Index into `services`.
    pub service: usize,
    /// The field; none: all nodes.
    pub by: Option<NodeField>,
}

impl Plan {
    fn new(judges: &[Box<dyn Judge>]) -> Self {
        let mut plan = Plan::default();
        for read in judges.iter().flat_map(|judge| judge.reads()) {
            match read {
                Read::Task(field) => push(&mut plan.task, field.clone()),
                Read::Node(NodeField::FreeCpu) => push(&mut plan.local, Local::FreeCpu),
                Read::Node(NodeField::FreeMemory) => push(&mut plan.local, Local::FreeMemory),
                Read::Node(NodeField::Tasks) => {
                    let service = plan.service(&Whose::All);
                    push(&mut plan.local, Local::Count(service));
                }
                Read::Node(field) => push(&mut plan.fixed, field.clone()),
                Read::Count(CountOf { of, scope }) => {
                    let service = plan.service(of);
                    match scope {
                        Scope::Node => push(&mut plan.local, Local::Count(service)),
                        Scope::Same(field) => push(&mut plan.shared, Shared { service, by: Some(field.clone()) }),
                        Scope::All => push(&mut plan.shared, Shared { service, by: None }),
                    }
                }
            }
        }
        plan
    }

    fn service(&mut self, service: &Whose) -> usize {
        let found = self.services.iter().position(|known| known == service);
        found.unwrap_or_else(|| {
            self.services.push(service.clone());
            self.services.len() - 1
        })
    }

    /// Where a service is among those counted.
    pub fn service_index(&self, service: &Whose) -> Option<usize> {
        self.services.iter().position(|known| known == service)
    }

    /// Where a count over several nodes is.
    pub fn shared_index(&self, service: usize, by: Option<&NodeField>) -> Option<usize> {
        self.shared.iter().position(|shared| shared.service == service && shared.by.as_ref() == by)
    }
}

fn push<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// The values of one or several fields on every node, as numbers that are equal when the values are.
#[derive(Debug)]
pub struct Column {
    /// By the node's place on the board.
    pub of_node: Vec<u32>,
    /// How many different ones there are.
    pub kinds: u32,
}

/// Judges, and all that they have said.
pub struct Court {
    judges: Vec<Box<dyn Judge>>,
    plan: Rc<Plan>,
    read: usize,
    memo: Lookup<Key, Sentence>,
    task_kinds: Lookup<Vec<Text>, u32>,
    columns: Lookup<Vec<NodeField>, Rc<Column>>,
    columns_of: u64,
    asked: u64,
    // Of the last questions, how many were remembered; where few are, remembering costs more than it gives.
    recent: (u32, u32),
    resting: u32,
    /// Set once a remembered verdict turned out to differ from a new one.
    pub fickle: bool,
}

// A value as part of a key.
type Text = Option<String>;

fn text(value: &Value) -> Text {
    match value {
        Value::Nil => None,
        Value::Text(text) => Some(text.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Map(map) => Some(map.iter().map(|(key, value)| format!("{key:?}={value:?},")).collect()),
    }
}

impl Court {
    /// A court that has not said anything yet.
    pub fn new(judges: Vec<Box<dyn Judge>>) -> Self {
        let mut court = Court {
            judges,
            plan: Rc::default(),
            read: 0,
            memo: Lookup::default(),
            task_kinds: Lookup::default(),
            columns: Lookup::default(),
            columns_of: 0,
            asked: 0,
            recent: (0, 0),
            resting: 0,
            fickle: false,
        };
        court.renew_plan();
        court
    }

    /// What is read by now; another one each time that something new was.
    pub fn plan(&self) -> &Rc<Plan> {
        &self.plan
    }

    // True if something was read for the first time: all that was kept by what was read before is void.
    fn renew_plan(&mut self) -> bool {
        let read = self.judges.iter().map(|judge| judge.reads().len()).sum();
        if read == self.read {
            return false;
        }
        self.read = read;
        self.plan = Rc::new(Plan::new(&self.judges));
        self.memo.clear();
        self.task_kinds.clear();
        true
    }

    /// Whether the numbers of values stand for this board's nodes.
    pub fn knows(&self, board: &Board) -> bool {
        self.columns_of == board.nodes_stamp()
    }

    /// Whether it matters which of its service's tasks it is.
    pub fn reads_slot(&self) -> bool {
        self.plan.task.iter().any(|field| matches!(field, TaskField::Name | TaskField::Slot))
    }

    /// A number for the task's values that are read.
    pub fn task_kind(&mut self, task: &TaskFacts) -> u32 {
        if self.plan.task.is_empty() {
            return 0;
        }
        let values: Vec<Text> = self.plan.task.iter().map(|field| text(&field.of(task))).collect();
        // The verdicts kept by these numbers go with them.
        if self.task_kinds.len() >= MAX_MEMO && self.task_kinds.get(&values).is_none() {
            self.task_kinds.clear();
            self.memo.clear();
            // Groups know kinds by these numbers: they are told by another plan.
            self.plan = Rc::new(Plan::new(&self.judges));
        }
        let next = u32::try_from(self.task_kinds.len()).unwrap_or(u32::MAX);
        *self.task_kinds.or_insert(values, next)
    }

    /// The values of `fields` on every node of the board.
    pub fn column(&mut self, board: &Board, fields: &[NodeField]) -> Rc<Column> {
        if self.columns_of != board.nodes_stamp() {
            // Numbers of values start anew, and verdicts are kept by them.
            self.columns.clear();
            self.memo.clear();
            self.columns_of = board.nodes_stamp();
        }
        if let Some(column) = self.columns.get(fields) {
            return column.clone();
        }
        let mut kinds: Lookup<Vec<Text>, u32> = Lookup::default();
        let of_node = board
            .seats()
            .map(|seat| {
                let values = fields.iter().map(|field| text(&field.of(&seat.node))).collect();
                let next = u32::try_from(kinds.len()).unwrap_or(u32::MAX);
                *kinds.or_insert(values, next)
            })
            .collect();
        let column = Rc::new(Column { of_node, kinds: u32::try_from(kinds.len()).unwrap_or(u32::MAX) });
        self.columns.insert(fields.to_vec(), column.clone());
        column
    }

    /// The sentence for what `key` stands for; `sight` shows it, should it have to be asked for. Nothing when something
    /// was read that the plan did not know: keys have to be made anew.
    pub fn sentence(&mut self, key: &[u64], sight: &dyn Sight) -> Result<Option<Sentence>> {
        self.recent.0 += 1;
        if self.recent.0 == WINDOW {
            self.resting = match self.resting {
                0 if self.recent.1 < WINDOW / 8 => REST,
                resting => resting.saturating_sub(1),
            };
            self.recent = (0, 0);
        }
        let remembers = self.resting == 0 && !self.fickle;
        if remembers && let Some(known) = self.memo.get(key) {
            self.asked += 1;
            self.recent.1 += 1;
            if !self.asked.is_multiple_of(SAMPLE) {
                return Ok(Some(known.clone()));
            }
            let known = known.clone();
            let again = self.ask(sight)?;
            self.fickle |= again != known;
            return Ok(if self.renew_plan() { None } else { Some(again) });
        }
        let sentence = self.ask(sight)?;
        if self.renew_plan() {
            return Ok(None);
        }
        if self.memo.len() >= MAX_MEMO {
            self.memo.clear();
        }
        if remembers && !self.fickle {
            self.memo.insert(Key::from_slice(key), sentence.clone());
        }
        Ok(Some(sentence))
    }

    /// Asks all judges.
    pub fn ask(&mut self, sight: &dyn Sight) -> Result<Sentence> {
        let (mut first, mut others) = (0.0, Vec::new());
        for (number, judge) in self.judges.iter_mut().enumerate() {
            match judge.judge(sight)? {
                Verdict::Score(score) if number == 0 => first = score,
                Verdict::Score(score) => others.push(score),
                Verdict::Refused(why) => {
                    return Ok(Sentence::Refused(format!("policy \"{}\": {why}", judge.name()).into()));
                }
            }
        }
        Ok(Sentence::Scores(first, (!others.is_empty()).then(|| others.into())))
    }
}
