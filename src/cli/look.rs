//! `neap service ls`, `ps` and `inspect`: what there is.

use std::collections::BTreeMap;

use serde_json::json;

use super::filter::FilterArgs;
use super::native;
use super::output::{self, Format, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, ServiceStatus, show};
use crate::model::Result;
use crate::model::native::NativeService;
use crate::model::service::{Mode, ServiceSpec};
use crate::model::task::Task;

/// What of the services is listed.
#[derive(clap::Args)]
pub struct LsArgs {
    #[command(flatten)]
    format: FormatArg,
    /// Names only
    #[arg(long, short)]
    quiet: bool,
    /// Only those that the Swarm runs itself
    #[arg(long)]
    native: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// What of the tasks is listed.
#[derive(clap::Args)]
pub struct PsArgs {
    /// The services
    #[arg(required = true)]
    services: Vec<String>,
    #[command(flatten)]
    format: FormatArg,
    /// Ended tasks as well
    #[arg(long, short)]
    all: bool,
    /// Ids only
    #[arg(long, short)]
    quiet: bool,
    /// Show reasons whole
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// `neap service ls`.
pub async fn ls(args: LsArgs, cluster: &RemoteCluster) -> Result<()> {
    let filter = args.filter.read(&["name", "label", "mode"])?;
    let chosen = |spec: &ServiceSpec| {
        let mode = if spec.mode == Mode::Global { "global" } else { "replicated" };
        filter.begins("name", &[spec.name.as_str()]) && filter.labels("label", &spec.labels) && filter.is("mode", mode)
    };
    let chosen_native = |native: &NativeService| {
        filter.begins("name", &[&native.name])
            && filter.labels("label", &BTreeMap::new())
            && filter.is("mode", &native.mode)
    };
    if args.native {
        let natives: Vec<_> = cluster.natives().await?.into_iter().filter(chosen_native).collect();
        if args.quiet {
            return natives.iter().try_for_each(|native| output::line(&native.name));
        }
        return output::print(args.format.format, &natives, || show::natives(&natives));
    }
    let services: Vec<_> =
        cluster.services().await?.into_iter().filter(|status| chosen(&status.service.spec)).collect();
    if args.quiet {
        return services.iter().try_for_each(|status| output::line(status.service.spec.name.as_str()));
    }
    // What the Swarm runs is asked of it only where it is shown.
    let natives = match args.format.format {
        Format::Table => native::beside(cluster).await.into_iter().filter(chosen_native).collect(),
        Format::Json => Vec::new(),
    };
    output::print(args.format.format, &services, || show::services(&services, &natives))
}

/// `neap service ps`.
pub async fn ps(args: PsArgs, cluster: &RemoteCluster) -> Result<()> {
    let filter = args.filter.read(&["name", "node", "desired-state"])?;
    let (mut ours, mut natives) = (Vec::new(), Vec::new());
    for service in &args.services {
        match cluster.service(service).await {
            Ok(ServiceStatus { native: Some(native), .. }) => natives.push(native),
            Ok(status) => ours.push(status),
            Err(error) => natives.push(native::find(cluster, service, error).await?),
        }
    }
    for status in &mut ours {
        let nodes = status.nodes.clone();
        status.tasks.retain(|task| {
            let node = task.node.as_deref().unwrap_or_default();
            let hostname = nodes.get(node).map_or("", String::as_str);
            let desired = if task.wanted() { "running" } else { "shutdown" };
            filter.begins("name", &[&task.label()])
                && (filter.is("node", node) || filter.is("node", hostname))
                && filter.is("desired-state", desired)
        });
    }
    for native in &mut natives {
        native.tasks.retain(|task| {
            let desired = if task.wanted == "running" { "running" } else { "shutdown" };
            filter.begins("name", &[&task.name])
                && filter.is("node", task.node.as_deref().unwrap_or_default())
                && filter.is("desired-state", desired)
        });
    }
    let all = args.all || filter.asks("desired-state");
    let shown = |task: &&Task| all || !task.state.is_final();
    let tasks: Vec<&Task> = ours.iter().flat_map(|status| &status.tasks).collect();
    if args.quiet {
        let native = natives.iter().flat_map(|native| &native.tasks).map(|task| task.name.clone());
        let mut ids = tasks.into_iter().filter(shown).map(|task| task.id.to_string()).chain(native);
        return ids.try_for_each(|id: String| output::line(&id));
    }
    if args.format.format == Format::Json {
        let native = natives.iter().flat_map(|native| &native.tasks).map(|task| json!(task));
        let named = |(status, task): (&ServiceStatus, &Task)| {
            let mut row = json!(task);
            row["name"] = json!(task.label());
            row["hostname"] = json!(task.node.as_deref().and_then(|node| status.nodes.get(node)));
            row
        };
        let each = ours.iter().flat_map(|status| status.tasks.iter().map(move |task| (status, task)));
        let all: Vec<_> = each.filter(|(_, task)| shown(task)).map(named).chain(native).collect();
        return output::print(Format::Json, &all, String::new);
    }
    if !ours.is_empty() {
        output::print(Format::Table, &tasks, || show::tasks_of(&ours, all, args.no_trunc, show::now()))?;
    }
    natives
        .iter()
        .try_for_each(|native| output::print(Format::Table, &native.tasks, || show::native_tasks(native, all)))
}

/// `neap service inspect`: one as an object, several as a list.
pub async fn inspect(services: &[String], cluster: &RemoteCluster) -> Result<()> {
    let mut all = Vec::new();
    for service in services {
        all.push(match cluster.service(service).await {
            Ok(status) => {
                let revisions = cluster.revisions(service).await?;
                json!({ "status": status, "revisions": revisions })
            }
            Err(error) => json!({ "native": native::find(cluster, service, error).await? }),
        });
    }
    match &all[..] {
        [one] => output::print(Format::Json, one, String::new),
        _ => output::print(Format::Json, &all, String::new),
    }
}
