//! A registry that laptops and CI reach by its name.

#[path = "support/mod.rs"]
mod support;

use std::process::{Command, Output, Stdio};

use support::{eventually, free_port};

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn has_skopeo() -> bool {
    let is_there = Command::new("skopeo").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(is_there || std::env::var("CI").as_deref() != Ok("true"), "skopeo is not installed");
    if !is_there {
        println!("skipped: skopeo is not installed");
    }
    is_there
}

// By its name alone: a certificate is made, and hosts' own engines need none.
#[test]
fn a_registry_with_a_name_has_a_certificate_for_it() {
    if !has_skopeo() {
        return;
    }
    let port = free_port();
    let mut daemon = support::Daemon::new();
    let name = format!("localhost:{port}");
    daemon.env.push(("NEAP_REGISTRY_NAME".into(), name.clone()));
    // Its own port would be 5000, which may be somebody's here.
    daemon.env.push(("NEAP_REGISTRY_LISTEN".into(), format!("127.0.0.1:{},0.0.0.0:{port}", free_port())));
    daemon.up();
    let folder = tempfile::tempdir().unwrap();
    let ca = daemon.ok(&["registry", "ca"]);
    std::fs::write(folder.path().join("ca.crt"), &ca).unwrap();
    let file = folder.path().join("ca.lua");
    std::fs::write(&file, "print(registry.ca())").unwrap();
    assert_eq!(daemon.ok(&["run", file.to_str().unwrap()]).trim(), ca.trim());
    let token = daemon.ok(&["token", "create", "laptop"]).trim().to_owned();
    let (certs, creds) = (folder.path().display().to_string(), format!("me:{token}"));
    eventually("the registry answers", 20, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    std::fs::write(folder.path().join("note"), "note").unwrap();
    daemon.ok(&["registry", "build", "note:1", "--copy", &format!("{certs}/note:/note")]);
    let from = format!("docker://{name}/note:1");
    let seen = run("skopeo", &["inspect", "--cert-dir", &certs, "--creds", &creds, &from]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains(&format!("{name}/note")), "{seen}");
    let refused = run("skopeo", &["inspect", "--creds", &creds, &from]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("certificate"), "{refused:?}");
    // The next daemon shows the same.
    daemon.stop();
    daemon.up();
    assert_eq!(daemon.ok(&["registry", "ca"]), ca);
    daemon.stop();
    // Under another name, and at all addresses: who is on this host needs neither token nor TLS.
    daemon.env.retain(|(variable, _)| !variable.starts_with("NEAP_REGISTRY"));
    daemon.env.push(("NEAP_REGISTRY_NAME".into(), "registry.corp".into()));
    daemon.env.push(("NEAP_REGISTRY_LISTEN".into(), format!("0.0.0.0:{port}")));
    daemon.up();
    let get = || support::get(port, "/v2/note/tags/list").ok().filter(|(status, _)| *status == 200);
    let (_, tags) = eventually("the registry answers on the loopback", 20, get);
    assert!(tags.contains(r#""tags":["1"]"#), "{tags}");
    let address = daemon_address();
    let shown = run(
        "curl",
        &[
            "-s",
            "-m",
            "5",
            "-w",
            "%{http_code}",
            "--cacert",
            &format!("{certs}/ca.crt"),
            "--connect-to",
            &format!("registry.corp:5000:{address}:{port}"),
            "https://registry.corp:5000/v2/note/tags/list",
        ],
    );
    assert!(String::from_utf8_lossy(&shown.stdout).ends_with("401"), "{shown:?}");
    // Without a name nothing is made, and it is said how it would be.
    daemon.stop();
    daemon.env.retain(|(variable, _)| variable != "NEAP_REGISTRY_NAME");
    daemon.up();
    let (_, said) = daemon.fails(&["registry", "ca"]);
    assert!(said.contains("--registry-name"), "{said}");
}

// An address of this machine that is not its loopback.
fn daemon_address() -> std::net::IpAddr {
    let found = nix::ifaddrs::getifaddrs().unwrap().filter_map(|one| {
        let address = one.address?;
        let ip = address.as_sockaddr_in().map(|ip| std::net::IpAddr::from(ip.ip()));
        ip.filter(|ip| !ip.is_loopback())
    });
    found.into_iter().next().expect("this machine has an address")
}
