//! Floods and churn at full rates, in virtual time: ended connections are replaced first, half-open ones next, and all
//! other clients' connections open (T-C5, RFC 4987).

use podswitch_testkit::rig;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podswitch_core::config::Config;
use podswitch_core::control::Options;
use podswitch_core::engine::Limits;
use podswitch_policy::service::model::{ServiceType, TrafficPolicy};
use rig::services::{
    ACK, FAMILIES, RST, SYN, at, config_with, node, outside, segment, service, vip,
};
use rig::{HOST, Switch, addresses, framed, pod_v4, udp4};

const CLIENT: usize = 0;
const SERVER: usize = 1;
const OTHER: usize = 2;

fn limited(config: &Config, limits: Limits) -> Switch {
    Switch::with(config, 1, Options { limits, ..Options::default() })
}

/// Service "web", node port 30080, with [`SERVER`] for backend.
fn web(policy: TrafficPolicy) -> Config {
    let mut web = service("web", vip);
    web.kind = ServiceType::NodePort;
    web.external_policy = policy;
    web.ports[0].node_port = Some(30_080);
    config_with(vec![web], &[SERVER])
}

/// A segment from a client that is received by `port`; returns the segment that the server received.
fn up(
    switch: &mut Switch,
    port: usize,
    (from, to): (SocketAddr, SocketAddr),
    fields: (u32, u32, u8),
) -> Option<(SocketAddr, SocketAddr)> {
    switch.send(port, &framed(port, &segment(from, to, fields)));
    let frame = switch.recv(SERVER).pop()?;
    let key = podswitch_wire::parse::parse(&frame, &podswitch_wire::flow_key::HashKey::new(1))
        .expect("parses")
        .key;
    Some((at(key.src_addr(), key.src_port), at(key.dst_addr(), key.dst_port)))
}

/// Opens a connection; if `closing` gives flags, its client closes it. Whether all of its segments arrived.
/// segments arrived.
fn connect(
    switch: &mut Switch,
    port: usize,
    (from, to): (SocketAddr, SocketAddr),
    closing: Option<u8>,
) -> bool {
    let Some((seen, backend)) = up(switch, port, (from, to), (100, 0, SYN)) else { return false };
    let answer = segment(backend, seen, (900, 101, SYN | ACK));
    switch.send(SERVER, &framed(SERVER, &answer));
    let answered = switch.recv(port).len() == 1;
    let acknowledged = up(switch, port, (from, to), (101, 901, ACK)).is_some();
    let closed =
        closing.is_none_or(|flags| up(switch, port, (from, to), (101, 901, flags)).is_some());
    answered && acknowledged && closed
}

/// 14,000 connections a second of one client, each reset by it, alternating every two seconds between a ClusterIP and
/// the same pod's own address, all from the same source ports: none is lost.
#[test]
fn churn_through_a_service_and_directly_to_its_pod_loses_nothing() {
    for f in FAMILIES {
        let mut switch = limited(&web(TrafficPolicy::Cluster), Limits::default());
        let (through, straight) = (at(vip(f), 80), at(addresses(SERVER)[f], 8080));
        for turn in 0..4u16 {
            let to = if turn % 2 == 0 { through } else { straight };
            for n in 0..28_000u32 {
                let from = at(addresses(CLIENT)[f], 32_768 + n as u16);
                assert!(connect(&mut switch, CLIENT, (from, to), Some(RST)), "turn {turn}, {n}");
                if n % 1400 == 0 {
                    switch.pass(Duration::from_millis(100));
                }
            }
        }
        assert_eq!(switch.dropped(), []);
        switch.assert_adds_up();
    }
}

/// The same if the client's account holds only a fraction of these connections.
#[test]
fn churn_beyond_an_account_loses_nothing() {
    let limits = Limits { connections_per_port: 1000, ..Limits::default() };
    for closing in [RST, RST | ACK] {
        let mut switch = limited(&web(TrafficPolicy::Cluster), limits);
        for n in 0..20_000u16 {
            let from = at(addresses(CLIENT)[0], 20_000 + n);
            assert!(connect(&mut switch, CLIENT, (from, at(vip(0), 80)), Some(closing)), "{n}");
        }
        assert!(switch.control.shared().tracker.len() <= 1000);
        switch.assert_adds_up();
    }
}

/// The `n`th forged source of an off-cluster flood.
fn spoofed(f: usize, n: u32) -> SocketAddr {
    let [_, a, b, c] = n.to_be_bytes();
    let address: IpAddr = match f {
        0 => [198, 18 | a & 1, b, c].into(),
        _ => {
            let mut address = [0; 16];
            (address[0], address[13], address[14], address[15]) = (0x20, a, b, c);
            address.into()
        }
    };
    at(address, 1024 + (n % 60_000) as u16)
}

/// 1,000 SYNs a second from forged sources to a node port for a minute, more than there are source ports and places in
/// the account: all connections of off-cluster clients, the node and pods open, even those whose handshake takes two
/// seconds.
#[test]
fn a_syn_flood_at_a_node_port_blocks_no_client() {
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        for f in FAMILIES {
            let limits = Limits { connections_per_port: 8192, ..Limits::default() };
            let mut config = web(policy);
            config.node.nat_ports = 50_000..=54_095;
            let mut switch = limited(&config, limits);
            let front = at(node(f), 30_080);
            let living = at(outside(f), 999);
            assert!(connect(&mut switch, HOST, (living, front), None));
            let (mut got_in, mut opened) = (0, 0);
            for n in 0..60_000u32 {
                let flood = up(&mut switch, HOST, (spoofed(f, n), front), (n, 0, SYN));
                if let Some((seen, backend)) = flood {
                    got_in += 1;
                    // The server answers some; nobody receives the answers.
                    if n % 2 == 0 {
                        let answer = segment(backend, seen, (900, n + 1, SYN | ACK));
                        switch.send(SERVER, &framed(SERVER, &answer));
                        switch.recv(HOST);
                    }
                }
                if n % 500 == 250 {
                    let port = 2000 + (n / 250) as u16;
                    let own = [
                        (HOST, at(outside(f), port), front),
                        (HOST, at(node(f), port), at(vip(f), 80)),
                        (CLIENT, at(addresses(CLIENT)[f], port), at(vip(f), 80)),
                        (OTHER, at(addresses(OTHER)[f], port), front),
                    ];
                    for (by, from, to) in own {
                        assert!(
                            connect(&mut switch, by, (from, to), None),
                            "{policy:?} {n} {from}"
                        );
                        opened += 1;
                    }
                }
                if n % 100 == 99 {
                    switch.pass(Duration::from_millis(100));
                }
            }
            assert_eq!(opened, 480);
            assert_eq!(got_in, 60_000, "none is refused: half-open ones are ended");
            assert!(up(&mut switch, HOST, (living, front), (101, 901, ACK)).is_some());
            let list = switch.control.connections();
            let live = list
                .iter()
                .filter(|c| c.tcp.is_some_and(|[a, b]| podswitch_core::flow::tcp::is_live(a, b)));
            assert_eq!(live.count(), 481, "no established one was ended");
            assert!(list.len() <= 8192 + 1000);
            switch.assert_adds_up();
        }
    }
}

/// 10,000 new unanswered flows a second from one pod, for twenty seconds, in a table that holds a fraction of them: new
/// connections of others all open.
#[test]
fn a_pods_flood_of_new_flows_does_not_affect_others() {
    let limits = Limits { connections: 16_384, connections_per_port: 8192, flows: 65_536, fdb: 16 };
    let mut switch = limited(&web(TrafficPolicy::Cluster), limits);
    let mut passed = 0;
    for n in 0..200_000u32 {
        let ports = ((n % 50_000) as u16 + 1024, 1 + (n / 50_000) as u16);
        switch.send(OTHER, &udp4(OTHER, pod_v4(SERVER), ports, b"x"));
        passed += switch.recv(SERVER).len();
        if n % 1000 == 0 {
            let port = 2000 + (n / 100) as u16;
            let front = at(vip(0), 80);
            assert!(connect(&mut switch, CLIENT, (at(addresses(CLIENT)[0], port), front), None));
            assert!(connect(&mut switch, HOST, (at(node(0), port), front), None));
            let front = at(node(0), 30_080);
            assert!(connect(&mut switch, HOST, (at(outside(0), port), front), None));
            switch.pass(Duration::from_millis(100));
        }
    }
    assert_eq!(passed, 200_000, "its own connections are ended for its new ones");
    assert_eq!(switch.dropped(), []);
    switch.assert_adds_up();
}
