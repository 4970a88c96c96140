//! Hand-over from a running switch to another one that starts beside it.

use std::io::{Read, Write};

use podswitch_linux::sysctl;
use podswitch_vswitch_testkit::RunDir;
use podswitch_vswitch_testkit::running::Running;
use podswitch_vswitch_testkit::stream::{FAST, Stream};

use crate::outlive::{Open, assert_monotone, open};
use crate::world::{BALANCER, CLIENT, NODE, PODS, World, resets, rules};

/// Sends both ways over every connection.
#[track_caller]
pub(crate) fn talk(connections: &mut [Open], byte: u8) {
    for Open { what, client, server } in connections {
        let failed = |e| -> () { panic!("{what}, {byte}: {e}") };
        client.write_all(&[byte; 3000]).unwrap_or_else(failed);
        server.write_all(&[!byte; 3000]).unwrap_or_else(failed);
        for (to, sent) in [(server, byte), (client, !byte)] {
            let mut got = [0; 3000];
            to.read_exact(&mut got).unwrap_or_else(failed);
            assert_eq!(got, [sent; 3000], "{what}, {byte}");
        }
    }
}

/// Connections of every kind and streams of datagrams, while switches hand the node over to each other, each with another
/// number of workers and another set of ready pods. Nothing is lost, counters do not fall, and at the end nothing is left.
#[test]
fn ten_handovers_lose_nothing() {
    podswitch_testkit::require_tap!();
    let world = World::new("handover");
    let World { client, pods, node, .. } = &world;
    let settings = || {
        ["net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
            .map(|key| sysctl::get(node, key).unwrap())
    };
    let before = (rules(node), settings());
    let folder = RunDir::new("handover");
    let masquerade = format!("{},{}", NODE[0], NODE[1]);
    let flags = ["--run-dir", &folder.0, "--json", "--stats", "0.2", "--masquerade", &masquerade];
    let flags = [&flags[..], &["--cluster-cidr", "172.16.0.0/12"]].concat();
    let start = |workers: &str| -> Running {
        world.start(&[&flags[..], &["--take-over", "--workers", workers]].concat())
    };
    world.state([false, true]);
    // With none to take over from.
    let mut switch = start("2");
    switch.event("ready");
    let servers = world.serve_both();
    let mut connections = Vec::new();
    for f in 0..2 {
        let vip = ["10.96.0.10", "fd96::10"][f];
        for (from, to, port) in [
            (&pods[0], vip, 80),
            (&pods[1], vip, 80),
            (node, vip, 80),
            (client, NODE[f], 30_080),
            (client, BALANCER[f], 80),
            (&pods[0], NODE[f], 30_080),
            (&pods[0], PODS[1][f], 8080),
            (&pods[0], CLIENT[f], 8080),
        ] {
            connections.push(open(from, (to, port), &servers));
        }
    }
    let reset = resets(node);
    let streams = [
        ("direct", Stream::start(&pods[0], &pods[1], "10.1.0.3:9001", 9001, FAST)),
        ("direct, IPv6", Stream::start(&pods[0], &pods[1], "[fd00:1::3]:9002", 9002, FAST)),
        ("Service", Stream::start(&pods[0], &pods[1], "10.96.0.20:80", 8080, FAST)),
    ];
    for round in 0..10u8 {
        talk(&mut connections, round);
        let counted = switch.next_event("stats");
        world.state([round % 2 == 0, true]);
        let next = start(["1", "3", "2", "4"][usize::from(round) % 4]);
        next.event("ready");
        assert_eq!(switch.ends(), Some(0));
        switch = next;
        assert_monotone(&counted, &switch.event("stats"), "");
    }
    talk(&mut connections, 77);
    assert_eq!(resets(node), reset, "the node's stack keeps out of it");
    for (what, stream) in streams {
        stream.is_complete(what);
    }
    switch.event_with("stats", |stats| {
        let total = |name: &str| stats[name].as_u64().expect("a count");
        total("received") == total("forwarded") + total("consumed") + total("dropped")
    });
    assert_eq!(switch.stop(), Some(0));
    assert_eq!((rules(node), settings()), before);
}
