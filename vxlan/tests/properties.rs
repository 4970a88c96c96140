//! Encapsulation and decapsulation are inverse operations for any tunnel and frame.

mod support;

use std::net::IpAddr;

use podswitch_vxlan::decap::{
    self, ChecksumState, DecapError, DecapRules, decap, decap_fast, is_nested,
};
use podswitch_vxlan::ecn::{self, Ecn};
use podswitch_vxlan::header::{Header, LEN, Vni};
use podswitch_vxlan::pmtu;
use podswitch_vxlan::template::{
    DontFragment, Dscp, EncapError, InnerFacts, Outer, OuterChecksum, PartialChecksum, SourcePort,
    Template, UdpChecksum,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use proptest::prelude::*;
use support::{dissect, udp_checksum_is_right, udp_frame};

fn unicast(ipv6: bool) -> BoxedStrategy<IpAddr> {
    if ipv6 {
        any::<[u8; 15]>()
            .prop_map(|rest| {
                let mut bytes = [0x20; 16];
                bytes[1..].copy_from_slice(&rest);
                bytes.into()
            })
            .boxed()
    } else {
        (1u8..=223, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| [a, b, c, d].into()).boxed()
    }
}

fn outer() -> impl Strategy<Value = Outer> {
    let addresses = any::<bool>().prop_flat_map(|ipv6| (unicast(ipv6), unicast(ipv6)));
    let mac = any::<[u8; 6]>().prop_map(Mac);
    let dscp = prop_oneof![(0u8..64).prop_map(Dscp::Fixed), Just(Dscp::Inherit)];
    let df = prop_oneof![
        Just(DontFragment::Set),
        Just(DontFragment::Clear),
        Just(DontFragment::Inherit)
    ];
    let sum = prop_oneof![
        Just(UdpChecksum::Zero),
        Just(UdpChecksum::Computed),
        Just(UdpChecksum::Offloaded)
    ];
    (
        addresses,
        (mac.clone(), mac),
        0u32..1 << 24,
        1..=u16::MAX,
        1..=u8::MAX,
        dscp,
        df,
        sum,
        any::<bool>(),
    )
        .prop_map(
            |((source, destination), macs, vni, port, ttl, dscp, dont_fragment, sum, vlan)| Outer {
                ethernet: Some(macs),
                port,
                ttl,
                dscp,
                dont_fragment,
                checksum: sum,
                inner_vlan: vlan,
                ..Outer::new(source, destination, Vni::new(vni).unwrap())
            },
        )
}

fn facts() -> impl Strategy<Value = InnerFacts> {
    (any::<u64>(), any::<u8>(), any::<bool>(), any::<u16>()).prop_map(|(hash, class, df, id)| {
        InnerFacts {
            source_port: SourcePort::from_hash(hash),
            traffic_class: class,
            dont_fragment: df,
            tagged: false,
            gso: false,
            identification: id,
            partial: None,
        }
    })
}

fn inner_frame() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 14..2000).prop_map(|mut frame| {
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame
    })
}

fn rules(outer: &Outer) -> DecapRules {
    DecapRules { port: outer.port, ipv6_zero_checksum: true, inner_vlan: outer.inner_vlan }
}

/// Corrects the checksum of an IPv4 header at byte 14.
fn fix_ipv4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = podswitch_wire::checksum::sum(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

proptest! {
    /// The fast encapsulation writes the same bytes as the general one.
    #[test]
    fn fast_encapsulation_equals_the_general_one(
        mut outer in outer(),
        ethernet in any::<bool>(),
        facts in facts(),
        inner in inner_frame(),
    ) {
        if !ethernet {
            outer.ethernet = None;
        }
        let Ok(template) = Template::new(&outer) else { return Ok(()) };
        let mut frame = vec![0xaa; template.len()];
        frame.extend_from_slice(&inner);
        let mut plain = frame.clone();
        let ordinary =
            template.encap_fast(facts.source_port, facts.traffic_class, &mut frame);
        let is_usual = outer.source.is_ipv4()
            && outer.checksum == UdpChecksum::Zero
            && outer.dont_fragment == DontFragment::Set;
        prop_assert_eq!(ordinary, is_usual);
        if ordinary {
            template.encap(&facts, &mut plain).unwrap();
        }
        prop_assert_eq!(frame, plain);
    }

    /// The fast decapsulation accepts only packets that the general one accepts, with the same
    /// result. It accepts all packets of the common kind.
    #[test]
    fn fast_decapsulation_equals_the_general_one(
        (source, destination) in (unicast(false), unicast(false)),
        facts in facts(),
        inner in inner_frame(),
        changes in prop::collection::vec((12usize..64, any::<u8>()), 0..4),
        (cut, fixed) in (0usize..20, any::<bool>()),
    ) {
        let outer = Outer {
            ethernet: Some((Mac([2; 6]), Mac([4; 6]))),
            ..Outer::new(source, destination, Vni::new(7).unwrap())
        };
        let template = Template::new(&outer).unwrap();
        let mut frame = vec![0; template.len()];
        frame.extend_from_slice(&inner);
        template.encap(&facts, &mut frame).unwrap();
        let rules = rules(&outer);
        let usual = decap_fast(&frame, &rules);
        prop_assert_eq!(usual.is_some(), frame.len() >= 64 && !matches!(frame[62..64], [0x81, 0] | [0x88, 0xa8]));
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if fixed {
            fix_ipv4(&mut frame);
        }
        frame.truncate(frame.len() - cut.min(frame.len()));
        if let Some(ordinary) = decap_fast(&frame, &rules) {
            let parsed = podswitch_wire::parse::parse(&frame, &HashKey::new(1));
            prop_assert!(parsed.is_ok(), "{:?}", parsed);
            let whole = decap(&frame, &parsed.unwrap(), ChecksumState::Unknown, &rules);
            prop_assert_eq!(whole, Ok(ordinary.decap()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn decap_is_the_inverse_of_encap(outer in outer(), facts in facts(), inner in inner_frame()) {
        let template = Template::new(&outer).unwrap();
        let mut frame = vec![0xdb; template.len()];
        frame.extend_from_slice(&inner);
        let state = template.encap(&facts, &mut frame).unwrap();

        // `etherparse` checks the IPv4 header checksum and all lengths.
        let parsed = dissect(&frame);
        let seen = frame.clone();
        let header = etherparse::SlicedPacket::from_ethernet(&seen).unwrap();
        if let Some(etherparse::NetSlice::Ipv4(ip)) = &header.net {
            let ip = ip.header().to_header();
            prop_assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            let free = outer.dont_fragment == DontFragment::Clear
                || outer.dont_fragment == DontFragment::Inherit && !facts.dont_fragment;
            prop_assert_eq!(ip.dont_fragment, !free);
            prop_assert_eq!(ip.identification, if free { facts.identification } else { 0 });
        }
        prop_assert_eq!(parsed.ttl, outer.ttl);
        prop_assert_eq!(parsed.key.src_port, facts.source_port.get());
        let dscp = match outer.dscp {
            Dscp::Fixed(dscp) => dscp,
            Dscp::Inherit => facts.traffic_class >> 2,
        };
        prop_assert_eq!(parsed.traffic_class, dscp << 2 | facts.traffic_class & 3);

        let checksum = match state {
            OuterChecksum::None => ChecksumState::Unknown,
            OuterChecksum::Complete => {
                prop_assert!(udp_checksum_is_right(&frame));
                ChecksumState::Unknown
            }
            OuterChecksum::Partial(partial) => {
                prop_assert_eq!(usize::from(partial.start), template.len() - 16);
                finish(&mut frame, partial);
                prop_assert!(udp_checksum_is_right(&frame));
                ChecksumState::Unknown
            }
        };
        let got = decap(&frame, &parsed, checksum, &rules(&outer)).unwrap();
        prop_assert_eq!(got.vni, outer.vni);
        prop_assert_eq!((got.source, got.destination), (outer.source, outer.destination));
        prop_assert_eq!(got.ecn, Ecn::from_traffic_class(facts.traffic_class));
        prop_assert_eq!(&frame[got.start as usize..got.end as usize], &inner[..]);
        prop_assert!(Header::new_checked(&frame[got.start as usize - LEN..]).unwrap().is_canonical());

        // Through a UDP socket: the same header, ECN and result.
        let datagram = template.datagram(&facts).unwrap();
        prop_assert_eq!(&datagram.header[..], &frame[got.start as usize - LEN..got.start as usize]);
        prop_assert_eq!(datagram.traffic_class, parsed.traffic_class);
        let payload = &frame[got.start as usize - LEN..];
        prop_assert_eq!(decap::payload_vni(payload, &rules(&outer)), Ok(outer.vni));
    }

    /// Where the inner checksum is partial, the outer one is right once the inner one is completed.
    #[test]
    fn outer_checksum_over_a_partial_inner_one(
        mut outer in outer(),
        facts in facts(),
        payload in prop::collection::vec(any::<u8>(), 0..1500),
        offloaded in any::<bool>(),
        ipv6 in any::<bool>(),
    ) {
        outer.checksum = if offloaded { UdpChecksum::Offloaded } else { UdpChecksum::Computed };
        let (src, dst): (IpAddr, IpAddr) = if ipv6 {
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        } else {
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
        };
        let mut inner = udp_frame(src, dst, (1000, 2000), &payload);
        let start = dissect(&inner).l4;
        let partial = PartialChecksum { start, offset: 6 };
        unfinish(&mut inner, partial, src, dst);
        let template = Template::new(&outer).unwrap();
        let mut frame = vec![0; template.len()];
        frame.extend_from_slice(&inner);
        let facts = InnerFacts { partial: Some(partial), ..facts };
        prop_assert_eq!(template.encap(&facts, &mut frame), Ok(OuterChecksum::Complete));
        prop_assert!(!udp_checksum_is_right(&frame) || payload.is_empty());
        let place = PartialChecksum { start: start + template.len() as u16, offset: 6 };
        finish(&mut frame, place);
        prop_assert!(udp_checksum_is_right(&frame));
        prop_assert!(udp_checksum_is_right(&frame[template.len()..]));
    }

    /// The same for every start of the partial checksum in the frame, odd offsets included.
    #[test]
    fn unfinished_anywhere(
        mut outer in outer(),
        facts in facts(),
        inner in inner_frame(),
        at in 14..600usize,
        offset in 0..50u16,
    ) {
        outer.checksum = UdpChecksum::Computed;
        let start = (at % (inner.len() - 13)) as u16;
        let partial = PartialChecksum { start, offset: offset & !1 };
        let template = Template::new(&outer).unwrap();
        let mut frame = vec![0; template.len()];
        frame.extend_from_slice(&inner);
        let facts = InnerFacts { partial: Some(partial), ..facts };
        let got = template.encap(&facts, &mut frame);
        if usize::from(start + partial.offset) + 2 > inner.len() {
            prop_assert_eq!(got, Err(EncapError::Partial));
        } else {
            prop_assert_eq!(got, Ok(OuterChecksum::Complete));
            let start = start + template.len() as u16;
            finish(&mut frame, PartialChecksum { start, ..partial });
            prop_assert!(udp_checksum_is_right(&frame));
        }
    }

    /// The parsers do not panic on any input.
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), l4 in 0u16..220) {
        let rules = DecapRules::default();
        let _ = decap::payload_vni(&bytes, &rules);
        let _ = pmtu::read_quote(&bytes);
        let _ = ecn::apply(Ecn::Ect1, &mut bytes.clone());
        let address = "192.0.2.1".parse().unwrap();
        let mut parsed = dissect(&udp_frame(address, address, (4789, 4789), &[]));
        parsed.l4 = l4;
        if let Ok(got) = decap(&bytes, &parsed, ChecksumState::Good, &rules) {
            prop_assert!(got.start + 14 <= got.end && got.end as usize <= bytes.len());
        }
    }

    #[test]
    fn source_ports_are_dynamic(hash in any::<u64>()) {
        prop_assert!(SourcePort::from_hash(hash).get() >= 49152);
    }
}

/// As a device does it: sums from `start` to the end, pseudo-header sum included.
fn finish(frame: &mut [u8], partial: PartialChecksum) {
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    let mut sum: u64 = 0;
    for pair in frame[start..].chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let value = if sum == 0xffff { 0xffff } else { !(sum as u16) };
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Replaces a UDP frame's checksum by the pseudo-header sum.
fn unfinish(frame: &mut [u8], partial: PartialChecksum, src: IpAddr, dst: IpAddr) {
    let start = usize::from(partial.start);
    let mut pseudo = Vec::new();
    for address in [src, dst] {
        match address {
            IpAddr::V4(a) => pseudo.extend(a.octets()),
            IpAddr::V6(a) => pseudo.extend(a.octets()),
        }
    }
    pseudo.extend([0, 17]);
    pseudo.extend(&frame[start + 4..start + 6]);
    let mut sum: u32 = pseudo.chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let at = start + usize::from(partial.offset);
    frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
}

fn plain_facts() -> InnerFacts {
    InnerFacts {
        source_port: SourcePort::from_hash(0),
        traffic_class: 0,
        dont_fragment: false,
        tagged: false,
        gso: false,
        identification: 0,
        partial: None,
    }
}

fn v4_tunnel() -> Outer {
    let mac = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    Outer { ethernet: Some(mac), ..Outer::new(a, b, Vni::new(1).unwrap()) }
}

#[test]
fn refused_frames_are_left_unchanged() {
    let template = Template::new(&v4_tunnel()).unwrap();
    let fill = |len| vec![0x77; len];
    let cases = [
        (plain_facts(), 49, EncapError::Headroom),
        (plain_facts(), 65_536 + 14, EncapError::TooLong),
        (InnerFacts { tagged: true, ..plain_facts() }, 200, EncapError::InnerVlan),
        (
            InnerFacts {
                partial: Some(PartialChecksum { start: 140, offset: 9 }),
                ..plain_facts()
            },
            200,
            EncapError::Partial,
        ),
    ];
    for (facts, len, error) in cases {
        let mut frame = fill(len);
        assert_eq!(template.encap(&facts, &mut frame), Err(error));
        assert_eq!(frame, fill(len));
    }
    assert!(template.encap(&plain_facts(), &mut fill(65_535 + 14)).is_ok());
}

#[test]
fn gso_packets_leave_the_checksum_to_segmentation() {
    let facts = InnerFacts {
        gso: true,
        partial: Some(PartialChecksum { start: 34, offset: 16 }),
        ..plain_facts()
    };
    for (checksum, expected) in [
        (UdpChecksum::Zero, OuterChecksum::None),
        (UdpChecksum::Computed, OuterChecksum::Partial(PartialChecksum { start: 34, offset: 6 })),
        (UdpChecksum::Offloaded, OuterChecksum::Partial(PartialChecksum { start: 34, offset: 6 })),
    ] {
        let template = Template::new(&Outer { checksum, ..v4_tunnel() }).unwrap();
        assert_eq!(template.encap(&facts, &mut vec![0; 30_000]), Ok(expected));
    }
}

#[test]
fn fragments_of_a_datagram_share_a_source_port() {
    use podswitch_wire::parse::Fragment;
    let key = HashKey::new(3);
    let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let whole = dissect(&udp_frame(a, b, (1, 2), &[0; 8]));
    let other = dissect(&udp_frame(a, b, (1, 3), &[0; 8]));
    assert_ne!(SourcePort::of(&whole, &key), SourcePort::of(&other, &key));
    let mut first = whole;
    first.fragment = Fragment::First;
    let mut later = whole;
    later.fragment = Fragment::Later;
    (later.key.src_port, later.key.dst_port) = (0, 0);
    assert_eq!(SourcePort::of(&first, &key), SourcePort::of(&later, &key));
}

#[test]
fn received_packets_that_are_refused() {
    let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    let rules = DecapRules::default();
    let inner = udp_frame(a, b, (5, 6), b"x");
    let wrap = |header: [u8; 8], inner: &[u8]| [&header[..], inner].concat();
    let good = wrap([8, 0, 0, 0, 0, 0, 1, 0], &inner);
    let try_it = |payload: &[u8], port| {
        let frame = udp_frame(a, b, (50_000, port), payload);
        decap(&frame, &dissect(&frame), ChecksumState::Unknown, &rules).map(|d| d.vni.get())
    };
    assert_eq!(try_it(&good, 4789), Ok(1));
    assert_eq!(try_it(&wrap([0xff, 1, 2, 3, 0, 0, 1, 0xff], &inner), 4789), Ok(1));
    assert_eq!(try_it(&good, 8472), Err(DecapError::NotVxlan));
    assert_eq!(try_it(&wrap([0xf7, 0, 0, 0, 0, 0, 1, 0], &inner), 4789), Err(DecapError::NoVni));
    assert_eq!(try_it(&good[..7], 4789), Err(DecapError::HeaderTruncated));
    assert_eq!(try_it(&good[..8 + 13], 4789), Err(DecapError::InnerTruncated));
    for tag in [[0x81, 0], [0x88, 0xa8]] {
        let mut tagged = good.clone();
        tagged[8 + 12..8 + 14].copy_from_slice(&tag);
        assert_eq!(try_it(&tagged, 4789), Err(DecapError::InnerVlan));
        assert!(decap::payload_vni(&tagged, &DecapRules { inner_vlan: true, ..rules }).is_ok());
    }
    let mut fragment = dissect(&udp_frame(a, b, (50_000, 4789), &good));
    fragment.fragment = podswitch_wire::parse::Fragment::First;
    let frame = udp_frame(a, b, (50_000, 4789), &good);
    let got = decap(&frame, &fragment, ChecksumState::Unknown, &rules);
    assert_eq!(got, Err(DecapError::Fragment));

    let nested = udp_frame(a, b, (50_000, 4789), &good);
    assert!(is_nested(&dissect(&nested), &rules) && !is_nested(&dissect(&inner), &rules));
}

#[test]
fn zero_checksum_over_ipv6_only_if_configured() {
    let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
    let outer = Outer {
        checksum: UdpChecksum::Zero,
        ethernet: v4_tunnel().ethernet,
        ..Outer::new(a, b, Vni::new(1).unwrap())
    };
    let template = Template::new(&outer).unwrap();
    let mut frame = vec![0; template.len() + 60];
    template.encap(&plain_facts(), &mut frame).unwrap();
    let parsed = dissect(&frame);
    let mut rules = DecapRules::default();
    let got = decap(&frame, &parsed, ChecksumState::Unknown, &rules);
    assert_eq!(got, Err(DecapError::ZeroChecksum));
    rules.ipv6_zero_checksum = true;
    assert!(decap(&frame, &parsed, ChecksumState::Unknown, &rules).is_ok());
}

#[test]
fn sizes() {
    use podswitch_vxlan::template::{inner_mtu, overhead};
    assert_eq!((overhead(false), overhead(true)), (50, 70));
    assert_eq!((inner_mtu(1500, false), inner_mtu(1500, true)), (1450, 1430));
    assert_eq!(inner_mtu(40, false), 0);
}

/// RFC 768: a computed checksum of zero is sent as all ones, since zero means "none".
#[test]
fn a_computed_zero_is_sent_as_ones() {
    let outer = Outer { checksum: UdpChecksum::Computed, ..v4_tunnel() };
    let template = Template::new(&outer).unwrap();
    let mut frame = vec![0; template.len() + 60];
    template.encap(&plain_facts(), &mut frame).unwrap();
    let checksum = [frame[40], frame[41]];
    assert_ne!(checksum, [0xff, 0xff]);
    frame[100..102].copy_from_slice(&checksum);
    template.encap(&plain_facts(), &mut frame).unwrap();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert!(udp_checksum_is_right(&frame));
    assert!(decap(&frame, &dissect(&frame), ChecksumState::Unknown, &rules(&outer)).is_ok());
}
