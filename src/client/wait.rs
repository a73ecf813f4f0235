//! Waits until a service is as described, or has failed to become so.

use std::time::Duration;

use futures_util::StreamExt;

use super::{Cluster, ServiceStatus, Stream1};
use crate::model::native::NativeService;
use crate::model::node::{Availability, Node};
use crate::model::plan::Move;
use crate::model::release::{Release, ReleaseState};
use crate::model::task::{CRASH_LOOP, Task, TaskState};
use crate::model::{Error, Kind, Result};

/// How long a service without a check has to stay up before it counts as settled: what ends at once should show.
const STABLE: Duration = Duration::from_secs(1);
const STABLE_AGAIN: Duration = Duration::from_secs(5);

/// How often a node that is drained is looked at, and how many of what stays there are named.
const LOOK: Duration = Duration::from_millis(500);
const NAMED: usize = 5;

/// How long the states of a service that goes may be broken off.
const BROKEN: Duration = Duration::from_secs(30);

/// Told about each state on the way.
pub type Progress<'a> = &'a mut (dyn FnMut(&ServiceStatus) + Send);

/// Waits at most `timeout` for `name` to settle. A release that was over already when `before` was seen is not
/// waited for and not reported. The wait bounds the watching: what was begun goes on.
pub async fn settled(
    cluster: &dyn Cluster,
    name: &str,
    before: Option<&Release>,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<ServiceStatus> {
    let subject = format!("service \"{name}\"");
    let mut last: Option<ServiceStatus> = None;
    let mut lost: Option<Error> = None;
    let watch = async {
        let mut states = cluster.watch(name).await?;
        // When a settled service without a check has proven itself.
        let (mut proven, mut broken) = (None, None);
        loop {
            let next = match (proven, &last) {
                (Some(at), Some(settled)) => match tokio::time::timeout_at(at, states.next()).await {
                    Ok(next) => next,
                    Err(_) => return Ok(settled.clone()),
                },
                _ => states.next().await,
            };
            let status = match next {
                Some(Ok(status)) => status,
                // Another daemon takes the lead, or the same begins anew: what is waited for goes on.
                Some(Err(error)) if error.retry => {
                    lost = Some(error.clone());
                    states = again(cluster, name, &mut broken, error).await?;
                    proven = None;
                    continue;
                }
                Some(Err(error)) => return Err(error),
                None => break,
            };
            (broken, lost) = (None, None);
            progress(&status);
            if let Some(failure) = failure(&status, before) {
                return Err(failure);
            }
            if status.settled && status.service.spec.check.is_some() {
                return Ok(status);
            }
            // What has failed again and again has more to prove.
            let stable = if has_looped(&status) { STABLE_AGAIN } else { STABLE };
            proven = status.settled.then(|| proven.unwrap_or_else(|| tokio::time::Instant::now() + stable));
            last = Some(status);
        }
        Err(Error::new(Kind::NotFound, subject.clone(), "was removed while it was waited for"))
    };
    match tokio::time::timeout(timeout, watch).await {
        Ok(result) => result,
        Err(_) => {
            // Whoever waits no longer than what it takes to be taken for stable is told how things are.
            let brief =
                |status: &&ServiceStatus| status.settled && lost.is_none() && timeout <= STABLE && !has_looped(status);
            if let Some(settled) = last.as_ref().filter(brief) {
                return Ok(settled.clone());
            }
            if let Some(error) = lost {
                return Err(error.help(gone_on(name)));
            }
            let shown = crate::model::units::Duration::from(timeout);
            let mut error = Error::new(Kind::Timeout, subject.clone(), format!("not settled within {shown}"))
                .help(format!("it goes on by itself; look with: neap service ps {name}"));
            if let Some(why) = last.as_ref().and_then(why_not) {
                error = error.cause(why);
            }
            Err(error)
        }
    }
}

// The states once more, after `error` broke them off. `broken`: since when they have been.
async fn again(
    cluster: &dyn Cluster,
    name: &str,
    broken: &mut Option<tokio::time::Instant>,
    mut error: Error,
) -> Result<Stream1<ServiceStatus>> {
    let since = *broken.get_or_insert_with(tokio::time::Instant::now);
    while since.elapsed() < BROKEN {
        tokio::time::sleep(LOOK).await;
        match cluster.watch(name).await {
            Err(another) if another.retry => error = another,
            other => return other,
        }
    }
    Err(error.help(gone_on(name)))
}

fn gone_on(name: &str) -> String {
    format!("what was begun goes on; look with: neap service ps {name}, wait with: neap service wait {name}")
}

/// An error where the last release of a service was ended half-way: it stands still, and is not as described.
pub fn half_way(status: &ServiceStatus) -> Result<()> {
    let Some(release) = status.release.as_ref().filter(|_| status.half_way) else { return Ok(()) };
    let name = &status.service.spec.name;
    let message = format!("stopped half-way, {} of {} on revision {}", release.moved.len(), status.desired, release.to);
    let mut error = Error::new(Kind::Failed, format!("service \"{name}\""), message)
        .help(format!("go back with: neap service rollback {name}; or apply a description again"));
    if let Some(why) = &release.reason {
        error = error.cause(why);
    }
    Err(error)
}

/// Waits until a service that is being removed is gone. `states` were asked for before, so that its end cannot be missed;
/// where they break off, because another daemon takes the lead, say, they are asked for again.
pub async fn gone(cluster: &dyn Cluster, name: &str, mut states: Stream1<ServiceStatus>) -> Result<()> {
    let mut since = None;
    loop {
        while let Some(Ok(_)) = states.next().await {
            since = None;
        }
        let broken = *since.get_or_insert_with(tokio::time::Instant::now);
        // An end is the service's own only if there is none any more.
        match cluster.watch(name).await {
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            Err(error) if !error.retry || broken.elapsed() > BROKEN => return Err(error),
            Err(_) => {}
            Ok(mut again) => match again.next().await {
                // Made anew in the meantime.
                Some(Ok(status)) if !status.service.removing => return Ok(()),
                Some(Ok(_)) => (since, states) = (None, again),
                _ if broken.elapsed() > BROKEN => {
                    return Err(Error::new(Kind::Unavailable, format!("service \"{name}\""), "cannot be watched")
                        .help(format!("it goes on by itself; look with: neap service ps {name}")));
                }
                _ => states = again,
            },
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits at most `timeout` until no replica is left on a node; `progress` hears how many are. The drain itself goes on.
pub async fn drained(
    cluster: &dyn Cluster,
    node: &Node,
    timeout: Duration,
    progress: &mut (dyn FnMut(usize) + Send),
) -> Result<()> {
    let until = tokio::time::Instant::now() + timeout;
    let look = async || -> Result<(bool, Vec<String>)> {
        let nodes = cluster.nodes().await?;
        let is_drained = nodes.iter().any(|now| now.id == node.id && now.availability == Availability::Drain);
        Ok((is_drained, staying(&cluster.services().await?, node)))
    };
    loop {
        let left = match look().await {
            Ok((true, left)) => left,
            Ok((false, _)) => {
                let message = "is not drained any more: somebody else has changed that, or removed it";
                return Err(Error::new(Kind::Conflict, format!("node \"{}\"", node.hostname), message));
            }
            // Another daemon takes the lead, say.
            Err(error) if error.retry && tokio::time::Instant::now() < until => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        progress(left.len());
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            let shown = crate::model::units::Duration::from(timeout);
            let named = left.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
            let more = if left.len() > NAMED { "; ..." } else { "" };
            let message = format!("not empty within {shown}; {} left: {named}{more}", left.len());
            return Err(Error::new(Kind::Timeout, format!("node \"{}\"", node.hostname), message).help(
                "it goes on by itself; `neap node update NODE --availability drain --force` ends what has no other place",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

// Replicas that are on a node, each with why nothing takes its place, if that is known.
fn staying(services: &[ServiceStatus], node: &Node) -> Vec<String> {
    let tasks = services.iter().flat_map(|status| status.tasks.iter().map(move |task| (status, task)));
    let here = tasks.filter(|(_, task)| task.node.as_ref() == Some(&node.id) && !task.state.is_final());
    let said = here.map(|(status, task)| {
        let successor = status.tasks.iter().find(|other| {
            other.slot == task.slot && other.id != task.id && !other.state.is_final() && other.stop.is_none()
        });
        match successor.and_then(|successor| successor.reason.as_ref()) {
            Some(reason) => format!("{}: {reason}", task.label()),
            None => task.label(),
        }
    });
    said.collect()
}

/// After a wait: an error that names what a rebalance was to move and did not.
pub fn moved(status: &ServiceStatus, moves: &[Move]) -> Result<()> {
    let stays = |step: &&Move| {
        let live = status.tasks.iter().find(|task| !task.state.is_final() && task.label() == step.task);
        live.and_then(|task| status.nodes.get(&**task.node.as_ref()?)).is_some_and(|node| *node == step.from)
    };
    let staying: Vec<&str> = moves.iter().filter(stays).map(|step| step.task.as_str()).collect();
    if staying.is_empty() {
        return Ok(());
    }
    let name = &status.service.spec.name;
    let message = format!("{} of {} stay where they are: {}", staying.len(), moves.len(), staying.join(", "));
    Err(Error::new(Kind::Failed, format!("service \"{name}\""), message)
        .help(format!("`neap service ps -a {name}` shows what their successors died of")))
}

/// The release that a service has before something is applied to it: one that begins and ends at once is not old for that.
pub async fn release_before(cluster: &dyn Cluster, name: &str) -> Result<Option<Release>> {
    match cluster.service(name).await {
        Ok(status) => Ok(status.release),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a wait after an apply starts from: the release in its answer, unless that is over already and was not there
/// `before`. Then it began and ended at once, and how it ended is what the apply came to.
pub fn since(before: Option<&Release>, answer: Option<&Release>) -> Option<Release> {
    let own = |release: &&Release| before.is_none_or(|old| old.started_at != release.started_at);
    answer.filter(|release| !(release.state.is_final() && own(release))).cloned()
}

/// Whether a release was over already when `before` was seen.
pub fn is_old(release: &Release, before: Option<&Release>) -> bool {
    before.is_some_and(|old| old.state.is_final() && old.started_at == release.started_at)
}

/// Why it will not become so, if that is known. `before`: the release that was there when the wait began.
pub fn failure(status: &ServiceStatus, before: Option<&Release>) -> Option<Error> {
    let name = &status.service.spec.name;
    let subject = format!("service \"{name}\"");
    let known = |release: &Release| is_old(release, before);
    if let Some(stuck) = status.native.as_ref().and_then(NativeService::stuck) {
        return Some(Error::new(Kind::Failed, subject, stuck).help(format!("look with: neap service ps {name}")));
    }
    if let Some(failure) = status.port_failures.first() {
        return Some(
            Error::new(Kind::Conflict, subject, failure.clone())
                .help("free the port or mend the certificate, or take others; it is tried again by itself"),
        );
    }
    if let (Some(ours), Some(now)) = (before, &status.release)
        && !ours.state.is_final()
        && now.started_at != ours.started_at
    {
        let message = format!("revision {} was overtaken by revision {}", ours.to, now.to);
        return Some(Error::new(Kind::Conflict, subject, message).help("somebody else deploys the same service"));
    }
    if let Some(release) = status.release.as_ref().filter(|release| !known(release)) {
        let why = release.reason.clone().unwrap_or_default();
        let (revision, back) = (release.to, release.back);
        match release.state {
            // The one before may never have run, and then nothing gets quiet again.
            ReleaseState::RolledBack | ReleaseState::RollingBack if !status.settled && is_stuck(status) => {
                let message =
                    format!("revision {revision} failed, and revision {back}, to which it goes back, does not run");
                return Some(
                    Error::new(Kind::Failed, subject, message)
                        .cause(why)
                        .help("mend the description, and apply it again"),
                );
            }
            // Said once all is quiet again, so that whoever waited finds the old revision alone.
            ReleaseState::RolledBack if !status.settled => return None,
            ReleaseState::RolledBack => {
                return Some(
                    Error::new(
                        Kind::Failed,
                        subject,
                        format!("revision {revision} was rolled back to revision {back}"),
                    )
                    .cause(why),
                );
            }
            ReleaseState::Failed => {
                return Some(
                    Error::new(Kind::Failed, subject, format!("the release of revision {revision} failed")).cause(why),
                );
            }
            ReleaseState::Paused => {
                return Some(
                    Error::new(Kind::Failed, subject, format!("the release of revision {revision} is paused"))
                        .cause(why)
                        .help(format!(
                            "go on with: neap service rollout resume {name}; go back with: neap service rollback {name}"
                        )),
                );
            }
            ReleaseState::Promoted => {}
            // Its script judges its tasks.
            _ => return None,
        }
    }
    if let Some(why) = &status.given_up {
        return Some(
            Error::new(Kind::Failed, subject, "a replica failed, and is not to be started again")
                .cause(why)
                .help(format!("look with: neap service logs {name}; its restart policy says so")),
        );
    }
    let looping = status.tasks.iter().find(|task| loops(task))?;
    let why = looping.reason.clone().unwrap_or_default();
    Some(
        Error::new(
            Kind::Failed,
            subject,
            format!("{} is in a crash loop ({} failures in a row)", looping.label(), looping.failures),
        )
        .cause(why)
        .help(format!("look with: neap service ps -a {name}, and neap service logs {name}")),
    )
}

fn has_looped(status: &ServiceStatus) -> bool {
    status.tasks.iter().any(|task| task.wanted() && task.failures >= CRASH_LOOP)
}

fn loops(task: &Task) -> bool {
    !task.state.is_final() && task.is_crash_looping() && task.stop.is_none()
}

fn is_stuck(status: &ServiceStatus) -> bool {
    status.tasks.iter().any(loops)
}

/// Why it is not as described yet, as one of its replicas tells.
pub fn why_not(status: &ServiceStatus) -> Option<String> {
    let open = |state: TaskState| !state.is_final() && state != TaskState::Running;
    let task = status.tasks.iter().find(|task| open(task.state) && task.reason.is_some()).or_else(|| {
        status.tasks.iter().find(|task| task.state == TaskState::Running && !task.is_healthy() && task.reason.is_some())
    });
    let why = |task: &Task| {
        format!("{} is {}: {}", task.label(), task.state.as_str(), task.reason.as_deref().unwrap_or_default())
    };
    task.map(why).or_else(|| status.ports_pending.clone())
}
