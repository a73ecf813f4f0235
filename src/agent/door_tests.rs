use std::net::IpAddr;

use super::*;
use crate::agent::authority::{JoinToken, agent_key, public_key};
use crate::agent::hub::{Calls, Served};
use crate::agent::link::{self, Reader};
use crate::agent::protocol::Frame;
use crate::agent::work::Worker;
use crate::engines::docker::Address;
use crate::engines::hosts::Hosts;
use crate::engines::registrator::{Changed, Wanted};
use crate::model::catalog::{CatalogNode, Instance};
use crate::model::clock::{Clock, SystemClock};
use crate::network::balancer::client::{BalancerClient, BalancerOptions};
use crate::network::catalog::{Catalog, Portion};
use crate::store::MemoryStore;
use crate::store::vault::Vault;

struct Silent;

impl Audit for Silent {
    fn record(&self, _: &Principal, _: &str, _: &str, _: &Result<()>) {}
}

struct Nothing;

#[async_trait::async_trait]
impl Calls for Nothing {
    async fn call(&self, _: &NodeId, _: serde_json::Value) -> Result<serde_json::Value> {
        Err(Error::not_found("call"))
    }

    fn containers(&self, _: &NodeId, _: &Changed) -> bool {
        true
    }
}

/// Agents of a large cluster.
const MANY: usize = 300;

// A door of the daemon on "lead", with the workers "w1" and "w2", those of a large cluster, and another manager.
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
    let mut nodes = vec![
        node("lead", Role::Manager),
        node("other", Role::Manager),
        node("w1", Role::Worker),
        node("w2", Role::Worker),
    ];
    nodes.extend((0..MANY).map(|number| node(&format!("many-{number}"), Role::Worker)));
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
        let welcome = Welcome { term: 1, cluster: "default.1".into(), address, daemons: Vec::new(), registry: None };
        let served = door.clone();
        let serving = tokio::spawn(async move {
            let heard = async |hello: &Hello| served.heard(&caller, hello).await;
            served.hub.serve("w1".into(), false, near, welcome, heard).await.unwrap_err().message
        });
        let (read, write) = tokio::io::split(far);
        let hello = Frame::Hello(Hello {
            version: "1".into(),
            daemon: daemon.map(str::to_owned),
            service: None,
            registry: None,
        });
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
    let welcome = Welcome {
        term: 1,
        cluster: "x".into(),
        address: IpAddr::from([10, 0, 0, 3]),
        daemons: Vec::new(),
        registry: None,
    };
    let _beating = link::writer(far);
    let heard = async |hello: &Hello| door.heard(&caller, hello).await;
    let ended = door.hub.serve("w2".into(), false, near, welcome, heard).await.unwrap_err();
    assert_eq!(ended.message, "does not say who it is");
}

// A daemon begins, or takes the lead, and all connect in the same moment: each is let in, hears the whole catalogue and stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_agents_of_a_large_cluster_at_once() {
    const INSTANCES: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let door = door(folder.path()).await;
    let catalog = Arc::new(Catalog::new(1));
    catalog.change(|draft| {
        draft.put_node(CatalogNode { name: "n".into(), address: "10.0.0.1".into(), ..CatalogNode::default() });
        for number in 0..INSTANCES {
            let (id, service) = (format!("web-{number}"), "web".to_owned());
            draft.put_instance("n", Instance { id, service, port: 80, ..Instance::default() });
        }
    });
    let from = tokio::time::Instant::now();
    door.hub.serve_calls(Served { catalog, calls: Arc::new(Nothing), from });
    let key = agent_key().unwrap().0;
    let mut prints = Vec::new();
    for number in 0..MANY {
        prints.push(certified(&door, &ask(&door, &format!("many-{number}"), &key), None).await.unwrap());
    }
    let began = std::time::Instant::now();
    let all_heard = Arc::new(tokio::sync::Barrier::new(MANY));
    let mut all = tokio::task::JoinSet::new();
    for (number, print) in prints.into_iter().enumerate() {
        let (door, all_heard) = (door.clone(), all_heard.clone());
        all.spawn(async move {
            let (near, far) = tokio::io::duplex(1 << 16);
            let caller = door.who(&HeaderMap::new(), Some(&print)).unwrap();
            let address = IpAddr::from([10, 1, (number >> 8) as u8, number as u8]);
            let welcome =
                Welcome { term: 1, cluster: "default.1".into(), address, daemons: Vec::new(), registry: None };
            let served = door.clone();
            let serving = tokio::spawn(async move {
                let heard = async |hello: &Hello| served.heard(&caller, hello).await;
                served.hub.serve(format!("many-{number}").into(), false, near, welcome, heard).await
            });
            let (read, write) = tokio::io::split(far);
            let (mut reader, frames) = (Reader(read), link::writer(write));
            frames
                .send(Frame::Hello(Hello { version: "1".into(), daemon: None, service: None, registry: None }))
                .await
                .unwrap();
            let (mut gathered, mut instances) = (Portion::default(), 0);
            while instances == 0 {
                if let Frame::Catalog(piece) = reader.next().await.unwrap()
                    && let Some(whole) = gathered.gather(piece)
                {
                    instances = whole.instances.len();
                }
            }
            // It goes on to be there until all are.
            let reading = tokio::spawn(async move { while reader.next().await.is_ok() {} });
            all_heard.wait().await;
            let is_served = !serving.is_finished();
            reading.abort();
            (instances, is_served)
        });
    }
    let told = tokio::time::timeout(Duration::from_secs(60), all.join_all()).await.expect("all of them hear it");
    println!("{MANY} agents were there with {INSTANCES} instances each after {:.2} s", began.elapsed().as_secs_f32());
    assert_eq!(told, vec![(INSTANCES, true); MANY]);
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
