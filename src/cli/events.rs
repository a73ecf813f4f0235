//! `neap events`.

use futures_util::StreamExt;

use super::output::{self, Format, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::event::What;
use crate::model::{Error, Kind, Result};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Only this kind
    #[arg(long, value_name = "EVENT")]
    what: Option<String>,
    /// Only this service's
    #[arg(long)]
    service: Option<String>,
    /// End after so many
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    /// List the kinds of events, and end
    #[arg(long)]
    list: bool,
    /// List the last deliveries to handlers that failed, and end
    #[arg(long, conflicts_with_all = ["list", "what", "service", "count"])]
    failed: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Prints what happens from now on.
pub async fn main(args: Args, cluster: impl Fn() -> Result<RemoteCluster>) -> Result<()> {
    if args.list {
        let all: Vec<(&str, &str)> = What::ALL.iter().map(|what| (what.as_str(), what.meaning())).collect();
        return output::print(args.format.format, &all, || {
            show::rows(&["EVENT", "MEANING"], all.iter().map(|(name, meaning)| [(*name).into(), (*meaning).into()]))
        });
    }
    let cluster = cluster()?;
    if args.failed {
        let failed = cluster.failed_deliveries().await?;
        return output::print(args.format.format, &failed, || show::failed(&failed, show::now()));
    }
    let what = args.what.as_deref().map(What::parse).transpose()?;
    let mut events = cluster.events().await?;
    let mut left = args.count;
    while left != Some(0) {
        let Some(event) = events.next().await else {
            return Err(Error::new(Kind::Unavailable, "daemon", "has stopped"));
        };
        let event = event?;
        let of = event.service.as_ref().map(crate::model::name::Name::as_str);
        if what.is_some_and(|what| what != event.what) || (args.service.is_some() && args.service.as_deref() != of) {
            continue;
        }
        output::line(&match args.format.format {
            Format::Json => serde_json::to_string(&event).unwrap_or_default(),
            Format::Table => show::event(&event),
        })?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}
