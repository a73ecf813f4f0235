//! What `neap registry` does with images.

use std::io::IsTerminal;

use clap::Subcommand;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{self, FormatArg};
use crate::client::images::{CacheSettings, CopyAsk, ImportAsk, PruneAsk, RuleSettings};
use crate::client::remote::RemoteCluster;
use crate::client::{Images, Keepers, show};
use crate::model::units::{Bytes, Duration};
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
    /// Print images by their digests, as every host of the cluster gets them
    Resolve {
        /// The images: shop/api:1.0, or of another registry, docker.io/library/nginx:1.27
        #[arg(required = true)]
        images: Vec<String>,
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
    /// Show the registry in numbers: what it holds, what it was asked, how its caches fare
    Stats {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Copy an image from one registry to another, or within the cluster's, byte for byte
    Copy {
        /// The image: shop/api:1.0, or of another registry, docker.io/library/nginx:1.27, http://localhost:5001/app:2
        from: String,
        /// Its new name; the tag is that of the image where none is said
        to: String,
        /// Of an index only the image for this platform: linux/arm64
        #[arg(long)]
        platform: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Print the certificate that clients need who reach the registry by its name (--registry-name)
    Ca,
    /// Let Docker Engines of the cluster get an image, so that it is there when a service wants it
    Pull(super::moves::PullArgs),
    /// Let a Docker Engine of the cluster bring an image that it has to the cluster's registry, or to another
    Push(super::moves::PushArgs),
    /// Build an image from files, without Docker: the same files give the same image, byte for byte
    Build(Box<super::build::Args>),
    /// Take over what Docker's registry (distribution) keeps in a folder; on the same disk its files are shared, and may be removed later
    Import {
        /// The folder, on the host that keeps the images: what distribution calls rootdirectory, such as /var/lib/registry
        folder: std::path::PathBuf,
        /// Only repositories whose names begin so
        #[arg(long, default_value = "")]
        prefix: String,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show which host of a Swarm keeps the images, or let another one, with what it has: what the one before had stays there
    Keeper {
        /// The node: one whose daemon or agent was started with --roles registry
        node: Option<String>,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove tags that are old, or too many, but none that runs or that a service could go back to
    Prune {
        /// Repositories with such a name: 'shop/*'
        repositories: String,
        /// Only tags with such a name: 'pr-*'
        #[arg(long, value_name = "PATTERN")]
        tags: Option<String>,
        /// So many of a repository stay, the newest
        #[arg(long, value_name = "COUNT")]
        keep: Option<u32>,
        /// Those stay that were set since
        #[arg(long, value_name = "DURATION")]
        older_than: Option<Duration>,
        /// Manifests without a tag go as well, with the same age, or a day
        #[arg(long)]
        untagged: bool,
        /// Say only what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Rules for repositories: who pulls, pushes and deletes, immutable tags, quotas
    #[command(subcommand)]
    Rule(Rule),
    /// Keep copies of other registries' images, got when they are first asked for
    #[command(subcommand)]
    Cache(Cache),
    /// Read all blobs once more and compare them with their digests; exit code 1 where one is damaged or missing
    Scrub {
        #[command(flatten)]
        format: FormatArg,
    },
}

/// Rules for repositories. Where several are for one, the longest pattern that says something of it counts.
#[derive(Subcommand)]
pub enum Rule {
    /// List the rules
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Set a rule, in place of the one of the same pattern
    Set {
        /// For repositories with such a name: 'shop/*'
        repositories: String,
        /// Who pulls, with commas: names of tokens and users, known for all who say who they are, anybody
        #[arg(long, value_delimiter = ',', value_name = "WHO")]
        pull: Option<Vec<String>>,
        /// Who pushes
        #[arg(long, value_delimiter = ',', value_name = "WHO")]
        push: Option<Vec<String>>,
        /// Who deletes
        #[arg(long, value_delimiter = ',', value_name = "WHO")]
        delete: Option<Vec<String>>,
        /// Tags that are neither moved nor deleted once they are set: 'v*'
        #[arg(long, value_delimiter = ',', value_name = "PATTERN")]
        immutable: Vec<String>,
        /// What the blobs of such a repository may take: 20GB
        #[arg(long, value_name = "BYTES")]
        quota: Option<Bytes>,
    },
    /// Remove rules
    #[command(visible_alias = "delete")]
    Rm {
        /// The patterns
        #[arg(required = true)]
        repositories: Vec<String>,
    },
}

/// Caches of other registries.
#[derive(Subcommand)]
pub enum Cache {
    /// List the registries that are cached, and how each fares
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Cache a registry: `neap registry cache set hub docker.io`, and pull 127.0.0.1:5000/hub/nginx
    Set {
        /// What names of its repositories begin with here; / for all that nobody has pushed to
        prefix: String,
        /// The registry, or a part of it: docker.io, quay.io/org, http://registry.old:5000
        upstream: String,
        /// How long a copy stays that nobody asks for
        #[arg(long, default_value = "7d")]
        keep: Duration,
        /// Take any certificate of it
        #[arg(long)]
        insecure: bool,
    },
    /// Let go of caches; what they have fetched is served until nobody has asked for it for a week
    #[command(visible_alias = "delete")]
    Rm {
        /// The prefixes
        #[arg(required = true)]
        prefixes: Vec<String>,
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
        Command::Resolve { images } => {
            output::each(images, async |image| output::line(&cluster.resolve_image(&image).await?)).await
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
        Command::Prune { repositories, tags, keep, older_than, untagged, dry_run, format } => {
            let ask = PruneAsk { repositories, tags, keep, older_than, untagged, dry_run, in_use: Vec::new() };
            let pruned = cluster.prune_tags(ask).await?;
            output::print(format.format, &pruned, || show::images::pruned(&pruned, dry_run))
        }
        Command::Copy { from, to, platform, format } => copy(cluster, CopyAsk { from, to, platform }, format).await,
        Command::Ca => match cluster.image_ca().await? {
            Some(ca) => output::line(ca.trim_end()),
            None => {
                let why = "has no certificate of its own making: it has no name, or its owner's certificate";
                Err(Error::not_found("image registry").cause(why).help("neap up --registry-name NAME:PORT"))
            }
        },
        Command::Pull(args) => super::moves::pull(args, cluster).await,
        Command::Push(args) => super::moves::push(args, cluster).await,
        Command::Build(args) => super::build::main(*args, cluster).await,
        Command::Import { folder, prefix, format } => import(cluster, ImportAsk { folder, prefix }, format).await,
        Command::Keeper { node, format } => {
            let keeper = match node {
                Some(node) => cluster.name_keeper(&node).await?,
                None => cluster.keeper().await?,
            };
            output::print(format.format, &keeper, || show::images::keeper(&keeper))
        }
        Command::Stats { format } => {
            let stats = cluster.image_stats().await?;
            output::print(format.format, &stats, || show::images::stats(&stats))
        }
        Command::Rule(command) => rule(command, cluster).await,
        Command::Cache(command) => cache(command, cluster).await,
        Command::Scrub { format } => scrub(cluster, format).await,
    }
}

async fn rule(command: Rule, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Rule::Ls { format } => {
            let all = cluster.image_rules().await?;
            output::print(format.format, &all, || show::images::rules(&all))
        }
        Rule::Set { repositories, pull, push, delete, immutable, quota } => {
            let rule = RuleSettings { pull, push, delete, immutable, quota };
            output::line(&cluster.set_image_rule(&repositories, rule).await?.repositories)
        }
        Rule::Rm { repositories } => {
            output::each(repositories, async |repositories| {
                cluster.remove_image_rule(&repositories).await?;
                output::line(&repositories)
            })
            .await
        }
    }
}

async fn cache(command: Cache, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Cache::Ls { format } => {
            let all = cluster.image_caches().await?;
            output::print(format.format, &all, || show::images::caches(&all))
        }
        Cache::Set { prefix, upstream, keep, insecure } => {
            let cache = cluster.set_image_cache(&prefix, CacheSettings { upstream, insecure, keep }).await?;
            output::line(&format!("{}/... is {}", cache.prefix, cache.upstream))
        }
        Cache::Rm { prefixes } => {
            output::each(prefixes, async |prefix| {
                cluster.remove_image_cache(&prefix).await?;
                output::line(&prefix)
            })
            .await
        }
    }
}

async fn copy(cluster: &RemoteCluster, ask: CopyAsk, format: FormatArg) -> Result<()> {
    let mut steps = cluster.copy_image(ask).await?;
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{spinner} copying [{bar:30}] {msg} {bytes}/{total_bytes} {eta}");
        ProgressBar::new(0).with_style(style.expect("the template is constant and valid").progress_chars("=> "))
    });
    while let Some(step) = steps.next().await {
        let step = step?;
        if let Some(bar) = &bar {
            bar.set_length(step.of_size);
            bar.set_position(step.size);
            bar.set_message(format!("{}/{} blobs", step.blobs, step.of));
        }
        if step.done {
            bar.iter().for_each(ProgressBar::finish_and_clear);
            return output::print(format.format, &step, || show::images::copied(&step));
        }
    }
    Err(Error::new(Kind::Unavailable, "daemon", "has stopped"))
}

async fn import(cluster: &RemoteCluster, ask: ImportAsk, format: FormatArg) -> Result<()> {
    let mut steps = cluster.import_images(ask).await?;
    let bar = std::io::stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{spinner} importing [{bar:30}] {pos}/{len} repositories, {msg} {elapsed}");
        ProgressBar::new(0).with_style(style.expect("the template is constant and valid").progress_chars("=> "))
    });
    while let Some(step) = steps.next().await {
        let step = step?;
        if let Some(bar) = &bar {
            bar.set_length(step.of);
            bar.set_position(step.repositories);
            bar.set_message(format!("{} blobs ({})", step.blobs, Bytes(step.size)));
        }
        if !step.done {
            continue;
        }
        bar.iter().for_each(ProgressBar::finish_and_clear);
        output::print(format.format, &step, || show::images::imported(&step))?;
        return match step.left_out {
            0 => Ok(()),
            left => Err(Error::new(Kind::Corrupt, "import", format!("{left} manifests were left out"))),
        };
    }
    Err(Error::new(Kind::Unavailable, "daemon", "has stopped"))
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
            bar.set_message(Bytes(step.size).to_string());
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
