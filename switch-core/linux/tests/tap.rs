//! TAP ports against the real kernel: a pod's sockets on one side, raw frames on the other.

use podswitch_testkit::privilege::is_there;
use podswitch_testkit::{net, test_name};

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use net::{Peer, ip, pod};
use podswitch_core::packet::{Batch, GsoType, Packet, Pool, PoolConfig};
use podswitch_core::port::Device;
use podswitch_linux::attach::{HostPort, HostPortConfig, TapOptions, attach_tap};
use podswitch_linux::port::tap::{TapConfig, TapDevice};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;

const V4: &str = "10.7.0.2";
const V6: &str = "fd07::2";
const REMOTE_V4: &str = "10.8.0.9";
const REMOTE_V6: &str = "fd08::9";

fn tap_pod(options: TapOptions) -> (NetNs, TapDevice, Peer) {
    let ns = NetNs::anonymous().unwrap();
    let mut device = attach_tap(&ns, &pod(&[V4, V6]), options.clone()).unwrap();
    let port = device.open(0, 1).unwrap();
    (ns, device, Peer::new(port))
}

#[test]
fn pod_resolves_its_gateway_and_sends() {
    podswitch_testkit::require_tap!();
    let (ns, _device, mut peer) = tap_pod(TapOptions::default());
    for (local, remote) in [(V4, REMOTE_V4), (V6, REMOTE_V6)] {
        let socket = ns.enter(|| UdpSocket::bind((ip(local), 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"question", (ip(remote), 9999)).unwrap();
        // The peer answers ARP and ND for the gateway and returns datagrams to their senders.
        let seen = peer.run_until(|frame| frame.ends_with(b"question"));
        assert!(seen, "no datagram from {local}");
        let mut buffer = [0; 64];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from.ip()), (&b"question"[..], ip(remote)));
    }
}

#[test]
fn interface_is_as_configured() {
    podswitch_testkit::require_tap!();
    let (ns, device, _peer) = tap_pod(TapOptions::default());
    let mut netlink = Netlink::open(&ns).unwrap();
    let link = netlink.link("eth0").unwrap();
    assert_eq!((link.mtu, link.mac), (1400, Some(Mac([0x0a, 0x58, 10, 7, 0, 2]))));
    assert_eq!(link.mac, Some(device.mac()));
    assert!(link.is_up && link.is_running);
    let addresses = netlink.addresses().unwrap();
    for address in [V4, V6] {
        let found = addresses.iter().find(|a| a.address == ip(address).into()).unwrap();
        assert_eq!((found.link, found.is_tentative), (link.index, false));
    }
    let info = device.info();
    assert_eq!((info.name.as_str(), info.mtu), ("eth0", 1400));
    assert!(info.offloads.checksum && info.offloads.tso4 && info.offloads.tso6);
}

/// Two pods whose frames a thread forwards unsegmented from one to the other.
#[test]
fn gso_packets_pass_between_pods() {
    podswitch_testkit::require_tap!();
    let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let mut left = attach_tap(&a, &pod(&["10.7.0.2", "fd07::2"]), TapOptions::default()).unwrap();
    let mut right = attach_tap(&b, &pod(&["10.7.0.3", "fd07::3"]), TapOptions::default()).unwrap();
    let macs = (left.mac(), right.mac());
    let (left, right) = (left.open(0, 1).unwrap(), right.open(0, 1).unwrap());
    let wire = net::Wire::start((left, macs.0), (right, macs.1));
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
        assert!(sink.join().unwrap() == data, "{server}: not the data that was sent");
    }
    let longest = wire.stop();
    assert!(longest > 20_000, "segmentation was not left to us: longest frame {longest}");
}

#[test]
fn udp_gso_packets_are_recognised() {
    podswitch_testkit::require_tap!();
    let (ns, device, mut peer) = tap_pod(TapOptions::default());
    let uso = device.info().offloads.uso;
    if !is_there(&test_name!(), "UDP segmentation by this kernel's TAP", uso) {
        return;
    }
    let socket = ns.enter(|| UdpSocket::bind((ip(V4), 0))).unwrap().unwrap();
    // Resolves the gateway first.
    socket.send_to(b"first", (ip(REMOTE_V4), 9)).unwrap();
    assert!(peer.run_until(|frame| frame.ends_with(b"first")));
    net::set_udp_segment(&socket, 1000);
    socket.send_to(&[7; 4500], (ip(REMOTE_V4), 9)).unwrap();
    let mut found = None;
    peer.echo = false;
    peer.run_until_packet(|packet| {
        if packet.offload.gso_type == GsoType::UdpL4 {
            found = Some((packet.len(), packet.offload));
        }
        found.is_some()
    });
    let (len, offload) = found.unwrap();
    assert_eq!((len, offload.gso_size), (42 + 4500, 1000));
    assert!(offload.csum_partial);
}

#[test]
fn datagrams_of_a_flow_are_written_together_and_arrive_one_by_one() {
    podswitch_testkit::require_tap!();
    let (ns, device, mut peer) = tap_pod(TapOptions::default());
    let uso = device.info().offloads.uso;
    if !is_there(&test_name!(), "UDP segmentation by this kernel's TAP", uso) {
        return;
    }
    net::check_joined(&ns, &mut peer, V4, REMOTE_V4);
    // Its addresses and routes were removed with the interface.
    let (ns, _device, mut peer) = tap_pod(TapOptions::default());
    net::check_joined(&ns, &mut peer, V6, REMOTE_V6);
}

#[test]
fn persistent_interface_survives_and_is_attached_again() {
    podswitch_testkit::require_tap!();
    for multi_queue in [false, true] {
        let ns = NetNs::anonymous().unwrap();
        let options = TapOptions { persistent: true, multi_queue, ..TapOptions::default() };
        let mut first = attach_tap(&ns, &pod(&[V4, V6]), options.clone()).unwrap();
        assert!(!first.was_there());
        let index = first.index();
        let port = first.open(0, 1).unwrap();
        // While it is open, nobody else can open it.
        if !multi_queue {
            let error = attach_tap(&ns, &pod(&[V4, V6]), options.clone()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(16), "{error}");
        }
        let sockets = [(V4, REMOTE_V4), (V6, REMOTE_V6)].map(|(local, remote)| {
            let socket = ns.enter(|| UdpSocket::bind((ip(local), 0))).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.connect((ip(remote), 9)).unwrap();
            socket
        });
        drop((first, port));
        let mut netlink = Netlink::open(&ns).unwrap();
        // The time that the kernel needs for duplicate address detection varies.
        let mut facts = || {
            let addresses = netlink.addresses().unwrap().into_iter();
            let addresses: Vec<_> = addresses.map(|a| (a.link, a.address)).collect();
            (addresses, netlink.routes().unwrap())
        };
        let before = facts();
        // Packets sent in the meantime are lost, but nothing else.
        for socket in &sockets {
            let _ = socket.send(b"into the void");
        }
        // Attached again with a request for the other number of queues: the existing number is used.
        let options =
            TapOptions { persistent: true, multi_queue: !multi_queue, ..TapOptions::default() };
        let mut second = attach_tap(&ns, &pod(&[V4, V6]), options).unwrap();
        assert!(second.was_there());
        assert_eq!((second.index(), second.is_multi_queue()), (index, multi_queue));
        assert_eq!(facts(), before);
        // The pod's earlier sockets continue to work.
        let mut peer = Peer::new(second.open(0, 1).unwrap());
        for socket in &sockets {
            socket.send(b"still there").unwrap();
            assert!(peer.run_until(|frame| frame.ends_with(b"still there")));
            let mut buffer = [0; 64];
            assert_eq!(socket.recv(&mut buffer).unwrap(), 11);
        }
        drop(peer);
        second.destroy().unwrap();
        assert!(netlink.find_link("eth0").unwrap().is_none());
    }
}

#[test]
fn removed_interface_says_not_connected() {
    podswitch_testkit::require_tap!();
    let (ns, _device, mut peer) = tap_pod(TapOptions::default());
    let mut netlink = Netlink::open(&ns).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    // When the interface is down, frames are refused one by one, and the port stays usable.
    netlink.set_down(index).unwrap();
    let mut pool = Pool::new(PoolConfig::default());
    let mut batch = Batch::new();
    batch.push(Packet::from_frame(&[0; 60]));
    assert_eq!(peer.port.tx(&mut pool, &mut batch).unwrap(), 0);
    assert_eq!(batch.len(), 1);
    netlink.delete_link(index).unwrap();
    let error = peer.port.rx(&mut pool, &mut Batch::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    let error = peer.port.tx(&mut pool, &mut batch).unwrap_err();
    assert_eq!((error.kind(), batch.len()), (ErrorKind::NotConnected, 1));
    assert_eq!(pool.outstanding(), (0, 0));
}

#[test]
fn queues_of_one_device_share_the_work() {
    podswitch_testkit::require_tap!();
    let ns = NetNs::anonymous().unwrap();
    let options = TapOptions { multi_queue: true, ..TapOptions::default() };
    let mut device = attach_tap(&ns, &pod(&[V4, V6]), options).unwrap();
    let mut ports: Vec<_> = (0..2).map(|i| Peer::new(device.open(i, 2).unwrap())).collect();
    for peer in &mut ports {
        peer.echo = false;
    }
    let sockets: Vec<_> =
        (0..64).map(|_| ns.enter(|| UdpSocket::bind((ip(V4), 0))).unwrap().unwrap()).collect();
    Netlink::open(&ns)
        .unwrap()
        .add_neighbour(device.index(), ip("169.254.1.1"), Mac([0xee; 6]))
        .unwrap();
    for socket in &sockets {
        socket.send_to(b"steered", (ip(REMOTE_V4), 9)).unwrap();
    }
    let seen: Vec<usize> = ports.iter_mut().map(|p| p.drain(b"steered")).collect();
    assert_eq!(seen.iter().sum::<usize>(), 64);
    assert!(seen.iter().all(|n| *n > 8), "{seen:?}");
    // One worker leaves: the other gets all frames.
    ports.pop();
    for socket in &sockets {
        socket.send_to(b"again", (ip(REMOTE_V4), 9)).unwrap();
    }
    assert_eq!(ports[0].drain(b"again"), 64);
}

/// The interface of a killed run is found again, even if the pod has renamed it.
#[test]
fn an_interface_that_was_renamed_is_used_again() {
    podswitch_testkit::require_tap!();
    let ns = NetNs::anonymous().unwrap();
    let pod = pod(&[V4, V6]);
    let options = TapOptions { persistent: true, ..TapOptions::default() };
    let index = attach_tap(&ns, &pod, options.clone()).unwrap().index();
    let mut netlink = Netlink::open(&ns).unwrap();
    netlink.set_down(index).unwrap();
    netlink.rename(index, "x0").unwrap();
    netlink.set_up(index).unwrap();
    let device = attach_tap(&ns, &pod, options.clone()).unwrap();
    assert!(device.was_there() && device.index() == index);
    assert_eq!(netlink.link("eth0").unwrap().index, index);
    assert!(netlink.find_link("x0").unwrap().is_none());
    // Another interface with the name does not affect it.
    drop(device);
    netlink.set_down(index).unwrap();
    netlink.rename(index, "x0").unwrap();
    netlink.add_bridge(&podswitch_linux::netlink::LinkSpec::new("eth0")).unwrap();
    attach_tap(&ns, &pod, options).unwrap_err();
    assert_eq!(netlink.link("x0").unwrap().index, index);
}

/// Frames for which a full queue has no room are counted, so that every frame that a pod sent is in some count.
#[test]
fn frames_that_a_full_queue_has_no_room_for_are_counted() {
    podswitch_testkit::require_tap!();
    let (ns, mut device, mut peer) = tap_pod(TapOptions::default());
    let socket = ns.enter(|| UdpSocket::bind((ip(V4), 0))).unwrap().unwrap();
    socket.send_to(b"first", (ip(REMOTE_V4), 9999)).unwrap();
    assert!(peer.run_until(|frame| frame.ends_with(b"first")));
    device.maintain();
    assert_eq!(peer.port.take_lost(), 0);
    for round in 0..2 {
        const SENT: usize = 3000;
        for _ in 0..SENT {
            socket.send_to(b"flood", (ip(REMOTE_V4), 9999)).unwrap();
        }
        let received = peer.drain(b"flood");
        // The worker only reports that its queue may have been full; the control thread queries the kernel.
        assert_eq!(peer.port.take_lost(), 0);
        device.maintain();
        let lost = peer.port.take_lost() as usize;
        assert!(lost > 0, "round {round}: the queue holds {received}");
        // The pod's kernel sends a few frames of its own (MLD, router solicitations), which may be lost, too.
        let counted = received + lost;
        assert!((SENT..=SENT + 8).contains(&counted), "round {round}: {counted}");
    }
    device.maintain();
    assert_eq!(peer.port.take_lost(), 0);
}

#[test]
fn single_queue_receives_at_worker_zero_only() {
    podswitch_testkit::require_tap!();
    let ns = NetNs::anonymous().unwrap();
    let mut device = attach_tap(&ns, &pod(&[V4]), TapOptions::default()).unwrap();
    let zero = device.open(0, 2).unwrap();
    let mut one = device.open(1, 2).unwrap();
    assert!(zero.poll_fd().is_some() && one.poll_fd().is_none());
    let mut pool = Pool::new(PoolConfig::default());
    assert_eq!(one.rx(&mut pool, &mut Batch::new()).unwrap(), 0);
    let mut batch = Batch::new();
    batch.push(Packet::from_frame(&[0xff; 60]));
    assert_eq!(one.tx(&mut pool, &mut batch).unwrap(), 1);
}

#[test]
fn foreign_interface_is_not_taken() {
    podswitch_testkit::require_tap!();
    use podswitch_linux::netlink::LinkSpec;
    let ns = NetNs::anonymous().unwrap();
    Netlink::open(&ns).unwrap().add_bridge(&LinkSpec::new("eth0")).unwrap();
    let error = TapDevice::open(&ns, &TapConfig::new("eth0")).unwrap_err();
    assert!(error.to_string().contains("kind bridge"), "{error}");
    let error = TapDevice::open(&ns, &TapConfig::new("a-name-beyond-all-bounds")).unwrap_err();
    assert!(error.to_string().contains("a-name-beyond-all-bounds"), "{error}");
}

#[test]
fn node_reaches_pods_through_its_port() {
    podswitch_testkit::require_tap!();
    let node = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&node).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    let addresses: [IpAddr; 2] = [ip("192.0.2.1"), ip("2001:db8::1")];
    for address in addresses {
        netlink.add_address(lo, address.into()).unwrap();
        netlink.wait_until_local(address).unwrap();
    }
    let config = HostPortConfig {
        node_addresses: addresses.to_vec(),
        destinations: vec!["10.7.0.0/24".parse().unwrap(), "fd07::/64".parse().unwrap()],
        ..HostPortConfig::default()
    };
    let (mut host, mut device) = HostPort::open(&node, config).unwrap();
    let mut peer = Peer::new(device.open(0, 1).unwrap());
    for (pod, source) in [("10.7.0.2", addresses[0]), ("fd07::2", addresses[1])] {
        let socket = node
            .enter(|| UdpSocket::bind(if source.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect((ip(pod), 53)).unwrap();
        assert_eq!(socket.local_addr().unwrap().ip(), source);
        socket.send(b"node").unwrap();
        assert!(peer.run_until(|frame| frame.starts_with(&[0xee; 6]) && frame.ends_with(b"node")));
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 4);
    }
    assert_eq!(sysctl::get(&node, "net/ipv4/ip_forward").unwrap(), "1");
    host.set_destinations(["10.9.0.0/24".parse().unwrap()].into()).unwrap();
    let there = |netlink: &mut Netlink, to: &str| {
        netlink.routes().unwrap().iter().any(|r| r.destination.to_string() == to)
    };
    assert!(there(&mut netlink, "10.9.0.0/24") && !there(&mut netlink, "10.7.0.0/24"));
    drop((host, device, peer));
    assert!(netlink.find_link("podswitch0").unwrap().is_none());
    assert!(!there(&mut netlink, "10.9.0.0/24"));
    assert_eq!(sysctl::get(&node, "net/ipv4/ip_forward").unwrap(), "0");
}
