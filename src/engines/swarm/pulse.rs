//! Which nodes are there: what their hosts answer, and what others see of those that do not. Decides, and asks nobody itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::engines::hosts::Reached;
use crate::model::id::NodeId;
use crate::model::node::{Node, NodeState};

/// How long after an answer, or a silence, a node is asked again.
pub const EVERY: Duration = Duration::from_millis(500);
/// A node of which nothing is heard for this long is down, unless another host reaches it.
const SILENT: Duration = Duration::from_millis(1500);
/// A node whose host answers, but not its Docker Engine: that may be a restart.
const REFUSED: Duration = Duration::from_secs(6);
/// Somebody else was heard so much later than a node that is taken for lost: else it may be this host that is cut off.
const PROOF: Duration = Duration::from_secs(1);

/// What is known of all of them.
pub struct Pulse {
    own: NodeId,
    // Whether there is anybody who can be asked whether they reach a node.
    others: bool,
    heard: BTreeMap<NodeId, Heard>,
}

#[derive(Debug)]
struct Heard {
    // When something was last heard of its Docker Engine, and of its host at all.
    engine: Instant,
    host: Instant,
    // It did not answer when it was asked last, or its host did alone.
    silent: bool,
    refused: bool,
    down: bool,
    // Whether it is being asked, and when it is to be asked next.
    probing: bool,
    due: Instant,
    // Whether others are being asked for it, and whether one of them reached it, since it is silent here.
    asking: bool,
    elsewhere: Option<bool>,
    // What others found before that counts no more.
    since: Instant,
    asked: bool,
}

impl Heard {
    fn new(now: Instant, asked: bool) -> Self {
        Heard {
            engine: now,
            host: now,
            silent: false,
            refused: false,
            down: false,
            probing: false,
            due: now,
            asking: false,
            elsewhere: None,
            since: now,
            asked,
        }
    }
}

impl Pulse {
    /// With these nodes; what is down stays so until it answers. `others`: whether other hosts can be asked.
    pub fn new(own: &str, others: bool, nodes: &[Node], now: Instant) -> Self {
        let mut pulse = Pulse { own: own.into(), others, heard: BTreeMap::new() };
        pulse.list(nodes, now);
        for node in nodes.iter().filter(|node| node.state == NodeState::Down) {
            if let Some(heard) = pulse.heard.get_mut(&node.id) {
                (heard.silent, heard.down, heard.elsewhere) = (true, true, Some(false));
                let long_ago = now.checked_sub(REFUSED).unwrap_or(now);
                (heard.engine, heard.host) = (long_ago, long_ago);
            }
        }
        pulse
    }

    /// These are the nodes now.
    pub fn list(&mut self, nodes: &[Node], now: Instant) {
        self.heard.retain(|id, _| nodes.iter().any(|node| node.id == *id));
        for node in nodes {
            // Without a leader's word on where it is there is nothing to ask.
            let asked = node.id != self.own && node.address.is_some();
            self.heard.entry(node.id.clone()).or_insert_with(|| Heard::new(now, asked)).asked = asked;
        }
    }

    /// Who is to be asked now; each is, until the answer is told.
    pub fn due(&mut self, now: Instant) -> Vec<NodeId> {
        let due = self.heard.iter_mut().filter(|(_, heard)| heard.asked && !heard.probing && heard.due <= now);
        due.map(|(id, heard)| {
            heard.probing = true;
            id.clone()
        })
        .collect()
    }

    /// When somebody is to be asked next.
    pub fn next(&self) -> Option<Instant> {
        self.heard.values().filter(|heard| heard.asked && !heard.probing).map(|heard| heard.due).min()
    }

    /// Nobody is being asked any more, whatever has become of those questions.
    pub fn begin_anew(&mut self) {
        self.heard.values_mut().for_each(|heard| heard.probing = false);
    }

    // Of none of those that are to be there anything is heard.
    fn is_cut_off(&self, now: Instant) -> bool {
        let mut others = self.heard.values().filter(|heard| heard.asked && !heard.down).peekable();
        others.peek().is_some() && others.all(|heard| now.duration_since(heard.host) >= SILENT)
    }

    /// What a node answered: whether others are to be asked for it, and whether it may be another than it was.
    pub fn answered(&mut self, id: &NodeId, answer: Reached, now: Instant) -> (bool, bool) {
        // Silence counts from when anybody is heard again: they come back one after the other.
        if answer != Reached::Silent && self.is_cut_off(now) {
            for heard in self.heard.values_mut().filter(|heard| !heard.down) {
                (heard.engine, heard.host, heard.since) = (now, now, now);
                (heard.silent, heard.elsewhere) = (false, None);
            }
        }
        let Some(heard) = self.heard.get_mut(id) else { return (false, false) };
        let is_news = answer != Reached::Yes || heard.silent || heard.refused || heard.down;
        (heard.probing, heard.due) = (false, now + EVERY);
        heard.silent = answer == Reached::Silent;
        heard.refused = answer == Reached::Refused;
        match answer {
            Reached::Yes => (heard.engine, heard.host) = (now, now),
            Reached::Refused => heard.host = now,
            Reached::Silent => {
                let asks = self.others && !heard.asking;
                heard.asking |= asks;
                return (asks, is_news);
            }
        }
        heard.elsewhere = None;
        (false, is_news)
    }

    /// What others found of a node, whom they were asked for at `started`; true if that is the first sign that it is there.
    pub fn inquired(&mut self, id: &NodeId, started: Instant, reached: bool) -> bool {
        let Some(heard) = self.heard.get_mut(id) else { return false };
        heard.asking = false;
        if !heard.silent || started < heard.since {
            return false;
        }
        let is_new = reached && heard.elsewhere != Some(true);
        heard.elsewhere = Some(reached);
        is_new
    }

    /// The nodes that are down; `beats`: whether a connection of its agent gives signs of life.
    pub fn down(&mut self, beats: impl Fn(&NodeId) -> bool, now: Instant) -> BTreeSet<NodeId> {
        // When anybody was heard last, and anybody but that one.
        let mut latest: [Option<(Instant, NodeId)>; 2] = [None, None];
        for (id, heard) in self.heard.iter().filter(|(_, heard)| heard.asked && !heard.down) {
            if latest[0].as_ref().is_none_or(|(at, _)| heard.host > *at) {
                latest.swap(0, 1);
                latest[0] = Some((heard.host, id.clone()));
            } else if latest[1].as_ref().is_none_or(|(at, _)| heard.host > *at) {
                latest[1] = Some((heard.host, id.clone()));
            }
        }
        let mut all = BTreeSet::new();
        for (id, heard) in &mut self.heard {
            let later = heard.host + PROOF;
            let is_proven = latest.iter().flatten().any(|(at, other)| other != id && *at >= later);
            let nobody = if self.others { heard.elsewhere == Some(false) } else { true };
            let is_lost = now.duration_since(heard.host) >= SILENT && nobody && is_proven;
            let stays = heard.down && heard.elsewhere != Some(true);
            // A question that is lost on the way means nothing while the connection beats.
            let is_silent = heard.silent && (is_lost || stays) && !beats(id);
            // What it answered last, and not how long ago: this host may have slept.
            let is_refused = heard.refused && now.duration_since(heard.engine) >= REFUSED;
            heard.down = is_silent || is_refused;
            if heard.down {
                all.insert(id.clone());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Three nodes beside the own one; time in milliseconds from the beginning.
    struct Scene {
        pulse: Pulse,
        start: Instant,
    }

    fn id(number: u32) -> NodeId {
        format!("n{number}").as_str().into()
    }

    impl Scene {
        fn new(count: u32, others: bool) -> Self {
            let start = Instant::now() + Duration::from_secs(60);
            let node =
                |number: u32| Node { address: Some([10, 0, 0, number as u8].into()), ..Node::new(&id(number), "n") };
            let nodes: Vec<Node> = (0..=count).map(node).collect();
            Scene { pulse: Pulse::new("n0", others, &nodes, start), start }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn told(&mut self, number: u32, answer: Reached, millis: u64) -> bool {
            let now = self.at(millis);
            self.pulse.answered(&id(number), answer, now).0
        }

        fn tell(&mut self, number: u32, answer: Reached, millis: u64) {
            let _ = self.told(number, answer, millis);
        }

        // As often as they are asked.
        fn answer(&mut self, numbers: std::ops::RangeInclusive<u32>, millis: std::ops::Range<u64>) {
            for at in millis.step_by(500) {
                numbers.clone().for_each(|number| self.tell(number, Yes, at));
            }
        }

        fn found(&mut self, number: u32, started: u64, reached: bool) {
            let started = self.at(started);
            self.pulse.inquired(&id(number), started, reached);
        }

        fn down(&mut self, number: u32, millis: u64) -> bool {
            let now = self.at(millis);
            self.pulse.down(|_| false, now).contains(&id(number))
        }
    }

    use Reached::{Refused, Silent, Yes};

    #[test]
    fn a_lost_node_is_down_once_others_do_not_reach_it_either() {
        let mut scene = Scene::new(3, true);
        assert_eq!(scene.pulse.due(scene.start), [id(1), id(2), id(3)], "not its own");
        assert!(scene.pulse.due(scene.start).is_empty() && scene.pulse.next().is_none(), "they are being asked");
        (1..=3).for_each(|number| assert!(!scene.told(number, Yes, 10)));
        assert_eq!(scene.pulse.next(), Some(scene.at(510)));
        scene.answer(1..=2, 510..1710);
        assert!(scene.told(3, Silent, 1710), "others are asked");
        assert!(!scene.told(3, Silent, 1711), "once");
        (1..=2).for_each(|number| scene.tell(number, Yes, 1720));
        assert!(!scene.down(3, 1720), "they have not said");
        scene.found(3, 1710, false);
        let now = scene.at(2300);
        assert!(scene.pulse.down(|_| true, now).is_empty(), "its agent gives signs of life");
        assert!(scene.down(3, 2300) && !scene.down(1, 2300));
        // And stays so until it answers, or another reaches it.
        scene.answer(1..=2, 2000..4000);
        assert!(scene.told(3, Silent, 4000));
        assert!(scene.down(3, 4000));
        scene.found(3, 4000, true);
        assert!(!scene.down(3, 4500));
        scene.tell(3, Yes, 5000);
        assert!(!scene.down(3, 20_000), "whoever slept knows nothing of the others");
    }

    #[test]
    fn only_the_way_is_cut() {
        let mut scene = Scene::new(3, true);
        (1..=3).for_each(|number| scene.tell(number, Yes, 10));
        for round in 1..20 {
            let now = round * 1700;
            scene.answer(1..=2, now - 1690..now);
            (1..=2).for_each(|number| scene.tell(number, Yes, now));
            assert!(scene.told(3, Silent, now));
            assert!(!scene.down(3, now + 600));
            scene.found(3, now, true);
            assert!(!scene.down(3, now + 700), "round {round}");
        }
    }

    #[test]
    fn whoever_hears_nobody_is_cut_off_and_the_others_are_not_lost() {
        for others in [true, false] {
            let mut scene = Scene::new(3, others);
            (1..=3).for_each(|number| scene.tell(number, Yes, u64::from(number) * 150));
            // All silent, one after the other; nobody can be asked.
            for round in 1..5 {
                for number in 1..=3 {
                    let now = round * 1700 + u64::from(number) * 150;
                    scene.tell(number, Silent, now);
                    scene.found(number, now, false);
                    assert!(!scene.down(number, now + 1), "{number} in round {round}");
                }
            }
            // They come back one after the other. What was found while it was cut off does not count.
            scene.tell(1, Yes, 10_000);
            assert!((1..=3).all(|number| !scene.down(number, 10_001)));
            scene.found(2, 9_900, false);
            scene.tell(3, Yes, 11_000);
            scene.tell(2, Silent, 11_200);
            scene.found(2, 9_900, false);
            scene.tell(1, Yes, 11_300);
            assert!(!scene.down(2, 11_300) || !others);
            scene.tell(2, Yes, 11_900);
            assert!(!scene.down(2, 12_000));
        }
    }

    #[test]
    fn one_of_two_is_not_taken_for_lost() {
        let mut scene = Scene::new(1, true);
        scene.tell(1, Yes, 10);
        scene.tell(1, Silent, 1710);
        scene.found(1, 1710, false);
        assert!(!scene.down(1, 60_000), "who of both is cut off, the Swarm finds out");
    }

    #[test]
    fn an_engine_that_is_restarted_has_its_time() {
        let mut scene = Scene::new(2, true);
        (1..=2).for_each(|number| scene.tell(number, Yes, 10));
        scene.answer(1..=1, 510..6500);
        scene.tell(2, Refused, 1000);
        assert!(!scene.down(2, 5_900));
        scene.tell(2, Refused, 5_900);
        assert!(scene.down(2, 6_100));
        scene.tell(2, Yes, 6_500);
        assert!(!scene.down(2, 6_600));
    }

    #[test]
    fn what_was_down_at_first_stays_so() {
        let start = Instant::now() + Duration::from_secs(60);
        let node =
            |number: u32, state| Node { address: Some([10, 0, 0, 1].into()), state, ..Node::new(&id(number), "n") };
        let nodes = [node(0, NodeState::Ready), node(1, NodeState::Down), node(2, NodeState::Ready)];
        let mut pulse = Pulse::new("n0", true, &nodes, start);
        assert_eq!(pulse.down(|_| false, start), BTreeSet::from([id(1)]));
        assert_eq!(pulse.answered(&id(1), Yes, start + EVERY), (false, true));
        assert!(pulse.down(|_| false, start + EVERY).is_empty());
        assert_eq!(pulse.answered(&id(1), Yes, start + EVERY), (false, false), "as before");
        // One that is new is given its time, and one that is gone is none.
        pulse.list(&nodes[..1], start);
        assert!(pulse.down(|_| false, start).is_empty() && pulse.next().is_none());
    }
}
