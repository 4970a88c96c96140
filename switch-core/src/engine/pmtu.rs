//! Path MTU discovery for the underlay: ICMP errors about tunnel packets (RFC 1191, RFC 8201; T-O7).

use podswitch_vxlan::pmtu::{Quoted, learn, read_quote};
use podswitch_wire::checksum::verify_l4;
use podswitch_wire::parse::{Network, Parsed, ethertype, parse_quoted};

use super::{BurstContext, Engine};
use crate::packet::Packet;
use crate::snapshot::{Reach, Snapshot};

impl Engine {
    /// Learns the path MTU to a VTEP from an ICMP error. The error must be "packet too big" or "fragmentation needed",
    /// and must quote enough of a tunnel packet of this node to identify the inner packet as one of a live connection:
    /// nobody who has not seen that packet can forge the error. Routers quote enough (RFC 1812 §4.3.2.3: 576 bytes; RFC
    /// 4443: 1280). An error that quotes the minimum, 8 bytes of UDP, is ignored.
    ///
    /// False: the error is not about the tunnel, or is not trusted.
    pub(super) fn learn_path_mtu(
        &self,
        cx: &BurstContext<'_>,
        packet: &Packet,
        outer: &Parsed,
    ) -> bool {
        let frame = packet.bytes();
        let verified = packet.offload.csum_valid || packet.offload.csum_partial;
        if !verified && !verify_l4(frame, outer) {
            return false;
        }
        let Some(mtu) = reported_mtu(frame, outer) else { return false };
        let quote = frame.get(usize::from(outer.payload)..outer.end as usize).unwrap_or_default();
        let Some(quoted) = read_quote(quote) else { return false };
        let Ok((end, mtu)) = learn(&cx.snapshot.tunnels.ends, &quoted, mtu) else { return false };
        if !self.quotes_live_flow(cx.snapshot, quote, &quoted, Reach::Tunnel(end)) {
            return false;
        }
        if let Some(tunnel) = cx.snapshot.tunnels.to(end) {
            tunnel.path.learn(mtu, cx.now);
        }
        true
    }

    /// Whether the quoted tunnel packet carries a packet of a live connection that is reached by
    /// `reach`.
    fn quotes_live_flow(
        &self,
        snapshot: &Snapshot,
        quote: &[u8],
        quoted: &Quoted,
        reach: Reach,
    ) -> bool {
        let Some(inner) = quoted.inner.and_then(|at| quote.get(at..)) else { return false };
        let kind = inner.get(12..14).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
        let network = match kind {
            Some(ethertype::IPV4) => Network::Ipv4,
            Some(ethertype::IPV6) => Network::Ipv6,
            _ => return false,
        };
        let (tracker, hash_key) = (&self.shared.tracker, &self.shared.hash_key);
        let Some(packet) = parse_quoted(&inner[14..], network, hash_key) else { return false };
        // The reverse of the sent key is the key of the other direction.
        let reply = packet.key.reversed();
        snapshot.reach(packet.key.dst_addr()) == Some(reach)
            && tracker.find(tracker.index_hash(&reply, reply.hash(hash_key)), &reply).is_some()
    }
}

/// The MTU that a "fragmentation needed" or "packet too big" error reports, in bytes.
fn reported_mtu(frame: &[u8], outer: &Parsed) -> Option<u32> {
    let icmp = frame.get(usize::from(outer.l4)..)?.first_chunk::<8>()?;
    match (outer.network, icmp) {
        (Network::Ipv4, [3, 4, _, _, _, _, a, b]) => Some(u16::from_be_bytes([*a, *b]).into()),
        (Network::Ipv6, [2, 0, _, _, mtu @ ..]) => Some(u32::from_be_bytes(*mtu)),
        _ => None,
    }
}
