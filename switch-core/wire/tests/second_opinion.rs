//! `parse` compared with `etherparse`: packets that it builds are parsed to the same values. If
//! both accept a damaged packet, they parse it to the same values.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, LinkExtSlice,
    NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId,
};
use podswitch_wire::checksum::{sum, verify_l4};
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed, parse};
use proptest::prelude::*;

const KEY: HashKey = HashKey::new(11);

#[derive(Clone, Debug)]
enum Upper {
    Tcp { syn: bool, options: Vec<u8> },
    Udp,
    Echo { reply: bool },
}

#[derive(Clone, Debug)]
struct Recipe {
    tags: Vec<u16>,
    v6: bool,
    src: [u8; 16],
    dst: [u8; 16],
    ports: (u16, u16),
    ttl: u8,
    upper: Upper,
    payload: Vec<u8>,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    // "No operation" options of any length.
    let options = (0..10_usize).prop_map(|words| vec![1; words * 4]);
    let upper = prop_oneof![
        (any::<bool>(), options).prop_map(|(syn, options)| Upper::Tcp { syn, options }),
        Just(Upper::Udp),
        any::<bool>().prop_map(|reply| Upper::Echo { reply }),
    ];
    let head = (prop::collection::vec(0..4096_u16, 0..=2), any::<bool>(), any::<[u8; 16]>());
    let tail = (any::<[u8; 16]>(), any::<(u16, u16)>(), any::<u8>(), upper);
    (head, tail, prop::collection::vec(any::<u8>(), 0..64)).prop_map(
        |((tags, v6, src), (dst, ports, ttl, upper), payload)| Recipe {
            tags,
            v6,
            src,
            dst,
            ports,
            ttl,
            upper,
            payload,
        },
    )
}

fn build(recipe: &Recipe) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let id = |tci: u16| VlanId::try_new(tci).unwrap();
    let builder = match recipe.tags[..] {
        [] => builder.ip(ip(recipe)),
        [tag] => builder.single_vlan(id(tag)).ip(ip(recipe)),
        [outer, inner, ..] => builder.double_vlan(id(outer), id(inner)).ip(ip(recipe)),
    };
    let (a, b) = recipe.ports;
    let mut frame = Vec::new();
    match &recipe.upper {
        Upper::Tcp { syn, options } => {
            let tcp = builder.tcp(a, b, 7, 1024).options_raw(options).unwrap();
            let tcp = if *syn { tcp.syn() } else { tcp.ack(9) };
            tcp.write(&mut frame, &recipe.payload).unwrap();
        }
        Upper::Udp => builder.udp(a, b).write(&mut frame, &recipe.payload).unwrap(),
        Upper::Echo { reply } => match (recipe.v6, reply) {
            (false, false) => builder.icmpv4_echo_request(a, 1).write(&mut frame, &recipe.payload),
            (false, true) => builder.icmpv4_echo_reply(a, 1).write(&mut frame, &recipe.payload),
            (true, false) => builder.icmpv6_echo_request(a, 1).write(&mut frame, &recipe.payload),
            (true, true) => builder.icmpv6_echo_reply(a, 1).write(&mut frame, &recipe.payload),
        }
        .unwrap(),
    }
    frame
}

fn ip(recipe: &Recipe) -> IpHeaders {
    if recipe.v6 {
        let header = Ipv6Header {
            hop_limit: recipe.ttl,
            source: recipe.src,
            destination: recipe.dst,
            ..Ipv6Header::default()
        };
        return IpHeaders::Ipv6(header, Ipv6Extensions::default());
    }
    let first = |a: &[u8; 16]| [a[0], a[1], a[2], a[3]];
    let (src, dst) = (first(&recipe.src), first(&recipe.dst));
    let header = Ipv4Header::new(0, recipe.ttl, IpNumber::UDP, src, dst).unwrap();
    IpHeaders::Ipv4(header, Ipv4Extensions::default())
}

/// The key that `parse` must find in a recipe's packet.
fn key_of(recipe: &Recipe) -> FlowKey {
    let address = |a: &[u8; 16]| match recipe.v6 {
        true => std::net::IpAddr::from(*a),
        false => std::net::IpAddr::from([a[0], a[1], a[2], a[3]]),
    };
    let (icmp, request) = if recipe.v6 { (proto::ICMPV6, 128) } else { (proto::ICMP, 8) };
    let (protocol, (a, b)) = match recipe.upper {
        Upper::Tcp { .. } => (proto::TCP, recipe.ports),
        Upper::Udp => (proto::UDP, recipe.ports),
        Upper::Echo { reply: false } => (icmp, (recipe.ports.0, request)),
        Upper::Echo { reply: true } => (icmp, (request, recipe.ports.0)),
    };
    FlowKey::new(address(&recipe.src), address(&recipe.dst), protocol, a, b).unwrap()
}

/// Where `part` begins within `frame`.
fn offset(frame: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - frame.as_ptr() as usize
}

/// Compares our parse of an accepted frame with that of `etherparse`, if it accepts the frame.
fn agree(frame: &[u8], parsed: &Parsed) -> Result<(), TestCaseError> {
    let Ok(other) = SlicedPacket::from_ethernet(frame) else {
        return Ok(());
    };
    // We do not parse MACsec or third tags.
    if other.link_exts.iter().any(|ext| matches!(ext, LinkExtSlice::Macsec(_)))
        || other.link_exts.len() > 2
    {
        return Ok(());
    }
    prop_assert_eq!(other.link_exts.len(), usize::from(parsed.tags));
    let (ip, family_is_v4) = match &other.net {
        Some(NetSlice::Ipv4(ip)) => {
            prop_assert_eq!(parsed.network, Network::Ipv4);
            prop_assert_eq!(offset(frame, ip.header().slice()), usize::from(parsed.l3));
            prop_assert_eq!(parsed.key.src_addr(), ip.header().source_addr());
            prop_assert_eq!(parsed.key.dst_addr(), ip.header().destination_addr());
            (ip.payload(), true)
        }
        Some(NetSlice::Ipv6(ip)) => {
            prop_assert_eq!(parsed.network, Network::Ipv6);
            prop_assert_eq!(offset(frame, ip.header().slice()), usize::from(parsed.l3));
            prop_assert_eq!(parsed.key.src_addr(), ip.header().source_addr());
            prop_assert_eq!(parsed.key.dst_addr(), ip.header().destination_addr());
            (ip.payload(), false)
        }
        _ => return Ok(()),
    };
    prop_assert_eq!(ip.fragmented, parsed.fragment != Fragment::Whole);
    // `etherparse` follows an authentication header, which we treat as a protocol without ports,
    // and it continues beyond a later fragment's header, where we stop.
    if parsed.key.proto == 51 || parsed.fragment == Fragment::Later {
        return Ok(());
    }
    // `etherparse` takes an IPv6 payload length of zero as "up to the end of the frame".
    if !family_is_v4 && parsed.end == u32::from(parsed.l3) + 40 {
        return Ok(());
    }
    prop_assert_eq!(ip.ip_number.0, parsed.key.proto);
    prop_assert_eq!(offset(frame, ip.payload), usize::from(parsed.l4));
    prop_assert_eq!(usize::from(parsed.l4) + ip.payload.len(), parsed.end as usize);
    let payload = match &other.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let ports = (tcp.source_port(), tcp.destination_port());
            prop_assert_eq!(ports, (parsed.key.src_port, parsed.key.dst_port));
            prop_assert_eq!(tcp.slice()[13], parsed.tcp_flags);
            prop_assert_eq!(tcp.payload().len(), parsed.end as usize - usize::from(parsed.payload));
            tcp.payload()
        }
        Some(TransportSlice::Udp(udp)) => {
            let ports = (udp.source_port(), udp.destination_port());
            prop_assert_eq!(ports, (parsed.key.src_port, parsed.key.dst_port));
            udp.payload()
        }
        // We treat ICMP of the other family as an unknown protocol; `etherparse` gives its
        // timestamps a header of 20 bytes.
        Some(TransportSlice::Icmpv4(icmp)) if family_is_v4 && icmp.header().header_len() == 8 => {
            icmp.payload()
        }
        Some(TransportSlice::Icmpv6(icmp)) if !family_is_v4 => icmp.payload(),
        _ => return Ok(()),
    };
    prop_assert_eq!(offset(frame, payload), usize::from(parsed.payload));
    Ok(())
}

/// Invariants of every accepted frame.
fn consistent(frame: &[u8], p: &Parsed) -> Result<(), TestCaseError> {
    prop_assert!(p.end as usize <= frame.len());
    prop_assert_eq!(usize::from(p.l3), 14 + 4 * usize::from(p.tags));
    prop_assert!(p.l3 <= p.l4 && p.l4 <= p.payload && u32::from(p.payload) <= p.end);
    if matches!(p.network, Network::Ipv4 | Network::Ipv6) {
        prop_assert_eq!(p.hash, p.key.hash(&KEY));
        prop_assert!(p.l3 < p.l4);
    } else {
        prop_assert_eq!((p.key, p.hash), (FlowKey::default(), 0));
    }
    if p.fragment == Fragment::Later {
        prop_assert_eq!((p.key.src_port, p.key.dst_port, p.payload), (0, 0, p.l4));
    }
    // `verify_l4` must not panic either.
    let _ = verify_l4(frame, p);
    Ok(())
}

/// Corrects the IPv4 header checksum, so that the parser reaches damage elsewhere.
fn fix_header_checksum(frame: &mut [u8], l3: usize) {
    let Some(first) = frame.get(l3).filter(|byte| **byte >> 4 == 4) else {
        return;
    };
    let len = usize::from(first & 0x0f) * 4;
    if let Some(header) = frame.get_mut(l3..l3 + len).filter(|header| header.len() >= 20) {
        header[10..12].fill(0);
        let checksum = sum(header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// At least 4,096 cases; `PROPTEST_CASES` can raise the number.
fn config() -> ProptestConfig {
    let plain = ProptestConfig::default();
    ProptestConfig { cases: plain.cases.max(4096), failure_persistence: None, ..plain }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn built_packets_are_parsed_to_the_same_values(recipe in recipe()) {
        let frame = build(&recipe);
        let p = parse(&frame, &KEY).unwrap();
        prop_assert_eq!(p.key, key_of(&recipe));
        prop_assert_eq!(p.ttl, recipe.ttl);
        prop_assert_eq!(p.end as usize, frame.len());
        prop_assert_eq!(&frame[usize::from(p.payload)..], &recipe.payload[..]);
        prop_assert_eq!(usize::from(p.tags), recipe.tags.len());
        prop_assert_eq!(p.outer_tci, recipe.tags.first().copied().unwrap_or(0));
        prop_assert_eq!(p.inner_tci, recipe.tags.get(1).copied().unwrap_or(0));
        prop_assert_eq!(p.fragment, Fragment::Whole);
        let icmp = match recipe.upper {
            Upper::Echo { reply: false } => Icmp::Query,
            Upper::Echo { reply: true } => Icmp::Reply,
            _ => Icmp::None,
        };
        prop_assert_eq!(p.icmp, icmp);
        prop_assert!(verify_l4(&frame, &p));
        consistent(&frame, &p)?;
        agree(&frame, &p)?;
    }

    /// Threat T-P2: padding does not change the result.
    #[test]
    fn padding_does_not_change_the_result(recipe in recipe(), padding in 0..1500_usize, fill: u8) {
        let mut frame = build(&recipe);
        let bare = parse(&frame, &KEY).unwrap();
        frame.resize(frame.len() + padding, fill);
        prop_assert_eq!(parse(&frame, &KEY), Ok(bare));
        prop_assert!(verify_l4(&frame, &bare));
    }

    /// Threat T-P1: every truncated frame is refused, and nothing is read beyond its end.
    #[test]
    fn truncated_frames_are_refused(recipe in recipe()) {
        let frame = build(&recipe);
        for len in 0..frame.len() {
            if let Ok(p) = parse(&frame[..len], &KEY) {
                prop_assert!(false, "{} of {} bytes accepted: {:?}", len, frame.len(), p);
            }
        }
    }

    #[test]
    fn damaged_frames_are_refused_or_parsed_alike(
        recipe in recipe(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        fix: bool, cut in any::<prop::sample::Index>(), do_cut: bool,
    ) {
        let mut frame = build(&recipe);
        // Mostly in the headers, since only those are parsed.
        let reach = frame.len().min(90);
        for (at, byte) in damage {
            frame[at.index(reach)] = byte;
        }
        if fix {
            fix_header_checksum(&mut frame, 14 + 4 * recipe.tags.len());
        }
        if do_cut {
            frame.truncate(cut.index(frame.len()));
        }
        if let Ok(p) = parse(&frame, &KEY) {
            consistent(&frame, &p)?;
            agree(&frame, &p)?;
        }
    }

    #[test]
    fn random_frames_are_refused_or_parsed_alike(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0..6_usize,
    ) {
        let starts: [&[u8]; 6] = [
            &[], &[8, 0, 0x45], &[0x86, 0xdd, 0x60], &[8, 6, 0, 1, 8, 0, 6, 4],
            &[0x81, 0, 0, 1, 8, 0, 0x46], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x86, 0xdd, 0x60],
        ];
        let start = starts[kind];
        if frame.len() > 12 + start.len() {
            frame[12..12 + start.len()].copy_from_slice(start);
        }
        // Valid lengths are rare in random bytes.
        if kind == 1 && frame.len() >= 34 {
            let total = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&total.to_be_bytes());
            fix_header_checksum(&mut frame, 14);
        }
        if kind == 2 && frame.len() >= 54 {
            let payload = (frame.len() - 54) as u16;
            frame[18..20].copy_from_slice(&payload.to_be_bytes());
            frame[20] = [0, 6, 17, 43, 44, 51, 58, 60][usize::from(frame[20]) % 8];
        }
        if let Ok(p) = parse(&frame, &KEY) {
            consistent(&frame, &p)?;
            agree(&frame, &p)?;
        }
    }
}
