//! `neap service stats`.

use std::collections::BTreeMap;

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::{Error, Kind, Result};

/// What replicas use of their hosts: cores over the last second, memory, what went over networks and disks
#[derive(clap::Args)]
pub struct Args {
    /// Services; all of Neap's where none is named
    services: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Asks about each service, and shows all in one table.
pub async fn main(args: Args, cluster: &RemoteCluster) -> Result<()> {
    let named = !args.services.is_empty();
    let services = match named {
        true => args.services,
        false => {
            let all = cluster.services().await?.into_iter().map(|status| status.service.spec);
            all.filter(|spec| !spec.engine_native).map(|spec| spec.name.to_string()).collect()
        }
    };
    let asked = futures_util::future::join_all(services.iter().map(|service| cluster.stats(service))).await;
    let mut all = BTreeMap::new();
    for (service, stats) in services.iter().zip(asked) {
        match stats {
            Ok(stats) => drop(all.insert(service.clone(), stats)),
            // Removed since it was listed.
            Err(Error { kind: Kind::NotFound, .. }) if !named => {}
            Err(error) => return Err(error),
        }
    }
    let rows: Vec<_> = all.into_values().flatten().collect();
    output::print(args.format.format, &rows, || show::stats(&rows))
}
