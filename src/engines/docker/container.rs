//! What a Docker Engine tells of a container, as what an engine sees of a task.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum, PortBinding, SystemInfo};

use super::spec;
use crate::engines::ObservedState;
use crate::model::clock::Timestamp;
use crate::model::task::{Exit, Health};

/// How its host reaches a container's ports.
pub struct Reach {
    /// By the container's own address.
    pub direct: bool,
    /// The host's address, where ports are opened on it.
    pub host: String,
}

/// What an inspection says, and what could not be done as asked.
pub fn state(inspected: &ContainerInspectResponse, reach: &Reach) -> (ObservedState, Vec<String>) {
    let state = inspected.state.clone().unwrap_or_default();
    let mut warnings = Vec::new();
    if state.oom_killed == Some(true) {
        warnings.push(OUT_OF_MEMORY.to_owned());
    }
    let time = |text: &Option<String>| text.as_deref().and_then(read_time).unwrap_or_default();
    let error = state.error.clone().filter(|error| !error.is_empty());
    let observed = match state.status {
        Some(ContainerStateStatusEnum::CREATED) => match error {
            Some(reason) => ObservedState::Rejected { reason },
            None => ObservedState::Starting,
        },
        Some(
            ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD | ContainerStateStatusEnum::REMOVING,
        ) => {
            let code = i32::try_from(state.exit_code.unwrap_or_default()).unwrap_or(i32::MAX);
            ObservedState::Ended { exit: Exit::Code(code), finished_at: time(&state.finished_at) }
        }
        _ => {
            let (health, said) = match state.health.as_ref().and_then(|health| health.status) {
                Some(HealthStatusEnum::STARTING) => (Health::Starting, None),
                Some(HealthStatusEnum::HEALTHY) => (Health::Healthy, None),
                Some(HealthStatusEnum::UNHEALTHY) => {
                    let log = state.health.as_ref().and_then(|health| health.log.as_ref()?.last());
                    let said = log.and_then(|last| last.output.as_deref()).unwrap_or_default().trim();
                    (
                        Health::Unhealthy,
                        Some(if said.is_empty() { "its image's check failed" } else { said }.to_owned()),
                    )
                }
                _ => (Health::None, None),
            };
            ObservedState::Running {
                pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
                ports: ports(inspected, reach),
                started_at: time(&state.started_at),
                health,
                said,
            }
        }
    };
    (observed, warnings)
}

/// What is said where the kernel ended a replica.
pub const OUT_OF_MEMORY: &str = "ended by the kernel for want of memory";

/// The labels of an inspected container.
pub fn labels(inspected: &ContainerInspectResponse) -> HashMap<String, String> {
    inspected.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default()
}

// `address:port` by port name.
fn ports(inspected: &ContainerInspectResponse, reach: &Reach) -> BTreeMap<String, String> {
    let Some(network) = &inspected.network_settings else { return BTreeMap::new() };
    let mode = inspected.host_config.as_ref().and_then(|config| config.network_mode.as_deref()).unwrap_or_default();
    // The network that it was made in first, then by name: the same address at each look.
    let mut endpoints: Vec<_> = network.networks.iter().flatten().collect();
    endpoints.sort_by_key(|(name, _)| (name.as_str() != mode, name.as_str()));
    let own = endpoints.into_iter().find_map(|(_, endpoint)| {
        let address = endpoint.ip_address.as_deref().filter(|address| !address.is_empty());
        address.map(str::to_owned).or_else(|| {
            let address = endpoint.global_ipv6_address.as_deref().filter(|address| !address.is_empty())?;
            Some(format!("[{address}]"))
        })
    });
    let found = spec::ports_of(&labels(inspected)).into_iter().filter_map(|named| {
        let port = named.target;
        let address = if mode == "host" {
            format!("{}:{port}", reach.host)
        } else if named.host.is_none() && reach.direct {
            format!("{}:{port}", own.as_ref()?)
        } else {
            let bound = network.ports.as_ref()?.get(&format!("{port}/{}", named.protocol.as_str()))?.as_ref()?;
            let is_it = |binding: &&PortBinding| {
                let host = binding.host_port.as_deref().and_then(|port| port.parse::<u16>().ok());
                named.host.is_none_or(|wanted| host == Some(wanted))
            };
            let binding = bound.iter().find(is_it)?;
            // Opened on one address alone, it is reached there.
            let at =
                binding.host_ip.as_deref().filter(|at| named.host.is_some() && !matches!(*at, "" | "0.0.0.0" | "::"));
            let at = at.map(|at| if at.contains(':') { format!("[{at}]") } else { at.to_owned() });
            format!("{}:{}", at.as_deref().unwrap_or(&reach.host), binding.host_port.as_ref()?)
        };
        Some((named.name, named.protocol.told(address)))
    });
    found.collect()
}

/// The engine's own time.
pub fn engine_time(info: &SystemInfo) -> Option<jiff::Timestamp> {
    info.system_time.as_deref().and_then(|time| time.parse().ok())
}

/// The same, as the moment from which its events are asked for.
pub fn since(info: &SystemInfo) -> Option<String> {
    engine_time(info).map(|time| format!("{}.{:09}", time.as_second(), time.subsec_nanosecond()))
}

/// Docker's times (RFC 3339 with nanoseconds); its zero time is none.
pub fn read_time(text: &str) -> Option<Timestamp> {
    let nanos = text.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
    u64::try_from(nanos / 1_000_000).ok().filter(|millis| *millis > 0).map(Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(state: serde_json::Value) -> ContainerInspectResponse {
        serde_json::from_value(serde_json::json!({
            "State": state,
            "Config": { "Labels": { "neap.ports": "admin=9000,http=8080" } },
            "HostConfig": { "NetworkMode": "bridge" },
            "NetworkSettings": {
                "Networks": { "bridge": { "IPAddress": "172.17.0.2" } },
                "Ports": { "8080/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "49153" }] },
            },
        }))
        .unwrap()
    }

    #[test]
    fn ports_by_the_way_in_which_the_host_is_reached() {
        let ports = |direct: bool| {
            let reach = Reach { direct, host: "10.0.0.1".into() };
            match state(&inspected(serde_json::json!({ "Status": "running" })), &reach).0 {
                ObservedState::Running { ports, .. } => format!("{ports:?}"),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ports(true), r#"{"admin": "172.17.0.2:9000", "http": "172.17.0.2:8080"}"#);
        assert_eq!(ports(false), r#"{"http": "10.0.0.1:49153"}"#);
    }

    #[test]
    fn states() {
        let check = |value: serde_json::Value, expected: &str| {
            let reach = Reach { direct: true, host: String::new() };
            let (state, warnings) = state(&inspected(value), &reach);
            assert!(format!("{state:?} {warnings:?}").contains(expected), "{state:?} {warnings:?}");
        };
        check(serde_json::json!({ "Status": "created" }), "Starting");
        check(
            serde_json::json!({ "Status": "created", "Error": "no such file" }),
            "Rejected { reason: \"no such file\"",
        );
        check(
            serde_json::json!({ "Status": "exited", "ExitCode": 3, "FinishedAt": "2026-01-02T03:04:05.678Z" }),
            "Ended { exit: Code(3), finished_at: Timestamp(1767323045678) }",
        );
        check(serde_json::json!({ "Status": "exited", "ExitCode": 137, "OOMKilled": true }), "want of memory");
        let unhealthy = serde_json::json!({ "Status": "unhealthy", "Log": [{ "Output": "no\n" }] });
        check(serde_json::json!({ "Status": "running", "Health": unhealthy }), "health: Unhealthy, said: Some(\"no\")");
        assert_eq!(read_time("0001-01-01T00:00:00Z"), None);
    }
}
