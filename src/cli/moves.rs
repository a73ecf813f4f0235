//! `neap registry pull` and `push`: what Docker Engines of the cluster get and bring.

use std::io::IsTerminal;

use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{self, FormatArg};
use crate::client::images::{MovesSeen, PullAsk, PushAsk};
use crate::client::remote::RemoteCluster;
use crate::client::{EngineImages, Stream1, show};
use crate::model::{Error, Kind, Result};

/// Arguments of `pull`.
#[derive(clap::Args)]
pub struct PullArgs {
    /// The image: shop/api:1.0 of the cluster's registry, or of another, docker.io/library/nginx:1.27
    image: String,
    /// On this node; several are possible [default: all that are ready]
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// For this platform: linux/arm64
    #[arg(long)]
    platform: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Arguments of `push`.
#[derive(clap::Args)]
pub struct PushArgs {
    /// The image, as the Docker Engine calls it
    image: String,
    /// What it is to be called: shop/api:1.0 of the cluster's registry, or with the host of another [default: as it is called there]
    to: Option<String>,
    /// The node whose Docker Engine has it, where there are several
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    format: FormatArg,
}

/// Runs `pull`.
pub async fn pull(args: PullArgs, cluster: &RemoteCluster) -> Result<()> {
    let PullArgs { image, node, platform, format } = args;
    let steps = cluster.pull_image(PullAsk { image, nodes: node, platform }).await?;
    shown("pull", steps, format).await
}

/// Runs `push`.
pub async fn push(args: PushArgs, cluster: &RemoteCluster) -> Result<()> {
    let PushArgs { image, to, node, format } = args;
    let steps = cluster.push_image(PushAsk { image, to, node }).await?;
    shown("push", steps, format).await
}

async fn shown(what: &'static str, mut steps: Stream1<MovesSeen>, format: FormatArg) -> Result<()> {
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {eta}");
        ProgressBar::new(0).with_style(style.expect("the template is constant and valid").progress_chars("=> "))
    });
    while let Some(step) = steps.next().await {
        let step = step?;
        if let Some(bar) = &bar {
            let over = step.nodes.iter().filter(|node| node.over).count();
            bar.set_length(step.nodes.iter().map(|node| node.of).sum());
            bar.set_position(step.nodes.iter().map(|node| node.size).sum());
            bar.set_message(format!("{what} {over}/{} nodes", step.nodes.len()));
        }
        if !step.done {
            continue;
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
        output::print(format.format, &step, || show::images::moved(&step))?;
        let failed: Vec<String> =
            step.nodes.iter().filter_map(|node| Some(format!("{} ({})", node.node, node.error.as_ref()?))).collect();
        return match failed.is_empty() {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Failed,
                format!("{what} of {}", step.image),
                format!("failed on {}", failed.join(", ")),
            )),
        };
    }
    Err(Error::new(Kind::Unavailable, "daemon", "has stopped"))
}
