//! What is asked of policy and what it answers, common to the compiled table, the reference
//! evaluator and explanations.

use podswitch_wire::flow_key::FlowKey;

use crate::rule::{Protocol, Tier};

/// What a new connection looks like to policy, its ends apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Traffic {
    /// IP protocol number. Whatever is not TCP, UDP or SCTP is allowed only by rules without
    /// ports (N10); ICMP errors about known flows are not asked about (N5).
    pub protocol: u8,
    /// Destination port after Service translation (N15); without meaning where the protocol has
    /// none.
    pub port: u16,
    /// Whether a Service address was translated. A pod that reaches itself so is subject to
    /// policy, one that calls its own address is not (N12).
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

    /// What a flow's first packet asks, after Service translation if there was one.
    #[inline]
    pub const fn of_flow(key: &FlowKey, via_service: bool) -> Self {
        Self { protocol: key.proto, port: key.dst_port, via_service }
    }
}

/// Why one end's policies allow or deny.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// This end is no pod (a node, a hostNetwork pod, an address outside): allowed (N11).
    NoPod,
    /// The pod calls its own address: allowed (N12).
    OwnAddress,
    /// Between a pod and its own node: allowed (N16).
    OwnNode,
    /// No policy isolates the pod in this direction and no tier decided: allowed (N1).
    NotIsolated,
    /// A rule of this tier decided: allowed, or denied by a ClusterNetworkPolicy.
    Rule(Tier),
    /// Policies isolate the pod and none of their rules matches: denied (N3).
    Isolated,
}
