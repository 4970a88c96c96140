//! Options for the whole cluster that no manifest contains: flags shared by `run`, `check`,
//! `explain` and `replay`, so that all of them decide alike.

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
    /// A range for the addresses of Services, in addition to those of ServiceCIDR objects. Packets
    /// to an address in it that no Service has are dropped. Can be repeated.
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<Cidr>,
    /// A range in which externalIPs of Services are honoured. Default: none, because anyone who may
    /// write a Service could capture any address (CVE-2020-8554). Can be repeated.
    #[arg(long, value_name = "CIDR")]
    allow_external_ips: Vec<Cidr>,
    /// A range that belongs to the cluster, in addition to those of nodes and pods. Traffic from
    /// pods to it keeps its source address. Can be repeated.
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Vec<Cidr>,
    /// Source NAT of traffic that pods send out of the cluster. `kernel`: the node's kernel
    /// replaces the source with the node's address. ADDRESS: the switch replaces it with this
    /// address (two, separated by a comma, for both families). `off`: the source stays.
    #[arg(long, value_name = "kernel|ADDRESS|off", default_value = "kernel")]
    masquerade: MasqueradeFlag,
    /// The cluster key, 32 hexadecimal digits, the same on all nodes: with it all nodes choose the
    /// same backends and routes.
    #[arg(long, value_name = "HEX", value_parser = cluster_key)]
    hash_key: Option<ClusterKey>,
    /// Whether pod annotations (podswitch.io/netns, port, interface, mac) define where and how pods
    /// are attached. `trust`: the operator writes the manifests. `ignore`: tenants may write them;
    /// these annotations have no effect. Default: `trust` for manifests, `ignore` for the API
    /// server.
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
    /// VXLAN network identifier. Default: the one in Flannel's annotations on Node objects,
    /// otherwise 1.
    #[arg(long, value_name = "N", value_parser = vni)]
    vni: Option<Vni>,
    /// UDP port of the tunnel. Default: 8472 if Node objects have Flannel's annotations, otherwise
    /// 4789.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: Option<u16>,
    /// How to reach other nodes: `vxlan` through the tunnel, `host-gw` directly by the node's MAC
    /// address, which requires all nodes to be on one segment.
    #[arg(long, value_enum, value_name = "vxlan|host-gw", default_value = "vxlan")]
    routing: RoutingFlag,
    /// The family of the tunnel between nodes that have addresses of both families. `inner`: each
    /// family has its own tunnel, over that family. `inner` is always used between two nodes that
    /// both have Flannel's annotations for a second tunnel, over IPv6.
    #[arg(long, value_enum, value_name = "ipv4|ipv6|inner", default_value = "ipv4")]
    underlay_family: FamilyFlag,
    /// A route to destinations other than pods and nodes, by routers on the underlay. With several
    /// next hops, every node distributes the flows in the same way. `host` passes packets to the
    /// node's kernel, `blackhole` drops them. Can be repeated.
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
    /// The options for the library. `tenants`: Pod objects may be written by others than the
    /// operator.
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
