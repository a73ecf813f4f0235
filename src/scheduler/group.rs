//! Candidates, grouped in classes: nodes alike in all that the policies read are judged as one. A task that is placed
//! changes its node's class, and the score of the classes whose counts it changed; another service changes what counts
//! as its own.

macro_rules! done {
    ($outcome:expr) => {
        match $outcome? {
            Outcome::Done(value) => value,
            Outcome::Outgrown => return Ok(Outcome::Outgrown),
        }
    };
}

mod follow;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use smallvec::SmallVec;

use super::board::{Board, Seat};
use super::class::{Case, Class, Outcome, Rank, better};
use super::court::{Column, Court, Key, Local, Plan, Sentence};
use super::lookup::Lookup;
use super::place::{Filter, Refusals};
use super::reads::{NodeField, Scope, Whose};
use super::tree::{NONE, Tree};
use super::view::View;
use crate::model::Result;
use crate::model::name::Name;

/// All candidates, in order.
pub struct Group {
    plan: Rc<Plan>,
    nodes_stamp: u64,
    // The board as it was last taken over whole.
    board_stamp: u64,
    // Seats that may have been otherwise on that board.
    unsure: Vec<u32>,
    // Which tasks it is for at present, and whose counts are "own".
    kind: u32,
    own: Name,
    // The board's numbers of the services that are counted, where they have some yet.
    numbers: SmallVec<[Option<u32>; 2]>,
    filter: Filter,
    fixed: Rc<Column>,
    blocks_of: Rc<Column>,
    // For each shared read the value that a node counts under, and the tasks under each value.
    shared_of: Vec<Rc<Column>>,
    shared_counts: Vec<Vec<u32>>,
    // For each shared read and each of its values, the blocks that see it.
    blocks_with: Vec<Vec<SmallVec<[u32; 2]>>>,
    classes_of_block: Vec<SmallVec<[u32; 2]>>,
    states: Vec<State>,
    classes: Vec<Class>,
    ranks: Vec<Rank>,
    free: Vec<u32>,
    index: Lookup<Key, u32>,
    tree: Tree,
}

struct State {
    stamp: u64,
    // Refused for what the node is; another node makes another group.
    barred: bool,
    class: u32,
    counts: SmallVec<[u32; 2]>,
    free_cpu: u32,
    free_memory: u64,
}

impl Group {
    /// Groups all nodes of the board for tasks like `case`.
    pub fn build(board: &Board, court: &mut Court, filter: Filter, case: Case) -> Result<Outcome<Self>> {
        let plan = court.plan().clone();
        let fixed = court.column(board, &plan.fixed);
        let mut fields: Vec<NodeField> = plan.shared.iter().filter_map(|shared| shared.by.clone()).collect();
        fields.dedup();
        let blocks_of = court.column(board, &fields);
        let shared_of: Vec<Rc<Column>> =
            plan.shared.iter().map(|shared| court.column(board, shared.by.as_slice())).collect();
        let mut group = Group {
            nodes_stamp: board.nodes_stamp(),
            board_stamp: board.stamp(),
            unsure: Vec::new(),
            kind: case.kind,
            own: case.task.service.clone(),
            numbers: SmallVec::new(),
            filter,
            shared_counts: shared_of.iter().map(|column| vec![0; column.kinds as usize]).collect(),
            blocks_with: shared_of.iter().map(|column| vec![SmallVec::new(); column.kinds as usize]).collect(),
            classes_of_block: vec![SmallVec::new(); blocks_of.kinds as usize],
            states: Vec::with_capacity(board.len()),
            classes: Vec::new(),
            ranks: Vec::new(),
            free: Vec::new(),
            index: Lookup::default(),
            tree: Tree::default(),
            plan,
            fixed,
            blocks_of,
            shared_of,
        };
        group.find_numbers(board);
        group.count(board);
        for (at, seat) in board.seats().enumerate() {
            if group.admits(at, board, seat) {
                let key = group.key(at);
                group.enter(at, key);
            }
        }
        done!(group.judge_all(board, court, case));
        Ok(Outcome::Done(group))
    }

    /// How many nodes it groups.
    pub fn size(&self) -> usize {
        self.states.len()
    }

    /// The best candidate: its place on the board and the first policy's score.
    pub fn best(&self) -> Option<(usize, f64)> {
        let rank = &self.ranks[self.tree.best()? as usize];
        Some((rank.first as usize, rank.score))
    }

    /// The first policy's score for one node, if it is a candidate and not refused.
    pub fn candidate(&self, at: usize) -> Option<f64> {
        let rank = self.ranks.get(self.states[at].class as usize)?;
        rank.stands.then_some(rank.score)
    }

    /// Why there is no candidate, counted.
    pub fn refusals(&self, board: &Board, among: &dyn Fn(usize) -> bool) -> Refusals {
        let mut refusals = Refusals::default();
        for (at, seat) in board.seats().enumerate().filter(|(at, _)| among(*at)) {
            if let Some(reason) = self.filter.refuses(board, seat) {
                refusals.add(reason);
            } else if let Some(Class { sentence: Some(Sentence::Refused(why)), .. }) =
                self.classes.get(self.states[at].class as usize)
            {
                refusals.add(why.to_string());
            }
        }
        refusals
    }

    /// The node at `at` has changed: what is on it, or what it has left.
    pub fn changed(
        &mut self,
        at: usize,
        seat: &Seat,
        board: &Board,
        court: &mut Court,
        case: Case,
    ) -> Result<Outcome<()>> {
        let blocks = self.take_over(at, board, seat);
        let class = self.states[at].class;
        if class != NONE && self.classes[class as usize].sentence.is_none() {
            done!(self.judge(class, board, court, case));
            self.replay(class);
        }
        for block in blocks {
            for number in 0..self.classes_of_block[block as usize].len() {
                let class = self.classes_of_block[block as usize][number];
                done!(self.judge(class, board, court, case));
                self.replay(class);
            }
        }
        Ok(Outcome::Done(()))
    }

    /// Cores and memory that nothing has reserved on a node.
    pub fn room(&self, at: usize) -> (f64, f64) {
        (f64::from(self.states[at].free_cpu) / 1000.0, self.states[at].free_memory as f64)
    }

    /// A count as it is seen from a node; only of what the plan names.
    pub fn counted(&self, at: usize, of: &Whose, scope: &Scope) -> Option<u32> {
        let service = self.plan.service_index(of)?;
        let by = match scope {
            Scope::Node => return self.states[at].counts.get(service).copied(),
            Scope::Same(field) => Some(field),
            Scope::All => None,
        };
        let read = self.plan.shared_index(service, by)?;
        let value = self.shared_of[read].of_node[at];
        self.shared_counts[read].get(value as usize).copied()
    }

    // Counts, so that classes are judged with all of them known.
    fn count(&mut self, board: &Board) {
        // Blocks are numbered as they are first seen.
        let mut seen = 0;
        for (at, seat) in board.seats().enumerate() {
            let counts: SmallVec<[u32; 2]> =
                (0..self.plan.services.len()).map(|number| self.count_on(seat, number)).collect();
            for (number, shared) in self.plan.shared.iter().enumerate() {
                let value = self.shared_of[number].of_node[at] as usize;
                self.shared_counts[number][value] += counts[shared.service];
            }
            let block = self.blocks_of.of_node[at];
            if block == seen {
                seen += 1;
                for (number, column) in self.shared_of.iter().enumerate() {
                    self.blocks_with[number][column.of_node[at] as usize].push(block);
                }
            }
            self.states.push(State {
                stamp: seat.stamp,
                barred: self.filter.bars(&seat.node),
                class: NONE,
                counts,
                free_cpu: seat.free_cpu().0,
                free_memory: seat.free_memory().0,
            });
        }
    }

    // Judges every class; classes that stand next to each other are often alike but for their block.
    fn judge_all(&mut self, board: &Board, court: &mut Court, case: Case) -> Result<Outcome<()>> {
        let mut last: Option<u32> = None;
        for class in 0..self.classes.len() as u32 {
            if self.classes[class as usize].count == 0 {
                continue;
            }
            match last.filter(|last| !court.fickle && self.are_judged_alike(*last, class)) {
                Some(last) => {
                    let Rank { score, stands, .. } = self.ranks[last as usize];
                    let sentence = self.classes[last as usize].sentence.clone();
                    self.classes[class as usize].sentence = sentence;
                    let rank = &mut self.ranks[class as usize];
                    (rank.score, rank.stands) = (score, stands);
                }
                None => done!(self.judge(class, board, court, case)),
            }
            last = Some(class);
        }
        let (ranks, classes) = (&self.ranks, &self.classes);
        let present = (0..ranks.len() as u32).filter(|class| ranks[*class as usize].stands);
        let mut tree = Tree::with_capacity(ranks.len() + ranks.len() / 8);
        tree.fill(present, |a, b| better(ranks, classes, a, b));
        self.tree = tree;
        Ok(Outcome::Done(()))
    }

    // Whether two classes differ in nothing that is judged, but stand in different blocks.
    fn are_judged_alike(&self, a: u32, b: u32) -> bool {
        let (x, y) = (self.ranks[a as usize].first as usize, self.ranks[b as usize].first as usize);
        let mut shared = self.shared_of.iter().zip(&self.shared_counts);
        self.classes[a as usize].key[1..] == self.classes[b as usize].key[1..]
            && shared.all(|(column, counts)| counts[column.of_node[x] as usize] == counts[column.of_node[y] as usize])
    }

    // Takes over a node's counts and room; tells the blocks whose counts have changed by it. Its class may have to be
    // judged yet.
    fn take_over(&mut self, at: usize, board: &Board, seat: &Seat) -> SmallVec<[u32; 4]> {
        let plan = self.plan.clone();
        let mut blocks: SmallVec<[u32; 4]> = SmallVec::new();
        // A service that has just got its first task has got its number with it.
        if self.numbers.contains(&None) {
            self.find_numbers(board);
        }
        for number in 0..plan.services.len() {
            let (old, new) = (self.states[at].counts[number], self.count_on(seat, number));
            if old == new {
                continue;
            }
            self.states[at].counts[number] = new;
            for (read, _) in plan.shared.iter().enumerate().filter(|(_, shared)| shared.service == number) {
                let value = self.shared_of[read].of_node[at] as usize;
                let total = &mut self.shared_counts[read][value];
                *total = (*total + new).saturating_sub(old);
                for block in &self.blocks_with[read][value] {
                    if !blocks.contains(block) {
                        blocks.push(*block);
                    }
                }
            }
        }
        let state = &mut self.states[at];
        state.stamp = seat.stamp;
        state.free_cpu = seat.free_cpu().0;
        state.free_memory = seat.free_memory().0;
        let old = state.class;
        if !self.admits(at, board, seat) {
            self.leave(at);
        } else if old == NONE || !plan.local.is_empty() {
            let key = self.key(at);
            let stays = old != NONE && self.classes[old as usize].key == key;
            if !stays && !self.moves_alone(old, &key) {
                self.leave(at);
                self.enter(at, key);
            }
        }
        blocks
    }

    // Whether a node is a candidate, before any policy is asked.
    fn admits(&self, at: usize, board: &Board, seat: &Seat) -> bool {
        !self.states[at].barred && !self.filter.is_full(board, seat)
    }

    fn find_numbers(&mut self, board: &Board) {
        let number = |of: &Whose| match of {
            // All of them together have none; it is never asked for.
            Whose::All => Some(0),
            Whose::Own => board.number(self.own.as_str()),
            Whose::Named(name) => board.number(name.as_str()),
        };
        self.numbers = self.plan.services.iter().map(number).collect();
    }

    // Tasks on a node that the plan's count looks at.
    fn count_on(&self, seat: &Seat, service: usize) -> u32 {
        match self.plan.services[service] {
            Whose::All => seat.total,
            Whose::Own | Whose::Named(_) => self.numbers[service].map_or(0, |number| seat.count(number)),
        }
    }

    // A class of one goes where its member goes, if nobody is there yet: its number and its place in the tree stay.
    fn moves_alone(&mut self, class: u32, key: &Key) -> bool {
        if class == NONE || self.classes[class as usize].count != 1 || self.index.get(key).is_some() {
            return false;
        }
        let moved = &mut self.classes[class as usize];
        self.index.remove(&moved.key);
        moved.key.clone_from(key);
        moved.sentence = None;
        self.index.insert(key.clone(), class);
        true
    }

    // What tells classes apart: the block, what is fixed, what is on the node.
    fn key(&self, at: usize) -> Key {
        let mut key = Key::new();
        key.push(u64::from(self.blocks_of.of_node[at]));
        key.push(u64::from(self.fixed.of_node[at]));
        let state = &self.states[at];
        key.extend(self.plan.local.iter().map(|local| match local {
            Local::FreeCpu => u64::from(state.free_cpu),
            Local::FreeMemory => state.free_memory,
            Local::Count(service) => u64::from(state.counts[*service]),
        }));
        key
    }

    // What a class is judged by: the task, what is fixed and local, and the counts that its block stands for.
    fn judged_by(&self, class: u32, case: Case) -> Key {
        let mut key = Key::new();
        key.push(u64::from(case.kind));
        key.extend_from_slice(&self.classes[class as usize].key[1..]);
        let at = self.ranks[class as usize].first as usize;
        let shared = self.shared_of.iter().zip(&self.shared_counts);
        key.extend(shared.map(|(column, counts)| u64::from(counts[column.of_node[at] as usize])));
        key
    }

    fn enter(&mut self, at: usize, key: Key) {
        let class = match self.index.get(&key) {
            Some(class) => *class,
            None => self.new_class(key),
        };
        self.states[at].class = class;
        let entered = &mut self.classes[class as usize];
        let rank = &mut self.ranks[class as usize];
        entered.count += 1;
        let at = at as u32;
        if entered.count == 1 {
            rank.first = at;
        } else {
            entered.others.push(Reverse(rank.first.max(at)));
            if at < rank.first {
                rank.first = at;
            } else {
                return;
            }
        }
        if entered.sentence.is_some() {
            self.replay(class);
        }
    }

    fn new_class(&mut self, key: Key) -> u32 {
        let block = key[0] as usize;
        let place = self.classes_of_block[block].len() as u32;
        let new = Class { key: key.clone(), sentence: None, others: BinaryHeap::new(), count: 0, place };
        let rank = Rank { score: 0.0, first: NONE, stands: false };
        let class = match self.free.pop() {
            Some(class) => {
                self.classes[class as usize] = new;
                self.ranks[class as usize] = rank;
                class
            }
            None => {
                self.classes.push(new);
                self.ranks.push(rank);
                self.classes.len() as u32 - 1
            }
        };
        self.index.insert(key, class);
        self.classes_of_block[block].push(class);
        class
    }

    fn leave(&mut self, at: usize) {
        let class = std::mem::replace(&mut self.states[at].class, NONE);
        if class == NONE {
            return;
        }
        let left = &mut self.classes[class as usize];
        left.count -= 1;
        if left.count == 0 {
            let key = std::mem::take(&mut left.key);
            left.others = BinaryHeap::new();
            left.sentence = None;
            self.index.remove(&key);
            let place = left.place as usize;
            let block = &mut self.classes_of_block[key[0] as usize];
            block.swap_remove(place);
            if let Some(moved) = block.get(place) {
                self.classes[*moved as usize].place = place as u32;
            }
            self.ranks[class as usize].stands = false;
            self.free.push(class);
            self.replay(class);
        } else if self.ranks[class as usize].first == at as u32 {
            let states = &self.states;
            // One that came twice, or has left, is not the next.
            let next = loop {
                match left.others.pop() {
                    Some(Reverse(member)) if states[member as usize].class != class => {}
                    next => break next,
                }
            };
            self.ranks[class as usize].first = next.map_or(NONE, |Reverse(member)| member);
            self.replay(class);
        } else if left.others.len() > 4 * left.count as usize + 64 {
            let (states, first) = (&self.states, self.ranks[class as usize].first);
            let mut members: Vec<u32> = left.others.drain().map(|Reverse(member)| member).collect();
            members.sort_unstable();
            members.dedup();
            members.retain(|member| *member != first && states[*member as usize].class == class);
            left.others = members.into_iter().map(Reverse).collect();
        }
    }

    fn replay(&mut self, class: u32) {
        let (ranks, classes) = (&self.ranks, &self.classes);
        self.tree.update(class, ranks[class as usize].stands, |a, b| better(ranks, classes, a, b));
    }

    fn judge(&mut self, class: u32, board: &Board, court: &mut Court, case: Case) -> Result<Outcome<()>> {
        let key = self.judged_by(class, case);
        let at = self.ranks[class as usize].first as usize;
        let Some(sentence) = court.sentence(&key, &View::new(self, board, at, case.task))? else {
            return Ok(Outcome::Outgrown);
        };
        self.pronounce(class, sentence);
        Ok(Outcome::Done(()))
    }

    fn pronounce(&mut self, class: u32, sentence: Sentence) {
        let rank = &mut self.ranks[class as usize];
        match &sentence {
            Sentence::Scores(score, _) => {
                rank.stands = true;
                rank.score = *score;
            }
            Sentence::Refused(_) => rank.stands = false,
        }
        self.classes[class as usize].sentence = Some(sentence);
    }
}
