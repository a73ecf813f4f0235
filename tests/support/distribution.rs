//! Debian's registry (docker-registry, distribution) on a port of this host.
#![allow(dead_code, reason = "each user needs its part")]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{eventually, free_port};

/// One; it ends with the value.
pub struct Distribution {
    child: Child,
    pub port: u16,
    pub folder: PathBuf,
}

/// Whether it is installed; in CI it has to be.
pub fn is_there() -> bool {
    let is_there =
        Command::new("docker-registry").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(is_there || std::env::var("CI").as_deref() != Ok("true"), "docker-registry is not installed");
    if !is_there {
        println!("skipped: docker-registry is not installed");
    }
    is_there
}

impl Distribution {
    /// With what is in `folder`; where it `asks`, neap has the password secret, and nobody else is let in.
    pub fn start(folder: &Path, asks: bool) -> Self {
        let port = free_port();
        let at = folder.display();
        let users = "neap:$2b$04$qbJ/MKgCGBDS0aZW6WXVZ.9NzSRc7BLy/O5ddcL4hGtImmsdyIRJ2\n";
        std::fs::write(folder.join("users"), users).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: lab\n    path: {at}/users\n");
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {at}\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            if asks { auth } else { String::new() }
        );
        let file = folder.join("config.yml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let started = Distribution { child, port, folder: folder.to_owned() };
        eventually("docker-registry answers", 20, || TcpStream::connect(("127.0.0.1", port)).ok());
        started
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
