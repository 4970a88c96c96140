//! Tunnel packets that no node sends.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::PacketBuilder;
use podswitch_core::action::DropReason;
use podswitch_vxlan::header::FLAG_VNI;
use podswitch_wire::addr::Mac;

use super::{Forgery, PORT, written};
use crate::demo::world::Family;

/// Where tunnels end, and the network that ours has.
pub(in crate::demo) const VXLAN_PORT: u16 = 4789;
pub(in crate::demo) const VNI: u8 = 1;

/// Who sends, and what is forged.
pub(in crate::demo) struct Parties {
    /// Where frames come from and go to at the outside.
    pub(in crate::demo) outer_macs: (Mac, Mac),
    /// Whoever sends: no node.
    pub(in crate::demo) stranger: Family,
    /// Both nodes; the second is attacked.
    pub(in crate::demo) nodes: [Family; 2],
    /// A pod of the first node.
    pub(in crate::demo) known: Family,
    /// Who is to be deceived, and a neighbour on the same node.
    pub(in crate::demo) victim: Family,
    pub(in crate::demo) neighbour: Family,
}

/// A tunnel packet, all as it should be; each forgery changes something.
#[derive(Clone)]
struct Packet {
    source: IpAddr,
    flags: u8,
    vni: u8,
    inner: Vec<u8>,
}

impl Parties {
    /// What a pod forges: that it knows how to write one changes nothing (T-O1).
    pub(in crate::demo) fn of_pod(&self) -> Vec<Forgery> {
        let names = ["a tunnel packet from a pod, IPv4", "a tunnel packet from a pod, IPv6"];
        let sources = self.stranger.each().into_iter();
        let forgery = |((_, source), name)| Forgery {
            name,
            reason: DropReason::TunnelFromPod,
            frame: self.outer(&Packet { source, ..self.honest() }),
        };
        sources.zip(names).map(forgery).collect()
    }

    /// What a stranger on the nodes' network forges, some of it in the first node's name.
    pub(in crate::demo) fn of_underlay(&self) -> Vec<Forgery> {
        let honest = self.honest();
        let stranger = Packet { source: self.stranger.v4.into(), ..honest.clone() };
        let stranger_v6 = Packet { source: self.stranger.v6.into(), ..honest.clone() };
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
            ("a stranger's, IPv4", R::TunnelUnknownVtep, stranger),
            ("a stranger's, IPv6", R::TunnelUnknownVtep, stranger_v6),
            ("another network's", R::TunnelUnknownVni, other_network),
            ("one that says of no network", R::TunnelHeader, flagless),
            (
                "a node's with its peer's pod inside",
                R::TunnelInnerSource,
                inner(self.neighbour.v4, victim),
            ),
            (
                "a node's with an outside's address inside",
                R::TunnelInnerSource,
                inner(self.stranger.v4, victim),
            ),
            (
                "one to beyond the node",
                R::TunnelInnerDestination,
                inner(known, Ipv4Addr::new(198, 51, 100, 7)),
            ),
            ("one with a VLAN tag inside", R::TunnelInnerVlan, tagged),
            ("a tunnel in the tunnel", R::TunnelNested, nested),
        ]
        .map(|(name, reason, packet)| Forgery { name, reason, frame: self.outer(&packet) })
        .into()
    }

    fn honest(&self) -> Packet {
        let inner = self.inner(self.known.v4, self.victim.v4, PORT);
        Packet { source: self.nodes[0].v4.into(), flags: FLAG_VNI, vni: VNI, inner }
    }

    /// An inner frame, between the ends of the tunnel.
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

/// The address of a node's tunnel end by default: `0e:58` and its IPv4 address.
pub(in crate::demo) fn vtep_mac(node: Family) -> Mac {
    let [a, b, c, d] = node.v4.octets();
    Mac([0x0e, 0x58, a, b, c, d])
}
