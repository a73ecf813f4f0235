//! Flags of `docker service` that Neap does not have: each says so, and what to use instead.

use crate::model::{Error, Kind, Result};

/// Hidden, so that help shows what there is.
#[derive(clap::Args, Default)]
pub struct RefusedArgs {
    #[arg(long, hide = true)]
    credential_spec: Option<String>,
    #[arg(long, hide = true)]
    generic_resource: Vec<String>,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true)]
    max_concurrent: Option<String>,
    #[arg(long, hide = true)]
    health_start_interval: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    oom_score_adj: Option<String>,
    #[arg(long, hide = true)]
    force: bool,
    #[arg(long, hide = true)]
    rollback: bool,
    // A tag is left to the host that pulls it: no digest is looked up that this could keep from being looked up.
    #[arg(long, hide = true)]
    no_resolve_image: bool,
}

impl RefusedArgs {
    /// The first one that was given is an error.
    pub fn check(&self) -> Result<()> {
        let given = [
            ("--credential-spec", self.credential_spec.is_some(), "it is for Windows"),
            (
                "--generic-resource",
                !self.generic_resource.is_empty(),
                "label the nodes and use --constraint, or a policy",
            ),
            ("--isolation", self.isolation.is_some(), "it is for Windows"),
            ("--max-concurrent", self.max_concurrent.is_some(), "there are no jobs yet"),
            (
                "--health-start-interval",
                self.health_start_interval.is_some(),
                "a check of Neap's own (--health-http, --health-tcp) looks more often at first by itself",
            ),
            ("--oom-score-adj", self.oom_score_adj.is_some(), "bound the memory with --limit-memory"),
            (
                "--force",
                self.force,
                "to replace every replica change something of them, such as --env-add RENEWED=$(date +%s)",
            ),
            ("--rollback", self.rollback, "neap service rollback SERVICE"),
        ];
        match given.into_iter().find(|(_, is_given, _)| *is_given) {
            Some((flag, _, help)) => Err(Error::new(Kind::Unsupported, flag, "is not supported").help(help)),
            None => Ok(()),
        }
    }
}
