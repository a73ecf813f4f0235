use std::sync::Arc;

use super::answer::{Answerer, Outcome};
use super::wire::{Data, HEAD, kind};
use super::*;
use crate::model::catalog::{CatalogCheck, CatalogNode, CheckStatus, Instance};
use crate::network::catalog::Catalog;

fn zone() -> Arc<Zone> {
    Arc::new(Zone {
        domains: vec![Name::parse("consul").unwrap(), Name::parse("neap.").unwrap()],
        datacenter: "dc1".into(),
        node: "eu-1".into(),
        service_ttl: 0,
        node_ttl: 0,
    })
}

fn put(catalog: &Catalog, node: &str, instance: Instance) {
    catalog.change(|draft| assert!(draft.put_instance(node, instance)));
}

fn instance(service: &str, id: &str, address: &str, port: u16) -> Instance {
    let (id, service, address) = (id.into(), service.into(), address.into());
    Instance { id, service, address, port, ..Instance::default() }
}

fn catalog() -> Arc<Catalog> {
    let catalog = Catalog::new(1);
    catalog.change(|draft| {
        for (name, address) in [("eu-1", "10.0.0.1"), ("eu-2.lan", "2001:db8::2"), ("far", "far.example.com")] {
            let node = CatalogNode { name: name.into(), address: address.into(), ..CatalogNode::default() };
            draft.put_node(node);
        }
    });
    let tags = vec!["v1".into(), "blue.green".into()];
    put(&catalog, "eu-1", Instance { tags, ..instance("web", "web-1", "", 80) });
    put(&catalog, "eu-2.lan", instance("web", "web-2", "10.0.0.9", 8080));
    put(&catalog, "eu-2.lan", instance("six", "six", "", 6));
    put(&catalog, "far", instance("far", "far", "", 1));
    Arc::new(catalog)
}

fn message(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut out = vec![0xAB, 0xCD, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    if let Some(size) = edns {
        out.extend([0, 0, 41]);
        out.extend(size.to_be_bytes());
        out.extend([0, 0, 0, 0, 0, 0]);
    }
    out
}

struct Asker(Answerer);

impl Asker {
    fn new(catalog: &Arc<Catalog>) -> Self {
        Asker(Answerer::new(catalog.clone(), zone(), false, 100, 7))
    }

    fn raw(&mut self, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(self.0.answer(message, false, &mut out), Outcome::Answered);
        assert_eq!(out[..2], message[..2]);
        out
    }

    // The code, and the records as people write them, in the order of their text.
    fn ask(&mut self, name: &str, kind: u16) -> (u8, Vec<String>) {
        let out = self.raw(&message(name, kind, Some(4096)));
        let mut all = shown(&out);
        all.sort();
        (out[3] & 0x0F, all)
    }
}

fn word(message: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([message[at], message[at + 1]]))
}

fn name_at(message: &[u8], mut at: usize) -> (String, usize) {
    let (mut name, mut end) = (String::new(), None);
    loop {
        match message[at] {
            0 => return (name, end.unwrap_or(at + 1)),
            192.. => {
                end = end.or(Some(at + 2));
                at = word(message, at) & 0x3FFF;
            }
            length => {
                let label = &message[at + 1..at + 1 + usize::from(length)];
                name.push_str(&format!("{}.", String::from_utf8_lossy(label)));
                at += 1 + usize::from(length);
            }
        }
    }
}

// All records but that of EDNS.
fn shown(message: &[u8]) -> Vec<String> {
    let mut at = name_at(message, HEAD).1 + 4;
    let mut all = Vec::new();
    for _ in 0..word(message, 6) + word(message, 8) + word(message, 10) {
        let (owner, end) = name_at(message, at);
        let (kind, length, data) = (word(message, end) as u16, word(message, end + 8), end + 10);
        let text = match kind {
            kind::A => {
                format!("A {}", std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&message[data..data + 4]).unwrap()))
            }
            kind::AAAA => {
                format!("AAAA {}", std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&message[data..data + 16]).unwrap()))
            }
            kind::SRV => {
                format!("SRV {} {} {}", word(message, data + 2), word(message, data + 4), name_at(message, data + 6).0)
            }
            kind::CNAME => format!("CNAME {}", name_at(message, data).0),
            kind::PTR => format!("PTR {}", name_at(message, data).0),
            kind::NS => format!("NS {}", name_at(message, data).0),
            kind::SOA => format!("SOA {}", name_at(message, data).0),
            kind::TXT => format!("TXT {}", String::from_utf8_lossy(&message[data + 1..data + length])),
            _ => String::new(),
        };
        at = data + length;
        if !text.is_empty() {
            all.push(format!("{owner} {text}"));
        }
    }
    assert_eq!(at, message.len());
    all
}

#[test]
fn names_in_consuls_scheme() {
    let catalog = catalog();
    let mut asker = Asker::new(&catalog);
    let mut check = |name: &str, kind: u16, code: u8, expected: &[&str]| {
        let (got, records) = asker.ask(name, kind);
        assert_eq!((got, records), (code, expected.iter().map(|text| (*text).to_owned()).collect()), "{name} {kind}");
    };
    let soa = "consul. SOA ns.consul.";
    check("eu-1.node.consul", kind::A, 0, &["eu-1.node.consul. A 10.0.0.1"]);
    check("EU-1.Node.DC1.Consul", kind::A, 0, &["EU-1.Node.DC1.Consul. A 10.0.0.1"]);
    check("eu-1.node.neap", kind::A, 0, &["eu-1.node.neap. A 10.0.0.1"]);
    check("eu-1.node.dc2.consul", kind::A, 3, &[soa]);
    check("eu-1.node.consul", kind::AAAA, 0, &[soa]);
    check("eu-2.lan.node.consul", kind::AAAA, 0, &["eu-2.lan.node.consul. AAAA 2001:db8::2"]);
    check("far.node.consul", kind::A, 0, &["far.node.consul. CNAME far.example.com."]);
    check("none.node.consul", kind::A, 3, &[soa]);
    check("web.service.consul", kind::A, 0, &["web.service.consul. A 10.0.0.1", "web.service.consul. A 10.0.0.9"]);
    check("v1.web.service.consul", kind::A, 0, &["v1.web.service.consul. A 10.0.0.1"]);
    check("blue.green.web.service.dc1.consul", kind::A, 0, &["blue.green.web.service.dc1.consul. A 10.0.0.1"]);
    check("v2.web.service.consul", kind::A, 3, &[soa]);
    check("web.service.consul", kind::TXT, 0, &[soa]);
    check("service.consul", kind::A, 0, &[soa]);
    check("nothing.of.this.consul", kind::A, 3, &[soa]);
    check("consul", kind::SOA, 0, &["consul. SOA ns.consul."]);
    check("consul", kind::NS, 0, &["consul. NS eu-1.node.dc1.consul."]);
    check("ns.consul", kind::A, 0, &["ns.consul. A 10.0.0.1"]);
    check("0a000009.addr.consul", kind::A, 0, &["0a000009.addr.consul. A 10.0.0.9"]);
    check("0a00000g.addr.consul", kind::A, 3, &[soa]);
    let six = "20010db8000000000000000000000002.addr.dc1.consul";
    check(six, kind::AAAA, 0, &[&format!("{six}. AAAA 2001:db8::2")]);
    check(
        "_web._tcp.service.consul",
        kind::SRV,
        0,
        &[
            "0a000009.addr.dc1.consul. A 10.0.0.9",
            "_web._tcp.service.consul. SRV 1 80 eu-1.node.dc1.consul.",
            "_web._tcp.service.consul. SRV 1 8080 0a000009.addr.dc1.consul.",
            "eu-1.node.dc1.consul. A 10.0.0.1",
        ],
    );
    check(
        "_web._v1.service.neap",
        kind::SRV,
        0,
        &["_web._v1.service.neap. SRV 1 80 eu-1.node.dc1.neap.", "eu-1.node.dc1.neap. A 10.0.0.1"],
    );
    check("far.service.consul", kind::SRV, 0, &["far.service.consul. SRV 1 1 far.node.dc1.consul."]);
    check("1.0.0.10.in-addr.arpa", kind::PTR, 0, &["1.0.0.10.in-addr.arpa. PTR eu-1.node.dc1.consul."]);
    check("9.0.0.10.in-addr.arpa", kind::PTR, 0, &["9.0.0.10.in-addr.arpa. PTR web.service.dc1.consul."]);
    check("9.9.9.9.in-addr.arpa", kind::PTR, 5, &[]);
    check("example.com", kind::A, 5, &[]);
    check("consul", kind::AXFR, 5, &[]);
}

#[test]
fn what_is_critical_is_left_out_and_answers_follow() {
    let catalog = catalog();
    let mut asker = Asker::new(&catalog);
    assert_eq!(asker.ask("web.service.consul", kind::A).1.len(), 2);
    let say = |status| {
        let (id, instance) = ("c".into(), "web-2".into());
        let check = CatalogCheck { id, instance, name: "c".into(), status, ..CatalogCheck::default() };
        catalog.change(|draft| assert!(draft.put_check("eu-2.lan", check)));
    };
    say(CheckStatus::Critical);
    assert_eq!(asker.ask("web.service.consul", kind::A).1, ["web.service.consul. A 10.0.0.1"]);
    say(CheckStatus::Warning);
    assert_eq!(asker.ask("web.service.consul", kind::A).1.len(), 2);
    // What did not exist, and then does; and an address that somebody has by then.
    assert_eq!(asker.ask("new.service.consul", kind::A).0, 3);
    assert_eq!(asker.ask("7.0.0.10.in-addr.arpa", kind::PTR).0, 5);
    put(&catalog, "eu-1", instance("new", "new", "10.0.0.7", 1));
    assert_eq!(asker.ask("new.service.consul", kind::A).0, 0);
    assert_eq!(asker.ask("7.0.0.10.in-addr.arpa", kind::PTR).0, 0);
    catalog.change(|draft| draft.remove_node("eu-1"));
    assert_eq!(asker.ask("new.service.consul", kind::A).0, 3);
}

#[test]
fn what_does_not_fit_is_said_to_be_more() {
    let catalog = catalog();
    for number in 0..200_u8 {
        put(&catalog, "eu-1", instance("many", &format!("many-{number}"), &format!("10.0.1.{number}"), 80));
    }
    let mut asker = Asker::new(&catalog);
    let mut sizes = |kind: u16, edns: Option<u16>| {
        let out = asker.raw(&message("many.service.consul", kind, edns));
        assert!(out.len() <= usize::from(edns.unwrap_or(512).max(512)), "{}", out.len());
        shown(&out);
        (word(&out, 6), out[2] & 0x02 != 0)
    };
    assert_eq!(sizes(kind::A, None), (29, true));
    assert_eq!(sizes(kind::A, Some(100)), (29, true));
    assert_eq!(sizes(kind::A, Some(1232)), (74, true));
    assert_eq!(sizes(kind::A, Some(4096)), (200, false));
    let (some, more) = sizes(kind::SRV, Some(1232));
    assert!((20..200).contains(&some) && more, "{some}");
    // Over a stream it is whole, with names in place of pointers that would not reach.
    let mut out = Vec::new();
    asker.0.answer(&message("many.service.consul", kind::SRV, None), true, &mut out);
    assert_eq!((word(&out, 6), word(&out, 10), out[2] & 0x02), (200, 200, 0));
    let all = shown(&out);
    assert!(all.iter().filter(|record| record.contains(" A 10.0.1.")).count() == 200);
}

#[test]
fn the_order_is_another_each_time() {
    let catalog = catalog();
    let mut asker = Asker::new(&catalog);
    let mut first = [0, 0];
    for _ in 0..1000 {
        let out = shown(&asker.raw(&message("web.service.consul", kind::A, None)));
        first[usize::from(out[0].ends_with(".9"))] += 1;
    }
    assert!(first.iter().all(|count| (400..600).contains(count)), "{first:?}");
}

#[test]
fn malformed_messages_are_refused_or_ignored() {
    let catalog = catalog();
    let mut asker = Asker::new(&catalog);
    let good = message("web.service.consul", kind::A, Some(1232));
    let mut out = Vec::new();
    // Cut short anywhere, it is no question.
    for end in 0..good.len() {
        match asker.0.answer(&good[..end], false, &mut out) {
            Outcome::Ignored => assert!(end < HEAD),
            outcome => assert_eq!((outcome, out[3] & 0x0F), (Outcome::Answered, 1), "cut at {end}"),
        }
    }
    // An answer is not answered.
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(asker.0.answer(&answer, false, &mut out), Outcome::Ignored);
    let mut with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        let mut out = Vec::new();
        asker.0.answer(&bad, false, &mut out);
        out[3] & 0x0F
    };
    // An update; two questions; none; a pointer in the name; a label too long; a version of EDNS to come.
    assert_eq!([with(2, 0x28), with(5, 2), with(5, 0), with(12, 0xC0), with(12, 64)], [4, 1, 1, 1, 1]);
    let version = good.len() - 5;
    assert_eq!(with(version, 1), 0);
    let mut later = good.clone();
    later[version] = 1;
    let out = asker.raw(&later);
    assert_eq!(out[out.len() - 6], 1, "the rest of BADVERS stands in the record of EDNS");
    // Noise of any kind never does harm.
    let mut seed = 1_u64;
    for _ in 0..200_000 {
        let mut noise = good.clone();
        for _ in 0..3 {
            seed = crate::model::clock::mix(seed);
            let at = (seed >> 8) as usize % noise.len();
            noise[at] = seed as u8;
        }
        let mut out = Vec::new();
        asker.0.answer(&noise, seed & 1 == 0, &mut out);
    }
}

#[test]
fn texts_are_cut_into_strings() {
    let mut out = Vec::new();
    Data::Txt(vec![b'x'; 300]).write(0, &mut out);
    assert_eq!((out[10], out[10 + 256]), (255, 45));
    assert!(Name::new([&[b'x'; 64][..]]).is_none() && Name::parse("a..b").is_none());
}
