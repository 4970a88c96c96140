//! The properties of the inner frame that encapsulation needs. They are gathered on the packet
//! path, or when a flow's plan is compiled.

use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Fragment, Network, Parsed};

/// Outer UDP source port: in 49152–65535, from the inner flow's hash, so that routers spread
/// tunnelled flows over equal-cost paths (RFC 7348 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct SourcePort(u16);

impl SourcePort {
    /// The lowest port: the start of the dynamic range.
    pub const MIN: u16 = 49152;

    /// The port of a flow with this hash; the upper 14 bits of the hash select it.
    #[inline]
    pub const fn from_hash(hash: u64) -> Self {
        Self(Self::MIN | (hash >> 50) as u16)
    }

    /// The port of an inner packet. It depends on the 5-tuple under the cluster key, so it is the
    /// same on every worker and after a restart. All fragments of a datagram get the same port,
    /// which depends on addresses and protocol only, so that they are not reordered. Frames that
    /// are not IP share one port.
    #[inline]
    pub fn of(inner: &Parsed, cluster_key: &HashKey) -> Self {
        if !matches!(inner.network, Network::Ipv4 | Network::Ipv6) {
            return Self::from_hash(0);
        }
        let mut key = inner.key;
        if inner.fragment != Fragment::Whole {
            key.src_port = 0;
            key.dst_port = 0;
        }
        Self::from_hash(key.hash(cluster_key))
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A partial layer-4 checksum of the inner frame (CHECKSUM_PARTIAL): the field holds the
/// pseudo-header sum. Offsets in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// Start of the summed part, from the start of the frame.
    pub start: u16,
    /// Offset of the checksum field from `start`.
    pub offset: u16,
}

/// The properties of the inner frame that encapsulation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InnerFacts {
    /// Outer UDP source port.
    pub source_port: SourcePort,
    /// IPv4 type of service or IPv6 traffic class of the inner packet; 0 if it is not IP.
    pub traffic_class: u8,
    /// The inner packet must not be fragmented (IPv6: always); false if it is not IP.
    pub dont_fragment: bool,
    /// The frame carries an 802.1Q tag.
    pub tagged: bool,
    /// The frame is a GSO packet that is segmented later: the outer headers' lengths are those of
    /// the whole packet, and the checksum is left to the segmentation.
    pub gso: bool,
    /// IPv4 identification of the outer header, used where DF is clear: the caller's counter for
    /// each destination. With DF set, zero is sent (RFC 6864 §4.1).
    pub identification: u16,
    /// Partial inner checksum, if any.
    pub partial: Option<PartialChecksum>,
}

impl InnerFacts {
    /// The facts of a whole frame with complete checksums, from its parse.
    #[inline]
    pub fn new(inner: &Parsed, cluster_key: &HashKey) -> Self {
        let ip = matches!(inner.network, Network::Ipv4 | Network::Ipv6);
        Self {
            source_port: SourcePort::of(inner, cluster_key),
            traffic_class: if ip { inner.traffic_class } else { 0 },
            dont_fragment: ip && inner.dont_fragment,
            tagged: inner.tags > 0,
            gso: false,
            identification: 0,
            partial: None,
        }
    }
}
