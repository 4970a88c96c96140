//! Fragments through the engine (threats T-F1 to T-F4): a datagram arrives complete and allowed, or
//! not at all; packets that are too large for the egress port are fragmented, or the sender gets an
//! error with the MTU.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::time::Duration;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::id::Cookie;
use podswitch_core::packet::{GsoType, Offload, Packet};
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::HostPort;
use rig::frames::*;
use rig::*;

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
}

/// A UDP datagram from pod 0 to pod 1 in three frames.
fn three(family: usize, id: u32, port: u16, data: &[u8]) -> Vec<Vec<u8>> {
    let (src, dst) = (addresses(0)[family], addresses(1)[family]);
    let message = udp(src, dst, (1000, port), data);
    let pieces = fragments((src, dst), 17, id, &message, &[1200, 800]);
    assert_eq!(pieces.len(), 3);
    pieces.iter().map(|p| framed(0, p)).collect()
}

/// A fragment as it arrived: identification, offset, more fragments, data.
fn place(frame: &[u8]) -> (u32, usize, bool, &[u8]) {
    let packet = &frame[14..];
    if packet[0] >> 4 == 4 {
        let field = u16::from_be_bytes([packet[6], packet[7]]);
        let id = u32::from(u16::from_be_bytes([packet[4], packet[5]]));
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        assert_eq!(checksum(&[&packet[..20]]), 0, "header checksum");
        return (id, usize::from(field & 0x1fff) * 8, field & 0x2000 != 0, &packet[20..total]);
    }
    let total = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    if packet[6] != 44 {
        return (0, 0, false, &packet[40..total]);
    }
    let field = u16::from_be_bytes([packet[42], packet[43]]);
    let id = u32::from_be_bytes([packet[44], packet[45], packet[46], packet[47]]);
    (id, usize::from(field & 0xfff8), field & 1 != 0, &packet[48..total])
}

/// Reassembles the received fragments.
fn reassemble(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut pieces: Vec<_> = frames.iter().map(|f| place(f)).collect();
    pieces.sort_by_key(|p| p.1);
    let mut message = Vec::new();
    for (n, (id, offset, more, data)) in pieces.iter().enumerate() {
        assert_eq!(*id, pieces[0].0);
        assert_eq!(*offset, message.len());
        assert_eq!(*more, n + 1 < pieces.len());
        message.extend_from_slice(data);
    }
    message
}

#[test]
fn in_every_order_all_or_nothing_under_a_port_policy() {
    let mut config = config();
    allow_udp(&mut config, &[53]);
    let mut switch = Switch::new(&config);
    let data = payload(2500);
    for family in [0, 1] {
        let (src, dst) = (addresses(0)[family], addresses(1)[family]);
        for (n, order) in ORDERS.into_iter().enumerate() {
            let frames = three(family, n as u32, 53, &data);
            for (sent, &piece) in order.iter().enumerate() {
                assert!(switch.recv(1).is_empty(), "{sent} of 3 are not enough");
                switch.send(0, &frames[piece]);
            }
            let out = switch.recv(1);
            assert_eq!(out.len(), 3, "{order:?}");
            assert_eq!(reassemble(&out), udp(src, dst, (1000, 53), &data));
            assert!(out.iter().all(|f| f[if family == 0 { 22 } else { 21 }] == 63), "TTL");
            // T-F4: later fragments have no ports, but do not bypass policy.
            let frames = three(family, 100 + n as u32, 54, &data);
            for &piece in &order {
                switch.send(0, &frames[piece]);
            }
            assert_eq!(switch.dropped(), [(0, PolicyIngress); 3], "{order:?}");
            assert!(switch.recv(1).is_empty());
        }
    }
    assert_eq!(switch.control.connections().len(), 2);
    switch.assert_adds_up();
}

#[test]
fn incomplete_datagrams_are_not_forwarded() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        for missing in 0..3 {
            let frames = three(family, missing as u32, 53, &payload(2500));
            for (n, frame) in frames.iter().enumerate() {
                if n != missing {
                    switch.send(0, frame);
                }
            }
        }
    }
    assert!(switch.recv(1).is_empty());
    assert_eq!(switch.dropped(), [], "held");
    switch.pass(Duration::from_secs(6));
    assert_eq!(switch.dropped(), [(0, FragmentTimeout); 12]);
    // A fragment that arrives too late waits in vain.
    for frame in three(0, 0, 53, &payload(2500)).iter().take(1) {
        switch.send(0, frame);
    }
    let (worker, now) = (&mut switch.workers[0], switch.now);
    worker.finish(now);
    assert_eq!(switch.dropped(), [(0, EndOfInput)]);
    assert!(switch.recv(1).is_empty());
    switch.assert_adds_up();
}

/// Fragments that wait for others are not handed over to another process, and are counted.
#[test]
fn fragments_that_wait_are_dropped_when_workers_are_held() {
    let mut switch = Switch::with_workers(&config(), 2);
    for frame in three(0, 0, 53, &payload(2500)).iter().take(2) {
        switch.send(0, frame);
    }
    assert_eq!(switch.dropped(), [], "held");
    switch.control.hold_workers(true);
    switch.pass(Duration::from_millis(1));
    assert!(switch.control.are_workers_held());
    assert_eq!(switch.dropped(), [(0, EndOfInput); 2]);
    switch.assert_adds_up();
    switch.control.hold_workers(false);
    for frame in three(0, 1, 53, &payload(2500)) {
        switch.send(0, &frame);
    }
    assert_eq!(switch.recv(1).len(), 3);
}

/// A process of the node sends a large datagram to a host port at its loopback address, from that address. Only the first
/// fragment has the port.
#[test]
fn a_datagram_from_loopback_to_a_host_port_passes_whole() {
    let reasons = |switch: &mut Switch| -> Vec<DropReason> {
        switch.dropped().into_iter().map(|(_, reason)| reason).collect()
    };
    for f in [0, 1] {
        let loopback: IpAddr = ["127.0.0.1", "::1"][f].parse().unwrap();
        let target = std::net::SocketAddr::new(addresses(1)[f], 7777);
        let port = HostPort { address: None, protocol: Protocol::Udp, port: 53, target };
        let mut config = config();
        config.host_ports = vec![(Cookie::new("Pod/default/p1"), [port].into())];
        let mut switch = Switch::new(&config);
        let data = payload(2500);
        for (port, passes) in [(53, true), (54, false)] {
            for (id, order) in (0..).zip(ORDERS) {
                let message = udp(loopback, loopback, (1000, port), &data);
                let pieces = fragments((loopback, loopback), 17, id, &message, &[1200, 800]);
                for n in order {
                    switch.send(HOST, &framed(HOST, &pieces[n]));
                }
                let got = switch.recv(1);
                assert_eq!(!got.is_empty(), passes, "port {port}, {order:?}");
                if passes {
                    assert_eq!(reassemble(&got)[8..], data);
                } else {
                    // The first fragment at once; the others wait for it in vain.
                    assert_eq!(reasons(&mut switch), [MartianSource], "{order:?}");
                }
            }
        }
        switch.pass(Duration::from_secs(6));
        assert_eq!(reasons(&mut switch), [FragmentTimeout; 12]);
        // A pod's fragments are checked at once.
        let message = udp(loopback, loopback, (1000, 53), &data);
        let pieces = fragments((loopback, loopback), 17, 99, &message, &[1200, 800]);
        switch.send(0, &framed(0, &pieces[1]));
        assert_eq!(reasons(&mut switch), [MartianSource]);
        switch.assert_adds_up();
    }
}

#[test]
fn an_overlap_drops_the_whole_datagram() {
    for family in [0, 1] {
        let (src, dst) = (addresses(0)[family], addresses(1)[family]);
        let message = udp(src, dst, (1000, 53), &payload(2500));
        let pieces = fragments((src, dst), 17, 7, &message, &[1200, 800]);
        // Eight bytes that overlap the end of the first, and other ports in place of the first
        // (T-F2).
        let over = ip(src, dst, 17, 64, Some((7, 1192, true)), &message[1192..2000]);
        let again = udp(src, dst, (1000, 54), &payload(2500));
        let again = ip(src, dst, 17, 64, Some((7, 0, true)), &again[..1200]);
        let mut lists: Vec<Vec<&Vec<u8>>> = Vec::new();
        for order in ORDERS {
            for at in 0..3 {
                let mut list: Vec<_> = order.iter().map(|&n| &pieces[n]).collect();
                list.insert(at, &over);
                lists.push(list);
            }
        }
        let [first, second, third] = [0, 1, 2].map(|n| &pieces[n]);
        lists.push(vec![first, &again, second, third]);
        lists.push(vec![second, &again, first, third]);
        lists.push(vec![third, first, &again, second]);
        for list in lists {
            let mut switch = Switch::new(&config());
            for packet in list {
                switch.send(0, &framed(0, packet));
            }
            assert_eq!(switch.dropped(), [(0, FragmentOverlap); 4]);
            assert!(switch.recv(1).is_empty());
            switch.assert_adds_up();
        }
    }
}

#[test]
fn a_first_fragment_without_the_whole_header_is_dropped() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let (src, dst) = (addresses(0)[family], addresses(1)[family]);
        let message = tcp(src, dst, (1000, 80), (1, 0, 2), b"");
        let pieces = fragments((src, dst), 6, 7, &message, &[16]);
        for packet in &pieces {
            switch.send(0, &framed(0, packet));
        }
    }
    assert_eq!(switch.dropped(), [(0, FragmentTiny); 2]);
    assert!(switch.recv(1).is_empty());
}

/// The frames that arrive at pod 1 when `frame` is sent, without and with a flow entry.
fn twice(config: &podswitch_core::config::Config, frame: &[u8], check: impl Fn(&mut Switch)) {
    let mut switch = Switch::new(config);
    switch.send(0, frame);
    check(&mut switch);
    // A small packet of the same flow creates the flow entry.
    switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"small"));
    switch.send(0, &udp6(0, pod_v6(1), (1000, 53), b"small"));
    assert_eq!(switch.recv(1).len(), 2);
    switch.send(0, frame);
    check(&mut switch);
    switch.assert_adds_up();
}

#[test]
fn without_df_it_is_fragmented_to_the_mtu() {
    let mut config = config();
    set_mtu(&mut config, 1, 600);
    config.endpoints.iter_mut().for_each(|e| {
        let mut changed = (**e).clone();
        changed.workload.addresses.retain(IpAddr::is_ipv4);
        *e = changed.into();
    });
    let [src, dst] = [addresses(0)[0], addresses(1)[0]];
    let message = udp(src, dst, (1000, 53), &payload(1400));
    let mut switch = Switch::new(&config);
    for _ in 0..2 {
        switch.send(0, &framed(0, &ip(src, dst, 17, 64, None, &message)));
        let out = switch.recv(1);
        assert_eq!(out.len(), 3);
        assert!(out.iter().all(|f| f.len() <= 614 && f[22] == 63));
        assert_eq!(reassemble(&out), message);
        switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"small"));
        assert_eq!(switch.recv(1).len(), 1);
    }
    assert_eq!(switch.count(|c| c.copies.get()), 4);
    // Fragments that are too large are fragmented further.
    for packet in fragments((src, dst), 17, 9, &message, &[1000]) {
        switch.send(0, &framed(0, &packet));
    }
    let out = switch.recv(1);
    assert!(out.len() > 2 && out.iter().all(|f| f.len() <= 614));
    assert_eq!(reassemble(&out), message);
    assert_eq!(switch.dropped(), []);
    switch.assert_adds_up();
}

/// The ICMP error in `frame`: type, code, second word, quote.
fn error(frame: &[u8]) -> (u8, u8, u32, &[u8]) {
    let at = 14 + if frame[14] >> 4 == 4 { 20 } else { 40 };
    let word = u32::from_be_bytes([frame[at + 4], frame[at + 5], frame[at + 6], frame[at + 7]]);
    (frame[at], frame[at + 1], word, &frame[at + 8..])
}

#[test]
fn with_df_the_sender_gets_the_mtu() {
    let mut config = config();
    set_mtu(&mut config, 1, 1300);
    for family in [0, 1] {
        let (src, dst) = (addresses(0)[family], addresses(1)[family]);
        let mut packet = ip(src, dst, 17, 64, None, &udp(src, dst, (1000, 53), &payload(1300)));
        let kind = if family == 0 { (3, 4) } else { (2, 0) };
        if family == 0 {
            packet[6] = 0x40;
            packet[10..12].fill(0);
            let sum = checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        twice(&config, &framed(0, &packet), |switch| {
            assert_eq!(switch.dropped(), [(0, MtuExceeded)]);
            assert!(switch.recv(1).is_empty());
            let out = switch.recv(0);
            assert_eq!(out.len(), 1);
            let (kind_sent, code, mtu, quote) = error(&out[0]);
            assert_eq!((kind_sent, code), kind);
            assert_eq!(mtu, 1300);
            assert_eq!(quote, &packet[..quote.len()]);
            assert!(quote.len() >= 548);
        });
    }
}

/// A TCP GSO packet from pod 0 to pod 1, as a sender with offloads passes it on.
fn gso_packet(family: usize, df: bool, len: usize, gso_size: u16) -> Packet {
    let (src, dst) = (addresses(0)[family], addresses(1)[family]);
    let mut message = tcp(src, dst, (1000, 80), (1, 1, 0x10), &payload(len));
    message[16..18].fill(0);
    let whole = !l4_checksum(src, dst, 6, &message);
    let body = !checksum(&[&message]);
    // Only the pseudo-header's sum: the whole sum minus the message, in ones' complement.
    let partial = u32::from(whole) + u32::from(!body);
    let partial = (partial & 0xffff) as u16 + (partial >> 16) as u16;
    message[16..18].copy_from_slice(&partial.to_be_bytes());
    let mut packet = ip(src, dst, 6, 64, None, &message);
    if family == 0 && df {
        packet[6] = 0x40;
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let l4 = if family == 0 { 34 } else { 54 };
    let mut packet = Packet::from_frame(&framed(0, &packet));
    packet.offload = Offload {
        gso_type: if family == 0 { GsoType::TcpV4 } else { GsoType::TcpV6 },
        csum_partial: true,
        gso_size,
        hdr_len: l4 + 20,
        csum_start: l4,
        csum_offset: 16,
        ..Offload::default()
    };
    packet
}

#[test]
fn gso_packets_pass_unsegmented_if_their_segments_fit() {
    let mut config = config();
    set_mtu(&mut config, 1, 1300);
    let mut switch = Switch::new(&config);
    for family in [0, 1] {
        let headers = if family == 0 { 40 } else { 60 };
        for round in 0..2 {
            switch.send_packet(0, gso_packet(family, true, 20_000, 1300 - headers));
            assert_eq!(switch.dropped(), [], "round {round}");
            let out = switch.ends[1].recv().expect("passes");
            assert!(out.offload.is_gso() && out.len() > 20_000);
            assert_eq!(out.offload.gso_size, 1300 - headers);
            assert!(switch.recv(0).is_empty(), "never a PMTU error about it");
            // One byte more in a segment is too much.
            switch.send_packet(0, gso_packet(family, true, 20_000, 1301 - headers));
            assert_eq!(switch.dropped(), [(0, MtuExceeded)]);
            let told = switch.recv(0);
            assert_eq!(error(&told[0]).2, 1300);
            assert!(switch.recv(1).is_empty());
        }
    }
    switch.assert_adds_up();
}

/// Without DF the sender gets no error: the packet is segmented, and the segments are fragmented.
#[test]
fn gso_packets_without_df_are_segmented_and_fragmented() {
    let mut config = config();
    set_mtu(&mut config, 1, 1300);
    let mut switch = Switch::new(&config);
    switch.send_packet(0, gso_packet(0, false, 4000, 1400));
    assert_eq!(switch.dropped(), []);
    assert!(switch.recv(0).is_empty());
    let out = switch.recv(1);
    assert!(out.iter().all(|f| f.len() <= 1314));
    let bytes: usize = out.iter().map(|f| f.len() - 34).sum();
    assert_eq!(bytes, 4000 + 3 * 20, "three segments with a header each");
    switch.assert_adds_up();
}

/// With metadata about another offset than the packet's own checksum, the switch would write there.
#[test]
fn offload_metadata_must_fit_its_frame() {
    let mut switch = Switch::new(&config());
    let bad: [fn(&mut Offload); 5] = [
        |o| o.csum_start = 14,
        |o| o.csum_offset = 4,
        |o| o.gso_size = 0,
        |o| o.gso_type = GsoType::TcpV6,
        |o| o.csum_partial = false,
    ];
    for spoil in bad {
        let mut packet = gso_packet(0, true, 4000, 1400);
        spoil(&mut packet.offload);
        switch.send_packet(0, packet);
        assert_eq!(switch.dropped(), [(0, OffloadInvalid)]);
        assert!(switch.recv(1).is_empty());
    }
    assert_eq!(switch.control.connections().len(), 0);
}

/// Fragmented TCP is tracked and evaluated as the whole segment.
#[test]
fn tcp_in_fragments_is_tracked() {
    use podswitch_core::flow::tcp::TcpState::Established;
    let mut switch = Switch::new(&config());
    let [src, dst] = [addresses(0)[0], addresses(1)[0]];
    let send = |switch: &mut Switch, port: usize, seq, ack, flags, len, cut: &[usize]| {
        let (src, dst) = if port == 0 { (src, dst) } else { (dst, src) };
        let ports = if port == 0 { (1000, 80) } else { (80, 1000) };
        let message = tcp(src, dst, ports, (seq, ack, flags), &payload(len));
        let pieces = match cut {
            [] => vec![ip(src, dst, 6, 64, None, &message)],
            cuts => fragments((src, dst), 6, seq, &message, cuts),
        };
        for packet in pieces.iter().rev() {
            switch.send(port, &framed(port, packet));
        }
        switch.recv(1 - port).len()
    };
    assert_eq!(send(&mut switch, 0, 1, 0, 2, 0, &[]), 1);
    assert_eq!(send(&mut switch, 1, 9, 2, 0x12, 0, &[]), 1);
    assert_eq!(send(&mut switch, 0, 2, 10, 0x10, 0, &[]), 1);
    switch.pass(Duration::from_secs(3));
    assert_eq!(send(&mut switch, 0, 2, 10, 0x18, 1000, &[304, 200]), 3);
    assert_eq!(send(&mut switch, 1, 10, 1002, 0x10, 0, &[]), 1);
    let list = switch.control.connections();
    assert_eq!(list[0].tcp, Some([Established; 2]), "fragments do not change the states");
    // Invalid flags are dropped in fragments, too.
    let none: [(u16, DropReason); 2] = [(0, TcpInvalidState); 2];
    for flags in [0, 3, 6, 0x3f, 1] {
        assert_eq!(send(&mut switch, 0, 1002, 10, flags, 100, &[64]), 0);
        assert_eq!(switch.dropped(), none, "{flags:#x}");
    }
    // A reset outside the window is also dropped.
    assert_eq!(send(&mut switch, 0, 900_000, 10, 0x14, 100, &[64]), 0);
    assert_eq!(switch.dropped(), [(0, TcpOutOfWindow); 2]);
    assert_eq!(switch.control.connections()[0].tcp, Some([Established; 2]));
    switch.assert_adds_up();
}
