//! `neap service adopt` and `hand-back`: services that the Swarm itself runs.

use serde_json::{Map, Value};

use super::output::{self, Format};
use super::progress::Reporter;
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, native, show};
use crate::model::native::{Adopt, HandBack, NativeService, PublishMode};
use crate::model::units::Duration;
use crate::model::{Error, Kind, Result};

/// How `adopt` is asked.
#[derive(clap::Args)]
pub struct AdoptArgs {
    /// The Swarm's service: its name or id
    service: String,
    /// Its name from then on
    #[arg(long)]
    name: Option<String>,
    /// Fields of the description that are to be others than those found, as JSON: '{"check": {"http": "/healthz"}}'
    #[arg(long, value_name = "JSON")]
    change: Option<String>,
    /// Also where its tasks write to volumes or folders of the host, which both sets of replicas have for a while
    #[arg(long)]
    share_volumes: bool,
    /// Say what would be made of it and what would not be as it was, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// How `hand-back` is asked.
#[derive(clap::Args)]
pub struct HandBackArgs {
    /// The service
    service: String,
    /// Where the Swarm publishes its ports: ingress (on every host, by its routing mesh) or host (where a task runs)
    #[arg(long, value_name = "MODE", default_value = "ingress")]
    publish_mode: PublishMode,
    /// Also where its replicas write to volumes or folders of the host, which both sets of tasks have for a while
    #[arg(long)]
    share_volumes: bool,
    /// Say what would not be as it was, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Let one that is being given back stay Neap's
    #[arg(long, conflicts_with_all = ["dry_run", "publish_mode", "share_volumes"])]
    cancel: bool,
}

/// Takes over a service; `timeout`: how long to wait, if at all.
pub async fn adopt(
    cluster: &RemoteCluster,
    args: AdoptArgs,
    format: Format,
    timeout: Option<Duration>,
    quiet: bool,
) -> Result<()> {
    let change: Map<String, Value> = match &args.change {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Error::invalid("--change", "is no JSON object with fields").cause(error))?,
        None => Map::new(),
    };
    let ask = Adopt { as_name: args.name, change, share_volumes: args.share_volumes, dry_run: args.dry_run };
    let adoption = cluster.adopt(&args.service, ask).await?;
    if args.dry_run {
        return output::print(format, &adoption, || show::adoption(&adoption));
    }
    let name = adoption.service.get("name").and_then(Value::as_str).unwrap_or(&args.service).to_owned();
    if format == Format::Table {
        show::notes(&adoption.notes).iter().try_for_each(|note| output::line(note))?;
    }
    let Some(timeout) = timeout else {
        return output::print(format, &adoption, || name.clone());
    };
    let mut reporter = Reporter::default();
    let mut report = |status: &crate::client::ServiceStatus| {
        if !quiet {
            reporter.report("adopt", status);
        }
    };
    let status = native::adopted(cluster, &name, timeout.std(), &mut report).await?;
    let gaps = status.service.handover.as_ref().map(|handover| handover.gaps_said()).unwrap_or_default();
    output::print(format, &status, || format!("{name}\n{gaps}"))
}

/// Gives a service back.
pub async fn hand_back(
    cluster: &RemoteCluster,
    args: HandBackArgs,
    format: Format,
    timeout: Option<Duration>,
    quiet: bool,
) -> Result<()> {
    let ask = HandBack {
        publish_mode: args.publish_mode,
        share_volumes: args.share_volumes,
        dry_run: args.dry_run,
        cancel: args.cancel,
    };
    let done = cluster.hand_back(&args.service, ask).await?;
    let shown = || show::notes(&done.notes).join("\n");
    if args.dry_run {
        return output::print(format, &done, shown);
    }
    if format == Format::Table && !done.notes.is_empty() {
        output::line(&shown())?;
    }
    let Some(timeout) = timeout.filter(|_| !args.cancel) else {
        return output::print(format, &done, || args.service.clone());
    };
    let mut reporter = Reporter::default();
    let mut report = |status: &crate::client::ServiceStatus| {
        if !quiet {
            reporter.report("hand back", status);
        }
    };
    let handover = native::handed_back(cluster, &args.service, timeout.std(), &mut report).await?;
    output::print(format, &handover, || format!("{}\n{}", args.service, handover.gaps_said()))
}

/// The Swarm's own service of this name; `missing`: the error where there is none either.
pub async fn find(cluster: &RemoteCluster, name: &str, missing: Error) -> Result<NativeService> {
    if missing.kind != Kind::NotFound {
        return Err(missing);
    }
    let natives = cluster.natives().await?;
    natives.into_iter().find(|native| native.name == name || native.id == name).ok_or(missing)
}

/// The Swarm's own services, to be shown beside Neap's; nothing where they cannot be had.
pub async fn beside(cluster: &RemoteCluster) -> Vec<NativeService> {
    match cluster.natives().await {
        Ok(natives) => natives,
        Err(error) => {
            super::output::warn(format!("the Swarm's own services are not known: {error}"));
            Vec::new()
        }
    }
}
