//! Values of options.

use std::time::Duration;

use podswitch_node::{KubeProxyMode, UnderlayKind, UnderlayOptions};

/// More workers than this help nobody.
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
        _ => Err("it is none of auto, present and absent".to_owned()),
    }
}

/// `--stats SECONDS`.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds
        .filter(|duration| (0.1..1e9).contains(&duration.as_secs_f64()))
        .ok_or_else(|| "it is not a number of seconds, at least 0.1".to_owned())
}

/// What joins the node to the others.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct UnderlayFlags {
    /// What tunnel packets to other nodes go through: `udp`, sockets of the node's own stack, at the
    /// node's InternalIPs; or `packet`, frames by the interface that --uplink names. Without, it
    /// is udp as soon as there are other nodes.
    #[arg(long, value_name = "udp|packet", value_parser = underlay)]
    underlay: Option<UnderlayKind>,
    /// The node's interface for traffic without a tunnel: off-cluster clients of Services and host
    /// ports, next hops of routes, and with host-gw the other nodes. What the switch takes there is
    /// kept from the node's own stack.
    #[arg(long, value_name = "IF", required_if_eq("underlay", "packet"))]
    uplink: Option<String>,
    /// Largest packet of pods and of podswitch0, in bytes. Without: what the tunnel leaves of the
    /// underlay's, 50 less over IPv4 and 70 less over IPv6; 1500 where there is no tunnel.
    #[arg(long, value_name = "N", value_parser = mtu)]
    mtu: Option<u16>,
}

impl UnderlayFlags {
    /// As the node is told of it.
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

/// IPv6 needs links to carry so much (RFC 8200 §5); a TAP takes no more.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=65_521;

fn mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse().ok().filter(|mtu| MTUS.contains(mtu));
    mtu.ok_or_else(|| format!("it is not a number from {} to {}", MTUS.start(), MTUS.end()))
}
