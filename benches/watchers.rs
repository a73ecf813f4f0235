//! Blocking queries: 10,000 instances of 1,000 services, one watcher for each service, 500 changes of health a second. How long a
//! change takes to arrive, from before it is said to when its watcher has read the answer; and that nobody else wakes.
//! `cargo bench --bench watchers`, about a minute.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const PORT: u16 = 18_510;
const SERVICES: usize = 1000;
const INSTANCES: usize = 10;
const RATE: u64 = 500;
const SECONDS: u64 = 10;

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn new() -> Self {
        let stream = TcpStream::connect(("127.0.0.1", PORT)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    /// The answer's index.
    async fn ask(&mut self, method: &str, path: &str, body: &str) -> u64 {
        let request =
            format!("{method} /v1/{path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(request.as_bytes()).await.unwrap();
        self.buffer.clear();
        let head = loop {
            if let Some(at) = self.buffer.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "{path}: it ended");
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_lowercase();
        assert!(text.starts_with("http/1.1 200"), "{path}: {text}");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            line.trim().parse::<u64>().unwrap()
        };
        let (length, index) = (field("content-length:"), field("x-consul-index:"));
        while self.buffer.len() < head + usize::try_from(length).unwrap() {
            assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "{path}: it ended");
        }
        index
    }
}

fn main() {
    let folder = std::env::temp_dir().join(format!("neap-bench-watchers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut daemon = std::process::Command::new(NEAP)
        .args(["up", "--log", "error", "--engine", "process", "--dns-listen", "none", "--consul-listen"])
        .arg(format!("127.0.0.1:{PORT}"))
        .arg("--data")
        .arg(folder.join("data"))
        .arg("--socket")
        .arg(folder.join("s"))
        .env("NEAP_CONFIG", "/dev/null")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", PORT)).is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(measure());
    let _ = daemon.kill();
    let _ = daemon.wait();
    let _ = std::fs::remove_dir_all(&folder);
}

async fn measure() {
    let began = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let fill = (0..64).map(|_| {
        let next = next.clone();
        tokio::spawn(async move {
            let mut client = Client::new().await;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= SERVICES * INSTANCES {
                    return;
                }
                let (service, instance) = (number / INSTANCES, number % INSTANCES);
                let check = if instance == 0 { r#","Check":{"TTL":"24h","Status":"passing"}"# } else { "" };
                let body = format!(
                    r#"{{"Name":"s{service}","ID":"s{service}-{instance}","Address":"10.{}.{}.{instance}","Port":80,"Tags":["v1"]{check}}}"#,
                    service / 250,
                    service % 250
                );
                client.ask("PUT", "agent/service/register", &body).await;
            }
        })
    });
    for task in fill.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let rate = (SERVICES * INSTANCES) as f64 / began.elapsed().as_secs_f64();
    println!("{} instances registered, {rate:.0} a second, each durable", SERVICES * INSTANCES);

    let zero = Instant::now();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..SERVICES).map(|_| AtomicU64::new(0)).collect());
    let (arrived, wakes, ready) =
        (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    for service in 0..SERVICES {
        let (sent, arrived, wakes, ready) = (sent.clone(), arrived.clone(), wakes.clone(), ready.clone());
        tokio::spawn(async move {
            let mut client = Client::new().await;
            let path = format!("health/service/s{service}");
            let mut index = client.ask("GET", &path, "").await;
            ready.fetch_add(1, Ordering::SeqCst);
            loop {
                let now = client.ask("GET", &format!("{path}?index={index}&wait=120s"), "").await;
                wakes.fetch_add(1, Ordering::Relaxed);
                if now != index {
                    index = now;
                    let at = sent[service].load(Ordering::SeqCst);
                    arrived.lock().unwrap().push(zero.elapsed().as_micros() as u64 - at);
                }
            }
        });
    }
    while ready.load(Ordering::SeqCst) < SERVICES {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut client = Client::new().await;
    let began = tokio::time::Instant::now();
    let count = RATE * SECONDS;
    for number in 0..count {
        tokio::time::sleep_until(began + Duration::from_micros(1_000_000 / RATE * number)).await;
        let service = usize::try_from(number * 7919 % SERVICES as u64).unwrap();
        let word = if (number / SERVICES as u64).is_multiple_of(2) { "fail" } else { "pass" };
        sent[service].store(zero.elapsed().as_micros() as u64, Ordering::SeqCst);
        client.ask("PUT", &format!("agent/check/{word}/service:s{service}-0"), "").await;
    }
    let took = began.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut all = arrived.lock().unwrap().clone();
    all.sort_unstable();
    let of = |share: f64| all[((all.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "{count} changes in {took:.1} s, {SERVICES} watchers: {} arrived, {} woke",
        all.len(),
        wakes.load(Ordering::SeqCst)
    );
    println!("arrival: median {:.2} ms, p99 {:.2} ms, latest {:.2} ms", of(0.5), of(0.99), of(1.0));
}
