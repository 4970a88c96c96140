//! The server sends first after a restart, and its connection may be a Service's: nothing reaches the client
//! untranslated (S15), nothing hangs, and connections that the client still has continue.

use podswitch_testkit::rig;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::Config;
use podswitch_core::id::PortId;
use podswitch_policy::rule::{NetworkPolicy, Selector};
use podswitch_policy::service::model::{HostPort, ServiceType, TrafficPolicy};
use podswitch_wire::flow_key::proto;
use rig::frames;
use rig::services::*;
use rig::{HOST, Switch, addresses, framed};

const CLIENT: usize = 0;
const SERVER: usize = 1;
const OTHER: usize = 2;

/// A segment with data from the server's port to the address that it takes for its client.
fn push(switch: &mut Switch, family: usize, to: SocketAddr) {
    let from = at(addresses(SERVER)[family], 8080);
    let data = frames::tcp(from.ip(), to.ip(), (from.port(), to.port()), (7000, 300, ACK), b"news");
    let packet = frames::ip(from.ip(), to.ip(), proto::TCP, 64, None, &data);
    switch.send(SERVER, &framed(SERVER, &packet));
}

fn client(family: usize) -> SocketAddr {
    at(addresses(CLIENT)[family], 40_000)
}

fn server(family: usize) -> SocketAddr {
    at(addresses(SERVER)[family], 8080)
}

#[track_caller]
fn dropped(switch: &mut Switch, port: usize, reason: DropReason) {
    assert_eq!(switch.dropped(), [(port as u16, reason)]);
}

/// The client sends a segment without data.
fn say(switch: &mut Switch, from: SocketAddr, to: SocketAddr, fields: (u32, u32, u8)) {
    switch.send(CLIENT, &framed(CLIENT, &segment(from, to, fields)));
}

#[test]
fn connections_of_the_client_continue() {
    for family in FAMILIES {
        let mut switch = Switch::new(&config(&[SERVER, OTHER]));
        let service = at(vip(family), 80);
        push(&mut switch, family, client(family));
        dropped(&mut switch, SERVER, TcpInvalidState);
        let (frame, asked) = one(&mut switch, CLIENT);
        ends(&asked.key, service, client(family));
        assert_eq!(frame.len(), usize::from(asked.payload), "carries nothing");
        // Segments in the meantime cause no further probes.
        push(&mut switch, family, client(family));
        dropped(&mut switch, SERVER, TcpInvalidState);
        quiet(&mut switch);

        say(&mut switch, client(family), service, (300, 7000, ACK));
        let (_, answer) = one(&mut switch, SERVER);
        ends(&answer.key, client(family), server(family));
        push(&mut switch, family, client(family));
        let (_, news) = one(&mut switch, CLIENT);
        ends(&news.key, service, client(family));
        let list = switch.control.connections();
        assert_eq!(list.len(), 1);
        assert!(list[0].pinned.is_via_service());
        switch.assert_adds_up();
    }
}

#[test]
fn a_connection_directly_to_the_pod_continues_too() {
    for family in FAMILIES {
        let mut switch = Switch::new(&config_with(
            vec![service("web", vip), service("second", second_vip)],
            &[SERVER],
        ));
        push(&mut switch, family, client(family));
        dropped(&mut switch, SERVER, TcpInvalidState);
        let asked = switch.recv(CLIENT);
        assert_eq!(asked.len(), 2, "both Services'");
        for address in [vip(family), second_vip(family)] {
            say(&mut switch, client(family), at(address, 80), (300, 0, RST));
            dropped(&mut switch, CLIENT, TcpInvalidState);
            quiet(&mut switch);
        }
        // No matter how late the server tries again.
        switch.pass_slowly(60);
        push(&mut switch, family, client(family));
        let (_, news) = one(&mut switch, CLIENT);
        ends(&news.key, server(family), client(family));
        assert!(!switch.control.connections()[0].pinned.is_via_service());
        switch.assert_adds_up();
    }
}

/// Another backend cannot take over by guessing: it must know the client's sequence numbers.
#[test]
fn nobody_can_take_over_by_guessing() {
    for family in FAMILIES {
        let mut switch = Switch::new(&config(&[SERVER, OTHER]));
        let service = at(vip(family), 80);
        push(&mut switch, family, client(family));
        switch.dropped();
        assert_eq!(switch.recv(CLIENT).len(), 1);
        for (seq, ack) in [(900_000, 7000), (300, 40_000_000), (1 << 31, 1 << 30)] {
            say(&mut switch, client(family), service, (seq, ack, ACK));
            dropped(&mut switch, CLIENT, TcpInvalidState);
            let (_, told) = one(&mut switch, CLIENT);
            ends(&told.key, service, client(family));
            quiet(&mut switch);
        }
        assert_eq!(switch.control.connections().len(), 0);
        // A connection that the client has itself is not probed.
        let mut switch = Switch::new(&config(&[OTHER]));
        say(&mut switch, client(family), service, (100, 0, SYN));
        assert_eq!(switch.recv(OTHER).len(), 1);
        switch.control.apply(&config(&[SERVER, OTHER])).unwrap();
        push(&mut switch, family, client(family));
        let (_, straight) = one(&mut switch, CLIENT);
        ends(&straight.key, server(family), client(family));
    }
}

/// The client behind the node's or the gateway's address is not known any more, and an off-cluster client cannot be
/// found: the server gets a reset.
#[test]
fn a_server_whose_client_is_lost_gets_a_reset() {
    for family in FAMILIES {
        for to in [at(node(family), 50_000), at(gateway(family), 50_000), at(outside(family), 999)]
        {
            let mut switch = Switch::new(&config(&[SERVER]));
            push(&mut switch, family, to);
            let (frame, told) = one(&mut switch, SERVER);
            ends(&told.key, to, server(family));
            assert_eq!(frame[usize::from(told.l4) + 13] & RST, RST);
            quiet(&mut switch);
            assert_eq!(switch.control.connections().len(), 0);
            switch.assert_adds_up();
        }
    }
}

/// A client outside the cluster whose address the Service keeps (policy Local) is found by its own answer, and its
/// connection continues.
#[test]
fn a_client_outside_the_cluster_continues() {
    for family in FAMILIES {
        let mut web = service("web", vip);
        web.kind = ServiceType::NodePort;
        web.external_policy = TrafficPolicy::Local;
        web.ports[0].node_port = Some(30_080);
        let (front, outside) = (at(node(family), 30_080), at(outside(family), 999));
        for answers in [true, false] {
            let mut switch = Switch::new(&config_with(vec![web.clone()], &[SERVER]));
            push(&mut switch, family, outside);
            dropped(&mut switch, SERVER, TcpInvalidState);
            let (frame, asked) = one(&mut switch, HOST);
            ends(&asked.key, front, outside);
            assert_eq!(frame.len(), usize::from(asked.payload), "carries nothing");
            quiet(&mut switch);
            if !answers {
                // The client does not have it: the server's connection is directly to it, and continues.
                switch.send(HOST, &framed(HOST, &segment(outside, front, (300, 0, RST))));
                dropped(&mut switch, HOST, TcpInvalidState);
                push(&mut switch, family, outside);
                ends(&one(&mut switch, HOST).1.key, server(family), outside);
                switch.assert_adds_up();
                continue;
            }
            switch.send(HOST, &framed(HOST, &segment(outside, front, (300, 7000, ACK))));
            ends(&one(&mut switch, SERVER).1.key, outside, server(family));
            push(&mut switch, family, outside);
            ends(&one(&mut switch, HOST).1.key, front, outside);
            assert_eq!(switch.control.connections().len(), 1);
            switch.assert_adds_up();
        }
    }
}

/// If the Service masquerades the client with the node's address, the connection cannot continue: each segment of the
/// client gets a reset that it accepts, and nothing reaches the server.
#[test]
fn a_masqueraded_client_gets_a_reset() {
    for family in FAMILIES {
        let mut web = service("web", vip);
        web.kind = ServiceType::NodePort;
        web.ports[0].node_port = Some(30_080);
        let (front, outside) = (at(node(family), 30_080), at(outside(family), 999));
        let mut switch = Switch::new(&config_with(vec![web], &[SERVER]));
        // A probe to a client outside the cluster, sent by the control plane, and its answer.
        let question = framed(HOST, &segment(front, outside, (1, 1, ACK)));
        switch.control.send(PortId(HOST as u16), &question);
        switch.pass(Duration::from_millis(1));
        assert_eq!(switch.recv(HOST), [question]);
        switch.send(HOST, &framed(HOST, &segment(outside, front, (300, 7000, ACK))));
        dropped(&mut switch, HOST, TcpInvalidState);
        let (frame, told) = one(&mut switch, HOST);
        ends(&told.key, front, outside);
        let header = &frame[usize::from(told.l4)..];
        assert_eq!(header[13] & RST, RST);
        assert_eq!(header[4..8], 7000u32.to_be_bytes(), "it accepts no other");
        quiet(&mut switch);
        switch.assert_adds_up();
    }
}

/// The node's own processes are clients like pods; node ports and host ports are probed as well.
#[test]
fn every_possible_address_is_probed() {
    for family in FAMILIES {
        let mut web = service("web", vip);
        web.kind = ServiceType::NodePort;
        web.ports[0].node_port = Some(30_080);
        let mut config = config_with(vec![web], &[SERVER]);
        let host_port = HostPort {
            address: None,
            protocol: podswitch_policy::rule::Protocol::Tcp,
            port: 8443,
            target: server(family),
        };
        config.host_ports = vec![(config.endpoints[SERVER].cookie.clone(), Arc::new([host_port]))];
        let mut switch = Switch::new(&config);
        push(&mut switch, family, at(node(family), 33_000));
        dropped(&mut switch, SERVER, TcpInvalidState);
        let asked = switch.recv(HOST);
        let parse = |frame: &Vec<u8>| {
            podswitch_wire::parse::parse(frame, &podswitch_wire::flow_key::HashKey::new(1)).unwrap()
        };
        let mut asked: Vec<SocketAddr> = asked
            .iter()
            .map(|frame| parse(frame).key)
            .map(|key| at(key.src_addr(), key.src_port))
            .collect();
        asked.sort();
        let mut all = vec![at(vip(family), 80), at(node(family), 30_080), at(node(family), 8443)];
        all.push(at(["127.0.0.1", "::1"][family].parse().unwrap(), 8443));
        all.sort();
        assert_eq!(asked, all);
        switch.send(
            HOST,
            &framed(
                HOST,
                &segment(at(node(family), 33_000), at(vip(family), 80), (300, 7000, ACK)),
            ),
        );
        assert_eq!(switch.recv(SERVER).len(), 1);
        push(&mut switch, family, at(node(family), 33_000));
        let (_, news) = one(&mut switch, HOST);
        ends(&news.key, at(vip(family), 80), at(node(family), 33_000));
        switch.assert_adds_up();
    }
}

#[test]
fn connections_that_policy_denies_are_not_probed() {
    for family in FAMILIES {
        let mut config: Config = config(&[SERVER]);
        config.policies = vec![Arc::new(NetworkPolicy {
            cookie: "NetworkPolicy/default/closed".into(),
            namespace: "default".into(),
            name: "closed".into(),
            pods: Selector::everything(),
            ingress: Some(Vec::new()),
            egress: None,
        })];
        let mut switch = Switch::new(&config);
        push(&mut switch, family, client(family));
        dropped(&mut switch, SERVER, PolicyIngress);
        quiet(&mut switch);
    }
}
