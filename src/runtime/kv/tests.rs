use std::sync::Arc;
use std::time::Duration as StdDuration;

use super::change::{Op, Outcome, Verb};
use super::index::Topic;
use super::session::Session;
use super::{Kv, KvSet};
use crate::model::catalog::{CatalogCheck, CatalogNode, CheckStatus, SERF_HEALTH};
use crate::model::clock::SystemClock;
use crate::model::units::Duration;
use crate::network::catalog::Catalog;
use crate::store::{MemoryStore, Store};

fn load(store: &Arc<MemoryStore>) -> Arc<Kv> {
    let store: Arc<dyn Store> = store.clone();
    Kv::load(store, Arc::new(SystemClock::start())).unwrap()
}

fn catalog() -> Arc<Catalog> {
    let catalog = Arc::new(Catalog::new(1));
    catalog.change(|draft| draft.put_node(CatalogNode { name: "eu-1".into(), ..CatalogNode::default() }));
    health(&catalog, CheckStatus::Passing);
    catalog
}

fn health(catalog: &Catalog, status: CheckStatus) {
    let check = CatalogCheck { id: SERF_HEALTH.into(), name: SERF_HEALTH.into(), status, ..CatalogCheck::default() };
    catalog.change(|draft| draft.put_check("eu-1", check));
}

fn session() -> Session {
    Session { node: "eu-1".into(), node_checks: vec![SERF_HEALTH.into()], ..Session::default() }
}

async fn run(kv: &Kv, verb: Verb, key: &str, session: &str) -> bool {
    let op = Op { session: session.into(), value: b"v".to_vec(), ..Op::new(verb, key) };
    matches!(kv.run(&[op]).await.unwrap(), Outcome::Done(..))
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_held_by_one_session_and_let_go_with_it() {
    let (store, catalog) = (Arc::new(MemoryStore::new()), catalog());
    let kv = load(&store);
    kv.keep_sessions(catalog.clone()).unwrap();
    let delayed = Session { lock_delay: Duration::from_secs(5), ..session() };
    let first = kv.begin_session(delayed, &catalog).await.unwrap();
    let second = kv.begin_session(session(), &catalog).await.unwrap();
    assert!(run(&kv, Verb::Lock, "leader", &first).await);
    assert!(!run(&kv, Verb::Lock, "leader", &second).await);
    assert!(!run(&kv, Verb::Unlock, "leader", &second).await);
    // Once more is not once again.
    assert!(run(&kv, Verb::Lock, "leader", &first).await);
    assert_eq!(kv.pair("leader").unwrap().unwrap().lock_index, 1);
    // Whoever does not ask for the lock is not kept from writing, and lets nobody in.
    assert!(run(&kv, Verb::Set, "leader", "").await);
    assert_eq!(kv.pair("leader").unwrap().unwrap().session.as_ref(), Some(&first));
    assert!(run(&kv, Verb::Unlock, "leader", &first).await);
    assert!(run(&kv, Verb::Lock, "leader", &second).await);
    assert!(run(&kv, Verb::Unlock, "leader", &second).await);
    assert!(run(&kv, Verb::Lock, "leader", &first).await);

    kv.end_session(&first).await.unwrap();
    assert_eq!(kv.pair("leader").unwrap().unwrap().session, None);
    assert!(!run(&kv, Verb::Lock, "leader", &second).await, "it is held back");
    tokio::time::sleep(StdDuration::from_secs(6)).await;
    assert!(run(&kv, Verb::Lock, "leader", &second).await);
    let refused = kv.run(&[Op { session: first, ..Op::new(Verb::Lock, "leader") }]).await.unwrap();
    assert!(matches!(refused, Outcome::Refused(why) if why[0].1.starts_with("invalid session")));
}

#[tokio::test(start_paused = true)]
async fn sessions_end_with_their_time_their_checks_and_their_node() {
    let (store, catalog) = (Arc::new(MemoryStore::new()), catalog());
    let kv = load(&store);
    kv.keep_sessions(catalog.clone()).unwrap();
    let short = Session { ttl: Some(Duration::from_secs(5)), ..session() };
    assert!(kv.begin_session(short, &catalog).await.unwrap_err().to_string().contains("Invalid Session TTL"));

    let timed = Session { ttl: Some(Duration::from_secs(10)), deletes: true, ..session() };
    let id = kv.begin_session(timed, &catalog).await.unwrap();
    assert!(run(&kv, Verb::Lock, "job", &id).await);
    for _ in 0..5 {
        tokio::time::sleep(StdDuration::from_secs(9)).await;
        assert!(kv.renew_session(&id).unwrap().is_some());
    }
    // Not before its time, whenever it was last renewed, and not long after.
    tokio::time::sleep(StdDuration::from_secs(10)).await;
    assert!(kv.session(&id).unwrap().is_some());
    let before = kv.index_of(&Topic::Key("job".into()));
    tokio::time::sleep(StdDuration::from_secs(6)).await;
    assert!(kv.session(&id).unwrap().is_none() && kv.renew_session(&id).unwrap().is_none());
    assert!(kv.pair("job").unwrap().is_none() && kv.index_of(&Topic::Key("job".into())) > before);

    // For a moment behind a start nothing ends for what is not known again.
    tokio::time::sleep(StdDuration::from_secs(10)).await;
    let id = kv.begin_session(session(), &catalog).await.unwrap();
    health(&catalog, CheckStatus::Critical);
    tokio::time::sleep(StdDuration::from_secs(1)).await;
    assert!(kv.session(&id).unwrap().is_none());
    let error = kv.begin_session(session(), &catalog).await.unwrap_err().to_string();
    assert!(error.contains("critical state"), "{error}");

    health(&catalog, CheckStatus::Warning);
    let id = kv.begin_session(session(), &catalog).await.unwrap();
    catalog.change(|draft| draft.remove_node("eu-1"));
    tokio::time::sleep(StdDuration::from_secs(1)).await;
    assert!(kv.session(&id).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_locks_and_no_index_goes_back() {
    let (store, catalog) = (Arc::new(MemoryStore::new()), catalog());
    let kv = load(&store);
    kv.hold_index().await.unwrap();
    kv.keep_sessions(catalog.clone()).unwrap();
    let timed = Session { ttl: Some(Duration::from_secs(10)), ..session() };
    let id = kv.begin_session(timed, &catalog).await.unwrap();
    assert!(run(&kv, Verb::Lock, "a/lock", &id).await);
    assert!(run(&kv, Verb::Set, "a/gone", "").await && run(&kv, Verb::Delete, "a/gone", "").await);
    let topics = [Topic::Prefix("a/".into()), Topic::Key("a/gone".into()), Topic::Sessions];
    let before: Vec<u64> = topics.iter().map(|topic| kv.index_of(topic)).collect();

    let kv = load(&store);
    kv.hold_index().await.unwrap();
    kv.keep_sessions(catalog.clone()).unwrap();
    for (topic, before) in topics.iter().zip(before) {
        assert!(kv.index_of(topic) >= before, "{topic:?}");
    }
    // Its time begins anew; then what it held is let go.
    tokio::time::sleep(StdDuration::from_secs(14)).await;
    assert_eq!(kv.pair("a/lock").unwrap().unwrap().session, Some(id));
    tokio::time::sleep(StdDuration::from_secs(2)).await;
    assert_eq!(kv.pair("a/lock").unwrap().unwrap().session, None);
}

#[tokio::test]
async fn many_at_once_lose_nothing() {
    let kv = load(&Arc::new(MemoryStore::new()));
    let add = |kv: Arc<Kv>| async move {
        loop {
            let known = kv.pair("count").unwrap();
            let count: u32 = known.as_ref().map_or(0, |pair| String::from_utf8_lossy(&pair.value).parse().unwrap());
            let version = Some(known.map_or(0, |pair| pair.modified));
            let set = KvSet { value: (count + 1).to_string(), version, ..KvSet::default() };
            if kv.set("count", set).await.is_ok() {
                return;
            }
        }
    };
    futures_util::future::join_all((0..100).map(|_| tokio::spawn(add(kv.clone())))).await;
    assert_eq!(kv.pair("count").unwrap().unwrap().value, b"100");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_woken_by_its_own_alone() {
    let kv = load(&Arc::new(MemoryStore::new()));
    assert!(run(&kv, Verb::Set, "shop/a", "").await);
    let wait = |topic: Topic| {
        let kv = kv.clone();
        tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            let index = kv.index_of(&topic);
            kv.wait(&topic, index, StdDuration::from_secs(60)).await;
            began.elapsed() < StdDuration::from_secs(60)
        })
    };
    let (tree, key, other) =
        (wait(Topic::Prefix("shop/".into())), wait(Topic::Key("shop/b".into())), wait(Topic::Prefix("bank".into())));
    tokio::time::sleep(StdDuration::from_secs(1)).await;
    assert!(run(&kv, Verb::Set, "shop/b", "").await);
    assert!(tree.await.unwrap() && key.await.unwrap());
    assert!(!other.await.unwrap());
    // What was removed as one of many as well.
    let gone = wait(Topic::Key("shop/a".into()));
    tokio::time::sleep(StdDuration::from_secs(1)).await;
    assert!(run(&kv, Verb::DeleteTree, "", "").await);
    assert!(gone.await.unwrap());
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let kv = load(&Arc::new(MemoryStore::new()));
    let set = |key: &str| Op { value: b"x".to_vec(), ..Op::new(Verb::Set, key) };
    let Outcome::Done(read, version) = kv.run(&[set("a"), set("b"), Op::new(Verb::GetTree, "")]).await.unwrap() else {
        panic!("it is refused")
    };
    assert_eq!(
        read.iter().map(|(number, key, _)| (*number, key.as_str())).collect::<Vec<_>>(),
        [(0, "a"), (1, "b"), (2, "a"), (2, "b")]
    );
    assert!(read.iter().all(|(_, _, pair)| pair.modified == version && pair.created == version));
    let refused = [
        Op::new(Verb::Delete, "a"),
        Op { index: version + 1, ..Op::new(Verb::CheckIndex, "b") },
        Op::new(Verb::Get, "c"),
        Op::new(Verb::CheckNotExists, "b"),
    ];
    let Outcome::Refused(why) = kv.run(&refused).await.unwrap() else { panic!("it is done") };
    assert_eq!(why.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(kv.pair("a").unwrap().is_some());
    // What one operation does the next sees.
    let ops = [Op::new(Verb::DeleteTree, ""), Op::new(Verb::CheckNotExists, "a"), set("a")];
    assert!(matches!(kv.run(&ops).await.unwrap(), Outcome::Done(..)));
    assert_eq!(kv.tree("").unwrap().len(), 1);
}
