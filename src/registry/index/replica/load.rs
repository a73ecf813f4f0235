//! What is at another place comes here, in place of what was.

use super::super::{
    BLOBS, CHANGES, CONTENT, COPIES, GONE, HOLDERS, Index, LINKED, LINKS, MANIFESTS, NAMED, REFERRERS, REPLICA,
    REPLICATED, REPOSITORIES, SETTINGS, TAGGED, TAGS, tables,
};
use super::rows::apply;
use crate::registry::refused::Refused;
use crate::registry::replica::rows::Row;

impl Index {
    /// All that is here goes, to be replaced by what is there.
    pub async fn begin_loading(&self, lineage: &str) -> Result<(), Refused> {
        let lineage = lineage.to_owned();
        self.write_any(move |write| {
            write.delete_table(REPOSITORIES)?;
            write.delete_table(MANIFESTS)?;
            write.delete_table(CONTENT)?;
            write.delete_multimap_table(HOLDERS)?;
            write.delete_table(TAGS)?;
            write.delete_multimap_table(TAGGED)?;
            write.delete_table(REFERRERS)?;
            write.delete_table(BLOBS)?;
            write.delete_table(LINKS)?;
            write.delete_multimap_table(LINKED)?;
            write.delete_multimap_table(NAMED)?;
            write.delete_table(COPIES)?;
            write.delete_table(SETTINGS)?;
            write.delete_table(CHANGES)?;
            write.delete_table(REPLICATED)?;
            write.delete_table(GONE)?;
            tables(write)?;
            let mut replica = write.open_table(REPLICA)?;
            for name in ["whole", "strict", "writer", "left", "paused"] {
                replica.remove(name)?;
            }
            replica.insert("lineage", lineage.as_str())?;
            replica.insert("loading", "1")?;
            Ok(())
        })
        .await
    }

    /// Some of what is there comes.
    pub async fn load(&self, rows: Vec<Row>, now: u64) -> Result<(), Refused> {
        self.write_any(move |write| rows.into_iter().try_for_each(|row| apply(write, row, now))).await
    }

    /// All has come, up to a segment which this host has written.
    pub async fn loaded(&self, writer: &str, number: u64) -> Result<(), Refused> {
        let writer = writer.to_owned();
        self.write_any(move |write| {
            write.delete_table(CHANGES)?;
            write.open_table(CHANGES)?;
            let mut replica = write.open_table(REPLICA)?;
            replica.remove("loading")?;
            replica.insert("whole", "1")?;
            replica.insert("strict", "1")?;
            replica.insert("writer", writer.as_str())?;
            replica.insert("number", number.to_string().as_str())?;
            Ok(())
        })
        .await
    }
}
