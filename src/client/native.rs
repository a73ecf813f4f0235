//! Waiting for a change of who runs a service.

use std::time::Duration;

use futures_util::StreamExt;

use super::wait::Progress;
use super::{Cluster, ServiceStatus};
use crate::model::native::{Handover, HandoverState, Way};
use crate::model::{Error, Kind, Result};

/// Waits until a service that is being adopted is Neap's and settled.
pub async fn adopted(
    cluster: &dyn Cluster,
    name: &str,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<ServiceStatus> {
    let subject = format!("service \"{name}\"");
    let mut last = None;
    let watch = async {
        let mut states = cluster.watch(name).await?;
        while let Some(status) = states.next().await {
            let status = status?;
            progress(&status);
            // A port that the Swarm's has is no failure here.
            if status.service.open_handover().is_none() {
                return Ok(status);
            }
            last = Some(status);
        }
        Err(Error::new(Kind::NotFound, subject.clone(), "was removed while it was adopted"))
    };
    match tokio::time::timeout(timeout, watch).await {
        Ok(result) => result,
        Err(_) => {
            let shown = crate::model::units::Duration::from(timeout);
            let handover = last.and_then(|status| status.service.handover);
            let help = match handover.as_ref().map(|handover| handover.state) {
                Some(HandoverState::Moving) => format!("it goes on by itself; look with: neap service ps {name}"),
                _ => format!(
                    "it goes on by itself, and until its replicas are healthy the Swarm's serves as before; \
                     give it up with: neap service rm {name}"
                ),
            };
            let error = Error::new(Kind::Timeout, subject.clone(), format!("not adopted within {shown}")).help(help);
            let why = handover.and_then(|handover| handover.reason);
            Err(why.map_or(error.clone(), |why| error.cause(why)))
        }
    }
}

/// Waits until a service that is given back is the Swarm's, and Neap's replicas of it have ended.
pub async fn handed_back(
    cluster: &dyn Cluster,
    name: &str,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<Handover> {
    let subject = format!("service \"{name}\"");
    let mut last: Option<Handover> = None;
    let watch = async {
        let mut states = cluster.watch(name).await?;
        while let Some(status) = states.next().await {
            let status = status?;
            progress(&status);
            match &status.service.handover {
                Some(handover) if handover.way == Way::Release && handover.state != HandoverState::Cancelling => {
                    last = Some(handover.clone());
                }
                stays => {
                    let why = stays.as_ref().and_then(|handover| handover.reason.clone());
                    let error = Error::new(Kind::Failed, subject.clone(), "stays Neap's");
                    return Err(why.map_or(error.clone(), |why| error.cause(why)));
                }
            }
        }
        match last.take() {
            // Nobody else removes one that is given back.
            Some(handover) if handover.state >= HandoverState::Moving => Ok(handover),
            _ => Err(Error::new(Kind::NotFound, subject.clone(), "was removed while it was given back")),
        }
    };
    let late = |_| {
        let shown = crate::model::units::Duration::from(timeout);
        Err(Error::new(Kind::Timeout, subject.clone(), format!("not given back within {shown}"))
            .help(format!("it goes on by itself; let it stay with: neap service hand-back {name} --cancel")))
    };
    tokio::time::timeout(timeout, watch).await.unwrap_or_else(late)
}
