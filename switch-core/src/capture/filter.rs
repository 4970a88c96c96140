//! The filter of a capture.

use std::net::IpAddr;

use podswitch_wire::arp;
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};
use podswitch_wire::parse::{Fragment, Network, Parsed, parse};

use crate::id::PortId;
use crate::snapshot::Snapshot;

/// The filter does not use the hash of a frame.
const ANY_KEY: HashKey = HashKey::new(0);
/// Length of the VXLAN header (RFC 7348 §5).
const VXLAN_LEN: usize = 8;

/// Conditions that must all hold; without conditions, all frames match. A condition on headers holds if it holds for
/// the frame or, in a tunnel packet, for the inner frame. Conditions match both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// The frame passes one of these ports, or its source or destination is one of these addresses. A pod is
    /// represented by its port and its addresses.
    pub place: Option<(Vec<PortId>, Vec<IpAddr>)>,
    /// The source or destination is this address.
    pub host: Option<IpAddr>,
    /// One of the source and destination is in the first list, and the other in the second.
    pub between: Option<[Vec<IpAddr>; 2]>,
    /// The source or destination port is this TCP, UDP or SCTP port.
    pub port: Option<u16>,
    /// IP protocol number.
    pub protocol: Option<u8>,
}

/// Source and destination of a frame.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Ip(FlowKey),
    /// ARP sender and target.
    Arp(IpAddr, IpAddr),
    /// Neither IP nor ARP, or malformed.
    None,
}

impl Ends {
    fn addresses(&self) -> Option<[IpAddr; 2]> {
        match self {
            Self::Ip(key) => Some([key.src_addr(), key.dst_addr()]),
            Self::Arp(sender, target) => Some([*sender, *target]),
            Self::None => None,
        }
    }

    fn key(&self) -> Option<&FlowKey> {
        match self {
            Self::Ip(key) => Some(key),
            _ => None,
        }
    }
}

/// The header fields that the filter and the reader need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headers {
    outer: Ends,
    /// The source and destination of the inner frame of a tunnel packet.
    inner: Ends,
    /// TCP flags of the inner frame or, if there is none, of the frame itself.
    pub(super) tcp_flags: u8,
    /// The frame is a fragment of a datagram.
    pub(super) is_fragment: bool,
    /// The frame has the outer headers of the tunnel.
    pub(super) is_tunnel: bool,
}

impl Headers {
    pub(super) fn read(frame: &[u8], snapshot: &Snapshot) -> Self {
        let mut headers = Self {
            outer: Ends::None,
            inner: Ends::None,
            tcp_flags: 0,
            is_fragment: false,
            is_tunnel: false,
        };
        let Ok(parsed) = parse(frame, &ANY_KEY) else { return headers };
        headers.outer = ends_of(frame, &parsed);
        headers.tcp_flags = parsed.tcp_flags;
        headers.is_fragment = parsed.fragment != Fragment::Whole;
        if let Some(inner) = inner_frame(frame, &parsed, snapshot) {
            headers.is_tunnel = true;
            if let Ok(parsed) = parse(inner, &ANY_KEY) {
                headers.inner = ends_of(inner, &parsed);
                headers.tcp_flags = parsed.tcp_flags;
            }
        }
        headers
    }

    /// The key of the inner frame or, if there is none, of the frame itself.
    pub(super) fn key(&self) -> Option<FlowKey> {
        match self.is_tunnel {
            true => self.inner.key().copied(),
            false => self.outer.key().copied(),
        }
    }
}

/// The inner frame of a tunnel packet.
fn inner_frame<'a>(frame: &'a [u8], parsed: &Parsed, snapshot: &Snapshot) -> Option<&'a [u8]> {
    let tunnels = &snapshot.tunnels;
    let is_tunnel = tunnels.enabled
        && parsed.key.proto == proto::UDP
        && parsed.key.dst_port == tunnels.rules.port;
    let start = usize::from(parsed.payload) + VXLAN_LEN;
    frame.get(start..parsed.end as usize).filter(|_| is_tunnel)
}

fn ends_of(frame: &[u8], parsed: &Parsed) -> Ends {
    match parsed.network {
        Network::Ipv4 | Network::Ipv6 => Ends::Ip(parsed.key),
        Network::Arp => {
            let packet = frame.get(usize::from(parsed.l3)..);
            match packet.and_then(|packet| arp::Packet::new_checked(packet).ok()) {
                Some(arp) => Ends::Arp(arp.sender_ip().into(), arp.target_ip().into()),
                None => Ends::None,
            }
        }
        Network::Other => Ends::None,
    }
}

impl CaptureFilter {
    /// Whether the filter depends on addresses or ports, which translation changes.
    pub(super) fn depends_on_ends(&self) -> bool {
        let Self { place, host, between, port, protocol: _ } = self;
        place.is_some() || host.is_some() || between.is_some() || port.is_some()
    }

    /// Whether a frame that passes `port` matches.
    pub(super) fn takes(&self, port: PortId, headers: &Headers) -> bool {
        let at_port = self.place.as_ref().is_none_or(|(ports, _)| ports.contains(&port));
        [headers.outer, headers.inner].iter().any(|ends| self.takes_ends(at_port, ends))
    }

    fn takes_ends(&self, at_port: bool, ends: &Ends) -> bool {
        let addresses = ends.addresses();
        let one_is = |wanted: &[IpAddr]| {
            addresses.is_some_and(|ends| ends.iter().any(|end| wanted.contains(end)))
        };
        let is_between = |[some, others]: &[Vec<IpAddr>; 2]| {
            addresses.is_some_and(|[a, b]| {
                some.contains(&a) && others.contains(&b) || some.contains(&b) && others.contains(&a)
            })
        };
        let key = ends.key();
        (at_port || self.place.as_ref().is_some_and(|(_, hosts)| one_is(hosts)))
            && self.host.is_none_or(|host| one_is(&[host]))
            && self.between.as_ref().is_none_or(is_between)
            && self.port.is_none_or(|port| key.is_some_and(|key| has_port(key, port)))
            && self.protocol.is_none_or(|number| key.is_some_and(|key| key.proto == number))
    }
}

/// Whether the source or destination port is this one. ICMP keys hold identifiers in the same fields, so the protocol
/// is checked.
fn has_port(key: &FlowKey, port: u16) -> bool {
    matches!(key.proto, proto::TCP | proto::UDP | proto::SCTP)
        && (key.src_port == port || key.dst_port == port)
}
