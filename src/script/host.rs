//! The host of hosted scripts: one thread a kind, each with its own small runtime and a mailbox. Nobody else touches a
//! VM, and no API thread ever runs one.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::api::{check, policy, rollout};
use super::files::Files;
use super::hosted::{Facts, Hosted};
use super::{budget, stdlib};
use crate::model::bundle::{Bundle, HostedKind, Registration};
use crate::model::release::{Answer, Release, ReleaseView};
use crate::model::service::{ServiceSpec, Use};
use crate::model::task::Task;
use crate::model::{Error, Kind, Result};
use crate::scheduler::place::{Ask, Policies, Policy, Verdict};
use crate::scheduler::release::Rollouts;

/// How long the host waits for a script thread before it is given up: far more than a call's budget, so it means a
/// C call that could not be interrupted.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most VMs that one thread keeps.
const MAX_VMS: usize = 64;

type Job = Box<dyn FnOnce(&Rc<Vms>) + Send>;

/// Hosts bundles and calls what they registered.
pub struct ScriptHost {
    threads: Mutex<HashMap<HostedKind, mpsc::UnboundedSender<Job>>>,
    bundles: Arc<RwLock<HashMap<String, Arc<Bundle>>>>,
    // What each registers, found once: a bundle never changes.
    inspected: RwLock<HashMap<String, Arc<Inspected>>>,
    library: Arc<Inspected>,
}

/// What a bundle registers.
#[derive(Debug, Clone, Default)]
pub struct Inspected {
    /// Everything, by kind and name.
    pub registrations: BTreeMap<(HostedKind, String), (Registration, Facts)>,
}

impl ScriptHost {
    /// A host that knows the library.
    pub fn new() -> Result<Self> {
        let library = Arc::new(inspect(stdlib::bundle(), stdlib::OWNER)?);
        let bundles = HashMap::from([(stdlib::OWNER.to_owned(), stdlib::bundle())]);
        Ok(ScriptHost {
            threads: Mutex::default(),
            bundles: Arc::new(RwLock::new(bundles)),
            inspected: RwLock::default(),
            library,
        })
    }

    /// Makes a bundle known. Bundles are content-addressed, so a known one is never changed.
    pub fn add(&self, bundle: Bundle) -> String {
        let hash = bundle.hash();
        self.bundles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(hash.clone())
            .or_insert_with(|| Arc::new(bundle));
        hash
    }

    /// Forgets bundles that nothing needs any more.
    pub fn retain(&self, needed: &dyn Fn(&str) -> bool) {
        self.bundles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|hash, _| hash == stdlib::OWNER || needed(hash));
        self.inspected.write().unwrap_or_else(PoisonError::into_inner).retain(|hash, _| needed(hash));
    }

    /// What a known bundle registers; an unknown one registers nothing.
    pub fn registered(&self, hash: Option<&str>) -> Result<Arc<Inspected>> {
        let Some(hash) = hash else { return Ok(Arc::default()) };
        if let Some(known) = self.inspected.read().unwrap_or_else(PoisonError::into_inner).get(hash) {
            return Ok(known.clone());
        }
        let bundle = self.bundles.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned();
        let Some(bundle) = bundle else { return Ok(Arc::default()) };
        let inspected = Arc::new(inspect(bundle, hash)?);
        self.inspected.write().unwrap_or_else(PoisonError::into_inner).insert(hash.to_owned(), inspected.clone());
        Ok(inspected)
    }

    /// Finds a registration: in the service's own bundle, else in the library. The bundle's hash and its facts.
    pub fn find(&self, own: &Inspected, kind: HostedKind, name: &str) -> Result<(String, Facts)> {
        let key = (kind, name.to_owned());
        if let Some((registration, facts)) =
            own.registrations.get(&key).or_else(|| self.library.registrations.get(&key))
        {
            return Ok((registration.bundle.clone(), facts.clone()));
        }
        let known: Vec<&str> = own
            .registrations
            .keys()
            .chain(self.library.registrations.keys())
            .filter(|(other, _)| *other == kind)
            .map(|(_, name)| name.as_str())
            .collect();
        let word = kind.as_str();
        let hint = crate::model::suggest::hint(name, known.iter().copied());
        Err(Error::new(Kind::NotFound, format!("{word} \"{name:.63}\""), format!("is not registered{hint}"))
            .help(format!("bring it along: apply {{ with = scripts \"*.lua\" }} with a file that says {word} \"{name:.63}\" {{ ... }}")))
    }

    /// Whether the library registers it.
    pub fn in_library(&self, kind: HostedKind, name: &str) -> bool {
        self.library.registrations.contains_key(&(kind, name.to_owned()))
    }

    /// Runs a registered check once. `timeout` bounds its waiting; its computing has the call's budget.
    pub async fn run_check(&self, bundle: &str, name: &str, task: Task, timeout: Duration) -> Result<(bool, String)> {
        let (bundle, name) = (bundle.to_owned(), name.to_owned());
        let (reply, answer) = oneshot::channel();
        self.send(HostedKind::Check, move |vms: &Rc<Vms>| {
            let vms = vms.clone();
            tokio::task::spawn_local(async move {
                let result = match vms.get(&bundle, HostedKind::Check) {
                    Ok(hosted) => {
                        let call = hosted.budget.spend(budget::CALL, check::run(&hosted, &name, &task));
                        let result = tokio::time::timeout(timeout, call).await;
                        vms.after(&bundle, &hosted);
                        result.unwrap_or_else(|_| {
                            Ok((false, format!("no answer within {}", crate::model::units::Duration::from(timeout))))
                        })
                    }
                    Err(error) => Err(error),
                };
                let _ = reply.send(result);
            });
        })?;
        answer.await.map_err(|_| lost("check"))?
    }

    // Runs a call on the kind's thread and waits for it.
    fn call<T: Send + 'static>(
        &self,
        kind: HostedKind,
        bundle: &str,
        call: impl FnOnce(&Hosted) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let bundle = bundle.to_owned();
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.send(kind, move |vms: &Rc<Vms>| {
            let result = vms.get(&bundle, kind).and_then(|hosted| {
                let result = hosted.budget.run(budget::CALL, || call(&hosted));
                vms.after(&bundle, &hosted);
                result
            });
            let _ = reply.send(result);
        })?;
        match answer.recv_timeout(PATIENCE) {
            Ok(result) => result,
            Err(_) => {
                // The thread is left to itself; whoever asks next gets a fresh one.
                self.threads.lock().unwrap_or_else(PoisonError::into_inner).remove(&kind);
                Err(lost(kind.as_str()))
            }
        }
    }

    fn send(&self, kind: HostedKind, job: impl FnOnce(&Rc<Vms>) + Send + 'static) -> Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut job: Job = Box::new(job);
        if let Some(mailbox) = threads.get(&kind) {
            match mailbox.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(back)) => job = back,
            }
        }
        let mailbox = start_thread(kind, self.bundles.clone())?;
        let _ = mailbox.send(job);
        threads.insert(kind, mailbox);
        Ok(())
    }
}

fn lost(word: &str) -> Error {
    Error::new(
        Kind::Script,
        format!("{word} thread"),
        "did not come back within 5s; it was given up and a fresh one started",
    )
    .retry(true)
}

fn start_thread(
    kind: HostedKind,
    bundles: Arc<RwLock<HashMap<String, Arc<Bundle>>>>,
) -> Result<mpsc::UnboundedSender<Job>> {
    let (mailbox, mut inbox) = mpsc::unbounded_channel::<Job>();
    let failed = |error: std::io::Error| Error::io(format!("{} thread", kind.as_str()), "start it", &error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let run = move || {
        let vms = Rc::new(Vms { bundles, loaded: std::cell::RefCell::default() });
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            while let Some(job) = inbox.recv().await {
                job(&vms);
            }
        });
    };
    std::thread::Builder::new().name(format!("script-{}", kind.as_str())).spawn(run).map_err(failed)?;
    Ok(mailbox)
}

/// The VMs of one thread, by bundle.
struct Vms {
    bundles: Arc<RwLock<HashMap<String, Arc<Bundle>>>>,
    loaded: std::cell::RefCell<HashMap<String, Rc<Hosted>>>,
}

impl Vms {
    fn get(&self, hash: &str, kind: HostedKind) -> Result<Rc<Hosted>> {
        if let Some(hosted) = self.loaded.borrow().get(hash) {
            return Ok(hosted.clone());
        }
        let bundle = self.bundles.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned();
        let bundle =
            bundle.ok_or_else(|| Error::new(Kind::Script, format!("scripts {hash}"), "are not installed any more"))?;
        let hosted = Rc::new(Hosted::load(&bundle, kind, hash == stdlib::OWNER)?);
        let mut loaded = self.loaded.borrow_mut();
        if loaded.len() >= MAX_VMS {
            loaded.clear();
        }
        loaded.insert(hash.to_owned(), hosted.clone());
        Ok(hosted)
    }

    // A VM that was interrupted may still own half-done work, so it is dropped, never used again.
    fn after(&self, hash: &str, hosted: &Rc<Hosted>) {
        if hosted.budget.was_exceeded() {
            self.loaded.borrow_mut().remove(hash);
        }
    }
}

/// Loads a bundle in throw-away VMs, for each kind once, and tells what it registers.
pub fn inspect(bundle: Arc<Bundle>, hash: &str) -> Result<Inspected> {
    let library = hash == stdlib::OWNER;
    let prefix = if library { "@neap/" } else { "" };
    let entries = bundle.entries.clone();
    inspect_files(Rc::new(bundle), &entries, hash, prefix)
}

/// The same for files from anywhere.
pub fn inspect_files(files: Rc<dyn Files>, entries: &[String], hash: &str, prefix: &str) -> Result<Inspected> {
    let mut inspected = Inspected::default();
    for kind in HostedKind::ALL {
        let hosted = Hosted::load_from(files.clone(), entries, kind, prefix)?;
        for registration in hosted.registrations(kind, hash) {
            let facts = hosted.entries[&registration.name].facts.clone();
            inspected.registrations.insert((kind, registration.name.clone()), (registration, facts));
        }
    }
    Ok(inspected)
}

/// Checks the options of a use against those that the registration knows.
pub fn check_options(kind: HostedKind, wanted: &Use, facts: &Facts) -> Result<()> {
    let Some(known) = &facts.options else { return Ok(()) };
    match wanted.options.keys().find(|key| !known.contains(key)) {
        None => Ok(()),
        Some(unknown) => {
            let hint = crate::model::suggest::hint(unknown, known.iter().map(String::as_str));
            let subject = format!("{} \"{}\"", kind.as_str(), wanted.name);
            Err(Error::invalid(subject, format!("unknown option \"{unknown:.60}\"{hint}")))
        }
    }
}

/// The host as the scheduler sees it: policies and rollouts of one decision pass.
pub struct Scripts<'a> {
    /// The host.
    pub host: &'a Arc<ScriptHost>,
    /// The bundle of each service, by name.
    pub bundles: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Scripts<'a> {
    /// For one pass.
    pub fn new(host: &'a Arc<ScriptHost>, bundles: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Scripts { host, bundles }
    }

    fn locate(&self, bundle: Option<String>, kind: HostedKind, name: &str) -> Result<(String, Facts)> {
        if self.host.in_library(kind, name) {
            return self.host.find(&Inspected::default(), kind, name);
        }
        self.host.find(&*self.host.registered(bundle.as_deref())?, kind, name)
    }
}

struct ScriptPolicy {
    host: Arc<ScriptHost>,
    bundle: String,
    wanted: Use,
}

impl Policy for ScriptPolicy {
    fn rank(&mut self, ask: &Ask) -> Result<Vec<Verdict>> {
        let (wanted, ask) = (self.wanted.clone(), ask.clone());
        self.host.call(HostedKind::Policy, &self.bundle, move |hosted| policy::rank(hosted, &wanted, &ask))
    }
}

impl Policies for Scripts<'_> {
    fn find(&mut self, spec: &ServiceSpec, index: usize) -> Result<Box<dyn Policy>> {
        let wanted = spec.policy[index].clone();
        let bundle = (self.bundles)(spec.name.as_str());
        let (bundle, _) = self.locate(bundle, HostedKind::Policy, wanted.name.as_str())?;
        Ok(Box::new(ScriptPolicy { host: self.host.clone(), bundle, wanted }))
    }

    fn spread(&mut self) -> Result<Box<dyn Policy>> {
        Ok(Box::new(ScriptPolicy {
            host: self.host.clone(),
            bundle: stdlib::OWNER.to_owned(),
            wanted: Use::plain("spread"),
        }))
    }
}

impl Rollouts for Scripts<'_> {
    fn step(&mut self, release: &Release, view: &ReleaseView) -> Result<Answer> {
        let name = release.rollout.name.to_string();
        let (bundle, _) = self.locate(release.bundle.clone(), HostedKind::Rollout, &name)?;
        let view = view.clone();
        self.host.call(HostedKind::Rollout, &bundle, move |hosted| rollout::step(hosted, &name, &view))
    }
}
