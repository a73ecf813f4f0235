//! What a host and its containers use, measured every few seconds as long as somebody may ask: the host from what its kernel
//! tells below `/proc`, the containers by whoever runs them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::model::stats::{ContainerStats, HostStats, Measured, Pressure};
use crate::model::units::Bytes;
use crate::model::{Error, Kind, Result};

/// How often it is measured, and when for the second time: rates need two.
const EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// Measuring takes at most one part in so many of the time; but it is done at least so often, and given up after so long.
const SHARE: u32 = 10;
const SELDOM: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);
/// A sector, as `/proc/diskstats` counts, whatever the disk's own are.
const SECTOR: u64 = 512;

/// What a source has found.
#[derive(Debug, Default)]
pub struct Found {
    /// How many run.
    pub running: u32,
    /// What they use.
    pub containers: Vec<ContainerStats>,
    /// The folder that holds them.
    pub folder: Option<PathBuf>,
}

/// Who knows the containers, or processes, of a host.
#[async_trait]
pub trait Source: Send {
    /// Counts what they use.
    async fn count(&mut self) -> Result<Found>;
}

/// What was measured, and when.
pub type Reading = (Instant, Arc<Measured>);

/// Measures for as long as it lives.
pub struct Meter {
    now: watch::Receiver<Option<Reading>>,
    task: JoinHandle<()>,
}

impl Meter {
    /// Begins. `host`: whether this program sees the host that the containers are on. Call inside a tokio runtime.
    pub fn spawn(source: impl Source + 'static, host: bool) -> Self {
        let (sender, now) = watch::channel(None);
        let task = tokio::spawn(measure(Box::new(source), host, sender));
        Meter { now, task }
    }

    /// The last measurement, now and as it comes.
    pub fn now(&self) -> watch::Receiver<Option<Reading>> {
        self.now.clone()
    }

    /// The last measurement; none before the second one.
    pub fn last(&self) -> Option<Reading> {
        self.now.borrow().clone()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn measure(mut source: Box<dyn Source>, host: bool, told: watch::Sender<Option<Reading>>) {
    let mut before: Option<Counters> = None;
    let mut wait = EVERY.1;
    let mut silent = false;
    let mut folder: Option<PathBuf> = None;
    loop {
        let begun = Instant::now();
        // A file system may stand still, and so may an engine: neither keeps the other's figures back.
        let at = folder.clone();
        let read = tokio::task::spawn_blocking(move || if host { Counters::read(at.as_deref()) } else { None });
        let (counted, read) =
            tokio::join!(tokio::time::timeout(PATIENCE, source.count()), tokio::time::timeout(PATIENCE, read));
        let late =
            |_| Error::new(Kind::Timeout, "containers", format!("are not counted within {} s", PATIENCE.as_secs()));
        let (found, trouble) = match counted.map_err(late).flatten() {
            Ok(found) => {
                silent = false;
                (found, None)
            }
            Err(error) => {
                if !silent {
                    tracing::debug!(%error, "what containers use is not known");
                    silent = true;
                }
                (Found::default(), Some(error.to_string()))
            }
        };
        let spent = begun.elapsed();
        folder = found.folder.clone().or(folder);
        let now = read.ok().and_then(std::result::Result::ok).flatten();
        if let (Some(before), Some(now)) = (&before, &now) {
            let measured = now.since(before);
            publish(&told, Some(measured), found, trouble);
        } else if !host || before.is_some() {
            publish(&told, None, found, trouble);
        }
        before = now;
        tokio::time::sleep(wait.max((spent * SHARE).min(SELDOM))).await;
        wait = EVERY.0;
    }
}

fn publish(told: &watch::Sender<Option<Reading>>, host: Option<HostStats>, found: Found, trouble: Option<String>) {
    let measured = Measured { host, running: found.running, containers: found.containers, trouble };
    told.send_replace(Some((Instant::now(), Arc::new(measured))));
}

// What only grows, and what is as it is now.
#[derive(Debug, Clone, PartialEq, Default)]
struct Counters {
    at: Option<Instant>,
    // Ticks of all cores: busy, and all.
    busy: u64,
    ticks: u64,
    received: u64,
    sent: u64,
    read: u64,
    written: u64,
    now: HostStats,
}

impl Counters {
    fn read(folder: Option<&Path>) -> Option<Self> {
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).ok();
        let mut counters = Counters { at: Some(Instant::now()), ..Counters::default() };
        counters.take_processors(&file("stat")?);
        counters.take_memory(&file("meminfo")?);
        let network = file("net/dev").unwrap_or_default();
        let hardware = |name: &str| Path::new("/sys/class/net").join(name).join("device").exists();
        (counters.received, counters.sent) = networks(&network, hardware);
        let whole = |name: &str| Path::new("/sys/block").join(name).exists();
        (counters.read, counters.written) = disks(&file("diskstats").unwrap_or_default(), whole);
        let load = file("loadavg").unwrap_or_default();
        counters.now.load = load.split_ascii_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default();
        let pressure = |of: &str| pressure(&file(&format!("pressure/{of}"))?);
        counters.now.pressure =
            (|| Some(Pressure { cpu: pressure("cpu")?, memory: pressure("memory")?, io: pressure("io")? }))();
        if let Some(stat) = folder.and_then(|folder| nix::sys::statvfs::statvfs(folder).ok()) {
            let block = stat.fragment_size();
            let used = stat.blocks().saturating_sub(stat.blocks_free());
            let size = used + stat.blocks_available();
            counters.now.disk = Some(Bytes(used.saturating_mul(block)));
            counters.now.disk_total = Some(Bytes(size.saturating_mul(block)));
        }
        Some(counters)
    }

    // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in user.
    fn take_processors(&mut self, text: &str) {
        let numbers = |line: &str| -> Vec<u64> {
            line.split_ascii_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect()
        };
        for line in text.lines() {
            if line.starts_with("cpu ") {
                let ticks = numbers(line);
                self.ticks = ticks.iter().sum();
                let idle: u64 = ticks.iter().skip(3).take(2).sum();
                self.busy = self.ticks - idle;
            } else if line.starts_with("cpu") {
                self.now.cores += 1;
            }
        }
    }

    fn take_memory(&mut self, text: &str) {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
        };
        let total = field("MemTotal").unwrap_or_default();
        // Older kernels do not tell what could be given up.
        let free = field("MemAvailable").or_else(|| field("MemFree")).unwrap_or_default();
        self.now.memory_total = Bytes(total);
        self.now.memory = Bytes(total.saturating_sub(free));
        let swap = field("SwapTotal").unwrap_or_default();
        self.now.swap = Bytes(swap.saturating_sub(field("SwapFree").unwrap_or_default()));
    }

    fn since(&self, before: &Counters) -> HostStats {
        let seconds = match (self.at, before.at) {
            (Some(now), Some(before)) => (now - before).as_secs_f64(),
            _ => 0.0,
        };
        let rate = |now: u64, before: u64| {
            let grown = now.saturating_sub(before) as f64;
            Bytes(if seconds > 0.0 { (grown / seconds) as u64 } else { 0 })
        };
        let ticks = self.ticks.saturating_sub(before.ticks);
        let busy = self.busy.saturating_sub(before.busy) as f64 * f64::from(self.now.cores);
        HostStats {
            cpu: if ticks > 0 { busy / ticks as f64 } else { 0.0 },
            received: rate(self.received, before.received),
            sent: rate(self.sent, before.sent),
            read: rate(self.read, before.read),
            written: rate(self.written, before.written),
            ..self.now.clone()
        }
    }
}

// Received and sent. What goes over a bridge or to a container is counted where it leaves the host: at its hardware, if any is
// seen, else at whatever is no way inside.
fn networks(text: &str, hardware: impl Fn(&str) -> bool) -> (u64, u64) {
    let lines = text.lines().filter_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        Some((name.trim(), *counts.first()?, *counts.get(8)?))
    });
    let inside =
        |name: &str| ["lo", "veth", "docker", "br-", "vx-", "virbr"].iter().any(|start| name.starts_with(start));
    let outside: Vec<(&str, u64, u64)> = lines.filter(|(name, ..)| !inside(name)).collect();
    let any = outside.iter().any(|(name, ..)| hardware(name));
    let counted = outside.iter().filter(|(name, ..)| !any || hardware(name));
    counted.fold((0, 0), |(received, sent), (_, more, away)| (received + more, sent + away))
}

// Read and written, in bytes, of whole disks: not of their parts, nor of what is made of several.
fn disks(text: &str, whole: impl Fn(&str) -> bool) -> (u64, u64) {
    let made = |name: &str| ["loop", "ram", "dm-", "md", "zram", "sr"].iter().any(|start| name.starts_with(start));
    let mut sum = (0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        if words.get(2).is_some_and(|name| !made(name) && whole(name)) {
            sum = (sum.0 + number(5) * SECTOR, sum.1 + number(9) * SECTOR);
        }
    }
    sum
}

// `some avg10=1.25 avg60=...`: in hundredths.
fn pressure(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let share = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    share.parse::<f64>().ok().map(|share| share / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells() {
        let mut before = Counters { at: Some(Instant::now()), ..Counters::default() };
        before.take_processors(
            "cpu  100 0 100 800 0 0 0 0 50 0\ncpu0 50 0 50 400 0 0 0 0\ncpu1 50 0 50 400 0 0 0 0\nintr 5\n",
        );
        before.take_memory(
            "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable:  600 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n",
        );
        let now = &before.now;
        assert_eq!((now.cores, before.busy, before.ticks), (2, 200, 1000));
        assert_eq!((now.memory.0, now.memory_total.0, now.swap.0), (400 << 10, 1000 << 10, 30 << 10));

        let mut after = Counters { at: before.at.map(|at| at + Duration::from_secs(2)), ..before.clone() };
        after.now.cores = 0;
        after.take_processors("cpu  150 0 100 850 100 0 0 0 99 0\ncpu0 1\ncpu1 1\n");
        (after.received, after.written) = (4096, 10);
        let stats = after.since(&before);
        assert_eq!((stats.cpu, stats.received.0, stats.written.0, stats.sent.0), (0.5, 2048, 5, 0));
        assert_eq!(before.since(&before).cpu, 0.0, "no time at all");
        assert_eq!(before.since(&after).received.0, 0, "counters began anew");
    }

    #[test]
    fn what_leaves_the_host() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0:100 1 0 0 0 0 0 0 200 2\n \
                    bond0: 100 1 0 0 0 0 0 0 200 2\nveth1: 5 0 0 0 0 0 0 0 5 0\ndocker0: 5 0 0 0 0 0 0 0 5 0\n";
        assert_eq!(networks(text, |name| name == "eth0"), (100, 200));
        assert_eq!(networks(text, |_| false), (200, 400), "no hardware is seen");
        assert_eq!(networks("", |_| true), (0, 0));
    }

    #[test]
    fn whole_disks() {
        let text = " 8 0 sda 10 0 4 0 20 0 8 0 0 0 0\n 8 1 sda1 10 0 4 0 20 0 8 0 0 0 0\n 253 0 dm-0 1 0 4 0 2 0 8 0\n 7 0 loop0 1 0 4\n";
        assert_eq!(disks(text, |name| !name.ends_with('1')), (4 * 512, 8 * 512));
        assert_eq!(disks("8 0 sda", |_| true), (0, 0));
    }

    #[test]
    fn pressure_in_parts_of_one() {
        assert_eq!(pressure("some avg10=12.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=1.00\n"), Some(0.125));
        assert_eq!([pressure(""), pressure("some avg10=x")], [None, None]);
    }

    struct Nobody(u32);

    #[async_trait]
    impl Source for Nobody {
        async fn count(&mut self) -> Result<Found> {
            self.0 += 1;
            match self.0 {
                3 => Err(crate::model::Error::invalid("Docker Engine", "is away")),
                _ => Ok(Found { running: self.0, folder: Some("/".into()), ..Found::default() }),
            }
        }
    }

    #[tokio::test]
    async fn a_host_is_measured_again_and_again() {
        let meter = Meter::spawn(Nobody(0), true);
        let mut now = meter.now();
        let mut next = async || now.wait_for(Option::is_some).await.unwrap().clone().unwrap().1;
        let first = next().await;
        let host = first.host.clone().unwrap();
        assert!(host.cores > 0 && host.memory.0 > 0 && host.memory < host.memory_total, "{host:?}");
        assert!(host.cpu <= f64::from(host.cores) && host.disk.unwrap() <= host.disk_total.unwrap(), "{host:?}");
        assert_eq!(first.running, 2, "the second count is the first that has rates");
    }
}
