//! Datagrams that answer a datagram: from the address and port that it was sent to, back to its sender.

use podswitch_wire::checksum::verify_l4;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Parsed};
use smoltcp::wire::{IpAddress, IpProtocol, UdpPacket};

use super::{Addressing, IPV4, IPV6, NoAnswer};
use crate::packet::{Packet, Pool};

/// Bytes of a UDP header.
const HEADER: usize = 8;

/// The content of a datagram, if it may be answered.
///
/// # Errors
/// [`NoAnswer`] if a rule forbids it (not a single whole datagram, a group, broadcast or invalid address) or the checksum
/// is wrong.
pub fn content<'p>(packet: &'p Packet, parsed: &Parsed) -> Result<&'p [u8], NoAnswer> {
    let is_one = parsed.key.proto == proto::UDP
        && parsed.fragment == Fragment::Whole
        && !packet.offload.is_gso();
    let frame = packet.bytes();
    let content = frame
        .get(usize::from(parsed.payload)..parsed.end as usize)
        .filter(|_| is_one && Addressing::reply_to(packet, parsed).is_some())
        .ok_or(NoAnswer::Forbidden)?;
    // The datagram may be shorter than the packet (RFC 768).
    let length = frame.get(usize::from(parsed.l4) + 4..).and_then(|rest| rest.first_chunk::<2>());
    let length = length.map_or(0, |bytes| usize::from(u16::from_be_bytes(*bytes)));
    let content = length.checked_sub(HEADER).and_then(|length| content.get(..length));
    let verified = packet.offload.csum_partial || packet.offload.csum_valid;
    if !verified && !verify_l4(frame, parsed) {
        return Err(NoAnswer::BadChecksum);
    }
    content.ok_or(NoAnswer::Forbidden)
}

/// The greatest content of an answer to a packet through a link of this MTU, in bytes.
pub fn room(parsed: &Parsed, mtu: u16) -> usize {
    let header = if parsed.key.src_addr().is_ipv4() { IPV4 } else { IPV6 };
    usize::from(mtu).saturating_sub(header + HEADER)
}

/// Builds the Ethernet frame with a datagram of `content` back to the sender of `packet`.
///
/// # Errors
/// [`NoAnswer`] as of [`content`], or the pool is empty.
pub fn reply(
    packet: &Packet,
    parsed: &Parsed,
    content: &[u8],
    pool: &mut Pool,
) -> Result<Packet, NoAnswer> {
    let reply = Addressing::reply_to(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let length = u16::try_from(HEADER + content.len()).map_err(|_| NoAnswer::Forbidden)?;
    let built = reply.packet(pool, IpProtocol::Udp, 0, length.into());
    let (mut answer, start) = built.ok_or(NoAnswer::NoBuffer)?;
    let mut udp = UdpPacket::new_unchecked(&mut answer.bytes_mut()[start..]);
    udp.set_src_port(parsed.key.dst_port);
    udp.set_dst_port(parsed.key.src_port);
    udp.set_len(length);
    udp.payload_mut().copy_from_slice(content);
    udp.fill_checksum(&IpAddress::from(reply.src), &IpAddress::from(reply.dst));
    Ok(answer)
}
