//! Layer-2 switching between the ports of a bridge domain: learn, look up, forward or flood.
//! VLAN-aware (IEEE 802.1Q). Makes no flow entries and does not parse what frames carry.

use podswitch_wire::addr::Mac;
use podswitch_wire::parse::{ethertype, parse};

use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::id::PortId;
use crate::limit::{KeyedLimiter, Rate};
use crate::packet::{Batch, Origin, Packet};
use crate::snapshot::{BridgePort, Domain, Member, Snapshot, Tagging};

const TAG: usize = 4;

/// Limit of flooded frames per ingress port (threat T-C9): unknown unicast, multicast, broadcast.
const FLOODS: Rate = Rate::new(10_000, 2_000);

pub(super) fn flood_limiter() -> KeyedLimiter {
    KeyedLimiter::new(FLOODS, 512)
}

/// The fields of an Ethernet header that bridging needs.
struct Header {
    to: Mac,
    from: Mac,
    /// VLAN ID of an 802.1Q tag. A tag with VLAN ID 0 carries a priority only (priority tagging).
    vid: Option<u16>,
    tagged: bool,
}

fn header(frame: &[u8]) -> Result<Header, DropReason> {
    let head = frame.first_chunk::<14>().ok_or(DropReason::EthernetTruncated)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l, t0, t1] = *head;
    let tagged = u16::from_be_bytes([t0, t1]) == ethertype::VLAN;
    let vid = match (tagged, frame.get(14..18)) {
        (true, Some(tag)) => Some(u16::from_be_bytes([tag[0], tag[1]]) & 0xfff),
        (true, None) => return Err(DropReason::VlanTruncated),
        (false, _) => None,
    };
    Ok(Header {
        to: Mac([a, b, c, d, e, f]),
        from: Mac([g, h, i, j, k, l]),
        vid: vid.filter(|&v| v != 0),
        tagged,
    })
}

/// The domain of a frame with this header that is received on `port`.
#[inline]
fn domain<'a>(snapshot: &'a Snapshot, port: &BridgePort, header: &Header) -> Option<&'a Domain> {
    let number = match header.vid {
        Some(vid) => port.domain_of(vid),
        None => port.untagged,
    };
    number.and_then(|n| snapshot.domains.get(usize::from(n)))
}

impl Engine {
    pub(super) fn bridge_burst(
        &mut self,
        cx: &mut BurstContext<'_>,
        ingress: PortId,
        port: &BridgePort,
        batch: &mut Batch,
    ) {
        // Prefetch for the whole burst. Errors are reported when each frame is processed.
        for packet in batch.iter() {
            if let Ok(header) = header(packet.bytes())
                && let Some(domain) = domain(cx.snapshot, port, &header)
            {
                self.shared.fdb.prefetch(domain.id, header.from);
                self.shared.fdb.prefetch(domain.id, header.to);
            }
        }
        for packet in batch.drain(..) {
            if let Err((packet, reason)) = self.bridge(cx, ingress, port, packet) {
                self.drop(cx, packet, reason, None);
            }
        }
    }

    #[inline]
    fn bridge(
        &mut self,
        cx: &mut BurstContext<'_>,
        ingress: PortId,
        port: &BridgePort,
        packet: Packet,
    ) -> Result<(), (Packet, DropReason)> {
        if let Err(reason) = self.check_offload(&packet) {
            return Err((packet, reason));
        }
        let header = match header(packet.bytes()) {
            Ok(header) => header,
            Err(reason) => return Err((packet, reason)),
        };
        if !header.from.is_unicast() {
            return Err((packet, DropReason::SourceMulticast));
        }
        let is_multicast = header.to.is_multicast();
        // Reserved addresses are multicast: unicast frames need no second look.
        if is_multicast && header.to.is_bridge_reserved() {
            return Err((packet, DropReason::BridgeReserved));
        }
        let domain = domain(cx.snapshot, port, &header);
        let Some(domain) = domain else { return Err((packet, DropReason::VlanNotAllowed)) };
        self.shared.fdb.learn(domain.id, header.from, ingress, domain.bounds, cx.now);
        let found =
            if is_multicast { None } else { self.shared.fdb.lookup(domain.id, header.to, cx.now) };
        match found {
            Some(out) if out == ingress => Err((packet, DropReason::Hairpin)),
            Some(out) => match domain.members.iter().find(|m| m.port == out) {
                Some(member) => {
                    let packet = retag(packet, &header, member.tagging)?;
                    self.forward(cx, out, packet);
                    Ok(())
                }
                // Learned on a port that has left the domain since.
                None => self.flood(cx, ingress, domain, &header, packet),
            },
            None => self.flood(cx, ingress, domain, &header, packet),
        }
    }

    /// Offload metadata must describe the frame itself: the switch or a port would otherwise write a
    /// checksum to an arbitrary offset.
    fn check_offload(&self, packet: &Packet) -> Result<(), DropReason> {
        if !packet.offload.csum_partial && !packet.offload.is_gso() {
            return Ok(());
        }
        let parsed = parse(packet.bytes(), &self.shared.hash_key)?;
        packet.offload.check(&parsed)
    }

    /// Sends the frame to every member of the domain except the ingress port.
    fn flood(
        &mut self,
        cx: &mut BurstContext<'_>,
        ingress: PortId,
        domain: &Domain,
        header: &Header,
        packet: Packet,
    ) -> Result<(), (Packet, DropReason)> {
        let others = |m: &&Member| m.port != ingress;
        let Some(last) = domain.members.iter().rfind(others) else {
            return Err((packet, DropReason::NoFloodTarget));
        };
        if !self.floods.take(u64::from(ingress.0), cx.now) {
            return Err((packet, DropReason::FloodLimited));
        }
        for member in domain.members.iter().filter(others) {
            if member.port == last.port {
                continue;
            }
            // Without a buffer for the copy one receiver is left out; the frame itself is sent.
            let Some(mut copy) = cx.pool.alloc_for(packet.len()) else { break };
            copy.set_len(packet.len());
            copy.bytes_mut().copy_from_slice(packet.bytes());
            copy.offload = packet.offload;
            copy.ingress = packet.ingress;
            copy.mark = packet.mark;
            copy.tag = packet.tag;
            copy.origin = Origin::Copy;
            match retag(copy, header, member.tagging) {
                Ok(copy) => self.forward(cx, member.port, copy),
                Err((copy, _)) => cx.pool.free(copy),
            }
        }
        let packet = retag(packet, header, last.tagging)?;
        self.forward(cx, last.port, packet);
        Ok(())
    }
}

/// Sets or removes the VLAN tag for egress. The priority bits of a tag are kept.
fn retag(
    mut packet: Packet,
    header: &Header,
    tagging: Tagging,
) -> Result<Packet, (Packet, DropReason)> {
    match tagging {
        Tagging::Untagged if header.tagged => {
            packet.bytes_mut().copy_within(0..12, TAG);
            packet.pull_front(TAG);
            packet.offload.shift(-(TAG as i32));
        }
        Tagging::Untagged => {}
        Tagging::Tagged(vid) if header.tagged => {
            let tci = u16::from_be_bytes([packet.bytes()[14], packet.bytes()[15]]);
            let tci = tci & 0xf000 | vid;
            packet.bytes_mut()[14..16].copy_from_slice(&tci.to_be_bytes());
        }
        Tagging::Tagged(vid) => {
            if packet.headroom() < TAG {
                return Err((packet, DropReason::FrameTooLong));
            }
            packet.push_front(TAG);
            let frame = packet.bytes_mut();
            frame.copy_within(TAG..TAG + 12, 0);
            frame[12..14].copy_from_slice(&ethertype::VLAN.to_be_bytes());
            frame[14..16].copy_from_slice(&vid.to_be_bytes());
            packet.offload.shift(TAG as i32);
        }
    }
    Ok(packet)
}
