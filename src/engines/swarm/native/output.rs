//! What the tasks of a native service write: each task is asked for its own, so that lines can be told apart and put in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::Task;
use bollard::query_parameters::ListTasksOptions;
use tokio::sync::mpsc;

use crate::engines::docker::{logs, trouble};
use crate::engines::native::NativeLine;
use crate::engines::swarm::nodes::Nodes;
use crate::engines::{LogLine, LogPosition, LogQuery};
use crate::model::id::{TaskId, sha256_hex};
use crate::model::{Kind, Result};

/// How often followed output is looked at, and how often tasks are listed anew meanwhile.
const FOLLOW: Duration = Duration::from_millis(100);
const LIST: Duration = Duration::from_secs(2);

/// Lines of a service's tasks, in portions; with `follow` also of tasks to come, until nobody listens.
pub struct Output {
    /// A manager.
    pub docker: Docker,
    /// What its nodes are called.
    pub nodes: Arc<Nodes>,
    /// The service's id.
    pub service: String,
    /// What its tasks are called by: `web` makes `web.1`.
    pub name: String,
    /// Only the task of this slot.
    pub slot: Option<String>,
}

// Docker's id and what the task is called, by a number of ours.
type Tasks = BTreeMap<TaskId, (String, String)>;

impl Output {
    /// Begins.
    pub fn read(self, query: LogQuery, follow: bool) -> mpsc::Receiver<Result<Vec<NativeLine>>> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = self.run(query, follow, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        receiver
    }

    async fn run(&self, query: LogQuery, follow: bool, sender: &mpsc::Sender<Result<Vec<NativeLine>>>) -> Result<()> {
        let mut tasks = self.tasks().await?;
        // The past goes up to where the following begins, so that no line falls between the two.
        let mut position = logs::ends(self.sources(&tasks)).await?;
        let mut past = logs::read(self.sources(&tasks), query, Some(position.clone()));
        while let Some(lines) = past.recv().await {
            if sender.send(Ok(named(&tasks, lines?))).await.is_err() {
                return Ok(());
            }
        }
        let followed = logs::Followed::default();
        let (mut listed, mut gone) = (Instant::now(), false);
        if !follow {
            return Ok(());
        }
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(FOLLOW) => {}
                () = sender.closed() => return Ok(()),
            }
            if listed.elapsed() >= LIST {
                listed = Instant::now();
                match self.tasks().await {
                    Ok(now) => {
                        tasks = now;
                        position.0.retain(|task, _| tasks.contains_key(task));
                    }
                    Err(error) if error.kind == Kind::NotFound => gone = true,
                    // A Swarm that changes its leader, say: those that are known write on.
                    Err(_) => {}
                }
            }
            let lines = self.take(&followed, &tasks, &mut position);
            if !lines.is_empty() && sender.send(Ok(named(&tasks, lines))).await.is_err() || gone {
                return Ok(());
            }
        }
    }

    fn take(&self, followed: &logs::Followed, tasks: &Tasks, position: &mut LogPosition) -> Vec<LogLine> {
        followed.take(self.sources(tasks), position)
    }

    fn sources(&self, tasks: &Tasks) -> Vec<logs::Source> {
        let of = |id: &String| logs::Of::Task(id.clone());
        tasks
            .iter()
            .map(|(task, (id, _))| logs::Source { task: *task, docker: self.docker.clone(), of: of(id) })
            .collect()
    }

    async fn tasks(&self) -> Result<Tasks> {
        let filters = HashMap::from([("service".to_owned(), vec![self.service.clone()])]);
        let listed = self.docker.list_tasks(Some(ListTasksOptions { filters: Some(filters) })).await;
        let listed = listed.map_err(|error| trouble::error("Swarm", "list its tasks", &error))?;
        let one = |task: Task| {
            let id = task.id?;
            let place = match task.slot.filter(|slot| *slot > 0) {
                Some(slot) => slot.to_string(),
                None => self.nodes.hostname(task.node_id.as_deref()?)?,
            };
            let is_asked = self.slot.as_ref().is_none_or(|slot| *slot == place);
            is_asked.then(|| (number(&id), (id, format!("{}.{place}", self.name))))
        };
        Ok(listed.into_iter().filter_map(one).collect())
    }
}

// A number for a Swarm's id, which has a few bits too many to be one itself.
fn number(id: &str) -> TaskId {
    TaskId::numbered(u128::from_str_radix(&sha256_hex(id.as_bytes())[..32], 16).unwrap_or_default())
}

fn named(tasks: &Tasks, lines: Vec<LogLine>) -> Vec<NativeLine> {
    let name = |line: LogLine| {
        let (id, task) = tasks.get(&line.task).cloned().unwrap_or_default();
        NativeLine { at: line.at, task, id, stream: line.stream, text: line.text }
    };
    lines.into_iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_a_number() {
        let ids = ["zzzzzzzzzzzzzzzzzzzzzzzzz", "f5lxx1zz5pnorynqglhzmsp34", "0"];
        let numbers: std::collections::BTreeSet<TaskId> = ids.iter().map(|id| number(id)).collect();
        assert_eq!((numbers.len(), number(ids[0])), (3, number(ids[0])));
    }
}
