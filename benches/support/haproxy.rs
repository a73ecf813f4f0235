//! haproxy as the peer, and a balancer's process that is asked without a daemon.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends with what it was started for.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One thread of it, with these sections.
pub fn haproxy(folder: &Path, name: &str, sections: &str) -> Running {
    let config = folder.join(format!("{name}.cfg"));
    let head =
        "global\n nbthread 1\n maxconn 4000\ndefaults\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n";
    std::fs::write(&config, format!("{head}{sections}")).unwrap();
    Running(Command::new("haproxy").arg("-db").arg("-f").arg(&config).stderr(Stdio::null()).spawn().unwrap())
}

/// The answer of the balancer in a folder to a line.
pub fn ask(folder: &Path, line: &str) -> String {
    let stream = loop {
        match std::os::unix::net::UnixStream::connect(folder.join("balancer.sock")) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    writeln!(&stream, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    answer
}
