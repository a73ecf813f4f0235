//! The Lua API as scripts see it: every file of `tests/scripts/api` runs against a daemon of its own and asserts.

use std::process::Command;

#[path = "support/mod.rs"]
mod support;

use support::{Daemon, NEAP, free_port};

fn run(name: &str) {
    let daemon = Daemon::start();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/api");
    let out = Command::new(NEAP)
        .arg("run")
        .arg(folder.join(name))
        .args(["--tag", "v1"])
        .current_dir(daemon.folder.path())
        .env("NEAP_HOST", format!("unix://{}", daemon.socket().display()))
        .env("NEAP_CONFIG", "/dev/null")
        .env("NEAP_PROGRAM", NEAP)
        .env("HTTP_PORT", free_port().to_string())
        .output()
        .unwrap();
    assert!(out.status.success(), "{name}: {}\n{}", String::from_utf8_lossy(&out.stderr), daemon.log());
}

#[test]
fn formats() {
    run("formats.lua");
}

#[test]
fn coroutines() {
    run("coroutines.lua");
}

#[test]
fn time() {
    run("time.lua");
}

#[test]
fn files_environment_commands_arguments() {
    run("local.lua");
}

#[test]
fn http() {
    run("http.lua");
}

#[test]
fn service() {
    run("service.lua");
}

#[test]
fn cluster() {
    run("cluster.lua");
}

#[test]
fn every_file_is_run() {
    let source = include_str!("scripts.rs");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/api");
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!name.ends_with(".lua") || source.contains(&format!("\"{name}\"")), "{name} is not run");
    }
}
