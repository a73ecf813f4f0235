//! From a question to an answer. What is known of a name is kept, ready to be sent, for as long as the catalogue knows
//! nothing new of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::wire::{self, Code, EDNS, Head, LARGEST, PLAIN, Question, kind};
use super::zone::{Known, OWNER, Zone};
use crate::model::clock::mix;
use crate::network::catalog::Catalog;

/// Names and types that a thread keeps.
pub const KEPT: usize = 8192;
/// The same for a connection, which may be one of many.
pub const FEW: usize = 16;

/// What is to be done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is written.
    Answered,
    /// It is not one that is answered.
    Ignored,
    /// Others know.
    Elsewhere,
}

/// Answers questions; each thread has its own.
pub struct Answerer {
    catalog: Arc<Catalog>,
    zone: Arc<Zone>,
    // Whether there is somebody to ask about names of others.
    recursion: bool,
    kept: HashMap<Vec<u8>, Kept>,
    most: usize,
    asked: Vec<u8>,
    order: Vec<u16>,
    seed: u64,
}

struct Kept {
    known: Option<Known>,
    generation: u64,
}

impl Answerer {
    /// One for this catalogue that keeps so many names; `seed` decides the order of records.
    pub fn new(catalog: Arc<Catalog>, zone: Arc<Zone>, recursion: bool, most: usize, seed: u64) -> Self {
        let (kept, asked, order) = (HashMap::new(), Vec::new(), Vec::new());
        Answerer { catalog, zone, recursion, kept, most, asked, order, seed }
    }

    /// Writes the answer to `message` into `out`; over a stream it may be as long as it is.
    pub fn answer(&mut self, message: &[u8], stream: bool, out: &mut Vec<u8>) -> Outcome {
        let question = match wire::read(message) {
            None => return Outcome::Ignored,
            Some(Ok(question)) => question,
            Some(Err(code)) => {
                self.refuse(message, None, code, out);
                return Outcome::Answered;
            }
        };
        let code = match (question.edns, question.kind, question.class) {
            (Some(edns), ..) if edns.version > 0 => Some(Code::BadVers),
            (_, kind::AXFR | kind::IXFR, _) => Some(Code::Refused),
            (_, _, wire::IN | 255) => None,
            _ => Some(Code::Refused),
        };
        if let Some(code) = code {
            self.refuse(message, Some(&question), code, out);
            return Outcome::Answered;
        }
        let generation = self.catalog.generation();
        self.asked.clear();
        self.asked.extend(question.name.iter().map(u8::to_ascii_lowercase));
        self.asked.extend(question.kind.to_be_bytes());
        let fresh = self.kept.get_mut(self.asked.as_slice()).is_some_and(|kept| {
            // Something has changed since; seldom this.
            if kept.generation != generation {
                let topic = kept.known.as_ref().map(|known| known.topic.as_ref());
                let same = match topic {
                    Some(Some((topic, index))) => self.catalog.read(|state| state.index_of(topic)) == *index,
                    Some(None) => true,
                    // An address may be somebody's by now.
                    None => false,
                };
                if !same {
                    return false;
                }
                kept.generation = generation;
            }
            true
        });
        if !fresh {
            let name = &self.asked[..self.asked.len() - 2];
            let known = self.catalog.read(|state| self.zone.find(state, name, question.kind));
            if self.kept.len() >= self.most {
                self.kept.clear();
            }
            self.kept.insert(self.asked.clone(), Kept { known, generation });
        }
        let Some(known) = self.kept.get(self.asked.as_slice()).and_then(|kept| kept.known.as_ref()) else {
            if self.recursion && message[2] & 0x01 != 0 {
                return Outcome::Elsewhere;
            }
            self.refuse(message, Some(&question), Code::Refused, out);
            return Outcome::Answered;
        };
        let most = match (stream, question.edns) {
            (true, _) => usize::from(u16::MAX),
            (false, Some(edns)) => usize::from(edns.size).clamp(PLAIN, LARGEST),
            (false, None) => PLAIN,
        };
        self.seed = self.seed.wrapping_add(1);
        let head = Head { code: known.code, authoritative: true, recursion: self.recursion };
        wire::begin(message, Some(question.end), head, out);
        write(known, &mut self.order, mix(self.seed), question.edns.map(|edns| edns.dnssec), most, out);
        Outcome::Answered
    }

    /// Says what became of a message that has no answer.
    pub fn refuse(&self, message: &[u8], question: Option<&Question>, code: Code, out: &mut Vec<u8>) {
        let head = Head { code, authoritative: false, recursion: self.recursion };
        wire::begin(message, question.map(|question| question.end), head, out);
        if let Some(edns) = question.and_then(|question| question.edns) {
            wire::write_edns(code, edns.dnssec, out);
            wire::count(out, [0, 0, 1]);
        }
    }
}

// Records in random order, as many as there is room for; then the addresses of their targets; then EDNS.
fn write(known: &Known, order: &mut Vec<u16>, random: u64, edns: Option<bool>, most: usize, out: &mut Vec<u8>) {
    let most = most - if edns.is_some() { EDNS } else { 0 };
    shuffle(order, known.answers.len(), random);
    // Where each answer begins, in the order of their writing.
    let first = out.len();
    let (mut answers, mut more) = (0_u16, 0_u16);
    for number in order.iter() {
        let record = &known.answers[usize::from(*number)].answer;
        if out.len() + record.len() > most {
            wire::truncate(out);
            break;
        }
        out.extend(record);
        answers += 1;
    }
    let mut at = first;
    'all: for number in order.iter().take(usize::from(answers)) {
        let ready = &known.answers[usize::from(*number)];
        for record in &ready.more {
            let owner = at + OWNER;
            // A pointer has 14 bits.
            let name = &ready.answer[OWNER..];
            let length = if owner < 0x4000 { 2 } else { name.len() };
            if out.len() + length + record.len() > most {
                break 'all;
            }
            match owner < 0x4000 {
                true => out.extend((0xC000 | owner as u16).to_be_bytes()),
                false => out.extend(name),
            }
            out.extend(record);
            more += 1;
        }
        at += ready.answer.len();
    }
    let mut authorities = 0;
    if !known.authority.is_empty() && out.len() + known.authority.len() <= most {
        out.extend(&known.authority);
        authorities = 1;
    }
    if let Some(dnssec) = edns {
        wire::write_edns(known.code, dnssec, out);
        more += 1;
    }
    wire::count(out, [answers, authorities, more]);
}

// Fisher and Yates.
fn shuffle(order: &mut Vec<u16>, count: usize, random: u64) {
    order.clear();
    order.extend(0..u16::try_from(count).unwrap_or(u16::MAX));
    let mut random = random;
    for last in (1..order.len()).rev() {
        // 32 bits are even enough for a thousand.
        let other = ((random & 0xFFFF_FFFF) * (last as u64 + 1)) >> 32;
        order.swap(last, other as usize);
        random = mix(random);
    }
}
