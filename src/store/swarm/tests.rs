//! The log over configs in memory that fail on request; the real ones are tried in tests/swarm.rs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::store::Expect;

#[derive(Default)]
struct MemoryConfigs {
    all: Mutex<BTreeMap<String, Config>>,
    index: AtomicU32,
    // The answers to so many of the next writes are lost, though they are carried out.
    lost: AtomicU32,
    refused: AtomicU32,
    written: std::sync::atomic::AtomicU64,
}

impl MemoryConfigs {
    fn answer(&self) -> Result<()> {
        let used =
            |count: &AtomicU32| count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        if used(&self.lost) {
            return Err(Error::new(Kind::Timeout, "configs", "deadline").retry(true));
        }
        Ok(())
    }

    fn next(&self) -> u64 {
        u64::from(self.index.fetch_add(1, Ordering::SeqCst)) + 1
    }

    fn refuses(&self) -> Result<()> {
        match self.refused.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Error::new(Kind::Unavailable, "configs", "no leader").retry(true)),
        }
    }
}

#[async_trait]
impl Configs for MemoryConfigs {
    async fn create(&self, name: &str, labels: &BTreeMap<String, String>, data: &[u8]) -> Result<bool> {
        self.refuses()?;
        assert!(name.len() <= 64 && data.len() <= 1000 << 10, "{name}: {} bytes", data.len());
        self.written.fetch_add(data.len() as u64, Ordering::SeqCst);
        {
            let mut all = self.all.lock().unwrap();
            if all.contains_key(name) {
                return Ok(false);
            }
            all.insert(name.into(), Config { index: self.next(), labels: labels.clone(), data: data.into() });
        }
        self.answer().map(|()| true)
    }

    async fn read(&self, name: &str) -> Result<Option<Config>> {
        self.refuses()?;
        Ok(self.all.lock().unwrap().get(name).cloned())
    }

    async fn update(&self, name: &str, index: u64, labels: &BTreeMap<String, String>) -> Result<bool> {
        self.refuses()?;
        self.written.fetch_add(labels.values().map(String::len).sum::<usize>() as u64, Ordering::SeqCst);
        {
            let mut all = self.all.lock().unwrap();
            let config = all.get_mut(name).unwrap();
            if config.index != index {
                return Ok(false);
            }
            config.index = self.next();
            config.labels = labels.clone();
        }
        self.answer().map(|()| true)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        self.refuses()?;
        self.all.lock().unwrap().remove(name);
        Ok(())
    }

    async fn names(&self) -> Result<Vec<String>> {
        Ok(self.all.lock().unwrap().keys().cloned().collect())
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

fn leader(id: &str) -> Leader {
    Leader { id: id.into(), hostname: id.into(), address: String::new(), fingerprint: String::new() }
}

async fn daemon(configs: &Arc<MemoryConfigs>, id: &str) -> Arc<SwarmStore> {
    let store = SwarmStore::open(configs.clone(), "test").await.unwrap();
    store.take_over(&leader(id)).await.unwrap();
    store
}

fn contents(store: &SwarmStore) -> Vec<(String, String)> {
    let text = |entry: Entry| (entry.key, String::from_utf8(entry.value).unwrap());
    store.list("").unwrap().into_iter().map(text).collect()
}

#[tokio::test]
async fn what_is_committed_is_read_by_all_however_large() {
    let configs = Arc::new(MemoryConfigs::default());
    let store = daemon(&configs, "a").await;
    let follower = SwarmStore::open(configs.clone(), "test").await.unwrap();
    for round in 0..400_u32 {
        let size = if round % 50 == 7 { 300_000 } else { (round as usize * 37) % 900 };
        let key = format!("key/{}", round % 60);
        let write = match round % 11 {
            3 => Write::remove(key),
            _ => Write::put(key, vec![b'a' + (round % 26) as u8; size]),
        };
        store.commit(vec![write]).await.unwrap();
        if round % 97 == 0 {
            follower.refresh().await.unwrap();
            assert_eq!(contents(&follower), contents(&store), "round {round}");
        }
    }
    // More in one commit than a config takes.
    let large = (0..10).map(|n| Write::put(format!("large/{n}"), vec![b'x'; 500_000]));
    store.commit(large.collect()).await.unwrap();
    store.commit(vec![Write::put("last", b"one".to_vec())]).await.unwrap();
    follower.refresh().await.unwrap();
    assert_eq!(contents(&follower), contents(&store));
    let fresh = SwarmStore::open(configs.clone(), "test").await.unwrap();
    assert_eq!(contents(&fresh), contents(&store));
    assert_eq!(fresh.get("last").unwrap(), store.get("last").unwrap(), "the version as well");
    let kept = configs.all.lock().unwrap().len();
    assert!(kept < 100, "{kept} configs are kept");
}

#[tokio::test]
async fn whoever_is_overtaken_writes_nothing_more() {
    let configs = Arc::new(MemoryConfigs::default());
    let first = daemon(&configs, "a").await;
    first.commit(vec![Write::put("k", b"1".to_vec())]).await.unwrap();
    let second = daemon(&configs, "b").await;
    second.commit(vec![Write::put("k", b"2".to_vec())]).await.unwrap();
    // Also where it would make the very same commit as the other one.
    for size in [1, 20_000] {
        let error = first.commit(vec![Write::put("k", vec![b'3'; size])]).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(!first.leads());
    }
    assert_eq!(second.get("k").unwrap().unwrap().value, b"2");
    let fresh = SwarmStore::open(configs.clone(), "test").await.unwrap();
    assert_eq!(contents(&fresh), [("k".to_owned(), "2".to_owned())]);
    // In the middle of writing everything down, at the very same commit.
    let third = daemon(&configs, "c").await;
    second.change().proven = Some(Instant::now());
    third.write_down(&[]).await.unwrap();
    second.commit(vec![Write::put("k", b"4".to_vec())]).await.unwrap_err();
    second.change().proven = Some(Instant::now());
    second.write_down(&[Write::put("k", b"5".to_vec())]).await.unwrap_err();
    let fresh = SwarmStore::open(configs.clone(), "test").await.unwrap();
    assert_eq!(contents(&fresh), [("k".to_owned(), "2".to_owned())]);
    // What such attempts leave behind goes with the next snapshot.
    third.commit(vec![Write::put("k", b"6".to_vec())]).await.unwrap();
    third.write_down(&[]).await.unwrap();
    assert_eq!(configs.all.lock().unwrap().len(), 2, "the head and one part");
}

#[tokio::test]
async fn a_lost_answer_is_found_out() {
    let configs = Arc::new(MemoryConfigs::default());
    let store = daemon(&configs, "a").await;
    configs.lost.store(1, Ordering::SeqCst);
    store.commit(vec![Write::put("k", b"1".to_vec()).expect(Expect::Absent)]).await.unwrap();
    let again = store.commit(vec![Write::put("k", b"2".to_vec()).expect(Expect::Absent)]).await;
    assert_eq!(again.unwrap_err().kind, Kind::Conflict);
    assert!(store.leads(), "a refused expectation is no loss of the lead");
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_writes_are_refused_and_reads_go_on() {
    let configs = Arc::new(MemoryConfigs::default());
    let store = daemon(&configs, "a").await;
    store.commit(vec![Write::put("k", b"1".to_vec())]).await.unwrap();
    configs.refused.store(1, Ordering::SeqCst);
    let error = store.commit(vec![Write::put("k", b"2".to_vec())]).await.unwrap_err();
    assert!(error.message.contains("no quorum"), "{error}");
    assert_eq!(store.get("k").unwrap().unwrap().value, b"1");
    configs.refused.store(0, Ordering::SeqCst);
    store.commit(vec![Write::put("k", b"3".to_vec())]).await.unwrap();
    assert_eq!(store.get("k").unwrap().unwrap().value, b"3");
}

#[tokio::test(start_paused = true)]
async fn a_lead_that_stands_still_is_taken_over() {
    let configs = Arc::new(MemoryConfigs::default());
    let first = daemon(&configs, "a").await;
    first.commit(vec![Write::put("k", b"1".to_vec())]).await.unwrap();
    first.give_up().await.unwrap();
    let second = SwarmStore::open(configs.clone(), "test").await.unwrap();
    second.lead(&leader("b"), async || Duration::ZERO).await.unwrap();
    assert!(second.leads());
    assert_eq!(contents(&second), contents(&first));
    assert_eq!(second.leader().borrow().as_ref().unwrap().id, "b");
}

#[tokio::test]
async fn five_thousand_services_are_little_for_raft() {
    let configs = Arc::new(MemoryConfigs::default());
    let store = daemon(&configs, "a").await;
    // As large as real ones: a service, its revision, two tasks, each of which is written four times until it runs.
    let record =
        |size: usize, n: u32| format!("1 00000000 {{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(size)).into_bytes();
    for n in 0..5000 {
        let task = |slot: u32, state: u32| Write::put(format!("task/{n:05}-{slot}"), record(700, state));
        let described = [("service", 1200), ("revision", 1100)]
            .map(|(kind, size)| Write::put(format!("{kind}/s{n}"), record(size, n)));
        store.commit([&described[..], &[task(1, 0), task(2, 0)]].concat()).await.unwrap();
        for state in 1..4 {
            store.commit(vec![task(1, state), task(2, state)]).await.unwrap();
        }
    }
    let fresh = SwarmStore::open(configs.clone(), "test").await.unwrap();
    assert_eq!(fresh.list("task/").unwrap().len(), 10_000);
    assert_eq!(contents(&fresh), contents(&store));
    let all = configs.all.lock().unwrap();
    let size = |config: &Config| config.data.len() + config.labels.values().map(String::len).sum::<usize>();
    let (count, largest, sum) =
        (all.len(), all.values().map(size).max().unwrap(), all.values().map(size).sum::<usize>());
    let written = configs.written.load(Ordering::SeqCst) as usize;
    println!("{count} configs, {sum} bytes, the largest {largest}; {written} bytes written for 20000 commits");
    assert!(count < 250 && largest <= 800 << 10 && sum < 60 << 20, "{count} configs, {largest}, {sum}");
    // Twice 95 MB of commits would be a fair price; the head's share of small commits is the rest.
    assert!(written < 500 << 20, "{written} bytes");
}
