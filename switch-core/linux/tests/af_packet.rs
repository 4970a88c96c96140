//! AF_PACKET ports against the real kernel, with both ways of receiving.

use podswitch_testkit::net;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use net::{Peer, ip, pod};
use podswitch_core::packet::{Batch, GsoType, Offload, Packet, Pool, PoolConfig};
use podswitch_core::port::Device;
use podswitch_linux::attach::{attach_veth, detach_veth, switch_interface, switch_namespace};
use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice, Receive};
use podswitch_linux::{NetNs, Netlink};
use podswitch_wire::addr::Mac;

const V4: &str = "10.7.0.2";
const V6: &str = "fd07::2";
const REMOTE_V4: &str = "10.8.0.9";
const REMOTE_V6: &str = "fd08::9";
const BOTH: [Receive; 2] = [Receive::Ring, Receive::Messages];

fn config(receive: Receive) -> PacketConfig {
    PacketConfig { receive, ..PacketConfig::default() }
}

fn veth_pod(receive: Receive) -> (NetNs, NetNs, PacketDevice, Peer) {
    let (ns, switch) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let mut device = attach_veth(&ns, &pod(&[V4, V6]), &switch, "ps0", config(receive)).unwrap();
    let port = device.open(0, 1).unwrap();
    (ns, switch, device, Peer::new(port))
}

#[test]
fn pod_resolves_its_gateway_and_sends() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let (ns, _switch, _device, mut peer) = veth_pod(receive);
        for (local, remote) in [(V4, REMOTE_V4), (V6, REMOTE_V6)] {
            let socket = ns.enter(|| UdpSocket::bind((ip(local), 0))).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send_to(b"question", (ip(remote), 9999)).unwrap();
            assert!(peer.run_until(|f| f.ends_with(b"question")), "{receive:?} {local}");
            let mut buffer = [0; 64];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from.ip()), (&b"question"[..], ip(remote)));
        }
        assert_eq!(peer.pool.outstanding(), (0, 0));
    }
}

#[test]
fn datagrams_of_a_flow_are_sent_together_and_arrive_one_by_one() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        for (local, remote) in [(V4, REMOTE_V4), (V6, REMOTE_V6)] {
            let (ns, _switch, _device, mut peer) = veth_pod(receive);
            net::check_joined(&ns, &mut peer, local, remote);
        }
    }
}

/// Four megabytes in each direction; both segmentation and merging must give the same data.
#[test]
fn gso_packets_pass_between_pods() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let switch = NetNs::anonymous().unwrap();
        let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
        let pods = [pod(&["10.7.0.2", "fd07::2"]), pod(&["10.7.0.3", "fd07::3"])];
        let mut left = attach_veth(&a, &pods[0], &switch, "ps0", config(receive)).unwrap();
        let mut right = attach_veth(&b, &pods[1], &switch, "ps1", config(receive)).unwrap();
        let (left, right) = (left.open(0, 1).unwrap(), right.open(0, 1).unwrap());
        let wire = net::Wire::start((left, pods[0].mac), (right, pods[1].mac));
        for server in ["10.7.0.3", "fd07::3"] {
            let listener = b.enter(|| TcpListener::bind((ip(server), 0))).unwrap().unwrap();
            let to = listener.local_addr().unwrap();
            let sink = thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                all
            });
            let mut stream = a.enter(|| TcpStream::connect(to)).unwrap().unwrap();
            let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i / 7) as u8).collect();
            stream.write_all(&data).unwrap();
            drop(stream);
            assert!(
                sink.join().unwrap() == data,
                "{receive:?} {server}: not the data that was sent"
            );
        }
        let longest = wire.stop();
        assert!(longest > 20_000, "{receive:?}: longest frame {longest}");
    }
}

#[test]
fn vlan_tags_are_restored() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let (_ns, _switch, _device, mut near) = veth_pod(receive);
        // A second socket, on the pod's end of the pair.
        let mut far = PacketDevice::new(&_ns, "eth0", config(receive)).unwrap();
        let mut far = Peer::new(far.open(0, 1).unwrap());
        (near.echo, far.echo) = (false, false);
        for tags in [&[0x8100, 0x2064][..], &[0x88a8, 0x0005, 0x8100, 0x2064]] {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            frame.extend(tags.iter().flat_map(|half: &u16| half.to_be_bytes()));
            frame.extend([0x88, 0xb5]);
            frame.extend((0..100).map(|i| i as u8));
            let mut batch = Batch::new();
            batch.push(Packet::from_frame(&frame));
            assert_eq!(far.port.tx(&mut far.pool, &mut batch).unwrap(), 1);
            assert!(near.run_until(|f| f == frame), "{receive:?}: frame came changed");
        }
    }
}

/// A frame with a partial checksum and a VLAN tag: offsets count from the frame's start, including
/// the tag.
#[test]
fn offsets_move_with_the_tag() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let (ns, _switch, _device, mut near) = veth_pod(receive);
        near.echo = false;
        let mut far = PacketDevice::new(&ns, "eth0", config(receive)).unwrap();
        let mut far = far.open(0, 1).unwrap();
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 100, 8, 0];
        frame.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 7, 0, 2, 10, 8, 0, 9]);
        frame.extend([0, 7, 0, 8, 0, 12, 0, 0]);
        frame.extend(b"data");
        let offload =
            Offload { csum_partial: true, csum_start: 38, csum_offset: 6, ..Offload::default() };
        let mut packet = Packet::from_frame(&frame);
        packet.offload = offload;
        let mut batch = Batch::new();
        batch.push(packet);
        let mut pool = Pool::new(PoolConfig::default());
        assert_eq!(far.tx(&mut pool, &mut batch).unwrap(), 1);
        let mut found = None;
        near.run_until_packet(|p| {
            if p.bytes() == frame {
                found = Some(p.offload);
            }
            found.is_some()
        });
        let found = found.unwrap();
        assert_eq!((found.csum_partial, found.csum_start, found.csum_offset), (true, 38, 6));
    }
}

#[test]
fn gso_packets_pass_an_interface_without_segmentation() {
    podswitch_testkit::require_privilege!();
    let (ns, _switch, _device, mut near) = veth_pod(Receive::Ring);
    near.echo = false;
    let mut far = PacketDevice::new(&ns, "eth0", config(Receive::Ring)).unwrap();
    let mut far = far.open(0, 1).unwrap();
    net::set_tso(&ns, "eth0", false);
    // Ethernet, IPv4, TCP, 4,000 bytes in segments of 1,000.
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0x0f, 0xc8, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 7, 0, 2, 10, 8, 0, 9]);
    let sum = net::checksum(&frame[14..34], &[], 0);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0, 7, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend([9; 4000]);
    let mut packet = Packet::from_frame(&frame);
    packet.offload = Offload {
        gso_type: GsoType::TcpV4,
        csum_partial: true,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::default()
    };
    let mut batch = Batch::new();
    batch.push(packet);
    let mut pool = Pool::new(PoolConfig::default());
    assert_eq!(far.tx(&mut pool, &mut batch).unwrap(), 1);
    let mut segments = Vec::new();
    near.run_until_packet(|p| {
        if p.bytes().get(23) == Some(&6) {
            segments.push(p.len());
        }
        segments.len() == 4
    });
    assert_eq!(segments, [1054; 4]);
}

#[test]
fn own_frames_are_not_received() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let (_ns, _switch, _device, mut near) = veth_pod(receive);
        let mut frame = [0xff; 60];
        frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 3, 0x88, 0xb5]);
        let mut batch = Batch::new();
        batch.push(Packet::from_frame(&frame));
        assert_eq!(near.port.tx(&mut near.pool, &mut batch).unwrap(), 1);
        near.echo = false;
        assert_eq!(near.drain(&frame[14..]), 0);
    }
}

#[test]
fn workers_share_frames_by_flow() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let (ns, _switch, mut device, first) = veth_pod(receive);
        let second = Peer::new(device.open(1, 2).unwrap());
        let mut peers = [first, second];
        peers.iter_mut().for_each(|p| p.echo = false);
        let eth0 = Netlink::open(&ns).unwrap().link("eth0").unwrap().index;
        Netlink::open(&ns).unwrap().add_neighbour(eth0, ip("169.254.1.1"), Mac([0xee; 6])).unwrap();
        let sockets: Vec<_> =
            (0..64).map(|_| ns.enter(|| UdpSocket::bind((ip(V4), 0))).unwrap().unwrap()).collect();
        for socket in &sockets {
            socket.send_to(b"shared", (ip(REMOTE_V4), 9)).unwrap();
        }
        let seen: Vec<usize> = peers.iter_mut().map(|p| p.drain(b"shared")).collect();
        // Each frame arrives once, and each worker gets some.
        assert_eq!(seen.iter().sum::<usize>(), 64, "{receive:?} {seen:?}");
        assert!(seen.iter().all(|n| *n > 8), "{receive:?} {seen:?}");
        let [first, second] = peers;
        drop(first);
        for socket in &sockets {
            socket.send_to(b"alone", (ip(REMOTE_V4), 9)).unwrap();
        }
        let mut second = second;
        assert_eq!(second.drain(b"alone"), 64);
    }
}

#[test]
fn interface_down_and_gone() {
    podswitch_testkit::require_privilege!();
    for receive in BOTH {
        let (_ns, switch, device, mut near) = veth_pod(receive);
        let mut netlink = Netlink::open(&switch).unwrap();
        let index = device.link().index;
        netlink.set_down(index).unwrap();
        let mut batch = Batch::new();
        batch.push(Packet::from_frame(&[0xff; 60]));
        // No error. Frames that the pod's kernel sent itself before (it joins multicast groups) may
        // still arrive.
        near.port.arm();
        near.port.rx(&mut near.pool, &mut Batch::new()).unwrap();
        assert_eq!(near.port.tx(&mut near.pool, &mut batch).unwrap(), 0);
        assert_eq!(batch.len(), 1);
        netlink.set_up(index).unwrap();
        assert_eq!(near.port.tx(&mut near.pool, &mut batch).unwrap(), 1);
        netlink.delete_link(index).unwrap();
        near.port.arm();
        let error = near.port.rx(&mut near.pool, &mut Batch::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{receive:?}");
    }
}

#[test]
fn too_long_frames_are_refused_alone() {
    podswitch_testkit::require_privilege!();
    let (_ns, _switch, _device, mut near) = veth_pod(Receive::Ring);
    let mut batch = Batch::new();
    for len in [60, 3000, 60] {
        batch.push(Packet::from_frame(&vec![0xff; len]));
    }
    assert_eq!(near.port.tx(&mut near.pool, &mut batch).unwrap(), 2);
    assert_eq!((batch.len(), batch[0].len()), (1, 3000));
}

#[test]
fn a_pair_is_reused() {
    podswitch_testkit::require_privilege!();
    let node = format!("test-{}", std::process::id());
    let switch = switch_namespace(&node).unwrap();
    // The name is removed at the end in any case.
    let _name = net::NameGuard(format!("podswitch-{node}"));
    let pod_ns = NetNs::anonymous().unwrap();
    let name = switch_interface("default/web");
    assert_eq!((name.len(), &name[..2]), (15, "ps"));
    let attach = |switch: &NetNs| {
        attach_veth(&pod_ns, &pod(&[V4, V6]), switch, &name, config(Receive::Ring)).unwrap()
    };
    let first = attach(&switch);
    let before = Netlink::open(&pod_ns).unwrap().link("eth0").unwrap();
    let socket = pod_ns.enter(|| UdpSocket::bind((ip(V4), 0))).unwrap().unwrap();
    // The switch is killed: everything that it had open is closed.
    let index = first.link().index;
    drop((first, switch));
    let switch = switch_namespace(&node).unwrap();
    let mut second = attach(&switch);
    assert_eq!(second.link().index, index);
    assert_eq!(Netlink::open(&pod_ns).unwrap().link("eth0").unwrap(), before);
    let mut peer = Peer::new(second.open(0, 1).unwrap());
    socket.send_to(b"still there", (ip(REMOTE_V4), 9)).unwrap();
    assert!(peer.run_until(|f| f.ends_with(b"still there")));
    // The pod was removed and another one has its name: the stale end is replaced.
    drop(peer);
    Netlink::open(&switch).unwrap().delete_link(index).unwrap();
    let stale = LinkSpec::new(name.as_str());
    Netlink::open(&switch).unwrap().add_veth(&stale, &LinkSpec::new("other"), &switch).unwrap();
    let third = attach(&switch);
    assert!(Netlink::open(&switch).unwrap().find_link("other").unwrap().is_none());
    assert_eq!(third.link().name, name);
    detach_veth(&switch, &name).unwrap();
    detach_veth(&switch, &name).unwrap();
    assert!(Netlink::open(&pod_ns).unwrap().find_link("eth0").unwrap().is_none());
}

/// A pair whose peer is elsewhere is not taken for the pod's, even if an index matches.
#[test]
fn a_foreign_interface_is_not_taken() {
    podswitch_testkit::require_privilege!();
    let (pod_ns, elsewhere, switch) =
        (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let end = LinkSpec::new("eth0");
    Netlink::open(&elsewhere).unwrap().add_veth(&end, &end, &pod_ns).unwrap();
    let stale = LinkSpec::new("ps0");
    Netlink::open(&switch).unwrap().add_veth(&stale, &LinkSpec::new("x"), &elsewhere).unwrap();
    let attached = attach_veth(&pod_ns, &pod(&[V4]), &switch, "ps0", config(Receive::Ring));
    assert!(attached.unwrap_err().is_already_there());
    // The foreign interface is unchanged, the stale one was removed.
    assert!(Netlink::open(&elsewhere).unwrap().find_link("eth0").unwrap().is_some());
    assert!(Netlink::open(&switch).unwrap().find_link("ps0").unwrap().is_none());
}

/// The stack of the switch's namespace neither answers nor forwards if nobody listens.
#[test]
fn switch_namespace_is_silent() {
    podswitch_testkit::require_privilege!();
    let node = format!("silent-{}", std::process::id());
    let switch = switch_namespace(&node).unwrap();
    switch.remove_on_drop();
    let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let pods = [pod(&["10.7.0.2", "fd07::2"]), pod(&["10.7.0.3", "fd07::3"])];
    for (ns, pod, name) in [(&a, &pods[0], "ps0"), (&b, &pods[1], "ps1")] {
        attach_veth(ns, pod, &switch, name, config(Receive::Messages)).unwrap();
    }
    // A gets the MAC address of the switch's end, as if it routed packets there.
    let end = Netlink::open(&switch).unwrap().link("ps0").unwrap().mac.unwrap();
    let mut netlink = Netlink::open(&a).unwrap();
    let eth0 = netlink.link("eth0").unwrap().index;
    for gateway in ["169.254.1.1", "fe80::1"] {
        netlink.add_neighbour(eth0, ip(gateway), end).unwrap();
    }
    let mut at_a = PacketDevice::new(&a, "eth0", config(Receive::Messages)).unwrap();
    let mut at_b = PacketDevice::new(&b, "eth0", config(Receive::Messages)).unwrap();
    let (at_a, at_b) = (at_a.open(0, 1).unwrap(), at_b.open(0, 1).unwrap());
    for to in ["10.7.0.3", "fd07::3", "169.254.1.1", "127.0.0.1"] {
        let local = if to.contains(':') { V6 } else { V4 };
        let socket = a.enter(|| UdpSocket::bind((ip(local), 0))).unwrap().unwrap();
        let _ = socket.send_to(b"anybody", (ip(to), 9));
    }
    for mut peer in [Peer::new(at_a), Peer::new(at_b)] {
        peer.echo = false;
        assert_eq!(peer.drain(b""), 0, "the namespace answered or forwarded");
    }
}
