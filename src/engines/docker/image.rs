//! Images on their way to a host.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::ProgressDetail;
use bollard::query_parameters::{CreateImageOptions, PushImageOptions, RemoveImageOptions, TagImageOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{credentials, trouble};
use crate::engines::Moves;
use crate::model::moves::{ImageMove, ImageMoved};
use crate::model::registry::Login;
use crate::model::units::Bytes;
use crate::model::{Error, Kind, Result};

/// How often progress is told.
const TOLD: Duration = Duration::from_secs(1);
/// A pull of which nothing is heard for this long has failed.
const SILENT: Duration = Duration::from_secs(300);

/// Steps that wait for whoever hears of them.
const WAITING: usize = 16;

/// Pulls an image for a platform, as whoever has logged in at its registry; `tell` hears how far it is, and how many bytes of how many are there.
pub async fn pull(
    docker: &Docker,
    (image, platform, login): (&str, Option<&str>, Option<&Login>),
    mut tell: impl FnMut(String, (u64, u64)),
) -> Result<Option<String>> {
    let subject = format!("image \"{image}\"");
    let mut digest = None;
    tell(format!("pulls {image}"), (0, 0));
    let found = credentials::of(login, image).await;
    let options = CreateImageOptions {
        from_image: Some(with_tag(image)),
        platform: platform.unwrap_or_default().to_owned(),
        ..CreateImageOptions::default()
    };
    let mut stream = docker.create_image(Some(options), None, found);
    let mut progress = Progress::default();
    let mut told = Instant::now();
    loop {
        let Ok(next) = tokio::time::timeout(SILENT, stream.next()).await else {
            return Err(Error::new(Kind::Timeout, subject, format!("nothing was heard of its pull for {SILENT:?}")));
        };
        match next {
            None => return Ok(digest),
            Some(Ok(info)) => {
                // `Digest: sha256:...`, of no layer.
                if let (None, Some(status)) = (&info.id, &info.status) {
                    digest = status.strip_prefix("Digest: ").map(str::to_owned).or(digest);
                }
                if let (Some(id), Some(status)) = (info.id, info.status) {
                    progress.add(id, &status, info.progress_detail);
                }
                if told.elapsed() >= TOLD {
                    told = Instant::now();
                    tell(format!("pulls {image}: {}", progress.text()), progress.sum());
                }
            }
            Some(Err(error)) => {
                let error = trouble::error(subject, "pull it", &error);
                return Err(if error.retry {
                    error
                } else {
                    error.help("see whether name, tag and registry are right")
                });
            }
        }
    }
}

/// Pulls or pushes; how far that is, to its end. It goes on for as long as somebody hears of it.
pub fn moved(docker: Docker, ask: ImageMove) -> Moves {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let on_the_way = sender.clone();
        let tell = move |said: String, (size, of): (u64, u64)| {
            // Whoever is slow hears less of it.
            _ = on_the_way.try_send(Ok(ImageMoved { said, size, of, ..ImageMoved::default() }));
        };
        let work = async {
            let done = |size, digest| ImageMoved { said: "done".into(), size, of: size, digest, done: true };
            match &ask.to {
                Some(to) => {
                    let pushed = push(&docker, &ask, to, tell, sender.closed()).await;
                    pushed.map(|(size, digest)| done(size, Some(digest)))
                }
                None => {
                    let login = ask.login();
                    let digest = pull(&docker, (&ask.image, ask.platform.as_deref(), login.as_ref()), tell).await?;
                    let found = docker.inspect_image(&ask.image).await;
                    let found = found.map_err(|error| trouble::error(&ask.image, "look at it", &error))?;
                    let size = u64::try_from(found.size.unwrap_or_default()).unwrap_or_default();
                    Ok(done(size, digest))
                }
            }
        };
        let done = match ask.to.is_some() {
            // What a push that is given up leaves is put right first.
            true => work.await,
            false => tokio::select! {
                done = work => done,
                () = sender.closed() => return,
            },
        };
        let _ = sender.send(done).await;
    });
    let next = |mut receiver: mpsc::Receiver<Result<ImageMoved>>| async move {
        receiver.recv().await.map(|step| (step, receiver))
    };
    futures_util::stream::unfold(receiver, next).boxed()
}

// An image's name and its tag; a digest counts as none.
fn parts(image: &str) -> (&str, Option<&str>) {
    let bare = image.split('@').next().unwrap_or(image);
    let from = bare.rfind('/').map_or(0, |at| at + 1);
    match bare[from..].find(':') {
        Some(at) => (&bare[..from + at], Some(&bare[from + at + 1..])),
        None => (bare, None),
    }
}

// The name under which it is pushed is a name of the engine's as well: one that is not taken there is not kept here.
async fn push(
    docker: &Docker,
    ask: &ImageMove,
    to: &str,
    tell: impl FnMut(String, (u64, u64)),
    given_up: impl Future<Output = ()>,
) -> Result<(u64, String)> {
    let subject = format!("image \"{}\"", ask.image);
    let (repository, tag) = parts(to);
    let tag = tag.unwrap_or("latest");
    let name = || TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
    let full = format!("{repository}:{tag}");
    let before = match docker.inspect_image(&full).await {
        Ok(image) => image.id,
        Err(error) if trouble::is_status(&error, 404) => None,
        Err(error) => return Err(trouble::error(&subject, "look at what has its new name", &error)),
    };
    docker
        .tag_image(&ask.image, Some(name()))
        .await
        .map_err(|error| trouble::error(&subject, "give it another name", &error))?;
    let pushed = tokio::select! {
        pushed = push_as(docker, ask, (repository, tag), tell) => pushed,
        () = given_up => Err(Error::new(Kind::Failed, subject, "nobody waits for its push any more")),
    };
    if pushed.is_err() {
        let undone = match before {
            Some(id) => docker.tag_image(&id, Some(name())).await,
            None => match docker.inspect_image(&full).await {
                // Without another name it would go with this one.
                Ok(image) if image.repo_tags.as_ref().is_some_and(|tags| tags.len() > 1) => {
                    docker.remove_image(&full, None::<RemoveImageOptions>, None).await.map(drop)
                }
                other => other.map(drop),
            },
        };
        if let Err(error) = undone {
            tracing::warn!(%error, image = full, "an image that was not pushed keeps that name");
        }
    }
    pushed
}

async fn push_as(
    docker: &Docker,
    ask: &ImageMove,
    (repository, tag): (&str, &str),
    mut tell: impl FnMut(String, (u64, u64)),
) -> Result<(u64, String)> {
    let (subject, to) = (format!("image \"{}\"", ask.image), format!("{repository}:{tag}"));
    tell(format!("pushes {to}"), (0, 0));
    let found = credentials::of(ask.login().as_ref(), &to).await;
    let options = PushImageOptions { tag: Some(tag.to_owned()), ..PushImageOptions::default() };
    let mut stream = std::pin::pin!(docker.push_image(repository, Some(options), found));
    let (mut progress, mut told, mut digest, mut number) = (Progress::default(), Instant::now(), None, 0);
    loop {
        let Ok(next) = tokio::time::timeout(SILENT, stream.next()).await else {
            return Err(Error::new(Kind::Timeout, subject, format!("nothing was heard of its push for {SILENT:?}")));
        };
        match next {
            None => break,
            Some(Ok(info)) => {
                let status = info.status.unwrap_or_default();
                // `1.0: digest: sha256:... size: 528`
                if let Some((_, rest)) = status.split_once(" digest: ") {
                    digest = rest.split(' ').next().map(str::to_owned);
                }
                // It does not say of which layer it speaks: a total is a layer's.
                if let Some(detail) = info.progress_detail.filter(|detail| detail.total.is_some()) {
                    number = detail.total.unwrap_or_default();
                    progress.add(number.to_string(), &status, Some(detail));
                } else if status == "Pushed" {
                    progress.add(number.to_string(), &status, None);
                }
                if told.elapsed() >= TOLD {
                    told = Instant::now();
                    tell(format!("pushes {to}: {}", progress.text()), progress.sum());
                }
            }
            Some(Err(error)) => {
                let error = trouble::error(subject, "push it", &error);
                return Err(if error.retry {
                    error
                } else {
                    error.help("see whether name, registry and login are right")
                });
            }
        }
    }
    let broken = || Error::new(Kind::Unavailable, subject.clone(), "the Docker Engine does not say that it was pushed");
    Ok((progress.sum().1, digest.ok_or_else(broken)?))
}

// Without a tag the API would pull all of them.
fn with_tag(image: &str) -> String {
    let name = &image[image.rfind('/').map_or(0, |at| at + 1)..];
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// How much of which layer is there.
#[derive(Default)]
struct Progress {
    layers: BTreeMap<String, (u64, u64)>,
    unpacking: usize,
}

impl Progress {
    fn add(&mut self, id: String, status: &str, detail: Option<ProgressDetail>) {
        let number = |value: Option<i64>| u64::try_from(value.unwrap_or_default()).unwrap_or_default();
        let layer = self.layers.entry(id).or_default();
        match status {
            "Downloading" | "Pushing" => {
                let detail = detail.unwrap_or_default();
                *layer = (number(detail.current), number(detail.total));
            }
            "Download complete" | "Pushed" => layer.0 = layer.1,
            "Extracting" => self.unpacking += 1,
            _ => {}
        }
    }

    // Bytes that are there, of so many.
    fn sum(&self) -> (u64, u64) {
        self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1))
    }

    fn text(&self) -> String {
        let (have, all) = self.sum();
        match (have * 100).checked_div(all) {
            Some(100) | None if self.unpacking > 0 => "unpacking".into(),
            Some(percent) => format!("{percent}% of {}", Bytes(all)),
            None => format!("{} layers", self.layers.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tag_only() {
        for (image, expected) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("10.0.0.1:5000/shop/api", "10.0.0.1:5000/shop/api:latest"),
            ("10.0.0.1:5000/api@sha256:abc", "10.0.0.1:5000/api@sha256:abc"),
        ] {
            assert_eq!(with_tag(image), expected);
        }
    }

    #[test]
    fn progress_of_all_layers_together() {
        let mut progress = Progress::default();
        let mut add = |id: &str, status: &str, current: i64, total: i64| {
            let detail = ProgressDetail { current: Some(current), total: Some(total) };
            progress.add(id.into(), status, Some(detail));
            progress.text()
        };
        assert_eq!(add("a", "Pulling fs layer", 0, 0), "1 layers");
        assert_eq!(add("a", "Downloading", 1 << 20, 4 << 20), "25% of 4MiB");
        assert_eq!(add("b", "Downloading", 2 << 20, 4 << 20), "37% of 8MiB");
        add("a", "Download complete", 0, 0);
        add("b", "Download complete", 0, 0);
        assert_eq!(add("a", "Extracting", 1, 4 << 20), "unpacking");
    }
}
