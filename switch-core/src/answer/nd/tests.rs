use etherparse::{Icmpv6Type, SlicedPacket, TransportSlice};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Icmp, parse};
use proptest::prelude::*;

use super::super::testing::*;
use super::*;

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x858, 0xaff, 0xfef4, 0x105);
const OTHER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// A message from the pod; each test changes it in one place.
#[derive(Clone)]
struct Sent {
    eth: (Mac, Mac),
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    kind_code: [u8; 2],
    /// The bytes behind the checksum.
    body: Vec<u8>,
}

impl Sent {
    fn frame(&self) -> Vec<u8> {
        icmp6(self.eth, self.src, self.dst, self.hop_limit, self.kind_code, &self.body)
    }

    fn with_option(mut self, kind: u8, mac: Mac) -> Self {
        self.body.extend([kind, 1]);
        self.body.extend(mac.0);
        self
    }
}

fn group_mac(ip: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = ip.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// A neighbour solicitation without options.
fn bare_solicitation(src: Ipv6Addr, target: Ipv6Addr) -> Sent {
    let dst = solicited_node(target);
    let mut body = vec![0; 4];
    body.extend(target.octets());
    Sent { eth: (POD_MAC, group_mac(dst)), src, dst, hop_limit: 255, kind_code: [135, 0], body }
}

fn solicit(src: Ipv6Addr, target: Ipv6Addr) -> Sent {
    bare_solicitation(src, target).with_option(SOURCE_LINK_LAYER, POD_MAC)
}

fn advert(src: Ipv6Addr, target: Ipv6Addr, flags: u8) -> Sent {
    let mut body = vec![flags, 0, 0, 0];
    body.extend(target.octets());
    let (eth, dst) = ((POD_MAC, ALL_NODES_MAC), ALL_NODES);
    Sent { eth, src, dst, hop_limit: 255, kind_code: [136, 0], body }
}

fn verdict_of(frame: &[u8], trust: Trust) -> NdVerdict {
    let gateway = gateway();
    let (packet, parsed) = packet(frame);
    assert_eq!(parsed.icmp, Icmp::Neighbour);
    let answers = |ip| trust == Trust::Bound || ip == OTHER6;
    check(&packet, &parsed, &binding(&gateway, trust), answers)
}

fn pod(sent: &Sent) -> NdVerdict {
    verdict_of(&sent.frame(), Trust::Bound)
}

fn node(sent: &Sent) -> NdVerdict {
    verdict_of(&sent.frame(), Trust::Node)
}

fn answered(sender: Ipv6Addr, target: Ipv6Addr) -> NdVerdict {
    let sender_ip = (sender != NONE).then_some(sender);
    NdVerdict::Answer(Solicitation { sender_mac: POD_MAC, sender_ip, target })
}

const INVALID: NdVerdict = NdVerdict::Drop(DropReason::NeighbourInvalid);
const SPOOFED: NdVerdict = NdVerdict::Drop(DropReason::SpoofedNeighbour);
const ROGUE: NdVerdict = NdVerdict::Drop(DropReason::RogueRouter);

#[test]
fn a_pod_finds_every_address_behind_the_gateway() {
    let gw = gateway();
    for src in [POD6, LINK_LOCAL] {
        for target in [gw.ipv6, OTHER6, "2001:db8::1".parse().unwrap()] {
            assert_eq!(pod(&solicit(src, target)), answered(src, target));
            assert_eq!(pod(&bare_solicitation(src, target)), answered(src, target));
            // Neighbour unreachability detection sends its solicitation to the address itself, by
            // unicast.
            let unicast = Sent { eth: (POD_MAC, gw.mac), dst: target, ..solicit(src, target) };
            assert_eq!(pod(&unicast), answered(src, target));
        }
    }
    for own in [POD6, LINK_LOCAL, OTHER_LINK_LOCAL] {
        assert_eq!(pod(&solicit(LINK_LOCAL, own)), NdVerdict::Consumed(NdKind::NotOurs));
    }
}

#[test]
fn duplicate_address_detection() {
    for own in [POD6, LINK_LOCAL, OTHER_LINK_LOCAL] {
        let dad = bare_solicitation(NONE, own);
        assert_eq!(pod(&dad), NdVerdict::Consumed(NdKind::OwnAddress));
        assert_eq!(pod(&solicit(NONE, own)), INVALID, "no link-layer address without a source");
        let to_all = Sent { dst: ALL_NODES, eth: (POD_MAC, ALL_NODES_MAC), ..dad };
        assert_eq!(pod(&to_all), INVALID, "only to the solicited-node group");
    }
    assert_eq!(pod(&bare_solicitation(NONE, gateway().ipv6)), answered(NONE, gateway().ipv6));
    assert_eq!(pod(&bare_solicitation(NONE, OTHER6)), SPOOFED);
}

#[test]
fn claims_of_others_addresses() {
    for src in [OTHER6, gateway().ipv6, "ff02::1".parse().unwrap(), Ipv6Addr::LOCALHOST] {
        assert_eq!(pod(&solicit(src, gateway().ipv6)), SPOOFED);
        assert_eq!(pod(&advert(src, POD6, 0x20)), SPOOFED);
    }
    let foreign_mac = bare_solicitation(POD6, OTHER6).with_option(SOURCE_LINK_LAYER, OTHER_MAC);
    assert_eq!(pod(&foreign_mac), SPOOFED);
    let base = solicit(POD6, OTHER6);
    let foreign_eth = Sent { eth: (OTHER_MAC, base.eth.1), ..base.clone() };
    assert_eq!(pod(&foreign_eth), NdVerdict::Drop(DropReason::SpoofedMac));
    let elsewhere = Sent { eth: (POD_MAC, OTHER_MAC), ..base };
    assert_eq!(pod(&elsewhere), NdVerdict::Drop(DropReason::NotForUs));
}

#[test]
fn advertisements_of_the_own_address_only() {
    let consumed = NdVerdict::Consumed(NdKind::Advertisement);
    assert_eq!(pod(&advert(POD6, POD6, 0x20)), consumed);
    assert_eq!(pod(&advert(LINK_LOCAL, LINK_LOCAL, 0)), consumed);
    let with_mac = advert(POD6, POD6, 0x20).with_option(TARGET_LINK_LAYER, POD_MAC);
    assert_eq!(pod(&with_mac), consumed);
    let foreign_mac = advert(POD6, POD6, 0x20).with_option(TARGET_LINK_LAYER, OTHER_MAC);
    assert_eq!(pod(&foreign_mac), SPOOFED);
    for target in [OTHER6, gateway().ipv6] {
        assert_eq!(pod(&advert(POD6, target, 0x20)), SPOOFED);
    }
    assert_eq!(pod(&advert(POD6, POD6, 0x60)), INVALID, "solicited, and to a group");
    let unicast =
        Sent { dst: gateway().ipv6, eth: (POD_MAC, gateway().mac), ..advert(POD6, POD6, 0x60) };
    assert_eq!(pod(&unicast), consumed);
}

#[test]
fn routers_and_listeners() {
    let (eth, src) = ((POD_MAC, group_mac("ff02::2".parse().unwrap())), LINK_LOCAL);
    let dst = "ff02::2".parse().unwrap();
    let message = |kind, len: usize| Sent {
        eth,
        src,
        dst,
        hop_limit: 255,
        kind_code: [kind, 0],
        body: vec![0; len - 4],
    };
    let solicitation = NdVerdict::Consumed(NdKind::RouterSolicitation);
    assert_eq!(pod(&message(133, 8)), solicitation);
    assert_eq!(pod(&message(133, 8).with_option(SOURCE_LINK_LAYER, POD_MAC)), solicitation);
    assert_eq!(pod(&message(133, 8).with_option(SOURCE_LINK_LAYER, OTHER_MAC)), SPOOFED);
    let from_none = Sent { src: NONE, ..message(133, 8) };
    assert_eq!(pod(&from_none), solicitation);
    assert_eq!(pod(&from_none.with_option(SOURCE_LINK_LAYER, POD_MAC)), INVALID);
    for (kind, len) in [(134, 16), (137, 40)] {
        assert_eq!(pod(&message(kind, len)), ROGUE);
        assert_eq!(node(&message(kind, len)), NdVerdict::Consumed(NdKind::Router));
        assert_eq!(node(&message(kind, len - 4)), INVALID);
    }
    let mld = |kind| Sent { hop_limit: 1, ..message(kind, 24) };
    for kind in [131, 132, 143] {
        assert_eq!(pod(&mld(kind)), NdVerdict::Consumed(NdKind::Listener));
        assert_eq!(pod(&message(kind, 24)), INVALID, "listener discovery stays on its link");
    }
    assert_eq!(pod(&mld(130)), ROGUE);
    // Unsupported types: inverse neighbour discovery, SEND.
    for kind in [141, 148] {
        assert_eq!(pod(&message(kind, 24)), INVALID);
    }
}

#[test]
fn messages_that_rfc_4861_calls_invalid() {
    let base = solicit(POD6, OTHER6);
    assert_eq!(pod(&base), answered(POD6, OTHER6));
    for hop_limit in [0, 1, 64, 254] {
        assert_eq!(pod(&Sent { hop_limit, ..base.clone() }), INVALID);
    }
    assert_eq!(pod(&Sent { kind_code: [135, 1], ..base.clone() }), INVALID);
    for len in 4..base.body.len() {
        let mut short = base.clone();
        short.body.truncate(len);
        let expected = if len == 20 { answered(POD6, OTHER6) } else { INVALID };
        assert_eq!(pod(&short), expected, "body of {len} bytes");
    }
    let mut zero_length = base.clone();
    zero_length.body[21] = 0;
    assert_eq!(pod(&zero_length), INVALID);
    let mut too_long = base.clone();
    too_long.body[21] = 2;
    assert_eq!(pod(&too_long), INVALID);
    assert_eq!(pod(&base.clone().with_option(SOURCE_LINK_LAYER, POD_MAC)), INVALID, "told twice");
    let mut group_target = base.clone();
    group_target.body[4..20].copy_from_slice(&ALL_NODES.octets());
    assert_eq!(pod(&group_target), INVALID);

    let mut corrupted = base.frame();
    corrupted[56] ^= 0x10;
    assert_eq!(verdict_of(&corrupted, Trust::Bound), INVALID);
}

#[test]
fn no_extension_headers() {
    // A destination options header of padding between IPv6 and ICMPv6.
    let plain = solicit(POD6, OTHER6).frame();
    let mut frame = plain[..54].to_vec();
    frame.extend([58, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend(&plain[54..]);
    frame[20] = 60;
    frame[19] += 8;
    assert_eq!(verdict_of(&frame, Trust::Bound), INVALID);
}

#[test]
fn the_node_gets_advertisements_for_its_pods() {
    let unknown: Ipv6Addr = "2001:db8::77".parse().unwrap();
    for src in [unknown, LINK_LOCAL] {
        assert_eq!(node(&solicit(src, OTHER6)), answered(src, OTHER6));
        assert_eq!(node(&solicit(src, unknown)), NdVerdict::Consumed(NdKind::NotOurs));
    }
    assert_eq!(node(&solicit(OTHER6, unknown)), SPOOFED);
    assert_eq!(node(&advert(unknown, OTHER6, 0x20)), SPOOFED);
    assert_eq!(node(&advert(unknown, unknown, 0x20)), NdVerdict::Consumed(NdKind::Advertisement));
    assert_eq!(node(&bare_solicitation(NONE, unknown)), NdVerdict::Consumed(NdKind::OwnAddress));
    assert_eq!(node(&bare_solicitation(NONE, OTHER6)), SPOOFED);
}

#[test]
fn the_advertisement_on_the_wire() {
    let gw = gateway();
    for (sender, flags) in [(Some(LINK_LOCAL), 0xe0), (None, 0xa0)] {
        let asked = Solicitation { sender_mac: POD_MAC, sender_ip: sender, target: OTHER6 };
        let advert = advertise(&asked, &gw, &mut dirty_pool()).unwrap();
        let dst = sender.unwrap_or(ALL_NODES);
        let mut body = vec![flags, 0, 0, 0];
        body.extend(OTHER6.octets());
        let eth = (gw.mac, if sender.is_some() { POD_MAC } else { ALL_NODES_MAC });
        let expected = Sent { eth, src: gw.ipv6, dst, hop_limit: 255, kind_code: [136, 0], body }
            .with_option(TARGET_LINK_LAYER, gw.mac);
        assert_eq!(advert.bytes(), expected.frame());

        let sliced = SlicedPacket::from_ethernet(advert.bytes()).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("no ICMPv6") };
        assert!(icmp.is_checksum_valid(gw.ipv6.octets(), dst.octets()));
        assert!(matches!(icmp.icmp_type(), Icmpv6Type::NeighborAdvertisement(_)));
    }
}

proptest! {
    /// For any message from a pod: no panic, and an answer goes to an address that the pod may use,
    /// at its own MAC address. It goes to all nodes only to defend the gateway's address.
    #[test]
    fn answers_go_to_the_pod_only(
        kind in 130u8..=143,
        src in prop::sample::select(vec![POD6, LINK_LOCAL, NONE, OTHER6, ALL_NODES]),
        target in prop::sample::select(vec![POD6, OTHER6, LINK_LOCAL, NONE, ALL_NODES]),
        to_gateway in any::<bool>(),
        tail in prop::collection::vec(any::<u8>(), 0..40),
        option in any::<bool>(),
        edits in prop::collection::vec((0usize..100, any::<u8>()), 0..3),
    ) {
        let gw = gateway();
        let target = if to_gateway { gw.ipv6 } else { target };
        let mut sent = bare_solicitation(src, target);
        sent.kind_code[0] = kind;
        if option {
            sent = sent.with_option(SOURCE_LINK_LAYER, POD_MAC);
        } else {
            sent.body.extend(tail);
        }
        let mut frame = sent.frame();
        for (at, value) in edits {
            let at = at % frame.len();
            frame[at] = value;
        }
        if frame.len() >= 58 {
            let sum = icmp6_checksum(&frame);
            frame[56..58].copy_from_slice(&sum.to_be_bytes());
        }
        let Ok(parsed) = parse(&frame, &HashKey::new(7)) else { return Ok(()) };
        let packet = Packet::from_frame(&frame);
        let verdict = check(&packet, &parsed, &binding(&gw, Trust::Bound), |_| true);
        if let NdVerdict::Answer(asked) = verdict {
            prop_assert_eq!(asked.sender_mac, POD_MAC);
            match asked.sender_ip {
                Some(ip) => prop_assert!(ip == POD6 || (is_link_local(ip) && ip != gw.ipv6)),
                None => prop_assert_eq!(asked.target, gw.ipv6),
            }
            prop_assert_ne!(asked.target, POD6);
        }
    }
}
