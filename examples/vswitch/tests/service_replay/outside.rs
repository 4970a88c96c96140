//! Clients outside the cluster: node ports, load balancers, what they see and what backends see
//! of them (S3, S7, S8, P4, T-N8).

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;

use crate::play::{Play, SYN_ACK, first, round_trip, tcp, udp};
use crate::world::{
    End, FAMILIES, NODE, NODE_PORTS, OUTSIDE, X, Y, cluster, node_ip, other_node_ip, pod_ip,
    service_of, slices, vip, web,
};

const PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];
const LB: &str = "loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: '2001:db8:1::1'}]}";

fn lb(v6: bool) -> SocketAddr {
    let ip = if v6 { "2001:db8:1::1" } else { "198.51.100.1" }.parse().expect("an address");
    SocketAddr::new(ip, 80)
}

fn node_port(v6: bool) -> SocketAddr {
    SocketAddr::new(node_ip(v6), 30_080)
}

/// A LoadBalancer Service with this more in its `spec`.
fn balancer(more: &str, ends: &[End]) -> String {
    let spec = format!("type: LoadBalancer, {more} {NODE_PORTS}");
    [cluster(), service_of("web", 10, "", &spec, LB), slices("web", ends)].concat()
}

/// S8: the answers must come back here, so the backend sees this node.
#[test]
fn should_function_for_node_ports_from_outside() {
    for v6 in FAMILIES {
        let mut play = Play::new(&balancer("", &[End::pod(Y)]));
        for protocol in PROTOCOLS {
            for (port, to) in [(4000, node_port(v6)), (4001, lb(v6))] {
                let from = OUTSIDE.at(v6, port);
                let seen = round_trip(&mut play, protocol, (OUTSIDE, from), to, (Y, 8080));
                assert_eq!(seen.ip(), node_ip(v6));
                assert!(seen.port() >= 44_000, "of the range kept for this: {seen}");
            }
        }
    }
}

/// Two clients with one source port are two to the backend.
#[test]
fn should_give_each_connection_a_port_of_its_own() {
    for v6 in FAMILIES {
        let mut play = Play::new(&balancer("", &[End::pod(Y)]));
        let clients = ["203.0.113.7", "203.0.113.8", "203.0.113.9"];
        let clients6 = ["2001:db8::7", "2001:db8::8", "2001:db8::9"];
        let mut seen = Vec::new();
        for ip in if v6 { clients6 } else { clients } {
            let from = SocketAddr::new(ip.parse().expect("an address"), 4000);
            let client = (OUTSIDE, from);
            seen.push(round_trip(&mut play, proto::UDP, client, node_port(v6), (Y, 8080)).port());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 3);
    }
}

/// S3: the client's own address, and local endpoints only.
#[test]
fn should_only_target_local_endpoints_and_keep_the_client_for_external_policy_local() {
    for v6 in FAMILIES {
        let more = "externalTrafficPolicy: Local,";
        let mut play = Play::new(&balancer(more, &[End::pod(Y), End::remote(5)]));
        for protocol in PROTOCOLS {
            for port in 4000..4006 {
                for to in [node_port(v6), lb(v6)] {
                    let from = SocketAddr::new(OUTSIDE.ip(v6), port + to.port());
                    let seen = round_trip(&mut play, protocol, (OUTSIDE, from), to, (Y, 8080));
                    assert_eq!(seen, from);
                }
            }
        }
        play.change(&balancer(more, &[End::remote(5)]));
        let asked = udp(OUTSIDE.at(v6, 9000), node_port(v6));
        play.send(OUTSIDE, &asked).silent("service_no_local_endpoints");
    }
}

/// S3: inside the cluster the same addresses lead to endpoints anywhere.
#[test]
fn should_give_clients_inside_the_cluster_all_endpoints_for_external_policy_local() {
    for v6 in FAMILIES {
        let state = balancer("externalTrafficPolicy: Local,", &[End::remote(5)]);
        let mut play = Play::new(&state);
        for client in [X, NODE] {
            for to in [node_port(v6), lb(v6)] {
                let asked = udp(client.at(v6, 4000 + to.port() % 7), to);
                let outcome = play.send(client, &asked);
                assert_ne!(outcome.reason(), Some("service_no_local_endpoints"), "{client:?} {to}");
            }
        }
        // So do other nodes, which are of the cluster as much as this one.
        let other = SocketAddr::new(other_node_ip(v6), 4000);
        let outcome = play.send(OUTSIDE, &udp(other, node_port(v6)));
        assert_ne!(outcome.reason(), Some("service_no_local_endpoints"));
        // And their clients keep their addresses where the backend is here.
        let mut play = Play::new(&balancer("", &[End::pod(Y)]));
        play.send(OUTSIDE, &udp(SocketAddr::new(OUTSIDE.ip(v6), 4000), node_port(v6))).by("a_y");
        let seen = play.send(OUTSIDE, &udp(other, node_port(v6))).by("a_y");
        assert_eq!(seen.from(), other);
    }
}

/// S7 and T-N8: before anything else, on the balancer's addresses, and no way round.
#[test]
fn should_only_allow_access_from_load_balancer_source_ranges() {
    let ranges = "loadBalancerSourceRanges: [203.0.113.0/29, 10.1.0.2/32, '2001:db8::/64', 'fd00:1::2/128'],";
    for v6 in FAMILIES {
        for policy in ["", "externalTrafficPolicy: Local,"] {
            let more = format!("{ranges} {policy}");
            let mut play = Play::new(&balancer(&more, &[End::pod(Y)]));
            round_trip(&mut play, proto::TCP, (OUTSIDE, OUTSIDE.at(v6, 4000)), lb(v6), (Y, 8080));
            let stranger = if v6 { "2001:db8:9::1" } else { "203.0.113.9" };
            let stranger = SocketAddr::new(stranger.parse().expect("an address"), 4000);
            for protocol in PROTOCOLS {
                let outcome = play.send(OUTSIDE, &first(protocol, stranger, lb(v6)));
                outcome.silent("service_source_range");
                assert_eq!(outcome.object(), Some("Service/a/web"));
            }
            // Pods are judged by their own addresses: x is listed, z is not, the node is not.
            play.send(X, &udp(X.at(v6, 4000), lb(v6))).by("a_y");
            let z = crate::world::Z;
            play.send(z, &udp(z.at(v6, 4000), lb(v6))).silent("service_source_range");
            play.send(NODE, &udp(NODE.at(v6, 4000), lb(v6))).silent("service_source_range");
            // The other addresses are not restricted by it.
            play.send(z, &udp(z.at(v6, 4001), vip(10, v6, 80))).by("a_y");
            play.send(OUTSIDE, &udp(stranger, node_port(v6))).by("a_y");
        }
        // Where nothing serves, a stranger learns no more than before.
        let mut play = Play::new(&balancer(ranges, &[]));
        let stranger = if v6 { "2001:db8:9::1" } else { "203.0.113.9" };
        let stranger = SocketAddr::new(stranger.parse().expect("an address"), 4000);
        play.send(OUTSIDE, &udp(stranger, lb(v6))).silent("service_source_range");
    }
}

/// Ranges of one family alone shut the other family out.
#[test]
fn should_take_source_ranges_of_one_family_as_none_of_the_other() {
    let ranges = "loadBalancerSourceRanges: [203.0.113.0/24],";
    let mut play = Play::new(&balancer(ranges, &[End::pod(Y)]));
    play.send(OUTSIDE, &udp(OUTSIDE.at(false, 4000), lb(false))).by("a_y");
    play.send(OUTSIDE, &udp(OUTSIDE.at(true, 4000), lb(true))).silent("service_source_range");
}

#[test]
fn should_function_for_external_ips_from_outside() {
    let spec = format!("externalIPs: [198.51.100.5, '2001:db8:5::5'], {}", crate::world::PORTS);
    for v6 in FAMILIES {
        let ip = if v6 { "2001:db8:5::5" } else { "198.51.100.5" }.parse().expect("an address");
        let to = SocketAddr::new(ip, 80);
        let ranges =
            ["--allow-external-ips", "198.51.100.0/24", "--allow-external-ips", "2001:db8:5::/64"];
        let mut play = Play::new(&web(&spec, &[End::pod(Y)])).with(&ranges);
        for protocol in PROTOCOLS {
            let client = (OUTSIDE, OUTSIDE.at(v6, 4000));
            let seen = round_trip(&mut play, protocol, client, to, (Y, 8080));
            assert_eq!(seen.ip(), node_ip(v6));
        }
    }
}

/// Somebody routes the cluster IPs here: served as from a node port, the client hidden (S8).
#[test]
fn should_function_for_cluster_ips_from_outside() {
    for v6 in FAMILIES {
        let mut play = Play::new(&balancer("", &[End::pod(Y)]));
        let client = (OUTSIDE, OUTSIDE.at(v6, 4000));
        let seen = round_trip(&mut play, proto::TCP, client, vip(10, v6, 80), (Y, 8080));
        assert_eq!(seen.ip(), node_ip(v6));
    }
}

/// T-N1: a port that the switch uses for a connection leads nobody else to its client, and what
/// comes uninvited to such a port is the node's own business.
#[test]
fn should_not_let_anybody_use_the_mapping_of_another() {
    for v6 in FAMILIES {
        let mut play = Play::new(&balancer("", &[End::pod(Y)]));
        let from = OUTSIDE.at(v6, 4000);
        let seen = round_trip(&mut play, proto::UDP, (OUTSIDE, from), node_port(v6), (Y, 8080));
        // From another pod, and from another port of the backend.
        for (pod, port) in [(X, 8080), (Y, 8081)] {
            let outcome = play.send(pod, &udp(pod.at(v6, port), seen));
            assert!(outcome.left.iter().all(|left| left.to() == seen), "{outcome:?}");
        }
        // A pod that chooses a port of that range itself, towards the same backend.
        let chosen = SocketAddr::new(pod_ip(2, v6), seen.port());
        let direct = round_trip(&mut play, proto::UDP, (X, chosen), vip(10, v6, 80), (Y, 8080));
        assert_eq!(direct, chosen);
    }
}

/// A server off the cluster that only the node's stack reaches, called from there: by the node
/// itself, or by a client that the node's stack handed over. The server sees the node at a port
/// of the range kept for this, and its answers come back to the caller.
#[test]
fn should_lead_back_to_the_node_for_endpoints_outside() {
    for v6 in FAMILIES {
        let mut play = Play::new(&balancer("", &[End::outside()]));
        let server = OUTSIDE.at(v6, 8080);
        let stranger = if v6 { "2001:db8:6::1" } else { "203.0.113.66" };
        let stranger = SocketAddr::new(stranger.parse().expect("an address"), 4100);
        let itself = OUTSIDE.at(v6, 4200);
        for protocol in PROTOCOLS {
            for (from, to) in [
                (NODE.at(v6, 4000), vip(10, v6, 80)),
                (NODE.at(v6, 4001), node_port(v6)),
                (stranger, node_port(v6)),
                (itself, lb(v6)),
            ] {
                let seen = play.send(NODE, &first(protocol, from, to)).by("host");
                assert_eq!((seen.to(), seen.from().ip()), (server, node_ip(v6)));
                assert!(seen.from().port() >= 44_000, "of the range kept for this: {seen:?}");
                let answer = match protocol {
                    proto::TCP => tcp(server, seen.from(), (5000, 1001, SYN_ACK)),
                    _ => first(protocol, server, seen.from()),
                };
                let heard = play.send(NODE, &answer).by("host");
                assert_eq!((heard.from(), heard.to()), (to, from));
            }
        }
        // Pods need no help of the node's.
        let seen = play.send(X, &udp(X.at(v6, 4000), vip(10, v6, 80))).by("host");
        assert_eq!(seen.to(), server);
        // What is no Service's has no business here, and what the node hands over a second time neither.
        play.send(NODE, &udp(NODE.at(v6, 4000), server)).told("hairpin");
        let seen = play.send(NODE, &udp(NODE.at(v6, 4009), vip(10, v6, 80))).by("host");
        play.send(NODE, &udp(seen.from(), seen.to())).told("hairpin");
    }
}

/// A pod that calls itself through another node's node port, or through its own node's stack.
#[test]
fn should_hide_whoever_calls_itself_from_elsewhere() {
    for v6 in FAMILIES {
        let mut play = Play::new(&balancer("", &[End::remote(5)]));
        let from = SocketAddr::new(crate::world::remote_ip(5, v6), 4000);
        let outcome = play.send(NODE, &udp(from, node_port(v6)));
        let Some(seen) = outcome.left.first() else { panic!("{outcome:?}") };
        assert_eq!(
            seen.inner().from().ip(),
            node_ip(v6),
            "not the gateway, whom n2 knows as its own"
        );
    }
}
