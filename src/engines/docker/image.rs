//! Images on their way to a host.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt;

use super::{credentials, trouble};
use crate::model::registry::Login;
use crate::model::units::Bytes;
use crate::model::{Error, Kind, Result};

/// How often progress is told.
const TOLD: Duration = Duration::from_secs(1);
/// A pull of which nothing is heard for this long has failed.
const SILENT: Duration = Duration::from_secs(300);

/// Pulls an image for a platform, as whoever has logged in at its registry; `tell` hears how far it is.
pub async fn pull(
    docker: &Docker,
    (image, platform, login): (&str, Option<&str>, Option<&Login>),
    mut tell: impl FnMut(String),
) -> Result<()> {
    let subject = format!("image \"{image}\"");
    tell(format!("pulls {image}"));
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
            None => return Ok(()),
            Some(Ok(info)) => {
                progress.add(info);
                if told.elapsed() >= TOLD {
                    told = Instant::now();
                    tell(format!("pulls {image}: {}", progress.text()));
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
    fn add(&mut self, info: CreateImageInfo) {
        let (Some(id), Some(status)) = (info.id, info.status) else { return };
        let detail = info.progress_detail;
        let number = |value: Option<i64>| u64::try_from(value.unwrap_or_default()).unwrap_or_default();
        let layer = self.layers.entry(id).or_default();
        match status.as_str() {
            "Downloading" => {
                let detail = detail.unwrap_or_default();
                *layer = (number(detail.current), number(detail.total));
            }
            "Download complete" => layer.0 = layer.1,
            "Extracting" => self.unpacking += 1,
            _ => {}
        }
    }

    fn text(&self) -> String {
        let (have, all) = self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
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
            progress.add(CreateImageInfo {
                id: Some(id.into()),
                status: Some(status.into()),
                progress_detail: Some(bollard::models::ProgressDetail { current: Some(current), total: Some(total) }),
                ..CreateImageInfo::default()
            });
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
