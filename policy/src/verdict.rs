//! Queries of policy and their results, shared by the compiled table, the reference evaluator and
//! explanations.

use podswitch_wire::flow_key::FlowKey;

use crate::rule::{Protocol, Tier};

/// A new connection as policy sees it, without its two addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Traffic {
    /// IP protocol number. Protocols other than TCP, UDP and SCTP are allowed only by rules without
    /// ports (N10); ICMP errors about known flows are not subject to policy (N5).
    pub protocol: u8,
    /// Destination port after Service translation (N15); meaningless if the protocol has none.
    pub port: u16,
    /// Whether a Service address was translated. A pod that reaches itself through a Service is
    /// subject to policy; one that calls its own address is not (N12).
    pub via_service: bool,
}

impl Traffic {
    /// A connection to a port, without a Service.
    pub const fn to_port(protocol: Protocol, port: u16) -> Self {
        Self { protocol: protocol.number(), port, via_service: false }
    }

    /// An ICMP echo request of the family.
    pub const fn echo(ipv6: bool) -> Self {
        use podswitch_wire::flow_key::proto::{ICMP, ICMPV6};
        Self { protocol: if ipv6 { ICMPV6 } else { ICMP }, port: 0, via_service: false }
    }

    /// The traffic of a flow's first packet, after Service translation.
    #[inline]
    pub const fn of_flow(key: &FlowKey, via_service: bool) -> Self {
        Self { protocol: key.proto, port: key.dst_port, via_service }
    }
}

/// Why one end's policies allow or deny.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// This end is not a pod (but a node, a hostNetwork pod, or an outside address): allowed (N11).
    NoPod,
    /// The pod calls its own address: allowed (N12).
    OwnAddress,
    /// Between a pod and its own node: allowed (N16).
    OwnNode,
    /// No policy isolates the pod in this direction and no tier decided: allowed (N1).
    NotIsolated,
    /// A rule of this tier decided: allowed, or denied by a ClusterNetworkPolicy.
    Rule(Tier),
    /// Policies isolate the pod, and none of their rules matches: denied (N3).
    Isolated,
}
