//! The plan of a flow: what is done with its packets, compiled into plain data.

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::Delta;
use podswitch_wire::flow_key::FlowKey;

use crate::id::PortId;

/// The actions of a plan besides setting MAC addresses, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct PlanFlags(pub u16);

impl PlanFlags {
    /// Routed: TTL or hop limit is decremented.
    pub const TTL: PlanFlags = PlanFlags(1);
    /// Source address and port are replaced.
    pub const SNAT: PlanFlags = PlanFlags(2);
    /// Destination address and port are replaced.
    pub const DNAT: PlanFlags = PlanFlags(4);
    /// The packet leaves through a tunnel.
    pub const ENCAP: PlanFlags = PlanFlags(8);

    /// Whether all flags of `other` are set.
    #[inline]
    pub const fn has(self, other: PlanFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags of both.
    #[inline]
    pub const fn with(self, other: PlanFlags) -> Self {
        PlanFlags(self.0 | other.0)
    }
}

/// What is done with the packets of a flow. One cache line. Fields that `flags` does not require are zero (the tunnel
/// source port: the lowest port). If anything is translated, both addresses and both ports are set, including those
/// that do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Plan {
    /// New source address, in the form of a key.
    pub src: [u8; 16],
    /// New destination address, in the form of a key.
    pub dst: [u8; 16],
    /// New source port, host order.
    pub src_port: u16,
    /// New destination port, host order.
    pub dst_port: u16,
    /// Destination and source MAC address, as in the frame.
    pub macs: [u8; 12],
    /// Egress port.
    pub out: PortId,
    /// Largest network-layer packet on the egress link, in bytes.
    pub mtu: u16,
    /// The actions of this plan.
    pub flags: PlanFlags,
    /// Index of the tunnel, for [`PlanFlags::ENCAP`].
    pub tunnel: u16,
    /// UDP source port of the outer header, for [`PlanFlags::ENCAP`]. Not part of a
    /// [`shared`](Self::shared) plan.
    pub source_port: SourcePort,
    /// Change of a checksum that covers the addresses.
    pub address_delta: Delta,
    /// Change of a checksum that covers addresses and ports.
    pub flow_delta: Delta,
}

const _: () = assert!(size_of::<Plan>() == 64);

impl Plan {
    /// A routed hop: new MAC addresses, TTL decremented, out of a port.
    pub fn route(out: PortId, mtu: u16, to: Mac, from: Mac) -> Self {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&to.0);
        macs[6..].copy_from_slice(&from.0);
        Self {
            src: [0; 16],
            dst: [0; 16],
            src_port: 0,
            dst_port: 0,
            macs,
            out,
            mtu,
            flags: PlanFlags::TTL,
            tunnel: 0,
            source_port: SourcePort::from_hash(0),
            address_delta: Delta::NONE,
            flow_delta: Delta::NONE,
        }
    }
}

impl Plan {
    /// The same hop through the tunnel with index `tunnel`.
    pub fn encap(mut self, tunnel: u16, source_port: SourcePort) -> Self {
        self.flags = self.flags.with(PlanFlags::ENCAP);
        self.tunnel = tunnel;
        self.source_port = source_port;
        self
    }

    /// Whether addresses and ports are replaced.
    #[inline]
    pub const fn is_translation(&self) -> bool {
        self.flags.0 & (PlanFlags::SNAT.0 | PlanFlags::DNAT.0) != 0
    }

    /// The plan that all flows to the same next hop share; `None` for a translated flow. It does not include the outer
    /// source port, which follows from the key of a packet that is not translated. It does not include a tunnel's MTU
    /// either, which changes with path MTU discovery: the field is 0, so that no packet fits a plan with a tunnel until
    /// the tunnel's own MTU is read.
    pub fn shared(self) -> Option<Self> {
        let mtu = if self.flags.has(PlanFlags::ENCAP) { 0 } else { self.mtu };
        let source_port = SourcePort::from_hash(0);
        (!self.is_translation()).then_some(Self { source_port, mtu, ..self })
    }

    /// The same hop with translation: packets with the key `from` get the key `to`.
    pub fn translate(mut self, from: &FlowKey, to: &FlowKey) -> Self {
        let (mut addresses, mut ports) = (Delta::NONE, Delta::NONE);
        if from.src != to.src || from.src_port != to.src_port {
            self.flags = self.flags.with(PlanFlags::SNAT);
            addresses = addresses.and(Delta::addr16(&from.src, &to.src));
            ports = ports.and(Delta::u16(from.src_port, to.src_port));
        }
        if from.dst != to.dst || from.dst_port != to.dst_port {
            self.flags = self.flags.with(PlanFlags::DNAT);
            addresses = addresses.and(Delta::addr16(&from.dst, &to.dst));
            ports = ports.and(Delta::u16(from.dst_port, to.dst_port));
        }
        if self.is_translation() {
            (self.src, self.src_port) = (to.src, to.src_port);
            (self.dst, self.dst_port) = (to.dst, to.dst_port);
        }
        self.address_delta = addresses;
        self.flow_delta = addresses.and(ports);
        self
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self { flags: PlanFlags(0), ..Self::route(PortId(0), 0, Mac::ZERO, Mac::ZERO) }
    }
}
