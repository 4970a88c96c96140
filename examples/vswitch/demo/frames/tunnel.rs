//! Forged tunnel packets.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::PacketBuilder;
use podswitch_core::action::DropReason;
use podswitch_vxlan::header::FLAG_VNI;
use podswitch_wire::addr::Mac;

use super::{Forgery, PORT, written};
use crate::demo::world::Family;

/// The tunnel's UDP port, and its VNI.
pub(in crate::demo) const VXLAN_PORT: u16 = 4789;
pub(in crate::demo) const VNI: u8 = 1;

/// The sender, and the forged and attacked addresses.
pub(in crate::demo) struct Parties {
    /// Outer MAC addresses.
    pub(in crate::demo) outer_macs: (Mac, Mac),
    /// The sender: not a node.
    pub(in crate::demo) unknown: Family,
    /// Both nodes; the second is attacked.
    pub(in crate::demo) nodes: [Family; 2],
    /// A pod of the first node.
    pub(in crate::demo) known: Family,
    /// The attacked pod, and another on the same node.
    pub(in crate::demo) victim: Family,
    pub(in crate::demo) neighbour: Family,
}

/// A valid tunnel packet; each forgery changes something.
#[derive(Clone)]
struct Packet {
    source: IpAddr,
    flags: u8,
    vni: u8,
    inner: Vec<u8>,
}

impl Parties {
    /// Forged by a pod. Even a well-formed packet must be dropped (T-O1).
    pub(in crate::demo) fn of_pod(&self) -> Vec<Forgery> {
        let names = ["a tunnel packet from a pod, IPv4", "a tunnel packet from a pod, IPv6"];
        let sources = self.unknown.each().into_iter();
        let forgery = |((_, source), name)| Forgery {
            name,
            reason: DropReason::TunnelFromPod,
            frame: self.outer(&Packet { source, ..self.honest() }),
        };
        sources.zip(names).map(forgery).collect()
    }

    /// Forged by an unknown host on the underlay, partly with the first node's address.
    pub(in crate::demo) fn of_underlay(&self) -> Vec<Forgery> {
        let honest = self.honest();
        let unknown = Packet { source: self.unknown.v4.into(), ..honest.clone() };
        let unknown_v6 = Packet { source: self.unknown.v6.into(), ..honest.clone() };
        let inner = |from, to| Packet { inner: self.inner(from, to, PORT), ..honest.clone() };
        let (known, victim) = (self.known.v4, self.victim.v4);
        let mut tagged = honest.clone();
        tagged.inner.splice(12..12, [0x81, 0, 0, 7]);
        let nested =
            Packet { inner: self.inner(known, self.nodes[1].v4, VXLAN_PORT), ..honest.clone() };
        let flagless = Packet { flags: 0, ..honest.clone() };
        let other_network = Packet { vni: VNI + 1, ..honest.clone() };
        use DropReason as R;
        [
            ("from an unknown VTEP, IPv4", R::TunnelUnknownVtep, unknown),
            ("from an unknown VTEP, IPv6", R::TunnelUnknownVtep, unknown_v6),
            ("with an unknown VNI", R::TunnelUnknownVni, other_network),
            ("with the I flag clear", R::TunnelHeader, flagless),
            (
                "a node's, with a pod of another node inside",
                R::TunnelInnerSource,
                inner(self.neighbour.v4, victim),
            ),
            (
                "a node's, with an outside address inside",
                R::TunnelInnerSource,
                inner(self.unknown.v4, victim),
            ),
            (
                "to an address beyond the node",
                R::TunnelInnerDestination,
                inner(known, Ipv4Addr::new(198, 51, 100, 7)),
            ),
            ("with a VLAN tag inside", R::TunnelInnerVlan, tagged),
            ("a tunnel in the tunnel", R::TunnelNested, nested),
        ]
        .map(|(name, reason, packet)| Forgery { name, reason, frame: self.outer(&packet) })
        .into()
    }

    fn honest(&self) -> Packet {
        let inner = self.inner(self.known.v4, self.victim.v4, PORT);
        Packet { source: self.nodes[0].v4.into(), flags: FLAG_VNI, vni: VNI, inner }
    }

    /// An inner frame, between the VTEPs.
    fn inner(&self, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
        let [near, far] = self.nodes.map(vtep_mac);
        let ip = PacketBuilder::ethernet2(near.0, far.0).ipv4(from.octets(), to.octets(), 63);
        written(|out| ip.udp(PORT, port).write(out, b"forged"))
    }

    fn outer(&self, packet: &Packet) -> Vec<u8> {
        let (from, to) = self.outer_macs;
        let mut payload = vec![packet.flags, 0, 0, 0, 0, 0, packet.vni, 0];
        payload.extend_from_slice(&packet.inner);
        let ethernet = PacketBuilder::ethernet2(from.0, to.0);
        let ip = match (packet.source, self.nodes[1]) {
            (IpAddr::V4(from), to) => ethernet.ipv4(from.octets(), to.v4.octets(), 64),
            (IpAddr::V6(from), to) => ethernet.ipv6(from.octets(), to.v6.octets(), 64),
        };
        written(|out| ip.udp(50_000, VXLAN_PORT).write(out, &payload))
    }
}

/// A node's default VTEP MAC address: `0e:58` and its IPv4 address.
pub(in crate::demo) fn vtep_mac(node: Family) -> Mac {
    let [a, b, c, d] = node.v4.octets();
    Mac([0x0e, 0x58, a, b, c, d])
}
