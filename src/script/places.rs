//! Finds places by scripts. A whole pass goes to the policies' thread at once; answers come back service by service while
//! the next ones are being found.

use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::api::policy::LuaJudge;
use super::host::{ScriptHost, Scripts};
use super::lane::Ticket;
use super::stdlib;
use super::vms::Vms;
use crate::model::bundle::HostedKind;
use crate::model::service::{OnPolicyError, Use};
use crate::model::{Error, Kind, Result};
use crate::scheduler::board::Board;
use crate::scheduler::ledger::Bench;
use crate::scheduler::place::{Answer, Ask, Placer};
use crate::scheduler::reads::Judge;

/// Answers that may wait to be taken.
const AHEAD: usize = 64;

impl Placer for Scripts<'_> {
    fn place(&mut self, board: &Board, asks: Vec<Ask>, take: &mut dyn FnMut(usize, Vec<Answer>)) {
        // Which bundle holds which policy is known here; the thread knows bundles only.
        let located: Vec<(Ask, Result<Vec<String>>)> = asks
            .into_iter()
            .map(|ask| {
                let bundles = locate(self.host, &ask);
                (ask, bundles)
            })
            .collect();
        let counts: Vec<usize> = located.iter().map(|(ask, _)| ask.slots.len()).collect();
        let mut next = 0;
        let lost = match send(self.host, board.clone(), located) {
            Ok((ticket, answers)) => loop {
                match answers.recv_timeout(Duration::from_millis(50)) {
                    Ok((number, answer)) => {
                        take(number, answer);
                        next = number + 1;
                        if next == counts.len() {
                            return;
                        }
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) if !ticket.is_lost() => {}
                    Err(_) => break ticket.lost(),
                }
            },
            Err(error) => error,
        };
        for (number, count) in counts.iter().enumerate().skip(next) {
            take(number, vec![Answer { place: Err(lost.clone()), note: None }; *count]);
        }
    }
}

type Answers = mpsc::Receiver<(usize, Vec<Answer>)>;

fn send(host: &ScriptHost, mut board: Board, asks: Vec<(Ask, Result<Vec<String>>)>) -> Result<(Ticket, Answers)> {
    let lane = host.lane(HostedKind::Policy)?;
    let ticket = Ticket::new(&lane);
    let stamp = ticket.stamp();
    let (reply, answers) = mpsc::sync_channel(AHEAD);
    lane.send(Box::new(move |vms: &Rc<Vms>| {
        stamp();
        vms.ledger.borrow_mut().begin();
        for (number, (ask, bundles)) in asks.into_iter().enumerate() {
            let answer = match bundles {
                Ok(bundles) => one(vms, &mut board, &ask, bundles),
                Err(error) => without(vms, &mut board, &ask, error),
            };
            if reply.send((number, answer)).is_err() {
                return;
            }
        }
    }));
    Ok((ticket, answers))
}

// For an ask whose policy cannot even be called.
fn without(vms: &Rc<Vms>, board: &mut Board, ask: &Ask, error: Error) -> Vec<Answer> {
    if error.kind != Kind::Script || ask.on_error != OnPolicyError::Spread {
        return vec![Answer { place: Err(error), note: None }; ask.slots.len()];
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
        let failure = answers
            .iter()
            .find_map(|answer| answer.place.as_ref().err().filter(|error| error.kind == crate::model::Kind::Script));
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
