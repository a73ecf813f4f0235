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

/// How often a script may use up its time or its memory within `WINDOW` before it is not asked for a while.
const MOST: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);
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
        cookie_of(cookies.map(|(_, value)| value.as_slice()), name)
    }
}

/// A cookie's value by its name, in what fields of that kind hold; without quotes around it.
pub fn cookie_of<'a>(mut fields: impl Iterator<Item = &'a [u8]>, name: &str) -> Option<&'a [u8]> {
    let in_field = |field: &'a [u8]| {
        field.split(|byte| *byte == b';').find_map(|part| {
            let value = part.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
        })
    };
    fields.find_map(in_field)
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
    // When it was too much, lately.
    spent: Vec<Instant>,
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
        let mut one = known.unwrap_or_else(|| self.load(way, source, Vec::new()));
        if let Some(until) = one.away_until.get() {
            if Instant::now() < until {
                way.passed.note_unchosen(None);
                return None;
            }
            one = self.load(way, source, Vec::new());
        }
        let hook = one.hook.as_ref()?;
        let why = match hook.choose(shown()) {
            Ok(Some(name)) if !way.spec.to.iter().any(|share| share.service.as_str() == name) => {
                format!("route \"{}\": choose names {name:.80?}, which is none of its services", way.name)
            }
            Ok(name) => return name,
            Err(Unsaid { why, is_spent }) => {
                if is_spent {
                    self.spent(way, source, &one);
                }
                why
            }
        };
        way.passed.note_unchosen(Some(&why));
        None
    }

    // It is in any state now. Loading it takes time as well: whoever is too much again and again is left alone, whatever else is asked
    // in between.
    fn spent(&self, way: &Way, source: &str, one: &One) {
        let now = Instant::now();
        let mut spent: Vec<Instant> = one.spent.iter().copied().filter(|at| now - *at < WINDOW).collect();
        spent.push(now);
        if spent.len() < MOST {
            self.load(way, source, spent);
            return;
        }
        let away = One { source: source.to_owned(), hook: None, spent, away_until: Cell::new(Some(now + AWAY)) };
        self.known.borrow_mut().insert(way.name.clone(), Rc::new(away));
    }

    fn load(&self, way: &Way, source: &str, spent: Vec<Instant>) -> Rc<One> {
        let hook = self.hooks.load(&way.name, source);
        let hook = hook.inspect_err(|error| way.passed.note_unchosen(Some(&error.to_string()))).ok();
        // What cannot be loaded now may be later.
        let away_until = if hook.is_none() { Some(Instant::now() + AWAY) } else { None };
        let one = Rc::new(One { source: source.to_owned(), hook, spent, away_until: Cell::new(away_until) });
        self.known.borrow_mut().insert(way.name.clone(), one.clone());
        one
    }

    /// Forgets those of routes that are there no more.
    pub fn tidy(&self, is_there: impl Fn(&str) -> bool) {
        self.known.borrow_mut().retain(|name, _| is_there(name));
    }
}
