//! Classes of candidates, and which of two is better.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::court::{Key, Sentence};
use super::reads::TaskFacts;

/// A task, and a number that is the same for tasks alike in all that is read of them.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// The task.
    pub task: &'a TaskFacts,
    /// As the court counts them.
    pub kind: u32,
}

/// How a step went.
pub enum Outcome<T> {
    /// As asked.
    Done(T),
    /// Something was read for the first time: what was grouped by what was known before is void.
    Outgrown,
}

/// Nodes alike in all that is read.
pub struct Class {
    /// Block, fixed values, local values.
    pub key: Key,
    /// What the court says of them; none yet for a new one.
    pub sentence: Option<Sentence>,
    /// All members but the first one; nodes that have left are passed by.
    pub others: BinaryHeap<Reverse<u32>>,
    /// How many there are.
    pub count: u32,
    /// Its place among the classes of its block.
    pub place: u32,
}

/// What decides between classes, close together.
#[derive(Clone, Copy)]
pub struct Rank {
    /// The first judge's score.
    pub score: f64,
    /// The member with the smallest node id.
    pub first: u32,
    /// Has members, and they are not refused.
    pub stands: bool,
}

/// Higher scores first, then the smaller node id.
pub fn better(ranks: &[Rank], classes: &[Class], a: u32, b: u32) -> bool {
    let (x, y) = (&ranks[a as usize], &ranks[b as usize]);
    match x.score.total_cmp(&y.score) {
        std::cmp::Ordering::Greater => return true,
        std::cmp::Ordering::Less => return false,
        std::cmp::Ordering::Equal => {}
    }
    if let (Some(Sentence::Scores(_, Some(p))), Some(Sentence::Scores(_, Some(q)))) =
        (&classes[a as usize].sentence, &classes[b as usize].sentence)
    {
        for (p, q) in p.iter().zip(q.iter()) {
            match p.total_cmp(q) {
                std::cmp::Ordering::Greater => return true,
                std::cmp::Ordering::Less => return false,
                std::cmp::Ordering::Equal => {}
            }
        }
    }
    x.first < y.first
}
