//! Whose a container is: the label holds the cluster's name and the beginning of an id that its store was given once. A
//! daemon with another store, if it bears the same name by accident, leaves it alone.

use crate::model::Result;
use crate::model::clock::Clock;
use crate::model::id::ServiceId;
use crate::store::{Expect, Store, Write, decode, encode};

/// The record with the store's id.
pub const ID: &str = "meta/id";

/// The cluster as engines know it: `default.7k2p0m4x`.
pub async fn of(cluster: &str, store: &dyn Store, clock: &dyn Clock) -> Result<String> {
    let id: String = match store.get(ID)? {
        Some(entry) => decode(ID, &entry.value)?,
        None => {
            // The end of a ULID is its randomness.
            let made = ServiceId::new(clock).to_string()[18..].to_owned();
            store.commit(vec![Write::put(ID, encode(&made)).expect(Expect::Absent)]).await?;
            made
        }
    };
    Ok(format!("{cluster}.{id}"))
}
