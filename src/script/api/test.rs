//! `test`: a test of scripts on a cluster in memory, whose clock jumps from one thing that happens to the next.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use mlua::{Function, Lua, Table, Value};
use serde::{Deserialize, Deserializer};
use tokio::sync::mpsc;

use super::Reach;
use super::time::duration;
use crate::client::Cluster;
use crate::engines::sim::{Program, Programs, SimEngine};
use crate::model::clock::Timestamp;
use crate::model::event::{Event, What};
use crate::model::name::check_loose;
use crate::model::node::{Availability, Node, Role};
use crate::model::task::Exit;
use crate::model::units::{Bytes, Cpu};
use crate::model::{Error, Kind, Result, strict};
use crate::script::value::{from_timed, raise, strict as strict_table, to_json};

/// Most nodes of a cluster in memory.
const MAX_NODES: usize = 100_000;
/// When a simulation begins where nothing is said: 2026-01-01T00:00:00Z, in milliseconds.
const BEGIN: Timestamp = Timestamp(1_767_225_600_000);

/// The cluster of a test, as its table describes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Setup {
    nodes: Nodes,
    programs: BTreeMap<String, Program>,
    starts: Option<String>,
    /// What decides all randomness, unless whoever runs the test says otherwise.
    pub seed: Option<u64>,
}

#[derive(Debug, Clone)]
struct Nodes(Vec<NodeSetup>);

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct NodeSetup {
    name: String,
    count: Option<u32>,
    cpu: Cpu,
    memory: Bytes,
    labels: BTreeMap<String, String>,
    engine_labels: BTreeMap<String, String>,
    role: Role,
    availability: Availability,
    os: String,
    arch: String,
}

impl Default for NodeSetup {
    fn default() -> Self {
        NodeSetup {
            name: "n".into(),
            count: None,
            cpu: Cpu(4000),
            memory: Bytes(8 << 30),
            labels: BTreeMap::new(),
            engine_labels: BTreeMap::new(),
            role: Role::Worker,
            availability: Availability::Active,
            os: "linux".into(),
            arch: "x86_64".into(),
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Nodes(vec![NodeSetup { count: Some(1), ..NodeSetup::default() }])
    }
}

impl<'de> Deserialize<'de> for Nodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error as _;
        let given = serde_json::Value::deserialize(deserializer)?;
        if let Some(count) = given.as_u64() {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            return Ok(Nodes(vec![NodeSetup { count: Some(count), ..NodeSetup::default() }]));
        }
        let serde_json::Value::Array(list) = given else {
            return Err(D::Error::custom("expected a number of nodes, or a list of tables"));
        };
        let read = |(number, node): (usize, &serde_json::Value)| {
            strict::read("node", node).map_err(|error| D::Error::custom(format!("[{}]: {}", number + 1, error.message)))
        };
        Ok(Nodes(list.iter().enumerate().map(read).collect::<std::result::Result<_, _>>()?))
    }
}

impl Setup {
    // Bounds and spellings; what it costs does not grow with the number of nodes.
    fn check(&self) -> Result<()> {
        let total: usize = self.nodes.0.iter().map(|node| node.count.unwrap_or(1) as usize).sum();
        if total == 0 || total > MAX_NODES {
            return Err(Error::invalid("nodes", format!("{total} is not between 1 and {MAX_NODES}")));
        }
        for node in &self.nodes.0 {
            check_loose("node", &node.name)?;
        }
        self.begin().map(drop)
    }

    /// The nodes, each with an address of its own.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        self.check()?;
        let invalid = |why: String| Error::invalid("nodes", why);
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        for setup in &self.nodes.0 {
            for number in 1..=setup.count.unwrap_or(1) {
                let name = match setup.count {
                    Some(_) => format!("{}{number}", setup.name),
                    None => setup.name.clone(),
                };
                let [a, b, c, d] = (0x0A00_0001 + nodes.len() as u32).to_be_bytes();
                let node = Node {
                    address: Some(std::net::Ipv4Addr::new(a, b, c, d).into()),
                    role: setup.role,
                    availability: setup.availability,
                    os: setup.os.clone(),
                    arch: setup.arch.clone(),
                    cpu: setup.cpu,
                    memory: setup.memory,
                    labels: setup.labels.clone(),
                    engine_labels: setup.engine_labels.clone(),
                    ..Node::new(&name, &name)
                };
                if nodes.insert(name.clone(), node).is_some() {
                    let why = format!("two of them are called \"{name}\"; give each a name, or a count to each name");
                    return Err(invalid(why));
                }
            }
        }
        Ok(nodes.into_values().collect())
    }

    /// What replicas do.
    pub fn programs(&self) -> Programs {
        let mut programs = Programs::default();
        for (name, program) in &self.programs {
            programs.set(name, program.clone());
        }
        programs
    }

    /// The moment at which it begins.
    pub fn begin(&self) -> Result<Timestamp> {
        let Some(text) = &self.starts else { return Ok(BEGIN) };
        let wrong = |why: String| Error::invalid("starts", format!("\"{text:.60}\" {why}"));
        let moment: jiff::Timestamp =
            text.parse().map_err(|error: jiff::Error| wrong(format!("is no moment: {error}")))?;
        let millis = u64::try_from(moment.as_millisecond()).map_err(|_| wrong("lies before 1970".into()))?;
        Ok(Timestamp(millis))
    }
}

/// A cluster in memory that was started for a test.
#[derive(Clone)]
pub struct Stage {
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// What runs its tasks.
    pub engine: Arc<SimEngine>,
    /// Its clock and network.
    pub reach: Reach,
    /// All that has happened so far.
    pub history: Rc<History>,
    /// What decides all randomness.
    pub seed: u64,
}

/// All that has happened in a simulation.
pub struct History {
    seen: RefCell<Vec<Event>>,
    more: RefCell<mpsc::Receiver<Result<Event>>>,
}

impl History {
    /// What comes from `events`.
    pub fn new(events: mpsc::Receiver<Result<Event>>) -> Self {
        History { seen: RefCell::default(), more: RefCell::new(events) }
    }

    /// All of it, up to now.
    pub fn events(&self) -> std::cell::Ref<'_, Vec<Event>> {
        let mut more = self.more.borrow_mut();
        let mut seen = self.seen.borrow_mut();
        while let Ok(Ok(event)) = more.try_recv() {
            seen.push(event);
        }
        drop(seen);
        self.seen.borrow()
    }
}

/// A test that a file has registered.
pub struct Case {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub line: u32,
    /// Its cluster.
    pub setup: Setup,
    /// What it does.
    pub run: Function,
}

/// The tests of a file, in order.
#[derive(Default)]
pub struct Registered {
    /// Whole ones.
    pub cases: Vec<Case>,
    // Names that were said, and where, and nothing after them yet.
    bare: Vec<(String, u32)>,
}

impl Registered {
    /// An error where a test has a name, and nothing that it does.
    pub fn whole(&self) -> Result<()> {
        let Some((name, line)) = self.bare.first() else { return Ok(()) };
        let message = format!("in line {line} has nothing that it does");
        Err(Error::new(Kind::Script, format!("test \"{name:.80}\""), message)
            .help(format!("test(\"{name:.80}\", function(t) ... end)")))
    }
}

/// They, while the file is read.
pub type Cases = Rc<RefCell<Registered>>;

/// Sets `test`. Before the VM is sealed.
pub fn install(lua: &Lua, cases: &Cases) -> mlua::Result<()> {
    let cases = cases.clone();
    let register = lua.create_function(move |lua, (name, body): (String, Value)| {
        let line = super::position(lua).1;
        let add = {
            let (cases, name) = (cases.clone(), name.clone());
            move |setup: Setup, run: Function| {
                let mut registered = cases.borrow_mut();
                let cases = &mut registered.cases;
                if let Some(first) = cases.iter().find(|case| case.name == name) {
                    let message = format!("is there twice; the first stands in line {}", first.line);
                    return Err(raise(Error::new(Kind::Script, format!("test \"{name}\""), message)));
                }
                cases.push(Case { name: name.clone(), line, setup, run });
                Ok(())
            }
        };
        match body {
            Value::Function(run) => {
                add(Setup::default(), run)?;
                Ok(Value::Nil)
            }
            // `test("name", { ... })` is the same as `test "name" { ... }`.
            Value::Table(table) => {
                let (setup, run) = read(&name, &table).map_err(raise)?;
                add(setup, run)?;
                Ok(Value::Nil)
            }
            Value::Nil => {
                cases.borrow_mut().bare.push((name.clone(), line));
                let cases = cases.clone();
                let register = lua.create_function(move |_, table: Table| {
                    let (setup, run) = read(&name, &table).map_err(raise)?;
                    cases.borrow_mut().bare.retain(|(bare, at)| (bare, at) != (&name, &line));
                    add(setup, run)
                })?;
                Ok(Value::Function(register))
            }
            other => {
                let message = format!("expected a function or a table, got a {}", other.type_name());
                Err(raise(Error::new(Kind::Script, format!("test \"{name:.80}\""), message)))
            }
        }
    })?;
    lua.globals().set("test", register)
}

fn read(name: &str, table: &Table) -> Result<(Setup, Function)> {
    let subject = format!("test \"{name:.80}\"");
    let broken = |error: mlua::Error| Error::new(Kind::Script, subject.clone(), error.to_string());
    let mut rest = serde_json::Map::new();
    let mut run = None;
    for pair in table.pairs::<String, Value>() {
        match pair.map_err(broken)? {
            (key, Value::Function(function)) if key == "run" => run = Some(function),
            (key, value) => {
                rest.insert(key, to_json(&value).map_err(|error| error.about(subject.clone()))?);
            }
        }
    }
    let missing = || Error::new(Kind::Script, subject.clone(), "run is missing").help("run = function(t) ... end");
    let script = |error: Error| Error { kind: Kind::Script, ..error };
    let setup: Setup = strict::read(&subject, &serde_json::Value::Object(rest)).map_err(script)?;
    // Mistakes are found where they stand, not when the test is run.
    setup.check().map_err(|error| script(error.about(subject.clone())))?;
    Ok((setup, run.ok_or_else(missing)?))
}

impl Stage {
    /// What the test is given.
    pub fn table(&self, lua: &Lua, name: &str) -> mlua::Result<Table> {
        let table = lua.create_table()?;
        table.raw_set("name", name)?;
        table.raw_set("seed", self.seed as f64)?;
        table.raw_set("clock", self.clock_table(lua)?)?;
        table.raw_set("cluster", self.cluster_table(lua)?)?;
        strict_table(lua, "t", &table, &["name", "seed", "clock", "cluster"])?;
        Ok(table)
    }

    fn clock_table(&self, lua: &Lua) -> mlua::Result<Table> {
        let table = lua.create_table()?;
        let clock = self.reach.clock.clone();
        table.raw_set("now", lua.create_function(move |_, _: Value| Ok(clock.wall().0 as f64 / 1000.0))?)?;
        let advance = lua.create_async_function(|_, (_, period): (Value, Value)| async move {
            tokio::time::sleep(duration(&period)?.std()).await;
            // What is due at its end happens as well.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            Ok(())
        })?;
        table.raw_set("advance", advance)?;
        strict_table(lua, "t.clock", &table, &["now", "advance"])?;
        Ok(table)
    }

    fn cluster_table(&self, lua: &Lua) -> mlua::Result<Table> {
        let table = lua.create_table()?;
        let engine = self.engine.clone();
        let program = lua.create_function(move |_, (_, name, given): (Value, String, Option<Table>)| {
            let given =
                given.map_or(Ok(serde_json::json!({})), |given| to_json(&Value::Table(given)).map_err(raise))?;
            let given = if given.as_array().is_some_and(Vec::is_empty) { serde_json::json!({}) } else { given };
            engine.set_program(&name, strict::read(&format!("program \"{name:.80}\""), &given).map_err(raise)?);
            Ok(())
        })?;
        table.raw_set("program", program)?;
        let engine = self.engine.clone();
        let kill = lua.create_async_function(move |_, (_, task, code): (Value, String, Option<i32>)| {
            let engine = engine.clone();
            async move {
                engine.kill(&task, code.map_or(Exit::Signal(9), Exit::Code)).map_err(raise)?;
                // Until it is noticed.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                Ok(())
            }
        })?;
        table.raw_set("kill", kill)?;
        let history = self.history.clone();
        let events = lua.create_function(move |lua, (_, what): (Value, Option<String>)| {
            let wanted = what.as_deref().map(What::parse).transpose().map_err(raise)?;
            let list = lua.create_table()?;
            for event in history.events().iter().filter(|event| wanted.is_none_or(|what| what == event.what)) {
                list.raw_push(from_timed(lua, event)?)?;
            }
            Ok(list)
        })?;
        table.raw_set("events", events)?;
        strict_table(lua, "t.cluster", &table, &["program", "kill", "events"])?;
        Ok(table)
    }
}
