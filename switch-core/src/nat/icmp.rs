//! Translation of ICMP errors about a translated connection: of the error's own addresses, and of the quoted packet,
//! which is restored to the form in which its sender sent it (RFC 5508 §4.2, REQ-4 and REQ-5).
//!
//! On the slow path.

use podswitch_wire::checksum::{Delta, sctp_update, sum};
use podswitch_wire::flow_key::{FlowKey, proto};
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed, Quoted};

use crate::packet::Packet;

/// Offsets of the addresses in an IP header, and their length.
fn address_fields(network: Network) -> Option<(usize, usize, usize)> {
    match network {
        Network::Ipv4 => Some((12, 16, 4)),
        Network::Ipv6 => Some((8, 24, 16)),
        Network::Arp | Network::Other => None,
    }
}

/// Rewrites an ICMP error. `reply`: the reverse of the quoted packet's key, which is a direction of a connection.
/// `outgoing`: the key of that direction's packets after translation. The source address is translated if it is the
/// connection's other end. The source address of a router is kept.
pub fn translate_error(
    packet: &mut Packet,
    parsed: &Parsed,
    quoted: &Quoted,
    reply: &FlowKey,
    outgoing: &FlowKey,
) {
    let Some((src, dst, width)) = address_fields(parsed.network) else { return };
    let partial = packet.offload.is_of(parsed);
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (start, end) = (usize::from(parsed.payload), parsed.end as usize);
    let frame = packet.bytes_mut();
    if frame.len() < end || start + dst + width > end || l4 + 4 > end {
        return;
    }

    let before = sum(&frame[l4..end]).fold();
    quote(&mut frame[start..end], parsed.network, quoted, reply, outgoing);
    let inside = Delta::u16(before, sum(&frame[l4..end]).fold());

    let mut outside = Delta::addr16(&parsed.key.dst, &outgoing.dst);
    frame[l3 + dst..l3 + dst + width].copy_from_slice(&outgoing.dst[..width]);
    if parsed.key.src == reply.src {
        outside = outside.and(Delta::addr16(&parsed.key.src, &outgoing.src));
        frame[l3 + src..l3 + src + width].copy_from_slice(&outgoing.src[..width]);
    }
    match parsed.network {
        Network::Ipv6 if partial => update(frame, l4 + 2, |c| outside.apply_partial(c)),
        Network::Ipv6 => update(frame, l4 + 2, |c| inside.and(outside).apply(c)),
        _ => {
            update(frame, l3 + 10, |c| outside.apply(c));
            if !partial {
                update(frame, l4 + 2, |c| inside.apply(c));
            }
        }
    }
}

/// Rewrites the quoted packet, which may be truncated.
fn quote(bytes: &mut [u8], network: Network, quoted: &Quoted, reply: &FlowKey, outgoing: &FlowKey) {
    let Some((src, dst, width)) = address_fields(network) else { return };
    bytes[src..src + width].copy_from_slice(&outgoing.dst[..width]);
    bytes[dst..dst + width].copy_from_slice(&outgoing.src[..width]);
    let addresses =
        Delta::addr16(&reply.dst, &outgoing.dst).and(Delta::addr16(&reply.src, &outgoing.src));
    if network == Network::Ipv4 {
        update(bytes, 10, |c| addresses.apply(c));
    }
    if quoted.fragment == Fragment::Later {
        return;
    }
    let l4 = usize::from(quoted.l4);
    let Some(header) = bytes.get_mut(l4..) else { return };
    let ports = Delta::u16(reply.dst_port, outgoing.dst_port)
        .and(Delta::u16(reply.src_port, outgoing.src_port));
    let all = addresses.and(ports);
    match quoted.key.proto {
        proto::TCP => {
            put_ports(header, outgoing);
            update(header, 16, |c| all.apply(c));
        }
        proto::UDP => {
            put_ports(header, outgoing);
            update(header, 6, |c| all.apply_udp(c));
        }
        proto::SCTP => {
            let Some(&[a, b, c, d]) = header.first_chunk::<4>() else { return };
            put_ports(header, outgoing);
            let length = (quoted.total_len as usize).saturating_sub(l4);
            if let Some(header) = header.first_chunk_mut::<12>() {
                let new = [header[0], header[1], header[2], header[3]];
                let old = [header[8], header[9], header[10], header[11]];
                header[8..].copy_from_slice(&sctp_update(old, length, [a, b, c, d], new));
            }
        }
        proto::ICMP | proto::ICMPV6 => {
            // The identifier takes the place of the querying side's port.
            let (old, new) = match quoted.icmp {
                Icmp::Query => (reply.dst_port, outgoing.dst_port),
                Icmp::Reply => (reply.src_port, outgoing.src_port),
                _ => return,
            };
            update(header, 4, |_| new);
            let delta = Delta::u16(old, new);
            match network {
                Network::Ipv6 => update(header, 2, |c| addresses.and(delta).apply(c)),
                _ => update(header, 2, |c| delta.apply(c)),
            }
        }
        _ => {}
    }
}

/// Writes the ports. The quoted packet has the opposite direction of `outgoing`.
fn put_ports(header: &mut [u8], outgoing: &FlowKey) {
    if let Some(ports) = header.first_chunk_mut::<4>() {
        [ports[0], ports[1]] = outgoing.dst_port.to_be_bytes();
        [ports[2], ports[3]] = outgoing.src_port.to_be_bytes();
    }
}

fn update(bytes: &mut [u8], at: usize, with: impl FnOnce(u16) -> u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        let new = with(u16::from_be_bytes([field[0], field[1]]));
        field.copy_from_slice(&new.to_be_bytes());
    }
}
