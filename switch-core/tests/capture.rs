//! Captures: the captured frames, and the result recorded for each.

use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::capture::{
    CaptureFilter, CaptureOptions, CaptureOutcome, CaptureReader, CapturedFrame,
};
use podswitch_core::config::{Config, Underlay};
use podswitch_core::control::ControlError;
use podswitch_core::id::{Epoch, PortId};
use podswitch_core::packet::Origin;
use podswitch_core::port::pcap::Direction::{Inbound, Outbound};
use podswitch_policy::rule::{NetworkPolicy, Selector};
use podswitch_testkit::rig::overlay::{self, Pair, UPLINK};
use podswitch_testkit::rig::*;
use podswitch_wire::addr::Mac;

/// A switch with a running capture.
struct Captured {
    switch: Switch,
    reader: CaptureReader,
}

impl Captured {
    fn new(config: &Config, workers: usize, options: &CaptureOptions) -> Self {
        let mut switch = Switch::with_workers(config, workers);
        let reader = switch.control.capture(options).unwrap();
        let mut captured = Self { switch, reader };
        captured.switch.pass(Duration::ZERO);
        captured
    }

    fn read(&mut self) -> Vec<CapturedFrame> {
        read(&mut self.reader)
    }

    /// The result of the only captured frame.
    fn fate(&mut self) -> CaptureOutcome {
        let mut frames = self.read();
        assert_eq!(frames.len(), 1, "{frames:#?}");
        frames.remove(0).fate
    }
}

fn read(reader: &mut CaptureReader) -> Vec<CapturedFrame> {
    let mut frames = Vec::new();
    reader.read(|frame| frames.push(frame.clone()));
    frames
}

fn all() -> CaptureOptions {
    CaptureOptions::default()
}

fn filtered(filter: CaptureFilter) -> CaptureOptions {
    CaptureOptions { filter, ..all() }
}

fn shut(name: &str) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/default/{name}").into(),
        namespace: "default".into(),
        name: name.into(),
        pods: Selector::everything(),
        ingress: Some(vec![]),
        egress: None,
    })
}

fn arp_request(from: usize) -> Vec<u8> {
    let ip = pod_v4(from);
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(pod_mac(from).0);
    packet.extend(ip);
    packet.extend([0; 6]);
    packet.extend([169, 254, 1, 1]);
    frames::ethernet(Mac([0xff; 6]), pod_mac(from), 0x0806, &packet)
}

#[test]
fn a_forwarded_frame_is_captured_twice_with_its_egress_port() {
    for frame in [udp4(0, pod_v4(1), (1, 53), b"x"), udp6(0, pod_v6(1), (1, 53), b"x")] {
        let mut captured = Captured::new(&config(), 1, &all());
        // Through the slow path, and through the fast path.
        for _ in 0..2 {
            captured.switch.send(0, &frame);
            let frames = captured.read();
            assert_eq!(frames.len(), 2, "{frames:#?}");
            let [received, sent] = [&frames[0], &frames[1]];
            assert_eq!((received.port, received.direction), (PortId(0), Inbound));
            assert_eq!(received.frame, frame);
            assert_eq!(received.fate, CaptureOutcome::Forwarded(PortId(1)));
            assert_eq!(received.time, captured.switch.now);
            let key = received.key.unwrap();
            assert_eq!((key.src_port, key.dst_port), (1, 53));
            assert_eq!((sent.port, sent.direction), (PortId(1), Outbound));
            let (origin, ingress) = (Origin::Received, PortId(0));
            assert_eq!(sent.fate, CaptureOutcome::Sent { origin, ingress });
            assert_eq!(
                captured.switch.recv(1),
                std::slice::from_ref(&sent.frame),
                "as it was sent"
            );
        }
        assert_eq!(captured.switch.count(|counters| counters.hits.get()), 1);
    }
}

#[test]
fn a_dropped_frame_has_the_reason_and_the_policies() {
    let mut config = config();
    config.policies = vec![shut("a")];
    let options = CaptureOptions { snap_len: 20, ..all() };
    let mut captured = Captured::new(&config, 1, &options);
    let frame = udp4(0, pod_v4(1), (1000, 53), b"question");
    captured.switch.send(0, &frame);
    let frames = captured.read();
    assert_eq!(frames.len(), 1);
    assert_eq!((&frames[0].frame[..], frames[0].original_len), (&frame[..20], frame.len() as u32));
    let CaptureOutcome::Dropped(record) = &frames[0].fate else { panic!("{frames:#?}") };
    assert_eq!(record.reason, DropReason::PolicyIngress);
    assert_eq!(*record.isolated_by, ["NetworkPolicy/default/a".into()]);
    assert_eq!(record.dst.as_ref().unwrap().pod.as_deref(), Some("p1"));
    // Malformed.
    let mut broken = frame;
    broken[25] ^= 1;
    captured.switch.send(0, &broken);
    let CaptureOutcome::Dropped(record) = captured.fate() else { panic!("dropped") };
    assert_eq!(record.reason, DropReason::Ipv4Checksum);
}

#[test]
fn the_verdict_is_that_of_the_snapshot_of_its_time() {
    let mut config = config();
    let mut captured = Captured::new(&config, 1, &all());
    let frame = udp4(0, pod_v4(1), (1000, 53), b"question");
    captured.switch.send(0, &frame);
    config.policies = vec![shut("later")];
    captured.switch.control.apply(&config).unwrap();
    captured.switch.send(0, &udp4(0, pod_v4(1), (1001, 53), b"question"));
    config.policies = vec![shut("last")];
    captured.switch.control.apply(&config).unwrap();
    let frames = captured.read();
    let epochs: Vec<Epoch> = frames.iter().map(|frame| frame.snapshot.epoch).collect();
    assert_eq!(epochs, [Epoch(1), Epoch(1), Epoch(2)]);
    assert_eq!(frames[0].fate, CaptureOutcome::Forwarded(PortId(1)));
    let CaptureOutcome::Dropped(record) = &frames[2].fate else { panic!("{frames:#?}") };
    assert_eq!(*record.isolated_by, ["NetworkPolicy/default/later".into()]);
    assert_eq!(record.epoch, Epoch(2));
}

#[test]
fn arp_is_taken_by_the_switch_and_answered() {
    let mut captured = Captured::new(&config(), 1, &all());
    captured.switch.send(0, &arp_request(0));
    let frames = captured.read();
    assert_eq!(frames.len(), 2, "{frames:#?}");
    assert_eq!((&frames[0].fate, frames[0].key), (&CaptureOutcome::Consumed, None));
    assert!(matches!(frames[1].fate, CaptureOutcome::Sent { origin: Origin::Originated, .. }));
}

#[test]
fn vlan_frames_are_kept_with_their_tags() {
    let mut captured = Captured::new(&config(), 1, &all());
    let frame = frames::tagged(&udp4(0, pod_v4(1), (1, 53), b"x"), 7);
    captured.switch.send(0, &frame);
    let frames = captured.read();
    assert_eq!(frames[0].frame, frame);
    let CaptureOutcome::Dropped(record) = &frames[0].fate else { panic!("{frames:#?}") };
    assert_eq!((record.reason, record.vlan), (DropReason::VlanFromPod, Some(7)));
}

#[test]
fn fragments_are_held_and_their_later_fate_is_reported() {
    let mut captured = Captured::new(&config(), 1, &all());
    let [src, dst] = [addresses(0)[0], addresses(1)[0]];
    let message = frames::udp(src, dst, (1000, 53), &[7; 1000]);
    let pieces = frames::fragments((src, dst), 17, 9, &message, &[800]);
    captured.switch.send(0, &framed(0, &pieces[0]));
    assert_eq!(captured.fate(), CaptureOutcome::Held);
    captured.switch.send(0, &framed(0, &pieces[1]));
    // Both are sent now; the second one was received just now.
    let frames = captured.read();
    assert_eq!(frames.len(), 3, "{frames:#?}");
    assert_eq!(frames[0].fate, CaptureOutcome::Forwarded(PortId(1)));
    assert_eq!(captured.switch.recv(1).len(), 2);
    // One whose datagram stays incomplete.
    let pieces = frames::fragments((src, dst), 17, 10, &message, &[800]);
    let first = framed(0, &pieces[0]);
    captured.switch.send(0, &first);
    assert_eq!(captured.fate(), CaptureOutcome::Held);
    captured.switch.pass(Duration::from_secs(61));
    let frames = captured.read();
    assert_eq!((frames.len(), &frames[0].frame), (1, &first));
    let CaptureOutcome::Dropped(record) = &frames[0].fate else { panic!("{frames:#?}") };
    assert_eq!(record.reason, DropReason::FragmentTimeout);
}

#[test]
fn frames_that_a_port_refuses_are_recorded_as_dropped() {
    let mut captured = Captured::new(&config(), 1, &all());
    let (frame, mut sent) = (udp4(0, pod_v4(1), (1, 53), b"x"), 0);
    // Nobody reads the other end, so its queue fills up.
    let refused = (0..10_000).find_map(|_| {
        captured.switch.send(0, &frame);
        let frames = captured.read();
        sent += frames.iter().filter(|frame| frame.direction == Outbound).count();
        match &frames[0].fate {
            CaptureOutcome::Forwarded(_) => None,
            CaptureOutcome::Dropped(record) => Some((frames.len(), record.clone())),
            other => panic!("{other:?}"),
        }
    });
    let (frames, record) = refused.expect("it is full at some time");
    assert_eq!((frames, record.reason), (1, DropReason::TxFull));
    assert_eq!(record.dst.as_ref().unwrap().pod.as_deref(), Some("p1"), "from the copy");
    assert_eq!(captured.switch.recv(1).len(), sent);
}

#[test]
fn filters_take_both_directions() {
    let mut config = config();
    config.policies = vec![];
    let talk = |switch: &mut Switch| {
        switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
        switch.send(1, &udp4(1, pod_v4(0), (53, 1000), b"x"));
        switch.send(1, &udp6(1, pod_v6(2), (1000, 80), b"x"));
        switch
            .send(2, &tcp4(2, 1, (2000, 443), &Tcp { seq: 1, ack: None, flags: "S", payload: 0 }));
        switch.send(2, &arp_request(2));
    };
    let address = |n: usize, family: usize| addresses(n)[family];
    let place = |port: u16, n: usize| Some((vec![PortId(port)], addresses(n).to_vec()));
    let none = CaptureFilter::default;
    for (filter, expected) in [
        (none(), 4 * 2 + 2),
        // The pod's port and the addresses of the other ends.
        (CaptureFilter { place: place(0, 0), ..none() }, 4),
        (CaptureFilter { place: place(2, 2), ..none() }, 4 + 2),
        (CaptureFilter { host: Some(address(0, 0)), ..none() }, 4),
        (CaptureFilter { host: Some(address(0, 1)), ..none() }, 0),
        // ARP frames have addresses, too.
        (CaptureFilter { host: Some(address(2, 0)), ..none() }, 2 + 2),
        (CaptureFilter { port: Some(53), ..none() }, 4),
        (CaptureFilter { port: Some(1000), ..none() }, 6),
        (CaptureFilter { protocol: Some(6), ..none() }, 2),
        (CaptureFilter { port: Some(443), protocol: Some(17), ..none() }, 0),
        (
            CaptureFilter {
                between: Some([addresses(1).to_vec(), addresses(0).to_vec()]),
                ..none()
            },
            4,
        ),
        (
            CaptureFilter {
                between: Some([addresses(0).to_vec(), addresses(2).to_vec()]),
                ..none()
            },
            0,
        ),
    ] {
        let mut captured = Captured::new(&config, 1, &filtered(filter.clone()));
        talk(&mut captured.switch);
        let frames = captured.read();
        assert_eq!(frames.len(), expected, "{filter:?}: {frames:#?}");
    }
}

#[test]
fn only_drops_if_requested() {
    let mut config = config();
    allow_udp(&mut config, &[53]);
    let options = CaptureOptions { drops_only: true, ..all() };
    let mut captured = Captured::new(&config, 1, &options);
    captured.switch.send(0, &udp4(0, pod_v4(1), (1, 53), b"x"));
    captured.switch.send(0, &arp_request(0));
    let refused = udp4(0, pod_v4(1), (1, 54), b"x");
    captured.switch.send(0, &refused);
    let frames = captured.read();
    assert_eq!(frames.len(), 1, "{frames:#?}");
    assert_eq!(frames[0].frame, refused);
}

#[test]
fn translated_packets_are_followed_to_the_backend() {
    let config = services::config(&[1]);
    let vip = services::vip(0);
    let filter = CaptureFilter { host: Some(vip), ..CaptureFilter::default() };
    let mut captured = Captured::new(&config, 1, &filtered(filter));
    let packet = services::packet(17, (addresses(0)[0], 4000), (vip, 80));
    captured.switch.send(0, &framed(0, &packet));
    let frames = captured.read();
    assert_eq!(frames.len(), 2, "{frames:#?}");
    assert_eq!(frames[0].key.unwrap().dst_addr(), vip);
    assert_eq!(frames[1].key.unwrap().dst_addr(), addresses(1)[0], "what the backend gets");
}

/// The reply of a backend has the Service's address only when it is sent. A filter by that address
/// also finds the received frame, and a filter by the backend finds the client's packet.
#[test]
fn translated_packets_are_found_by_their_destination() {
    let config = services::config(&[1]);
    for f in [0, 1] {
        let (vip, client, backend) = (services::vip(f), addresses(0)[f], addresses(1)[f]);
        let none = CaptureFilter::default;
        for (filter, expected) in [
            (CaptureFilter { host: Some(vip), ..none() }, 4),
            (CaptureFilter { port: Some(80), ..none() }, 4),
            (CaptureFilter { host: Some(backend), ..none() }, 4),
            (CaptureFilter { port: Some(8080), ..none() }, 4),
            (CaptureFilter { between: Some([vec![client], vec![vip]]), ..none() }, 4),
            (CaptureFilter { host: Some(addresses(2)[f]), ..none() }, 0),
            (CaptureFilter { host: Some(vip), protocol: Some(6), ..none() }, 0),
        ] {
            let mut captured = Captured::new(&config, 1, &filtered(filter.clone()));
            let request = services::packet(17, (client, 4000), (vip, 80));
            captured.switch.send(0, &framed(0, &request));
            let reply = services::packet(17, (backend, 8080), (client, 4000));
            captured.switch.send(1, &framed(1, &reply));
            assert_eq!(captured.switch.recv(0).len(), 1);
            let frames = captured.read();
            assert_eq!(frames.len(), expected, "{filter:?}: {frames:#?}");
            if let [.., received, sent] = &frames[..] {
                assert_eq!((received.port, received.direction), (PortId(1), Inbound));
                assert_eq!(received.fate, CaptureOutcome::Forwarded(PortId(0)));
                assert_eq!(received.frame, framed(1, &reply), "as it was received");
                assert_eq!(sent.key.unwrap().src_addr(), vip);
            }
        }
    }
}

#[test]
fn tunnel_packets_are_found_by_their_inner_frame() {
    for v6 in [false, true] {
        let mut pair = Pair::new(Underlay::Ipv4First);
        let [client, server] = [overlay::pod(0, 0, v6), overlay::pod(1, 1, v6)];
        let filter = CaptureFilter { host: Some(server), ..CaptureFilter::default() };
        let mut readers: Vec<_> = pair
            .0
            .iter_mut()
            .map(|switch| {
                let reader = switch.control.capture(&filtered(filter.clone())).unwrap();
                switch.pass(Duration::ZERO);
                reader
            })
            .collect();
        pair.send(0, 0, &overlay::udp(client, server, (1, 53), b"x"));
        let uplink = PortId(UPLINK as u16);
        let frames = read(&mut readers[0]);
        assert_eq!(frames.len(), 2, "{frames:#?}");
        assert_eq!(
            (frames[0].fate.clone(), frames[0].is_tunnel),
            (CaptureOutcome::Forwarded(uplink), false)
        );
        assert_eq!((frames[1].port, frames[1].is_tunnel), (uplink, true));
        assert_eq!(frames[1].key.unwrap().dst_addr(), server, "of the inner frame");
        let frames = read(&mut readers[1]);
        assert_eq!(frames.len(), 2, "{frames:#?}");
        assert_eq!((frames[0].port, frames[0].is_tunnel), (uplink, true));
        assert_eq!(frames[0].fate, CaptureOutcome::Forwarded(PortId(1)));
        assert_eq!((frames[1].port, frames[1].is_tunnel), (PortId(1), false));
    }
}

#[test]
fn both_workers_are_captured_in_order() {
    let mut captured = Captured::new(&config(), 2, &all());
    for n in 0..20u16 {
        captured.switch.now = captured.switch.now + Duration::from_micros(1);
        captured.switch.send_by(usize::from(n % 2), 0, &udp4(0, pod_v4(1), (n, 53), b"x"));
    }
    let frames = captured.read();
    let ports: Vec<u16> = frames
        .iter()
        .filter(|frame| frame.direction == Inbound)
        .map(|frame| frame.key.unwrap().src_port)
        .collect();
    assert_eq!(ports, (0..20).collect::<Vec<_>>());
    assert!(frames.iter().all(|f| f.worker == usize::from(f.key.unwrap().src_port % 2)));
    assert_eq!(captured.reader.lost(), 0);
}

#[test]
fn frames_beyond_the_queue_are_lost_and_counted() {
    let mut captured = Captured::new(&config(), 2, &all());
    let mut sent = 0;
    for n in 0..6000u16 {
        captured.switch.send_by(usize::from(n % 2), 0, &udp4(0, pod_v4(1), (n, 53), b"x"));
        sent += captured.switch.recv(1).len() as u64;
    }
    assert_eq!(sent, 6000, "nothing is blocked");
    let frames = captured.read().len() as u64;
    assert!((1000..12_000).contains(&frames), "{frames}");
    assert_eq!(frames + captured.reader.lost(), 12_000);
    captured.switch.send(0, &udp4(0, pod_v4(1), (1, 53), b"x"));
    assert_eq!(captured.read().len(), 2, "there is room again");
}

#[test]
fn one_capture_at_a_time_and_no_state_remains() {
    let mut captured = Captured::new(&config(), 2, &all());
    let switch = &mut captured.switch;
    assert!(switch.workers.iter().all(|worker| worker.engine().is_capturing()));
    let refused = switch.control.capture(&all()).map(drop);
    assert!(matches!(refused, Err(ControlError::Capturing)), "{refused:?}");
    drop(captured.reader);
    let mut switch = captured.switch;
    assert!(!switch.control.is_capturing());
    // The next capture begins before the workers know that the last one ended.
    let mut reader = switch.control.capture(&all()).unwrap();
    switch.send(0, &udp4(0, pod_v4(1), (1, 53), b"x"));
    assert_eq!(read(&mut reader).len(), 2);
    drop(reader);
    switch.pass(Duration::ZERO);
    assert!(!switch.workers.iter().any(|worker| worker.engine().is_capturing()));
    switch.send(0, &udp4(0, pod_v4(1), (1, 53), b"x"));
    switch.assert_adds_up();
}
