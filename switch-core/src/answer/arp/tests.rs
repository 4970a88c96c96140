use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;
use proptest::prelude::*;

use super::super::testing::*;
use super::*;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn request(target_ip: Ipv4Addr) -> Arp {
    Arp {
        eth_src: POD_MAC,
        eth_dst: Mac::BROADCAST,
        operation: 1,
        sender_mac: POD_MAC,
        sender_ip: POD4,
        target_mac: Mac::ZERO,
        target_ip,
    }
}

fn verdict(arp: &Arp, trust: Trust) -> ArpVerdict {
    let gateway = gateway();
    let (packet, parsed) = packet(&arp.frame());
    // The node gets replies for one pod, a pod gets replies for every address.
    let answers = |ip| trust == Trust::Bound || ip == OTHER4;
    check(&packet, &parsed, &binding(&gateway, trust), answers)
}

fn pod(arp: &Arp) -> ArpVerdict {
    verdict(arp, Trust::Bound)
}

fn answered(target_ip: Ipv4Addr) -> ArpVerdict {
    ArpVerdict::Answer(ArpRequest { sender_mac: POD_MAC, sender_ip: POD4, target_ip })
}

fn dropped(reason: DropReason) -> ArpVerdict {
    ArpVerdict::Drop(reason)
}

#[test]
fn a_pod_gets_replies_for_every_address_but_its_own() {
    for target in [gateway().ipv4, OTHER4, Ipv4Addr::new(8, 8, 8, 8)] {
        assert_eq!(pod(&request(target)), answered(target));
        let unicast = Arp { eth_dst: gateway().mac, ..request(target) };
        assert_eq!(pod(&unicast), answered(target));
    }
    assert_eq!(pod(&request(POD4)), ArpVerdict::Consumed);
}

#[test]
fn the_reply_on_the_wire() {
    let ArpVerdict::Answer(request) = pod(&request(OTHER4)) else { panic!("not answered") };
    let reply = reply(&request, gateway().mac, &mut dirty_pool()).unwrap();
    let expected = Arp {
        eth_src: gateway().mac,
        eth_dst: POD_MAC,
        operation: 2,
        sender_mac: gateway().mac,
        sender_ip: OTHER4,
        target_mac: POD_MAC,
        target_ip: POD4,
    };
    assert_eq!(reply.bytes(), expected.frame());
}

#[test]
fn probes_and_announcements() {
    let probe = |target| Arp { sender_ip: ANY, ..request(target) };
    assert_eq!(pod(&probe(POD4)), ArpVerdict::Consumed);
    assert_eq!(pod(&probe(OTHER4)), dropped(DropReason::SpoofedArp));
    assert!(matches!(pod(&probe(gateway().ipv4)), ArpVerdict::Answer(_)));
    let announcement = Arp { operation: 2, target_mac: Mac::BROADCAST, ..request(POD4) };
    assert_eq!(pod(&announcement), ArpVerdict::Consumed);
    let foreign = Arp { sender_ip: OTHER4, ..request(OTHER4) };
    assert_eq!(pod(&foreign), dropped(DropReason::SpoofedArp));
    assert_eq!(pod(&Arp { operation: 2, ..foreign }), dropped(DropReason::SpoofedArp));
}

#[test]
fn claims_of_others_addresses() {
    let gw = gateway();
    for operation in [1, 2] {
        let base = || Arp { operation, ..request(gw.ipv4) };
        assert_eq!(pod(&Arp { eth_src: OTHER_MAC, ..base() }), dropped(DropReason::SpoofedMac));
        for sender_mac in [OTHER_MAC, gw.mac, Mac::BROADCAST, Mac::ZERO] {
            assert_eq!(pod(&Arp { sender_mac, ..base() }), dropped(DropReason::SpoofedArp));
        }
        for sender_ip in [OTHER4, gw.ipv4, Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST] {
            assert_eq!(pod(&Arp { sender_ip, ..base() }), dropped(DropReason::SpoofedArp));
        }
    }
    let reply_from_nobody = Arp { operation: 2, sender_ip: ANY, ..request(gw.ipv4) };
    assert_eq!(pod(&reply_from_nobody), dropped(DropReason::SpoofedArp));
}

#[test]
fn no_binding_may_claim_the_gateways_address() {
    let gateway = gateway();
    let greedy = Binding { ipv4: &[POD4, gateway.ipv4], ..binding(&gateway, Trust::Bound) };
    let claim = Arp { sender_ip: gateway.ipv4, ..request(gateway.ipv4) };
    let (packet, parsed) = packet(&claim.frame());
    let verdict = check(&packet, &parsed, &greedy, |_| true);
    assert_eq!(verdict, dropped(DropReason::SpoofedArp));
}

#[test]
fn unrelated_and_unsupported_arp() {
    let elsewhere = Arp { eth_dst: OTHER_MAC, ..request(OTHER4) };
    assert_eq!(pod(&elsewhere), dropped(DropReason::NotForUs));
    for operation in [0, 3, 8, 0xffff] {
        let arp = Arp { operation, ..request(OTHER4) };
        assert_eq!(pod(&arp), dropped(DropReason::ArpInvalid));
    }
    for target in [ANY, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::LOCALHOST] {
        assert_eq!(pod(&request(target)), dropped(DropReason::ArpInvalid));
    }
    let gateway = gateway();
    let (packet, mut parsed) = packet(&request(OTHER4).frame());
    parsed.network = Network::Other;
    let verdict = check(&packet, &parsed, &binding(&gateway, Trust::Bound), |_| true);
    assert_eq!(verdict, dropped(DropReason::ArpInvalid));
}

#[test]
fn the_node_gets_replies_for_its_pods() {
    let node = |arp: &Arp| verdict(arp, Trust::Node);
    let unknown = Ipv4Addr::new(192, 0, 2, 9);
    assert_eq!(node(&request(OTHER4)), answered(OTHER4));
    assert_eq!(node(&request(unknown)), ArpVerdict::Consumed);
    // It may use an address that is not configured, but not a pod's and not the gateway's.
    let as_sender = |sender_ip| Arp { sender_ip, ..request(OTHER4) };
    assert!(matches!(node(&as_sender(unknown)), ArpVerdict::Answer(_)));
    assert_eq!(node(&as_sender(OTHER4)), dropped(DropReason::SpoofedArp));
    assert_eq!(node(&as_sender(gateway().ipv4)), dropped(DropReason::SpoofedArp));
    let probe = |target| Arp { sender_ip: ANY, ..request(target) };
    assert_eq!(node(&probe(unknown)), ArpVerdict::Consumed);
    assert_eq!(node(&probe(OTHER4)), dropped(DropReason::SpoofedArp));
}

#[test]
fn without_a_buffer_there_is_no_reply() {
    let mut pool = Pool::new(crate::packet::PoolConfig { small: 0, large: 0 });
    let request = ArpRequest { sender_mac: POD_MAC, sender_ip: POD4, target_ip: OTHER4 };
    assert!(reply(&request, gateway().mac, &mut pool).is_none());
}

proptest! {
    /// For any ARP frame, the reply goes to the pod's own MAC address. Its target is the pod's own
    /// address, or zero for a probe for the gateway's address.
    #[test]
    fn answers_go_to_the_pod_only(
        mut frame in prop::collection::vec(any::<u8>(), 0..64),
        shape in any::<bool>(),
        edits in prop::collection::vec((0usize..42, any::<u8>()), 0..3),
    ) {
        if shape {
            frame = request(OTHER4).frame();
            edits.iter().for_each(|(at, value)| frame[*at] = *value);
        }
        let gateway = gateway();
        let Ok(parsed) = parse(&frame, &HashKey::new(7)) else { return Ok(()) };
        let packet = Packet::from_frame(&frame);
        let verdict = check(&packet, &parsed, &binding(&gateway, Trust::Bound), |_| true);
        if let ArpVerdict::Answer(request) = verdict {
            prop_assert_eq!(request.sender_mac, POD_MAC);
            prop_assert!(request.sender_ip == POD4
                || (request.sender_ip.is_unspecified() && request.target_ip == gateway.ipv4));
            prop_assert_ne!(request.target_ip, POD4);
        }
    }
}
