//! The targets, as ratios between two paths in the same round.

use crate::results::{Results, Spread};

/// A target ratio.
pub(crate) struct Target {
    pub(crate) load: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) path: &'static str,
    pub(crate) versus: &'static str,
    pub(crate) bound: Bound,
}

/// The comparison, and the limit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    /// Whether a ratio is within the limit.
    pub(crate) fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
        }
    }
}

const fn at_least(
    ratio: f64,
    load: &'static str,
    path: &'static str,
    versus: &'static str,
) -> Target {
    Target { load, figure: "", path, versus, bound: Bound::AtLeast(ratio) }
}

const fn trip_at_most(ratio: f64, path: &'static str, versus: &'static str) -> Target {
    let load = "round_trip/ipv4";
    Target { load, figure: "p50", path, versus, bound: Bound::AtMost(ratio) }
}

const STREAM4: &str = "tcp_stream/ipv4";
const STREAM6: &str = "tcp_stream/ipv6";
const FRAMES: &str = "small_frames/ipv4";
const CONNECT: &str = "connect_request_close/ipv4";

const ALL: &[Target] = &[
    at_least(1.0, STREAM4, "podswitch/tap", "bridge"),
    at_least(1.0, STREAM6, "podswitch/tap", "bridge"),
    at_least(0.9, STREAM4, "podswitch/af_packet", "bridge"),
    at_least(0.9, STREAM6, "podswitch/af_packet", "bridge"),
    at_least(1.0, FRAMES, "podswitch/tap", "bridge"),
    at_least(1.2, FRAMES, "podswitch/af_packet", "bridge"),
    trip_at_most(1.0, "podswitch/tap", "bridge"),
    trip_at_most(1.0, "podswitch/af_packet", "bridge"),
    at_least(1.0, CONNECT, "podswitch/tap/services/5000", "iptables/5000"),
    at_least(1.0, CONNECT, "podswitch/tap/services/5000", "nftables/5000"),
    // Independent of the number of Services.
    at_least(0.9, CONNECT, "podswitch/tap/services/5000", "podswitch/tap/services/1"),
    at_least(1.0, CONNECT, "podswitch/af_packet/services/5000", "iptables/5000"),
    at_least(1.0, CONNECT, "podswitch/af_packet/services/5000", "nftables/5000"),
    at_least(0.9, CONNECT, "podswitch/af_packet/services/5000", "podswitch/af_packet/services/1"),
    at_least(0.9, STREAM4, "podswitch/tap/vxlan_udp", "bridge+vxlan"),
    at_least(0.9, STREAM6, "podswitch/tap/vxlan_udp", "bridge+vxlan"),
    at_least(0.9, STREAM4, "podswitch/tap/vxlan_packet", "bridge+vxlan"),
    at_least(0.9, STREAM6, "podswitch/tap/vxlan_packet", "bridge+vxlan"),
];

/// A target and its result.
pub(crate) struct Reached {
    pub(crate) target: &'static Target,
    pub(crate) ratio: Spread,
}

impl Reached {
    /// Whether the median reaches the target.
    pub(crate) fn is_met(&self) -> bool {
        self.target.bound.holds(self.ratio.median)
    }
}

/// The targets whose two paths were measured.
pub(crate) fn reached(results: &Results) -> Vec<Reached> {
    let of = |target: &'static Target| {
        let ratio = results.between(target.load, target.figure, target.path, target.versus)?;
        Some(Reached { target, ratio })
    };
    ALL.iter().filter_map(of).collect()
}
