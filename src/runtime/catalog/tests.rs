use std::sync::Arc;

use super::*;
use crate::model::catalog::{CheckKind, CheckRun, Origin};
use crate::model::clock::{ManualClock, Timestamp};
use crate::model::units::Duration;
use crate::network::Sockets;
use crate::store::MemoryStore;

async fn registry(store: &Arc<MemoryStore>, now: u64) -> Arc<Registry> {
    let clock = Arc::new(ManualClock::new(Timestamp(now), 1));
    let registry =
        Registry::load("eu-1".into(), store.clone(), clock, Arc::new(Sockets), None, Before::Nothing).unwrap();
    registry.hold_index().await.unwrap();
    registry.catalog.change(|draft| draft.put_node(node("eu-1")));
    registry
}

fn node(name: &str) -> CatalogNode {
    CatalogNode { name: name.into(), address: "10.0.0.1".into(), ..CatalogNode::default() }
}

fn instance(id: &str, origin: Origin) -> Instance {
    Instance { id: id.into(), service: "web".into(), origin, ..Instance::default() }
}

fn check(id: &str, instance: &str, status: CheckStatus, origin: Origin) -> CatalogCheck {
    let kind = CheckKind::Ttl(Duration::from_secs(60));
    let (interval, timeout) = (Duration::from_secs(10), Duration::from_secs(10));
    let run = CheckRun {
        kind,
        interval,
        timeout,
        success_before_passing: 0,
        failures_before_warning: 0,
        failures_before_critical: 0,
        deregister_after: None,
    };
    CatalogCheck {
        id: id.into(),
        name: id.into(),
        instance: instance.into(),
        status,
        origin,
        run: Some(run),
        ..CatalogCheck::default()
    }
}

fn status(registry: &Registry, node: &str, id: &str) -> Option<CheckStatus> {
    registry.catalog.read(|state| Some(state.node(node)?.checks.get(id)?.check.status))
}

fn agents(id: &str, checks: Vec<CatalogCheck>) -> Registration {
    Registration { node: "eu-1".into(), instance: instance(id, Origin::Agent), checks, replace_checks: false }
}

#[tokio::test]
async fn what_is_registered_is_read_again() {
    let store = Arc::new(MemoryStore::default());
    let before = registry(&store, 5000).await;
    let alive = check("alive", "a", CheckStatus::Critical, Origin::Agent);
    before.register(agents("a", vec![alive.clone()])).await.unwrap();
    before.register(agents("b", Vec::new())).await.unwrap();
    before.say("eu-1", "alive", CheckStatus::Passing, "well").unwrap();
    // Registered anew, it is as it was found; so it is after what was found is written down.
    before.register(agents("a", vec![alive])).await.unwrap();
    assert_eq!(status(&before, "eu-1", "alive"), Some(CheckStatus::Passing));
    before.deregister("eu-1", "b").await.unwrap();
    // The clock was set back: no index goes back with it.
    let after = registry(&store, 1000).await;
    assert_eq!(status(&after, "eu-1", "alive"), Some(CheckStatus::Passing));
    assert!(after.catalog.read(|state| state.instance("eu-1", "b").is_none()));
    assert!(after.catalog.read(|state| state.index) > before.catalog.read(|state| state.index));
}

#[tokio::test]
async fn others_say_how_their_own_checks_are() {
    let store = Arc::new(MemoryStore::default());
    let registry = registry(&store, 1).await;
    for status_now in [CheckStatus::Passing, CheckStatus::Critical, CheckStatus::Warning] {
        let checks = vec![
            check("up", "m", status_now, Origin::Catalog),
            check("deep", "m", status_now, Origin::Catalog),
            check("node", "", status_now, Origin::Catalog),
        ];
        let instance = Some(instance("m", Origin::Catalog));
        registry.register_node(node("far"), instance, checks.clone(), false).await.unwrap();
        for id in ["up", "deep", "node"] {
            assert_eq!(status(&registry, "far", id), Some(status_now), "{id}");
        }
        // Without the instance, all in one.
        registry.register_node(node("far"), None, checks, false).await.unwrap();
        assert_eq!(status(&registry, "far", "deep"), Some(status_now));
    }
    let again = super::tests::registry(&store, 1).await;
    assert_eq!(status(&again, "far", "up"), Some(CheckStatus::Warning));
    assert_eq!(status(&again, "far", "deep"), Some(CheckStatus::Warning));
    registry.deregister_node("far").await.unwrap();
    let again = super::tests::registry(&store, 1).await;
    assert!(again.catalog.read(|state| state.node("far").is_none()));
}

#[tokio::test]
async fn what_is_neaps_own_is_not_written_down() {
    let store = Arc::new(MemoryStore::default());
    let registry = registry(&store, 1).await;
    registry.catalog.change(|draft| draft.put_instance("eu-1", instance("web.1", Origin::Task)));
    let own = check("mine", "web.1", CheckStatus::Passing, Origin::Agent);
    registry.register_check("eu-1", own.clone()).await.unwrap();
    registry.register_node(node("eu-1"), None, vec![own], true).await.unwrap();
    registry.maintain("eu-1", Some("web.1"), Some("disk")).await.unwrap();
    assert_eq!(status(&registry, "eu-1", "mine"), Some(CheckStatus::Passing));
    assert_eq!(status(&registry, "eu-1", "_service_maintenance:web.1"), Some(CheckStatus::Critical));
    let refused = registry.deregister("eu-1", "web.1").await.unwrap_err();
    assert_eq!(refused.kind, Kind::Conflict);
    registry.register(agents("web.1", Vec::new())).await.unwrap_err();
    registry.maintain("eu-1", Some("web.1"), None).await.unwrap();
    let again = super::tests::registry(&store, 1).await;
    assert!(again.catalog.read(|state| state.instance("eu-1", "web.1").is_none()));
}

#[tokio::test]
async fn what_cannot_be_written_down_is_refused_whole() {
    let store = Arc::new(MemoryStore::default());
    let registry = registry(&store, 1).await;
    let mut large = check("c", "a", CheckStatus::Passing, Origin::Agent);
    large.notes = "x".repeat(crate::model::catalog::MAX_OUTPUT);
    let many = (0..65).map(|number| CatalogCheck { id: format!("c{number}"), ..large.clone() }).collect();
    assert_eq!(registry.register(agents("a", many)).await.unwrap_err().kind, Kind::Exhausted);
    let bad = check("c", "none", CheckStatus::Passing, Origin::Catalog);
    assert_eq!(registry.register_node(node("new"), None, vec![bad], false).await.unwrap_err().kind, Kind::NotFound);
    assert!(registry.catalog.read(|state| state.node("new").is_none() && state.instance("eu-1", "a").is_none()));
    // One id is one check on a node.
    registry.register(agents("a", vec![check("c", "a", CheckStatus::Passing, Origin::Agent)])).await.unwrap();
    let other = agents("b", vec![check("c", "b", CheckStatus::Passing, Origin::Agent)]);
    assert_eq!(registry.register(other).await.unwrap_err().kind, Kind::Conflict);
}

// Two containers may be one instance: at once, one in the other's place, or while a client has that id.
#[tokio::test]
async fn an_instance_is_there_as_long_as_any_container_is_it() {
    use crate::engines::registrator::{Changed, Registered};
    let registry = registry(&Arc::new(MemoryStore::default()), 1000).await;
    let found = |port: u16| {
        let instance = Instance { port, ..instance("web", Origin::Container) };
        vec![Registered { instance, checks: vec![check("c", "web", CheckStatus::Passing, Origin::Container)] }]
    };
    let take = |whole: bool, put: Vec<(&str, u16)>, gone: Vec<&str>| {
        let put = put.into_iter().map(|(id, port)| (id.to_owned(), found(port))).collect();
        let changed = Changed { whole, put, gone: gone.into_iter().map(str::to_owned).collect() };
        assert!(registry.take_containers("eu-1", &changed));
    };
    let port = || registry.catalog.read(|state| Some(state.instance("eu-1", "web")?.entry.instance.port));
    take(true, vec![("c1", 1), ("c2", 2)], vec![]);
    assert_eq!(port(), Some(1));
    take(false, vec![], vec!["c1"]);
    assert_eq!(port(), Some(2));
    take(false, vec![("c0", 3)], vec!["c2"]);
    assert_eq!(port(), Some(3));
    // A client's counts while it stands.
    take(true, vec![], vec![]);
    assert_eq!((port(), status(&registry, "eu-1", "c")), (None, None));
    registry.register(agents("web", Vec::new())).await.unwrap();
    take(false, vec![("c4", 4)], vec![]);
    assert_eq!(port(), Some(0));
    registry.deregister("eu-1", "web").await.unwrap();
    assert_eq!(port(), Some(4));
    // Nobody looks there any more, and a host that is not known waits.
    registry.drop_containers(|_| false);
    assert_eq!(port(), None);
    assert!(!registry.take_containers("eu-9", &Changed::default()));
}
