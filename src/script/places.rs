//! Finds places by scripts. A whole pass goes to the policies' thread at once; answers come back service by service while
//! the next ones are being found.

use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::api::policy::LuaJudge;
use super::host::{ScriptHost, Scripts};
use super::lane::{Job, Lane, Threads, Ticket};
use super::stdlib;
use super::vms::Vms;
use crate::model::bundle::HostedKind;
use crate::model::service::{OnPolicyError, Use};
use crate::model::{Error, Kind, Result};
use crate::scheduler::board::Board;
use crate::scheduler::ledger::Bench;
use crate::scheduler::place::{Answer, Ask, Placer};
use crate::scheduler::reads::Judge;

impl Placer for Scripts<'_> {
    fn place(&mut self, board: &Board, asks: &mut dyn Iterator<Item = Ask>, take: &mut dyn FnMut(usize, Vec<Answer>)) {
        let mut counts = Vec::new();
        let mut next = 0;
        let lost = match self.host.lane(HostedKind::Policy) {
            Ok(lane) => {
                let (ticket, answers) = begin(self.host, &lane, board.clone(), asks, &mut counts);
                loop {
                    if next == counts.len() {
                        return;
                    }
                    match answers.recv_timeout(Duration::from_millis(50)) {
                        Ok((number, answer)) => {
                            take(number, answer);
                            next = number + 1;
                        }
                        Err(mpsc::RecvTimeoutError::Timeout) if !ticket.is_lost() => {}
                        Err(_) => break ticket.lost(),
                    }
                }
            }
            Err(error) => {
                counts.extend(asks.map(|ask| ask.slots.len()));
                error
            }
        };
        for (number, count) in counts.iter().enumerate().skip(next) {
            take(number, vec![Answer { place: Err(Box::new(lost.clone())), note: None }; *count]);
        }
    }
}

type Answers = mpsc::Receiver<(usize, Vec<Answer>)>;

// Hands the asks to the policies' thread one by one; it answers the first while the next are being made.
fn begin(
    host: &ScriptHost,
    lane: &Lane,
    mut board: Board,
    asks: &mut dyn Iterator<Item = Ask>,
    counts: &mut Vec<usize>,
) -> (Ticket, Answers) {
    let ticket = Ticket::new(lane);
    let stamp = ticket.stamp();
    let (send, inbox) = mpsc::channel::<(Ask, Result<Vec<String>>)>();
    let (reply, answers) = mpsc::channel();
    let job: Job = Box::new(move |vms: &Rc<Vms>| {
        stamp();
        vms.ledger.borrow_mut().begin(&board);
        for (number, (ask, bundles)) in inbox.iter().enumerate() {
            let answer = match bundles {
                Ok(bundles) => one(vms, &mut board, &ask, bundles),
                Err(error) => without(vms, &mut board, &ask, error),
            };
            if reply.send((number, answer)).is_err() {
                return;
            }
        }
        vms.ledger.borrow_mut().end(&board);
    });
    // Where there is one thread for everything, all of them are made first.
    let job = match host.threads() {
        Threads::Own => {
            lane.send(job);
            None
        }
        Threads::This => Some(job),
    };
    for ask in asks {
        counts.push(ask.slots.len());
        // Which bundle holds which policy is known here; the thread knows bundles only. If it is gone, its ticket says so.
        let bundles = locate(host, &ask);
        let _ = send.send((ask, bundles));
    }
    drop(send);
    if let Some(job) = job {
        lane.send(job);
    }
    (ticket, answers)
}

// For an ask whose policy cannot even be called.
fn without(vms: &Rc<Vms>, board: &mut Board, ask: &Ask, error: Error) -> Vec<Answer> {
    if error.kind != Kind::Script || ask.on_error != OnPolicyError::Spread {
        return vec![Answer { place: Err(Box::new(error)), note: None }; ask.slots.len()];
    }
    let mut bench = LuaBench { vms, bundles: Vec::new() };
    let stand_in = bench.stand_in(ask);
    let mut answers = vms.ledger.borrow_mut().place(board, &stand_in, &mut bench);
    if let Some(first) = answers.first_mut() {
        first.note = Some(format!("{error}; the built-in spread serves"));
    }
    answers
}

fn one(vms: &Rc<Vms>, board: &mut Board, ask: &Ask, bundles: Vec<String>) -> Vec<Answer> {
    let begun = Instant::now();
    let mut bench = LuaBench { vms, bundles };
    let answers = vms.ledger.borrow_mut().place(board, ask, &mut bench);
    if let (Some(first), Some(bundle)) = (ask.policies.first(), bench.bundles.first()) {
        let calls = vms.library.calls(HostedKind::Policy, bundle, first.name.as_str());
        let failures = answers.iter().filter_map(|answer| answer.place.as_ref().err());
        let failure = failures.map(|error| &**error).find(|error| error.kind == Kind::Script);
        let memory = vms.get(bundle).map_or(0, |hosted| hosted.lua.used_memory());
        calls.add(answers.len() as u64, begun.elapsed(), memory, failure);
    }
    for bundle in &bench.bundles {
        if let Ok(hosted) = vms.get(bundle) {
            vms.after(bundle, &hosted);
        }
    }
    answers
}

// The bundle of each policy of an ask.
fn locate(host: &ScriptHost, ask: &Ask) -> Result<Vec<String>> {
    let own = host.registered(ask.bundle.as_deref())?;
    ask.policies
        .iter()
        .map(|policy| {
            let (bundle, _) = host.find(&own, HostedKind::Policy, policy.name.as_str())?;
            host.library().admit(HostedKind::Policy, &bundle, policy.name.as_str())?;
            Ok(bundle)
        })
        .collect()
}

struct LuaBench<'a> {
    vms: &'a Rc<Vms>,
    bundles: Vec<String>,
}

impl LuaBench<'_> {
    // The stand-in is the library's, whatever bundle the failed one was in.
    fn bundle<'a>(&'a self, ask: &Ask, index: usize) -> &'a str {
        if ask.bundle.as_deref() == Some(stdlib::OWNER) { stdlib::OWNER } else { &self.bundles[index] }
    }
}

impl Bench for LuaBench<'_> {
    fn key(&mut self, ask: &Ask) -> Result<String> {
        let mut key = String::new();
        for (index, policy) in ask.policies.iter().enumerate() {
            let bundle = self.bundle(ask, index).to_owned();
            let hosted = self.vms.get(&bundle)?;
            self.vms.lane.busy_with(&bundle, policy.name.as_str());
            let options = serde_json::Value::Object(policy.options.clone());
            key.push_str(&format!("{bundle}#{}/{}{options};", hosted.serial, policy.name));
        }
        Ok(key)
    }

    fn judges(&mut self, ask: &Ask) -> Result<Vec<Box<dyn Judge>>> {
        let judge = |(index, policy): (usize, &Use)| -> Result<Box<dyn Judge>> {
            let hosted = self.vms.get(self.bundle(ask, index))?;
            let mut judge = LuaJudge::new(hosted, policy)?;
            // With several, the one that hangs has to be told from the others.
            if ask.policies.len() > 1 {
                judge.announce(self.vms.lane.clone(), self.bundle(ask, index).to_owned());
            }
            Ok(Box::new(judge))
        };
        ask.policies.iter().enumerate().map(judge).collect()
    }

    fn stand_in(&self, ask: &Ask) -> Ask {
        Ask { policies: vec![Use::plain("spread")], bundle: Some(stdlib::OWNER.to_owned()), ..ask.clone() }
    }
}
