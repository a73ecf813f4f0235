//! Removes images that nothing uses.

use std::collections::BTreeSet;

use bollard::Docker;
use bollard::models::ImageSummary;
use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, RemoveImageOptions};

use super::{container, trouble};
use crate::model::Result;
use crate::model::node::{ImagePrune, PrunedImages};

/// Removes what `ask` says from one Docker Engine. What a container uses, whoever made it, stays, and so does what is to
/// be kept. Ages are by the engine's own clock.
pub async fn images(docker: &Docker, ask: &ImagePrune) -> Result<PrunedImages> {
    let failed = |act: &str, error| trouble::error("images", act, &error);
    let info = docker.info().await.map_err(|error| failed("ask for the time", error))?;
    let now = container::engine_time(&info).map_or(0, |now| now.as_second());
    let mut kept = BTreeSet::new();
    for name in &ask.keep {
        // One that is not there needs no keeping.
        match docker.inspect_image(name).await {
            Ok(image) => kept.extend(image.id),
            Err(error) if trouble::is_status(&error, 404) => {}
            Err(error) => return Err(failed("look one up", error)),
        }
    }
    let images = docker.list_images(None::<ListImagesOptions>).await.map_err(|error| failed("list them", error))?;
    // After the images: a container that was made in between uses one that is listed.
    let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
    let containers = docker.list_containers(Some(options)).await.map_err(|error| failed("see who uses them", error))?;
    kept.extend(containers.into_iter().filter_map(|container| container.image_id));
    let mut pruned = PrunedImages::default();
    for image in choose(images, &kept, ask, now) {
        let mut names = names(&image);
        if names.is_empty() {
            names.push(image.id.clone());
        }
        let mut gone = true;
        for name in &names {
            if ask.dry_run {
                continue;
            }
            match docker.remove_image(name, None::<RemoveImageOptions>, None).await {
                Ok(_) => {}
                Err(error) if trouble::is_status(&error, 404) => {}
                // It has come into use, or another image stands on it.
                Err(error) if trouble::is_status(&error, 409) => gone = false,
                Err(error) => return Err(failed("remove one", error)),
            }
        }
        if gone {
            pruned.bytes.0 += u64::try_from(image.size.saturating_sub(image.shared_size.max(0))).unwrap_or_default();
            pruned.removed.extend(names);
        }
    }
    pruned.removed.sort();
    Ok(pruned)
}

fn names(image: &ImageSummary) -> Vec<String> {
    let tags = image.repo_tags.iter().filter(|tag| !tag.contains("<none>"));
    let named: Vec<String> = tags.cloned().collect();
    if !named.is_empty() {
        return named;
    }
    image.repo_digests.iter().filter(|digest| !digest.contains("<none>")).cloned().collect()
}

fn choose(images: Vec<ImageSummary>, kept: &BTreeSet<String>, ask: &ImagePrune, now: i64) -> Vec<ImageSummary> {
    let age = ask.created_before.map_or(0, |age| i64::try_from(age.millis() / 1000).unwrap_or(i64::MAX));
    let goes = |image: &ImageSummary| !kept.contains(&image.id) && now.saturating_sub(image.created) >= age;
    images.into_iter().filter(goes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_and_the_young_stay() {
        let image = |id: &str, created: i64| ImageSummary {
            id: id.into(),
            created,
            repo_tags: vec![format!("{id}:1"), "<none>:<none>".into()],
            ..ImageSummary::default()
        };
        let images = || vec![image("old", 100), image("used", 100), image("young", 9_000)];
        let kept = BTreeSet::from(["used".to_owned()]);
        let chosen = |ask: &ImagePrune| choose(images(), &kept, ask, 10_000).iter().flat_map(names).collect::<Vec<_>>();
        let hour = ImagePrune { created_before: Some("1h".parse().unwrap()), ..ImagePrune::default() };
        assert_eq!(chosen(&hour), ["old:1"]);
        assert_eq!(chosen(&ImagePrune::default()), ["old:1", "young:1"]);
    }
}
