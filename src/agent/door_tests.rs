use std::net::IpAddr;

use super::*;
use crate::agent::authority::{JoinToken, agent_key, public_key};
use crate::agent::link::{self, Reader};
use crate::agent::protocol::Frame;
use crate::agent::work::Worker;
use crate::engines::docker::Address;
use crate::engines::hosts::Hosts;
use crate::engines::registrator::Wanted;
use crate::model::clock::{Clock, SystemClock};
use crate::network::balancer::client::{BalancerClient, BalancerOptions};
use crate::network::catalog::Catalog;
use crate::store::MemoryStore;
use crate::store::vault::Vault;

struct Silent;

impl Audit for Silent {
    fn record(&self, _: &Principal, _: &str, _: &str, _: &Result<()>) {}
}

// A door of the daemon on "lead", with the workers "w1" and "w2" and another manager.
async fn door(folder: &std::path::Path) -> Arc<Door> {
    // A path that exists, where nobody listens.
    let docker = Address::read(&format!("unix://{}", folder.display()), None, "here").unwrap();
    let options = BalancerOptions { folder: folder.to_owned(), program: "/nonexistent".into(), lifeline: false };
    let worker = Arc::new(Worker::new(
        docker.clone(),
        Box::new(BalancerClient::new(options)),
        Arc::new(Catalog::new(1)),
        Wanted::default(),
    ));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let node = |id: &str, role| Node { role, ..Node::new(id, id) };
    let nodes = vec![
        node("lead", Role::Manager),
        node("other", Role::Manager),
        node("w1", Role::Worker),
        node("w2", Role::Worker),
    ];
    let (sender, nodes) = watch::channel(Arc::new(nodes));
    // Nodes stay as they are.
    std::mem::forget(sender);
    let door = Arc::new(Door {
        hub: Hub::new("lead", worker),
        authority: Authority::open(&store, Vault::in_memory().unwrap(), &clock).await.unwrap(),
        store,
        swarm: LocalSwarm::with(docker.client().await.unwrap(), docker.clone()),
        nodes,
        name: "default".into(),
        cluster: "default.1".into(),
        term: 1,
        address: "10.0.0.1:8377".into(),
        secret: "daemons".into(),
        leads: Box::new(|| true),
        audit: Arc::new(Silent),
    });
    door.know("lead").await.unwrap();
    door
}

fn ask(door: &Door, node: &str, key: &str) -> CertifyAsk {
    let token: JoinToken = door.authority.token(Role::Worker).unwrap().parse().unwrap();
    CertifyAsk { secret: token.secret, node: node.into(), key: public_key(key).unwrap() }
}

async fn certified(door: &Door, ask: &CertifyAsk, shown: Option<&str>) -> std::result::Result<String, String> {
    let answer = door.certify(ask, shown).await.map_err(|error| error.message)?;
    Ok(fingerprint(&answer.certificate).unwrap())
}

#[tokio::test]
async fn a_token_takes_nobody_elses_place() {
    let folder = tempfile::tempdir().unwrap();
    let door = door(folder.path()).await;
    let (one, two) = (agent_key().unwrap().0, agent_key().unwrap().0);
    for manager in ["lead", "other"] {
        let refused = certified(&door, &ask(&door, manager, &one), None).await.unwrap_err();
        assert_eq!(refused, "is a manager: a daemon acts for it, not an agent");
    }
    let print = certified(&door, &ask(&door, "w1", &one), None).await.unwrap();
    assert_eq!(certified(&door, &ask(&door, "w1", &two), None).await.unwrap_err(), "has an agent already");
    // The answer was lost: the same key again. And without the token nothing.
    certified(&door, &ask(&door, "w1", &one), None).await.unwrap();
    let without = CertifyAsk { secret: "0".repeat(32), ..ask(&door, "w2", &one) };
    assert_eq!(certified(&door, &without, None).await.unwrap_err(), "is not known here");
    // One agent's certificate is none for another's node.
    assert_eq!(
        certified(&door, &CertifyAsk { node: "w2".into(), ..without }, Some(&print)).await.unwrap_err(),
        "is not known here"
    );
}

#[tokio::test]
async fn a_renewal_whose_answers_are_lost_locks_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let door = door(folder.path()).await;
    let key = agent_key().unwrap().0;
    let first = certified(&door, &ask(&door, "w1", &key), None).await.unwrap();
    let renewal = CertifyAsk { secret: String::new(), ..ask(&door, "w1", &key) };
    let knows = |print: &str| door.who(&HeaderMap::new(), Some(print)).is_ok();
    let mut lost = Vec::new();
    for _ in 0..4 {
        lost.push(certified(&door, &renewal, Some(&first)).await.unwrap());
        assert!(knows(&first), "what the agent has stays good");
    }
    assert!(!knows(&lost[0]) && knows(&lost[3]));
    // Used at last: then the first is not needed any more.
    certified(&door, &renewal, Some(&lost[3])).await.unwrap();
    assert!(!knows(&first) && knows(&lost[3]));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_agent_is_not_let_in_by_a_late_word() {
    let folder = tempfile::tempdir().unwrap();
    let door = door(folder.path()).await;
    let key = agent_key().unwrap().0;
    let print = certified(&door, &ask(&door, "w1", &key), None).await.unwrap();
    let connect = |daemon: Option<&str>| {
        let (near, far) = tokio::io::duplex(1 << 16);
        let caller = door.who(&HeaderMap::new(), Some(&print)).unwrap();
        let address = IpAddr::from([10, 0, 0, 2]);
        let welcome = Welcome { term: 1, cluster: "default.1".into(), address, daemons: Vec::new() };
        let served = door.clone();
        let serving = tokio::spawn(async move {
            let heard = async |hello: &Hello| served.heard(&caller, hello).await;
            served.hub.serve("w1".into(), false, near, welcome, heard).await.unwrap_err().message
        });
        let (read, write) = tokio::io::split(far);
        let hello = Frame::Hello(Hello { version: "1".into(), daemon: daemon.map(str::to_owned), service: None });
        (serving, Reader(read), link::writer(write), hello)
    };
    // One that says who it is is there; that it is a daemon is not for it to say.
    let (serving, mut reader, frames, hello) = connect(Some("10.9.9.9:1"));
    assert!(matches!(reader.next().await, Ok(Frame::Welcome(_))));
    frames.send(hello).await.unwrap();
    let mut agents = door.hub.agents();
    agents.wait_for(|agents| agents.get("w1").is_some_and(|agent| agent.connected && !agent.daemon)).await.unwrap();
    assert_eq!(door.daemons().unwrap(), ["10.0.0.1:8377"]);
    // Forgotten, it is not listened to any more.
    let (late, _reader, late_frames, late_hello) = connect(None);
    assert!(door.forget("w1").await.unwrap());
    agents.wait_for(|agents| !agents.contains_key("w1")).await.unwrap();
    frames.send(Frame::Balancer).await.unwrap();
    assert_eq!(serving.await.unwrap(), "has connected anew, or is not known any more");
    // Nor is one that was silent until then.
    late_frames.send(late_hello).await.unwrap();
    assert_eq!(late.await.unwrap(), "is not known here");
    assert!(!door.hub.agents().borrow().contains_key("w1") && !door.forget("w1").await.unwrap());
    // Beats alone keep no connection up for ever.
    let again = certified(&door, &ask(&door, "w2", &key), None).await.unwrap();
    let caller = door.who(&HeaderMap::new(), Some(&again)).unwrap();
    assert_eq!(&**caller.node(), "w2");
    let (near, far) = tokio::io::duplex(1 << 16);
    let welcome = Welcome { term: 1, cluster: "x".into(), address: IpAddr::from([10, 0, 0, 3]), daemons: Vec::new() };
    let _beating = link::writer(far);
    let heard = async |hello: &Hello| door.heard(&caller, hello).await;
    let ended = door.hub.serve("w2".into(), false, near, welcome, heard).await.unwrap_err();
    assert_eq!(ended.message, "does not say who it is");
}

#[tokio::test]
async fn whoever_leads_next_waits_for_all_that_were_there() {
    let folder = tempfile::tempdir().unwrap();
    let door = door(folder.path()).await;
    certified(&door, &ask(&door, "w1", &agent_key().unwrap().0), None).await.unwrap();
    // A new hub over the same records, as of a daemon that has just taken the lead: its own record is there already.
    door.hub.set_known(|| Ok(BTreeMap::new())).unwrap();
    assert!(!door.hub.agents().borrow().contains_key("w1"));
    door.know("lead").await.unwrap();
    let agents = door.hub.agents().borrow().clone();
    assert!(agents.get("w1").is_some_and(|agent| !agent.connected), "known, and not there yet: {agents:?}");
}
