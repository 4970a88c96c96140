//! Cluster DNS of `run`: which names the switch answers for, and the node's own resolver.

use clap::ValueEnum;
use podswitch_dns::{MAX_TTL, Name, PodNames, Settings};
use podswitch_kubernetes::NameOptions;
use podswitch_node::NodeHandle;
use podswitch_node::resolver::{RESOLVER_ADDRESSES, Resolver};

/// The cluster's DNS.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct DnsFlags {
    /// Whether the switch answers DNS queries that pods send to the Service kube-system/kube-dns, if they are for names
    /// of the cluster. `off`: all go to the Service's pods.
    #[arg(long, value_enum, value_name = "on|off", default_value = "on")]
    dns: Switch,
    /// The cluster's domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = name)]
    cluster_domain: Name,
    /// How names such as 10-1-0-7.shop.pod.cluster.local are answered: not at all, whether there is such a pod or not,
    /// or only if there is.
    #[arg(long, value_enum, value_name = "disabled|insecure|verified", default_value = "verified")]
    dns_pods: Pods,
    /// Time to live of answers, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_TTL)))]
    dns_ttl: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pods {
    Disabled,
    Insecure,
    Verified,
}

fn name(text: &str) -> Result<Name, String> {
    Name::parse(text).map_err(|error| error.to_string())
}

impl DnsFlags {
    /// What the switch answers for.
    pub(super) fn names(&self) -> Option<NameOptions> {
        if self.dns == Switch::Off {
            return None;
        }
        let zone = Settings {
            domain: self.cluster_domain.clone(),
            ttl: self.dns_ttl,
            pods: match self.dns_pods {
                Pods::Disabled => PodNames::Disabled,
                Pods::Insecure => PodNames::Insecure,
                Pods::Verified => PodNames::Verified,
            },
            ..Settings::default()
        };
        Some(NameOptions { zone, resolver: RESOLVER_ADDRESSES.to_vec() })
    }
}

/// The node's own resolver, which is there from when the name server's Service first is.
#[derive(Debug, Default)]
pub(super) struct Dns {
    resolver: Option<Resolver>,
    has_failed: bool,
}

impl Dns {
    /// Starts the resolver if there is a Service for it. Called after each change of the state.
    pub(super) fn follow(&mut self, node: &NodeHandle) {
        if self.resolver.is_some() || self.has_failed {
            return;
        }
        let has_server = node.with(|node| {
            node.snapshot().names.as_ref().is_some_and(|names| !names.frontends.is_empty())
        });
        if !has_server.unwrap_or(false) {
            return;
        }
        match Resolver::start(node.caller()) {
            Ok(resolver) => self.resolver = Some(resolver),
            Err(error) => {
                self.has_failed = true;
                tracing::warn!(target: "dns", %error, "the node's own resolver does not start; pods resolve names while others serve kube-dns");
            }
        }
    }
}
