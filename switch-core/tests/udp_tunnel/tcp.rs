//! Real TCP between a pod behind our port and a pod behind the kernel.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use switch_core::host::NetNs;

use crate::world::{Near, POD, Tunnel, Underlay, ip, kernel_pod};

const OCTETS: usize = 8 << 20;

/// Sends [`OCTETS`] from one pod to the other and compares every one of them.
fn transfer(from: &NetNs, to: &NetNs, address: IpAddr) {
    let listener = to.enter(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let sender = from
        .spawn("sender", move || {
            let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            let block: Vec<u8> = (0..65_536u32).map(|n| (n * 7 >> 3) as u8).collect();
            for n in 0..OCTETS / block.len() {
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
    assert_eq!(all.len(), OCTETS);
    for (n, octet) in all.iter().enumerate() {
        let expected = match n % 65_536 {
            0 => (n / 65_536) as u8,
            n => (n * 7 >> 3) as u8,
        };
        assert_eq!(*octet, expected, "at {n}");
    }
}

#[test]
fn tcp_both_ways() {
    require_privilege!();
    for tunnel in
        [Tunnel { v6: false, vni: 42, port: 4789 }, Tunnel { v6: true, vni: 0xff_ffff, port: 8472 }]
    {
        let underlay = Underlay::new();
        let far = kernel_pod(&underlay.far, &tunnel, true);
        let near = Near::new(&underlay.near, &tunnel);
        for family in [0, 1] {
            transfer(&near.pod, &far, ip(POD[1][family]));
            transfer(&far, &near.pod, ip(POD[0][family]));
        }
        let longest = near.stop();
        assert!(longest.iter().all(|len| *len > 20_000), "super-frames both ways: {longest:?}");
    }
}
