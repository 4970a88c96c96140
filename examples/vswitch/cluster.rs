//! What holds for the whole cluster and no manifest says: flags that `run`, `check`, `explain` and
//! `replay` have in common, so that all of them judge alike.

use std::sync::Arc;

use clap::ValueEnum;
use podswitch_core::config::{ClusterKey, NextHop, Route, Routing, Underlay};
use podswitch_kubernetes::PodAnnotations;
use podswitch_node::{ClusterOptions, Masquerading};
use podswitch_vxlan::header::Vni;
use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::HashKey;

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
    #[arg(long, value_name = "kernel|ADDRESS|off", default_value = "kernel")]
    masquerade: MasqueradeFlag,
    /// The cluster's key, 32 hexadecimal digits, the same on all nodes: by it all choose the same
    /// backends and ways.
    #[arg(long, value_name = "HEX", value_parser = cluster_key)]
    hash_key: Option<ClusterKey>,
    /// Whether annotations of pods (podswitch.io/netns, port, interface, mac) say where and how they are
    /// attached. `trust`: the manifests are the operator's. `ignore`: they may be a tenant's, and have no
    /// effect. Without: `trust` for manifests, `ignore` for the API server.
    #[arg(long, value_enum, value_name = "trust|ignore")]
    pod_annotations: Option<AnnotationsFlag>,
    #[command(flatten)]
    overlay: OverlayArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AnnotationsFlag {
    Trust,
    Ignore,
}

/// `--masquerade`; the default is the library's.
#[derive(Clone, Copy, Debug, Default)]
struct MasqueradeFlag(Masquerading);

impl std::str::FromStr for MasqueradeFlag {
    type Err = podswitch_node::ParseMasqueradingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

fn cluster_key(text: &str) -> Result<ClusterKey, String> {
    let hexadecimal = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(seed) if hexadecimal => Ok(ClusterKey(HashKey::new(seed))),
        _ => Err("it is not 32 hexadecimal digits".to_owned()),
    }
}

/// How other nodes are reached.
#[derive(clap::Args, Clone, Debug, Default)]
struct OverlayArgs {
    /// VXLAN network identifier. Otherwise what Flannel's annotations on Node objects say, or 1.
    #[arg(long, value_name = "N", value_parser = vni)]
    vni: Option<Vni>,
    /// UDP port of the tunnel. Otherwise 8472 where Node objects have Flannel's annotations, or 4789.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: Option<u16>,
    /// Through the tunnel, or past it to the node's link-layer address: all nodes are on one segment
    /// then.
    #[arg(long, value_enum, value_name = "vxlan|host-gw", default_value = "vxlan")]
    routing: RoutingFlag,
    /// Which family the tunnel runs over between nodes that have addresses of both; `inner`: each
    /// family has a tunnel of its own, over that family. So it always is between nodes of which both
    /// have Flannel's annotations for a second tunnel, over IPv6.
    #[arg(long, value_enum, value_name = "ipv4|ipv6|inner", default_value = "ipv4")]
    underlay_family: FamilyFlag,
    /// A route beyond pods and nodes: to routers on the underlay, which share flows alike on every
    /// node; `host` hands packets to the node's kernel, `blackhole` drops them. Can be repeated.
    #[arg(long, value_name = "CIDR=NEXTHOP[,NEXTHOP]", value_parser = route)]
    route: Vec<Route>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RoutingFlag {
    #[default]
    Vxlan,
    HostGw,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FamilyFlag {
    #[default]
    Ipv4,
    Ipv6,
    Inner,
}

fn vni(text: &str) -> Result<Vni, String> {
    let number: u32 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    Vni::try_from(number).map_err(|error| error.to_string())
}

/// `--route CIDR=NEXTHOP[,NEXTHOP]`.
fn route(text: &str) -> Result<Route, String> {
    let (range, hops) = text.split_once('=').ok_or("it is not CIDR=NEXTHOP[,NEXTHOP]")?;
    let destination: Cidr = range.parse().map_err(|error| format!("{range:?}: {error}"))?;
    let hop = |hop: &str| match hop {
        "host" => Ok(NextHop::Host),
        "blackhole" => Ok(NextHop::Blackhole),
        other => other
            .parse()
            .map(NextHop::Via)
            .map_err(|_| format!("{other:?} is neither an address, host nor blackhole")),
    };
    let next_hops = hops.split(',').map(hop).collect::<Result<_, _>>()?;
    Ok(Route { destination, next_hops })
}

impl ClusterArgs {
    /// As the library takes them. `tenants`: those who may write a Pod are not the operator.
    pub(crate) fn options(&self, tenants: bool) -> ClusterOptions {
        let mut options = ClusterOptions::default();
        options.service_cidrs.clone_from(&self.service_cidr);
        options.allowed_external_ips.clone_from(&self.allow_external_ips);
        options.cluster_cidrs.clone_from(&self.cluster_cidr);
        options.masquerade = self.masquerade.0;
        options.hash_key = self.hash_key;
        options.pod_annotations = match self.pod_annotations {
            None if tenants => PodAnnotations::Ignore,
            Some(AnnotationsFlag::Ignore) => PodAnnotations::Ignore,
            None | Some(AnnotationsFlag::Trust) => PodAnnotations::Trust,
        };
        let (overlay, flags) = (&mut options.overlay, &self.overlay);
        overlay.vni = flags.vni;
        overlay.port = flags.vxlan_port;
        overlay.routing = match flags.routing {
            RoutingFlag::Vxlan => Routing::Vxlan,
            RoutingFlag::HostGw => Routing::HostGw,
        };
        overlay.underlay = match flags.underlay_family {
            FamilyFlag::Ipv4 => Underlay::Ipv4First,
            FamilyFlag::Ipv6 => Underlay::Ipv6First,
            FamilyFlag::Inner => Underlay::Inner,
        };
        overlay.routes = flags.route.iter().cloned().map(Arc::new).collect();
        options
    }
}
