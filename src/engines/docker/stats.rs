//! What containers use, as their Docker Engine counts it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{ContainerCpuStats, ContainerMemoryStats, ContainerStatsResponse, ContainerSummary};
use bollard::query_parameters::{ListContainersOptions, StatsOptions};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;

use super::spec::TASK;
use super::{Address, trouble};
use crate::engines::meter::{Found, Source};
use crate::model::Result;
use crate::model::id::TaskId;
use crate::model::stats::{ContainerStats, Stats};
use crate::model::units::Bytes;

/// So many containers are asked about at once, whoever asks: an engine counts for a second before it answers.
const AT_ONCE: usize = 64;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often one is asked that breaks off without an answer.
const ATTEMPTS: usize = 2;

/// So many are asked about at once by the meter, which is in no hurry.
const MEASURED: usize = 8;
/// The most containers of one host that are told of.
const TOLD: usize = 4096;

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

/// All containers of a Docker Engine, for a meter: it is asked for counts alone, and what was counted before is kept here, so
/// that nobody waits a second for each.
pub struct Containers {
    address: Address,
    connected: Option<(Docker, Option<PathBuf>)>,
    // Time on a core in nanoseconds, and when that was counted.
    before: HashMap<String, (u64, Instant)>,
}

impl Containers {
    /// Those of the engine at this address.
    pub fn of(address: Address) -> Self {
        Containers { address, connected: None, before: HashMap::new() }
    }

    async fn connect(&mut self) -> Result<Docker> {
        if let Some((docker, _)) = &self.connected {
            return Ok(docker.clone());
        }
        let failed = |act: &str, error| trouble::error(format!("Docker Engine {}", self.address.url), act, &error);
        let docker = self.address.client().await?.negotiate_version().await.map_err(|e| failed("connect to it", e))?;
        let info = docker.info().await.map_err(|error| failed("ask it", error))?;
        self.connected = Some((docker.clone(), info.docker_root_dir.map(PathBuf::from)));
        Ok(docker)
    }
}

#[async_trait]
impl Source for Containers {
    async fn count(&mut self) -> Result<Found> {
        let docker = self.connect().await?;
        let listed = docker.list_containers(None::<ListContainersOptions>).await;
        let listed = listed.map_err(|error| {
            self.connected = None;
            trouble::error("containers", "list them", &error)
        })?;
        let running = u32::try_from(listed.len()).unwrap_or(u32::MAX);
        let there: HashSet<String> = listed.iter().filter_map(|summary| summary.id.clone()).collect();
        let ask = |summary: ContainerSummary| {
            let docker = docker.clone();
            async move {
                let id = summary.id.clone()?;
                let options = StatsOptions { stream: false, one_shot: true };
                let mut told = Box::pin(docker.stats(&id, Some(options)));
                let told = tokio::time::timeout(PATIENCE, told.next()).await.ok()??.ok()?;
                Some((id, summary, told, Instant::now()))
            }
        };
        let mut counted = stream::iter(listed.into_iter().take(TOLD).map(ask)).buffer_unordered(MEASURED);
        let (mut now, mut containers) = (HashMap::new(), Vec::new());
        while let Some(one) = counted.next().await {
            let Some((id, summary, told, at)) = one else { continue };
            let total = told.cpu_stats.as_ref().and_then(|stats| stats.cpu_usage.as_ref()?.total_usage);
            let total = total.unwrap_or_default();
            if let Some((before, since)) = self.before.get(&id) {
                let span = (at - *since).as_nanos().max(1) as f64;
                let cpu = total.saturating_sub(*before) as f64 / span;
                containers.push(described(&id, summary, Stats { cpu, ..stats(&told) }));
            }
            now.insert(id, (total, at));
        }
        drop(counted);
        // One that did not answer in time is counted from where it was.
        self.before.retain(|id, _| there.contains(id));
        self.before.extend(now);
        containers.sort_by(|a, b| (&a.name, &a.container).cmp(&(&b.name, &b.container)));
        let folder = self.connected.as_ref().and_then(|(_, folder)| folder.clone());
        Ok(Found { running, containers, folder })
    }
}

fn described(id: &str, summary: ContainerSummary, stats: Stats) -> ContainerStats {
    let name = summary.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    ContainerStats {
        name: name.trim_start_matches('/').to_owned(),
        container: id.chars().take(12).collect(),
        image: summary.image.unwrap_or_default(),
        id: summary.labels.unwrap_or_default().get(TASK).and_then(|task| task.parse().ok()),
        task: None,
        stats,
    }
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
