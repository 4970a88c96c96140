//! UDP and SCTP flows when Services and endpoints change under them (S10, T-N4, T-N5).

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;

use crate::play::{Play, first, round_trip, sctp_data, udp};
use crate::world::{
    End, FAMILIES, NODE, NODE_PORTS, OUTSIDE, PORTS, X, Y, Z, cluster, cluster_without, node_ip,
    service, slices, vip, web,
};

fn node_port_spec() -> String {
    format!("type: NodePort, {NODE_PORTS}")
}

/// The next datagram goes to the new backend, from whomever and by whatever address.
#[test]
fn should_be_able_to_preserve_udp_traffic_when_the_server_pod_cycles() {
    let before = web(&node_port_spec(), &[End::pod(Y)]);
    let moves = [
        web(&node_port_spec(), &[End::pod(Z)]),
        web(&node_port_spec(), &[End::pod(Y).state(false, false, true), End::pod(Z)]),
        web(&node_port_spec(), &[End::pod(Y).state(false, false, false), End::pod(Z)]),
        [
            cluster_without("y"),
            service("web", 10, &node_port_spec()),
            slices("web", &[End::pod(Z)]),
        ]
        .concat(),
    ];
    for v6 in FAMILIES {
        let to_node = SocketAddr::new(node_ip(v6), 30_080);
        for after in &moves {
            for (client, to) in
                [(X, vip(10, v6, 80)), (X, to_node), (NODE, vip(10, v6, 80)), (OUTSIDE, to_node)]
            {
                let mut play = Play::new(&before);
                let from = client.at(v6, 4000);
                round_trip(&mut play, proto::UDP, (client, from), to, (Y, 8080));
                play.change(after);
                round_trip(&mut play, proto::UDP, (client, from), to, (Z, 8080));
            }
        }
    }
}

#[test]
fn should_keep_udp_flows_to_backends_that_still_serve() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let client = (X, X.at(v6, 4000));
        round_trip(&mut play, proto::UDP, client, vip(10, v6, 80), (Y, 8080));
        for after in [
            web(PORTS, &[End::pod(Y), End::pod(Z)]),
            web(PORTS, &[End::pod(Y).state(false, true, true), End::pod(Z)]),
        ] {
            play.change(&after);
            round_trip(&mut play, proto::UDP, client, vip(10, v6, 80), (Y, 8080));
        }
    }
}

#[test]
fn should_tell_udp_clients_when_the_last_endpoint_goes_or_the_service() {
    for v6 in FAMILIES {
        let asked = udp(X.at(v6, 4000), vip(10, v6, 80));
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        play.send(X, &asked).by("a_y");
        play.change(&web(PORTS, &[]));
        play.send(X, &asked).refused("service_no_endpoints", &asked);
        play.change(&web(PORTS, &[End::pod(Y)]));
        play.send(X, &asked).by("a_y");
        play.change(&cluster());
        play.send(X, &asked).silent("service_unallocated");
    }
}

/// Flows that began before the Service was there are judged anew when it is: a client that goes on
/// sending to a node's port must not be stuck with nobody.
#[test]
fn should_be_able_to_preserve_udp_traffic_when_the_service_comes_later() {
    for v6 in FAMILIES {
        let to = SocketAddr::new(node_ip(v6), 30_080);
        for client in [X, OUTSIDE] {
            let asked = udp(client.at(v6, 4000), to);
            let mut play = Play::new(&cluster());
            let early = play.send(client, &asked);
            assert!(early.left.iter().all(|left| left.port == "host"), "{early:?}");
            play.change(&web(&node_port_spec(), &[End::pod(Y)]));
            round_trip(&mut play, proto::UDP, (client, asked.from), to, (Y, 8080));
        }
    }
}

/// The port of a Service changes: its old number is no Service's any more.
#[test]
fn should_be_able_to_update_service_ports_and_types() {
    let moved = "ports: [{name: u, port: 81, targetPort: 8080, protocol: UDP}]";
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let old = udp(X.at(v6, 4000), vip(10, v6, 80));
        play.send(X, &old).by("a_y");
        play.change(&web(moved, &[End::pod(Y)]));
        play.send(X, &old).refused("service_undefined_port", &old);
        let client = (X, X.at(v6, 4000));
        round_trip(&mut play, proto::UDP, client, vip(10, v6, 81), (Y, 8080));
        // To a node port and back.
        let to = SocketAddr::new(node_ip(v6), 30_080);
        play.change(&web(&node_port_spec(), &[End::pod(Y)]));
        round_trip(&mut play, proto::UDP, (X, X.at(v6, 4001)), to, (Y, 8080));
        play.change(&web(PORTS, &[End::pod(Y)]));
        assert_eq!(play.send(X, &udp(X.at(v6, 4001), to)).by("host").to(), to);
        // To a name elsewhere: the address is nobody's.
        let named = "---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: a}, \
                     spec: {type: ExternalName, externalName: example.com}}\n";
        play.change(&[&cluster()[..], named, &slices("web", &[End::pod(Y)])].concat());
        play.send(X, &old).silent("service_unallocated");
    }
}

/// The target port changes in the slice: what is new goes there, UDP at once.
#[test]
fn should_be_able_to_change_the_target_port() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let client = (X, X.at(v6, 4000));
        round_trip(&mut play, proto::UDP, client, vip(10, v6, 80), (Y, 8080));
        let after = [
            cluster(),
            service("web", 10, PORTS),
            crate::world::slices_of("web", "web", 9090, &[End::pod(Y)]),
        ];
        play.change(&after.concat());
        round_trip(&mut play, proto::UDP, client, vip(10, v6, 80), (Y, 9090));
        round_trip(&mut play, proto::TCP, client, vip(10, v6, 80), (Y, 9090));
    }
}

/// An SCTP association is no bag of datagrams: it runs on where its pod does, as TCP does, and
/// goes elsewhere (to be aborted there at once) when the pod is gone.
#[test]
fn should_keep_sctp_associations_until_their_pod_is_gone() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let client = (X, X.at(v6, 4000));
        let data = sctp_data(client.1, vip(10, v6, 80));
        round_trip(&mut play, proto::SCTP, client, vip(10, v6, 80), (Y, 8080));
        let unserving = End::pod(Y).state(false, false, true);
        play.change(&web(PORTS, &[unserving, End::pod(Z)]));
        play.send(X, &data).by("a_y");
        play.change(&web(PORTS, &[End::pod(Z)]));
        play.send(X, &data).by("a_y");
        let after =
            [cluster_without("y"), service("web", 10, PORTS), slices("web", &[End::pod(Z)])];
        play.change(&after.concat());
        play.send(X, &data).by("a_z");
        // What opens one goes at once to who takes it.
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        play.send(X, &first(proto::SCTP, client.1, vip(10, v6, 80))).by("a_y");
        play.change(&web(PORTS, &[End::pod(Z)]));
        play.send(X, &first(proto::SCTP, client.1, vip(10, v6, 80))).by("a_z");
    }
}

/// T-N4: a resolver asks for A and AAAA at once from one port.
#[test]
fn should_answer_two_queries_at_once_from_one_port() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y), End::pod(Z)]));
        let (client, vip) = (X.at(v6, 4000), vip(10, v6, 80));
        let both = [udp(client, vip), udp(client, vip)];
        let seen: Vec<_> = play.send_all(X, &both).iter().map(crate::play::Outcome::sent).collect();
        assert_eq!((&seen[0].port, seen[0].from()), (&seen[1].port, client));
        let server = if seen[0].port == "a_y" { Y } else { Z };
        let answers = [(); 2].map(|()| udp(server.at(v6, 8080), client));
        for outcome in play.send_all(server, &answers) {
            assert_eq!(outcome.by("a_x").from(), vip);
        }
    }
}

/// Nobody speaks for two minutes: the flow is over, and the next datagram opens another.
#[test]
fn should_forget_silent_flows() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let client = (X, X.at(v6, 4000));
        round_trip(&mut play, proto::UDP, client, vip(10, v6, 80), (Y, 8080));
        play.change(&web(PORTS, &[End::pod(Y), End::pod(Z)]));
        play.pass(119.0);
        round_trip(&mut play, proto::UDP, client, vip(10, v6, 80), (Y, 8080));
        play.pass(140.0);
        // Too late for an answer to be one.
        let late = first(proto::UDP, Y.at(v6, 8080), client.1);
        let outcome = play.send(Y, &late);
        assert!(outcome.left.iter().all(|left| left.from() == late.from), "{outcome:?}");
    }
}
