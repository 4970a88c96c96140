//! Any bytes as a tunnel packet, as a datagram's payload, and as the quoted packet of an ICMP
//! error.

use std::hint::black_box;

use podswitch_vxlan::decap::{ChecksumState, DecapRules, decap, is_nested, payload_vni};
use podswitch_vxlan::ecn::{self, Ecn};
use podswitch_vxlan::header::{Header, LEN};
use podswitch_vxlan::pmtu;
use podswitch_vxlan::template::{InnerFacts, Outer, Template, UdpChecksum};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

const KEY: HashKey = HashKey::new(1);

/// See the module's description.
pub(crate) fn run(bytes: &[u8]) {
    header(bytes);
    black_box(pmtu::read_quote(bytes));
    tunnel_packet(bytes);
    inner_frame(bytes);
}

fn header(bytes: &[u8]) {
    let Ok(view) = Header::new_checked(bytes) else {
        assert!(bytes.len() < LEN);
        return;
    };
    black_box((view.flags(), view.is_canonical(), view.to_string()));
    assert_eq!(view.payload().len(), bytes.len() - LEN);
    let mut copy = bytes.to_vec();
    let mut view = Header::new_unchecked(&mut copy[..]);
    let (flags, vni) = (view.flags(), view.vni());
    view.set_flags(flags);
    view.set_vni(vni);
    assert_eq!(copy, bytes);
}

/// An accepted inner frame lies within the packet. The checksum state affects only whether it is
/// accepted.
fn tunnel_packet(bytes: &[u8]) {
    let Ok(outer) = parse(bytes, &KEY) else { return };
    let strict = DecapRules { port: outer.key.dst_port, ..DecapRules::default() };
    let loose = DecapRules { ipv6_zero_checksum: true, inner_vlan: true, ..strict };
    let Ok(got) = decap(bytes, &outer, ChecksumState::Good, &loose) else {
        assert!(decap(bytes, &outer, ChecksumState::Unknown, &strict).is_err());
        return;
    };
    assert!(got.start + 14 <= got.end && got.end <= outer.end);
    if let Ok(same) = decap(bytes, &outer, ChecksumState::Unknown, &strict) {
        assert_eq!(same, got);
    }
    let (start, end) = (got.start as usize, got.end as usize);
    assert_eq!(payload_vni(&bytes[start - LEN..end], &loose), Ok(got.vni));
    let mut frame = bytes[start..end].to_vec();
    if let Ok(inner) = parse(&frame, &KEY) {
        black_box(is_nested(&inner, &strict));
        // After a congestion mark is copied into the inner packet, it still parses: its IPv4 header
        // checksum is right.
        if ecn::apply(Ecn::Ce, &mut frame[usize::from(inner.l3)..]).is_ok() {
            assert!(parse(&frame, &KEY).is_ok());
        }
    }
}

/// An encapsulated frame is decapsulated to the same frame.
fn inner_frame(bytes: &[u8]) {
    let Ok(inner) = parse(bytes, &KEY) else { return };
    let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let outer = Outer {
        ethernet: Some((Mac([2; 6]), Mac([4; 6]))),
        checksum: UdpChecksum::Computed,
        inner_vlan: true,
        ..Outer::new(a, b, podswitch_vxlan::header::Vni::MAX)
    };
    let template = Template::new(&outer).expect("a good tunnel");
    let mut packet = vec![0; template.len()];
    packet.extend_from_slice(bytes);
    if template.encap(&InnerFacts::new(&inner, &KEY), &mut packet).is_err() {
        assert!(packet.len() > usize::from(u16::MAX));
        return;
    }
    let parsed = parse(&packet, &KEY).expect("a written packet parses");
    let rules = DecapRules { inner_vlan: true, ..DecapRules::default() };
    let got = decap(&packet, &parsed, ChecksumState::Unknown, &rules).expect("and is accepted");
    assert_eq!(&packet[got.start as usize..got.end as usize], bytes);
}
