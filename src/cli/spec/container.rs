//! The flags that only containers have.

use serde_json::{Map, Value, json};

use super::words::words;
use super::{set, table};
use crate::model::container::NetworkUse;
use crate::model::internal::Internal;
use crate::model::mount::Mount;
use crate::model::{Error, Result};

/// Flags under Docker's names.
#[derive(clap::Args, Default)]
pub struct ContainerArgs {
    /// Container image, for engines that run containers
    #[arg(long)]
    image: Option<String>,
    /// When the image is pulled
    #[arg(long, value_parser = ["missing", "always", "never"])]
    pull: Option<String>,
    /// Platform of the image, where it has several: linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// What is run instead of the image's entry point; a text is split at spaces
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Mount a volume, a path of the host, or memory: type=volume,source=NAME,target=/PATH
    #[arg(long, short = 'v', visible_aliases = ["mount-add", "volume"], value_name = "MOUNT")]
    mount: Vec<String>,
    /// Remove a mount by its target (update)
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Attach to a network: NAME, or name=NAME,alias=OTHER
    #[arg(long, visible_alias = "network-add", value_name = "NETWORK")]
    network: Vec<String>,
    /// Detach from a network (update)
    #[arg(long, value_name = "NAME")]
    network_rm: Vec<String>,
    /// How the service's name is reached inside the cluster: dnsrr, each replica; or vip, an address of its own at the balancers
    #[arg(long, value_name = "MODE")]
    endpoint_mode: Option<Internal>,
    /// Host name of containers
    #[arg(long)]
    hostname: Option<String>,
    /// Add a name to the hosts file
    #[arg(long, visible_aliases = ["host-add", "add-host"], value_name = "HOST:IP")]
    host: Vec<String>,
    /// Remove a name from the hosts file (update)
    #[arg(long, value_name = "HOST")]
    host_rm: Vec<String>,
    /// Name server
    #[arg(long, visible_alias = "dns-add", value_name = "IP")]
    dns: Vec<String>,
    /// Remove a name server (update)
    #[arg(long, value_name = "IP")]
    dns_rm: Vec<String>,
    /// Domain in which names are looked up
    #[arg(long, visible_alias = "dns-search-add", value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Remove such a domain (update)
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Option of the resolver
    #[arg(long, visible_alias = "dns-option-add", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Remove an option of the resolver (update)
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Further group of the container's user
    #[arg(long, visible_alias = "group-add")]
    group: Vec<String>,
    /// Remove a group (update)
    #[arg(long, value_name = "GROUP")]
    group_rm: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Kernel parameter of the container
    #[arg(long, visible_alias = "sysctl-add", value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
    /// Remove a kernel parameter (update)
    #[arg(long, value_name = "KEY")]
    sysctl_rm: Vec<String>,
    /// Limit of the kernel for a process: nofile=1024:2048
    #[arg(long, visible_alias = "ulimit-add", value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Remove such a limit (update)
    #[arg(long, value_name = "NAME")]
    ulimit_rm: Vec<String>,
    /// The container's file system may only be read
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    read_only: Option<bool>,
    /// A first process in the container that passes signals on and reaps
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    init: Option<bool>,
    /// Give the container a terminal
    #[arg(long, short = 't', num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    tty: Option<bool>,
    /// Set a label of containers
    #[arg(long, visible_alias = "container-label-add", value_name = "KEY=VALUE")]
    container_label: Vec<String>,
    /// Remove a label of containers (update)
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Log driver of containers
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of the log driver
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
}

impl ContainerArgs {
    /// Puts them into a description.
    pub fn describe(&self, spec: &mut Map<String, Value>) -> Result<()> {
        let single = [
            ("image", self.image.clone().map(Value::from)),
            ("pull", self.pull.clone().map(Value::from)),
            ("platform", self.platform.clone().map(Value::from)),
            ("entrypoint", self.entrypoint.as_ref().map(|line| words("--entrypoint", line)).transpose()?),
            ("internal", self.endpoint_mode.map(|mode| json!(mode))),
            ("hostname", self.hostname.clone().map(Value::from)),
            ("read_only", self.read_only.map(Value::from)),
            ("init", self.init.map(Value::from)),
            ("tty", self.tty.map(Value::from)),
        ];
        for (key, value) in single {
            set(spec, key, value);
        }
        let lists = [
            ("dns", &self.dns, &self.dns_rm),
            ("dns_search", &self.dns_search, &self.dns_search_rm),
            ("dns_options", &self.dns_option, &self.dns_option_rm),
            ("groups", &self.group, &self.group_rm),
            // A capability that is added is not dropped any more, and the other way round.
            ("cap_add", &self.cap_add, &self.cap_drop),
            ("cap_drop", &self.cap_drop, &self.cap_add),
        ];
        for (key, add, remove) in lists {
            change_list(spec, key, add, remove);
        }
        self.mounts(spec)?;
        self.networks(spec)?;
        self.tables(spec)
    }

    fn mounts(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for target in &self.mount_rm {
            list(spec, "mounts").retain(|mount| mount["target"] != json!(target));
        }
        for text in &self.mount {
            let mount: Mount = text.parse()?;
            let mounts = list(spec, "mounts");
            mounts.retain(|other| other["target"] != json!(mount.target));
            mounts.push(json!(mount));
        }
        Ok(())
    }

    fn networks(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for name in &self.network_rm {
            list(spec, "networks").retain(|network| network["name"] != json!(name));
        }
        for text in &self.network {
            let network: NetworkUse = text.parse()?;
            let networks = list(spec, "networks");
            networks.retain(|other| other["name"] != json!(network.name));
            networks.push(json!(network));
        }
        Ok(())
    }

    fn tables(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for text in &self.host_rm {
            // Docker's form names the address as well.
            let name = text.split_once([':', '=']).map_or(text.as_str(), |(name, _)| name);
            table(spec, "hosts").remove(name);
        }
        for text in &self.host {
            let (name, address) = text
                .split_once([':', '='])
                .ok_or_else(|| Error::invalid(format!("--host {text:.80?}"), "is not HOST:IP"))?;
            table(spec, "hosts").insert(name.to_owned(), json!(address));
        }
        let pairs = [
            ("sysctls", "--sysctl", &self.sysctl, &self.sysctl_rm),
            ("container_labels", "--container-label", &self.container_label, &self.container_label_rm),
        ];
        for (field, flag, add, remove) in pairs {
            for key in remove {
                table(spec, field).remove(key);
            }
            for text in add {
                let (key, value) = match text.split_once('=') {
                    Some(pair) => pair,
                    // A label may stand alone.
                    None if field == "container_labels" => (text.as_str(), ""),
                    None => return Err(Error::invalid(format!("{flag} {text:.80?}"), "is not KEY=VALUE")),
                };
                table(spec, field).insert(key.to_owned(), json!(value));
            }
        }
        for name in &self.ulimit_rm {
            table(spec, "ulimits").remove(name);
        }
        for text in &self.ulimit {
            let wrong = || Error::invalid(format!("--ulimit {text:.80?}"), "is not NAME=SOFT[:HARD]");
            let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
            let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
            let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
            table(spec, "ulimits").insert(name.to_owned(), json!({ "soft": number(soft)?, "hard": number(hard)? }));
        }
        if let Some(driver) = &self.log_driver {
            table(spec, "log").insert("driver".into(), json!(driver));
            // Another driver has other options.
            table(spec, "log").remove("options");
        }
        for text in &self.log_opt {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| Error::invalid(format!("--log-opt {text:.80?}"), "is not KEY=VALUE"))?;
            table(table(spec, "log"), "options").insert(key.to_owned(), json!(value));
        }
        Ok(())
    }
}

/// The list of this name, made where it is missing.
pub fn list<'a>(spec: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let entry = spec.entry(key).or_insert_with(|| json!([]));
    if !entry.is_array() {
        *entry = json!([]);
    }
    entry.as_array_mut().expect("was just made a list")
}

/// Adds to a list of texts and takes from it.
pub fn change_list(spec: &mut Map<String, Value>, key: &str, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let list = list(spec, key);
    list.retain(|entry| !remove.iter().any(|text| entry == text));
    for text in add {
        if !list.iter().any(|entry| entry == text) {
            list.push(json!(text));
        }
    }
}
