//! Every reason for which a frame is dropped, each with a name and a counter.

use podswitch_wire::parse::ParseError;

/// Class of a reason.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DropClass {
    /// The frame contradicts itself.
    Malformed,
    /// The sender used an address that it does not own.
    Spoof,
    /// A network policy.
    Policy,
    /// A Service, or a missing one.
    Service,
    /// No route to the destination.
    Route,
    /// The overlay.
    Tunnel,
    /// A limit was reached.
    Limit,
    /// The state of a connection, a port or the switch.
    State,
}

impl DropClass {
    /// Name in machine-readable output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Spoof => "spoof",
            Self::Policy => "policy",
            Self::Service => "service",
            Self::Route => "route",
            Self::Tunnel => "tunnel",
            Self::Limit => "limit",
            Self::State => "state",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident, $class:ident, $name:literal, $doc:literal;)*) => {
        /// Why a frame was dropped. Counted per port and worker. The name is used in `drops.jsonl`,
        /// metrics and explanations, and does not change between releases.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $doc] $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];
            /// Number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// Name in machine-readable output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Description, in one sentence.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }

            /// Class.
            pub const fn class(self) -> DropClass {
                match self { $(Self::$variant => DropClass::$class,)* }
            }
        }
    };
}

reasons! {
    EthernetTruncated, Malformed, "ethernet_truncated", "Shorter than an Ethernet header.";
    VlanTruncated, Malformed, "vlan_truncated", "A VLAN tag is truncated.";
    VlanTooDeep, Malformed, "vlan_too_deep", "More than two VLAN tags.";
    ArpInvalid, Malformed, "arp_invalid", "ARP that is truncated, or not for IPv4 over Ethernet.";
    IpVersion, Malformed, "ip_version", "The IP version field disagrees with the EtherType.";
    Ipv4HeaderLength, Malformed, "ipv4_header_length", "The IPv4 header is truncated, or its IHL is below 5.";
    Ipv4Checksum, Malformed, "ipv4_checksum", "The IPv4 header checksum is wrong.";
    IpTotalLength, Malformed, "ip_total_length", "The IP length exceeds the frame, or is shorter than the IP header.";
    Ipv4SourceRoute, Malformed, "ipv4_source_route", "IPv4 source routing or record route (RFC 7126).";
    Ipv4Options, Malformed, "ipv4_options", "A malformed IPv4 options list.";
    Ipv6Extension, Malformed, "ipv6_extension", "The IPv6 extension header chain is truncated, too long or forbidden.";
    FragmentTiny, Malformed, "fragment_tiny", "A first fragment without the complete layer-4 header (RFC 1858, 7112).";
    FragmentLength, Malformed, "fragment_length", "A fragment with an invalid length or end.";
    TcpInvalid, Malformed, "tcp_invalid", "The TCP header is truncated, or its data offset is invalid.";
    UdpInvalid, Malformed, "udp_invalid", "The UDP header is truncated, or its length is invalid.";
    SctpInvalid, Malformed, "sctp_invalid", "The SCTP common header is truncated.";
    IcmpInvalid, Malformed, "icmp_invalid", "The ICMP header is truncated.";
    FrameTooLong, Malformed, "frame_too_long", "Longer than the switch can forward.";
    OffloadInvalid, Malformed, "offload_invalid", "Offload metadata that contradicts the frame.";
    SourceMulticast, Malformed, "source_multicast", "The source MAC or IP address is a group address.";
    NeighbourInvalid, Malformed, "neighbour_invalid", "Neighbour discovery that violates RFC 4861 (hop limit 255, lengths, options).";
    FragmentOverlap, Malformed, "fragment_overlap", "Fragments overlap (RFC 3128, 5722): the whole datagram is dropped.";

    SpoofedMac, Spoof, "spoofed_mac", "The source MAC is not the pod's own.";
    SpoofedIp, Spoof, "spoofed_ip", "The source address is not the pod's own.";
    SpoofedArp, Spoof, "spoofed_arp", "ARP that claims an address or MAC that is not the pod's own.";
    SpoofedNeighbour, Spoof, "spoofed_neighbour", "Neighbour discovery that claims an address or MAC that is not the pod's own.";
    RogueRouter, Spoof, "rogue_router", "A router advertisement or redirect from a pod.";
    RogueDhcp, Spoof, "rogue_dhcp", "A DHCP server message from a pod.";
    MartianSource, Spoof, "martian_source", "A source address that no host may use (loopback, unspecified, link-local, multicast).";
    VlanFromPod, Spoof, "vlan_from_pod", "A VLAN-tagged frame from a pod.";
    HostSpoofsPod, Spoof, "host_spoofs_pod", "A frame from the node's port with the source address of a pod.";

    PolicyEgress, Policy, "policy_egress", "No egress rule of a policy that isolates the source allows it.";
    PolicyIngress, Policy, "policy_ingress", "No ingress rule of a policy that isolates the destination allows it.";

    ServiceNoEndpoints, Service, "service_no_endpoints", "The Service has no usable endpoint.";
    ServiceNoLocalEndpoints, Service, "service_no_local_endpoints", "The Service's traffic policy is Local and this node has no endpoint.";
    ServiceUndefinedPort, Service, "service_undefined_port", "The Service's address has no such port.";
    ServiceUnallocated, Service, "service_unallocated", "An address of the Service range that belongs to no Service.";
    ServiceSourceRange, Service, "service_source_range", "The client is outside the Service's loadBalancerSourceRanges.";

    NoRoute, Route, "no_route", "No route to the destination.";
    NoNeighbour, Route, "no_neighbour", "The next hop's MAC address is unknown.";
    UnknownPod, Route, "unknown_pod", "An address of this node's pod range that belongs to no attached pod.";
    NotForUs, Route, "not_for_us", "Not addressed to the switch's MAC, and this port does not bridge.";
    TtlExceeded, Route, "ttl_exceeded", "TTL or hop limit exceeded.";
    MtuExceeded, Route, "mtu_exceeded", "Larger than the path MTU, and must not be fragmented.";
    MartianDestination, Route, "martian_destination", "A destination that is not forwarded (loopback, unspecified, link-local, class E).";
    MulticastUnsupported, Route, "multicast_unsupported", "Multicast and broadcast are not routed between pods.";
    EtherTypeUnsupported, Route, "ethertype_unsupported", "Neither IP nor ARP, on a port that only routes.";
    BridgeReserved, Route, "bridge_reserved", "A link-local bridge group address (IEEE 802.1Q table 8-1).";
    VlanNotAllowed, Route, "vlan_not_allowed", "The port is not a member of the frame's VLAN.";
    Hairpin, Route, "hairpin", "The frame would leave by its ingress port.";
    NoFloodTarget, Route, "no_flood_target", "The bridge domain has no other port to send to.";
    FloodLimited, Limit, "flood_limited", "Flooding from this port exceeds its rate limit.";

    TunnelHeader, Tunnel, "tunnel_header", "A VXLAN header that is truncated, or has the I flag clear.";
    TunnelUnknownVni, Tunnel, "tunnel_unknown_vni", "A VNI that is not configured.";
    TunnelUnknownVtep, Tunnel, "tunnel_unknown_vtep", "The outer source is not a known VTEP.";
    TunnelInnerSource, Tunnel, "tunnel_inner_source", "The inner source does not belong behind that VTEP.";
    TunnelInnerDestination, Tunnel, "tunnel_inner_destination", "The inner destination is neither this node nor one of its pods.";
    TunnelInnerVlan, Tunnel, "tunnel_inner_vlan", "An 802.1Q tag inside the tunnel (RFC 7348 §6.1).";
    TunnelFragment, Tunnel, "tunnel_fragment", "A fragment of a tunnel packet (RFC 7348 §4.3).";
    TunnelNested, Tunnel, "tunnel_nested", "A tunnel inside the tunnel.";
    TunnelFromPod, Tunnel, "tunnel_from_pod", "A pod sent UDP to the tunnel's port of a node or pod.";
    TunnelChecksum, Tunnel, "tunnel_checksum", "The outer UDP checksum is wrong.";
    TunnelEcn, Tunnel, "tunnel_ecn", "Congestion is marked in the outer header, and the inner packet cannot carry the mark (RFC 6040).";
    TunnelNoSource, Tunnel, "tunnel_no_source", "This node has no tunnel address of the needed family.";

    PoolExhausted, Limit, "pool_exhausted", "No packet buffer was free.";
    RxLost, Limit, "rx_lost", "Lost by the receiving port: no packet buffer was free, or the kernel delivered only a part.";
    TxFull, Limit, "tx_full", "The port's transmit queue was full.";
    TxFailed, Limit, "tx_failed", "The port failed on transmission.";
    ConnectionTableFull, Limit, "connection_table_full", "The connection table is full.";
    ConnectionLimit, Limit, "connection_limit", "The endpoint has reached its connection limit.";
    NatPortsExhausted, Limit, "nat_ports_exhausted", "No source port is free for SNAT.";
    FragmentLimit, Limit, "fragment_limit", "The fragment buffer is full.";
    FragmentTimeout, Limit, "fragment_timeout", "Fragments of a datagram that did not become complete in time.";

    EndpointNotReady, State, "endpoint_not_ready", "The port's configuration is not in force yet (fail-closed attach).";
    PortDown, State, "port_down", "The port that the packet would leave by is not attached.";
    TcpInvalidState, State, "tcp_invalid_state", "A TCP segment that needs a connection, and belongs to none.";
    TcpOutOfWindow, State, "tcp_out_of_window", "A TCP segment outside the window.";
    IcmpUnrelated, State, "icmp_unrelated", "An ICMP error that quotes no known connection.";
    GsoUnsupported, State, "gso_unsupported", "A GSO packet that the egress port does not support and that cannot be segmented.";
    EndOfInput, State, "end_of_input", "Still held when the input ended.";
}

const _: () = assert!(DropReason::COUNT <= 128);

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::EthernetTruncated => Self::EthernetTruncated,
            ParseError::VlanTruncated => Self::VlanTruncated,
            ParseError::VlanTooDeep => Self::VlanTooDeep,
            ParseError::ArpInvalid => Self::ArpInvalid,
            ParseError::IpVersion => Self::IpVersion,
            ParseError::Ipv4HeaderLength => Self::Ipv4HeaderLength,
            ParseError::Ipv4Checksum => Self::Ipv4Checksum,
            ParseError::IpTotalLength => Self::IpTotalLength,
            ParseError::Ipv4SourceRoute => Self::Ipv4SourceRoute,
            ParseError::Ipv4Options => Self::Ipv4Options,
            ParseError::Ipv6Extension => Self::Ipv6Extension,
            ParseError::FragmentTiny => Self::FragmentTiny,
            ParseError::FragmentLength => Self::FragmentLength,
            ParseError::TcpInvalid => Self::TcpInvalid,
            ParseError::UdpInvalid => Self::UdpInvalid,
            ParseError::SctpInvalid => Self::SctpInvalid,
            ParseError::IcmpInvalid => Self::IcmpInvalid,
        }
    }
}
