//! What `trait Cluster` in process needs to answer.

use tokio::sync::mpsc;

use super::{Runtime, commands, prepare, status};
use crate::client::{Apply, Info, ServiceStatus, Stream1};
use crate::model::Result;

impl Runtime {
    pub(super) fn about(&self) -> Info {
        Info {
            cluster: self.parts.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            engine: self.parts.engine.name().into(),
            pid: std::process::id(),
        }
    }

    pub(super) fn status(&self, name: &str) -> Result<ServiceStatus> {
        let world = self.world();
        let service = world.services.get(name).ok_or_else(|| commands::missing(&world, name))?;
        Ok(status::of(&world, service, &self.confirmed.borrow()))
    }

    // Scripts are loaded where waiting for them holds up nobody else.
    pub(super) async fn prepare(&self, ask: Apply) -> Result<prepare::Prepared> {
        let (world, parts) = (self.world(), self.parts.clone());
        self.parts.aside("apply", move || prepare::prepare(&world, &parts, ask)).await
    }
}

/// A stream, and what feeds it.
pub(super) fn channel<T: Send + 'static>() -> (mpsc::Sender<Result<T>>, Stream1<T>) {
    let (sender, receiver) = mpsc::channel(64);
    let stream =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    (sender, Box::pin(stream))
}
