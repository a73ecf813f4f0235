#![allow(dead_code, reason = "each test takes what it needs")]
//! A registry of Debian's, for tests.

use super::lab::Lab;
use super::support::eventually;

/// A registry on the laboratory's bridge that asks for a name and a password.
pub struct Registry {
    child: std::process::Child,
    /// With `users`, and what is pushed.
    pub folder: tempfile::TempDir,
    /// `address:port`.
    pub address: String,
}

impl Registry {
    /// Starts one.
    pub fn start(lab: &Lab) -> Self {
        Self::in_folder(lab, tempfile::tempdir().unwrap())
    }

    /// Where it would be.
    pub fn address(lab: &Lab) -> String {
        format!("{}:5001", lab.host_address())
    }

    /// Starts one with what was pushed before.
    pub fn in_folder(lab: &Lab, folder: tempfile::TempDir) -> Self {
        let address = Self::address(lab);
        // neap, secret (bcrypt, as the registry wants it).
        let users = "neap:$2b$04$qbJ/MKgCGBDS0aZW6WXVZ.9NzSRc7BLy/O5ddcL4hGtImmsdyIRJ2\n";
        std::fs::write(folder.path().join("users"), users).unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\nhttp:\n  addr: {address}\n\
             auth:\n  htpasswd:\n    realm: lab\n    path: {0}/users\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        let child = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        eventually("the registry answers", 20, || std::net::TcpStream::connect(&address).ok());
        Registry { child, folder, address }
    }

    /// Ends it, and keeps what was pushed.
    pub fn end(mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
