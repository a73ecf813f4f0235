//! From a request to a container that runs: networks, files, image, container.

use std::sync::Arc;

use bollard::Docker;
use bollard::query_parameters::CreateContainerOptions;

use super::host::{Connection, Host};
use super::{DockerEngine, container, image, spec, trouble};
use crate::engines::{Observed, ObservedState, StartRequest};
use crate::model::container::Pull;
use crate::model::{Error, Kind, Result, fault};

impl DockerEngine {
    /// Makes the container of a task and starts it.
    pub(super) async fn begin(&self, host: &Arc<Host>, connection: &Connection, request: &StartRequest) -> Result<()> {
        let subject = format!("task {}.{}", request.service, request.slot);
        let docker = &connection.docker;
        for network in &request.spec.networks {
            host.ensure_network(docker, &network.name).await?;
        }
        if self.runs_already(host, connection, request).await? {
            return Ok(());
        }
        let files = self.write_files(host, request)?;
        let id = self.create(host, connection, request, &files).await?;
        fault::point("docker.after-create");
        self.tasks.found(&request.task, &host.address.name, &id);
        // Those beyond the first, which the creation takes along.
        for network in request.spec.networks.iter().skip(1) {
            let connect = bollard::models::NetworkConnectRequest {
                container: id.clone(),
                endpoint_config: Some(spec::endpoint(&network.aliases, request)),
            };
            match docker.connect_network(&network.name, connect).await {
                Err(error) if !trouble::is_status(&error, 403) => {
                    return Err(trouble::error(subject, &format!("attach it to network \"{}\"", network.name), &error));
                }
                // 403: it is attached, by an attempt before this one.
                _ => {}
            }
        }
        if self.tasks.is_forbidden(&request.task) {
            let state = ObservedState::Rejected { reason: "told to end before it was started".into() };
            self.report(request, state);
            return Ok(());
        }
        self.report(request, ObservedState::Starting);
        host.start(connection, &request.task, &id).await;
        Ok(())
    }

    // Started by a daemon that died before it heard of it. What it reads is mounted, and must not be written anew under it.
    async fn runs_already(&self, host: &Arc<Host>, connection: &Connection, request: &StartRequest) -> Result<bool> {
        if request.secrets.0.is_empty() && request.configs.is_empty() {
            return Ok(false);
        }
        let known = match connection.docker.inspect_container(&spec::container_name(request), None).await {
            Ok(known) => known,
            Err(error) if trouble::is_status(&error, 404) => return Ok(false),
            Err(error) => {
                let subject = format!("task {}.{}", request.service, request.slot);
                return Err(trouble::error(subject, "look for its container", &error));
            }
        };
        let is_ours = spec::task_of(&container::labels(&known), &self.options.cluster) == Some(request.task);
        let (state, warnings) = container::state(&known, &host.reach(connection));
        let Some(id) = known.id.filter(|_| is_ours && state != ObservedState::Starting) else { return Ok(false) };
        self.tasks.found(&request.task, &host.address.name, &id);
        self.tasks.report(Observed { task: request.task, state, warnings });
        Ok(true)
    }

    // Makes the container, and pulls its image where that is needed. One that is there by this name is this task's.
    async fn create(
        &self,
        host: &Arc<Host>,
        connection: &Connection,
        request: &StartRequest,
        files: &spec::Files,
    ) -> Result<String> {
        let docker = &connection.docker;
        let image = request.spec.image.as_deref().unwrap_or_default();
        if request.spec.pull == Pull::Always {
            let pulled = self.pull(host, docker, request, image).await;
            // The image that is there serves while the registry is away.
            if let Err(error) = pulled
                && docker.inspect_image(image).await.is_err()
            {
                return Err(error);
            }
        }
        let subject = format!("task {}.{}", request.service, request.slot);
        let name = spec::container_name(request);
        let site = spec::Site {
            cluster: &self.options.cluster,
            direct: connection.direct,
            listen: if host.address.is_local() { "127.0.0.1" } else { "" },
            log_driver: connection.log_driver.as_deref(),
            files,
        };
        let mut pulled = false;
        loop {
            let body = spec::body(request, &site);
            let options = CreateContainerOptions {
                name: Some(name.clone()),
                platform: request.spec.platform.clone().unwrap_or_default(),
            };
            match docker.create_container(Some(options), body).await {
                Ok(made) => return Ok(made.id),
                Err(error) if trouble::is_status(&error, 409) => {
                    let known = docker.inspect_container(&name, None).await;
                    let known = known.map_err(|error| trouble::error(&subject, "look at its container", &error))?;
                    if spec::task_of(&container::labels(&known), &self.options.cluster) != Some(request.task) {
                        return Err(Error::new(Kind::Conflict, subject, format!("container name {name} is taken"))
                            .help(format!("remove that container: docker rm {name}")));
                    }
                    return Ok(known.id.unwrap_or(name));
                }
                Err(error) if trouble::is_status(&error, 404) && !pulled && no_such_image(&error) => {
                    if request.spec.pull == Pull::Never {
                        let message = format!("image \"{image}\" is not on node \"{}\"", request.node);
                        return Err(Error::new(Kind::NotFound, subject, message)
                            .help("pull = \"never\" says that it has to be; load it there, or leave that out"));
                    }
                    self.pull(host, docker, request, image).await?;
                    pulled = true;
                }
                Err(error) => return Err(trouble::error(subject, "make its container", &error)),
            }
        }
    }

    async fn pull(&self, host: &Arc<Host>, docker: &Docker, request: &StartRequest, image: &str) -> Result<()> {
        let turn = host.pull_turn(image);
        self.report(request, ObservedState::Preparing { said: format!("pulls {image}") });
        let _turn = turn.lock().await;
        // Whoever had the turn before has probably brought it.
        if request.spec.pull == Pull::Missing && docker.inspect_image(image).await.is_ok() {
            return Ok(());
        }
        let platform = request.spec.platform.as_deref();
        let login = request.login.as_ref();
        let tell = |said, _| self.report(request, ObservedState::Preparing { said });
        image::pull(docker, (image, platform, login), tell).await.map(drop)
    }

    fn report(&self, request: &StartRequest, state: ObservedState) {
        self.tasks.report(Observed { task: request.task, state, warnings: Vec::new() });
    }

    // Only where the engine reads this host's files: anywhere else they would come to rest on a disk.
    fn write_files(&self, host: &Arc<Host>, request: &StartRequest) -> Result<spec::Files> {
        let mut files = spec::Files::default();
        if request.secrets.0.is_empty() && request.configs.is_empty() {
            return Ok(files);
        }
        let subject = format!("task {}.{}", request.service, request.slot);
        if !host.address.is_local() {
            let message = format!("secrets and configs need an agent on node \"{}\"", request.node);
            return Err(Error::new(Kind::Unsupported, subject, message)
                .help("a Docker Engine elsewhere could only keep them on its disk"));
        }
        let folder = self.options.secrets.join(request.task.to_string());
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        if !request.secrets.0.is_empty() {
            let place = folder.join("secrets");
            crate::engines::files::write_secrets(&place, &request.secrets, &request.spec.secrets)?;
            files.secrets = Some(text(&place));
        }
        if !request.configs.is_empty() {
            let paths = crate::engines::files::write_configs(&folder.join("configs"), &request.configs)?;
            let targets = request.configs.iter().map(|config| spec::absolute(&config.target));
            files.configs = paths.iter().map(|path| text(path)).zip(targets).collect();
        }
        Ok(files)
    }
}

fn no_such_image(error: &bollard::errors::Error) -> bool {
    trouble::said(error).to_lowercase().contains("no such image")
}
