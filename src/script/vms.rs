//! The VMs of one script thread, one a bundle, and what was asked of them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::api::HostEnv;
use super::hosted::Hosted;
use super::lane::Lane;
use super::stdlib;
use crate::model::bundle::{Bundle, HostedKind};
use crate::model::{Error, Kind, Result};
use crate::scheduler::ledger::Ledger;

/// Most VMs that one thread keeps.
const MAX_VMS: usize = 64;

/// Kind, bundle and name of what is called.
pub type Called = (HostedKind, String, String);

/// What all threads share.
#[derive(Clone, Default)]
pub struct Library {
    /// Bundles by hash.
    pub bundles: Arc<RwLock<HashMap<String, Arc<Bundle>>>>,
    /// What may not be called again, and why.
    pub quarantine: Arc<RwLock<HashMap<Called, Error>>>,
    /// What was called how often, by kind, bundle and name.
    pub calls: Arc<RwLock<HashMap<Called, Arc<Calls>>>>,
}

/// Statistics of one registration. Times in nanoseconds of computing and waiting together.
#[derive(Debug, Default)]
pub struct Calls {
    /// How often it was called.
    pub count: AtomicU64,
    /// How often it failed.
    pub errors: AtomicU64,
    /// All calls together.
    pub nanos: AtomicU64,
    /// The longest one.
    pub longest: AtomicU64,
    /// What its VM held after the last call, in bytes; shared by the registrations of a bundle and kind.
    pub memory: AtomicU64,
    /// The last failure.
    pub last_error: Mutex<Option<String>>,
}

impl Calls {
    /// Counts `count` calls that took `took` together.
    pub fn add(&self, count: u64, took: Duration, memory: usize, error: Option<&Error>) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(count, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.longest.fetch_max(nanos / count.max(1), Ordering::Relaxed);
        self.memory.store(memory as u64, Ordering::Relaxed);
        if let Some(error) = error {
            self.errors.fetch_add(1, Ordering::Relaxed);
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(crate::model::error::shorten(&error.to_string()));
        }
    }
}

impl Library {
    /// An error if the registration was put under quarantine.
    pub fn admit(&self, kind: HostedKind, bundle: &str, name: &str) -> Result<()> {
        let quarantine = self.quarantine.read().unwrap_or_else(PoisonError::into_inner);
        if quarantine.is_empty() {
            return Ok(());
        }
        // What hung while it was loaded has no name: all of it is put away.
        let found = [name, ""].into_iter().find_map(|name| quarantine.get(&(kind, bundle.to_owned(), name.to_owned())));
        found.map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Where calls of a registration are counted.
    pub fn calls(&self, kind: HostedKind, bundle: &str, name: &str) -> Arc<Calls> {
        let key = (kind, bundle.to_owned(), name.to_owned());
        if let Some(calls) = self.calls.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return calls.clone();
        }
        self.calls.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

/// The VMs of one thread.
pub struct Vms {
    /// The thread.
    pub lane: Lane,
    /// What all threads share.
    pub library: Library,
    /// Finds places for policies.
    pub ledger: RefCell<Ledger>,
    env: HostEnv,
    loaded: RefCell<HashMap<String, Rc<Hosted>>>,
    serial: Cell<u64>,
}

impl Vms {
    /// None yet.
    pub fn new(lane: Lane, library: Library, env: HostEnv) -> Self {
        Vms { lane, library, env, ledger: RefCell::default(), loaded: RefCell::default(), serial: Cell::new(0) }
    }

    /// The VM of a bundle.
    pub fn get(&self, hash: &str) -> Result<Rc<Hosted>> {
        if let Some(hosted) = self.loaded.borrow().get(hash) {
            return Ok(hosted.clone());
        }
        let bundle = self.library.bundles.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned();
        let bundle =
            bundle.ok_or_else(|| Error::new(Kind::Script, format!("scripts {hash}"), "are not installed any more"))?;
        self.lane.busy_with(hash, "");
        let mut hosted =
            Hosted::load(&bundle, Some(self.lane.kind()), hash == stdlib::OWNER, self.lane.beat(), &self.env)?;
        self.serial.set(self.serial.get() + 1);
        hosted.serial = self.serial.get();
        let hosted = Rc::new(hosted);
        let mut loaded = self.loaded.borrow_mut();
        if loaded.len() >= MAX_VMS {
            // Those of bundles that are no longer known first.
            let known = self.library.bundles.read().unwrap_or_else(PoisonError::into_inner);
            loaded.retain(|hash, _| known.contains_key(hash));
            drop(known);
            if loaded.len() >= MAX_VMS {
                loaded.clear();
            }
        }
        loaded.insert(hash.to_owned(), hosted.clone());
        Ok(hosted)
    }

    /// After a call. A VM that was interrupted may still own half-done work, so it is dropped, never used again.
    pub fn after(&self, hash: &str, hosted: &Rc<Hosted>) {
        if hosted.budget.was_exceeded() {
            let mut loaded = self.loaded.borrow_mut();
            if loaded.get(hash).is_some_and(|known| Rc::ptr_eq(known, hosted)) {
                loaded.remove(hash);
            }
        }
    }
}

/// A future that says on each turn that its registration is what the thread is busy with.
pub struct Busy<F> {
    lane: Lane,
    bundle: String,
    name: String,
    future: std::pin::Pin<Box<F>>,
}

impl<F: Future> Busy<F> {
    /// For one registration.
    pub fn new(lane: &Lane, bundle: &str, name: &str, future: F) -> Self {
        Busy { lane: lane.clone(), bundle: bundle.to_owned(), name: name.to_owned(), future: Box::pin(future) }
    }
}

impl<F: Future> Future for Busy<F> {
    type Output = F::Output;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<F::Output> {
        let this = &mut *self;
        this.lane.busy_with(&this.bundle, &this.name);
        this.future.as_mut().poll(context)
    }
}
