//! Real TCP between a pod behind our port and a pod behind the kernel.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;

use crate::world::{Near, POD, Tunnel, Underlay, ip, kernel_pod};
use podswitch_testkit::net;

const BYTES: usize = 8 << 20;

/// Sends [`BYTES`] bytes from one pod to the other and compares all of them.
fn transfer(from: &NetNs, to: &NetNs, address: IpAddr) {
    let listener = to.enter(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let sender = from
        .spawn("sender", move || {
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            let block: Vec<u8> = (0..65_536u32).map(|n| (n * 7 / 8) as u8).collect();
            for n in 0..BYTES / block.len() {
                let mut block = block.clone();
                block[0] = n as u8;
                stream.write_all(&block).unwrap();
            }
        })
        .unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    sender.join().unwrap().unwrap();
    let all = receiver.join().unwrap();
    assert_eq!(all.len(), BYTES);
    for (n, byte) in all.iter().enumerate() {
        let expected = match n % 65_536 {
            0 => (n / 65_536) as u8,
            n => (n * 7 / 8) as u8,
        };
        assert_eq!(*byte, expected, "at {n}");
    }
}

const TUNNELS: [Tunnel; 4] = [
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: true },
    Tunnel { v6: true, vni: 0xff_ffff, port: 8472, tunnel_gso: true },
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: false },
    Tunnel { v6: true, vni: 0xff_ffff, port: 8472, tunnel_gso: false },
];

fn both_ways(near: &NetNs, far: &NetNs) {
    for family in [0, 1] {
        transfer(near, far, ip(POD[1][family]));
        transfer(far, near, ip(POD[0][family]));
    }
}

#[test]
fn gso_packets_to_and_from_the_kernel() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let far = kernel_pod(&underlay.far, &tunnel, true);
        let near = Near::new(&underlay.near, &tunnel);
        both_ways(&near.pod, &far);
        let longest = near.stop();
        assert!(longest.iter().all(|len| *len > 20_000), "GSO packets both ways: {longest:?}");
    }
}

/// The underlay has no GSO packets; the port still merges received segments.
#[test]
fn without_segmentation_offload() {
    podswitch_testkit::require_tap!();
    let tunnel = TUNNELS[0];
    let underlay = Underlay::new();
    let far = kernel_pod(&underlay.far, &tunnel, true);
    let near = Near::new(&underlay.near, &tunnel);
    net::set_tso(&far, "eth0", false);
    net::set_tso(&near.pod, "eth0", false);
    both_ways(&near.pod, &far);
    let longest = near.stop();
    assert!(longest[0] < 1_500 && longest[1] > 3_000, "{longest:?}");
}

#[test]
fn gso_packets_between_two_of_our_ports() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let near = Near::new(&underlay.near, &tunnel);
        let far = Near::far(&underlay.far, &tunnel);
        both_ways(&near.pod, &far.pod);
        for longest in [near.stop(), far.stop()] {
            assert!(longest.iter().all(|len| *len > 20_000), "{longest:?}");
        }
    }
}

#[test]
fn raw_uplink_to_and_from_the_kernel() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS.into_iter().take(2) {
        let underlay = Underlay::new();
        let far = kernel_pod(&underlay.far, &tunnel, true);
        let near = Near::raw(&underlay, &tunnel, false);
        both_ways(&near.pod, &far);
        let longest = near.stop();
        assert!(longest.iter().all(|len| *len > 20_000), "GSO packets both ways: {longest:?}");
    }
}

#[test]
fn raw_uplink_where_the_underlay_segments() {
    podswitch_testkit::require_tap!();
    let tunnel = TUNNELS[0];
    let underlay = Underlay::new();
    let far = kernel_pod(&underlay.far, &tunnel, true);
    let near = Near::raw(&underlay, &tunnel, false);
    net::set_tso(&underlay.far, "u0", false);
    net::set_tso(&far, "eth0", false);
    both_ways(&near.pod, &far);
    let longest = near.stop();
    assert!(longest[1] > 3_000, "put together here: {longest:?}");
}

#[test]
fn raw_uplinks_of_two_of_ours() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS.into_iter().take(2) {
        let underlay = Underlay::new();
        let near = Near::raw(&underlay, &tunnel, false);
        let far = Near::raw(&underlay, &tunnel, true);
        both_ways(&near.pod, &far.pod);
        for longest in [near.stop(), far.stop()] {
            assert!(longest.iter().all(|len| *len > 20_000), "{longest:?}");
        }
    }
}
