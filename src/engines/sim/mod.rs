//! The sim engine: nodes and tasks in memory, on a clock that the simulation holds. What replicas do is said by programs;
//! what takes time takes it by the clock, a little more or less by its seed.

mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, watch};

pub use program::{Answer, Program, Programs};

use super::hosts::{ProbeAsk, Probed};
use super::{Engine, ExecResult, LogLine, LogPosition, LogQuery, Observed, ObservedState, Sight, StartRequest};
use crate::model::clock::{Clock, Timestamp};
use crate::model::id::{NodeId, TaskId};
use crate::model::node::Node;
use crate::model::registry::Login;
use crate::model::service::ServiceSpec;
use crate::model::stats::Stats;
use crate::model::task::{Exit, Health};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// The first port that replicas get on each node.
const FIRST_PORT: u16 = 20_000;

/// Runs tasks in memory.
pub struct SimEngine {
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    // The agenda has another beginning.
    stirred: Notify,
    nodes: watch::Sender<Arc<Vec<Node>>>,
}

struct Inner {
    nodes: BTreeMap<NodeId, Node>,
    programs: Programs,
    tasks: BTreeMap<TaskId, SimTask>,
    addresses: BTreeMap<String, TaskId>,
    last_port: BTreeMap<NodeId, u16>,
    // What will happen, in order.
    agenda: BTreeMap<(Timestamp, u64), (TaskId, Step)>,
    sequence: u64,
    observer: Option<mpsc::UnboundedSender<Sight>>,
}

struct SimTask {
    label: String,
    node: NodeId,
    spec: Arc<ServiceSpec>,
    state: ObservedState,
    lines: Vec<LogLine>,
}

enum Step {
    Run,
    End(Exit),
}

impl SimTask {
    fn is_over(&self) -> bool {
        matches!(self.state, ObservedState::Ended { .. } | ObservedState::Rejected { .. })
    }
}

impl SimEngine {
    /// With these nodes. `drive` makes things happen.
    pub fn new(clock: Arc<dyn Clock>, nodes: Vec<Node>, programs: Programs) -> Arc<Self> {
        let known = watch::Sender::new(Arc::new(nodes.clone()));
        let inner = Inner {
            nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect(),
            programs,
            tasks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            last_port: BTreeMap::new(),
            agenda: BTreeMap::new(),
            sequence: 0,
            observer: None,
        };
        Arc::new(SimEngine { clock, inner: Mutex::new(inner), stirred: Notify::new(), nodes: known })
    }

    /// Lets happen what is on the agenda when its time comes, for ever.
    pub async fn drive(self: Arc<Self>) {
        loop {
            let next = self.inner().happen(self.clock.now());
            match next {
                None => self.stirred.notified().await,
                Some(at) => {
                    let wait = at.since(self.clock.now()).std();
                    tokio::select! {
                        biased;
                        () = self.stirred.notified() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// Says how a program behaves from now on, its running replicas included.
    pub fn set_program(&self, name: &str, program: Program) {
        self.inner().programs.set(name, program);
    }

    /// Ends a running task, `web.3`, as if by itself.
    pub fn kill(&self, label: &str, exit: Exit) -> Result<()> {
        let mut inner = self.inner();
        let runs = |task: &SimTask| task.label == label && matches!(task.state, ObservedState::Running { .. });
        let found = inner.tasks.iter().find(|(_, task)| runs(task)).map(|(id, _)| *id);
        let id = found.ok_or_else(|| Error::not_found(format!("task \"{label:.80}\"")).help("it has to run"))?;
        inner.plan(self.clock.now(), id, Step::End(exit));
        drop(inner);
        self.stirred.notify_one();
        Ok(())
    }

    /// What is answered at `address:port` to a request for `path`; nothing where nobody listens.
    pub fn answer(&self, address: &str, path: &str) -> Option<Answer> {
        let inner = self.inner();
        inner.answer(inner.tasks.get(inner.addresses.get(address)?)?, path, self.clock.now())
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // A period, half as long or half as long again.
    fn about(&self, period: Duration) -> Duration {
        let millis = period.millis();
        Duration::from_millis(millis / 2 + if millis == 0 { 0 } else { self.clock.random() % (millis + 1) })
    }
}

impl Inner {
    fn answer(&self, task: &SimTask, path: &str, now: Timestamp) -> Option<Answer> {
        let program = self.programs.of(&task.spec);
        match task.state {
            ObservedState::Running { started_at, .. } if started_at.after(program.ready) <= now => {
                Some(program.answer(path))
            }
            _ => None,
        }
    }

    // All that is due; when there is something to do next.
    fn happen(&mut self, now: Timestamp) -> Option<Timestamp> {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let (id, step) = entry.remove();
            match step {
                Step::Run => self.run(id, now),
                Step::End(exit) => self.end(id, exit, now),
            }
        }
        None
    }

    fn plan(&mut self, at: Timestamp, task: TaskId, step: Step) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), (task, step));
    }

    fn run(&mut self, id: TaskId, now: Timestamp) {
        let Some(task) = self.tasks.get(&id) else { return };
        if task.state != ObservedState::Starting {
            return;
        }
        let (node, spec) = (task.node.clone(), task.spec.clone());
        let program = self.programs.of(&spec);
        let mut ports = BTreeMap::new();
        for name in spec.ports.keys() {
            let Some(address) = self.address(&node, id) else {
                for address in ports.values() {
                    self.addresses.remove(address);
                }
                let reason = format!("no port is free on node \"{node}\"");
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.state = ObservedState::Rejected { reason };
                }
                self.tell(id);
                return;
            };
            ports.insert(name.clone(), address);
        }
        let lines = program.output.iter().enumerate().map(|(number, text)| LogLine {
            at: i64::try_from(now.0).unwrap_or(i64::MAX).saturating_mul(1_000_000).saturating_add(number as i64),
            task: id,
            stream: "stdout".into(),
            text: text.clone(),
        });
        let lines = lines.collect();
        if let Some(period) = program.exit_after {
            self.plan(now.after(period), id, Step::End(Exit::Code(program.exit_code)));
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.lines = lines;
            task.state = ObservedState::Running { pid: None, ports, started_at: now, health: Health::None, said: None };
        }
        self.tell(id);
    }

    fn end(&mut self, id: TaskId, exit: Exit, now: Timestamp) {
        let Some(task) = self.tasks.get_mut(&id).filter(|task| !task.is_over()) else { return };
        let ended = ObservedState::Ended { exit, finished_at: now };
        if let ObservedState::Running { ports, .. } = std::mem::replace(&mut task.state, ended) {
            for address in ports.values() {
                self.addresses.remove(address);
            }
        }
        self.tell(id);
    }

    // A port of its own on the node, if one is free.
    fn address(&mut self, node: &NodeId, id: TaskId) -> Option<String> {
        let host = self.nodes.get(node).and_then(|node| node.address);
        let host = host.map_or_else(|| node.to_string(), |address| address.to_string());
        let last = self.last_port.entry(node.clone()).or_insert(FIRST_PORT - 1);
        for _ in FIRST_PORT..=u16::MAX {
            *last = last.checked_add(1).unwrap_or(FIRST_PORT);
            let address = format!("{host}:{last}");
            if !self.addresses.contains_key(&address) {
                self.addresses.insert(address.clone(), id);
                return Some(address);
            }
        }
        None
    }

    fn tell(&self, id: TaskId) {
        if let (Some(observer), Some(task)) = (&self.observer, self.tasks.get(&id)) {
            let observed = Observed { task: id, state: task.state.clone(), warnings: Vec::new() };
            let _ = observer.send(Sight::Task(observed));
        }
    }
}

#[async_trait]
impl Engine for SimEngine {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn accepts(&self, _: &mut ServiceSpec) -> Result<()> {
        Ok(())
    }

    fn nodes(&self) -> watch::Receiver<Arc<Vec<Node>>> {
        self.nodes.subscribe()
    }

    async fn start(&self, request: StartRequest) -> Result<()> {
        let id = request.task;
        let mut inner = self.inner();
        if inner.tasks.contains_key(&id) {
            inner.tell(id);
            return Ok(());
        }
        let program = inner.programs.of(&request.spec);
        let state = match program.reject.clone() {
            Some(reason) => ObservedState::Rejected { reason },
            None => {
                inner.plan(self.clock.now().after(self.about(program.start)), id, Step::Run);
                ObservedState::Starting
            }
        };
        let label = format!("{}.{}", request.service, request.slot);
        inner.tasks.insert(id, SimTask { label, node: request.node, spec: request.spec, state, lines: Vec::new() });
        inner.tell(id);
        drop(inner);
        self.stirred.notify_one();
        Ok(())
    }

    async fn stop(&self, task: &TaskId, grace: Duration) -> Result<bool> {
        let mut inner = self.inner();
        let Some(known) = inner.tasks.get(task) else { return Ok(false) };
        if known.is_over() {
            inner.tell(*task);
            return Ok(true);
        }
        let program = inner.programs.of(&known.spec);
        // 15 is TERM, 9 is KILL.
        let (after, signal) = if program.stop > grace { (grace, 9) } else { (program.stop, 15) };
        inner.plan(self.clock.now().after(after), *task, Step::End(Exit::Signal(signal)));
        drop(inner);
        self.stirred.notify_one();
        Ok(true)
    }

    async fn remove(&self, task: &TaskId) -> Result<()> {
        let mut inner = self.inner();
        if inner.tasks.get(task).is_some_and(|task| !task.is_over()) {
            return Err(Error::new(Kind::Conflict, format!("task {task}"), "still runs"));
        }
        inner.tasks.remove(task);
        Ok(())
    }

    async fn prune(&self, keep: &BTreeSet<TaskId>) -> Result<()> {
        self.inner().tasks.retain(|id, task| keep.contains(id) || !task.is_over());
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        let inner = self.inner();
        let seen =
            |(id, task): (&TaskId, &SimTask)| Observed { task: *id, state: task.state.clone(), warnings: Vec::new() };
        Ok(inner.tasks.iter().map(seen).collect())
    }

    fn observe(&self) -> mpsc::UnboundedReceiver<Sight> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner().observer = Some(sender);
        receiver
    }

    async fn log_end(&self, tasks: &[TaskId]) -> Result<LogPosition> {
        let inner = self.inner();
        let ends = tasks.iter().filter_map(|id| Some((*id, (0, inner.tasks.get(id)?.lines.len() as u64))));
        Ok(LogPosition(ends.collect()))
    }

    async fn logs(
        &self,
        tasks: &[TaskId],
        query: LogQuery,
        until: Option<LogPosition>,
    ) -> Result<mpsc::Receiver<Result<Vec<LogLine>>>> {
        let mut lines = self.lines(tasks, &LogPosition::default(), until.as_ref());
        lines.retain(|line| query.since.is_none_or(|since| line.at >= since));
        if let Some(tail) = query.tail {
            lines.drain(..lines.len().saturating_sub(tail));
        }
        let (sender, receiver) = mpsc::channel(1);
        // There is room for one.
        let _ = sender.try_send(Ok(lines));
        Ok(receiver)
    }

    async fn follow(&self, tasks: &[TaskId], position: &mut LogPosition) -> Result<Vec<LogLine>> {
        let lines = self.lines(tasks, position, None);
        position.0.extend(self.log_end(tasks).await?.0);
        Ok(lines)
    }

    async fn stats(&self, _: &str, _: &[TaskId]) -> Result<BTreeMap<TaskId, Stats>> {
        Err(Error::new(Kind::Unsupported, "statistics", "what is simulated uses nothing"))
    }

    async fn verify_login(&self, _: &Login) -> Result<()> {
        Ok(())
    }

    async fn probe(&self, ask: ProbeAsk) -> Result<Probed> {
        let path = ask.path.as_deref();
        let inner = self.inner();
        let answer =
            inner.tasks.get(&ask.task).and_then(|task| inner.answer(task, path.unwrap_or("/"), self.clock.now()));
        Ok(match (answer, path) {
            (Some(_), None) | (Some(Answer { status: 200..400, .. }), _) => Ok(()),
            (Some(Answer { status, body }), _) => Err(format!("status {status}: {body}")),
            (None, _) => Err("connection refused".into()),
        })
    }

    async fn exec(&self, task: &TaskId, command: &[String], _: Duration) -> Result<ExecResult> {
        let inner = self.inner();
        let known = inner.tasks.get(task).filter(|task| matches!(task.state, ObservedState::Running { .. }));
        let known = known.ok_or_else(|| Error::new(Kind::Unavailable, format!("task {task}"), "does not run"))?;
        let code = i32::from(!inner.programs.of(&known.spec).healthy);
        Ok(ExecResult { code, output: format!("{} ends with {code}\n", command.join(" ")) })
    }
}

impl SimEngine {
    // Lines between two positions, by time.
    fn lines(&self, tasks: &[TaskId], from: &LogPosition, until: Option<&LogPosition>) -> Vec<LogLine> {
        let inner = self.inner();
        let place = |position: &LogPosition, id: &TaskId| position.0.get(id).map(|(_, line)| *line as usize);
        let mut lines = Vec::new();
        for id in tasks {
            let Some(task) = inner.tasks.get(id) else { continue };
            let begin = place(from, id).unwrap_or_default().min(task.lines.len());
            let end = until.map_or(task.lines.len(), |until| place(until, id).unwrap_or_default());
            lines.extend_from_slice(&task.lines[begin..end.clamp(begin, task.lines.len())]);
        }
        lines.sort();
        lines
    }
}
