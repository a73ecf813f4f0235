//! Floor 7, roof: the command line, one file a subcommand group. It knows `trait Cluster` and nothing behind it.

mod build;
mod catalog;
mod cluster;
mod completion;
mod context;
mod cron;
mod demo;
mod discovery;
mod docker;
mod events;
mod filter;
mod host;
mod image_registry;
mod images;
mod kv;
mod look;
mod moves;
mod native;
mod node;
mod object;
mod output;
mod port;
mod progress;
mod registry;
mod repl;
mod route;
mod run;
mod script;
mod service;
mod spec;
mod stack;
mod stats;
mod store;
mod swarm;
mod test;
mod token;
mod uninstall;
mod up;
mod value;

use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::client::remote::RemoteCluster;
use crate::client::wire::Endpoint;
use crate::daemon::config::{self, Config};
use crate::model::{Error, Result};

/// Neap: a scripting platform for container clusters. Scripts decide, Rust acts.
#[derive(Parser)]
#[command(
    name = "neap",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 script error, 4 not found, 5 conflict, 6 timeout, 7 nobody answers, 8 not allowed, 130 or 143 ended by a signal."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command. What the environment says is read here: as clap's own it would stand in every line of usage
/// as if it were required.
#[derive(clap::Args)]
struct Global {
    /// Daemon to talk to: unix:///path, tcp://host:port, or a context's name [env: NEAP_HOST]
    #[arg(long, short = 'H', value_name = "HOST")]
    host: Option<String>,
    /// Configuration file [env: NEAP_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Up(Box<up::Args>),
    /// Make a cluster of this host: a Swarm, and the daemon beside it
    Init(host::InitArgs),
    /// Let this host join a cluster: its Swarm, and the agent (or, as a manager, the daemon) beside it
    Join(host::JoinArgs),
    /// Let this host leave its cluster
    Leave(host::LeaveArgs),
    /// Give services back to the Swarm, remove what Neap made here, and say what stays
    Uninstall(uninstall::Args),
    /// The cluster as a whole: agents on all its workers
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Print how a host joins as a worker or a manager
    JoinToken(host::TokenArgs),
    /// Show the certificate of the Swarm's authority, or make it anew
    Ca(swarm::CaArgs),
    /// Unlock this host's manager of a locked Swarm; the key comes from standard input
    Unlock(swarm::UnlockArgs),
    /// Show the key of a locked Swarm's managers, or make it anew
    UnlockKey(swarm::UnlockKeyArgs),
    /// Lock the Swarm's managers, so that one that starts again waits for the key
    Autolock(swarm::AutolockArgs),
    /// Run the agent of a host that has joined (started by `neap join`)
    Agent(Box<host::AgentArgs>),
    /// Run a Lua script
    Run(run::Args),
    /// Test scripts on a cluster in memory
    Test(test::Args),
    /// Look around and repair by hand: a Lua prompt on the cluster
    Repl(repl::Args),
    /// Manage services
    #[command(subcommand)]
    Service(service::Command),
    /// Manage nodes
    #[command(subcommand)]
    Node(node::Command),
    /// Compose files, and the services that belong together
    #[command(subcommand)]
    Stack(stack::Command),
    /// Networks that services are attached to
    #[command(subcommand)]
    Network(object::NetworkCommand),
    /// Routes of HTTP requests to services, by host and path
    #[command(subcommand)]
    Route(route::Command),
    /// Ports that the balancers listen on
    #[command(subcommand)]
    Port(port::Command),
    /// Volumes of the nodes
    #[command(subcommand)]
    Volume(object::VolumeCommand),
    /// The cluster's image registry: images, rules, copies of other registries; and what those are told when images are pulled
    #[command(subcommand)]
    Registry(registry::Command),
    /// Manage hosted scripts: policies, checks, rollouts, cron scripts, handlers of events
    #[command(subcommand)]
    Script(script::Command),
    /// Look at cron scripts, run them, hold them back
    #[command(subcommand)]
    Cron(cron::Command),
    /// Who serves what where: services with their instances, registered or run here
    #[command(subcommand)]
    Catalog(catalog::Command),
    /// Keys and values
    #[command(subcommand)]
    Kv(kv::Command),
    /// Secrets for services; never shown
    #[command(subcommand)]
    Secret(value::SecretCommand),
    /// Configs for services: files that replicas read
    #[command(subcommand)]
    Config(value::ConfigCommand),
    /// Print what happens
    Events(events::Args),
    /// Manage named daemons elsewhere
    #[command(subcommand)]
    Context(context::Command),
    /// Manage tokens for the control API over TCP
    #[command(subcommand)]
    Token(token::Command),
    /// A small HTTP application for examples and tests
    Demo(demo::Args),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Where desired state is
    #[command(subcommand)]
    Store(store::Command),
    /// Print the version, and the daemon's if one answers
    Version(output::FormatArg),
    /// Keeps one replica of the process engine (started by the daemon)
    #[command(hide = true)]
    Keeper { folder: PathBuf },
    /// Forwards published ports (started by the daemon)
    #[command(hide = true)]
    Balancer {
        folder: PathBuf,
        #[arg(long)]
        lifeline: bool,
        /// Threads that serve HTTP; as many as there are cores, four at most, where it is not given
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Cleans up after a standalone run (started by it)
    #[command(hide = true)]
    Sweep { folder: PathBuf },
}

impl Global {
    fn config_path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(config::default_path)
    }

    fn load(&self) -> Result<Config> {
        Config::load(&self.config_path())
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let named = || std::env::var("NEAP_HOST").ok().filter(|host| !host.is_empty());
        self.load()?.endpoint(self.host.clone().or_else(named).as_deref())
    }

    fn cluster(&self) -> Result<RemoteCluster> {
        Ok(RemoteCluster::new(self.endpoint()?))
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    // Keepers are many and small: they pass by everything that they do not need.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "keeper")
        && let Some(folder) = words.next()
    {
        return ExitCode::from(crate::engines::process::keeper::main(folder.as_ref()));
    }
    let cli = docker::parse();
    let result = dispatch(cli);
    match result {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let global = cli.global;
    let done = |()| ExitCode::SUCCESS;
    match cli.command {
        Command::Keeper { folder } => Ok(ExitCode::from(crate::engines::process::keeper::main(&folder))),
        Command::Balancer { folder, lifeline, threads } => {
            let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4));
            let hooks = crate::script::choose::Choosers::shared();
            crate::network::balancer::main(&folder, lifeline, threads.unwrap_or_else(cores), hooks)
                .map_err(|error| Error::io("balancer", "run", &error))
                .map(done)
        }
        Command::Sweep { folder } => {
            crate::daemon::sweep(&folder);
            Ok(ExitCode::SUCCESS)
        }
        Command::Completion(args) => {
            completion::print(&args, &mut Cli::command());
            Ok(ExitCode::SUCCESS)
        }
        Command::Up(args) => threaded(up::main(&args, global.load()?)).map(done),
        Command::Init(args) => single(host::init(&args, global.load()?)).map(done),
        Command::Join(args) => single(host::join(&args, global.load()?)).map(done),
        Command::Leave(args) => single(host::leave(&args, global.load()?)).map(done),
        Command::Uninstall(args) => single(uninstall::main(&args, global.load()?)).map(done),
        Command::JoinToken(args) => single(host::join_token(&args, &global.cluster()?)).map(done),
        Command::Ca(args) => single(swarm::ca(&args, &global.cluster()?)).map(done),
        Command::Unlock(args) => single(swarm::unlock(&args)).map(done),
        Command::UnlockKey(args) => single(swarm::unlock_key(&args, &global.cluster()?)).map(done),
        Command::Autolock(args) => single(swarm::autolock(&args, &global.cluster()?)).map(done),
        Command::Agent(args) => threaded(host::agent(&args, global.load()?)).map(done),
        Command::Run(args) => run::main(&args, &global).map(done),
        Command::Test(args) => test::main(&args).map(done),
        Command::Repl(args) => repl::main(&args, &global).map(done),
        Command::Demo(args) => single(demo::main(args)).map(ExitCode::from),
        Command::Service(command) => single(service::main(command, &global.cluster()?)).map(done),
        Command::Cluster(command) => single(cluster::main(command, &global.cluster()?)).map(done),
        Command::Node(command) => single(node::main(command, &global.cluster()?)).map(done),
        Command::Stack(command) => single(stack::main(command, || global.cluster())).map(done),
        Command::Network(command) => single(object::network(command, &global.cluster()?)).map(done),
        Command::Port(command) => single(port::run(command, &global.cluster()?)).map(done),
        Command::Route(command) => single(route::run(command, &global.cluster()?)).map(done),
        Command::Volume(command) => single(object::volume(command, &global.cluster()?)).map(done),
        Command::Registry(command) => single(registry::main(command, &global.cluster()?)).map(done),
        Command::Script(command) => single(script::main(command, || global.cluster())).map(done),
        Command::Cron(command) => single(cron::main(command, &global.cluster()?)).map(done),
        Command::Catalog(command) => single(catalog::main(command, &global.cluster()?)).map(done),
        Command::Kv(command) => single(kv::main(command, &global.cluster()?)).map(done),
        Command::Secret(command) => single(value::secret(command, &global.cluster()?)).map(done),
        Command::Config(command) => single(value::config(command, &global.cluster()?)).map(done),
        Command::Events(args) => single(events::main(args, || global.cluster())).map(done),
        Command::Store(command) => single(store::main(command, global.load()?)).map(done),
        Command::Token(command) => single(token::main(command, &global.cluster()?)).map(done),
        Command::Context(command) => context::main(command, &global.config_path()).map(done),
        Command::Version(args) => single(output::version(&args, &global)).map(done),
    }
}

fn single<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    block(&mut tokio::runtime::Builder::new_current_thread(), pin!(work))
}

fn threaded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    // Two are enough for what is nearly all waiting; decisions and scripts have threads of their own.
    block(tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(16), pin!(work))
}

// One runtime's code for all commands, and not once for each.
fn block<T>(runtime: &mut tokio::runtime::Builder, work: Pin<&mut dyn Future<Output = Result<T>>>) -> Result<T> {
    let runtime = runtime.enable_all().build();
    runtime.map_err(|error| Error::io("runtime", "start it", &error))?.block_on(work)
}

#[cfg(test)]
mod tests {
    #[test]
    fn flags_are_consistent() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
