//! What holds for the whole cluster and no manifest says: options that `run`, `check`, `explain`
//! and `replay` have in common, so that all of them judge alike.

use std::net::IpAddr;

use podswitch_core::config::{ClusterKey, Masquerade};
use podswitch_kubernetes::{Compiled, Options};
use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::HashKey;

use crate::overlay::OverlayArgs;

/// See the module's description.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ClusterArgs {
    /// A range that the addresses of Services come from, beside those of ServiceCIDR objects. What
    /// is in it and no Service's is dropped. Can be repeated.
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<Cidr>,
    /// A range in which externalIPs of Services are honoured; there is none otherwise, since
    /// whoever may write a Service could capture any address (CVE-2020-8554). Can be repeated.
    #[arg(long, value_name = "CIDR")]
    allow_external_ips: Vec<Cidr>,
    /// A range that belongs to the cluster, beside those of nodes and pods: what pods send
    /// there keeps its source address. Can be repeated.
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Vec<Cidr>,
    /// What happens to the source address of what pods send off the cluster: the node's kernel
    /// puts the node's in its place, or the switch this one (two, with a comma between, for both
    /// families), or nothing.
    #[arg(
        long,
        value_name = "kernel|ADDRESS|off",
        default_value = "kernel",
        value_parser = Masquerading::parse
    )]
    masquerade: Masquerading,
    /// The cluster's key, 32 hexadecimal digits, the same on all nodes: by it all choose the same
    /// backends and ways.
    #[arg(long, value_name = "HEX", value_parser = cluster_key)]
    hash_key: Option<ClusterKey>,
    #[command(flatten)]
    overlay: OverlayArgs,
}

/// What happens to the source address of packets that leave the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Masquerading {
    /// The node's kernel puts the node's address in its place.
    #[default]
    Kernel,
    /// The switch puts one of these in its place; a family without one is left as it is.
    Switch { ipv4: Option<std::net::Ipv4Addr>, ipv6: Option<std::net::Ipv6Addr> },
    /// Nothing: pods' addresses are routed outside.
    Off,
}

impl Masquerading {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "kernel" => return Ok(Self::Kernel),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let (mut ipv4, mut ipv6) = (None, None);
        for part in text.split(',') {
            let address = part
                .parse()
                .map_err(|_| format!("{part:?} is neither kernel, off nor an address"))?;
            let twice = match address {
                IpAddr::V4(a) => ipv4.replace(a).is_some(),
                IpAddr::V6(a) => ipv6.replace(a).is_some(),
            };
            if twice {
                return Err("two addresses of one family".to_owned());
            }
        }
        Ok(Self::Switch { ipv4, ipv6 })
    }
}

fn cluster_key(text: &str) -> Result<ClusterKey, String> {
    let hexadecimal = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(seed) if hexadecimal => Ok(ClusterKey(HashKey::new(seed))),
        _ => Err("it is not 32 hexadecimal digits".to_owned()),
    }
}

impl ClusterArgs {
    /// What compiling manifests depends on.
    pub(crate) fn options(&self) -> Options {
        Options {
            service_cidrs: self.service_cidr.clone(),
            allowed_external_ips: self.allow_external_ips.clone(),
            ..Options::default()
        }
    }

    /// Adds to a compiled state what no manifest says.
    pub(crate) fn complete(&self, compiled: &mut Compiled) {
        let config = &mut compiled.config;
        config.cluster_key = self.hash_key.unwrap_or_default();
        config.masquerade = match self.masquerade {
            Masquerading::Switch { ipv4, ipv6 } => {
                Some(Masquerade { ipv4, ipv6, cluster: self.cluster_cidr.clone() })
            }
            Masquerading::Kernel | Masquerading::Off => None,
        };
        self.overlay.complete(compiled);
    }

    /// What happens to the source address of packets that leave the cluster.
    pub(crate) fn masquerading(&self) -> Masquerading {
        self.masquerade
    }

    /// Ranges of the cluster beyond what nodes and pods say.
    pub(crate) fn ranges(&self) -> &[Cidr] {
        &self.cluster_cidr
    }
}
