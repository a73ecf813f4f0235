//! A host joins: it finds the cluster by its token, becomes a node of the Swarm, and gets a certificate for its agent.

use std::path::Path;

use super::authority::{JoinToken, agent_key, fingerprint, public_key};
use super::call::Caller;
use super::door::{CertifyAnswer, CertifyAsk, JoinAnswer, JoinAsk};
use super::identity::Identity;
use super::tls;
use crate::engines::docker::Address;
use crate::engines::swarm::join::{LocalSwarm, Membership, Terms};
use crate::model::clock::Clock;
use crate::model::node::Role;
use crate::model::{Error, Kind, Result};

/// What came of it.
#[derive(Debug, Clone)]
pub struct Joined {
    /// What the host has become.
    pub role: Role,
    /// The cluster's name.
    pub cluster: String,
    /// Its place in the Swarm.
    pub membership: Membership,
    /// Whether it was a node of the Swarm already.
    pub was_node: bool,
}

/// Joins the cluster behind `address` (`host:port`). A worker's identity is left in `data`; `free` makes sure that no agent
/// uses that folder. Doing it twice is harmless, and mends an identity that is not good any more.
pub async fn join(
    address: &str,
    token: &JoinToken,
    docker: &Address,
    terms: &Terms,
    data: &Path,
    clock: &dyn Clock,
    free: impl FnOnce() -> Result<()>,
) -> Result<Joined> {
    let local = LocalSwarm::open(docker).await?;
    let caller = Caller { config: tls::joining(&token.fingerprint), headers: Vec::new() };
    let ask = JoinAsk { secret: token.secret.clone() };
    let answer: JoinAnswer = caller.post(address, "/v1/join", &ask).await?;
    if let Some(only) = terms.only.filter(|only| *only != answer.role) {
        let message = format!("lets a host in as {}, and this is to be a {}", answer.role.as_str(), only.as_str());
        return Err(Error::new(Kind::Conflict, "token", message).help("`neap join-token worker` prints another"));
    }
    let before = local.membership().await?;
    let was_node = before.is_some();
    let membership = match before {
        Some(membership) => {
            if answer.role == Role::Manager && !membership.manager {
                return Err(Error::new(Kind::Conflict, "this host", "is a worker of a Swarm already")
                    .help("make it a manager on one that is: neap node promote NODE; then start `neap up` here"));
            }
            if answer.role == Role::Worker && membership.manager {
                return Err(Error::new(Kind::Conflict, "this host", "is a manager of a Swarm already")
                    .help("a daemon acts for it, not an agent: start `neap up` here"));
            }
            membership
        }
        None => {
            if answer.managers.is_empty() {
                return Err(Error::new(Kind::Unavailable, "Swarm", "tells nobody where its managers listen"));
            }
            local.join(&answer.token, &answer.managers, terms).await?
        }
    };
    if answer.role == Role::Worker {
        free()?;
        let same = |known: &Identity| {
            let ours =
                known.authority.is_empty() || fingerprint(&known.authority).ok().as_ref() == Some(&token.fingerprint);
            known.node == membership.node && ours
        };
        // Kept before it is asked with: if the answer is lost, the same key is asked for again.
        let mut identity = match Identity::load(data)?.filter(same) {
            Some(known) => known,
            None => Identity {
                cluster: answer.cluster.clone(),
                node: membership.node.clone(),
                authority: String::new(),
                certificate: String::new(),
                key: agent_key()?.0,
                certified_at: 0,
                daemons: vec![address.to_owned()],
                term: 0,
            },
        };
        identity.save(data)?;
        let key = public_key(&identity.key)?;
        let ask = CertifyAsk { secret: token.secret.clone(), node: membership.node.clone(), key };
        let certified: CertifyAnswer = caller.post(address, "/v1/join/agent", &ask).await?;
        (identity.authority, identity.certificate) = (certified.authority, certified.certificate);
        (identity.daemons, identity.certified_at) = (certified.daemons, clock.wall().0);
        identity.save(data)?;
    }
    Ok(Joined { role: answer.role, cluster: answer.cluster, membership, was_node })
}
