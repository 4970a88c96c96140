//! ICMP errors about packets that cannot be forwarded (RFC 792, RFC 1812 §4.3, RFC 4443), and replies
//! to pings of the switch's own addresses.
//!
//! An error quotes the packet as the sender sent it, so it must be created before the packet is translated or its TTL
//! decremented. A partial checksum (CHECKSUM_PARTIAL) is quoted unchanged, as Linux does: no receiver verifies the
//! layer-4 checksum of a quote, most quotes do not contain all the bytes that it covers, and to compute it for one
//! small answer, the whole 64 KiB GSO packet would have to be summed.

use std::net::IpAddr;

use podswitch_wire::flow_key::{Family, HashKey, proto};
use podswitch_wire::parse::{Fragment, Icmp, Parsed};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol};

use super::{Addressing, IPV4, IPV6, NoAnswer, is_one_host};
use crate::limit::{KeyedLimiter, Rate, TokenBucket, address_key};
use crate::packet::{Packet, Pool};
use crate::time::Instant;

/// Bytes of an ICMP header: before the quote of an error and the data of an echo message.
const HEADER: usize = 8;
/// Longest IPv4 packet that carries an error (RFC 1812 §4.3.2.3).
const MAX_V4: usize = 576;
/// Longest IPv6 packet that carries an error: the smallest MTU (RFC 4443 §2.4 (c)).
const MAX_V6: usize = 1280;
/// Internetwork control, the precedence of IPv4 errors (RFC 1812 §4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// An ICMP error, for both families.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// TTL or hop limit exceeded in transit.
    TimeExceeded,
    /// No route to the destination.
    NoRoute,
    /// There is a route, but no host with the address.
    AddressUnreachable,
    /// The port is closed.
    PortUnreachable,
    /// Policy forbids it.
    AdminProhibited,
    /// The packet exceeds the MTU of the next hop and must not be fragmented here.
    TooBig {
        /// The MTU of the network layer, in bytes. For IPv6 at least 1280 is sent.
        mtu: u32,
    },
}

impl Error {
    /// Type, code and second word over IPv4 (RFC 792, RFC 1191 §4, RFC 1812 §5.2.7.1).
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (11, 0, 0),
            Self::NoRoute => (3, 0, 0),
            Self::AddressUnreachable => (3, 1, 0),
            Self::PortUnreachable => (3, 3, 0),
            Self::AdminProhibited => (3, 13, 0),
            Self::TooBig { mtu } => (3, 4, mtu.min(0xffff)),
        }
    }

    /// Type, code and second word over IPv6 (RFC 4443 §3).
    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (3, 0, 0),
            Self::NoRoute => (1, 0, 0),
            Self::AddressUnreachable => (1, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::AdminProhibited => (1, 1, 0),
            Self::TooBig { mtu } => (2, 0, mtu.max(MAX_V6 as u32)),
        }
    }
}

/// Rate limit of the errors and resets that a worker sends: overall, and to each address.
#[derive(Clone, Debug)]
pub struct ErrorLimiter {
    overall: TokenBucket,
    each: KeyedLimiter,
    secret: HashKey,
}

impl ErrorLimiter {
    /// The overall rate. The default of Linux's `icmp_msgs_per_sec` is the same.
    pub const OVERALL: Rate = Rate::new(1000, 200);
    /// The rate to each address. Enough for a traceroute with sixteen probes in flight for each of
    /// three hops.
    pub const EACH: Rate = Rate::new(50, 50);
    /// Number of addresses that have a rate of their own.
    pub const ADDRESSES: usize = 1024;

    /// A limiter with the rates above. With the hash key `secret` nobody can choose addresses that share a bucket.
    pub fn new(secret: HashKey) -> Self {
        Self::with_rates(secret, Self::OVERALL, Self::EACH, Self::ADDRESSES)
    }

    /// A limiter with the given rates, for about `addresses` addresses.
    pub fn with_rates(secret: HashKey, overall: Rate, each: Rate, addresses: usize) -> Self {
        Self {
            overall: TokenBucket::new(overall),
            each: KeyedLimiter::new(each, addresses),
            secret,
        }
    }

    /// Whether another message may be sent to `address`; if so, it is counted. An address that exceeds
    /// its own rate does not use up the overall rate.
    pub fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        self.each.take(address_key(address, &self.secret), now) && self.overall.take(now)
    }
}

/// Builds the Ethernet frame with an error about `packet`, from the switch's address `source` (of the
/// packet's family) to the packet's sender.
///
/// # Errors
/// [`NoAnswer`] if a rule forbids it (an error about an error or a redirect, a fragment other than the
/// first, a group, broadcast or invalid address), the rate limit is reached, or the pool is empty.
pub fn error(
    error: Error,
    packet: &Packet,
    parsed: &Parsed,
    source: IpAddr,
    now: Instant,
    limiter: &mut ErrorLimiter,
    pool: &mut Pool,
) -> Result<Packet, NoAnswer> {
    let reply = Addressing::reply_to(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let frame = packet.bytes();
    let datagram = frame
        .get(usize::from(parsed.l3)..parsed.end as usize)
        .filter(|_| parsed.fragment != Fragment::Later && !is_error(frame, parsed))
        .ok_or(NoAnswer::Forbidden)?;
    if !is_one_host(source) || source.is_ipv4() != reply.dst.is_ipv4() {
        return Err(NoAnswer::Forbidden);
    }
    if !limiter.allow(reply.dst, now) {
        return Err(NoAnswer::RateLimited);
    }
    let reply = Addressing { src: source, ..reply };
    let (room, (kind, code, rest), protocol, class) = match parsed.key.family {
        Family::V4 => (MAX_V4 - IPV4 - HEADER, error.v4(), IpProtocol::Icmp, INTERNETWORK_CONTROL),
        Family::V6 => (MAX_V6 - IPV6 - HEADER, error.v6(), IpProtocol::Icmpv6, 0),
    };
    let quote = &datagram[..datagram.len().min(room)];
    let built = reply.packet(pool, protocol, class, HEADER + quote.len());
    let (mut answer, start) = built.ok_or(NoAnswer::NoBuffer)?;
    let icmp = &mut answer.bytes_mut()[start..];
    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..HEADER].copy_from_slice(&rest.to_be_bytes());
    icmp[HEADER..].copy_from_slice(quote);
    fill_checksum(icmp, &reply);
    Ok(answer)
}

/// Whether a packet is an ICMP error, or must be treated like one: a redirect, or a type that is not
/// known to be informational (RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e.1, e.2)).
fn is_error(frame: &[u8], parsed: &Parsed) -> bool {
    let kind = frame.get(usize::from(parsed.l4)).copied();
    match (parsed.key.family, parsed.key.proto) {
        (Family::V4, proto::ICMP) => !matches!(kind, Some(0 | 8..=10 | 13..=18)),
        (Family::V6, proto::ICMPV6) => !matches!(kind, Some(128..=136 | 138..)),
        _ => false,
    }
}

/// Builds the Ethernet frame with the echo reply to the ping `packet` (RFC 1122 §3.2.2.6, RFC 4443
/// §4.2). The caller has checked that the destination is an address of the switch. IP options and
/// extension headers are not returned.
///
/// # Errors
/// [`NoAnswer`] if the packet is no complete echo request from a single host, its checksum is wrong, or
/// the pool is empty. Not rate-limited: a reply is no larger than its request.
pub fn echo_reply(packet: &Packet, parsed: &Parsed, pool: &mut Pool) -> Result<Packet, NoAnswer> {
    let reply = Addressing::reply_to(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let frame = packet.bytes();
    let request =
        frame.get(usize::from(parsed.l4)..parsed.end as usize).ok_or(NoAnswer::Forbidden)?;
    let (request_type, reply_type, protocol) = match parsed.key.family {
        Family::V4 => (8, 0, IpProtocol::Icmp),
        Family::V6 => (128, 129, IpProtocol::Icmpv6),
    };
    let is_valid = parsed.fragment == Fragment::Whole
        && parsed.icmp == Icmp::Query
        && request.len() >= HEADER
        && request[..2] == [request_type, 0];
    if !is_valid {
        return Err(NoAnswer::Forbidden);
    }
    let verified = packet.offload.csum_partial || packet.offload.csum_valid;
    if !verified && !verify_checksum(request, &reply) {
        return Err(NoAnswer::BadChecksum);
    }
    let built = reply.packet(pool, protocol, parsed.traffic_class, request.len());
    let (mut answer, start) = built.ok_or(NoAnswer::NoBuffer)?;
    let icmp = &mut answer.bytes_mut()[start..];
    icmp.copy_from_slice(request);
    icmp[0] = reply_type;
    fill_checksum(icmp, &reply);
    Ok(answer)
}

fn fill_checksum(icmp: &mut [u8], addressing: &Addressing) {
    match (addressing.src, addressing.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Icmpv6Packet::new_unchecked(icmp).fill_checksum(&src, &dst);
        }
        _ => Icmpv4Packet::new_unchecked(icmp).fill_checksum(),
    }
}

/// Verifies a received message. `reply`: the addressing of the reply to it.
fn verify_checksum(icmp: &[u8], reply: &Addressing) -> bool {
    match (reply.src, reply.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Icmpv6Packet::new_unchecked(icmp).verify_checksum(&dst, &src)
        }
        _ => Icmpv4Packet::new_unchecked(icmp).verify_checksum(),
    }
}

#[cfg(test)]
mod tests;
