//! `trait Store` on redb: all or nothing, expected versions, durable over reopening, watched.

use std::collections::BTreeMap;

use neap::model::Kind;
use neap::store::{EmbeddedStore, Expect, MAX_VALUE, Store, Write, decode, encode};
use proptest::prelude::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[test]
fn a_conflict_writes_nothing_and_names_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s.redb")).unwrap();
    runtime().block_on(async {
        let first = store.commit(vec![Write::put("a", encode(&1)), Write::put("b", encode(&2))]).await.unwrap();
        for (expect, word) in
            [(Expect::Absent, "exists already"), (Expect::Version(first + 9), "was changed by somebody else")]
        {
            let writes = vec![Write::put("b", encode(&3)), Write::put("a", encode(&3)).expect(expect)];
            let error = store.commit(writes).await.unwrap_err();
            assert_eq!(error.kind, Kind::Conflict);
            assert!(
                error.to_string().contains("record \"a\"") && error.message.contains(word) && error.retry,
                "{error}"
            );
        }
        let gone = store.commit(vec![Write::remove("c").expect(Expect::Version(1))]).await.unwrap_err();
        assert!(gone.message.contains("is gone"));
        let entry = store.get("b").unwrap().unwrap();
        assert_eq!((decode::<i32>("b", &entry.value).unwrap(), entry.version), (2, first));
        let next = store.commit(vec![Write::put("a", encode(&4)).expect(Expect::Version(first))]).await.unwrap();
        assert!(next > first);
        assert_eq!(
            store.commit(vec![Write::put("x", vec![0; MAX_VALUE + 1])]).await.unwrap_err().kind,
            Kind::Exhausted
        );
        assert_eq!(store.commit(vec![Write::put("", Vec::new())]).await.unwrap_err().kind, Kind::Invalid);
    });
}

#[test]
fn concurrent_increments_lose_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(EmbeddedStore::open(&folder.path().join("s.redb")).unwrap());
    runtime().block_on(async {
        store.commit(vec![Write::put("n", encode(&0))]).await.unwrap();
        let add = |store: std::sync::Arc<EmbeddedStore>| async move {
            for _ in 0..20 {
                loop {
                    let entry = store.get("n").unwrap().unwrap();
                    let number: i32 = decode("n", &entry.value).unwrap();
                    let write = Write::put("n", encode(&(number + 1))).expect(Expect::Version(entry.version));
                    if store.commit(vec![write]).await.is_ok() {
                        break;
                    }
                }
            }
        };
        futures_util::future::join_all((0..9).map(|_| add(store.clone()))).await;
        let entry = store.get("n").unwrap().unwrap();
        assert_eq!(decode::<i32>("n", &entry.value).unwrap(), 180);
    });
}

#[test]
fn changes_are_watched_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("s.redb")).unwrap();
    runtime().block_on(async {
        let mut changes = store.watch();
        store.commit(vec![Write::put("a", encode(&1)), Write::put("b", encode(&1))]).await.unwrap();
        store.commit(vec![Write::remove("a")]).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let change = changes.recv().await.unwrap();
            seen.push((change.key, change.removed));
        }
        assert_eq!(seen, [("a".to_owned(), false), ("b".to_owned(), false), ("a".to_owned(), true)]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn it_is_a_map_that_lasts(commits in proptest::collection::vec(proptest::collection::vec(("[a-c]/[a-c]{1,2}", proptest::option::of(0..100_i32)), 1..4), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let mut model = BTreeMap::new();
        let store = EmbeddedStore::open(&path).unwrap();
        runtime().block_on(async {
            for commit in &commits {
                let writes = commit.iter().map(|(key, value)| match value {
                    Some(value) => Write::put(key, encode(value)),
                    None => Write::remove(key),
                });
                store.commit(writes.collect()).await.unwrap();
                for (key, value) in commit {
                    match value {
                        Some(value) => model.insert(key.clone(), *value),
                        None => model.remove(key),
                    };
                }
            }
        });
        drop(store);
        let store = EmbeddedStore::open(&path).unwrap();
        for prefix in ["", "a/", "b/", "c/cc"] {
            let got: Vec<(String, i32)> = store.list(prefix).unwrap().into_iter().map(|entry| (entry.key.clone(), decode(&entry.key, &entry.value).unwrap())).collect();
            let expected: Vec<(String, i32)> = model.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), *value)).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
