//! Any octets as a tunnel packet, as a datagram's payload, and as what an ICMP error quotes.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use vxlan::decap::{ChecksumState, DecapRules, decap, is_nested, payload_vni};
use vxlan::ecn::{self, Ecn};
use vxlan::header::{Header, LEN};
use vxlan::pmtu;
use vxlan::template::{InnerFacts, Outer, Template, UdpChecksum};
use wire::addr::Mac;
use wire::flow_key::HashKey;
use wire::parse::parse;

const KEY: HashKey = HashKey::new(1);

fuzz_target!(|octets: &[u8]| {
    header(octets);
    black_box(pmtu::read_quote(octets));
    tunnel_packet(octets);
    inner_frame(octets);
});

fn header(octets: &[u8]) {
    let Ok(view) = Header::new_checked(octets) else {
        assert!(octets.len() < LEN);
        return;
    };
    black_box((view.flags(), view.is_canonical(), view.to_string()));
    assert_eq!(view.payload().len(), octets.len() - LEN);
    let mut copy = octets.to_vec();
    let mut view = Header::new_unchecked(&mut copy[..]);
    let (flags, vni) = (view.flags(), view.vni());
    view.set_flags(flags);
    view.set_vni(vni);
    assert_eq!(copy, octets);
}

/// What is accepted lies within the frame; checking it or not changes nothing but acceptance.
fn tunnel_packet(octets: &[u8]) {
    let Ok(outer) = parse(octets, &KEY) else { return };
    let strict = DecapRules { port: outer.key.dst_port, ..DecapRules::default() };
    let loose = DecapRules { ipv6_zero_checksum: true, inner_vlan: true, ..strict };
    let Ok(got) = decap(octets, &outer, ChecksumState::Good, &loose) else {
        assert!(decap(octets, &outer, ChecksumState::Unknown, &strict).is_err());
        return;
    };
    assert!(got.start + 14 <= got.end && got.end <= outer.end);
    if let Ok(same) = decap(octets, &outer, ChecksumState::Unknown, &strict) {
        assert_eq!(same, got);
    }
    let (start, end) = (got.start as usize, got.end as usize);
    assert_eq!(payload_vni(&octets[start - LEN..end], &loose), Ok(got.vni));
    let mut frame = octets[start..end].to_vec();
    if let Ok(inner) = parse(&frame, &KEY) {
        black_box(is_nested(&inner, &strict));
        // A mark that is carried in leaves a packet that parses: the IPv4 header checksum is right.
        if ecn::apply(Ecn::Ce, &mut frame[usize::from(inner.l3)..]).is_ok() {
            assert!(parse(&frame, &KEY).is_ok());
        }
    }
}

/// Whatever is wrapped comes out again.
fn inner_frame(octets: &[u8]) {
    let Ok(inner) = parse(octets, &KEY) else { return };
    let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let outer = Outer {
        ethernet: Some((Mac([2; 6]), Mac([4; 6]))),
        checksum: UdpChecksum::Computed,
        inner_vlan: true,
        ..Outer::new(a, b, vxlan::header::Vni::MAX)
    };
    let template = Template::new(&outer).expect("a good tunnel");
    let mut packet = vec![0; template.len()];
    packet.extend_from_slice(octets);
    if template.encap(&InnerFacts::new(&inner, &KEY), &mut packet).is_err() {
        assert!(packet.len() > usize::from(u16::MAX));
        return;
    }
    let parsed = parse(&packet, &KEY).expect("what we write parses");
    let rules = DecapRules { inner_vlan: true, ..DecapRules::default() };
    let got = decap(&packet, &parsed, ChecksumState::Unknown, &rules).expect("and is accepted");
    assert_eq!(&packet[got.start as usize..got.end as usize], octets);
}
