//! Bursts that a pod sends in one piece (UDP_SEGMENT), with a tunnel packet of another pod's at every place
//! where somebody might cut them: they arrive as they were sent, and nothing else does.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_wire::addr::Mac;

use super::injected::datagram;
use super::{OURS, PORT, Pair, THEIRS, World};
use podswitch_vswitch_testkit::cluster::{ip, udp};

/// Bytes of each datagram, and how many there are.
const BURSTS: [(usize, usize); 8] =
    [(1, 60), (33, 60), (100, 10), (500, 2), (650, 3), (900, 2), (1200, 2), (1200, 40)];

/// Has the kernel cut what the socket sends into datagrams of `size` bytes.
fn set_segment(socket: &UdpSocket, size: usize) {
    let (size, len) = (size as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
    let (level, option) = (libc::SOL_UDP, libc::UDP_SEGMENT);
    // SAFETY: the option takes an `int`, which `size` is.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const size).cast(), len)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Sends bursts between pods. `other`: the pod that forged datagrams are from, which lives on the sender's
/// node; `macs`: of the tunnel ends, from and to.
fn bursts(from: &NetNs, to: &NetNs, ends: [IpAddr; 2], other: IpAddr, macs: [Mac; 2]) {
    let bind = |ns: &NetNs, at: IpAddr| ns.enter(|| UdpSocket::bind((at, 0))).unwrap().unwrap();
    let (sender, receiver) = (bind(from, ends[0]), bind(to, ends[1]));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (source, at) = (sender.local_addr().unwrap(), receiver.local_addr().unwrap());
    udp(from, ends[1], PORT, 100);
    let inner = datagram(macs, [other, ends[1]], [4444, at.port()], b"forged");
    let forged = [&[8, 0, 0, 0, 0, 0, 1, 0], &inner[..]].concat();
    let headers = if other.is_ipv6() { 70 } else { 50 };
    // The first ones may leave before the way for whole packets is known.
    for (round, (size, count)) in (0..3).flat_map(|n| BURSTS.map(|burst| (n, burst))) {
        let mut burst: Vec<u8> = (0..size * count).map(|n| (n * 7 / 3 + round) as u8).collect();
        for cut in (1..count).map(|n| n * size) {
            for at in [cut.saturating_sub(headers), cut] {
                if let Some(place) = burst.get_mut(at..at + forged.len()) {
                    place.copy_from_slice(&forged);
                }
            }
        }
        set_segment(&sender, size);
        assert_eq!(sender.send_to(&burst, at).unwrap(), burst.len());
        for (n, expected) in burst.chunks(size).enumerate() {
            let mut buffer = [0; 2000];
            let (len, by) = receiver
                .recv_from(&mut buffer)
                .unwrap_or_else(|e| panic!("{n} of {count} with {size} bytes to {at}: {e}"));
            assert_eq!(by, source, "{n} of {count} with {size} bytes to {at}");
            assert!(buffer[..len] == *expected, "{n} of {count} with {size} bytes to {at}: {len}");
        }
    }
    receiver.set_nonblocking(true).unwrap();
    assert!(receiver.recv_from(&mut [0; 10]).is_err(), "nothing but what was sent");
}

fn between_switches(v6: bool, more: &[&str]) {
    let pair = Pair::new(v6);
    let switches = [pair.start(0, more), pair.start(1, more)];
    let [one, two] = &pair.nodes;
    for (x, y) in one.pods.iter().zip(&two.pods) {
        for family in [0, 1] {
            let ends = [x.addresses[family], y.addresses[family]];
            let other = one.pods.iter().find(|pod| pod.addresses != x.addresses).unwrap();
            bursts(&x.ns, &y.ns, ends, other.addresses[family], [OURS[0], THEIRS[0]]);
        }
    }
    for switch in switches {
        assert_eq!(switch.stop(), Some(0));
    }
}

#[test]
fn bursts_between_switches() {
    podswitch_testkit::require_privilege!();
    between_switches(false, &[]);
}

#[test]
fn bursts_between_switches_over_ipv6() {
    podswitch_testkit::require_privilege!();
    between_switches(true, &[]);
}

#[test]
fn bursts_between_switches_by_frames() {
    podswitch_testkit::require_privilege!();
    between_switches(false, &["--underlay", "packet", "--uplink", "eth0"]);
}

fn with_the_kernel(families: &[bool], more: &[&str]) {
    let world = World::flannel(families);
    let switch = world.start(more);
    for pod in &world.ours.pods {
        for (family, there) in world.theirs.pod_addresses.into_iter().enumerate() {
            // Of two tunnels each carries its own family.
            let underlay = usize::from(if families.len() == 2 { family == 1 } else { families[0] });
            let (ours, theirs) = (OURS[underlay], THEIRS[underlay]);
            let here = pod.addresses[family];
            let other = ip(["10.2.0.77", "fd00:2::77"][family]);
            bursts(&world.theirs.pod, &pod.ns, [there, here], other, [theirs, ours]);
            let other = ip(["10.1.0.77", "fd00:1::77"][family]);
            bursts(&pod.ns, &world.theirs.pod, [here, there], other, [ours, theirs]);
        }
    }
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn bursts_with_the_kernel() {
    podswitch_testkit::require_privilege!();
    with_the_kernel(&[false, true], &[]);
}

#[test]
fn bursts_with_the_kernel_over_ipv6() {
    podswitch_testkit::require_privilege!();
    with_the_kernel(&[true], &[]);
}

#[test]
fn bursts_with_the_kernel_by_frames() {
    podswitch_testkit::require_privilege!();
    with_the_kernel(&[false], &["--underlay", "packet", "--uplink", "eth0"]);
}
