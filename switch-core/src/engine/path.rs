//! Path MTU of the underlay, from ICMP errors about tunnel packets (RFC 1191, RFC 8201; T-O7).

use podswitch_vxlan::pmtu::{Quoted, learn, read_quote};
use podswitch_wire::checksum::verify_l4;
use podswitch_wire::parse::{Network, Parsed, ethertype, parse_quoted};

use super::{Engine, Turn};
use crate::packet::Packet;
use crate::snapshot::{Reach, Snapshot};

impl Engine {
    /// Takes down what an ICMP error says of the path to a tunnel end. Only "packet too big" is
    /// listened to, only if it quotes a tunnel packet of ours so far that the packet inside is seen
    /// to belong to a connection that is alive: whoever can make that up has seen it. Routers quote
    /// enough for that (RFC 1812 §4.3.2.3: 576 bytes; RFC 4443: 1280); of one that quotes the
    /// least, 8 bytes of UDP, nothing is learnt.
    ///
    /// False: it is not about the tunnel, or not to be believed.
    pub(super) fn path_error(&self, turn: &Turn<'_>, packet: &Packet, outer: &Parsed) -> bool {
        let frame = packet.bytes();
        let vouched = packet.offload.csum_valid || packet.offload.csum_partial;
        if !vouched && !verify_l4(frame, outer) {
            return false;
        }
        let Some(mtu) = reported_mtu(frame, outer) else { return false };
        let quote = frame.get(usize::from(outer.payload)..outer.end as usize).unwrap_or_default();
        let Some(quoted) = read_quote(quote) else { return false };
        let Ok((end, mtu)) = learn(&turn.snapshot.tunnels.ends, &quoted, mtu) else { return false };
        if !self.quotes_live_flow(turn.snapshot, quote, &quoted, Reach::Tunnel(end)) {
            return false;
        }
        if let Some(tunnel) = turn.snapshot.tunnels.to(end) {
            tunnel.path.learn(mtu, turn.now);
        }
        true
    }

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
        // What was sent is what the other direction answers.
        let answer = packet.key.reversed();
        snapshot.reach(packet.key.dst_addr()) == Some(reach)
            && tracker.find(tracker.place(&answer, answer.hash(hash_key)), &answer).is_some()
    }
}

/// The MTU that "fragmentation needed" or "packet too big" reports.
fn reported_mtu(frame: &[u8], outer: &Parsed) -> Option<u32> {
    let icmp = frame.get(usize::from(outer.l4)..)?.first_chunk::<8>()?;
    match (outer.network, icmp) {
        (Network::Ipv4, [3, 4, _, _, _, _, a, b]) => Some(u16::from_be_bytes([*a, *b]).into()),
        (Network::Ipv6, [2, 0, _, _, mtu @ ..]) => Some(u32::from_be_bytes(*mtu)),
        _ => None,
    }
}
