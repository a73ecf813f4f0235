//! What is found with verdicts kept and classes formed is what a scan of all nodes finds, task by task.

use std::collections::BTreeMap;
use std::sync::Arc;

use neap::model::bundle::Bundle;
use neap::model::clock::mix;
use neap::model::id::Slot;
use neap::model::name::Name;
use neap::model::node::{Availability, Node};
use neap::model::port::Protocol;
use neap::model::service::{OnPolicyError, Use};
use neap::model::units::{Bytes, Cpu};
use neap::scheduler::board::{Board, Claim, Seat};
use neap::scheduler::place::{Ask, Filter, Placer, SlotAsk, Stay};
use neap::script::host::{ScriptHost, Scripts};

/// What a policy sees in the scan: the board, the node's place on it, the service, the slot.
type Scan = fn(&Board, &Seat, &str, u32) -> Option<f64>;

fn count(board: &Board, service: Option<&str>, like: impl Fn(&Seat) -> bool) -> f64 {
    let of = |seat: &Seat| service.map_or(seat.total, |name| board.count(seat, name));
    f64::from(board.seats().filter(|seat| like(seat)).map(|seat| of(seat)).sum::<u32>())
}

fn zone(seat: &Seat) -> Option<&String> {
    seat.node.labels.get("zone")
}

// Each policy twice: as a user writes it, and as a scan.
const POLICIES: &[(&str, &str, Scan)] = &[
    ("spread", "", |board, seat, service, _| {
        Some(-f64::from(board.count(seat, service)) - f64::from(seat.total) / 1000.0)
    }),
    ("free", "score = function(node) return node.free_memory end", |_, seat, _, _| Some(seat.free_memory().0 as f64)),
    (
        "zones",
        "score = function(node, task, view) return -view:count { service = task.service, same = 'labels.zone' } end",
        |board, seat, service, _| Some(-count(board, Some(service), |other| zone(other) == zone(seat))),
    ),
    (
        "zones-then-nodes",
        "score = function(node, task, view)
           return -view:count { service = task.service, same = 'labels.zone' } * 100
             - view:count { service = task.service, node = true } - node.tasks / 1000
         end",
        |board, seat, service, _| {
            let zones = count(board, Some(service), |other| zone(other) == zone(seat));
            Some(-zones * 100.0 - f64::from(board.count(seat, service)) - f64::from(seat.total) / 1000.0)
        },
    ),
    (
        "by-disk",
        "filter = function(node) return node.labels.zone ~= nil, 'has no zone' end,
         score = function(node, task, view)
           if node.labels.disk == 'ssd' then return 10 - view:count { node = true } end
           if view:count { service = 'a' } > 3 then return -node.cpu end
           return -view:count { same = 'labels.disk' }
         end",
        |board, seat, _, _| {
            zone(seat)?;
            let disk = seat.node.labels.get("disk");
            if disk.is_some_and(|disk| disk == "ssd") {
                return Some(10.0 - f64::from(seat.total));
            }
            if count(board, Some("a"), |_| true) > 3.0 {
                return Some(-seat.node.cpu.cores());
            }
            Some(-count(board, None, |other| other.node.labels.get("disk") == disk))
        },
    ),
    (
        "by-slot",
        "score = function(node, task, view)
           local n = 0
           for key, value in node.labels do n = n + #key * #value end
           return tonumber(task.slot) % 2 == 0 and n or -view:count { service = 'b', node = true }
         end",
        |board, seat, _, slot| {
            let n: usize = seat.node.labels.iter().map(|(key, value)| key.len() * value.len()).sum();
            Some(if slot.is_multiple_of(2) { n as f64 } else { -f64::from(board.count(seat, "b")) })
        },
    ),
    (
        "same-service-name",
        "score = function(node, task, view) return view:count { service = 'a', same = 'labels.zone' } end",
        |board, seat, _, _| Some(count(board, Some("a"), |other| zone(other) == zone(seat))),
    ),
];

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % sides
    }
}

fn node(dice: &mut Dice, id: u64) -> Node {
    let name = format!("n{id:02}");
    let mut node = Node::new(&name, &name);
    node.cpu = Cpu(1000 * (1 + dice.roll(3) as u32));
    node.memory = Bytes((1 + dice.roll(6)) << 20);
    if dice.roll(4) > 0 {
        node.labels.insert("zone".into(), format!("z{}", dice.roll(3)));
    }
    if dice.roll(2) > 0 {
        node.labels.insert("disk".into(), ["ssd", "hdd"][dice.roll(2) as usize].into());
    }
    if dice.roll(12) == 0 {
        node.availability = Availability::Drain;
    }
    node
}

fn scan(board: &mut Board, ask: &Ask, policies: &[Scan]) -> Vec<Option<String>> {
    let mut places = Vec::new();
    for wanted in &ask.slots {
        let Slot::Replica(slot) = wanted.slot else { panic!() };
        for node in &wanted.replaces {
            board.alter(node, &ask.service, true, &Claim::default(), -1);
        }
        if let Some(stay) = &wanted.stays {
            board.alter(&stay.node, &ask.service, true, &ask.filter.claim, -1);
        }
        let mut best: Option<(Vec<f64>, &Arc<Seat>)> = None;
        let mut own: Option<(f64, &Arc<Seat>)> = None;
        for seat in board.seats().filter(|seat| ask.filter.refuses(board, seat).is_none()) {
            let scores: Option<Vec<f64>> =
                policies.iter().map(|policy| policy(board, seat, ask.service.as_str(), slot)).collect();
            let Some(scores) = scores else { continue };
            if wanted.stays.as_ref().is_some_and(|stay| stay.node == seat.node.id) {
                own = Some((scores[0], seat));
            }
            if best.as_ref().is_none_or(|(other, _)| scores.partial_cmp(other) == Some(std::cmp::Ordering::Greater)) {
                best = Some((scores, seat));
            }
        }
        let stays = |best: &(Vec<f64>, &Arc<Seat>)| {
            let min_gain = wanted.stays.as_ref().map_or(0.0, |stay| stay.min_gain);
            own.filter(|(score, _)| best.0[0] - score <= min_gain).map(|(_, seat)| seat)
        };
        let found = best.map(|best| stays(&best).unwrap_or(best.1).node.id.clone());
        for node in &wanted.replaces {
            board.alter(node, &ask.service, true, &Claim::default(), 1);
        }
        if let Some(stay) = wanted.stays.as_ref().filter(|stay| found.is_none() || !stay.gone) {
            board.alter(&stay.node, &ask.service, true, &ask.filter.claim, 1);
        }
        let runs_on = wanted.stays.as_ref().filter(|stay| !stay.gone).map(|stay| &stay.node);
        if let Some(node) = found.as_ref().filter(|node| runs_on != Some(node)) {
            board.alter(node, &ask.service, true, &ask.filter.claim, 1);
        }
        places.push(found.map(|node| node.to_string()));
    }
    places
}

#[test]
fn a_kept_decision_is_that_of_a_scan_on_10_000_random_clusters() {
    let mut dice = Dice(20261123);
    let source: String =
        POLICIES[1..].iter().map(|(name, body, _)| format!("policy '{name}' {{ {body} }}\n")).collect();
    let host = Arc::new(ScriptHost::new().unwrap());
    let bundle = Bundle { entries: vec!["p.lua".into()], files: BTreeMap::from([("p.lua".into(), source)]) };
    let hash = host.add(bundle);
    let names: Vec<Name> = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
    let mut clusters = 0;
    while clusters < 10_000 {
        // A cluster lives through several decisions, so that what was kept from one meets what has changed by the next.
        let mut board = Board::default();
        let count = 1 + dice.roll(14);
        let nodes: Vec<Arc<Node>> = (0..count).map(|id| Arc::new(node(&mut dice, id))).collect();
        board.set_nodes(nodes.clone());
        let mut placed: Vec<(String, Name, Claim)> = Vec::new();
        for _ in 0..=dice.roll(6) {
            clusters += 1;
            match dice.roll(4) {
                0 => {
                    let id = dice.roll(count);
                    board.set_nodes([Arc::new(node(&mut dice, id))]);
                }
                1 if !placed.is_empty() => {
                    let (node, service, resources) = placed.swap_remove(dice.roll(placed.len() as u64) as usize);
                    board.alter(&node, &service, true, &resources, -1);
                }
                _ => {}
            }
            let mut asks = Vec::new();
            let mut scans = Vec::new();
            for _ in 0..=dice.roll(3) {
                let service = names[dice.roll(3) as usize].clone();
                let first = dice.roll(POLICIES.len() as u64) as usize;
                let mut chosen = vec![first];
                if dice.roll(3) == 0 {
                    chosen.push((first + 1) % POLICIES.len());
                }
                let claim = match dice.roll(5) {
                    0 | 1 => Claim::default(),
                    2 => Claim { ports: [(80, Protocol::Tcp)].into_iter().collect(), ..Claim::default() },
                    _ => Claim { cpu: Cpu(100), memory: Bytes(1 << 19), ..Claim::default() },
                };
                let constraints =
                    if dice.roll(4) == 0 { vec!["node.labels.disk!=hdd".parse().unwrap()] } else { vec![] };
                let most = (dice.roll(5) == 0).then(|| (service.clone(), 1 + dice.roll(2) as u32));
                let on: Vec<_> = board
                    .seats()
                    .filter(|seat| board.count(seat, service.as_str()) > 0)
                    .map(|seat| seat.node.id.clone())
                    .collect();
                // One that is asked about again: the first ask of a service only, since its place is taken by the answer.
                let again = asks.iter().all(|ask: &Ask| ask.service != service) && dice.roll(3) == 0;
                let again = placed.iter().find(|(_, of, reserved)| again && *of == service && *reserved == claim);
                let stays = again.map(|(node, ..)| Stay {
                    node: node.as_str().into(),
                    min_gain: [0.0, 0.0, 0.5, 2.0][dice.roll(4) as usize],
                    gone: dice.roll(2) == 0,
                });
                let slots = (1..=1 + dice.roll(8) as u32).map(|slot| SlotAsk {
                    slot: Slot::Replica(slot),
                    replaces: match slot {
                        1 if stays.is_none() => on.first().cloned().into_iter().collect(),
                        _ => Vec::new(),
                    },
                    stays: stays.clone().filter(|_| slot == 1),
                });
                let avoid = board.seats().take(dice.roll(8) as usize / 6).map(|seat| seat.node.id.clone()).collect();
                asks.push(Ask {
                    service,
                    revision: 1,
                    labels: Arc::default(),
                    filter: Filter { constraints, claim, most, avoid },
                    policies: chosen.iter().map(|n| Use::plain(POLICIES[*n].0)).collect(),
                    bundle: Some(hash.clone()),
                    on_error: OnPolicyError::Pending,
                    slots: slots.collect(),
                    on,
                });
                scans.push(chosen.iter().map(|n| POLICIES[*n].2).collect::<Vec<Scan>>());
            }
            // Later asks of the same service see what the earlier ones placed.
            let mut scanned = board.clone();
            let expected: Vec<Vec<Option<String>>> =
                asks.iter().zip(&scans).map(|(ask, policies)| scan(&mut scanned, ask, policies)).collect();
            let mut found: Vec<Vec<Option<String>>> = vec![Vec::new(); asks.len()];
            // Some are asked for a plan first, of which nothing comes.
            for _ in 0..dice.roll(3) / 2 {
                Scripts::new(&host).place(&board, &mut asks.iter().cloned(), &mut |_, _| {});
            }
            Scripts::new(&host).place(&board, &mut asks.iter().cloned(), &mut |number, answers| {
                found[number] = answers
                    .into_iter()
                    .map(|answer| {
                        answer.place.ok().map(|place| board.seat(place.at as usize).unwrap().node.id.to_string())
                    })
                    .collect();
            });
            assert_eq!(found, expected, "cluster {clusters}: {asks:?}");
            for (ask, places) in asks.iter().zip(found) {
                if let (Some(stay), Some(to)) = (&ask.slots[0].stays, &places[0])
                    && (stay.gone || *to == *stay.node)
                {
                    let is_it = |(node, service, reserved): &(String, Name, Claim)| {
                        *node == *stay.node && *service == ask.service && *reserved == ask.filter.claim
                    };
                    let at = placed.iter().position(is_it).unwrap();
                    placed.swap_remove(at);
                }
                for node in places.into_iter().flatten() {
                    placed.push((node, ask.service.clone(), ask.filter.claim.clone()));
                }
            }
            board = scanned;
        }
    }
}

#[test]
fn a_policy_that_answers_differently_each_time_is_noticed_and_asked_each_time() {
    let host = Arc::new(ScriptHost::new().unwrap());
    let source = "local n = 0\npolicy 'moody' { score = function(node) n = n + 1 return n + node.tasks end }";
    let bundle = Bundle { entries: vec!["p.lua".into()], files: BTreeMap::from([("p.lua".into(), source.into())]) };
    let hash = host.add(bundle);
    let mut board = Board::default();
    board.set_nodes((0..4).map(|n| Arc::new(Node::new(&format!("n{n}"), "n"))));
    let ask = |slots: u32| Ask {
        service: "web".parse().unwrap(),
        revision: 1,
        labels: Arc::default(),
        filter: Filter {
            constraints: vec![],
            claim: Claim::default(),
            most: Some(("web".parse().unwrap(), 5000)),
            avoid: vec![],
        },
        policies: vec![Use::plain("moody")],
        bundle: Some(hash.clone()),
        on_error: OnPolicyError::Pending,
        on: Vec::new(),
        slots: (1..=slots)
            .map(|slot| SlotAsk { slot: Slot::Replica(slot), replaces: Vec::new(), stays: None })
            .collect(),
    };
    let mut notes = Vec::new();
    for round in 0..2000 {
        // What is on the nodes changes to and fro, so that they are looked at again.
        let (service, none) = ("other".parse().unwrap(), Claim::default());
        board.alter(&format!("n{}", round / 2 % 4), &service, true, &none, if round % 2 == 0 { 1 } else { -1 });
        Scripts::new(&host).place(&board, &mut std::iter::once(ask(2)), &mut |_, answers| {
            notes.extend(answers.into_iter().filter_map(|answer| answer.note));
        });
    }
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("policy \"moody\" answers differently to the same question"), "{}", notes[0]);
}

#[test]
fn a_group_that_sat_out_a_pass_misses_no_change() {
    let host = Arc::new(ScriptHost::new().unwrap());
    let source = "policy 'emptiest' { score = function(node) return -node.tasks end }";
    let bundle = Bundle { entries: vec!["p.lua".into()], files: BTreeMap::from([("p.lua".into(), source.into())]) };
    let hash = host.add(bundle);
    let mut board = Board::default();
    board.set_nodes((0..3).map(|n| Arc::new(Node::new(&format!("n{n}"), &format!("h{n}")))));
    let (other, none) = ("other".parse().unwrap(), Claim::default());
    for (node, count) in [("n0", 1), ("n1", 2), ("n2", 3)] {
        (0..count).for_each(|_| board.alter(node, &other, true, &none, 1));
    }
    let place = |board: &mut Board, constraints: &[&str]| {
        let service: Name = "web".parse().unwrap();
        let ask = Ask {
            service: service.clone(),
            revision: 1,
            labels: Arc::default(),
            filter: Filter {
                constraints: constraints.iter().map(|text| text.parse().unwrap()).collect(),
                claim: none.clone(),
                most: None,
                avoid: vec![],
            },
            policies: vec![Use::plain("emptiest")],
            bundle: Some(hash.clone()),
            on_error: OnPolicyError::Pending,
            on: Vec::new(),
            slots: vec![SlotAsk { slot: Slot::Replica(1), replaces: Vec::new(), stays: None }],
        };
        let mut found = None;
        Scripts::new(&host).place(board, &mut std::iter::once(ask), &mut |_, answers| {
            found = answers[0].place.as_ref().ok().map(|place| place.at as usize);
        });
        board.alter_at(found.unwrap(), &service, true, &none, 1);
        found.unwrap()
    };
    assert_eq!(place(&mut board, &[]), 0);
    // n2 becomes empty, and the next pass is another group's.
    (0..3).for_each(|_| board.alter("n2", &other, true, &none, -1));
    assert_ne!(place(&mut board, &["node.hostname!=h2"]), 2);
    assert_eq!(place(&mut board, &[]), 2, "the first group has missed that n2 is empty");
}
