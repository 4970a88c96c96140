//! Packets of Linux VXLAN devices are dissected correctly and written identically.

mod support;

use std::net::IpAddr;

use podswitch_vxlan::decap::{ChecksumState, DecapError, DecapRules, decap};
use podswitch_vxlan::ecn::Ecn;
use podswitch_vxlan::header::{Header, Vni};
use podswitch_vxlan::template::{DontFragment, Dscp, InnerFacts, Outer, Template, UdpChecksum};
use podswitch_vxlan::vtep::{RemoteVtep, VtepTable};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use support::{Captured, dissect, kernel_frames, udp_checksum_is_right};

const MAC_A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
const MAC_B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);

fn address(of_b: bool, ipv6: bool) -> IpAddr {
    let text = match (of_b, ipv6) {
        (false, false) => "192.0.2.1",
        (true, false) => "192.0.2.2",
        (false, true) => "2001:db8::1",
        (true, true) => "2001:db8::2",
    };
    text.parse().unwrap()
}

/// The tunnel of a capture, from its sender's point of view.
fn tunnel(captured: &Captured) -> Outer {
    let from_b = captured.frame[11] == 0xb;
    let ipv6 = matches!(captured.vni, 0xff_ffff | 4660);
    let vni = Vni::new(captured.vni).unwrap();
    let mut outer = Outer::new(address(from_b, ipv6), address(!from_b, ipv6), vni);
    outer.ethernet = Some(if from_b { (MAC_B, MAC_A) } else { (MAC_A, MAC_B) });
    outer.dont_fragment = DontFragment::Clear;
    // Linux computes the UDP checksum over IPv4 too unless told not to ("noudpcsum").
    outer.checksum = UdpChecksum::Computed;
    match captured.vni {
        1 => {
            outer.port = 8472;
            outer.dont_fragment = DontFragment::Set;
            outer.dscp = Dscp::Inherit;
        }
        0xff_ffff => outer.checksum = UdpChecksum::Zero,
        4660 => outer.port = 8472,
        _ => {}
    }
    outer
}

fn rules(outer: &Outer) -> DecapRules {
    let ipv6_zero_checksum = outer.checksum == UdpChecksum::Zero;
    DecapRules { port: outer.port, ipv6_zero_checksum, inner_vlan: false }
}

#[test]
fn dissected() {
    let frames = kernel_frames();
    assert!(frames.len() > 20);
    for captured in frames {
        let outer = tunnel(&captured);
        let parsed = dissect(&captured.frame);
        let got = decap(&captured.frame, &parsed, ChecksumState::Unknown, &rules(&outer))
            .unwrap_or_else(|e| panic!("{}: {e}", captured.inside));
        // The engine's own parse gives the same result.
        let ours = podswitch_wire::parse::parse(&captured.frame, &HashKey::new(7)).unwrap();
        let same = decap(&captured.frame, &ours, ChecksumState::Unknown, &rules(&outer));
        assert_eq!(same, Ok(got));
        assert_eq!(got.vni.get(), captured.vni);
        assert_eq!((got.source, got.destination), (outer.source, outer.destination));
        assert_eq!(got.end as usize, captured.frame.len());
        let overhead = if outer.source.is_ipv6() { 70 } else { 50 };
        assert_eq!(got.start, overhead, "{}", captured.inside);
        let inner = &captured.frame[got.start as usize..];
        // The inner frame is complete: `etherparse` finds the packet that was sent in it.
        let kind = captured.inside.split(' ').next().unwrap();
        let proto = dissect(inner).key.proto;
        let expected = match kind {
            "arp" => 0,
            "udp" => 17,
            "tcp" => 6,
            "icmp6" => 58,
            other => panic!("{other}"),
        };
        assert_eq!(proto, expected);
        let vxlan = Header::new_checked(&captured.frame[got.start as usize - 8..]).unwrap();
        assert!(vxlan.is_canonical());
        // The kernel turns inner CE into outer ECT(0) (RFC 3168's limited functionality).
        let mark = Ecn::from_traffic_class(dissect(inner).traffic_class);
        assert_eq!(got.ecn, if mark == Ecn::Ce { Ecn::Ect0 } else { mark });

        let mut table = VtepTable::new([outer.destination], [(got.vni, 9)]);
        let back = Outer { source: outer.destination, destination: outer.source, ..outer };
        let end = table.insert(RemoteVtep::new(back, Mac([2, 1, 1, 1, 1, 1])).unwrap()).unwrap();
        let admitted = table.admit(&got).unwrap();
        assert_eq!((admitted.end, admitted.zone), (end, 9));
    }
}

/// With the kernel's choice of source port, identification and ECN, we write the same bytes.
#[test]
fn written_equal() {
    let key = HashKey::new(7);
    for captured in kernel_frames() {
        let outer = tunnel(&captured);
        let template = Template::new(&outer).unwrap();
        let theirs = captured.frame.clone();
        let start = template.len();
        let inner = dissect(&theirs[start..]);
        let mut facts = InnerFacts::new(&inner, &key);
        if Ecn::from_traffic_class(facts.traffic_class) == Ecn::Ce {
            facts.traffic_class = facts.traffic_class & !3 | Ecn::Ect0 as u8;
        }
        let ipv4 = outer.source.is_ipv4();
        if ipv4 && outer.dont_fragment == DontFragment::Clear {
            facts.identification = u16::from_be_bytes([theirs[18], theirs[19]]);
        }
        let mut ours = vec![0xee; start];
        ours.extend_from_slice(&theirs[start..]);
        template.encap(&facts, &mut ours).unwrap();
        // The kernel's port comes from another hash and range. It counts identifications on packets
        // with DF, where we send zero. Their checksums differ accordingly.
        let udp = start - 16;
        assert!((49152..=65535).contains(&facts.source_port.get()));
        assert_eq!(ours[udp..udp + 2], facts.source_port.get().to_be_bytes());
        let mut expected = theirs.clone();
        expected[udp..udp + 2].copy_from_slice(&ours[udp..udp + 2]);
        if outer.checksum == UdpChecksum::Computed {
            assert!(udp_checksum_is_right(&theirs) && udp_checksum_is_right(&ours));
            expected[udp + 6..udp + 8].copy_from_slice(&ours[udp + 6..udp + 8]);
        }
        if ipv4 && outer.dont_fragment == DontFragment::Set {
            expected[18..20].fill(0);
            expected[24..26].copy_from_slice(&ours[24..26]);
        }
        assert_eq!(ours, expected, "vni {} {}", captured.vni, captured.inside);
        // Everything else, including the header checksum, is right according to `etherparse`, too.
        dissect(&ours);
    }
}

/// One wrong byte anywhere under the UDP checksum is detected; truncation never panics.
#[test]
fn damaged() {
    for captured in kernel_frames() {
        let outer = tunnel(&captured);
        let parsed = dissect(&captured.frame);
        let rules = rules(&outer);
        for len in 0..captured.frame.len() {
            let got = decap(&captured.frame[..len], &parsed, ChecksumState::Unknown, &rules);
            assert!(got.is_err(), "cut to {len}");
        }
        if outer.checksum == UdpChecksum::Computed {
            let start = usize::from(parsed.payload) + 8;
            for at in start + 14..captured.frame.len() {
                let mut frame = captured.frame.clone();
                frame[at] ^= 0x10;
                let got = decap(&frame, &parsed, ChecksumState::Unknown, &rules);
                assert_eq!(got, Err(DecapError::Checksum));
                assert!(decap(&frame, &parsed, ChecksumState::Good, &rules).is_ok());
            }
        }
    }
}
