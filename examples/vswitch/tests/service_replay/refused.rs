//! Refused aloud, or dropped in silence: nothing behind a Service, no such port, no such Service.

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;

use crate::play::{Play, first, round_trip};
use crate::world::{
    End, FAMILIES, NODE, NODE_PORTS, OUTSIDE, PORTS, X, Y, cluster, node_ip, service, service_of,
    slices, vip, web,
};

const PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];

/// S5: whoever asks, by whatever address, whether there are no endpoints or no slice at all.
#[test]
fn should_be_rejected_when_no_endpoints_exist() {
    let spec = format!("type: LoadBalancer, {NODE_PORTS}");
    let status = "loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: '2001:db8:1::1'}]}";
    let empty = slices("web", &[]);
    let unready = slices("web", &[End::pod(Y).state(false, false, false)]);
    for endpoints in ["", &empty, &unready] {
        let state = [&cluster()[..], &service_of("web", 10, "", &spec, status), endpoints].concat();
        for v6 in FAMILIES {
            let lb = if v6 { "2001:db8:1::1" } else { "198.51.100.1" }.parse().expect("an address");
            let mut play = Play::new(&state);
            let addresses =
                [vip(10, v6, 80), SocketAddr::new(node_ip(v6), 30_080), SocketAddr::new(lb, 80)];
            for (at, to) in addresses.into_iter().enumerate() {
                for client in [X, NODE, OUTSIDE] {
                    for protocol in PROTOCOLS {
                        let asked = first(protocol, client.at(v6, 4000 + at as u16), to);
                        let outcome = play.send(client, &asked);
                        outcome.refused("service_no_endpoints", &asked);
                        assert_eq!(outcome.left[0].port, client.file());
                        assert_eq!(outcome.object(), Some("Service/a/web"), "{outcome:?}");
                    }
                    // Errors are rate limited by their receiver.
                    play.pass(1.0);
                }
            }
        }
    }
}

/// With Local policy too: nothing anywhere is no matter of policy.
#[test]
fn should_be_rejected_for_evicted_pods() {
    for policy in ["internalTrafficPolicy: Local", "type: NodePort, externalTrafficPolicy: Local"] {
        let spec =
            format!("{policy}, {}", if policy.contains("Node") { NODE_PORTS } else { PORTS });
        let state = web(&spec, &[End::pod(Y).state(false, false, true)]);
        for v6 in FAMILIES {
            let mut play = Play::new(&state);
            let asked = first(proto::TCP, X.at(v6, 4000), vip(10, v6, 80));
            play.send(X, &asked).refused("service_no_endpoints", &asked);
        }
    }
}

/// S6.
#[test]
fn should_reject_ports_that_a_cluster_ip_does_not_have() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        for protocol in PROTOCOLS {
            for client in [X, NODE] {
                let asked = first(protocol, client.at(v6, 4000), vip(10, v6, 81));
                let outcome = play.send(client, &asked);
                outcome.refused("service_undefined_port", &asked);
                assert_eq!(outcome.object(), Some("Service/a/web"));
            }
        }
        // A protocol that the port is not of is no less undefined.
        let spec = "ports: [{name: t, port: 80}]";
        let mut play = Play::new(&web(spec, &[End::pod(Y)]));
        let asked = first(proto::UDP, X.at(v6, 4000), vip(10, v6, 80));
        play.send(X, &asked).refused("service_undefined_port", &asked);
    }
}

/// S6 and T-N7: no loop through the node's default route.
#[test]
fn should_drop_what_is_for_unallocated_cluster_ips() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        for protocol in PROTOCOLS {
            for client in [X, NODE, OUTSIDE] {
                let asked = first(protocol, client.at(v6, 4000), vip(99, v6, 80));
                play.send(client, &asked).silent("service_unallocated");
            }
        }
    }
}

/// The ranges may come as objects instead of options.
#[test]
fn should_know_the_range_of_a_service_cidr_object() {
    let object = "---\n{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, \
                  metadata: {name: more}, spec: {cidrs: [10.97.0.0/16, 'fd00:97::/112']}}\n";
    for v6 in FAMILIES {
        let ip = if v6 { "fd00:97::1" } else { "10.97.0.1" }.parse().expect("an address");
        let asked = first(proto::TCP, X.at(v6, 4000), SocketAddr::new(ip, 80));
        let state = [&web(PORTS, &[End::pod(Y)]), object].concat();
        Play::new(&state).send(X, &asked).silent("service_unallocated");
        Play::new(&web(PORTS, &[End::pod(Y)])).send(X, &asked).by("host");
    }
}

/// No endpoint now and one later: what was refused is served, by the same ports.
#[test]
fn should_serve_again_when_endpoints_come() {
    let (none, one) = (web(PORTS, &[]), web(PORTS, &[End::pod(Y)]));
    for v6 in FAMILIES {
        for protocol in PROTOCOLS {
            let mut play = Play::new(&none);
            let asked = first(protocol, X.at(v6, 4000), vip(10, v6, 80));
            play.send(X, &asked).refused("service_no_endpoints", &asked);
            play.change(&one);
            round_trip(&mut play, protocol, (X, X.at(v6, 4000)), vip(10, v6, 80), (Y, 8080));
        }
    }
}

/// A Service of one family leaves the other's addresses unallocated.
#[test]
fn should_serve_single_stack_services_in_their_family_only() {
    let service = service("web", 10, PORTS)
        .replace(", 'fd00:96::10'", "")
        .replace("ipFamilies: [IPv4, IPv6]", "ipFamilies: [IPv4]");
    let state = [cluster(), service, slices("web", &[End::pod(Y)])].concat();
    let mut play = Play::new(&state);
    round_trip(&mut play, proto::UDP, (X, X.at(false, 4000)), vip(10, false, 80), (Y, 8080));
    let asked = first(proto::UDP, X.at(true, 4000), vip(10, true, 80));
    play.send(X, &asked).silent("service_unallocated");
}
