//! The daemon's runtime on the simulation: how long a deploy, an hour and a test take. `cargo bench --bench sim`.

use std::time::{Duration, Instant};

use neap::client::Apply;
use neap::script::api::test::{Setup, Stage};

fn setup(value: serde_json::Value) -> Setup {
    neap::model::strict::read("setup", &value).unwrap()
}

async fn deploy(stage: &Stage, services: usize, replicas: usize, policy: &str) {
    for number in 0..services {
        let service = serde_json::json!({
            "name": format!("s{number}"), "command": ["x"], "replicas": replicas, "policy": policy,
            "reservations": { "memory": "1MiB" },
        });
        stage.cluster.apply(Apply { service, ..Apply::default() }).await.unwrap();
    }
}

async fn until_all_run(stage: &Stage, tasks: usize) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let all = stage.cluster.services().await.unwrap();
        if all.iter().map(|status| status.healthy as usize).sum::<usize>() == tasks {
            return;
        }
    }
}

fn main() {
    println!("From apply to running, everything but the processes themselves (spread):");
    for (nodes, services, replicas) in [(10, 10, 10), (100, 20, 50), (1_000, 100, 100)] {
        let setup = setup(serde_json::json!({ "nodes": nodes }));
        let took = neap::sim::alone(async {
            let stage = neap::sim::start(&setup, 1).await.unwrap();
            let begun = Instant::now();
            deploy(&stage, services, replicas, "spread").await;
            until_all_run(&stage, services * replicas).await;
            begun.elapsed()
        })
        .unwrap();
        let tasks = services * replicas;
        let rate = tasks as f64 / took.as_secs_f64();
        println!(
            "{nodes:>6} nodes, {services:>4} services, {tasks:>6} tasks: {took:>10.1?}, {rate:>7.0} tasks a second"
        );
    }

    println!("\nAn hour in which one task in a hundred fails:");
    for (nodes, services, replicas) in [(100, 20, 50), (1_000, 100, 100)] {
        let setup = setup(serde_json::json!({ "nodes": nodes }));
        let (took, events) = neap::sim::alone(async {
            let stage = neap::sim::start(&setup, 1).await.unwrap();
            deploy(&stage, services, replicas, "spread").await;
            until_all_run(&stage, services * replicas).await;
            let failures = services * replicas / 100;
            let begun = Instant::now();
            for number in 0..failures {
                let label = format!("s{}.{}", number % services, 1 + number % replicas);
                let _ = stage.engine.kill(&label, neap::model::task::Exit::Code(1));
                tokio::time::sleep(Duration::from_secs(3600) / failures as u32).await;
            }
            (begun.elapsed(), stage.history.events().len())
        })
        .unwrap();
        println!("{nodes:>6} nodes, {:>6} tasks: {took:>10.1?}, {events} events in all", services * replicas);
    }

    println!("\nOur own tests of stdlib, each on a cluster of its own:");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let options =
        neap::sim::tests::Options { filter: None, seed: None, timeout: Duration::from_secs(60), cwd: root.to_owned() };
    let (mut count, begun) = (0_u32, Instant::now());
    for file in neap::sim::tests::files(&[root.join("tests/scripts"), root.join("scripts")]).unwrap() {
        for test in neap::sim::tests::list(&file, &options).unwrap() {
            neap::sim::tests::run(&file, &test, &options).result.unwrap();
            count += 1;
        }
    }
    println!("{count} tests in {:.1?}, {:.1?} each", begun.elapsed(), begun.elapsed() / count);
}
