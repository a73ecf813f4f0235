//! A script's word on which of a route's services a request goes to. What a script is, the floor above knows.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::{Way, plain_host};
use crate::model::Result;
use crate::model::route::plain_path;

/// Failures in a row, each for want of time, after which a script is not asked for a while.
const IN_A_ROW: u32 = 3;
/// How long that is.
const AWAY: Duration = Duration::from_secs(30);

/// A request, as a script is shown it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutedRequest {
    /// `GET` and the like.
    pub method: String,
    /// The host that it names, in lower case and without a port.
    pub host: String,
    /// The path, decoded.
    pub path: String,
    /// What stands behind the path, without its question mark.
    pub query: String,
    /// The client's address.
    pub client: String,
    /// Whether it came by TLS.
    pub secure: bool,
    /// Its fields, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl RoutedRequest {
    /// One with this method, host and target, as they came; the rest is what it is.
    pub fn of(
        method: String,
        host: &[u8],
        target: &[u8],
        client: String,
        secure: bool,
        headers: Vec<(String, Vec<u8>)>,
    ) -> Self {
        let target = String::from_utf8_lossy(target);
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = plain_path(path).map_or_else(|_| path.to_owned(), Cow::into_owned);
        RoutedRequest {
            method,
            host: plain_host(host).into_owned(),
            path,
            query: query.to_owned(),
            client,
            secure,
            headers,
        }
    }

    /// A field's value by its name, the first.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_slice())
    }

    /// A cookie's value by its name.
    pub fn cookie(&self, name: &str) -> Option<&[u8]> {
        let cookies = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case("cookie"));
        cookies.flat_map(|(_, value)| value.split(|byte| *byte == b';')).find_map(|part| {
            let value = part.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
        })
    }
}

/// Why a script has not said anything of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsaid {
    /// Why.
    pub why: String,
    /// It took too long, or held too much: it is in any state.
    pub is_spent: bool,
}

/// A script that was loaded.
pub trait Hook {
    /// The name of the service that is to answer; nothing: by shares.
    fn choose(&self, request: RoutedRequest) -> std::result::Result<Option<String>, Unsaid>;
}

/// Loads scripts.
pub trait Hooks: Send + Sync {
    /// From a route's name and what is written there.
    fn load(&self, route: &str, source: &str) -> Result<Box<dyn Hook>>;
}

/// One thread's scripts, by route.
pub struct Loaded {
    hooks: Arc<dyn Hooks>,
    known: RefCell<HashMap<String, Rc<One>>>,
}

struct One {
    source: String,
    hook: Option<Box<dyn Hook>>,
    in_a_row: Cell<u32>,
    away_until: Cell<Option<Instant>>,
}

impl Loaded {
    /// None yet.
    pub fn new(hooks: Arc<dyn Hooks>) -> Self {
        Loaded { hooks, known: RefCell::default() }
    }

    /// What a route's script says of a request; nothing where it has none, or says nothing of use, which is counted.
    pub fn choose(&self, way: &Way, shown: impl FnOnce() -> RoutedRequest) -> Option<String> {
        let source = way.spec.choose.as_deref()?;
        let known = self.known.borrow().get(&way.name).filter(|one| one.source == source).cloned();
        let one = known.unwrap_or_else(|| self.load(way, source, 0));
        let hook = one.hook.as_ref()?;
        if let Some(until) = one.away_until.get() {
            if Instant::now() < until {
                return None;
            }
            one.away_until.set(None);
        }
        match hook.choose(shown()) {
            Ok(Some(name)) if !way.spec.to.iter().any(|share| share.service.as_str() == name) => {
                way.passed.note_unchosen(&format!(
                    "route \"{}\": choose names {name:.80?}, which is none of its services",
                    way.name
                ));
                one.in_a_row.set(0);
                None
            }
            Ok(name) => {
                one.in_a_row.set(0);
                name
            }
            Err(Unsaid { why, is_spent }) => {
                way.passed.note_unchosen(&why);
                if is_spent {
                    let again = self.load(way, source, one.in_a_row.get() + 1);
                    if again.in_a_row.get() >= IN_A_ROW {
                        again.away_until.set(Some(Instant::now() + AWAY));
                        again.in_a_row.set(IN_A_ROW - 1);
                    }
                }
                None
            }
        }
    }

    fn load(&self, way: &Way, source: &str, in_a_row: u32) -> Rc<One> {
        let hook = self.hooks.load(&way.name, source);
        let hook = hook.inspect_err(|error| way.passed.note_unchosen(&error.to_string())).ok();
        let one = One { source: source.to_owned(), hook, in_a_row: Cell::new(in_a_row), away_until: Cell::default() };
        let one = Rc::new(one);
        self.known.borrow_mut().insert(way.name.clone(), one.clone());
        one
    }

    /// Forgets those of routes that are there no more.
    pub fn tidy(&self, is_there: impl Fn(&str) -> bool) {
        self.known.borrow_mut().retain(|name, _| is_there(name));
    }
}
