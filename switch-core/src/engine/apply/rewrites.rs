//! Plans that translate, applied to packets that `etherparse` builds.

use etherparse::PacketBuilder;
use podswitch_wire::checksum::verify_l4;
use podswitch_wire::flow_key::{FlowKey, HashKey};
use podswitch_wire::parse::parse;
use proptest::prelude::*;

use super::{apply, apply_route};
use crate::action::Plan;
use crate::id::PortId;
use crate::nat::rewrite::{rewrite, rewrite_common};
use crate::packet::Packet;
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
    let ip = if v6 { ethernet.ipv6(src, dst, 9) } else { ethernet.ipv4(first(src), first(dst), 9) };
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
        // The ICMP type takes the place of the other side's port.
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

    /// The fast form and the general form agree, for wrong checksums too.
    #[test]
    fn the_common_form_is_rewritten_as_any(
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
        let ordinary = rewrite_common(&mut packet, &parsed, &plan);
        prop_assert_eq!(ordinary, field.is_some());
        if ordinary {
            rewrite(&mut whole, &parsed, &plan);
            apply_route(&mut whole, &parsed, &plan);
        }
        prop_assert_eq!(packet.bytes(), whole.bytes());
    }

    #[test]
    fn partial_checksums_are_right_when_finished(
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
