//! `neap route`.

use clap::Subcommand;

use super::output::{self, FormatArg};
use crate::client::remote::RemoteCluster;
use crate::client::routes::RouteInfo;
use crate::client::{Cluster, show};
use crate::model::name::Name;
use crate::model::route::{ProxyVersion, RouteProtocol, RouteShare, RouteSpec, RouteTls};
use crate::model::units::{Bytes, Duration};
use crate::model::{Error, Result};

/// Subcommands of `neap route`.
#[derive(Subcommand)]
pub enum Command {
    /// List routes with what has gone by each
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show routes whole, as JSON
    Inspect {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Set a route that stands for itself: neap route set shop shop.example.com --to shop=95 --to shop-next=5
    Set(Box<SetArgs>),
    /// Remove routes that stand for themselves
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What a route is described by.
#[derive(clap::Args)]
pub struct SetArgs {
    /// Its name
    name: String,
    /// What is asked for: HOST[:PORT][/PATH]; * for any host
    url: String,
    /// The address to listen on [default: all interfaces]
    #[arg(long)]
    address: Option<std::net::IpAddr>,
    /// A service that answers; with =WEIGHT its share beside others, with :PORT its port's name
    #[arg(long, value_name = "SERVICE[:PORT][=WEIGHT]")]
    to: Vec<String>,
    /// Redirect instead: https, or a URL
    #[arg(long, value_name = "URL", conflicts_with = "to")]
    redirect: Option<String>,
    /// A Lua file that chooses among the services for each request: return function(request) ... end
    #[arg(long, value_name = "FILE", conflicts_with = "redirect")]
    choose: Option<std::path::PathBuf>,
    /// End TLS with this certificate (PEM): a file on the daemon's host, or secret:NAME
    #[arg(long, value_name = "PLACE", requires = "tls_key")]
    tls_certificate: Option<String>,
    /// Its key (PEM): likewise
    #[arg(long, value_name = "PLACE", requires = "tls_certificate")]
    tls_key: Option<String>,
    /// Let TLS through to the service as it is, by the name that is asked for (SNI)
    #[arg(long, conflicts_with = "tls_certificate")]
    passthrough: bool,
    /// Which of several routes that fit is taken: the highest
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Take the path off before the request goes on
    #[arg(long)]
    strip_path: bool,
    /// What the service speaks
    #[arg(long, value_enum, default_value_t = Speaks::Http)]
    protocol: Speaks,
    /// round_robin, least_connections, power_of_two, hash:ip, hash:path, hash:header:NAME or hash:cookie:NAME
    #[arg(long, default_value = "round_robin")]
    balance: String,
    /// Bring a client to the same replica each time, by a cookie of this name
    #[arg(long, value_name = "COOKIE")]
    sticky: Option<String>,
    /// How often a request is tried elsewhere that can be repeated [default: 2]
    #[arg(long)]
    retries: Option<u32>,
    /// How long a replica has to begin its answer [default: 60s]
    #[arg(long)]
    timeout: Option<Duration>,
    /// Largest body of a request, such as 10MiB
    #[arg(long)]
    max_body: Option<Bytes>,
    /// Send a line for each request there, as GELF over UDP: 10.0.0.5:12201
    #[arg(long, value_name = "ADDRESS:PORT")]
    access_log: Option<std::net::SocketAddr>,
    /// Take the client's address from the PROXY protocol, which every connection then has to begin with
    #[arg(long)]
    accept_proxy: bool,
    /// Begin connections to the service with the PROXY protocol
    #[arg(long, value_enum)]
    send_proxy: Option<Proxy>,
    /// A proxy in front of the balancer whose word on the client is believed: an address, or a network such as 10.0.0.0/8
    #[arg(long, value_name = "CIDR")]
    trusted_proxy: Vec<String>,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Speaks {
    /// HTTP/1.1
    Http,
    /// HTTP/2 without TLS
    H2c,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Proxy {
    /// A line of text
    V1,
    /// Bytes
    V2,
}

fn share(text: &str) -> Result<RouteShare> {
    let wrong = |why: &str| Error::invalid(format!("--to {text:.80?}"), why).help("write shop, shop:http or shop=95");
    let (place, weight) = match text.split_once('=') {
        Some((place, weight)) => (place, weight.parse().map_err(|_| wrong("has a weight that is no number"))?),
        None => (text, 100),
    };
    let (service, port) = match place.split_once(':') {
        Some((service, port)) => (service, Some(port.to_owned())),
        None => (place, None),
    };
    let service: Name = service.parse().map_err(|error: Error| wrong(&error.message))?;
    Ok(RouteShare { service, port, weight })
}

fn described(args: SetArgs) -> Result<(Name, RouteSpec)> {
    let name: Name = args.name.parse()?;
    let tls = args.tls_certificate.zip(args.tls_key).map(|(certificate, key)| RouteTls { certificate, key });
    // The scheme follows from the certificate.
    let url = if tls.is_some() || args.passthrough { args.url.trim_start_matches("https://") } else { &args.url };
    let choose = args.choose.map(|file| {
        std::fs::read_to_string(&file).map_err(|error| Error::io(file.display().to_string(), "read", &error))
    });
    let choose = choose.transpose()?;
    let spec = RouteSpec {
        tls,
        passthrough: args.passthrough,
        address: args.address,
        to: args.to.iter().map(|text| share(text)).collect::<Result<_>>()?,
        redirect: args.redirect,
        choose,
        priority: args.priority,
        strip_path: args.strip_path,
        protocol: match args.protocol {
            Speaks::Http => RouteProtocol::Http,
            Speaks::H2c => RouteProtocol::H2c,
        },
        balance: args.balance.parse()?,
        sticky: args.sticky,
        retries: args.retries,
        timeout: args.timeout,
        max_body: args.max_body,
        access_log: args.access_log,
        accept_proxy: args.accept_proxy,
        send_proxy: args.send_proxy.map(|version| match version {
            Proxy::V1 => ProxyVersion::V1,
            Proxy::V2 => ProxyVersion::V2,
        }),
        trusted_proxies: args.trusted_proxy,
        ..url.parse()?
    };
    spec.validate_alone(&name)?;
    Ok((name, spec))
}

/// Runs a subcommand.
pub async fn run(command: Command, cluster: &RemoteCluster) -> Result<()> {
    match command {
        Command::Ls { format, quiet } => {
            let all = cluster.routes().await?;
            if quiet {
                return all.iter().try_for_each(|route| output::line(&route.name));
            }
            output::print(format.format, &all, || show::routes(&all))
        }
        Command::Inspect { names } => {
            let all = cluster.routes().await?;
            let find = |name: &String| {
                let hint = crate::model::suggest::hint(name, all.iter().map(|route| route.name.as_str()));
                let missing =
                    || Error::not_found(format!("route {name:.70?}")).help(format!("`neap route ls` lists them{hint}"));
                all.iter().find(|route| route.name == *name).cloned().ok_or_else(missing)
            };
            let found: Result<Vec<RouteInfo>> = names.iter().map(find).collect();
            output::print(output::Format::Json, &found?, String::new)
        }
        Command::Set(args) => {
            let (name, spec) = described(*args)?;
            let set = cluster.set_route(&name, spec).await?;
            if let Some(problem) = &set.problem {
                output::warn(format!("it is set, and not followed yet: {problem}"));
            }
            output::line(&format!("{} {}", set.name, set.url))
        }
        Command::Rm { names } => {
            output::each(names, async |name| {
                cluster.remove_route(&name).await?;
                output::line(&name)
            })
            .await
        }
    }
}
