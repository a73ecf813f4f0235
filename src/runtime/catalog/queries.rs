//! Prepared queries, written down before they are acknowledged.

use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use crate::model::id::random_uuid;
use crate::model::query::Query;
use crate::model::{Error, Kind, Result};
use crate::network::catalog::{Draft, pattern};
use crate::runtime::kv::Kv;
use crate::runtime::kv::index::Topic;
use crate::store::{Entry, Store, Write, decode, encode};

/// Where they are in the store.
pub const QUERY: &str = "query/";
/// How often it is looked for sessions that are over though nobody said so.
const AGAIN: Duration = Duration::from_secs(60);
const GATHER: Duration = Duration::from_millis(50);
/// Queries at most.
const MOST: usize = 10_000;

/// All that are written down.
pub fn read(store: &dyn Store) -> Result<Vec<Query>> {
    store.list(QUERY)?.iter().map(record).collect()
}

/// One, as it is written down.
pub fn record(entry: &Entry) -> Result<Query> {
    let query: Query = decode(&entry.key, &entry.value)?;
    match entry.key.strip_prefix(QUERY) == Some(&query.id) {
        true => Ok(query),
        false => Err(Error::invalid(format!("record \"{:.80}\"", entry.key), "is not of that key")),
    }
}

/// Makes them known; one whose pattern this build does not take is left out.
pub fn put(draft: &mut Draft, queries: Vec<Query>) {
    for query in queries {
        let name = query.name.clone();
        if let Err(error) = draft.put_query(query) {
            tracing::warn!(%error, name, "a prepared query is left out");
        }
    }
}

/// Removes what was bound to a session that is over. Never ends.
pub async fn follow_sessions(registry: Arc<Registry>, kv: Arc<Kv>) {
    loop {
        let index = kv.index_of(&Topic::Sessions);
        let bound = registry.catalog.read(|state| {
            let bound = state.queries.all().filter(|query| !query.session.is_empty());
            bound.map(|query| (query.id.clone(), query.session.clone())).collect::<Vec<_>>()
        });
        for (id, session) in bound {
            if matches!(kv.session(&session), Ok(None)) {
                match registry.forget_query_of(&id, &session).await {
                    Err(error) if error.kind != Kind::NotFound => {
                        tracing::warn!(%error, id, "a query whose session is over stays; it is tried again");
                    }
                    _ => {}
                }
            }
        }
        // Those that end together are looked at together.
        tokio::time::sleep(GATHER).await;
        kv.wait(&Topic::Sessions, index, AGAIN).await;
    }
}

impl Registry {
    /// Makes a query; its id. Durable when it returns.
    pub async fn prepare(&self, query: Query) -> Result<String> {
        let id = random_uuid(&*self.clock);
        if self.catalog.read(|state| state.queries.all().count()) >= MOST {
            return Err(Error::new(Kind::Exhausted, "queries", format!("are {MOST}; no more are taken")));
        }
        self.put_query(Query { id: id.clone(), ..query }).await?;
        Ok(id)
    }

    /// Says a query anew. Durable when it returns.
    pub async fn prepare_anew(&self, query: Query) -> Result<()> {
        let known = self.catalog.read(|state| state.queries.by_id(&query.id).map(|known| known.id.clone()));
        let id = known.ok_or_else(|| Error::not_found(format!("query \"{:.60}\"", query.id)))?;
        self.put_query(Query { id, ..query }).await
    }

    async fn put_query(&self, query: Query) -> Result<()> {
        query.check()?;
        pattern(&query.pattern)?;
        let _writing = self.writing.lock().await;
        let taken = self.catalog.read(|state| state.queries.named(&query).is_some_and(|id| **id != *query.id));
        if taken {
            let subject = format!("query {:.60?}", query.name);
            return Err(Error::invalid(subject, "name is that of another query already"));
        }
        self.store.commit(vec![Write::put(format!("{QUERY}{}", query.id), encode(&query))]).await?;
        self.catalog.change(|draft| draft.put_query(query))
    }

    /// Removes a query. Durable when it returns.
    pub async fn forget_query(&self, id: &str) -> Result<()> {
        self.forget_if(id, |_| true).await
    }

    /// The same, if it is still bound to that session.
    pub async fn forget_query_of(&self, id: &str, session: &str) -> Result<()> {
        self.forget_if(id, |query| query.session == session).await
    }

    async fn forget_if(&self, id: &str, is_meant: impl Fn(&Query) -> bool) -> Result<()> {
        let _writing = self.writing.lock().await;
        let known = self.catalog.read(|state| {
            let query = state.queries.by_id(id).filter(|query| is_meant(query))?;
            Some(query.id.clone())
        });
        let id = known.ok_or_else(|| Error::not_found(format!("query \"{id:.60}\"")))?;
        self.store.commit(vec![Write::remove(format!("{QUERY}{id}"))]).await?;
        self.catalog.change(|draft| draft.remove_query(&id));
        Ok(())
    }
}
