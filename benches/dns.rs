//! DNS beside knotd and dnsmasq: the same names, the same load, one thread each, in the same run.
//! `cargo bench --bench dns`; needs dnsperf, knotd and dnsmasq (Debian: dnsperf, knot, dnsmasq-base). About two minutes.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NEAP: &str = env!("CARGO_BIN_EXE_neap");
const HTTP: u16 = 18_500;
const PORTS: [(&str, u16); 3] = [("neap", 18_600), ("knotd", 18_601), ("dnsmasq", 18_602)];
const SERVICES: usize = 100;
const ROUNDS: usize = 3;
const SECONDS: &str = "5";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

// The three instances of a service.
fn instances(service: usize) -> impl Iterator<Item = (String, u16)> {
    (0..3).map(move |number| (format!("10.{}.{}.{}", service / 250, service % 250, number + 1), 8000 + number))
}

fn main() {
    for (tool, flag) in [("dnsperf", "-h"), ("knotd", "-V"), ("dnsmasq", "-v")] {
        if Command::new(tool).arg(flag).output().is_err() {
            println!("skipped: {tool} is not installed");
            return;
        }
    }
    let folder = std::env::temp_dir().join(format!("neap-bench-dns-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let _servers = [neap(&folder), knotd(&folder), dnsmasq(&folder)];
    std::thread::sleep(Duration::from_secs(1));
    let mut addresses = String::new();
    let mut locations = String::new();
    for service in 0..SERVICES {
        writeln!(addresses, "s{service}.service.consul A").unwrap();
        writeln!(locations, "s{service}.service.consul SRV").unwrap();
    }
    println!("{:<6} {:<10} {:>12} {:>10}", "type", "", "queries/s", "of best");
    for (kind, text) in [("A", addresses), ("SRV", locations)] {
        let file = folder.join(kind);
        std::fs::write(&file, text).unwrap();
        let mut all = PORTS.map(|_| Vec::new());
        // In turn, so that what the machine does besides hits all.
        for _ in 0..ROUNDS {
            for (figures, (_, port)) in all.iter_mut().zip(PORTS) {
                figures.push(dnsperf(port, &file));
            }
        }
        let medians = all.map(|mut figures| {
            figures.sort_by(f64::total_cmp);
            figures[ROUNDS / 2]
        });
        let best = medians[1].max(medians[2]);
        for (figure, (name, _)) in medians.into_iter().zip(PORTS) {
            println!("{kind:<6} {name:<10} {figure:>12.0} {:>10.2}", figure / best);
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
}

fn dnsperf(port: u16, file: &Path) -> f64 {
    let output = Command::new("dnsperf")
        .args(["-s", "127.0.0.1", "-p", &port.to_string(), "-l", SECONDS, "-c", "8", "-T", "1", "-q", "200", "-d"])
        .arg(file)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let of =
        |what: &str| text.lines().find_map(|line| line.trim().strip_prefix(what)).map(str::trim).map(str::to_owned);
    let answered = of("Response codes:").unwrap_or_default();
    assert!(answered.starts_with("NOERROR") && answered.contains("(100.00%)"), "port {port}: {text}");
    of("Queries per second:").unwrap().parse().unwrap()
}

fn neap(folder: &Path) -> Running {
    let data = folder.join("data");
    let running = run(Command::new(NEAP)
        .arg("up")
        .arg("--data")
        .arg(&data)
        .arg("--socket")
        .arg(folder.join("neap.sock"))
        .args(["--engine", "process", "--consul-listen", &format!("127.0.0.1:{HTTP}")])
        .args(["--dns-listen", &format!("127.0.0.1:{}", PORTS[0].1), "--dns-threads", "1"])
        .env("NEAP_CONFIG", folder.join("config.toml")));
    let until = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", HTTP)).is_err() {
        assert!(Instant::now() < until, "the daemon does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    for service in 0..SERVICES {
        for (number, (address, port)) in instances(service).enumerate() {
            let body =
                format!(r#"{{"ID":"s{service}-{number}","Name":"s{service}","Address":"{address}","Port":{port}}}"#);
            let mut stream = TcpStream::connect(("127.0.0.1", HTTP)).unwrap();
            write!(
                stream,
                "PUT /v1/agent/service/register HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    running
}

fn knotd(folder: &Path) -> Running {
    let mut zone =
        "$ORIGIN consul.\n$TTL 0\n@ SOA ns hostmaster 1 3600 600 86400 0\n@ NS ns\nns A 127.0.0.1\n".to_owned();
    for service in 0..SERVICES {
        for (number, (address, port)) in instances(service).enumerate() {
            writeln!(zone, "s{service}.service A {address}\nh{service}-{number}.addr A {address}").unwrap();
            writeln!(zone, "s{service}.service SRV 1 1 {port} h{service}-{number}.addr").unwrap();
        }
    }
    std::fs::write(folder.join("consul.zone"), zone).unwrap();
    let own = folder.display();
    let config = format!(
        "server:\n  rundir: {own}\n  user: root\n  listen: 127.0.0.1@{}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {own}/db\nzone:\n  - domain: consul\n    storage: {own}\n    file: consul.zone\n",
        PORTS[1].1
    );
    std::fs::write(folder.join("knot.conf"), config).unwrap();
    run(Command::new("knotd").arg("-c").arg(folder.join("knot.conf")))
}

fn dnsmasq(folder: &Path) -> Running {
    let mut config = format!(
        "port={}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nauth-ttl=0\nlocal-ttl=0\nlocal=/consul/\n",
        PORTS[2].1
    );
    for service in 0..SERVICES {
        for (number, (address, port)) in instances(service).enumerate() {
            writeln!(config, "host-record=s{service}.service.consul,{address}").unwrap();
            writeln!(config, "host-record=h{service}-{number}.addr.consul,{address}").unwrap();
            writeln!(config, "srv-host=s{service}.service.consul,h{service}-{number}.addr.consul,{port},1,1").unwrap();
        }
    }
    std::fs::write(folder.join("dnsmasq.conf"), config).unwrap();
    run(Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--user=root"])
        .arg(format!("--conf-file={}", folder.join("dnsmasq.conf").display())))
}
