//! Address translation of a frame in place: addresses, ports, and every checksum that covers
//! them, by what changed (RFC 1624), so that a wrong checksum stays wrong and a partial one
//! partial.

use podswitch_wire::checksum::{Delta, sctp_update};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed};

use super::{Plan, PlanFlags};
use crate::packet::Packet;

/// All that `plan` does to a frame, if it is as nearly all are: a whole datagram of TCP or UDP
/// without tags, options and unfinished checksum. False, and nothing was changed: it is not.
#[inline(always)]
pub(super) fn translate_ordinary(packet: &mut Packet, parsed: &Parsed, plan: &Plan) -> bool {
    if packet.offload.csum_partial || parsed.fragment != Fragment::Whole {
        return false;
    }
    let frame = packet.bytes_mut();
    match (parsed.l4, parsed.key.proto) {
        // Behind Ethernet and IPv4 or IPv6 without options; the number is where the checksum ends.
        (34, proto::UDP) => whole::<42>(frame, plan, Delta::apply_udp),
        (34, proto::TCP) => whole::<52>(frame, plan, Delta::apply),
        (54, proto::UDP) if parsed.network == Network::Ipv6 => {
            whole::<62>(frame, plan, Delta::apply_udp)
        }
        (54, proto::TCP) if parsed.network == Network::Ipv6 => {
            whole::<72>(frame, plan, Delta::apply)
        }
        _ => false,
    }
}

/// [`translate_ordinary`] of a frame whose layer-4 checksum ends at `END`.
#[inline(always)]
fn whole<const END: usize>(
    frame: &mut [u8],
    plan: &Plan,
    apply: impl Fn(Delta, u16) -> u16,
) -> bool {
    let Some(head) = frame.first_chunk_mut::<END>() else { return false };
    head[..12].copy_from_slice(&plan.macs);
    let l4 = if END < 62 {
        head[22] = head[22].wrapping_sub(1);
        let sum = plan.address_delta.apply_hop(u16::from_be_bytes([head[24], head[25]]));
        head[24..26].copy_from_slice(&sum.to_be_bytes());
        head[26..30].copy_from_slice(&plan.src[..4]);
        head[30..34].copy_from_slice(&plan.dst[..4]);
        34
    } else {
        head[21] = head[21].wrapping_sub(1);
        head[22..38].copy_from_slice(&plan.src);
        head[38..54].copy_from_slice(&plan.dst);
        54
    };
    head[l4..l4 + 2].copy_from_slice(&plan.src_port.to_be_bytes());
    head[l4 + 2..l4 + 4].copy_from_slice(&plan.dst_port.to_be_bytes());
    let sum = apply(plan.flow_delta, u16::from_be_bytes([head[END - 2], head[END - 1]]));
    head[END - 2..].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Rewrites addresses and ports as `plan` says.
#[inline(never)]
pub(super) fn translate(packet: &mut Packet, parsed: &Parsed, plan: &Plan) {
    let partial = packet.offload.is_of(parsed);
    let frame = packet.bytes_mut();
    addresses(frame, parsed, plan);
    // Later fragments have no layer-4 header: the first one's checksum covers the datagram.
    if parsed.fragment == Fragment::Later {
        return;
    }
    let l4 = usize::from(parsed.l4);
    let end = parsed.end as usize;
    let Some(layer4) = frame.get_mut(l4..end) else { return };
    match parsed.key.proto {
        proto::TCP => sum16(layer4, 16, partial, plan, Delta::apply),
        proto::UDP => sum16(layer4, 6, partial, plan, Delta::apply_udp),
        proto::SCTP => sctp(layer4, partial, plan),
        proto::ICMP | proto::ICMPV6 => icmp(layer4, parsed, partial, plan),
        _ => {}
    }
}

fn addresses(frame: &mut [u8], parsed: &Parsed, plan: &Plan) {
    let l3 = usize::from(parsed.l3);
    let (src, dst, width) = match parsed.network {
        Network::Ipv4 => (l3 + 12, l3 + 16, 4),
        Network::Ipv6 => (l3 + 8, l3 + 24, 16),
        Network::Arp | Network::Other => return,
    };
    if frame.len() < dst + width {
        return;
    }
    if plan.flags.has(PlanFlags::SNAT) {
        frame[src..src + width].copy_from_slice(&plan.src[..width]);
    }
    if plan.flags.has(PlanFlags::DNAT) {
        frame[dst..dst + width].copy_from_slice(&plan.dst[..width]);
    }
    if parsed.network == Network::Ipv4 {
        update(&mut frame[l3..], 10, |c| plan.address_delta.apply(c));
    }
}

/// TCP and UDP: ports first, the checksum at `field`.
#[inline]
fn sum16(
    layer4: &mut [u8],
    field: usize,
    partial: bool,
    plan: &Plan,
    apply: impl Fn(Delta, u16) -> u16,
) {
    ports(layer4, plan);
    if partial {
        update(layer4, field, |c| plan.address_delta.apply_partial(c));
    } else {
        update(layer4, field, |c| apply(plan.flow_delta, c));
    }
}

fn ports(layer4: &mut [u8], plan: &Plan) {
    if let Some(ports) = layer4.first_chunk_mut::<4>() {
        if plan.flags.has(PlanFlags::SNAT) {
            [ports[0], ports[1]] = plan.src_port.to_be_bytes();
        }
        if plan.flags.has(PlanFlags::DNAT) {
            [ports[2], ports[3]] = plan.dst_port.to_be_bytes();
        }
    }
}

/// SCTP: the CRC covers the packet but not the addresses (RFC 9260 §6.8). A partial one is for
/// whoever finishes it.
fn sctp(layer4: &mut [u8], partial: bool, plan: &Plan) {
    let Some(&[a, b, c, d, ..]) = layer4.first_chunk::<12>() else { return };
    ports(layer4, plan);
    if partial {
        return;
    }
    let len = layer4.len();
    if let Some(header) = layer4.first_chunk_mut::<12>() {
        let new = [header[0], header[1], header[2], header[3]];
        let old = [header[8], header[9], header[10], header[11]];
        header[8..].copy_from_slice(&sctp_update(old, len, [a, b, c, d], new));
    }
}

/// ICMP queries and answers: the identifier is the asking side's port (RFC 5508 §3). Only ICMPv6's
/// checksum covers the addresses.
fn icmp(layer4: &mut [u8], parsed: &Parsed, partial: bool, plan: &Plan) {
    let identifier = match parsed.icmp {
        Icmp::Query if plan.flags.has(PlanFlags::SNAT) => Some(plan.src_port),
        Icmp::Reply if plan.flags.has(PlanFlags::DNAT) => Some(plan.dst_port),
        _ => None,
    };
    let mut delta = match parsed.network {
        Network::Ipv6 => plan.address_delta,
        _ => Delta::NONE,
    };
    if let (Some(new), Some(header)) = (identifier, layer4.first_chunk_mut::<8>()) {
        let old = u16::from_be_bytes([header[4], header[5]]);
        [header[4], header[5]] = new.to_be_bytes();
        delta = delta.and(Delta::u16(old, new));
    }
    if partial {
        update(layer4, 2, |c| plan.address_delta.apply_partial(c));
    } else {
        update(layer4, 2, |c| delta.apply(c));
    }
}

/// Replaces the 16-bit field at `at`.
#[inline]
fn update(bytes: &mut [u8], at: usize, with: impl FnOnce(u16) -> u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        let new = with(u16::from_be_bytes([field[0], field[1]]));
        field.copy_from_slice(&new.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use podswitch_wire::checksum::verify_l4;
    use podswitch_wire::flow_key::{FlowKey, HashKey};
    use podswitch_wire::parse::parse;
    use proptest::prelude::*;

    use super::super::apply;
    use super::*;
    use crate::id::PortId;
    use podswitch_wire::addr::Mac;

    const KEY: HashKey = HashKey::new(3);

    #[derive(Clone, Copy, Debug)]
    enum Kind {
        Tcp,
        Udp,
        UdpWithoutChecksum,
        Echo,
        EchoReply,
        Sctp,
    }

    fn frame(kind: Kind, v6: bool, from: &FlowKey, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let (src, dst) = (from.src, from.dst);
        let first = |a: [u8; 16]| [a[0], a[1], a[2], a[3]];
        let ip =
            if v6 { ethernet.ipv6(src, dst, 9) } else { ethernet.ipv4(first(src), first(dst), 9) };
        let mut out = Vec::new();
        let (sp, dp) = (from.src_port, from.dst_port);
        match kind {
            Kind::Tcp => ip.tcp(sp, dp, 1, 2).write(&mut out, payload).unwrap(),
            Kind::Udp | Kind::UdpWithoutChecksum => {
                ip.udp(sp, dp).write(&mut out, payload).unwrap();
                if matches!(kind, Kind::UdpWithoutChecksum) && !v6 {
                    out[14 + 20 + 6..14 + 20 + 8].fill(0);
                }
            }
            Kind::Echo if v6 => ip.icmpv6_echo_request(sp, 7).write(&mut out, payload).unwrap(),
            Kind::Echo => ip.icmpv4_echo_request(sp, 7).write(&mut out, payload).unwrap(),
            Kind::EchoReply if v6 => {
                ip.icmpv6_echo_reply(dp, 7).write(&mut out, payload).unwrap();
            }
            Kind::EchoReply => ip.icmpv4_echo_reply(dp, 7).write(&mut out, payload).unwrap(),
            Kind::Sctp => {
                let mut sctp = Vec::from([0u8; 12]);
                sctp[0..2].copy_from_slice(&sp.to_be_bytes());
                sctp[2..4].copy_from_slice(&dp.to_be_bytes());
                sctp.extend_from_slice(payload);
                let sum = podswitch_wire::checksum::sctp_checksum(&sctp).unwrap();
                sctp[8..12].copy_from_slice(&sum);
                ip.write(&mut out, etherparse::IpNumber::SCTP, &sctp).unwrap();
            }
        }
        out
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Tcp),
            Just(Kind::Udp),
            Just(Kind::UdpWithoutChecksum),
            Just(Kind::Echo),
            Just(Kind::EchoReply),
            Just(Kind::Sctp),
        ]
    }

    fn key(v6: bool) -> impl Strategy<Value = FlowKey> {
        (any::<[u8; 16]>(), any::<[u8; 16]>(), 1u16.., 1u16..).prop_map(move |(s, d, sp, dp)| {
            let cut = |mut a: [u8; 16]| {
                if !v6 {
                    a[4..].fill(0);
                }
                a
            };
            let family = if v6 {
                podswitch_wire::flow_key::Family::V6
            } else {
                podswitch_wire::flow_key::Family::V4
            };
            let (src, dst) = (cut(s), cut(d));
            FlowKey { src, dst, src_port: sp, dst_port: dp, family, ..FlowKey::default() }
        })
    }

    proptest! {
        #[test]
        fn translated_frames_parse_to_the_new_key_and_check_out(
            (v6, from, to) in any::<bool>().prop_flat_map(|v| (Just(v), key(v), key(v))),
            kind in kinds(),
            both in 0..3,
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut packet = Packet::from_frame(&frame(kind, v6, &from, &payload));
            let before = parse(packet.bytes(), &KEY).unwrap();
            let mut to = FlowKey { proto: before.key.proto, ..to };
            match both {
                0 => (to.src, to.src_port) = (before.key.src, before.key.src_port),
                1 => (to.dst, to.dst_port) = (before.key.dst, before.key.dst_port),
                _ => {}
            }
            // The type of an ICMP query stands where the other side's port would.
            match kind {
                Kind::Echo => to.dst_port = before.key.dst_port,
                Kind::EchoReply => to.src_port = before.key.src_port,
                _ => {}
            }
            let plan = Plan::route(PortId(1), 1500, Mac([6; 6]), Mac([8; 6]))
                .translate(&before.key, &to);
            apply(&mut packet, &before, &plan);
            let after = parse(packet.bytes(), &KEY).unwrap();
            prop_assert_eq!(after.key, to);
            prop_assert!(verify_l4(packet.bytes(), &after));
            prop_assert_eq!(after.ttl, 8);
            if matches!(kind, Kind::UdpWithoutChecksum) && !v6 {
                prop_assert_eq!(&packet.bytes()[14 + 20 + 6..14 + 20 + 8], &[0, 0]);
            }
        }

        /// What is done in one go is what is done step by step, wrong checksums among it.
        #[test]
        fn ordinary_frames_are_translated_as_any(
            (v6, from, to) in any::<bool>().prop_flat_map(|v| (Just(v), key(v), key(v))),
            kind in kinds(),
            both in 0..3,
            (ip_sum, l4_sum) in (any::<u16>(), prop_oneof![Just(0), Just(0xffff), any::<u16>()]),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut packet = Packet::from_frame(&frame(kind, v6, &from, &payload));
            let parsed = parse(packet.bytes(), &KEY).unwrap();
            let mut to = FlowKey { proto: parsed.key.proto, ..to };
            match both {
                0 => (to.src, to.src_port) = (parsed.key.src, parsed.key.src_port),
                1 => (to.dst, to.dst_port) = (parsed.key.dst, parsed.key.dst_port),
                _ => {}
            }
            let field = match kind {
                Kind::Tcp => Some(16),
                Kind::Udp | Kind::UdpWithoutChecksum => Some(6),
                _ => None,
            };
            if let Some(field) = field {
                let at = usize::from(parsed.l4) + field;
                packet.bytes_mut()[at..at + 2].copy_from_slice(&u16::to_be_bytes(l4_sum));
            }
            if !v6 {
                packet.bytes_mut()[24..26].copy_from_slice(&ip_sum.to_be_bytes());
            }
            let plan = Plan::route(PortId(1), 1500, Mac([6; 6]), Mac([8; 6]))
                .translate(&parsed.key, &to);
            let mut whole = Packet::from_frame(packet.bytes());
            let ordinary = translate_ordinary(&mut packet, &parsed, &plan);
            prop_assert_eq!(ordinary, field.is_some());
            if ordinary {
                translate(&mut whole, &parsed, &plan);
                crate::action::apply_plain(&mut whole, &parsed, &plan);
            }
            prop_assert_eq!(packet.bytes(), whole.bytes());
        }

        #[test]
        fn partial_checksums_are_right_once_finished(
            (v6, from, to) in any::<bool>().prop_flat_map(|v| (Just(v), key(v), key(v))),
            tcp in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let kind = if tcp { Kind::Tcp } else { Kind::Udp };
            let mut packet = Packet::from_frame(&frame(kind, v6, &from, &payload));
            let before = parse(packet.bytes(), &KEY).unwrap();
            let l4 = usize::from(before.l4);
            let field = if tcp { 16 } else { 6 };
            let len = before.end - u32::from(before.l4);
            let pseudo = podswitch_wire::checksum::pseudo_l4(&before.key, len).fold();
            packet.bytes_mut()[l4 + field..l4 + field + 2].copy_from_slice(&pseudo.to_be_bytes());
            packet.offload.csum_partial = true;
            packet.offload.csum_start = before.l4;
            packet.offload.csum_offset = field as u16;
            let to = FlowKey { proto: before.key.proto, ..to };
            let plan = Plan::route(PortId(1), 1500, Mac([6; 6]), Mac([8; 6]))
                .translate(&before.key, &to);
            apply(&mut packet, &before, &plan);
            crate::packet::finish_checksum(&mut packet).unwrap();
            let after = parse(packet.bytes(), &KEY).unwrap();
            prop_assert_eq!(after.key, to);
            prop_assert!(verify_l4(packet.bytes(), &after));
        }
    }
}
