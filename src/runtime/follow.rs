//! Reads what a service's replicas write, and goes on reading.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::client::{LogEntry, LogsAsk};
use crate::engines::{LogLine, LogQuery};
use crate::model::Result;
use crate::model::id::TaskId;
use crate::scheduler::world::World;

/// How often followed output is looked at.
const FOLLOW: Duration = Duration::from_millis(100);

/// Reads a service's output, and goes on reading.
pub struct Follower {
    /// The service.
    pub name: String,
    /// Who has the output.
    pub engine: Arc<dyn crate::engines::Engine>,
    /// The world as it is published.
    pub world: tokio::sync::watch::Receiver<Arc<World>>,
}

impl Follower {
    /// Sends lines until there are no more, or nobody wants them.
    pub async fn run(mut self, ask: &LogsAsk, sender: &mpsc::Sender<Result<LogEntry>>) -> Result<()> {
        let mut labels = self.tasks(ask);
        let ids: Vec<TaskId> = labels.keys().copied().collect();
        // The past goes up to where the following begins, so that no line falls between the two.
        let mut position = self.engine.log_end(&ids).await?;
        let query = LogQuery { since: ask.since, tail: ask.tail };
        let mut past = self.engine.logs(&ids, query, Some(position.clone())).await?;
        while let Some(lines) = past.recv().await {
            if !send(lines?, &labels, sender).await {
                return Ok(());
            }
        }
        if !ask.follow {
            return Ok(());
        }
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(FOLLOW) => {}
                () = sender.closed() => return Ok(()),
            }
            if self.world.has_changed().is_err() {
                return Ok(());
            }
            let gone = !self.world.borrow_and_update().services.contains_key(self.name.as_str());
            // What has left the world has nothing more to say.
            if !gone {
                labels = self.tasks(ask);
                position.0.retain(|task, _| labels.contains_key(task));
            }
            let ids: Vec<TaskId> = labels.keys().copied().collect();
            let lines = self.engine.follow(&ids, &mut position).await?;
            if !send(lines, &labels, sender).await || gone {
                return Ok(());
            }
        }
    }

    fn tasks(&self, ask: &LogsAsk) -> BTreeMap<TaskId, String> {
        let world = self.world.borrow();
        let Ok(name) = self.name.parse() else { return BTreeMap::new() };
        let wanted = |slot: &crate::model::id::Slot| ask.slot.as_ref().is_none_or(|wanted| *wanted == slot.to_string());
        world.tasks_of(&name).filter(|task| wanted(&task.slot)).map(|task| (task.id, task.label())).collect()
    }
}

async fn send(lines: Vec<LogLine>, labels: &BTreeMap<TaskId, String>, sender: &mpsc::Sender<Result<LogEntry>>) -> bool {
    for line in lines {
        let LogLine { at, task, stream, text } = line;
        let label = labels.get(&task).cloned().unwrap_or_default();
        if sender.send(Ok(LogEntry { at, task: label, id: task.to_string(), stream, text })).await.is_err() {
            return false;
        }
    }
    true
}
