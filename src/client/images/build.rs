//! Building an image: layers are made where the files are, sent to the cluster's registry in pieces, and put together there.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::mpsc;

use super::{BaseAsk, BuildAsk, Built, Images};
use crate::model::{Error, Kind, Result};
pub use crate::registry::build::layer::{Content, Source};
use crate::registry::build::layer::{Layer, Made};
use crate::registry::build::tree::Tree;
use crate::registry::build::{BuiltLayer, ImageSettings};
use crate::registry::copy::Copied;
use crate::registry::name;
use crate::registry::refused::Refused;

/// What is sent at a time, in bytes.
const PIECE: usize = 4 << 20;
/// Pieces that wait to be sent.
const WAITING: usize = 2;
/// How often a piece is sent again whose answer did not come, and how long between.
const TRIES: u32 = 5;
const AGAIN: Duration = Duration::from_secs(1);

/// Bytes that go as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed(pub Bytes);

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(|bytes| Packed(bytes.into())).map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Packed {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Packed".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "contentEncoding": "base64" })
    }
}

/// An image that is to be built.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// What it is to be called: `shop/api:1.0`.
    pub image: String,
    /// What it is built from; nothing: from nothing.
    pub from: Option<String>,
    /// The platform that it is for.
    pub platform: Option<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<Vec<Source>>,
    /// How it is run.
    pub settings: ImageSettings,
    /// When all that is in it was made, in seconds since 1970.
    pub created: u64,
}

/// How far it is.
#[derive(Debug, Clone)]
pub enum Step {
    /// What it is built from comes.
    Base(Copied),
    /// A layer is made and sent: which one of how many, bytes that went into it of how many.
    Layer(usize, usize, u64, u64),
}

fn broke_off(error: tokio::task::JoinError) -> Error {
    Error::internal("build", "broke off").cause(error)
}

/// Builds it. Durable when it returns.
pub async fn build(images: &dyn Images, recipe: Recipe, told: impl Fn(&Step)) -> Result<Built> {
    let Recipe { image, from, platform, layers: sources, settings, created } = recipe;
    let (repository, _) = name::image(&image).map_err(Refused::into_error)?;
    let gathered = tokio::task::spawn_blocking(move || {
        let gather = |sources: Vec<Source>| {
            let created_by = created_by(&sources);
            Layer::gather(sources).map(|layer| (layer, created_by))
        };
        sources.into_iter().filter(|sources| !sources.is_empty()).map(gather).collect::<Result<Vec<_>>>()
    });
    let gathered = gathered.await.map_err(broke_off)??;
    let (mut base, mut tree) = (None, Tree::default());
    if let Some(from) = from {
        let ask = BaseAsk { image: image.clone(), from, platform: platform.clone(), tree: !gathered.is_empty() };
        let mut steps = images.image_base(ask).await?;
        while let Some(step) = steps.next().await {
            let step = step?;
            told(&Step::Base(step.copied));
            if step.done {
                base = step.base;
                tree = step.tree.map(Arc::unwrap_or_clone).unwrap_or_default();
                break;
            }
        }
        if base.is_none() {
            return Err(
                Error::new(Kind::Unavailable, format!("build of {image}"), "the registry broke off").retry(true)
            );
        }
    }
    let of = gathered.len();
    let mut layers = Vec::new();
    for (number, (layer, created_by)) in gathered.into_iter().enumerate() {
        let size = layer.size();
        let step = |done: u64| told(&Step::Layer(number + 1, of, done.min(size), size));
        // What one layer brings is there for the next.
        let (made, with_it) = send(images, repository.as_str(), layer, tree, created, &step).await?;
        tree = with_it;
        let Made { digest, diff_id, size } = made;
        layers.push(BuiltLayer { digest: digest.to_string(), diff_id: diff_id.to_string(), size, created_by });
    }
    let ask = BuildAsk { image, base, platform, layers, settings, created };
    again(async || images.build_image(ask.clone()).await).await
}

// An answer that does not come is asked for again: what is asked changes nothing the second time.
async fn again<T>(ask: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut tries = 0;
    loop {
        match ask().await {
            Err(error) if error.retry && tries < TRIES => tries += 1,
            other => return other,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn created_by(sources: &[Source]) -> String {
    let mut to: Vec<String> = sources.iter().map(|source| format!("/{}", source.to.trim_matches('/'))).collect();
    to.dedup();
    format!("neap build: {:.200}", to.join(" "))
}

async fn send(
    images: &dyn Images,
    repository: &str,
    layer: Layer,
    tree: Tree,
    created: u64,
    told: &impl Fn(u64),
) -> Result<(Made, Tree)> {
    let upload = images.begin_blob(repository).await?;
    let sent = send_as(images, repository, &upload, (layer, tree), created, told).await;
    if sent.is_err() {
        // Else it goes within a day.
        let _ = images.drop_blob(repository, &upload).await;
    }
    sent
}

async fn send_as(
    images: &dyn Images,
    repository: &str,
    upload: &str,
    (layer, mut tree): (Layer, Tree),
    created: u64,
    told: &impl Fn(u64),
) -> Result<(Made, Tree)> {
    let (sender, mut pieces) = mpsc::channel(WAITING);
    let done = Arc::new(AtomicU64::new(0));
    let counted = done.clone();
    let work = tokio::task::spawn_blocking(move || {
        let pieces = Pieces { sender, piece: Vec::with_capacity(PIECE) };
        layer.write(&mut tree, created, pieces, &counted).map(|made| (made, tree))
    });
    let mut offset = 0;
    while let Some(piece) = pieces.recv().await {
        let length = Bytes::len(&piece) as u64;
        again(async || images.add_to_blob(repository, upload, offset, piece.clone()).await).await?;
        offset += length;
        told(done.load(Ordering::Relaxed));
    }
    let (made, tree) = work.await.map_err(broke_off)??;
    again(async || images.end_blob(repository, upload, made.digest.as_str()).await).await?;
    told(done.load(Ordering::Relaxed));
    Ok((made, tree))
}

// What is written, in pieces for whoever sends them.
struct Pieces {
    sender: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.sender.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }
}
