//! ICMP errors about packets that cannot go on (RFC 792, RFC 1812 §4.3, RFC 4443), and answers
//! to pings of the switch's own addresses.
//!
//! An error quotes what the sender sent: hand in the packet before anything in it was
//! translated or counted down. Where the sender left a checksum unfinished (CHECKSUM_PARTIAL), it
//! is quoted unfinished, as Linux does: no receiver verifies a quote's layer-4 checksum, most
//! quotes do not hold all of what it covers, and finishing it would let one small answer cost
//! the sum over a 64 KiB super-frame.

use std::net::IpAddr;

use podswitch_wire::flow_key::{Family, HashKey, proto};
use podswitch_wire::parse::{Fragment, Icmp, Parsed};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol};

use super::{IPV4, IPV6, NoAnswer, Way, is_one_host};
use crate::limit::{KeyedLimiter, Rate, TokenBucket, address_key};
use crate::packet::{Packet, Pool};
use crate::time::Instant;

/// Bytes in front of what an ICMP error quotes, and of an echo message's data.
const HEADER: usize = 8;
/// Longest IPv4 packet with an error in it (RFC 1812 §4.3.2.3).
const MAX_V4: usize = 576;
/// Longest IPv6 packet with an error in it: the smallest MTU (RFC 4443 §2.4 (c)).
const MAX_V6: usize = 1280;
/// Internetwork control, the precedence that RFC 1812 §4.3.2.5 asks of IPv4 errors.
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// What is wrong with a packet, for either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// TTL or hop limit used up in transit.
    TimeExceeded,
    /// No route to the destination.
    NoRoute,
    /// There is a route, and nobody at the address.
    AddressUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// Policy forbids it.
    AdminProhibited,
    /// Larger than the next link's MTU in bytes, and not to be fragmented here.
    TooBig {
        /// The MTU, of the network layer. What is sent for IPv6 is never below 1280.
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

/// How many errors and resets a worker sends: to all together, and to each address.
#[derive(Clone, Debug)]
pub struct ErrorLimiter {
    overall: TokenBucket,
    each: KeyedLimiter,
    secret: HashKey,
}

impl ErrorLimiter {
    /// To all together; Linux's `icmp_msgs_per_sec` has the same default.
    pub const OVERALL: Rate = Rate::new(1000, 200);
    /// To each address; enough for a traceroute that has sixteen probes out for each of three
    /// hops.
    pub const EACH: Rate = Rate::new(50, 50);
    /// How many addresses are told apart.
    pub const ADDRESSES: usize = 1024;

    /// A limiter with the rates above. `secret` keeps others from choosing addresses that
    /// share a bucket.
    pub fn new(secret: HashKey) -> Self {
        Self::with_rates(secret, Self::OVERALL, Self::EACH, Self::ADDRESSES)
    }

    /// A limiter with rates of one's own, for about `addresses` addresses.
    pub fn with_rates(secret: HashKey, overall: Rate, each: Rate, addresses: usize) -> Self {
        Self {
            overall: TokenBucket::new(overall),
            each: KeyedLimiter::new(each, addresses),
            secret,
        }
    }

    /// Whether one more may be sent to `address`, counted if so. An address over its own rate
    /// takes nothing from the others.
    pub fn allow(&mut self, address: IpAddr, now: Instant) -> bool {
        self.each.take(address_key(address, &self.secret), now) && self.overall.take(now)
    }
}

/// The error `error` about `packet`, from the switch's address `source` (of the packet's family),
/// as an Ethernet frame back to where the packet came from.
///
/// # Errors
/// [`NoAnswer`] where the rules forbid it (an error about an error or a redirect, a fragment
/// other than the first, anything from or to a group, broadcast or impossible address), where it
/// is limited, or where the pool is empty.
pub fn error(
    error: Error,
    packet: &Packet,
    parsed: &Parsed,
    source: IpAddr,
    now: Instant,
    limiter: &mut ErrorLimiter,
    pool: &mut Pool,
) -> Result<Packet, NoAnswer> {
    let back = Way::back(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let frame = packet.bytes();
    let datagram = frame
        .get(usize::from(parsed.l3)..parsed.end as usize)
        .filter(|_| parsed.fragment != Fragment::Later && !is_error(frame, parsed))
        .ok_or(NoAnswer::Forbidden)?;
    if !is_one_host(source) || source.is_ipv4() != back.dst.is_ipv4() {
        return Err(NoAnswer::Forbidden);
    }
    if !limiter.allow(back.dst, now) {
        return Err(NoAnswer::RateLimited);
    }
    let way = Way { src: source, ..back };
    let (room, (kind, code, rest), protocol, class) = match parsed.key.family {
        Family::V4 => (MAX_V4 - IPV4 - HEADER, error.v4(), IpProtocol::Icmp, INTERNETWORK_CONTROL),
        Family::V6 => (MAX_V6 - IPV6 - HEADER, error.v6(), IpProtocol::Icmpv6, 0),
    };
    let quote = &datagram[..datagram.len().min(room)];
    let built = way.packet(pool, protocol, class, HEADER + quote.len());
    let (mut answer, start) = built.ok_or(NoAnswer::NoBuffer)?;
    let icmp = &mut answer.bytes_mut()[start..];
    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..HEADER].copy_from_slice(&rest.to_be_bytes());
    icmp[HEADER..].copy_from_slice(quote);
    fill_checksum(icmp, &way);
    Ok(answer)
}

/// Whether a packet is an ICMP error, or a message that must be treated like one: a redirect, or
/// of a type that we do not know to be informational (RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e.1, e.2)).
fn is_error(frame: &[u8], parsed: &Parsed) -> bool {
    let kind = frame.get(usize::from(parsed.l4)).copied();
    match (parsed.key.family, parsed.key.proto) {
        (Family::V4, proto::ICMP) => !matches!(kind, Some(0 | 8..=10 | 13..=18)),
        (Family::V6, proto::ICMPV6) => !matches!(kind, Some(128..=136 | 138..)),
        _ => false,
    }
}

/// The answer to a ping of the address that `packet` is for (RFC 1122 §3.2.2.6, RFC 4443 §4.2),
/// as an Ethernet frame back to where the packet came from. The caller has seen that the address
/// is the switch's own. Options and extension headers are not returned.
///
/// # Errors
/// [`NoAnswer`] where the packet is no whole echo request from a single host, its checksum is
/// wrong, or the pool is empty. Not limited: one answer a request, no larger than that.
pub fn echo_reply(packet: &Packet, parsed: &Parsed, pool: &mut Pool) -> Result<Packet, NoAnswer> {
    let back = Way::back(packet, parsed).ok_or(NoAnswer::Forbidden)?;
    let frame = packet.bytes();
    let request =
        frame.get(usize::from(parsed.l4)..parsed.end as usize).ok_or(NoAnswer::Forbidden)?;
    let (asked, answered, protocol) = match parsed.key.family {
        Family::V4 => (8, 0, IpProtocol::Icmp),
        Family::V6 => (128, 129, IpProtocol::Icmpv6),
    };
    let fit = parsed.fragment == Fragment::Whole
        && parsed.icmp == Icmp::Query
        && request.len() >= HEADER
        && request[..2] == [asked, 0];
    if !fit {
        return Err(NoAnswer::Forbidden);
    }
    let vouched = packet.offload.csum_partial || packet.offload.csum_valid;
    if !vouched && !verify_checksum(request, &back) {
        return Err(NoAnswer::BadChecksum);
    }
    let built = back.packet(pool, protocol, parsed.traffic_class, request.len());
    let (mut answer, start) = built.ok_or(NoAnswer::NoBuffer)?;
    let icmp = &mut answer.bytes_mut()[start..];
    icmp.copy_from_slice(request);
    icmp[0] = answered;
    fill_checksum(icmp, &back);
    Ok(answer)
}

fn fill_checksum(icmp: &mut [u8], way: &Way) {
    match (way.src, way.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Icmpv6Packet::new_unchecked(icmp).fill_checksum(&src, &dst);
        }
        _ => Icmpv4Packet::new_unchecked(icmp).fill_checksum(),
    }
}

/// Verifies a message that came the other way.
fn verify_checksum(icmp: &[u8], back: &Way) -> bool {
    match (back.src, back.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Icmpv6Packet::new_unchecked(icmp).verify_checksum(&dst, &src)
        }
        _ => Icmpv4Packet::new_unchecked(icmp).verify_checksum(),
    }
}

#[cfg(test)]
mod tests;
