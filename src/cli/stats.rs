//! `neap service stats`.

use futures_util::{StreamExt, stream};

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::{Error, Kind, Result};

/// So many services are asked about at once.
const AT_ONCE: usize = 8;

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
    let ask = |service: String| async move { cluster.stats(&service).await };
    let mut asked = stream::iter(services.into_iter().map(ask)).buffered(AT_ONCE);
    let (mut rows, mut failed) = (Vec::new(), None);
    while let Some(stats) = asked.next().await {
        match stats {
            Ok(stats) => rows.extend(stats),
            // Removed since it was listed.
            Err(Error { kind: Kind::NotFound, .. }) if !named => {}
            Err(error) => failed = Some(failed.unwrap_or(error)),
        }
    }
    if failed.is_none() || !rows.is_empty() {
        output::print(args.format.format, &rows, || show::stats(&rows))?;
    }
    failed.map_or(Ok(()), Err)
}
