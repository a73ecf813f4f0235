//! Images that Docker Engines of the cluster are told to get or to bring.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};

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
/// How often it is told how far all are, and how many nodes are at it at a time.
const TOLD: Duration = Duration::from_millis(500);
const MANY: usize = 32;

#[async_trait]
impl EngineImages for Runtime {
    async fn pull_image(&self, ask: PullAsk) -> Result<Stream1<MovesSeen>> {
        let (image, lease) = self.named(&ask.image, Role::Viewer).await?;
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
        nodes.sort_by(|(a, x), (b, y)| x.cmp(y).then(a.cmp(b)));
        nodes.dedup();
        if nodes.is_empty() {
            return Err(Error::new(Kind::Unavailable, format!("pull of {image}"), "no node is ready"));
        }
        let login = self.login_for(&image, lease.as_ref())?;
        let one = ImageMove { image: image.clone(), to: None, platform: ask.platform, login };
        Ok(self.moves(image, nodes, one, lease))
    }

    async fn push_image(&self, ask: PushAsk) -> Result<Stream1<MovesSeen>> {
        let to = ask.to.as_deref().unwrap_or(&ask.image);
        if to.contains('@') {
            let why = "needs a tag: its digest follows from what is in it";
            return Err(Error::invalid(format!("push of {to:.200}"), why));
        }
        let world = self.world();
        let node = match &ask.node {
            Some(name) => node::named(world.nodes.values().map(|node| &**node), name)?,
            None => {
                let mut ready = world.nodes.values().filter(|node| node.state == NodeState::Ready);
                let wrong = |why: &str| Error::invalid("push", why).help("neap registry push --node NODE IMAGE");
                let first = ready.next().ok_or_else(|| wrong("no node is ready"))?;
                match ready.next() {
                    None => first,
                    Some(_) => return Err(wrong("node: is missing, and there are several")),
                }
            }
        };
        let nodes = vec![(node.id.clone(), node.hostname.clone())];
        let (to, lease) = self.named(to, Role::Deployer).await?;
        let login = self.login_for(&to, lease.as_ref())?;
        let one = ImageMove { image: ask.image, to: Some(to.clone()), platform: None, login };
        Ok(self.moves(to, nodes, one, lease))
    }
}

// Taken back when it is over.
struct Lease(Arc<Lent>, String);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.end(&self.1);
    }
}

impl Runtime {
    /// What is lent now.
    pub fn lent(&self) -> &Arc<Lent> {
        &self.lent
    }

    // An image as Docker Engines call it. For one of the cluster's own a token is lent: whoever asks may do that, which was looked at, and the engine
    // has to say who it is all the same.
    async fn named(&self, image: &str, role: Role) -> Result<(String, Option<Lease>)> {
        let wrong = |why: &str| Error::invalid(format!("image {image:.200?}"), why);
        if image.contains("://") {
            let why = "is for Docker Engines, which name a registry by its host alone; http:// is a setting of theirs";
            return Err(wrong(why));
        }
        if name::elsewhere(image).is_some() {
            return Ok((image.to_owned(), None));
        }
        let (repository, reference) = name::image(image).map_err(Refused::into_error)?;
        let door = self.image_door().await?;
        // To an engine another port of the loopback is another registry.
        let host = image.split_once('/').map(|(host, _)| host).filter(|host| name::is_host(host));
        if host.is_some_and(|host| host != door) {
            return Err(wrong(&format!("is of another registry on a loopback; the cluster's own is {door}")));
        }
        let named = match reference {
            name::Reference::Tag(tag) => format!("{door}/{repository}:{tag}"),
            name::Reference::Digest(digest) => format!("{door}/{repository}@{digest}"),
        };
        let secret = self.lent.lend(Principal::lent(role, repository.as_str()))?;
        Ok((named, Some(Lease(self.lent.clone(), secret))))
    }

    // What its registry is told: registry, name, password.
    fn login_for(&self, image: &str, lease: Option<&Lease>) -> Result<Option<(String, String, String)>> {
        let registry = registry::of_image(image);
        if let Some(Lease(_, secret)) = lease {
            return Ok(Some((registry.to_owned(), "neap".to_owned(), secret.clone())));
        }
        let login = logins::at(&self.parts, &registry.to_ascii_lowercase())?;
        Ok(login.map(|login| (login.registry, login.username, login.password)))
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
            let turns = Arc::new(Semaphore::new(MANY));
            let mut told = tokio::time::Instant::now();
            let (each, mut steps) = mpsc::channel::<(usize, Result<ImageMoved>)>(WAITING);
            let mut seen = MovesSeen { image: own, nodes: Vec::new(), done: false };
            for (number, (id, hostname)) in nodes.into_iter().enumerate() {
                seen.nodes.push(NodeMoved { node: hostname, ..NodeMoved::default() });
                let (engine, each, ask, turns) = (engine.clone(), each.clone(), one.clone(), turns.clone());
                tokio::spawn(async move {
                    let _turn = tokio::select! {
                        turn = turns.acquire_owned() => turn,
                        // Nobody waits for it any more.
                        () = each.closed() => return,
                    };
                    let mut steps = match engine.move_image(&id, ask).await {
                        Ok(steps) => steps,
                        Err(error) => {
                            let _ = each.send((number, Err(error))).await;
                            return;
                        }
                    };
                    loop {
                        let step = tokio::select! {
                            step = steps.next() => step,
                            () = each.closed() => return,
                        };
                        let Some(step) = step else { return };
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
                if !seen.done && told.elapsed() >= TOLD {
                    told = tokio::time::Instant::now();
                    let _ = sender.try_send(Ok(seen.clone()));
                }
            }
            drop(lease);
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
            let cause = error.cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            node.error = Some(format!("{}: {}{cause}", error.subject, error.message));
            node.over = true;
        }
    }
}
