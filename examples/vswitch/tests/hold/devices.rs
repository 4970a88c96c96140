//! Two nodes with pods by TAP and by veth pairs, over every underlay; one of their switches is killed again and again.

use podswitch_vswitch_testkit::cluster::{Fabric, Node, put, serve, tcp, udp};
use podswitch_vswitch_testkit::{Folder, RunDir};

use super::{Datagrams, Open, has_carrier, holder, holder_ends};

/// Fewer than any queue has room for.
const WAITING: u8 = 40;

fn nothing_is_lost(name: &str, more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let nodes = [1, 2].map(|n| Node::new(&fabric, n, &[false], &["tap", "veth"]));
    let folder = Folder::new();
    put(&folder, &nodes.each_ref().map(Node::manifest));
    let run_dirs = [1, 2].map(|n| RunDir::new(&format!("{name}-{n}")));
    let start = |n: usize, workers: &str| {
        let own = ["--run-dir", &run_dirs[n].0, "--workers", workers];
        let switch = nodes[n].start(&folder, &[&own, more].concat());
        switch.event("ready");
        switch
    };
    let [mut one, two] = [start(0, "2"), start(1, "1")];
    let [[tap, veth], [far, _]] = nodes.each_ref().map(|node| [&node.pods[0], &node.pods[1]]);
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for v6 in [0, 1] {
        for (from, to) in [(tap, veth), (veth, tap), (far, tap), (tap, far)] {
            let address = to.addresses[v6];
            serve_once(&from.ns, &to.ns, address);
            let port = 9000 + connections.len() as u16;
            connections.push(Open::new(&from.ns, &to.ns, address, port));
            streams.push(Datagrams::new(&from.ns, &to.ns, address, port));
        }
    }
    // The client has nothing more to say; the server goes on.
    let mut half = Open::new(&tap.ns, &veth.ns, veth.addresses[0], 8500);
    half.client.shutdown(std::net::Shutdown::Write).expect("half of it is closed");
    for (round, workers) in ["1", "3", "1", "2"].into_iter().enumerate() {
        let byte = round as u8;
        for stream in &mut streams {
            // The way is known.
            stream.send(1);
            assert_eq!(stream.receive(1), [stream.next.wrapping_sub(1)]);
        }
        drop(one);
        for (ns, interface) in [(&tap.ns, "eth0"), (&veth.ns, "eth0"), (&nodes[0].ns, "podswitch0")]
        {
            assert!(has_carrier(ns, interface), "{interface} in {ns}, round {round}");
        }
        for stream in &mut streams {
            stream.send(WAITING);
        }
        for open in &mut connections {
            if round != 1 {
                open.client_sends(&[byte; 3000]);
            }
            if round != 2 {
                open.server_sends(&[!byte; 3000]);
            }
        }
        half.server_sends(&[byte; 500]);
        one = start(0, workers);
        for open in &mut connections {
            if round == 1 {
                open.client_sends(&[byte; 3000]);
            }
            if round == 2 {
                open.server_sends(&[!byte; 3000]);
            }
            open.server_gets(&[byte; 3000]);
            open.client_gets(&[!byte; 3000]);
        }
        half.client_gets(&[byte; 500]);
        for stream in &streams {
            let mut seen = stream.receive(WAITING.into());
            // Workers that share the queues may change the order.
            seen.sort_by_key(|number| stream.next.wrapping_sub(*number).wrapping_neg());
            let expected: Vec<u8> =
                (1..=WAITING).rev().map(|back| stream.next.wrapping_sub(back)).collect();
            assert_eq!(seen, expected, "round {round}, with {workers} worker(s)");
        }
    }
    // By plan, and none follows: nothing is held any more.
    assert!(holder(&run_dirs[0]).is_some());
    for (n, switch) in [one, two].into_iter().enumerate() {
        assert_eq!(switch.stop(), Some(0));
        holder_ends(&run_dirs[n]);
    }
}

/// Makes sure that the way is known at both ends.
fn serve_once(from: &podswitch_linux::NetNs, to: &podswitch_linux::NetNs, at: std::net::IpAddr) {
    use std::sync::atomic::{AtomicU16, Ordering};
    static PORT: AtomicU16 = AtomicU16::new(7000);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    serve(to, port);
    udp(from, at, port, 100);
    tcp(from, at, port, 1000);
}

#[test]
fn udp_sockets_are_held() {
    nothing_is_lost("held-udp", &[]);
}

#[test]
fn packet_sockets_are_held() {
    nothing_is_lost("held-packet", &["--underlay", "packet", "--uplink", "eth0"]);
}
