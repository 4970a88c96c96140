//! Two nodes whose switches are replaced again and again, with pods by TAP and by veth pairs, and every underlay.

use std::net::SocketAddr;
use std::time::Duration;

use podswitch_vswitch_testkit::cluster::{Fabric, Node, put, serve, tcp, udp};
use podswitch_vswitch_testkit::stream::Stream;
use podswitch_vswitch_testkit::{Folder, RunDir};

const PORT: u16 = 8080;
const ROUNDS: usize = 3;
/// Between two datagrams of each of twelve streams.
const SLOW: Duration = Duration::from_millis(10);

fn nothing_is_lost(more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let nodes = [1, 2].map(|n| Node::new(&fabric, n, &[false], &["tap", "veth"]));
    let folder = Folder::new();
    put(&folder, &nodes.each_ref().map(Node::manifest));
    let run_dirs = nodes.each_ref().map(|node| RunDir::new(&node.name));
    let start = |n: usize, workers: usize| {
        let workers = workers.to_string();
        let own = ["--run-dir", &run_dirs[n].0, "--take-over", "--workers", &workers];
        nodes[n].start(&folder, &[&own, more].concat())
    };
    let mut switches = [0, 1].map(|n| start(n, 1 + n));
    switches.iter().for_each(|switch| drop(switch.event("ready")));
    for pod in nodes.iter().flat_map(|node| &node.pods) {
        serve(&pod.ns, PORT);
    }
    let [one, two] = &nodes;
    let mut streams = Vec::new();
    let mut port = 9000;
    for (from, to) in [(one, two), (two, one)] {
        // From TAP to veth and the other way round, in both families, and beside the tunnel.
        for (source, target) in [(0, &to.pods[1]), (1, &to.pods[0]), (1, &from.pods[0])] {
            for address in target.addresses {
                let source = &from.pods[source];
                udp(&source.ns, address, PORT, 100);
                port += 1;
                let destination = SocketAddr::new(address, port).to_string();
                let stream = Stream::start(&source.ns, &target.ns, &destination, port, SLOW);
                streams.push((format!("{} to {destination}", source.name), stream));
            }
        }
    }
    for round in 0..ROUNDS {
        for (n, switch) in switches.iter_mut().enumerate() {
            let next = start(n, [2, 1, 3][round]);
            next.event("ready");
            assert_eq!(switch.ends(), Some(0));
            *switch = next;
        }
        for address in two.pods.iter().flat_map(|pod| pod.addresses) {
            tcp(&one.pods[round % 2].ns, address, PORT, 100_000);
        }
    }
    for (what, stream) in streams {
        stream.is_complete(&what);
    }
    for switch in switches {
        assert_eq!(switch.stop(), Some(0));
    }
}

#[test]
fn udp_sockets_are_handed_over() {
    nothing_is_lost(&[]);
}

#[test]
fn packet_sockets_are_handed_over() {
    nothing_is_lost(&["--underlay", "packet", "--uplink", "eth0"]);
}
