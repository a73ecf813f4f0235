//! Services that an engine schedules itself, beside the tasks that it is given: to be shown, taken over and given back.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{LogQuery, StartRequest};
use crate::model::Result;
use crate::model::native::{NativeService, PublishMode};

/// A native service as a description of Neap's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Described {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The description, without a name.
    pub service: Map<String, Value>,
    /// What would not be as it is now, and why.
    pub notes: Vec<String>,
    /// What Neap cannot run, and why.
    pub refused: Vec<String>,
    /// Configs that it reads, with what they hold.
    pub configs: BTreeMap<String, Vec<u8>>,
}

/// A native service that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whose it is: this cluster's, in the state that this tells; none: nobody's any more once it is made.
    pub mark: Option<String>,
    /// What its tasks are made of. Task, slot, node and revision of it mean nothing here.
    pub request: StartRequest,
    /// Where its ports are published; not at all for now.
    pub ports: Option<PublishMode>,
    /// Whether all tasks are replaced at once where a change replaces them.
    pub at_once: bool,
    /// The versions of its secrets and its configs, and what tells those of this service from others': their names are made
    /// of it.
    pub versions: (BTreeMap<String, u64>, BTreeMap<String, u64>),
    /// See `versions`.
    pub tag: String,
}

/// A line that a task of a native service wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NativeLine {
    /// Nanoseconds since 1970-01-01 UTC.
    pub at: i64,
    /// `web.1`.
    pub task: String,
    /// The task's id, as its engine has it.
    pub id: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line.
    pub text: String,
}

/// Those of an engine that has some.
#[async_trait]
pub trait Natives: Send + Sync {
    /// All that are not this cluster's tasks, by name; or the one of this name or id.
    async fn list(&self, only: Option<&str>) -> Result<Vec<NativeService>>;

    /// One as a description.
    async fn describe(&self, name: &str) -> Result<Described>;

    /// Makes one, or changes the one that this made before.
    async fn place(&self, wanted: Wanted) -> Result<()>;

    /// What tasks of one wrote (of one slot, where that is asked for), in portions, oldest first; with `follow` it goes on.
    async fn logs(
        &self,
        name: &str,
        slot: Option<String>,
        query: LogQuery,
        follow: bool,
    ) -> Result<mpsc::Receiver<Result<Vec<NativeLine>>>>;

    /// Removes one, by its whole id; one that is not there is no error.
    async fn remove(&self, id: &str) -> Result<()>;

    /// Removes what `place` has made, of this cluster's or given back; what somebody else made under that name stays.
    async fn withdraw(&self, name: &str) -> Result<()>;
}
