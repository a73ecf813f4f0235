//! Runs the checks that clients have registered, each on a small task of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Registry, command, grpc};
use crate::engines::docker::{Address, exec};
use crate::model::bundle::HostedKind;
use crate::model::catalog::{CatalogCheck, CheckKind, CheckRun, CheckStatus, HttpCheck, MAX_OUTPUT, Origin, place};
use crate::model::units::{self, Bytes};
use crate::network::catalog::{Catalog, Key, Topic, key};
use crate::network::{Network, Request};
use crate::script::api::check::Judged;

/// The first run comes within that time, so that not all of them come at once.
const SPREAD: Duration = Duration::from_secs(1);
/// What stays critical is deregistered after this at the earliest (Consul's bound).
const SOONEST: Duration = Duration::from_secs(60);

/// A check that is run.
struct Running {
    run: CheckRun,
    poke: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// Who has checks run, and is told what they find.
#[async_trait]
pub trait Judge: Send + Sync {
    /// Where they are.
    fn catalog(&self) -> &Arc<Catalog>;
    /// How others are reached.
    fn network(&self) -> &Arc<dyn Network>;
    /// 64 random bits.
    fn random(&self) -> u64;
    /// Whether a check of that kind on that node is run by this process, now.
    fn is_here(&self, node: &str, kind: &CheckKind) -> bool;
    /// How a check is.
    fn found(&self, node: &str, id: &str, status: CheckStatus, output: &str);
    /// Whether commands may be run here.
    fn runs_commands(&self) -> bool;
    /// The Docker Engine of this host, where one is known.
    fn docker(&self) -> Option<Address>;
    /// An instance has been critical for too long.
    fn overdue(&self, node: &str, instance: &str);
    /// Asks a registered check; nothing where it could not be asked.
    async fn ask_script(
        &self,
        node: &str,
        instance: &str,
        script: &str,
        timeout: Duration,
    ) -> Option<(CheckStatus, String)>;
}

/// The checks that one process runs.
#[derive(Default)]
pub struct Runs(Mutex<BTreeMap<(Key, String), Running>>);

impl Runs {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(Key, String), Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a check as it says; one that runs as it says already goes on.
    pub fn run(&self, judge: &Arc<dyn Judge>, node: &str, check: &CatalogCheck) {
        let place = (key(node), check.id.clone());
        // What clients register for other nodes is run by them.
        let Some(run) = check.run.clone().filter(|_| check.origin != Origin::Catalog) else {
            return self.halt(node, &check.id);
        };
        let mut runs = self.all();
        if let Some(running) = runs.get(&place).filter(|running| running.run == run) {
            // Registered anew is a sign of life.
            running.poke.send_replace(());
            return;
        }
        let (poke, poked) = watch::channel(());
        let runner = Runner {
            judge: judge.clone(),
            node: node.to_owned(),
            id: check.id.clone(),
            run: run.clone(),
            critical: None,
            passes: 0,
            failures: 0,
        };
        let task = tokio::spawn(runner.go(poked));
        if let Some(before) = runs.insert(place, Running { run, poke, task }) {
            before.task.abort();
        }
    }

    /// Runs it no more.
    pub fn halt(&self, node: &str, id: &str) {
        if let Some(running) = self.all().remove(&(key(node), id.to_owned())) {
            running.task.abort();
        }
    }

    /// Runs none but these.
    pub fn keep(&self, wanted: &BTreeSet<(Key, String)>) {
        self.all().retain(|place, running| {
            let kept = wanted.contains(place);
            if !kept {
                running.task.abort();
            }
            kept
        });
    }

    /// Whoever watches over a check still does.
    pub fn poke(&self, node: &str, id: &str) {
        if let Some(running) = self.all().get(&(key(node), id.to_owned())) {
            running.poke.send_replace(());
        }
    }
}

impl Registry {
    pub(super) fn run(self: &Arc<Self>, node: &str, check: &CatalogCheck) {
        let judge: Arc<dyn Judge> = Arc::new(Itself(self.clone()));
        self.runs.run(&judge, node, check);
    }

    pub(super) fn halt(&self, node: &str, id: &str) {
        self.runs.halt(node, id);
    }

    pub(super) fn poke(&self, node: &str, id: &str) {
        self.runs.poke(node, id);
    }
}

// Whether it asks what listens on the loopback of its own host.
fn is_loopback(kind: &CheckKind) -> bool {
    let place = match kind {
        CheckKind::Http(http) => http.url.split("://").nth(1).unwrap_or_default(),
        CheckKind::Tcp(place) | CheckKind::Udp(place) => place,
        CheckKind::Grpc(grpc) => &grpc.address,
        _ => "",
    };
    place.starts_with("127.") || place.starts_with("localhost") || place.starts_with("[::1]")
}

// The one that leads.
struct Itself(Arc<Registry>);

#[async_trait]
impl Judge for Itself {
    fn catalog(&self) -> &Arc<Catalog> {
        &self.0.catalog
    }

    fn network(&self) -> &Arc<dyn Network> {
        &self.0.network
    }

    fn random(&self) -> u64 {
        self.0.clock.random()
    }

    // What listens on another host's loopback is not here; what is no host of the cluster has nobody else.
    fn is_here(&self, node: &str, kind: &CheckKind) -> bool {
        match kind {
            CheckKind::Ttl(_) | CheckKind::Alias { .. } | CheckKind::Script(_) => true,
            // Never for what is no host of the cluster: nobody there has allowed it.
            CheckKind::Command(_) | CheckKind::Container { .. } => node.eq_ignore_ascii_case(&self.0.host),
            kind @ (CheckKind::Http(_) | CheckKind::Tcp(_) | CheckKind::Udp(_) | CheckKind::Grpc(_)) => {
                let is_own = node.eq_ignore_ascii_case(&self.0.host);
                // A host without an agent is asked from here, as far as it can be.
                is_own || !self.0.is_host(node) || (!self.0.is_covered(node) && !is_loopback(kind))
            }
        }
    }

    fn found(&self, node: &str, id: &str, status: CheckStatus, output: &str) {
        // It may have been removed a moment ago; then its task ends with it.
        let _ = self.0.set_status(node, id, status, output);
    }

    fn runs_commands(&self) -> bool {
        self.0.runs_commands.load(Ordering::Relaxed)
    }

    fn docker(&self) -> Option<Address> {
        self.0.docker.get().cloned()
    }

    fn overdue(&self, node: &str, instance: &str) {
        // By another task: the check's own is ended with it.
        let (registry, node, instance) = (self.0.clone(), node.to_owned(), instance.to_owned());
        tokio::spawn(async move {
            match registry.deregister(&node, &instance).await {
                Ok(()) => tracing::info!(node, instance, "was critical for too long, and is deregistered"),
                Err(error) => tracing::warn!(%error, "an instance that was critical for too long stays"),
            }
        });
    }

    async fn ask_script(
        &self,
        node: &str,
        instance: &str,
        script: &str,
        timeout: Duration,
    ) -> Option<(CheckStatus, String)> {
        let judged = self.0.catalog.read(|state| {
            let found = state.instance(node, instance)?;
            let (entry, address) = (&found.entry.instance, found.address());
            let port = (entry.port > 0).then(|| place(address, entry.port));
            Some(Judged {
                id: entry.id.clone(),
                name: entry.id.clone(),
                service: entry.service.clone(),
                node: Some(found.node.node.name.clone()),
                ports: port.into_iter().map(|port| ("http".to_owned(), port)).collect(),
                ..Judged::default()
            })
        })?;
        let host = self.0.scripts.as_ref()?;
        let run = async {
            let own = host.registered(None)?;
            let (bundle, _) = host.find(&own, HostedKind::Check, script)?;
            host.run_check(&bundle, script, judged, timeout).await
        };
        match run.await {
            Ok((true, said)) => Some((CheckStatus::Passing, said)),
            Ok((false, said)) => {
                let said = if said.is_empty() { format!("check \"{script}\" failed") } else { said };
                Some((CheckStatus::Critical, said))
            }
            // Its thread was held by another script.
            Err(error) if error.retry => None,
            Err(error) => Some((CheckStatus::Critical, error.to_string())),
        }
    }
}

struct Runner {
    judge: Arc<dyn Judge>,
    node: String,
    id: String,
    run: CheckRun,
    critical: Option<tokio::time::Instant>,
    passes: u32,
    failures: u32,
}

impl Runner {
    async fn go(mut self, mut poked: watch::Receiver<()>) {
        poked.borrow_and_update();
        match self.run.kind.clone() {
            CheckKind::Ttl(ttl) => {
                while self.exists() {
                    let ttl = ttl.max(units::Duration::from_secs(1));
                    tokio::select! {
                        biased;
                        changed = poked.changed() => if changed.is_err() { return },
                        () = tokio::time::sleep(ttl.std()) => {
                            let last = self.output();
                            // Said once: whoever reads it later sees what was last said.
                            let said = match last.starts_with("TTL expired") {
                                true => last,
                                false if last.is_empty() => format!("TTL expired: nothing was said for {ttl}"),
                                false => format!("TTL expired (last output before timeout follows): {last}"),
                            };
                            self.tell(CheckStatus::Critical, &said);
                        }
                    }
                    self.reap();
                }
            }
            CheckKind::Alias { node, instance } => {
                let node = if node.is_empty() { self.node.clone() } else { node };
                let topic = Topic::Node(key(&node));
                while self.exists() {
                    let catalog = self.judge.catalog().clone();
                    let (index, (status, output)) =
                        catalog.read(|state| (state.index_of(&topic), worst(state, &node, &instance, &self.id)));
                    self.tell(status, output);
                    // What that changes is a change of the node as well, and comes to nothing the next time.
                    catalog.wait(&topic, index, SOONEST).await;
                    self.reap();
                }
            }
            kind => {
                let interval = self.run.interval.std();
                let spread = SPREAD.min(interval).as_millis().max(1) as u64;
                tokio::time::sleep(Duration::from_millis(self.judge.random() % spread)).await;
                while self.exists() {
                    let next = tokio::time::Instant::now() + interval;
                    if self.judge.is_here(&self.node, &kind) {
                        if let Some((status, output)) = self.ask(&kind).await {
                            self.count(status, &output);
                        }
                        self.reap();
                    }
                    tokio::time::sleep_until(next).await;
                }
            }
        }
    }

    // Nothing where it could not be asked: no word on what it is about.
    async fn ask(&self, kind: &CheckKind) -> Option<(CheckStatus, String)> {
        let network = self.judge.network();
        Some(match kind {
            CheckKind::Script(name) => {
                let instance = self.known(|check| check.instance.clone());
                return self.judge.ask_script(&self.node, &instance, name, self.run.timeout.std()).await;
            }
            CheckKind::Http(http) => {
                let request = request(http, &self.run);
                let said = format!("HTTP {} {}", request.method, request.url);
                match network.fetch(request).await {
                    Ok(answer) => {
                        let status = match answer.status {
                            200..=299 => CheckStatus::Passing,
                            429 => CheckStatus::Warning,
                            _ => CheckStatus::Critical,
                        };
                        let body = String::from_utf8_lossy(&answer.body);
                        (status, format!("{said}: {} Output: {}", answer.status, body.trim_end()))
                    }
                    Err(error) => (CheckStatus::Critical, error.to_string()),
                }
            }
            CheckKind::Tcp(address) => match network.connect(address, self.run.timeout.std()).await {
                Ok(()) => (CheckStatus::Passing, format!("TCP connect {address}: Success")),
                Err(why) => (CheckStatus::Critical, why),
            },
            CheckKind::Udp(address) => match network.datagram(address, self.run.timeout.std()).await {
                Ok(()) => (CheckStatus::Passing, format!("UDP {address}: Success")),
                Err(why) => (CheckStatus::Critical, why),
            },
            CheckKind::Grpc(asked) => {
                let said = format!("gRPC {}", asked.place());
                match grpc::health(&**network, asked, self.run.timeout).await {
                    Ok(()) => (CheckStatus::Passing, format!("{said}: SERVING")),
                    Err(why) => (CheckStatus::Critical, format!("{said}: {why}")),
                }
            }
            CheckKind::Command(_) | CheckKind::Container { .. } if !self.judge.runs_commands() => {
                (CheckStatus::Critical, "commands are not run on this host (--enable-script-checks)".to_owned())
            }
            CheckKind::Command(words) => command::run(words, self.run.timeout.std()).await,
            CheckKind::Container { container, command } => match self.judge.docker() {
                Some(docker) => inside(&docker, container, command, self.run.timeout).await,
                None => (CheckStatus::Critical, "no Docker Engine is known on this host".to_owned()),
            },
            CheckKind::Ttl(_) | CheckKind::Alias { .. } => (CheckStatus::Critical, String::new()),
        })
    }

    fn count(&mut self, status: CheckStatus, output: &str) {
        let now = match status {
            CheckStatus::Critical => {
                (self.passes, self.failures) = (0, self.failures.saturating_add(1));
                let run = &self.run;
                let until_warning = match run.failures_before_warning {
                    0 => run.failures_before_critical,
                    count => count,
                };
                if self.failures >= run.failures_before_critical.max(1) {
                    Some(CheckStatus::Critical)
                } else if self.failures >= until_warning.max(1) {
                    Some(CheckStatus::Warning)
                } else {
                    None
                }
            }
            better => {
                (self.passes, self.failures) = (self.passes.saturating_add(1), 0);
                (self.passes >= self.run.success_before_passing).then_some(better)
            }
        };
        // As long as it does not count, only what was said is new.
        let now = now.unwrap_or_else(|| self.status());
        self.tell(now, output);
    }

    fn known<T: Default>(&self, of: impl FnOnce(&CatalogCheck) -> T) -> T {
        let found = self.judge.catalog().read(|state| {
            let entry = state.node(&self.node)?.checks.get(self.id.as_str())?;
            Some(of(&entry.check))
        });
        found.unwrap_or_default()
    }

    // One that is removed while it is begun ends by itself.
    fn exists(&self) -> bool {
        self.judge
            .catalog()
            .read(|state| state.node(&self.node).is_some_and(|entry| entry.checks.contains_key(self.id.as_str())))
    }

    fn status(&self) -> CheckStatus {
        self.known(|check| check.status)
    }

    fn output(&self) -> String {
        self.known(|check| check.output.clone())
    }

    fn tell(&self, status: CheckStatus, output: &str) {
        self.judge.found(&self.node, &self.id, status, output);
    }

    // What has been critical for so long goes; if that fails, it is tried again.
    fn reap(&mut self) {
        let Some(after) = self.run.deregister_after else { return };
        if self.status() != CheckStatus::Critical {
            self.critical = None;
            return;
        }
        let now = tokio::time::Instant::now();
        let since = *self.critical.get_or_insert(now);
        let instance = self.known(|check| check.instance.clone());
        if now.duration_since(since) < after.std().max(SOONEST) || instance.is_empty() {
            return;
        }
        self.critical = Some(now);
        self.judge.overdue(&self.node, &instance);
    }
}

// A command in a container: as one on the host counts.
async fn inside(
    docker: &Address,
    container: &str,
    command: &[String],
    timeout: units::Duration,
) -> (CheckStatus, String) {
    match exec::in_container(docker, container, command, timeout).await {
        Ok(result) => command::judged(Some(result.code), &result.output),
        Err(error) => (CheckStatus::Critical, error.to_string()),
    }
}

fn request(http: &HttpCheck, run: &CheckRun) -> Request {
    let method = if http.method.is_empty() { "GET" } else { &http.method };
    let headers =
        http.header.iter().flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())));
    Request {
        method: method.to_owned(),
        url: http.url.clone(),
        headers: headers.collect(),
        body: (!http.body.is_empty()).then(|| http.body.clone().into_bytes()),
        timeout: run.timeout,
        max_body: Bytes(MAX_OUTPUT as u64),
        cut_off: true,
        any_certificate: http.tls_skip_verify,
        http2: false,
    }
}

fn worst(state: &crate::network::catalog::State, node: &str, instance: &str, own: &str) -> (CheckStatus, &'static str) {
    let Some(entry) = state.node(node) else { return (CheckStatus::Critical, "No such node.") };
    if !instance.is_empty() && !entry.instances.contains_key(instance) {
        return (CheckStatus::Critical, "Service does not exist.");
    }
    let others = entry
        .checks
        .values()
        .filter(|known| known.check.id != own && (known.check.instance.is_empty() || known.check.instance == instance));
    match others.map(|known| known.check.status).max() {
        None => (CheckStatus::Passing, "No checks found."),
        Some(CheckStatus::Passing) => (CheckStatus::Passing, "All checks passing."),
        Some(CheckStatus::Warning) => (CheckStatus::Warning, "Aliased check is warning."),
        Some(CheckStatus::Critical) => (CheckStatus::Critical, "Aliased check is failing."),
    }
}
