//! What a placement policy may read, one by one: verdicts are kept by these, so that nodes alike in all that was read
//! are judged once.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::id::Slot;
use crate::model::name::Name;
use crate::model::node::Node;
use crate::model::{Error, Kind, Result};

/// One thing that was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Read {
    /// A field of the task.
    Task(TaskField),
    /// A field of the node.
    Node(NodeField),
    /// A number of tasks.
    Count(CountOf),
}

/// A field of the task to be placed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TaskField {
    /// `web.3`.
    Name,
    /// Its service's name.
    Service,
    /// The place that it fills.
    Slot,
    /// Its revision.
    Revision,
    /// One label of its service.
    Label(Arc<str>),
    /// All labels of its service.
    Labels,
}

/// A field of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeField {
    /// Its identity.
    Id,
    /// The host's name.
    Name,
    /// `manager` or `worker`.
    Role,
    /// `active`, `pause` or `drain`.
    Availability,
    /// Its address.
    Address,
    /// Its operating system.
    Os,
    /// Its processor.
    Arch,
    /// Its cores.
    Cpu,
    /// Its memory in bytes.
    Memory,
    /// Cores that nothing has reserved.
    FreeCpu,
    /// Bytes of memory that nothing has reserved.
    FreeMemory,
    /// Tasks meant to run on it.
    Tasks,
    /// One of the labels that its owner gave.
    Label(Arc<str>),
    /// All of them.
    Labels,
    /// One of the engine's own labels.
    EngineLabel(Arc<str>),
    /// All of them.
    EngineLabels,
}

/// A count of tasks meant to run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CountOf {
    /// Whose.
    pub of: Whose,
    /// On which nodes.
    pub scope: Scope,
}

/// The tasks that a count looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Whose {
    /// All.
    All,
    /// Those of the task's own service. Only for who has read which service that is.
    Own,
    /// Those of this service.
    Named(Name),
}

/// The nodes that a count looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The one being judged.
    Node,
    /// All that have the same value in this field as the one being judged.
    Same(NodeField),
    /// All.
    All,
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing there.
    Nil,
    /// A text.
    Text(Arc<str>),
    /// A number.
    Number(f64),
    /// A table of texts.
    Map(BTreeMap<String, String>),
}

impl Value {
    fn text(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl NodeField {
    /// The field of this name; labels are asked for one by one elsewhere.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "id" => NodeField::Id,
            "name" => NodeField::Name,
            "role" => NodeField::Role,
            "availability" => NodeField::Availability,
            "address" => NodeField::Address,
            "os" => NodeField::Os,
            "arch" => NodeField::Arch,
            "cpu" => NodeField::Cpu,
            "memory" => NodeField::Memory,
            "free_cpu" => NodeField::FreeCpu,
            "free_memory" => NodeField::FreeMemory,
            "tasks" => NodeField::Tasks,
            _ => return None,
        })
    }

    /// The field that a path names to group by: `labels.zone`, `role`.
    pub fn path(path: &str) -> Result<Self> {
        if let Some(label) = path.strip_prefix("labels.") {
            return Ok(NodeField::Label(label.into()));
        }
        if let Some(label) = path.strip_prefix("engine_labels.") {
            return Ok(NodeField::EngineLabel(label.into()));
        }
        if let ("id" | "name" | "role" | "os" | "arch", Some(field)) = (path, NodeField::named(path)) {
            return Ok(field);
        }
        let known = ["id", "name", "role", "os", "arch", "labels.NAME", "engine_labels.NAME"];
        let hint = crate::model::suggest::hint(path, known);
        Err(Error::new(Kind::Script, "node", format!("has no field \"{path:.60}\" to group by{hint}")))
    }

    /// Whether it changes with what is placed on the node.
    pub fn is_load(&self) -> bool {
        matches!(self, NodeField::FreeCpu | NodeField::FreeMemory | NodeField::Tasks)
    }

    /// Its value, for fields that do not change with what is placed.
    pub fn of(&self, node: &Node) -> Value {
        let label = |map: &BTreeMap<String, String>, key: &str| map.get(key).map_or(Value::Nil, |v| Value::text(v));
        match self {
            NodeField::Id => Value::Text(node.id.clone()),
            NodeField::Name => Value::text(&node.hostname),
            NodeField::Role => Value::text(node.role.as_str()),
            NodeField::Availability => Value::text(node.availability.as_str()),
            NodeField::Address => node.address.map_or(Value::Nil, |address| Value::text(&address.to_string())),
            NodeField::Os => Value::text(&node.os),
            NodeField::Arch => Value::text(&node.arch),
            NodeField::Cpu => Value::Number(node.cpu.cores()),
            NodeField::Memory => Value::Number(node.memory.0 as f64),
            NodeField::Label(key) => label(&node.labels, key),
            NodeField::Labels => Value::Map(node.labels.clone()),
            NodeField::EngineLabel(key) => label(&node.engine_labels, key),
            NodeField::EngineLabels => Value::Map(node.engine_labels.clone()),
            NodeField::FreeCpu | NodeField::FreeMemory | NodeField::Tasks => Value::Nil,
        }
    }
}

/// The task to be placed, as policies see it.
#[derive(Debug, Clone)]
pub struct TaskFacts {
    /// Its service.
    pub service: Name,
    /// Its place.
    pub slot: Slot,
    /// Its revision.
    pub revision: u32,
    /// Its service's labels.
    pub labels: Arc<BTreeMap<String, String>>,
}

impl TaskFacts {
    /// `web.3`.
    pub fn label(&self) -> String {
        format!("{}.{}", self.service, self.slot)
    }
}

impl TaskField {
    /// Its value.
    pub fn of(&self, task: &TaskFacts) -> Value {
        match self {
            TaskField::Name => Value::text(&task.label()),
            TaskField::Service => Value::text(task.service.as_str()),
            TaskField::Slot => Value::text(&task.slot.to_string()),
            TaskField::Revision => Value::Number(f64::from(task.revision)),
            TaskField::Label(key) => task.labels.get(&**key).map_or(Value::Nil, |value| Value::text(value)),
            TaskField::Labels => Value::Map(BTreeMap::clone(&task.labels)),
        }
    }
}

/// What a judge sees: the task, one node, and what runs where.
pub trait Sight {
    /// One value.
    fn read(&self, read: &Read) -> Value;
    /// The task, for reports.
    fn task(&self) -> &TaskFacts;
    /// The node's name, for reports.
    fn node_name(&self) -> String;
}

/// What a policy says of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It may go there; higher wins.
    Score(f64),
    /// It may not, and why.
    Refused(Arc<str>),
}

/// A placement policy: a script, or written in Rust for tests and measurements.
pub trait Judge {
    /// Its name, for what is refused.
    fn name(&self) -> &str;
    /// All that its verdicts have depended on so far; it only grows.
    fn reads(&self) -> &[Read];
    /// Its verdict on the node in sight. It depends on `reads` alone.
    fn judge(&mut self, sight: &dyn Sight) -> Result<Verdict>;
}
