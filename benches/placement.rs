//! Placements a second, with the policy in Lua and in Rust. `cargo bench --bench placement`. About a minute.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use neap::model::clock::{ManualClock, Timestamp};
use neap::model::id::{ServiceId, Slot, TaskId};
use neap::model::name::Name;
use neap::model::node::Node;
use neap::model::service::{Revision, Service, ServiceSpec};
use neap::model::task::{Health, Task, TaskState};
use neap::model::units::{Bytes, Cpu};
use neap::scheduler::board::Board;
use neap::scheduler::ledger::{Bench, Ledger};
use neap::scheduler::place::{Answer, Ask, Placer};
use neap::scheduler::reads::{CountOf, Judge, NodeField, Read, Scope, Sight, TaskField, Value, Verdict, Whose};
use neap::scheduler::reconcile::assign;
use neap::scheduler::world::{Change, Draft, World};
use neap::script::host::{ScriptHost, Scripts};

type Score = fn(&dyn Sight) -> f64;

struct RustJudge {
    reads: Vec<Read>,
    score: Score,
}

impl Judge for RustJudge {
    fn name(&self) -> &'static str {
        "rust"
    }

    fn reads(&self) -> &[Read] {
        &self.reads
    }

    fn judge(&mut self, sight: &dyn Sight) -> neap::model::Result<Verdict> {
        Ok(Verdict::Score((self.score)(sight)))
    }
}

type Question = (Board, mpsc::Receiver<Ask>, mpsc::Sender<(usize, Vec<Answer>)>);

struct RustPlacer {
    asks: mpsc::Sender<Question>,
}

struct RustBench(Vec<Read>, Score);

impl Bench for RustBench {
    fn key(&mut self, _: &Ask) -> neap::model::Result<String> {
        Ok("rust".into())
    }

    fn judges(&mut self, _: &Ask) -> neap::model::Result<Vec<Box<dyn Judge>>> {
        Ok(vec![Box::new(RustJudge { reads: self.0.clone(), score: self.1 })])
    }

    fn stand_in(&self, ask: &Ask) -> Ask {
        ask.clone()
    }
}

impl RustPlacer {
    fn new(reads: Vec<Read>, score: Score) -> Self {
        let (asks, inbox) = mpsc::channel::<Question>();
        std::thread::spawn(move || {
            let mut ledger = Ledger::default();
            let mut bench = RustBench(reads, score);
            while let Ok((mut board, asks, reply)) = inbox.recv() {
                ledger.begin(&board);
                for (number, ask) in asks.iter().enumerate() {
                    let _ = reply.send((number, ledger.place(&mut board, &ask, &mut bench)));
                }
                ledger.end(&board);
            }
        });
        RustPlacer { asks }
    }
}

impl Placer for RustPlacer {
    fn place(&mut self, board: &Board, asks: &mut dyn Iterator<Item = Ask>, take: &mut dyn FnMut(usize, Vec<Answer>)) {
        let (reply, answers) = mpsc::channel();
        let (send, inbox) = mpsc::channel();
        self.asks.send((board.clone(), inbox, reply)).unwrap();
        asks.for_each(|ask| send.send(ask).unwrap());
        drop(send);
        for (number, answer) in answers {
            take(number, answer);
        }
    }
}

struct Setting {
    title: &'static str,
    // Values of the label `zone` and `weight`, by node.
    zone: fn(u32) -> String,
    memory: fn(u32) -> u64,
    lua: &'static str,
    reads: fn() -> Vec<Read>,
    rust: Score,
    hard: bool,
}

fn number(value: Value) -> f64 {
    if let Value::Number(number) = value { number } else { 0.0 }
}

fn own() -> Read {
    Read::Count(CountOf { of: Whose::Own, scope: Scope::Same(NodeField::Label("zone".into())) })
}

fn own_count(sight: &dyn Sight) -> f64 {
    // A sum of whole numbers as a script has it: no allocation on the way.
    thread_local!(static OWN: Read = own());
    OWN.with(|read| number(sight.read(read)))
}

const NODE: &str = "policy 'p' { score = function(node) return node.free_memory end }";
const ZONES: &str = "policy 'p' { score = function(node, task, view) return -view:count { service = task.service, same = 'labels.zone' } end }";
const BOTH: &str = "policy 'p' { score = function(node, task, view) return -view:count { service = task.service, same = 'labels.zone' } + node.memory / 1e15 end }";

fn settings() -> Vec<Setting> {
    let free = || vec![Read::Node(NodeField::FreeMemory)];
    let zones = || vec![Read::Task(TaskField::Service), own()];
    let both = || vec![Read::Task(TaskField::Service), own(), Read::Node(NodeField::Memory)];
    vec![
        Setting {
            title: "reads the node alone, nodes alike",
            zone: |n| (n % 3).to_string(),
            memory: |_| 1 << 40,
            lua: NODE,
            reads: free,
            rust: |sight| number(sight.read(&Read::Node(NodeField::FreeMemory))),
            hard: false,
        },
        Setting {
            title: "reads the node alone, each differs",
            zone: |n| (n % 3).to_string(),
            memory: |n| (1 << 40) + (u64::from(n) * 7919 % 100_003) * 4096,
            lua: NODE,
            reads: free,
            rust: |sight| number(sight.read(&Read::Node(NodeField::FreeMemory))),
            hard: false,
        },
        Setting {
            title: "spreads over zones, 10 zones",
            zone: |n| (n % 10).to_string(),
            memory: |_| 1 << 40,
            lua: ZONES,
            reads: zones,
            rust: |sight| -own_count(sight),
            hard: false,
        },
        Setting {
            title: "spreads over zones, a zone a node",
            zone: |n| n.to_string(),
            memory: |_| 1 << 40,
            lua: ZONES,
            reads: zones,
            rust: |sight| -own_count(sight),
            hard: false,
        },
        Setting {
            title: "10 zones, and each node differs",
            zone: |n| (n % 10).to_string(),
            memory: |n| (1 << 40) + (u64::from(n) * 7919 % 100_003) * 4096,
            lua: BOTH,
            reads: both,
            rust: |sight| -own_count(sight) + number(sight.read(&Read::Node(NodeField::Memory))) / 1e15,
            hard: true,
        },
    ]
}

fn world(nodes: u32, services: u32, each: u32, setting: &Setting, bundle: &str, clock: &ManualClock) -> World {
    let mut world = World::default();
    world.set_nodes((0..nodes).map(|n| {
        let mut node = Node::new(&format!("node-{n:06}"), &format!("node-{n:06}"));
        node.cpu = Cpu(64_000);
        node.memory = Bytes((setting.memory)(n));
        node.labels.insert("zone".into(), (setting.zone)(n));
        Arc::new(node)
    }));
    for number in 0..services {
        let text = serde_json::json!({
            "name": format!("service-{number:03}"), "command": ["x"], "policy": "p", "replicas": each,
            "reservations": { "memory": "64MiB" },
        });
        let spec = ServiceSpec::read(&text).unwrap();
        let (name, id) = (spec.name.clone(), ServiceId::new(clock));
        let revision = Revision {
            service: name.clone(),
            number: 1,
            hash: String::new(),
            spec: spec.clone(),
            bundle: None,
            kv: Default::default(),
            secrets: Default::default(),
            configs: Default::default(),
            created_at: Timestamp(0),
        };
        // Services are not all made in the same millisecond; ids sort by it.
        clock.advance(neap::model::units::Duration::from_millis(1));
        world.apply(&Change::Revision(Arc::new(revision)));
        world.apply(&Change::Service(Arc::new(Service {
            id,
            spec,
            revision: 1,
            active: 1,
            stable: None,
            previous: None,
            bundle: Some(bundle.to_owned()),
            removing: false,
            address: None,
            handover: None,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        })));
        for slot in 1..=each {
            world.apply(&Change::Task(Arc::new(task(&name, id, slot, clock))));
        }
    }
    world
}

fn task(service: &Name, service_id: ServiceId, slot: u32, clock: &ManualClock) -> Task {
    Task {
        id: TaskId::new(clock),
        service: service.clone(),
        service_id,
        slot: Slot::Replica(slot),
        revision: 1,
        node: None,
        state: TaskState::Pending,
        health: Health::None,
        reason: None,
        warnings: Vec::new(),
        no_room: 0,
        ports: std::collections::BTreeMap::new(),
        pid: None,
        stop: None,
        leaving: None,
        exit: None,
        failures: 0,
        not_before: None,
        created_at: Timestamp(0),
        started_at: None,
        healthy_at: None,
        finished_at: None,
    }
}

// Places everything; what it took, and the world afterwards.
fn run(world: &World, placer: &mut dyn Placer, clock: &ManualClock) -> (Duration, World) {
    let scope: BTreeSet<Name> = world.services.keys().cloned().collect();
    let begun = Instant::now();
    let mut draft = Draft::new(world, clock);
    assign(&mut draft, placer, &scope);
    let took = begun.elapsed();
    let placed = draft.decision.changes.len();
    assert_eq!(placed, world.tasks.len(), "everything finds a place");
    assert!(draft.world.tasks.values().all(|task| task.node.is_some()));
    (took, draft.world)
}

// The first round, in which nothing is remembered yet, and the best of all.
fn rounds(rounds: u32, mut measure: impl FnMut() -> Duration) -> (Duration, Duration) {
    let all: Vec<Duration> = (0..rounds).map(|_| measure()).collect();
    (all[0], all.into_iter().min().unwrap())
}

fn main() {
    let clock = ManualClock::new(Timestamp(1_700_000_000_000), 1);
    let host = Arc::new(ScriptHost::new().unwrap());
    println!("10,000 nodes, 100,000 tasks of 100 services; decided and in the world. Placements a second:");
    println!("{:<40} {:>12} {:>12} {:>12} {:>8}", "", "Lua, first", "Lua, best", "Rust", "Lua/Rust");
    let only = std::env::args().nth(1).filter(|only| !only.starts_with('-')).unwrap_or_default();
    for setting in settings().into_iter().filter(|setting| setting.title.contains(&only)) {
        let hash = host.add(bundle(setting.lua));
        // The last one asks about a tenth of the nodes after each placement: fewer tasks, once.
        let (each, count) = if setting.hard { (20, 1) } else { (1000, 5) };
        let world = world(10_000, 100, each, &setting, &hash, &clock);
        let (first, lua) = rounds(count, || run(&world, &mut Scripts::new(&host), &clock).0);
        let (_, rust) = rounds(count, || run(&world, &mut RustPlacer::new((setting.reads)(), setting.rust), &clock).0);
        let rate = |took: Duration| f64::from(100 * each) / took.as_secs_f64();
        println!(
            "{:<40} {:>12.0} {:>12.0} {:>12.0} {:>8.2}",
            setting.title,
            rate(first),
            rate(lua),
            rate(rust),
            lua.as_secs_f64() / rust.as_secs_f64()
        );
    }
    if !only.is_empty() {
        return;
    }
    println!("\nHow it grows (spreads over 10 zones, 100 services, 10 tasks a node up to 100,000):");
    for nodes in [100, 1_000, 10_000, 100_000] {
        let setting = &settings()[2];
        let hash = host.add(bundle(setting.lua));
        let each = (nodes * 10).min(100_000) / 100;
        let world = world(nodes, 100, each, setting, &hash, &clock);
        let (_, took) = rounds(5, || run(&world, &mut Scripts::new(&host), &clock).0);
        println!(
            "{nodes:>8} nodes, {:>7} tasks {:>12.0} a second",
            each * 100,
            f64::from(each * 100) / took.as_secs_f64()
        );
    }
    println!("\nA single placement in a running cluster of 10,000 nodes and 100,000 tasks:");
    for setting in settings() {
        let hash = host.add(bundle(setting.lua));
        let (_, mut world) = run(
            &world(10_000, 100, if setting.hard { 20 } else { 1000 }, &setting, &hash, &clock),
            &mut Scripts::new(&host),
            &clock,
        );
        let names: Vec<Name> = world.services.keys().cloned().collect();
        let mut times = Vec::new();
        for number in 0..2000_u32 {
            let name = &names[(number * 37 % 100) as usize];
            let id = world.services[name].id;
            world.apply(&Change::Task(Arc::new(task(name, id, 1001 + number, &clock))));
            let begun = Instant::now();
            let mut draft = Draft::new(&world, &clock);
            assign(&mut draft, &mut Scripts::new(&host), &BTreeSet::from([name.clone()]));
            times.push(begun.elapsed());
            assert_eq!(draft.decision.changes.len(), 1);
            world = draft.world;
        }
        times.sort();
        let micros = |at: usize| times[at].as_secs_f64() * 1e6;
        println!("{:<40} median {:>7.0} us, p99 {:>7.0} us", setting.title, micros(1000), micros(1980));
    }
}

fn bundle(source: &str) -> neap::model::bundle::Bundle {
    neap::model::bundle::Bundle {
        entries: vec!["p.lua".into()],
        files: std::collections::BTreeMap::from([("p.lua".into(), source.into())]),
    }
}
