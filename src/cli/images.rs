//! What `neap registry` does with images.

use std::io::IsTerminal;

use clap::Subcommand;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::{Cluster, show};
use crate::model::{Error, Kind, Result};

/// Subcommands.
#[derive(Subcommand)]
pub enum Command {
    /// List the repositories of the cluster's registry
    #[command(visible_alias = "list")]
    Ls {
        /// Only repositories whose names begin so
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        format: FormatArg,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// List a repository's tags
    Tags {
        /// The repository, such as shop/api
        repository: String,
        #[command(flatten)]
        format: FormatArg,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show an image: what it is made of, how it is run, what refers to it
    Inspect {
        /// The image: shop/api:1.0, or shop/api@sha256:...
        image: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Delete tags; by digest, manifests with all their tags
    #[command(visible_alias = "delete")]
    Rm {
        /// The images: shop/api:1.0, or shop/api@sha256:...
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove what no image needs any more
    Gc {
        /// Say only what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Read all blobs once more and compare them with their digests; exit code 1 where one is damaged or missing
    Scrub {
        #[command(flatten)]
        format: FormatArg,
    },
}

/// Runs a subcommand.
pub async fn main(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Ls { prefix, format, quiet } => {
            let all = cluster.image_repositories(&prefix).await?;
            match quiet {
                true => all.iter().try_for_each(|one| output::line(&one.name)),
                false => output::print(format.format, &all, || show::images::repositories(&all)),
            }
        }
        Command::Tags { repository, format, quiet } => {
            let all = cluster.image_tags(&repository).await?;
            match quiet {
                true => all.iter().try_for_each(|one| output::line(&one.tag)),
                false => output::print(format.format, &all, || show::images::tags(&all, show::now())),
            }
        }
        Command::Inspect { image, format } => {
            let found = cluster.image(&image).await?;
            output::print(format.format, &found, || show::images::image(&found, show::now()))
        }
        Command::Rm { images } => {
            output::each(images, async |image| {
                cluster.delete_image(&image).await?;
                output::line(&image)
            })
            .await
        }
        Command::Gc { dry_run, format } => {
            let collected = cluster.collect_images(dry_run).await?;
            output::print(format.format, &collected, || show::images::collected(&collected, dry_run))
        }
        Command::Scrub { format } => scrub(cluster, format).await,
    }
}

async fn scrub(cluster: &RemoteCluster, format: FormatArg) -> Result<()> {
    let mut steps = cluster.scrub_images().await?;
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{spinner} reading blobs [{bar:30}] {pos}/{len} {msg} {elapsed}");
        ProgressBar::new(0).with_style(style.expect("the template is constant and valid").progress_chars("=> "))
    });
    while let Some(step) = steps.next().await {
        let step = step?;
        if let Some(bar) = &bar {
            bar.set_length(step.of);
            bar.set_position(step.blobs);
            bar.set_message(crate::model::units::Bytes(step.size).to_string());
        }
        if !step.done {
            continue;
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
        output::print(format.format, &step, || show::images::scrubbed(&step))?;
        let bad = step.damaged.len() + step.missing.len();
        return match bad {
            0 => Ok(()),
            _ => Err(Error::new(Kind::Corrupt, "image registry", format!("{bad} blobs are damaged or missing"))
                .help("push the images again that are made of them")),
        };
    }
    Err(Error::new(Kind::Unavailable, "daemon", "has stopped"))
}
