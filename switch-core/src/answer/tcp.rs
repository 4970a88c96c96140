//! TCP resets, for connections that are rejected and not just dropped.

use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Parsed, tcp_flags};
use smoltcp::wire::{IpAddress, IpProtocol, TcpPacket};

use super::icmp::ErrorLimiter;
use super::{Addressing, NoAnswer};
use crate::packet::{Packet, Pool};
use crate::time::Instant;

/// Bytes of a TCP header without options.
const HEADER: usize = 20;

/// Builds the Ethernet frame with the reset that a closed port sends in reply to a segment (RFC 9293
/// §3.10.7.1), from the address and port that the segment was for.
///
/// # Errors
/// [`NoAnswer`] if a rule forbids it (not TCP, a reset, a fragment, a group, broadcast or invalid
/// address), the checksum is wrong, the rate limit is reached, or the pool is empty.
pub fn reset(
    packet: &Packet,
    parsed: &Parsed,
    now: Instant,
    limiter: &mut ErrorLimiter,
    pool: &mut Pool,
) -> Result<Packet, NoAnswer> {
    let reply = Addressing::reply_to(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let may_reset = parsed.key.proto == proto::TCP
        && parsed.fragment == Fragment::Whole
        && parsed.tcp_flags & tcp_flags::RST == 0;
    let segment = packet
        .bytes()
        .get(usize::from(parsed.l4)..parsed.end as usize)
        .filter(|_| may_reset)
        .and_then(|bytes| TcpPacket::new_checked(bytes).ok())
        .ok_or(NoAnswer::Forbidden)?;
    let (src, dst) = (IpAddress::from(reply.src), IpAddress::from(reply.dst));
    let verified = packet.offload.csum_partial || packet.offload.csum_valid;
    if !verified && !segment.verify_checksum(&dst, &src) {
        return Err(NoAnswer::BadChecksum);
    }
    if !limiter.allow(reply.dst, now) {
        return Err(NoAnswer::RateLimited);
    }

    let built = reply.packet(pool, IpProtocol::Tcp, 0, HEADER);
    let (mut answer, start) = built.ok_or(NoAnswer::NoBuffer)?;
    let bytes = &mut answer.bytes_mut()[start..];
    bytes.fill(0);
    let mut tcp = TcpPacket::new_unchecked(bytes);
    tcp.set_src_port(segment.dst_port());
    tcp.set_dst_port(segment.src_port());
    tcp.set_header_len(HEADER as u8);
    tcp.set_rst(true);
    if segment.ack() {
        tcp.set_seq_number(segment.ack_number());
    } else {
        let next = segment.seq_number() + segment.segment_len();
        tcp.set_ack(true);
        tcp.set_ack_number(next);
    }
    tcp.fill_checksum(&src, &dst);
    Ok(answer)
}

#[cfg(test)]
mod tests;
