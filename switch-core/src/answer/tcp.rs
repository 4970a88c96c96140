//! TCP resets, for connections that are refused rather than dropped.

use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Parsed, tcp_flags};
use smoltcp::wire::{IpAddress, IpProtocol, TcpPacket};

use super::icmp::ErrorLimiter;
use super::{NoAnswer, Way};
use crate::packet::{Packet, Pool};
use crate::time::Instant;

/// Bytes of a TCP header without options.
const HEADER: usize = 20;

/// The reset that a closed port answers a segment with (RFC 9293 §3.10.7.1), from the address
/// and port that the segment was for, as an Ethernet frame back to where it came from.
///
/// # Errors
/// [`NoAnswer`] where the rules forbid it (no TCP, a reset, a fragment, anything from or to a
/// group, broadcast or impossible address), the checksum is wrong, the limit is reached, or the
/// pool is empty.
pub fn reset(
    packet: &Packet,
    parsed: &Parsed,
    now: Instant,
    limiter: &mut ErrorLimiter,
    pool: &mut Pool,
) -> Result<Packet, NoAnswer> {
    let back = Way::back(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let fit = parsed.key.proto == proto::TCP
        && parsed.fragment == Fragment::Whole
        && parsed.tcp_flags & tcp_flags::RST == 0;
    let segment = packet
        .bytes()
        .get(usize::from(parsed.l4)..parsed.end as usize)
        .filter(|_| fit)
        .and_then(|bytes| TcpPacket::new_checked(bytes).ok())
        .ok_or(NoAnswer::Forbidden)?;
    let (src, dst) = (IpAddress::from(back.src), IpAddress::from(back.dst));
    let vouched = packet.offload.csum_partial || packet.offload.csum_valid;
    if !vouched && !segment.verify_checksum(&dst, &src) {
        return Err(NoAnswer::BadChecksum);
    }
    if !limiter.allow(back.dst, now) {
        return Err(NoAnswer::RateLimited);
    }

    let built = back.packet(pool, IpProtocol::Tcp, 0, HEADER);
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
