//! What a judge sees of a group: one node of it, and the task.

use super::board::Board;
use super::group::Group;
use super::reads::{CountOf, NodeField, Read, Scope, Sight, TaskFacts, Value, Whose};
use crate::model::node::Node;

/// One node of a group, and a task.
pub struct View<'a> {
    group: &'a Group,
    board: &'a Board,
    at: usize,
    task: &'a TaskFacts,
}

impl<'a> View<'a> {
    /// The node at `at`.
    pub fn new(group: &'a Group, board: &'a Board, at: usize, task: &'a TaskFacts) -> Self {
        View { group, board, at, task }
    }

    fn node(&self) -> Option<&Node> {
        self.board.seat(self.at).map(|seat| &*seat.node)
    }

    // Judges are only asked for what they have named, and all that they have named is counted.
    fn count(&self, of: &Whose, scope: &Scope) -> Value {
        self.group.counted(self.at, of, scope).map_or(Value::Nil, |count| Value::Number(f64::from(count)))
    }
}

impl Sight for View<'_> {
    fn read(&self, read: &Read) -> Value {
        match read {
            Read::Task(field) => field.of(self.task),
            Read::Node(NodeField::FreeCpu) => Value::Number(self.group.room(self.at).0),
            Read::Node(NodeField::FreeMemory) => Value::Number(self.group.room(self.at).1),
            Read::Node(NodeField::Tasks) => self.count(&Whose::All, &Scope::Node),
            Read::Node(field) => self.node().map_or(Value::Nil, |node| field.of(node)),
            Read::Count(CountOf { of, scope }) => self.count(of, scope),
        }
    }

    fn task(&self) -> &TaskFacts {
        self.task
    }

    fn node_name(&self) -> String {
        self.node().map(|node| node.hostname.clone()).unwrap_or_default()
    }
}
