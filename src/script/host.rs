//! The host of hosted scripts: one thread a kind, each with its own small runtime and a queue. Nobody else touches a VM,
//! and no API thread ever runs one; only a simulation has one thread for everything.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::api::{HostEnv, Reach, check, rollout};
use super::budget::{self, Beat};
use super::epoch::{Epoch, Found};
use super::files::Files;
use super::hosted::Hosted;
use super::lane::{Culprit, Lane, Threads, Ticket, Watchdog};
use super::options::Meant;
use super::registration::Facts;
use super::stdlib;
use super::vms::{Calls, Library, Vms};
use crate::client::Cluster;
use crate::model::bundle::{Bundle, HostedKind, Registration, ScriptSet};
use crate::model::release::{Answer, Release, ReleaseView};
use crate::model::service::Use;
use crate::model::{Error, Kind, Result};
use crate::scheduler::release::Rollouts;

/// Hosts bundles and calls what they registered.
pub struct ScriptHost {
    lanes: Mutex<HashMap<HostedKind, Lane>>,
    threads: Threads,
    library: Library,
    env: HostEnv,
    watchdog: Watchdog,
    // What each registers, found once: a bundle never changes.
    inspected: RwLock<HashMap<String, Arc<Inspected>>>,
    epoch: watch::Sender<Arc<Epoch>>,
    stdlib: Arc<Inspected>,
}

/// What a bundle registers.
#[derive(Debug, Clone, Default)]
pub struct Inspected {
    /// Everything, by kind and name.
    pub registrations: BTreeMap<(HostedKind, String), (Registration, Facts)>,
}

impl ScriptHost {
    /// A host that knows the library, with threads of its own and the machine's clock and network.
    pub fn new() -> Result<Self> {
        Self::with(Reach::default(), Threads::Own)
    }

    /// The same with what scripts reach, and where they run.
    pub fn with(reach: Reach, threads: Threads) -> Result<Self> {
        let library = Library::default();
        write(&library.bundles).insert(stdlib::OWNER.to_owned(), stdlib::bundle());
        let quarantine = library.clone();
        let watchdog = match threads {
            Threads::Own => Watchdog::start(longest, move |kind, culprit| put_away(&quarantine, kind, culprit))?,
            Threads::This => Watchdog::none(),
        };
        Ok(ScriptHost {
            lanes: Mutex::default(),
            threads,
            library,
            env: HostEnv { reach, ..HostEnv::default() },
            watchdog,
            inspected: RwLock::default(),
            epoch: watch::channel(Arc::default()).0,
            stdlib: Arc::new(inspect(stdlib::bundle(), stdlib::OWNER)?),
        })
    }

    /// Where scripts run.
    pub fn threads(&self) -> Threads {
        self.threads
    }

    /// What cron scripts and handlers act on. Once.
    pub fn connect(&self, cluster: &Arc<dyn Cluster>) {
        let _ = self.env.cluster.set(Arc::downgrade(cluster));
    }

    /// Makes a bundle known. Bundles are content-addressed, so a known one is never changed.
    pub fn add(&self, bundle: Bundle) -> String {
        let hash = bundle.hash();
        write(&self.library.bundles).entry(hash.clone()).or_insert_with(|| Arc::new(bundle));
        hash
    }

    /// The same for one that was inspected already.
    pub fn add_inspected(&self, bundle: Bundle, inspected: Arc<Inspected>) {
        let hash = self.add(bundle);
        write(&self.inspected).insert(hash, inspected);
    }

    /// A known bundle.
    pub fn bundle(&self, hash: &str) -> Option<Arc<Bundle>> {
        read(&self.library.bundles).get(hash).cloned()
    }

    /// Forgets bundles that nothing needs any more, and what was counted of them.
    pub fn retain(&self, needed: &dyn Fn(&str) -> bool) {
        let keep = |hash: &str| hash == stdlib::OWNER || needed(hash);
        write(&self.library.bundles).retain(|hash, _| keep(hash));
        write(&self.inspected).retain(|hash, _| needed(hash));
        write(&self.library.quarantine).retain(|(_, hash, _), _| keep(hash));
        write(&self.library.calls).retain(|(_, hash, _), _| keep(hash));
    }

    /// What a known bundle registers; an unknown one registers nothing.
    pub fn registered(&self, hash: Option<&str>) -> Result<Arc<Inspected>> {
        let Some(hash) = hash else { return Ok(Arc::default()) };
        if let Some(known) = read(&self.inspected).get(hash) {
            return Ok(known.clone());
        }
        let Some(bundle) = self.bundle(hash) else { return Ok(Arc::default()) };
        let inspected = Arc::new(inspect(bundle, hash)?);
        write(&self.inspected).insert(hash.to_owned(), inspected.clone());
        Ok(inspected)
    }

    /// The sets that serve from now on, and the bundles of services; all at once.
    pub fn install<'a>(
        &self,
        sets: impl Iterator<Item = &'a Arc<ScriptSet>>,
        services: impl Iterator<Item = (&'a str, &'a str)>,
    ) {
        let number = self.epoch().number + 1;
        // What cannot serve is said, and does not keep the rest from it.
        let epoch = Epoch::gather(number, sets, services, &|hash| self.registered(Some(hash)), &mut |error| {
            tracing::error!(%error, "a script does not serve");
        });
        self.epoch.send_replace(Arc::new(epoch));
    }

    /// All that serves the whole cluster now.
    pub fn epoch(&self) -> Arc<Epoch> {
        self.epoch.borrow().clone()
    }

    /// Follows what serves.
    pub fn epochs(&self) -> watch::Receiver<Arc<Epoch>> {
        self.epoch.subscribe()
    }

    /// Finds a registration: in the service's own bundle, else in the sets, else in the library.
    pub fn find(&self, own: &Inspected, kind: HostedKind, name: &str) -> Result<(String, Facts)> {
        let key = (kind, name.to_owned());
        if let Some((registration, facts)) = own.registrations.get(&key) {
            return Ok((registration.bundle.clone(), facts.clone()));
        }
        let epoch = self.epoch();
        if let Some(Found { registration, facts, .. }) = epoch.registrations.get(&key) {
            return Ok((registration.bundle.clone(), facts.clone()));
        }
        if let Some((registration, facts)) = self.stdlib.registrations.get(&key) {
            return Ok((registration.bundle.clone(), facts.clone()));
        }
        let known: Vec<&str> = own
            .registrations
            .keys()
            .chain(epoch.registrations.keys())
            .chain(self.stdlib.registrations.keys())
            .filter(|(other, _)| *other == kind)
            .map(|(_, name)| name.as_str())
            .collect();
        let word = kind.as_str();
        let hint = crate::model::suggest::hint(name, known.iter().copied());
        Err(Error::new(Kind::NotFound, format!("{word} \"{name:.63}\""), format!("is not registered{hint}")).help(
            format!(
                "push a file that says {word} \"{name:.63}\" {{ ... }}: neap script push NAME FILE; or bring it along: apply {{ with = scripts \"*.lua\" }}"
            ),
        ))
    }

    /// Whether the library registers it.
    pub fn in_library(&self, kind: HostedKind, name: &str) -> bool {
        self.stdlib.registrations.contains_key(&(kind, name.to_owned()))
    }

    /// What was called how often.
    pub fn calls(&self) -> Vec<((HostedKind, String, String), Arc<Calls>)> {
        let calls = read(&self.library.calls);
        let mut all: Vec<_> = calls.iter().map(|(key, calls)| (key.clone(), calls.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Why a registration is not called any more, if so.
    pub fn quarantined(&self, kind: HostedKind, bundle: &str, name: &str) -> Option<Error> {
        self.library.admit(kind, bundle, name).err()
    }

    /// Runs a registered check once. `timeout` bounds its waiting; its computing has the call's budget.
    pub async fn run_check(
        &self,
        bundle: &str,
        name: &str,
        of: check::Judged,
        timeout: Duration,
    ) -> Result<(bool, String)> {
        let late = move || Ok((false, format!("no answer within {}", crate::model::units::Duration::from(timeout))));
        let named = name.to_owned();
        let call = move |hosted: Rc<Hosted>| async move {
            let call = hosted.budget.spend(budget::CALL, check::run(&hosted, &named, &of));
            tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| late())
        };
        self.spawn(HostedKind::Check, bundle, name, call).await
    }

    /// Runs a call that waits now and then, among others on the kind's thread.
    pub async fn spawn<T, F>(
        &self,
        kind: HostedKind,
        bundle: &str,
        name: &str,
        call: impl FnOnce(Rc<Hosted>) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        self.library.admit(kind, bundle, name)?;
        let lane = self.lane(kind)?;
        let ticket = Ticket::new(&lane);
        let (stamp, calls) = (ticket.stamp(), self.library.calls(kind, bundle, name));
        let (bundle, name) = (bundle.to_owned(), name.to_owned());
        let (reply, mut answer) = oneshot::channel();
        lane.send(Box::new(move |vms: &Rc<Vms>| {
            stamp();
            let vms = vms.clone();
            tokio::task::spawn_local(async move {
                let begun = Instant::now();
                let result = match vms.get(&bundle) {
                    Ok(hosted) => {
                        let call = super::vms::Busy::new(&vms.lane, &bundle, &name, call(hosted.clone()));
                        let result = call.await;
                        calls.add(1, begun.elapsed(), hosted.lua.used_memory(), result.as_ref().err());
                        vms.after(&bundle, &hosted);
                        result
                    }
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            });
        }));
        let mut changes = lane.changes();
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or_else(|_| Err(ticket.lost())),
                changed = changes.changed() => if ticket.is_lost() || changed.is_err() { return Err(ticket.lost()) },
            }
        }
    }

    // Runs a call on the kind's thread and waits for it.
    fn call<T: Send + 'static>(
        &self,
        kind: HostedKind,
        bundle: &str,
        name: &str,
        call: impl FnOnce(&Hosted) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.library.admit(kind, bundle, name)?;
        let calls = self.library.calls(kind, bundle, name);
        let (bundle, name) = (bundle.to_owned(), name.to_owned());
        self.on_thread(kind, move |vms| {
            let begun = Instant::now();
            let hosted = vms.get(&bundle)?;
            vms.lane.busy_with(&bundle, &name);
            let result = hosted.budget.run(budget::CALL, || call(&hosted));
            calls.add(1, begun.elapsed(), hosted.lua.used_memory(), result.as_ref().err());
            vms.after(&bundle, &hosted);
            result
        })?
    }

    /// Does something on the kind's thread and waits for it.
    pub(super) fn on_thread<T: Send + 'static>(
        &self,
        kind: HostedKind,
        job: impl FnOnce(&Rc<Vms>) -> T + Send + 'static,
    ) -> Result<T> {
        let lane = self.lane(kind)?;
        let ticket = Ticket::new(&lane);
        let stamp = ticket.stamp();
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        lane.send(Box::new(move |vms: &Rc<Vms>| {
            stamp();
            let _ = reply.send(job(vms));
        }));
        loop {
            match answer.recv_timeout(Duration::from_millis(50)) {
                Ok(result) => return Ok(result),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !ticket.is_lost() => {}
                Err(_) => return Err(ticket.lost()),
            }
        }
    }

    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    pub(super) fn lane(&self, kind: HostedKind) -> Result<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&kind) {
            return Ok(lane.clone());
        }
        let (library, env) = (self.library.clone(), self.env.clone());
        let make = Arc::new(move |lane: &Lane| Vms::new(lane.clone(), library.clone(), env.clone()));
        let lane = Lane::start(kind, self.threads, make, self.watchdog.clone())?;
        lanes.insert(kind, lane.clone());
        Ok(lane)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

// The longest stretch of computing that a kind's thread may have: of a call, or of loading.
fn longest(kind: HostedKind) -> Duration {
    match kind {
        HostedKind::Policy | HostedKind::Check | HostedKind::Rollout | HostedKind::On => budget::LOAD,
        HostedKind::Cron => budget::CRON,
    }
}

fn put_away(library: &Library, kind: HostedKind, culprit: Option<Culprit>) {
    let Some((bundle, name)) = culprit else { return };
    let subject = format!("{} \"{name}\"", kind.as_str());
    let error = Error::new(
        Kind::Script,
        subject,
        "is under quarantine: it held its thread in a call that cannot be interrupted",
    )
    .help("mend it and push it again; a restart of the daemon lets it try again as well");
    tracing::error!(kind = kind.as_str(), name, bundle, "a script held its thread and is not called any more");
    library.calls(kind, &bundle, &name).add(1, Duration::ZERO, 0, Some(&error));
    write(&library.quarantine).insert((kind, bundle, name), error);
}

/// Loads a bundle in a throw-away VM and tells what it registers.
pub fn inspect(bundle: Arc<Bundle>, hash: &str) -> Result<Inspected> {
    let library = hash == stdlib::OWNER;
    let prefix = if library { "@neap/" } else { "" };
    let entries = bundle.entries.clone();
    inspect_files(Rc::new(bundle), &entries, hash, prefix)
}

/// The same for files from anywhere.
pub fn inspect_files(files: Rc<dyn Files>, entries: &[String], hash: &str, prefix: &str) -> Result<Inspected> {
    let hosted = Hosted::load_from(files, entries, None, prefix, Beat::default(), &HostEnv::default())?;
    let mut inspected = Inspected::default();
    for (registration, facts) in hosted.registrations(hash) {
        let key = (registration.kind, registration.name.clone());
        inspected.registrations.insert(key, (registration, facts.clone()));
    }
    Ok(inspected)
}

/// Checks the options of a use against those that the registration knows.
pub fn check_options(kind: HostedKind, wanted: &Use, facts: &Facts) -> Result<()> {
    let subject = format!("{} \"{}\"", kind.as_str(), wanted.name);
    // Read by the scheduler itself, whatever the script knows.
    if let Some(deadline) = wanted.options.get("deadline").filter(|_| kind == HostedKind::Rollout) {
        Meant::Duration.check(deadline).map_err(|why| Error::invalid(&subject, format!("deadline: {why}")))?;
    }
    facts.options.as_ref().map_or(Ok(()), |known| known.check(&subject, &wanted.options))
}

/// The host as the scheduler sees it: who places, and who says how a release goes on.
pub struct Scripts<'a> {
    /// The host.
    pub host: &'a Arc<ScriptHost>,
}

impl<'a> Scripts<'a> {
    /// For one pass.
    pub fn new(host: &'a Arc<ScriptHost>) -> Self {
        Scripts { host }
    }
}

impl Rollouts for Scripts<'_> {
    fn step(&mut self, release: &Release, view: &ReleaseView) -> Result<Answer> {
        let name = release.rollout.name.to_string();
        let own = self.host.registered(release.bundle.as_deref())?;
        let (bundle, _) = self.host.find(&own, HostedKind::Rollout, &name)?;
        let (view, named) = (view.clone(), name.clone());
        self.host.call(HostedKind::Rollout, &bundle, &name, move |hosted| rollout::step(hosted, &named, &view))
    }
}
