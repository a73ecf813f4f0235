//! Images that Docker Engines of the cluster are told to get or to bring.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::asked::channel;
use super::lent::Lent;
use super::{Runtime, logins};
use crate::client::Stream1;
use crate::client::images::{EngineImages, Images};
use crate::model::id::NodeId;
use crate::model::moves::{ImageMove, ImageMoved, MovesSeen, NodeMoved, PullAsk, PushAsk};
use crate::model::node::{self, NodeState};
use crate::model::registry;
use crate::model::right::{Principal, Role};
use crate::model::{Error, Kind, Result};
use crate::registry::name;
use crate::registry::refused::Refused;

/// Steps of all nodes that wait to be put together.
const WAITING: usize = 64;

#[async_trait]
impl EngineImages for Runtime {
    async fn pull_image(&self, ask: PullAsk) -> Result<Stream1<MovesSeen>> {
        let image = self.for_engines(&ask.image).await?;
        let world = self.world();
        let mut nodes = Vec::new();
        if ask.nodes.is_empty() {
            let ready = world.nodes.values().filter(|node| node.state == NodeState::Ready);
            nodes.extend(ready.map(|node| (node.id.clone(), node.hostname.clone())));
        }
        for name in &ask.nodes {
            let node = node::named(world.nodes.values().map(|node| &**node), name)?;
            nodes.push((node.id.clone(), node.hostname.clone()));
        }
        nodes.sort_by(|(_, a), (_, b)| a.cmp(b));
        nodes.dedup();
        let login = logins::at(&self.parts, registry::of_image(&image))?;
        let login = login.map(|login| (login.registry, login.username, login.password));
        let one = ImageMove { image: image.clone(), to: None, platform: ask.platform, login };
        Ok(self.moves(image, nodes, one, None))
    }

    async fn push_image(&self, ask: PushAsk) -> Result<Stream1<MovesSeen>> {
        let to = ask.to.as_deref().unwrap_or(&ask.image);
        let world = self.world();
        let node = match &ask.node {
            Some(name) => node::named(world.nodes.values().map(|node| &**node), name)?,
            None => {
                let mut all = world.nodes.values();
                let several = || {
                    Error::invalid("push", "node: is missing, and there are several")
                        .help("neap registry push --node NODE IMAGE")
                };
                all.next().filter(|_| all.next().is_none()).ok_or_else(several)?
            }
        };
        let nodes = vec![(node.id.clone(), node.hostname.clone())];
        if name::elsewhere(to).is_some() {
            let to = without_scheme(to)?.to_owned();
            let login = logins::at(&self.parts, registry::of_image(&to))?;
            let login = login.map(|login| (login.registry, login.username, login.password));
            let one = ImageMove { image: ask.image, to: Some(to.clone()), platform: None, login };
            return Ok(self.moves(to, nodes, one, None));
        }
        let (repository, reference) = name::image(to).map_err(Refused::into_error)?;
        let name::Reference::Tag(tag) = reference else {
            return Err(Error::invalid(
                format!("push of {to:.200}"),
                "needs a tag: its digest follows from what is in it",
            ));
        };
        let door = self.image_door().await?;
        let to = format!("{door}/{repository}:{tag}");
        // Whoever asked may push there: that was looked at. The Docker Engine has to say who it is all the same.
        let principal =
            Principal { name: "neap push".into(), role: Role::Admin, prefix: repository.as_str().to_owned() };
        let secret = self.lent.lend(principal)?;
        let login = Some((door, "neap".to_owned(), secret.clone()));
        let one = ImageMove { image: ask.image, to: Some(to.clone()), platform: None, login };
        Ok(self.moves(to, nodes, one, Some(Lease(self.lent.clone(), secret))))
    }
}

// Taken back when it is over.
struct Lease(Arc<Lent>, String);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.end(&self.1);
    }
}

fn without_scheme(image: &str) -> Result<&str> {
    match image.contains("://") {
        true => {
            let why = "is for Docker Engines, which name a registry by its host alone; http:// is a setting of theirs";
            Err(Error::invalid(format!("image {image:.200?}"), why))
        }
        false => Ok(image),
    }
}

impl Runtime {
    /// What is lent now.
    pub fn lent(&self) -> &Arc<Lent> {
        &self.lent
    }

    // An image as Docker Engines call it.
    async fn for_engines(&self, image: &str) -> Result<String> {
        if name::elsewhere(image).is_some() {
            return without_scheme(image).map(str::to_owned);
        }
        let (repository, reference) = name::image(image).map_err(Refused::into_error)?;
        let door = self.image_door().await?;
        Ok(match reference {
            name::Reference::Tag(tag) => format!("{door}/{repository}:{tag}"),
            name::Reference::Digest(digest) => format!("{door}/{repository}@{digest}"),
        })
    }

    // All of them at once, and how far they are together.
    fn moves(
        &self,
        image: String,
        nodes: Vec<(NodeId, String)>,
        one: ImageMove,
        lease: Option<Lease>,
    ) -> Stream1<MovesSeen> {
        let (sender, stream) = channel();
        let (engine, own) = (self.parts.engine.clone(), image);
        tokio::spawn(async move {
            let _lease = lease;
            let (each, mut steps) = mpsc::channel::<(usize, Result<ImageMoved>)>(WAITING);
            let mut seen = MovesSeen { image: own, nodes: Vec::new(), done: nodes.is_empty() };
            for (number, (id, hostname)) in nodes.into_iter().enumerate() {
                seen.nodes.push(NodeMoved { node: hostname, ..NodeMoved::default() });
                let (engine, each, ask) = (engine.clone(), each.clone(), one.clone());
                tokio::spawn(async move {
                    let mut steps = match engine.move_image(&id, ask).await {
                        Ok(steps) => steps,
                        Err(error) => {
                            let _ = each.send((number, Err(error))).await;
                            return;
                        }
                    };
                    while let Some(step) = steps.next().await {
                        if each.send((number, step)).await.is_err() {
                            return;
                        }
                    }
                });
            }
            drop(each);
            while !seen.done {
                let step = tokio::select! {
                    step = steps.recv() => step,
                    () = sender.closed() => return,
                };
                match step {
                    Some((number, step)) => note(&mut seen.nodes[number], step),
                    // Whoever ended without a word broke off.
                    None => seen.nodes.iter_mut().filter(|node| !node.over).for_each(|node| {
                        let broke = Error::new(Kind::Unavailable, "agent", "broke off");
                        note(node, Err(broke));
                    }),
                }
                seen.done = seen.nodes.iter().all(|node| node.over);
                if !seen.done {
                    let _ = sender.try_send(Ok(seen.clone()));
                }
            }
            let _ = sender.send(Ok(seen)).await;
        });
        stream
    }
}

fn note(node: &mut NodeMoved, step: Result<ImageMoved>) {
    match step {
        Ok(step) => {
            (node.said, node.size, node.of) = (step.said, step.size, step.of);
            node.digest = step.digest.or(node.digest.take());
            node.over |= step.done;
        }
        Err(error) => {
            node.error = Some(format!("{}: {}", error.subject, error.message));
            node.over = true;
        }
    }
}
