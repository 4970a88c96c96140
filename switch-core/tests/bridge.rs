//! Layer-2 switching: learning, flooding, VLANs, and the limits of all of them (T-C7, T-C9).

use podswitch_testkit::rig;

use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::{BridgeDomain, Config, PortConfig, PortRole, Vlans};
use podswitch_core::id::PortId;
use podswitch_core::packet::{GsoType, Offload, Packet};
use podswitch_wire::addr::Mac;
use rig::frames::*;
use rig::*;

const AGEING: u32 = 60;
const LEARN_LIMIT: u32 = 4;

/// A port's VLANs: untagged, tagged.
type Membership = (Option<u16>, &'static [u16]);

const ACCESS: Membership = (Some(1), &[]);

/// A bridge with these ports, numbered from 0. Those after the first `split` are another domain.
fn bridge_of(ports: &[Membership], split: usize) -> Config {
    let domain = |name: &str| {
        Arc::new(BridgeDomain { name: name.into(), ageing_secs: AGEING, learn_limit: LEARN_LIMIT })
    };
    let port = |(n, &(untagged, tagged)): (usize, &Membership)| {
        let domain = if n < split { "lan" } else { "other" };
        let vlans = Vlans { untagged, tagged: tagged.to_vec() };
        let role = PortRole::Bridge { domain: domain.into(), vlans };
        PortConfig { port: PortId(n as u16), role }
    };
    Config {
        bridges: vec![domain("lan"), domain("other")],
        ports: ports.iter().enumerate().map(port).collect(),
        ..Config::default()
    }
}

fn plain(ports: usize) -> Switch {
    Switch::new(&bridge_of(&vec![ACCESS; ports], ports))
}

/// A station's address.
fn mac(n: usize) -> Mac {
    Mac([2, 0, 0, 0, (n >> 8) as u8, n as u8])
}

fn frame(to: Mac, from: Mac) -> Vec<u8> {
    ethernet(to, from, 0x88b5, &(0..64).collect::<Vec<u8>>())
}

/// Sends a frame; returns the frames that left, by port.
fn send(switch: &mut Switch, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
    switch.send(port, frame);
    received(switch)
}

fn received(switch: &mut Switch) -> Vec<(usize, Vec<u8>)> {
    let ports = switch.ends.len();
    (0..ports).flat_map(|n| switch.recv(n).into_iter().map(move |f| (n, f))).collect()
}

/// The ports by which a frame left unchanged.
fn reached(switch: &mut Switch, port: usize, frame: &[u8]) -> Vec<usize> {
    let out = send(switch, port, frame);
    assert!(out.iter().all(|(_, f)| f == frame), "not a byte changed");
    out.into_iter().map(|(port, _)| port).collect()
}

fn only(switch: &mut Switch, port: usize, reason: DropReason) {
    assert_eq!(switch.dropped(), [(port as u16, reason)]);
}

#[test]
fn learns_floods_and_forwards() {
    let mut switch = plain(4);
    // Unknown destination: sent to all ports except the ingress port.
    assert_eq!(reached(&mut switch, 1, &frame(mac(2), mac(1))), [0, 2, 3]);
    // Known now: sent to its port only.
    assert_eq!(reached(&mut switch, 2, &frame(mac(1), mac(2))), [1]);
    assert_eq!(reached(&mut switch, 1, &frame(mac(2), mac(1))), [2]);
    assert_eq!(reached(&mut switch, 3, &frame(mac(2), mac(3))), [2]);
    // Groups always flood.
    assert_eq!(reached(&mut switch, 2, &frame(Mac::BROADCAST, mac(2))), [0, 1, 3]);
    assert_eq!(reached(&mut switch, 2, &frame(Mac([0x33, 0x33, 0, 0, 0, 1]), mac(2))), [0, 1, 3]);
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.count(|c| c.copies.get()), 6);
    assert_eq!(switch.control.connections().len(), 0, "no flow is created");
    switch.assert_adds_up();
}

#[test]
fn frames_are_not_sent_to_their_ingress_port() {
    let mut switch = plain(4);
    reached(&mut switch, 1, &frame(Mac::BROADCAST, mac(1)));
    reached(&mut switch, 1, &frame(Mac::BROADCAST, mac(2)));
    // Both stations are behind port 1, perhaps on a hub: they already received each other's frames.
    assert!(reached(&mut switch, 1, &frame(mac(1), mac(2))).is_empty());
    only(&mut switch, 1, Hairpin);
    assert!(reached(&mut switch, 1, &frame(mac(2), mac(2))).is_empty());
    only(&mut switch, 1, Hairpin);
    switch.assert_adds_up();
}

#[test]
fn domains_are_apart() {
    let mut switch = Switch::new(&bridge_of(&[ACCESS; 5], 2));
    assert_eq!(reached(&mut switch, 0, &frame(Mac::BROADCAST, mac(1))), [1]);
    // The same address is another station in the other domain.
    assert_eq!(reached(&mut switch, 2, &frame(mac(1), mac(2))), [3, 4]);
    assert_eq!(reached(&mut switch, 4, &frame(Mac::BROADCAST, mac(1))), [2, 3]);
    assert_eq!(reached(&mut switch, 1, &frame(mac(1), mac(3))), [0]);
    assert_eq!(reached(&mut switch, 3, &frame(mac(1), mac(4))), [4]);
    // A port alone in its domain has no other port to send to.
    let mut alone = Switch::new(&bridge_of(&[(Some(1), &[]), (Some(2), &[])], 2));
    assert!(reached(&mut alone, 0, &frame(mac(9), mac(1))).is_empty());
    only(&mut alone, 0, NoFloodTarget);
}

/// Ports: access to VLAN 10, access to 20, trunk of both, trunk with 10 native and 20 tagged.
fn vlans() -> Switch {
    let ports: [Membership; 4] =
        [(Some(10), &[]), (Some(20), &[]), (None, &[10, 20]), (Some(10), &[20])];
    Switch::new(&bridge_of(&ports, 4))
}

#[test]
fn tags_are_added_and_removed() {
    let mut switch = vlans();
    let bare = frame(Mac::BROADCAST, mac(1));
    let out = send(&mut switch, 0, &bare);
    assert_eq!(out, [(2, tagged(&bare, 10)), (3, bare.clone())]);
    let out = send(&mut switch, 1, &frame(Mac::BROADCAST, mac(2)));
    let bare = frame(Mac::BROADCAST, mac(2));
    assert_eq!(out, [(2, tagged(&bare, 20)), (3, tagged(&bare, 20))]);
    // The sender sets the priority (with the drop eligible bit); frames on access ports have none.
    let bare = frame(Mac::BROADCAST, mac(3));
    for priority in [0xe000, 0xb000, 0x1000, 0] {
        let out = send(&mut switch, 2, &tagged(&bare, priority | 20));
        assert_eq!(out, [(1, bare.clone()), (3, tagged(&bare, priority | 20))]);
        let out = send(&mut switch, 3, &tagged(&bare, priority | 20));
        assert_eq!(out, [(1, bare.clone()), (2, tagged(&bare, priority | 20))]);
        // VLAN 0: a priority without a VLAN.
        let out = send(&mut switch, 3, &tagged(&bare, priority));
        assert_eq!(out, [(0, bare.clone()), (2, tagged(&bare, priority | 10))]);
    }
    // Everything behind the tag is payload, even other tags.
    let deep = tagged(&tagged(&bare, 99), 0x2014);
    let out = send(&mut switch, 2, &deep);
    assert_eq!(out, [(1, tagged(&bare, 99)), (3, deep)]);
    assert_eq!(switch.dropped(), []);
    switch.assert_adds_up();
}

#[test]
fn each_vlan_learns_for_itself() {
    let mut switch = vlans();
    let bare = frame(mac(9), mac(1));
    assert_eq!(send(&mut switch, 0, &bare).len(), 2);
    assert_eq!(
        send(&mut switch, 2, &tagged(&frame(mac(1), mac(2)), 10)),
        [(0, frame(mac(1), mac(2)))]
    );
    // In VLAN 20 that station is unknown.
    assert_eq!(send(&mut switch, 2, &tagged(&frame(mac(1), mac(2)), 20)).len(), 2);
    assert_eq!(
        send(&mut switch, 0, &frame(mac(2), mac(1))),
        [(2, tagged(&frame(mac(2), mac(1)), 10))]
    );
}

#[test]
fn frames_of_other_vlans_are_dropped() {
    let mut switch = vlans();
    let before = switch.control.shared().fdb.dump(switch.now);
    let bare = frame(Mac::BROADCAST, mac(7));
    let cases = [
        (0, tagged(&bare, 20)),
        // Access ports do not accept even their own VLAN tagged, and trunks do not accept the
        // native VLAN tagged.
        (0, tagged(&bare, 10)),
        (3, tagged(&bare, 10)),
        (2, bare.clone()),
        (2, tagged(&bare, 30)),
        (2, tagged(&bare, 0xe000)),
        (2, tagged(&bare, 4095)),
    ];
    for (port, frame) in cases {
        assert!(send(&mut switch, port, &frame).is_empty());
        only(&mut switch, port, VlanNotAllowed);
    }
    assert_eq!(switch.control.shared().fdb.dump(switch.now), before, "and teaches nothing");
    switch.assert_adds_up();
}

#[test]
fn frames_that_no_bridge_forwards() {
    let mut switch = plain(4);
    let cut = |frame: &[u8], len| frame[..len].to_vec();
    let good = frame(mac(2), mac(1));
    let cases = [
        (frame(mac(2), Mac([3, 0, 0, 0, 0, 1])), SourceMulticast),
        (frame(mac(2), Mac::BROADCAST), SourceMulticast),
        (frame(mac(2), Mac::ZERO), SourceMulticast),
        (frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), mac(1)), BridgeReserved),
        (frame(Mac([1, 0x80, 0xc2, 0, 0, 15]), mac(1)), BridgeReserved),
        (cut(&good, 13), EthernetTruncated),
        (cut(&tagged(&good, 1), 17), VlanTruncated),
        (Vec::new(), EthernetTruncated),
    ];
    for (frame, reason) in cases {
        assert!(reached(&mut switch, 0, &frame).is_empty());
        only(&mut switch, 0, reason);
    }
    assert!(switch.control.shared().fdb.dump(switch.now).is_empty());
    switch.assert_adds_up();
}

#[test]
fn addresses_not_seen_again_are_forgotten() {
    let mut switch = plain(4);
    let ask = frame(mac(1), mac(2));
    reached(&mut switch, 1, &frame(Mac::BROADCAST, mac(1)));
    switch.pass(Duration::from_secs(u64::from(AGEING) - 1));
    assert_eq!(reached(&mut switch, 2, &ask), [1]);
    // A frame renews the entry.
    reached(&mut switch, 1, &frame(mac(2), mac(1)));
    switch.pass(Duration::from_secs(u64::from(AGEING) - 1));
    assert_eq!(reached(&mut switch, 2, &ask), [1]);
    switch.pass(Duration::from_secs(2));
    assert_eq!(reached(&mut switch, 2, &ask), [0, 1, 3]);
    switch.pass_slowly(u64::from(AGEING) + 12);
    // The sweep removes it, too, so that its port may learn another address.
    assert_eq!(switch.control.shared().fdb.learned(PortId(1)), 0);
}

#[test]
fn a_port_has_a_limit_of_learned_addresses() {
    let mut switch = plain(4);
    for n in 1..100 {
        assert_eq!(reached(&mut switch, 0, &frame(Mac::BROADCAST, mac(n))), [1, 2, 3]);
    }
    assert_eq!(switch.control.shared().fdb.dump(switch.now).len(), LEARN_LIMIT as usize);
    assert_eq!(switch.control.shared().fdb.learned(PortId(0)), LEARN_LIMIT);
    // Frames to addresses beyond the limit are flooded, and other ports still learn.
    assert_eq!(reached(&mut switch, 1, &frame(mac(50), mac(200))), [0, 2, 3]);
    assert_eq!(reached(&mut switch, 1, &frame(mac(2), mac(200))), [0]);
    assert_eq!(reached(&mut switch, 0, &frame(mac(200), mac(50))), [1]);
    switch.assert_adds_up();
}

#[test]
fn a_station_may_move() {
    let mut switch = plain(4);
    reached(&mut switch, 0, &frame(Mac::BROADCAST, mac(1)));
    assert_eq!(reached(&mut switch, 3, &frame(mac(1), mac(2))), [0]);
    reached(&mut switch, 2, &frame(Mac::BROADCAST, mac(1)));
    assert_eq!(reached(&mut switch, 3, &frame(mac(1), mac(2))), [2]);
    let fdb = &switch.control.shared().fdb;
    assert_eq!((fdb.learned(PortId(0)), fdb.learned(PortId(2))), (0, 1));
}

#[test]
fn ports_are_removed_and_added() {
    let mut switch = plain(4);
    reached(&mut switch, 1, &frame(Mac::BROADCAST, mac(1)));
    // The port left the domain: addresses learned there are unknown, so frames to them are flooded.
    let mut config = bridge_of(&[ACCESS; 4], 4);
    config.ports.remove(1);
    switch.control.apply(&config).unwrap();
    assert_eq!(reached(&mut switch, 2, &frame(mac(1), mac(2))), [0, 3]);
    assert!(reached(&mut switch, 1, &frame(mac(2), mac(1))).is_empty());
    only(&mut switch, 1, EndpointNotReady);
    // When a device is detached, the addresses learned from it are removed.
    switch.control.detach(PortId(2)).unwrap();
    let ports: Vec<u16> =
        switch.control.shared().fdb.dump(switch.now).iter().map(|e| e.port.0).collect();
    assert_eq!(ports, [1]);
    assert_eq!(reached(&mut switch, 0, &frame(Mac::BROADCAST, mac(5))), [3]);
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.count(|c| c.originated_lost.get()), 1, "a copy that no port accepts");
    switch.control.detach(PortId(3)).unwrap();
    assert!(reached(&mut switch, 0, &frame(Mac::BROADCAST, mac(5))).is_empty());
    only(&mut switch, 0, PortDown);
    switch.assert_adds_up();
}

#[test]
fn floods_are_limited_by_port() {
    let mut switch = plain(4);
    reached(&mut switch, 1, &frame(Mac::BROADCAST, mac(1)));
    let flood = |switch: &mut Switch, port: usize, count: usize| {
        let frame = frame(Mac::BROADCAST, mac(port + 100));
        let passed = (0..count).filter(|_| !reached(switch, port, &frame).is_empty()).count();
        let dropped = switch.dropped();
        assert!(dropped.iter().all(|&d| d == (port as u16, FloodLimited)));
        assert_eq!(passed + dropped.len(), count);
        passed
    };
    assert_eq!(flood(&mut switch, 0, 2500), 2000);
    // Known addresses are not flooded, and other ports have their own limit.
    assert_eq!(reached(&mut switch, 0, &frame(mac(1), mac(100))), [1]);
    assert_eq!(flood(&mut switch, 2, 100), 100);
    switch.pass(Duration::from_millis(10));
    assert_eq!(flood(&mut switch, 0, 200), 100, "10,000 a second");
    // Frames to unused addresses do not evade the limit.
    let unknown: usize = (0..50)
        .filter(|&n| !reached(&mut switch, 0, &frame(mac(900 + n), mac(100))).is_empty())
        .count();
    assert_eq!(unknown, 0);
    switch.dropped();
    switch.assert_adds_up();
}

#[test]
fn offload_metadata_moves_with_the_tags() {
    let mut switch = vlans();
    let (src, dst) = (addresses(0)[0], addresses(1)[0]);
    let message = tcp(src, dst, (1, 2), (1, 1, 16), &[9; 3000]);
    let bare = ethernet(mac(9), mac(1), 0x0800, &ip(src, dst, 6, 64, None, &message));
    let offload = |shift: u16| Offload {
        gso_type: GsoType::TcpV4,
        csum_partial: true,
        gso_size: 1000,
        hdr_len: 54 + shift,
        csum_start: 34 + shift,
        csum_offset: 16,
        ..Offload::default()
    };
    let with = |frame: &[u8], shift| {
        let mut packet = Packet::from_frame(frame);
        packet.offload = offload(shift);
        packet
    };
    switch.send_packet(0, with(&bare, 0));
    let [trunk, native] = [2, 3].map(|port| switch.ends[port].recv().unwrap());
    assert_eq!((trunk.bytes(), trunk.offload), (&tagged(&bare, 10)[..], offload(4)));
    assert_eq!((native.bytes(), native.offload), (&bare[..], offload(0)));
    switch.send_packet(2, with(&tagged(&bare, 0x600a), 4));
    let [access, native] = [0, 3].map(|port| switch.ends[port].recv().unwrap());
    assert_eq!((access.bytes(), access.offload), (&bare[..], offload(0)));
    assert_eq!((native.bytes(), native.offload), (&bare[..], offload(0)));
    // Frames with metadata that does not fit are dropped.
    switch.send_packet(2, with(&tagged(&bare, 10), 0));
    only(&mut switch, 2, OffloadInvalid);
    assert!(received(&mut switch).is_empty());
    switch.assert_adds_up();
}
