//! Keeps the store in the Swarm small: small parts of the log are put together, and from time to time everything is written
//! down whole, and the log begins anew behind it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::head::{self, Record, Snapshot};
use super::{PART, SwarmStore, apply};
use crate::model::{Error, Kind, Result, fault};
use crate::store::Write;

impl SwarmStore {
    // Puts the last `count` configs of the log together, as far as one config holds them.
    pub(super) async fn merge(&self, count: usize) -> Result<()> {
        let mut next = self.inner().head.clone();
        let (begin, before) = (next.logs.len() - count, next.clone());
        let (mut text, mut last) = (String::new(), 0);
        let mut merged = Vec::new();
        let sum = |seq, bytes| self.log(&before, seq, true, bytes);
        for log in next.logs.split_off(begin) {
            let gone = || Error::new(Kind::Corrupt, "store in the Swarm", "lacks a part of its log");
            let records = self.read_log(log).await?.ok_or_else(gone)?;
            let part = serde_json::to_string(&records).map_err(|error| Error::internal("store", error.to_string()))?;
            let inside = part[1..part.len() - 1].to_owned();
            if !text.is_empty() && text.len() + inside.len() > PART {
                merged.push((sum(last, text.len()), std::mem::take(&mut text)));
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&inside);
            last = log.seq;
        }
        if !text.is_empty() {
            merged.push((sum(last, text.len()), text));
        }
        for (log, text) in merged {
            self.put(&self.names.log(log), format!("[{text}]").as_bytes()).await?;
            self.renew().await?;
            next.logs.push(log);
        }
        next.beat = self.inner().head.beat;
        self.advance(&next).await?;
        for log in &before.logs[begin..] {
            let _ = self.configs.remove(&self.names.log(*log)).await;
            self.renew().await?;
        }
        Ok(())
    }

    // A commit too large for the log is part of what is written down whole.
    pub(super) async fn write_whole(&self, writes: &[Write]) -> Result<u64> {
        self.write_down(writes).await?;
        Ok(self.inner().head.seq)
    }

    // Everything, with `writes` on top, in configs of its own; the log begins anew behind it.
    pub(super) async fn write_down(&self, writes: &[Write]) -> Result<()> {
        let (mut next, mut data) = {
            let inner = self.inner();
            (inner.head.clone(), inner.data.clone())
        };
        let mut changed = Vec::new();
        if !writes.is_empty() {
            next.seq += 1;
            apply(&mut data, Record::new(next.seq, writes), &mut changed);
        }
        let whole: BTreeMap<&String, (u64, head::Value)> =
            data.iter().map(|(key, (version, value))| (key, (*version, value.clone().into()))).collect();
        let text = serde_json::to_string(&whole).map_err(|error| Error::internal("store", error.to_string()))?;
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst);
        let mut snapshot = Snapshot { term: next.term, seq: next.seq, attempt, parts: 0, bytes: text.len() };
        for part in chunks(&text) {
            self.put(&self.names.snapshot(snapshot, snapshot.parts), part.as_bytes()).await?;
            self.renew().await?;
            snapshot.parts += 1;
        }
        next.beat = self.inner().head.beat;
        (next.snapshot, next.logs, next.tail) = (snapshot, Vec::new(), Vec::new());
        fault::point("swarm-store.before-anew");
        self.advance(&next).await?;
        {
            let mut inner = self.change();
            inner.data = data;
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        if let Err(error) = self.clear(snapshot).await {
            tracing::debug!(%error, "what the store needs no more is cleared away later");
        }
        Ok(())
    }

    // What the snapshot makes needless, what attempts that failed have left included. A leader after this one has a later
    // term, and nothing of its own is touched.
    async fn clear(&self, snapshot: Snapshot) -> Result<()> {
        let kept: Vec<String> = (0..snapshot.parts).map(|part| self.names.snapshot(snapshot, part)).collect();
        for name in self.configs.names().await? {
            self.renew().await?;
            let old = self.names.read(&name).is_some_and(|(term, seq)| term <= snapshot.term && seq <= snapshot.seq);
            if old && !kept.contains(&name) {
                self.configs.remove(&name).await?;
            }
        }
        Ok(())
    }
}

// Pieces of at most `PART` bytes that end between characters.
fn chunks(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(PART);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, behind) = rest.split_at(end);
        parts.push(part);
        rest = behind;
    }
    parts
}
