//! Fuzz targets, one for each parser that faces what comes from outside. `NEAP_FUZZ` says which; `fuzz/run` runs them all.
//!
//! A target panics where a parser does, and where what was read and written out again is not what it was.
#![no_main]

use std::fmt::{Debug, Display};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use neap::api::{self, Api};
use neap::client::remote::RemoteCluster;
use neap::client::wire::Endpoint;
use neap::compose;
use neap::model::clock::SystemClock;
use neap::model::constraint::Constraint;
use neap::model::container::NetworkUse;
use neap::model::cron::{Schedule, Zone};
use neap::model::event::What;
use neap::model::id::{ServiceId, TaskId};
use neap::model::mount::Mount;
use neap::model::name::Name;
use neap::model::native::PublishMode;
use neap::model::node::NodeUpdate;
use neap::model::port::{PortSpec, Protocol};
use neap::model::registry;
use neap::model::right::{Audit, Principal};
use neap::model::service::ServiceSpec;
use neap::model::strict;
use neap::model::units::{Bytes, Cpu, Duration};
use neap::store::MemoryStore;
use tower::ServiceExt;

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("NEAP_FUZZ").expect("NEAP_FUZZ names a target");
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("NEAP_FUZZ is {name:?}; known: {:?}", TARGETS.map(|(known, _)| known))).1
    });
    target(data);
});

const TARGETS: [(&str, fn(&[u8])); 9] = [
    ("units", units),
    ("words", words),
    ("constraints", constraints),
    ("ports_mounts", ports_mounts),
    ("cron", cron),
    ("service", service),
    ("compose", compose_files),
    ("agent", agent),
    ("api", requests),
];

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// What was read is written out so that it is read as the same.
fn back<T: FromStr + Display + PartialEq + Debug>(text: &str)
where
    T::Err: Debug,
{
    if let Ok(read) = text.parse::<T>() {
        let written = read.to_string();
        assert_eq!(written.parse::<T>().expect("what was written is read"), read, "{text:?} as {written:?}");
    }
}

fn units(data: &[u8]) {
    let Some(text) = text(data) else { return };
    back::<Duration>(text);
    let _ = text.parse::<Cpu>();
    // Sizes are written for people, rounded.
    if let Ok(size) = text.parse::<Bytes>() {
        let again = size.to_string().parse::<Bytes>().expect("a size that was written is read");
        assert!(again.0.abs_diff(size.0) as f64 <= size.0 as f64 * 0.06 + 1.0, "{text:?}: {} and {}", size.0, again.0);
    }
}

fn words(data: &[u8]) {
    let Some(text) = text(data) else { return };
    back::<Name>(text);
    back::<TaskId>(text);
    back::<ServiceId>(text);
    let _ = text.parse::<PublishMode>();
    let _ = text.parse::<Protocol>();
    let _ = text.parse::<NetworkUse>();
    let _ = text.parse::<neap::agent::authority::JoinToken>();
    let _ = What::parse(text);
    let _ = registry::name(text);
    let _ = registry::of_image(text);
    let _ = compose::words(text);
    let _ = neap::engines::docker::Address::read(text, None, "here");
}

fn constraints(data: &[u8]) {
    let Some(text) = text(data) else { return };
    back::<Constraint>(text);
}

fn ports_mounts(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(port) = text.parse::<PortSpec>() {
        let json = serde_json::to_value(&port).expect("a port is plain data");
        assert_eq!(strict::read::<PortSpec>("port", &json).expect("a port that was written is read"), port, "{text:?}");
    }
    if let Ok(mount) = text.parse::<Mount>() {
        let json = serde_json::to_value(&mount).expect("a mount is plain data");
        assert_eq!(strict::read::<Mount>("mount", &json).expect("a mount that was written is read"), mount, "{text:?}");
    }
}

fn cron(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let (schedule, zone) = text.split_once('\n').unwrap_or((text, "UTC"));
    if let (Ok(schedule), Ok(zone)) = (schedule.parse::<Schedule>(), zone.parse::<Zone>()) {
        assert_eq!(schedule.to_string().parse::<Schedule>().expect("it is read again").to_string(), schedule.to_string());
        let from = neap::model::clock::Timestamp(1_774_656_000_000);
        if let Some(next) = schedule.next(from, zone.rules()) {
            assert!(next > from, "{schedule} in {zone}: {next:?}");
        }
    }
}

fn service(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let _ = strict::read::<NodeUpdate>("node", &value);
    if let Ok(spec) = ServiceSpec::read(&value) {
        let json = serde_json::to_value(&spec).expect("a description is plain data");
        assert_eq!(ServiceSpec::read(&json).expect("a description that was written is read"), spec);
    }
}

fn compose_files(data: &[u8]) {
    let Some(text) = text(data) else { return };
    // What stands behind a form feed is the `.env` beside it.
    let (file, env) = text.split_once('\u{c}').unwrap_or((text, ""));
    let read = |path: &std::path::Path| match path.file_name().and_then(|name| name.to_str()) {
        Some("compose.yaml") => Ok(file.to_owned()),
        _ => Ok(env.to_owned()),
    };
    let options = compose::Options { name: Some("x".into()), ..compose::Options::default() };
    if let Ok(stack) = compose::load(&[PathBuf::from("/x/compose.yaml")], &options, &read) {
        for (key, spec) in &stack.services {
            // Whatever becomes of it: what was made of a file is a description.
            let _ = ServiceSpec::read(&serde_json::to_value(spec).expect("plain data"));
            assert!(!key.is_empty());
        }
    }
}

fn agent(data: &[u8]) {
    let _ = serde_json::from_slice::<neap::agent::protocol::Frame>(data);
    let _ = serde_json::from_slice::<neap::network::balancer::Request>(data);
    let runtime = runtime();
    let mut reader = neap::agent::link::Reader(data);
    runtime.block_on(async { while reader.next().await.is_ok() {} });
}

struct Nobody;

impl Audit for Nobody {
    fn record(&self, _: &Principal, _: &str, _: &str, _: &neap::model::Result<()>) {}
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"))
}

// `METHOD PATH`, and behind the first line the body. Whoever is behind it is not there: what is not refused before ends there.
fn requests(data: &[u8]) {
    static ROUTER: OnceLock<axum::Router> = OnceLock::new();
    let router = ROUTER.get_or_init(|| {
        let nowhere = Endpoint::Unix(PathBuf::from("/nonexistent/neap.sock"));
        api::router(Arc::new(Api {
            cluster: Arc::new(RemoteCluster::new(nowhere)),
            store: Arc::new(MemoryStore::new()),
            audit: Arc::new(Nobody),
            clock: Arc::new(SystemClock::start()),
            daemons: None,
            memory: None,
        }))
    });
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Some(line) = text(&data[..end]) else { return };
    let body = data.get(end + 1..).unwrap_or_default().to_vec();
    let (method, path) = line.split_once(' ').unwrap_or(("GET", line));
    let built = axum::http::Request::builder().method(method).uri(path).body(axum::body::Body::from(body));
    let Ok(mut request) = built else { return };
    request.extensions_mut().insert(neap::api::auth::Peer::Unix(0));
    let answer = runtime().block_on(router.clone().oneshot(request)).expect("a router always answers");
    let status = answer.status();
    // Not an error of ours: what cannot be had from nowhere is 503.
    assert!(status != 500, "{line}: {status}");
}
