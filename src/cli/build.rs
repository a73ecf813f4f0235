//! `neap registry build`.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;

use glob::Pattern;
use indicatif::{ProgressBar, ProgressStyle};

use super::output::{self, FormatArg};
use crate::client::images::ImageSettings;
use crate::client::images::build::{Content, Recipe, Source, Step, build};
use crate::client::remote::RemoteCluster;
use crate::client::show;
use crate::model::{Error, Result};
use crate::script::api::build::{read_mode, read_owner};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// What it is to be called: shop/api:1.0
    image: String,
    /// The image that it is built from, of this registry or of another: base/nginx:1.27, docker.io/library/alpine:3.20
    #[arg(long)]
    from: Option<String>,
    /// The platform that it is for; of an index --from the image for it [default: that of the registry's host]
    #[arg(long)]
    platform: Option<String>,
    /// A file or folder and where it goes: target/release/api:/app/, dist:/usr/share/nginx/html. Each is a layer of its own
    #[arg(long, value_name = "PATH:DESTINATION")]
    copy: Vec<String>,
    /// A tar archive and where it is unpacked, /rootfs.tar.gz:/; below all that is copied
    #[arg(long, value_name = "FILE:DESTINATION")]
    tar: Vec<String>,
    /// User and group of what is copied, by number
    #[arg(long, value_name = "USER:GROUP")]
    chown: Option<String>,
    /// Mode of the files that are copied [default: 0755 where they may be executed, else 0644]
    #[arg(long, value_name = "MODE")]
    chmod: Option<String>,
    /// What of folders is left out: '*.pyc', 'docs/*'
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Environment variables; without a value, this shell's
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// What is run, with quotes as in a shell
    #[arg(long, value_name = "WORDS")]
    entrypoint: Option<String>,
    /// The folder that it runs in
    #[arg(long, short)]
    workdir: Option<String>,
    /// The user that it runs as: 1000, 1000:1000, nobody
    #[arg(long, short)]
    user: Option<String>,
    /// Labels
    #[arg(long, short, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Ports that it serves: 8080, 53/udp
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Folders that are volumes
    #[arg(long, value_name = "FOLDER")]
    volume: Vec<String>,
    /// The signal that it ends by
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// When all that is in it was made, in seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", value_name = "SECONDS", default_value_t = 0)]
    timestamp: u64,
    #[command(flatten)]
    format: FormatArg,
    /// What it is run with
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND [ARG]")]
    command: Vec<String>,
}

fn pair(flag: &str, text: &str) -> Result<(PathBuf, String)> {
    let parts = text.rsplit_once(':').filter(|(path, to)| !path.is_empty() && !to.is_empty());
    parts.map(|(path, to)| (path.into(), to.to_owned())).ok_or_else(|| {
        Error::invalid(flag, format!("{text:.200?} does not say what goes where: dist:/usr/share/nginx/html"))
    })
}

fn label(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    match name.is_empty() {
        true => Err(Error::invalid("--label", format!("{text:.80?} has no name"))),
        false => Ok((name.to_owned(), value.to_owned())),
    }
}

// A variable that this shell has not is none, as with Docker.
fn variable(text: &str) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(text).ok().map(|value| (text.to_owned(), value)),
    }
}

fn recipe(args: Args) -> Result<Recipe> {
    let owner = args.chown.as_deref().map(read_owner).transpose().map_err(|why| Error::invalid("--chown", why))?;
    let mode = args.chmod.as_deref().map(read_mode).transpose().map_err(|why| Error::invalid("--chmod", why))?;
    let pattern = |text: &String| {
        Pattern::new(text).map_err(|error| Error::invalid(format!("--exclude {text:.80?}"), error.to_string()))
    };
    let exclude: Vec<Pattern> = args.exclude.iter().map(pattern).collect::<Result<_>>()?;
    let source = |content, to| Source { to, content, mode, owner: owner.unwrap_or_default(), exclude: exclude.clone() };
    let mut layers = Vec::new();
    for text in &args.tar {
        let (path, to) = pair("--tar", text)?;
        layers.push(vec![source(Content::Tar(path), to)]);
    }
    for text in &args.copy {
        let (path, to) = pair("--copy", text)?;
        layers.push(vec![source(Content::Disk(path), to)]);
    }
    let words = |line: &String| {
        crate::compose::words(line).map_err(|why| Error::invalid(format!("--entrypoint {line:.80?}"), why))
    };
    let settings = ImageSettings {
        env: args.env.iter().filter_map(|text| variable(text)).collect(),
        entrypoint: args.entrypoint.as_ref().map(words).transpose()?,
        command: Some(args.command).filter(|words| !words.is_empty()),
        workdir: args.workdir,
        user: args.user,
        labels: args.label.iter().map(|text| label(text)).collect::<Result<_>>()?,
        expose: args.expose,
        volumes: args.volume,
        stop_signal: args.stop_signal,
    };
    let Args { image, from, platform, timestamp, .. } = args;
    Ok(Recipe { image, from, platform, layers, settings, created: timestamp })
}

/// Builds it.
pub async fn main(args: Args, cluster: &RemoteCluster) -> Result<()> {
    let format = args.format.format;
    let recipe = recipe(args)?;
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {eta}");
        ProgressBar::new(0).with_style(style.expect("the template is constant and valid").progress_chars("=> "))
    });
    let last = RefCell::new(String::new());
    let told = |step: &Step| {
        let Some(bar) = &bar else { return };
        let (message, size, of) = match step {
            Step::Base(copied) => (format!("base {}/{} blobs", copied.blobs, copied.of), copied.size, copied.of_size),
            Step::Layer(number, of, done, size) => (format!("layer {number}/{of}"), *done, *size),
        };
        bar.set_length(of);
        bar.set_position(size);
        if *last.borrow() != message {
            bar.set_message(message.clone());
            last.replace(message);
        }
    };
    let built = build(cluster, recipe, told).await;
    bar.iter().for_each(ProgressBar::finish_and_clear);
    let built = built?;
    output::print(format, &built, || show::images::built(&built))
}
