//! What containers use, as their Docker Engine counts it.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerCpuStats, ContainerMemoryStats, ContainerStatsResponse};
use bollard::query_parameters::StatsOptions;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::trouble;
use crate::model::id::TaskId;
use crate::model::stats::Stats;
use crate::model::units::Bytes;

/// So many containers are asked about at once, whoever asks: an engine counts for a second before it answers.
const AT_ONCE: usize = 64;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often one is asked that breaks off without an answer.
const ATTEMPTS: usize = 2;

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Asks about each of these containers; those that are gone by now, or tell nothing, are left out.
pub async fn of(docker: &Docker, containers: Vec<(TaskId, String)>) -> BTreeMap<TaskId, Stats> {
    let ask = |(task, container): (TaskId, String)| async move {
        let _place = PLACES.acquire().await.ok()?;
        // Not one-shot: two counts, a second apart, are what a share of time is made of.
        for _ in 0..ATTEMPTS {
            let options = StatsOptions { stream: false, one_shot: false };
            match tokio::time::timeout(PATIENCE, Box::pin(docker.stats(&container, Some(options))).next()).await {
                Ok(Some(Ok(told))) => return Some((task, stats(&told))),
                Ok(Some(Err(error))) if trouble::is_status(&error, 404) => return None,
                Ok(Some(Err(error))) => tracing::debug!(%error, %task, "what a container uses could not be counted"),
                Ok(None) => tracing::debug!(%task, "nothing was told of what a container uses"),
                Err(_) => return None,
            }
        }
        None
    };
    join_all(containers.into_iter().map(ask)).await.into_iter().flatten().collect()
}

fn stats(told: &ContainerStatsResponse) -> Stats {
    let sum = |of: &dyn Fn(&bollard::models::ContainerNetworkStats) -> Option<u64>| {
        let networks = told.networks.as_ref()?;
        Some(Bytes(networks.values().filter_map(of).sum()))
    };
    let disk = |wanted: &str| {
        let entries = told.blkio_stats.as_ref()?.io_service_bytes_recursive.as_ref()?;
        let of = entries.iter().filter(|entry| entry.op.as_deref().is_some_and(|op| op.eq_ignore_ascii_case(wanted)));
        Some(Bytes(of.filter_map(|entry| entry.value).sum()))
    };
    let memory = told.memory_stats.clone().unwrap_or_default();
    Stats {
        cpu: cores(told.cpu_stats.as_ref(), told.precpu_stats.as_ref()).unwrap_or_default(),
        memory: Bytes(used(&memory)),
        memory_limit: memory.limit.map(Bytes),
        received: sum(&|network| network.rx_bytes),
        sent: sum(&|network| network.tx_bytes),
        read: disk("read"),
        written: disk("write"),
        pids: told.pids_stats.as_ref().and_then(|pids| pids.current),
    }
}

// Its share of what all cores together had time for.
fn cores(now: Option<&ContainerCpuStats>, before: Option<&ContainerCpuStats>) -> Option<f64> {
    let total = |stats: Option<&ContainerCpuStats>| stats?.cpu_usage.as_ref()?.total_usage;
    let system = |stats: Option<&ContainerCpuStats>| stats?.system_cpu_usage;
    let own = total(now)?.saturating_sub(total(before).unwrap_or_default());
    let all = system(now)?.saturating_sub(system(before)?);
    let online = now?.online_cpus.filter(|count| *count > 0)?;
    (all > 0).then(|| own as f64 / all as f64 * f64::from(online))
}

// Pages of files that nobody has used lately are the kernel's to take back (`total_inactive_file` in the first version of
// control groups).
fn used(memory: &ContainerMemoryStats) -> u64 {
    let counted = memory.stats.as_ref();
    let idle = counted.and_then(|counts| counts.get("total_inactive_file").or_else(|| counts.get("inactive_file")));
    let usage = memory.usage.unwrap_or_default();
    idle.copied().filter(|idle| *idle < usage).map_or(usage, |idle| usage - idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_shows_them() {
        let told = serde_json::json!({
            "cpu_stats": { "cpu_usage": { "total_usage": 3_000_u64 }, "system_cpu_usage": 40_000_u64, "online_cpus": 4 },
            "precpu_stats": { "cpu_usage": { "total_usage": 1_000_u64 }, "system_cpu_usage": 20_000_u64, "online_cpus": 4 },
            "memory_stats": { "usage": 1000, "limit": 5000, "stats": { "inactive_file": 300 } },
            "networks": { "eth0": { "rx_bytes": 5, "tx_bytes": 6 }, "eth1": { "rx_bytes": 7, "tx_bytes": 8 } },
            "blkio_stats": { "io_service_bytes_recursive": [
                { "major": 8, "minor": 0, "op": "read", "value": 9 }, { "major": 8, "minor": 0, "op": "Write", "value": 10 },
            ] },
            "pids_stats": { "current": 3 },
        });
        let expected = Stats {
            cpu: 0.4,
            memory: Bytes(700),
            memory_limit: Some(Bytes(5000)),
            received: Some(Bytes(12)),
            sent: Some(Bytes(14)),
            read: Some(Bytes(9)),
            written: Some(Bytes(10)),
            pids: Some(3),
        };
        assert_eq!(stats(&serde_json::from_value(told).unwrap()), expected);
        assert_eq!(stats(&ContainerStatsResponse::default()), Stats::default());
    }
}
