//! All that decisions are made from, in memory, and the changes that decisions are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};

use super::board::{Board, Claim};
use crate::model::bundle::ScriptSet;
use crate::model::clock::{Clock, Timestamp};
use crate::model::event::{AboutImage, What};
use crate::model::id::{NodeId, Slot, TaskId};
use crate::model::name::Name;
use crate::model::native::NativeService;
use crate::model::node::{Node, NodeState};
use crate::model::release::Release;
use crate::model::route::Route;
use crate::model::service::{Revision, Service, ServiceSpec};
use crate::model::task::{Stop, StopReason, Task, TaskState};

/// Nodes, services, revisions, releases, tasks. Cloning copies pointers only, however much there is.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Nodes by id.
    pub nodes: OrdMap<NodeId, Arc<Node>>,
    /// Services by name.
    pub services: OrdMap<Name, Arc<Service>>,
    /// Revisions by service and number.
    pub revisions: OrdMap<(Name, u32), Arc<Revision>>,
    /// The latest release of a service.
    pub releases: OrdMap<Name, Arc<Release>>,
    /// Tasks by id, ended ones included as long as they are kept.
    pub tasks: OrdMap<TaskId, Arc<Task>>,
    /// The same tasks by service.
    by_service: OrdMap<Name, OrdSet<TaskId>>,
    /// Hosted scripts by owner.
    pub scripts: OrdMap<Name, Arc<ScriptSet>>,
    /// Routes that stand for themselves.
    pub routes: OrdMap<Name, Arc<Route>>,
    /// The services that the Swarm runs for this cluster, by name; none while they are not known.
    pub natives: Option<Arc<BTreeMap<String, NativeService>>>,
    /// What is on each node.
    board: Board,
    // Reservations of the revision looked at last: tasks change in runs.
    looked_up: Option<(Name, u32, Claim)>,
}

/// One change of the world.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A new or changed task.
    Task(Arc<Task>),
    /// A task's record goes.
    RemoveTask(TaskId),
    /// A new or changed service.
    Service(Arc<Service>),
    /// A service and its revisions and release go.
    RemoveService(Name),
    /// A new revision.
    Revision(Arc<Revision>),
    /// A revision that nothing needs any more goes.
    RemoveRevision(Name, u32),
    /// A new or changed release.
    Release(Arc<Release>),
    /// New or replaced hosted scripts.
    Scripts(Arc<ScriptSet>),
    /// Hosted scripts go.
    RemoveScripts(Name),
    /// A new or changed route.
    Route(Arc<Route>),
    /// A route goes.
    RemoveRoute(Name),
}

impl Change {
    /// The service that it concerns; `world` is the one before the change.
    pub fn service(&self, world: &World) -> Option<Name> {
        match self {
            Change::Task(task) => Some(task.service.clone()),
            Change::RemoveTask(id) => world.tasks.get(id).map(|task| task.service.clone()),
            Change::Service(service) => Some(service.spec.name.clone()),
            Change::Revision(revision) => Some(revision.service.clone()),
            Change::Release(release) => Some(release.service.clone()),
            Change::RemoveService(name) | Change::RemoveRevision(name, _) => Some(name.clone()),
            Change::Scripts(_) | Change::RemoveScripts(_) | Change::Route(_) | Change::RemoveRoute(_) => None,
        }
    }
}

impl World {
    /// Makes one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Task(task) => self.set_task(task),
            Change::RemoveTask(id) => {
                if let Some(task) = self.tasks.remove(id) {
                    self.seat(&task, -1);
                    if let Some(ids) = self.by_service.get_mut(&task.service) {
                        ids.remove(id);
                    }
                }
            }
            Change::Service(service) => {
                self.services.insert(service.spec.name.clone(), service.clone());
            }
            Change::RemoveService(name) => {
                for id in self.by_service.remove(name).unwrap_or_default() {
                    if let Some(task) = self.tasks.remove(&id) {
                        self.seat(&task, -1);
                    }
                }
                self.services.remove(name);
                self.board.forget(name);
                self.releases.remove(name);
                let numbers: Vec<u32> = self.revisions_of(name).map(|revision| revision.number).collect();
                for number in numbers {
                    self.revisions.remove(&(name.clone(), number));
                }
                self.looked_up = None;
            }
            Change::Revision(revision) => {
                self.revisions.insert((revision.service.clone(), revision.number), revision.clone());
                self.looked_up = None;
            }
            Change::RemoveRevision(name, number) => {
                self.revisions.remove(&(name.clone(), *number));
                self.looked_up = None;
            }
            Change::Release(release) => {
                self.releases.insert(release.service.clone(), release.clone());
            }
            Change::Scripts(set) => {
                self.scripts.insert(set.name.clone(), set.clone());
            }
            Change::RemoveScripts(name) => {
                self.scripts.remove(name);
            }
            Change::Route(route) => {
                self.routes.insert(route.name.clone(), route.clone());
            }
            Change::RemoveRoute(name) => {
                self.routes.remove(name);
            }
        }
    }

    fn set_task(&mut self, task: &Arc<Task>) {
        match self.tasks.insert(task.id, task.clone()) {
            Some(old) => self.seat(&old, -1),
            None => {
                self.by_service.entry(task.service.clone()).or_default().insert(task.id);
            }
        }
        self.seat(task, 1);
    }

    // The same as for any changed task, but that the seat of its node need not be looked for, and it had none before.
    fn place(&mut self, task: &Arc<Task>, at: usize) {
        self.tasks.insert(task.id, task.clone());
        self.look_up(task);
        if let Some((name, _, claim)) = &self.looked_up {
            self.board.alter_at(at, name, task.stop.is_none(), claim, 1);
        }
    }

    // What a task means for the node that it is on.
    fn seat(&mut self, task: &Task, sign: i64) {
        let Some(node) = &task.node else { return };
        if task.state.is_final() {
            return;
        }
        self.look_up(task);
        if let Some((name, _, claim)) = &self.looked_up {
            // What is on its way out still holds its resources, but no longer counts as a neighbour.
            self.board.alter(node, name, task.stop.is_none(), claim, sign);
        }
    }

    // Finds out what a task of its revision reserves, unless that was found for the one before.
    fn look_up(&mut self, task: &Task) {
        let known = self
            .looked_up
            .as_ref()
            .is_some_and(|(name, number, _)| *number == task.revision && name.same(&task.service));
        if !known {
            let revision = self.revisions.get(&(task.service.clone(), task.revision));
            let claim = revision.map(|revision| Claim::of(&revision.spec)).unwrap_or_default();
            self.looked_up = Some((task.service.clone(), task.revision, claim));
        }
    }

    /// New or changed nodes.
    pub fn set_nodes(&mut self, nodes: impl IntoIterator<Item = Arc<Node>>) {
        let nodes: Vec<Arc<Node>> = nodes.into_iter().collect();
        let added: BTreeSet<NodeId> =
            nodes.iter().map(|node| node.id.clone()).filter(|id| !self.nodes.contains_key(id)).collect();
        self.board.set_nodes(nodes.iter().cloned());
        for node in nodes {
            self.nodes.insert(node.id.clone(), node);
        }
        // What was known to be on a node before the node itself was known.
        if !added.is_empty() {
            let on = |task: &&Arc<Task>| task.node.as_ref().is_some_and(|node| added.contains(node));
            let tasks: Vec<Arc<Task>> = self.tasks.values().filter(on).cloned().collect();
            for task in tasks {
                self.seat(&task, 1);
            }
        }
    }

    /// A node that is no more.
    pub fn drop_node(&mut self, id: &NodeId) {
        self.nodes.remove(id);
        self.board.drop_node(id);
    }

    /// Tasks that are other than they were in an earlier world, or gone. What both have costs nothing.
    pub fn tasks_since<'a>(
        &'a self,
        earlier: &'a OrdMap<TaskId, Arc<Task>>,
    ) -> impl Iterator<Item = (TaskId, Option<&'a Arc<Task>>)> {
        earlier.diff(&self.tasks).map(|change| match change {
            DiffItem::Add(id, task) | DiffItem::Update { new: (id, task), .. } => (*id, Some(task)),
            DiffItem::Remove(id, _) => (*id, None),
        })
    }

    /// The name of a task's node; its id where nothing else is known of it.
    pub fn hostname<'a>(&'a self, task: &'a Task) -> &'a str {
        let node = task.node.as_ref();
        node.and_then(|id| self.nodes.get(id)).map_or(node.map_or("", |id| id), |node| &node.hostname)
    }

    /// The description that a task runs.
    pub fn task_spec(&self, id: &TaskId) -> Option<&ServiceSpec> {
        let task = self.tasks.get(id)?;
        self.revision(&task.service, task.revision).map(|revision| &revision.spec)
    }

    /// Whether a task's node is down.
    pub fn is_down(&self, task: &Task) -> bool {
        let node = task.node.as_ref().and_then(|node| self.nodes.get(node));
        node.is_some_and(|node| node.state == NodeState::Down)
    }

    /// What is on each node.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// A service's revisions, oldest first.
    pub fn revisions_of(&self, name: &Name) -> impl Iterator<Item = &Arc<Revision>> {
        self.revisions.range((name.clone(), 0)..=(name.clone(), u32::MAX)).map(|(_, revision)| revision)
    }

    /// The tasks of a service, oldest first.
    pub fn tasks_of<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Arc<Task>> {
        self.by_service.get(name).into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// Whether a set, a service or an open release runs by the scripts of this hash, or could go back to them.
    pub fn uses_bundle(&self, hash: &str) -> bool {
        let is = |bundle: &Option<String>| bundle.as_deref() == Some(hash);
        self.scripts.values().any(|set| set.holds(hash))
            || self.services.values().any(|service| is(&service.bundle))
            || self.revisions.values().any(|revision| is(&revision.bundle))
            || self.releases.values().any(|release| !release.state.is_final() && is(&release.bundle))
    }

    /// A service's revision by number.
    pub fn revision(&self, name: &Name, number: u32) -> Option<&Arc<Revision>> {
        self.revisions.get(&(name.clone(), number))
    }

    /// The release of a service that is still going on.
    pub fn open_release(&self, name: &Name) -> Option<&Arc<Release>> {
        self.releases.get(name).filter(|release| !release.state.is_final())
    }

    /// The revision that a slot is to run now.
    pub fn revision_for(&self, service: &Service, slot: &Slot) -> u32 {
        match self.releases.get(&service.spec.name) {
            // A finished release has moved `active`, a failed one still says which slot is where.
            Some(release)
                if !matches!(
                    release.state,
                    crate::model::release::ReleaseState::Promoted | crate::model::release::ReleaseState::RolledBack
                ) =>
            {
                release.revision_of(slot)
            }
            _ => service.active,
        }
    }
}

/// What was decided: changes that belong together, what to tell about them, and when to look again.
#[derive(Debug, Default)]
pub struct Decision {
    /// To be written down together, then made.
    pub changes: Vec<Change>,
    /// What to tell.
    pub notes: Vec<Note>,
    /// Look at these services again no later than then, even if nothing happens.
    pub wakes: BTreeMap<Name, Timestamp>,
}

/// Something worth an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// What.
    pub what: What,
    /// The service.
    pub service: Option<Name>,
    /// The task, as it is from then on.
    pub task: Option<Arc<Task>>,
    /// The image, where one is concerned.
    pub image: Option<AboutImage>,
    /// Whom it concerns, where it is no task.
    pub subject: String,
    /// In words.
    pub message: String,
}

/// The world while a decision is being made: each change is seen by what is decided after it.
pub struct Draft<'a> {
    /// The world with all changes so far.
    pub world: World,
    /// What was decided so far.
    pub decision: Decision,
    /// Time and randomness.
    pub clock: &'a dyn Clock,
}

impl<'a> Draft<'a> {
    /// Begins with `world` as it is.
    pub fn new(world: &World, clock: &'a dyn Clock) -> Self {
        Draft { world: world.clone(), decision: Decision::default(), clock }
    }

    /// Gives a task that had no node yet its place, whose seat is known.
    pub fn place(&mut self, task: Arc<Task>, at: usize) {
        self.world.place(&task, at);
        self.decision.changes.push(Change::Task(task));
    }

    /// Makes a change.
    pub fn change(&mut self, change: Change) {
        self.world.apply(&change);
        self.decision.changes.push(change);
    }

    /// Tells something about a service.
    pub fn note(&mut self, what: What, service: &Name, message: impl Into<String>) {
        let (subject, message) = (service.to_string(), message.into());
        self.decision.notes.push(Note {
            what,
            service: Some(service.clone()),
            task: None,
            image: None,
            subject,
            message,
        });
    }

    /// Tells something about a task.
    pub fn note_task(&mut self, what: What, task: &Arc<Task>, message: impl Into<String>) {
        let (service, task) = (Some(task.service.clone()), Some(task.clone()));
        self.decision.notes.push(Note {
            what,
            service,
            task,
            image: None,
            subject: String::new(),
            message: message.into(),
        });
    }

    /// Looks at `service` again no later than `at`.
    pub fn wake(&mut self, service: &Name, at: Timestamp) {
        self.decision.wakes.entry(service.clone()).and_modify(|earlier| *earlier = at.min(*earlier)).or_insert(at);
    }

    /// Tells a task to end. One that has not been started ends at once.
    pub fn stop(&mut self, task: &Task, why: StopReason) {
        let mut task = task.clone();
        if task.stop.is_some() || task.state.is_final() {
            return;
        }
        task.stop = Some(Stop { why, at: self.clock.now() });
        if task.state == TaskState::Pending {
            task.state = TaskState::Shutdown;
            task.finished_at = Some(self.clock.now());
        } else if self.world.is_down(&task) {
            // Nobody can tell it now, and nothing waits for it. When the node is back the engine ends what still runs.
            task.state = TaskState::Lost;
            task.finished_at = Some(self.clock.now());
            task.reason = Some("its node is down".into());
        }
        let task = Arc::new(task);
        self.note_task(What::TaskStopping, &task, why.as_str());
        self.change(Change::Task(task));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::ServiceId;

    #[test]
    fn tasks_that_were_known_before_their_node_are_counted() {
        let task: Task = serde_json::from_value(serde_json::json!({
            "id": "01arz3ndektsv4rrffq69g5fav", "service": "web", "service_id": ServiceId::numbered(1), "node": "eu-1",
            "slot": { "replica": 1 }, "revision": 1, "state": "running", "health": "none", "created_at": 0,
        }))
        .unwrap();
        let mut world = World::default();
        world.apply(&Change::Task(Arc::new(task.clone())));
        world.set_nodes([Arc::new(Node::new("eu-1", "eu-1")), Arc::new(Node::new("eu-2", "eu-2"))]);
        let count =
            |world: &World| world.board().seats().map(|seat| world.board().count(seat, "web")).collect::<Vec<u32>>();
        assert_eq!(count(&world), [1, 0]);
        // A change of the node alone counts nothing twice.
        world.set_nodes([Arc::new(Node::new("eu-1", "renamed"))]);
        assert_eq!(count(&world), [1, 0]);
        world.apply(&Change::RemoveTask(task.id));
        assert_eq!(count(&world), [0, 0]);
    }
}
