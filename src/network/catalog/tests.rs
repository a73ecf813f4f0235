use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::catalog::{CatalogCheck, CatalogNode, CheckStatus, Instance};
use crate::model::query::Query;

fn node(name: &str, address: &str) -> CatalogNode {
    CatalogNode { name: name.into(), address: address.into(), ..CatalogNode::default() }
}

fn instance(service: &str, id: &str, address: &str) -> Instance {
    Instance { id: id.into(), service: service.into(), address: address.into(), port: 80, ..Instance::default() }
}

fn check(id: &str, instance: &str, status: CheckStatus) -> CatalogCheck {
    CatalogCheck { id: id.into(), name: id.into(), instance: instance.into(), status, ..CatalogCheck::default() }
}

fn two() -> Catalog {
    let catalog = Catalog::new(100);
    catalog.change(|draft| {
        draft.put_node(node("eu-1", "10.0.0.1"));
        draft.put_node(node("eu-2", "10.0.0.2"));
        assert!(draft.put_instance("eu-1", instance("web", "web-1", "")));
        assert!(draft.put_instance("eu-2", instance("web", "web-2", "10.0.0.9")));
        assert!(draft.put_instance("eu-2", instance("db", "db-1", "")));
        assert!(!draft.put_instance("eu-3", instance("db", "db-1", "")));
    });
    catalog
}

fn index(catalog: &Catalog, topic: &Topic) -> u64 {
    catalog.read(|state| state.index_of(topic))
}

fn service(name: &str) -> Topic {
    Topic::Service(key(name))
}

#[test]
fn a_change_is_one_step_and_touches_what_it_is_about() {
    let catalog = two();
    let (web, db) = (service("web"), service("db"));
    assert_eq!([index(&catalog, &web), index(&catalog, &db), index(&catalog, &Topic::All)], [101; 3]);
    // Said again, it is no change.
    catalog.change(|draft| draft.put_instance("eu-1", instance("web", "web-1", "")));
    assert_eq!(index(&catalog, &Topic::All), 101);
    catalog.change(|draft| draft.put_check("eu-1", check("c", "web-1", CheckStatus::Critical)));
    assert_eq!([index(&catalog, &web), index(&catalog, &db)], [102, 101]);
    assert_eq!([index(&catalog, &Topic::Checks), index(&catalog, &Topic::Services)], [102, 101]);
    assert_eq!([index(&catalog, &Topic::Node(key("EU-1"))), index(&catalog, &Topic::Node(key("eu-2")))], [102, 101]);
    // What a check says wakes nobody, and is there.
    let said = CatalogCheck { output: "12:03".into(), ..check("c", "web-1", CheckStatus::Critical) };
    catalog.change(|draft| draft.put_check("eu-1", said));
    assert_eq!(index(&catalog, &Topic::All), 102);
    catalog.read(|state| {
        let found: Vec<_> = state.instances("WEB").collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].status(), found[0].address()), (CheckStatus::Critical, "10.0.0.1"));
        assert_eq!((found[1].status(), found[1].address()), (CheckStatus::Passing, "10.0.0.9"));
        assert_eq!(found[0].checks().next().unwrap().check.output, "12:03");
    });
    // The node's own check is that of all that is on it.
    catalog.change(|draft| draft.put_check("eu-2", check("serfHealth", "", CheckStatus::Critical)));
    assert_eq!([index(&catalog, &web), index(&catalog, &db)], [103, 103]);
    assert!(catalog.read(|state| state.instances("db").all(|found| found.status() == CheckStatus::Critical)));
}

#[test]
fn what_is_gone_is_known_to_be_for_a_while() {
    let catalog = two();
    assert!(catalog.change(|draft| draft.remove_instance("eu-2", "db-1")));
    assert!(!catalog.change(|draft| draft.remove_instance("eu-2", "db-1")));
    let gone = index(&catalog, &service("db"));
    assert_eq!(gone, 102);
    assert_eq!(catalog.read(|state| state.services().cloned().collect::<Vec<_>>()), [Arc::from("web")]);
    // So many come and go that it is forgotten: no index goes back.
    for number in 0..5000 {
        let id = format!("s{number}");
        catalog.change(|draft| draft.put_instance("eu-1", instance(&id, &id, "")));
        catalog.change(|draft| draft.remove_instance("eu-1", &id));
    }
    assert!(index(&catalog, &service("db")) > gone);
    assert!(index(&catalog, &service("never")) > gone);
    let before = index(&catalog, &service("never"));
    catalog.change(|draft| draft.put_instance("eu-1", instance("never", "never", "")));
    assert!(index(&catalog, &service("never")) > before);
}

#[test]
fn addresses_find_their_names() {
    let catalog = two();
    let names = |address: &str| {
        catalog.read(|state| {
            let at = state.at(address.parse().unwrap());
            at.map(|(node, entry)| entry.map_or(node.node.name.clone(), |entry| entry.instance.id.clone()))
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(names("10.0.0.2"), ["eu-2"]);
    assert_eq!(names("10.0.0.9"), ["web-2"]);
    catalog.change(|draft| draft.put_node(node("eu-2", "10.0.0.3")));
    catalog.change(|draft| draft.put_instance("eu-2", instance("web", "web-2", "10.0.0.8")));
    assert_eq!((names("10.0.0.2"), names("10.0.0.9")), (vec![], vec![]));
    assert_eq!(names("10.0.0.8"), ["web-2"]);
    assert!(catalog.change(|draft| draft.remove_node("EU-2")));
    assert_eq!((names("10.0.0.3"), names("10.0.0.8")), (vec![], vec![]));
    assert_eq!(catalog.read(|state| state.instances("web").count()), 1);
}

#[test]
fn an_instance_that_changes_its_service_leaves_the_old_one() {
    let catalog = two();
    catalog.change(|draft| draft.put_instance("eu-2", instance("cache", "db-1", "")));
    catalog.read(|state| {
        assert_eq!(state.instances("db").count(), 0);
        assert_eq!(state.instances("cache").count(), 1);
        assert_eq!(state.index_of(&service("db")), 102);
    });
}

#[tokio::test(start_paused = true)]
async fn only_those_concerned_wake() {
    let catalog = Arc::new(two());
    let wait = |topic: Topic| {
        let catalog = catalog.clone();
        tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            let index = catalog.read(|state| state.index_of(&topic));
            catalog.wait(&topic, index, Duration::from_secs(60)).await;
            began.elapsed()
        })
    };
    let (web, other, db) = (wait(service("web")), wait(service("web")), wait(service("db")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(catalog.waited_for(), 2);
    catalog.change(|draft| draft.remove_instance("eu-1", "web-1"));
    assert_eq!(web.await.unwrap(), Duration::from_secs(1));
    assert_eq!(other.await.unwrap(), Duration::from_secs(1));
    assert_eq!(db.await.unwrap(), Duration::from_secs(60));
    assert_eq!(catalog.waited_for(), 0);
    // Whoever asks with what was never, or is over, is answered at once.
    catalog.wait(&service("web"), 7, Duration::from_secs(60)).await;
}

// Whatever happens in whatever order, who follows has what the other has, and nothing that stays is gone for a moment.
#[tokio::test]
async fn who_follows_has_the_same() {
    let mut random = 7u64;
    let mut next = |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % most
    };
    let (first, second) = (Arc::new(two()), Arc::new(Catalog::new(1)));
    second.change(|draft| draft.put_node(node("old", "10.0.0.9")));
    let mut subscription = Subscription::new(first.clone());
    second.take(subscription.next().await.unwrap());
    let all = |catalog: &Arc<Catalog>| {
        let mut subscription = Subscription::new(catalog.clone());
        async move {
            let mut all = subscription.next().await.unwrap();
            // Each counts its own changes.
            all.queries.iter_mut().for_each(|query| (query.created, query.modified) = (0, 0));
            all.at = 0;
            all
        }
    };
    for round in 0..2000 {
        let (on, id) = (format!("eu-{}", next(3)), format!("i{}", next(4)));
        first.change(|draft| match next(7) {
            0 => draft.put_node(node(&on, &format!("10.0.0.{}", next(3)))),
            1 if next(4) == 0 => assert!(draft.remove_node(&on) || draft.state().node(&on).is_none()),
            2 => _ = draft.put_instance(&on, instance(&format!("s{}", next(3)), &id, "")),
            3 => _ = draft.remove_instance(&on, &id),
            4 => {
                let about = if next(3) == 0 { "" } else { id.as_str() };
                _ = draft.put_check(&on, check(&format!("c{}", next(4)), about, CheckStatus::Warning));
            }
            5 => _ = draft.remove_check(&on, &format!("c{}", next(4))),
            _ => {
                let query = Query { id: id.clone(), name: id.clone(), service: "s".into(), ..Query::default() };
                match next(2) {
                    0 => draft.put_query(query).unwrap(),
                    _ => assert!(draft.remove_query(&id) || draft.state().queries.by_id(&id).is_none()),
                }
            }
        });
        // Sometimes it has to begin anew, as behind a broken connection.
        if next(50) == 0 {
            subscription = Subscription::new(first.clone());
            second.take(subscription.next().await.unwrap());
        }
        if next(5) == 0 {
            while let Ok(Some(portion)) =
                tokio::time::timeout(Duration::ZERO, std::pin::pin!(subscription.next())).await
            {
                second.take(portion);
            }
            assert_eq!(all(&first).await, all(&second).await, "round {round}");
        }
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "from within a look at it")]
fn a_look_within_a_look_is_noticed() {
    let catalog = Catalog::new(1);
    catalog.read(|_| catalog.read(|state| state.index));
}
