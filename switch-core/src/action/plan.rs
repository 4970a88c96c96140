//! The compiled answer of a flow: plain data, applied to every packet that hits.

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::Delta;
use podswitch_wire::flow_key::FlowKey;

use crate::id::PortId;

/// What a plan asks for beyond new link-layer addresses, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct PlanFlags(pub u16);

impl PlanFlags {
    /// A router hop: TTL or hop limit goes down by one.
    pub const TTL: PlanFlags = PlanFlags(1);
    /// Source address and port are replaced.
    pub const SNAT: PlanFlags = PlanFlags(2);
    /// Destination address and port are replaced.
    pub const DNAT: PlanFlags = PlanFlags(4);
    /// The packet leaves through a tunnel.
    pub const ENCAP: PlanFlags = PlanFlags(8);

    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn has(self, other: PlanFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[inline]
    pub const fn with(self, other: PlanFlags) -> Self {
        PlanFlags(self.0 | other.0)
    }
}

/// A flow's answer. One cache line; what is not asked for by `flags` is zero
/// (the source port: the lowest there is). Where anything is translated, both addresses and both
/// ports are there, what stays as it is among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Plan {
    /// New source address, in the key's form.
    pub src: [u8; 16],
    /// New destination address, in the key's form.
    pub dst: [u8; 16],
    /// New source port, host order.
    pub src_port: u16,
    /// New destination port, host order.
    pub dst_port: u16,
    /// Link-layer destination and source as they stand in the frame.
    pub macs: [u8; 12],
    /// Port to leave by.
    pub out: PortId,
    /// Largest network-layer packet on the way out, in bytes.
    pub mtu: u16,
    /// What to do.
    pub flags: PlanFlags,
    /// Which tunnel, for [`PlanFlags::ENCAP`].
    pub tunnel: u16,
    /// UDP source port of the tunnel packet, for [`PlanFlags::ENCAP`]; not in what is
    /// [`shared`](Self::shared).
    pub source_port: SourcePort,
    /// What the replaced addresses add to a checksum over them.
    pub address_delta: Delta,
    /// The same with the ports.
    pub flow_delta: Delta,
}

const _: () = assert!(size_of::<Plan>() == 64);

impl Plan {
    /// A routed hop without translation: new link-layer addresses, TTL down, out.
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
    /// A hop through a tunnel, `tunnel`, that leaves by `out`.
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

    /// What is the same for all flows that go this way, if the plan is made of that alone: a flow
    /// that is not translated leaves as it came in, so that its key says its tunnel packets' source
    /// port. How much a tunnel takes the tunnel says, since that changes with what is learnt of the path;
    /// the MTU is zero then, so that nothing fits for whoever asks the plan alone and wraps nothing.
    pub fn shared(self) -> Option<Self> {
        let mtu = if self.flags.has(PlanFlags::ENCAP) { 0 } else { self.mtu };
        let source_port = SourcePort::from_hash(0);
        (!self.is_translation()).then_some(Self { source_port, mtu, ..self })
    }

    /// The same way, with what has the key `from` turned into what has the key `to`.
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
