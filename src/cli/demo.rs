//! `neap demo`.

use std::net::IpAddr;

use crate::demo::{self, Options};
use crate::model::Result;
use crate::model::units::{Bytes, Duration};

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Version that it answers
    #[arg(long, env = "VERSION", default_value = "v1")]
    answer: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port to listen on
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Port of UDP, where each datagram is answered by one
    #[arg(long, env = "PORT_UDP")]
    udp_port: Option<u16>,
    /// Take this long to start
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    start_delay: Duration,
    /// Fail /healthz from the start
    #[arg(long)]
    fail_check: bool,
    /// Fail /healthz after this long
    #[arg(long, value_name = "DURATION")]
    fail_check_after: Option<Duration>,
    /// Take this long for each answer
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    slow: Duration,
    /// Lose this much memory with each answer
    #[arg(long, default_value = "0", value_name = "SIZE")]
    leak: Bytes,
    /// Crash after this long
    #[arg(long, value_name = "DURATION")]
    crash_after: Option<Duration>,
    /// Exit code of a crash
    #[arg(long, default_value_t = 1)]
    exit_code: u8,
    /// Write a line this often
    #[arg(long, value_name = "DURATION")]
    log_every: Option<Duration>,
}

/// Runs the application.
pub async fn main(args: Args) -> Result<u8> {
    demo::run(Options {
        version: args.answer,
        address: args.address,
        port: args.port,
        udp_port: args.udp_port,
        start_delay: args.start_delay.std(),
        fail_check: args.fail_check,
        fail_check_after: args.fail_check_after.map(Duration::std),
        slow: args.slow.std(),
        leak: usize::try_from(args.leak.0).unwrap_or(usize::MAX),
        crash_after: args.crash_after.map(Duration::std),
        exit_code: args.exit_code,
        log_every: args.log_every.map(Duration::std),
    })
    .await
}
