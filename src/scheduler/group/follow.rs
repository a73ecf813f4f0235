//! How a group follows the board, from one task to the next and from one pass to the next.

use std::rc::Rc;

use super::{Board, Case, Court, Group, Outcome, Whose};
use crate::model::Result;

impl Group {
    /// Whether it still stands for the board's nodes and for what the court reads.
    pub fn fits(&self, board: &Board, court: &Court) -> bool {
        self.nodes_stamp == board.nodes_stamp() && court.knows(board) && Rc::ptr_eq(&self.plan, court.plan())
    }

    /// Whether it has taken over all that is on the board.
    pub fn is_current(&self, board: &Board) -> bool {
        // After a pass of which nothing came (a plan) the board is the one that it began with.
        self.board_stamp == board.stamp() && self.unsure.is_empty()
    }

    /// All that is on the board has been taken over, node by node.
    pub fn mark_current(&mut self, board: &Board) {
        self.board_stamp = board.stamp();
    }

    /// A pass is over in which the seats `changed` did, from a board with the stamp `began`. What has followed that pass is
    /// as if it had seen the board of its beginning, but for those. What sat it out stays with the board that it has seen:
    /// more has changed since then.
    pub fn begin_again(&mut self, board: &Board, began: u64, changed: &[u32]) {
        let Some(since) = board.changed_since(self.board_stamp) else { return };
        if since.count() <= changed.len() {
            self.board_stamp = began;
            self.unsure.extend_from_slice(changed);
            self.unsure.sort_unstable();
            self.unsure.dedup();
        }
    }

    /// Takes over what has changed on the board, and turns to tasks like `case`; `on` names the nodes that have tasks of
    /// their service.
    pub fn turn_to(
        &mut self,
        board: &Board,
        court: &mut Court,
        case: Case,
        on: impl Iterator<Item = usize>,
    ) -> Result<Outcome<()>> {
        let other = !self.own.same(&case.task.service) && self.own != case.task.service;
        let own = self.plan.services.iter().position(|of| *of == Whose::Own).filter(|_| other);
        let all_new = self.kind != case.kind;
        self.kind = case.kind;
        self.own = case.task.service.clone();
        self.find_numbers(board);
        // What was not judged yet is judged once all counts are known.
        let follow = !self.is_current(board);
        if follow || own.is_some() {
            let mut stale: Vec<usize> = match own {
                Some(own) => {
                    let with = self.states.iter().enumerate().filter(|(_, state)| state.counts[own] != 0);
                    with.map(|(at, _)| at).chain(on).collect()
                }
                None => Vec::new(),
            };
            if follow {
                let unsure = std::mem::take(&mut self.unsure);
                match board.changed_since(self.board_stamp) {
                    Some(changed) => stale.extend(changed.chain(unsure).map(|at| at as usize)),
                    None => {
                        let seats = board.seats().enumerate();
                        stale.extend(seats.filter(|(at, seat)| self.states[*at].stamp != seat.stamp).map(|(at, _)| at));
                    }
                }
            }
            for at in stale {
                let Some(seat) = board.seat(at) else { continue };
                match all_new {
                    // Everything is judged below anyway.
                    true => drop(self.take_over(at, board, seat)),
                    false => done!(self.changed(at, seat, board, court, case)),
                }
            }
        }
        self.mark_current(board);
        if all_new { self.judge_all(board, court, case) } else { Ok(Outcome::Done(())) }
    }
}
