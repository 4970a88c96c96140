//! Value parsers of options.

use std::time::Duration;

use podswitch_node::{KubeProxyMode, UnderlayKind, UnderlayOptions};

/// More workers do not improve throughput.
const MOST_WORKERS: usize = 64;

/// `--workers N`.
pub(super) fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MOST_WORKERS) => Ok(count),
        _ => Err(format!("it is not a number from 1 to {MOST_WORKERS}")),
    }
}

/// `--kube-proxy`.
pub(super) fn kube_proxy(text: &str) -> Result<KubeProxyMode, String> {
    match text {
        "auto" => Ok(KubeProxyMode::Auto),
        "present" => Ok(KubeProxyMode::Present),
        "absent" => Ok(KubeProxyMode::Absent),
        _ => Err("it is not one of auto, present, absent".to_owned()),
    }
}

/// `--stats SECONDS`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds
        .filter(|duration| (0.1..1e9).contains(&duration.as_secs_f64()))
        .ok_or_else(|| "it is not a number of seconds, at least 0.1".to_owned())
}

/// How the node is connected to the others.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct UnderlayFlags {
    /// How tunnel packets to other nodes are sent: `udp`, through sockets of the node's own stack,
    /// at the node's InternalIPs; or `packet`, as frames on the interface that --uplink names.
    /// Default: udp as soon as there are other nodes.
    #[arg(long, value_name = "udp|packet", value_parser = underlay)]
    underlay: Option<UnderlayKind>,
    /// The node's interface for traffic without a tunnel: off-cluster clients of Services and host
    /// ports, next hops of routes, and with host-gw the other nodes. Packets that the switch
    /// receives there are hidden from the node's own stack.
    #[arg(long, value_name = "IF", required_if_eq("underlay", "packet"))]
    uplink: Option<String>,
    /// Largest packet of pods and of podswitch0, in bytes. Default: the underlay's MTU less the
    /// tunnel's overhead of 50 bytes over IPv4 or 70 over IPv6; 1500 without a tunnel.
    #[arg(long, value_name = "N", value_parser = mtu)]
    mtu: Option<u16>,
}

impl UnderlayFlags {
    /// The options for the node.
    pub(super) fn options(&self) -> UnderlayOptions {
        let mut options = UnderlayOptions::default();
        options.kind = self.underlay;
        options.uplink.clone_from(&self.uplink);
        options.mtu = self.mtu;
        options
    }

    /// Whether the underlay or the uplink needs AF_PACKET sockets.
    pub(super) fn uses_packet_sockets(&self) -> bool {
        self.uplink.is_some()
    }
}

fn underlay(text: &str) -> Result<UnderlayKind, String> {
    match text {
        "udp" => Ok(UnderlayKind::Udp),
        "packet" => Ok(UnderlayKind::Packet),
        _ => Err("it is neither udp nor packet".to_owned()),
    }
}

/// IPv6 requires at least this MTU (RFC 8200 §5); a TAP allows no more than the upper bound.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=65_521;

fn mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse().ok().filter(|mtu| MTUS.contains(mtu));
    mtu.ok_or_else(|| format!("it is not a number from {} to {}", MTUS.start(), MTUS.end()))
}
