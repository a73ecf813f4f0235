//! A host's volumes.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::{Volume, VolumeCreateRequest};
use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};

use super::trouble;
use crate::model::objects::{VolumeAsk, VolumeInfo, VolumeSpec};
use crate::model::{Error, Kind, Result};

/// Does what is asked, on one Docker Engine.
pub async fn serve(docker: &Docker, ask: VolumeAsk) -> Result<Vec<VolumeInfo>> {
    match ask {
        VolumeAsk::List => {
            let listed = docker.list_volumes(None::<ListVolumesOptions>).await;
            let listed = listed.map_err(|error| trouble::error("volumes", "list them", &error))?;
            Ok(listed.volumes.unwrap_or_default().into_iter().map(info).collect())
        }
        VolumeAsk::Create(spec) => create(docker, spec).await.map(|made| vec![made]),
        VolumeAsk::Remove { name, force } => remove(docker, &name, force).await,
    }
}

fn info(volume: Volume) -> VolumeInfo {
    VolumeInfo {
        name: volume.name,
        node: "".into(),
        hostname: String::new(),
        driver: volume.driver,
        mountpoint: volume.mountpoint,
        options: volume.options.into_iter().collect(),
        labels: volume.labels.into_iter().collect(),
        used_by: Vec::new(),
    }
}

async fn create(docker: &Docker, spec: VolumeSpec) -> Result<VolumeInfo> {
    let subject = format!("volume \"{}\"", spec.name);
    let map = |map: std::collections::BTreeMap<String, String>| map.into_iter().collect::<HashMap<_, _>>();
    let request = VolumeCreateRequest {
        name: Some(spec.name),
        driver: spec.driver.clone(),
        driver_opts: Some(map(spec.options.clone())),
        labels: Some(map(spec.labels)),
        cluster_volume_spec: None,
    };
    let made = docker.create_volume(request).await;
    let made = info(made.map_err(|error| trouble::error(subject.clone(), "make it", &error))?);
    // Docker answers with the one that is there, whatever it is.
    let driver = spec.driver.as_deref().unwrap_or("local");
    // A plugin's name comes back with its tag.
    let same = made.driver.trim_end_matches(":latest") == driver.trim_end_matches(":latest");
    if !same || made.options != spec.options {
        return Err(Error::new(Kind::Conflict, subject, "is there already, with another driver or other options")
            .help("remove it first, or use another name"));
    }
    Ok(made)
}

async fn remove(docker: &Docker, name: &str, force: bool) -> Result<Vec<VolumeInfo>> {
    let subject = format!("volume \"{name:.70}\"");
    let known = match docker.inspect_volume(name).await {
        Ok(volume) => info(volume),
        Err(error) if trouble::is_status(&error, 404) => return Ok(Vec::new()),
        Err(error) => return Err(trouble::error(subject, "look it up", &error)),
    };
    match docker.remove_volume(name, Some(RemoveVolumeOptions { force })).await {
        Ok(()) => Ok(vec![known]),
        Err(error) if trouble::is_status(&error, 404) => Ok(Vec::new()),
        Err(error) if trouble::is_status(&error, 409) => {
            Err(Error::new(Kind::Conflict, subject, "is in use").cause(trouble::said(&error)))
        }
        Err(error) => Err(trouble::error(subject, "remove it", &error)),
    }
}
