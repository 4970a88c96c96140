//! Every kind of address that pods and the node itself reach a Service by.

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;

use crate::play::{Play, first, icmp, round_trip, tcp, udp};
use crate::world::{
    End, FAMILIES, Host, NODE, NODE_PORTS, OUTSIDE, PORTS, X, Y, Z, cluster, gateway_ip, node_ip,
    pod, service, service_of, slices, slices_of, vip, web,
};

const PROTOCOLS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];

#[test]
fn should_serve_a_basic_endpoint_from_pods() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        for protocol in PROTOCOLS {
            let client = X.at(v6, 4000);
            let seen = round_trip(&mut play, protocol, (X, client), vip(10, v6, 80), (Y, 8080));
            assert_eq!(seen, client, "the client's address is kept (S8)");
        }
    }
}

#[test]
fn should_serve_the_processes_of_the_node() {
    for v6 in FAMILIES {
        let spec = format!("type: NodePort, {NODE_PORTS}");
        let mut play = Play::new(&web(&spec, &[End::pod(Y)]));
        for protocol in PROTOCOLS {
            for (port, to) in
                [(4000, vip(10, v6, 80)), (4001, SocketAddr::new(node_ip(v6), 30_080))]
            {
                let client = NODE.at(v6, port);
                let seen = round_trip(&mut play, protocol, (NODE, client), to, (Y, 8080));
                assert_eq!(seen, client);
            }
        }
    }
}

#[test]
fn should_serve_multiport_endpoints_from_pods() {
    let spec =
        "ports: [{name: one, port: 80, targetPort: p1}, {name: two, port: 81, targetPort: p2}]";
    let slice = |family: &str, ip: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-{0}, namespace: a, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: {family}\nports: [{{name: one, port: 100}}, {{name: two, port: 101}}]\n\
             endpoints: [{{addresses: ['{ip}']}}]\n",
            family.to_lowercase()
        )
    };
    let state = [
        cluster(),
        service("web", 10, spec),
        slice("IPv4", "10.1.0.3"),
        slice("IPv6", "fd00:1::3"),
    ];
    for v6 in FAMILIES {
        let mut play = Play::new(&state.concat());
        for (port, target) in [(80, 100), (81, 101)] {
            let client = (X, X.at(v6, 4000));
            round_trip(&mut play, proto::TCP, client, vip(10, v6, port), (Y, target));
        }
    }
}

/// A named target port may be another number in each slice, as containers differ.
#[test]
fn should_resolve_named_ports_slice_by_slice() {
    let state = [
        cluster(),
        service("web", 10, "ports: [{name: t, port: 80, targetPort: http}]"),
        slices_of("one", "web", 8080, &[End::pod(Y)]),
        slices_of("two", "web", 9090, &[End::pod(Z)]),
    ];
    for v6 in FAMILIES {
        let mut play = Play::new(&state.concat());
        let all: Vec<_> =
            (4000..4040).map(|port| first(proto::TCP, X.at(v6, port), vip(10, v6, 80))).collect();
        let mut at = [0, 0];
        for outcome in play.send_all(X, &all) {
            let seen = outcome.sent();
            let [y, z] = [Y.at(v6, 8080), Z.at(v6, 9090)];
            match seen.port.as_str() {
                "a_y" => assert_eq!(seen.to(), y),
                _ => assert_eq!(seen.to(), z),
            }
            at[usize::from(seen.port == "a_z")] += 1;
        }
        assert!(at[0] > 8 && at[1] > 8, "{at:?}");
    }
}

#[test]
fn should_merge_many_slices_and_count_duplicates_once() {
    let mut state = vec![cluster(), service("web", 10, PORTS)];
    for n in 0..12 {
        state.push(slices_of(&format!("s{n}"), "web", 8080, &[End::pod(Y)]));
    }
    state.push(slices_of("other", "web", 8080, &[End::pod(Z)]));
    for v6 in FAMILIES {
        let mut play = Play::new(&state.concat());
        let all: Vec<_> = (4000..4100).map(|p| udp(X.at(v6, p), vip(10, v6, 80))).collect();
        let at_z = play.send_all(X, &all).iter().filter(|o| o.sent().port == "a_z").count();
        assert!((30..=70).contains(&at_z), "half of a hundred, not a thirteenth: {at_z}");
    }
}

#[test]
fn should_function_for_node_ports_from_pods() {
    for v6 in FAMILIES {
        let spec = format!("type: NodePort, {NODE_PORTS}");
        let mut play = Play::new(&web(&spec, &[End::pod(Y)]));
        for protocol in PROTOCOLS {
            let to = SocketAddr::new(node_ip(v6), 30_080);
            let seen = round_trip(&mut play, protocol, (X, X.at(v6, 4000)), to, (Y, 8080));
            assert_eq!(seen, X.at(v6, 4000));
        }
    }
}

#[test]
fn should_function_for_load_balancer_addresses_from_pods() {
    let spec = format!("type: LoadBalancer, {NODE_PORTS}");
    let status =
        "loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: '2001:db8:1::1', ipMode: VIP}]}";
    let state =
        [cluster(), service_of("web", 10, "", &spec, status), slices("web", &[End::pod(Y)])]
            .concat();
    for v6 in FAMILIES {
        let ip = if v6 { "2001:db8:1::1" } else { "198.51.100.1" }.parse().expect("an address");
        let mut play = Play::new(&state);
        for protocol in PROTOCOLS {
            let client = (X, X.at(v6, 4000));
            round_trip(&mut play, protocol, client, SocketAddr::new(ip, 80), (Y, 8080));
        }
        // Its other ports are nobody's business here.
        let other = udp(X.at(v6, 4000), SocketAddr::new(ip, 81));
        assert_eq!(play.send(X, &other).by("host").to(), other.to);
    }
}

/// S13: the proxy in front does things that we would miss.
#[test]
fn should_leave_load_balancers_of_mode_proxy_alone() {
    let spec = format!("type: LoadBalancer, {NODE_PORTS}");
    let status = "loadBalancer: {ingress: [{ip: 198.51.100.1, ipMode: Proxy}, \
                  {ip: '2001:db8:1::1', ipMode: Proxy}]}";
    let state =
        [cluster(), service_of("web", 10, "", &spec, status), slices("web", &[End::pod(Y)])]
            .concat();
    for v6 in FAMILIES {
        let ip = if v6 { "2001:db8:1::1" } else { "198.51.100.1" }.parse().expect("an address");
        let mut play = Play::new(&state);
        let asked = udp(X.at(v6, 4000), SocketAddr::new(ip, 80));
        let seen = play.send(X, &asked).by("host");
        assert_eq!((seen.from(), seen.to()), (asked.from, asked.to));
    }
}

/// T-N6, CVE-2020-8554: honoured where the configuration says so, and nowhere else.
#[test]
fn should_honour_external_ips_only_where_they_are_allowed() {
    let spec = format!("externalIPs: [198.51.100.5, '2001:db8:5::5'], {PORTS}");
    for v6 in FAMILIES {
        let ip = if v6 { "2001:db8:5::5" } else { "198.51.100.5" }.parse().expect("an address");
        let asked = udp(X.at(v6, 4000), SocketAddr::new(ip, 80));
        let state = web(&spec, &[End::pod(Y)]);
        let seen = Play::new(&state).send(X, &asked).by("host");
        assert_eq!((seen.from(), seen.to()), (asked.from, asked.to), "not intercepted");
        let elsewhere = ["--allow-external-ips", "198.51.100.128/25"];
        Play::new(&state).with(&elsewhere).send(X, &asked).by("host");
        let ranges =
            ["--allow-external-ips", "198.51.100.0/29", "--allow-external-ips", "2001:db8:5::/64"];
        let mut play = Play::new(&state).with(&ranges);
        for protocol in PROTOCOLS {
            let client = (X, X.at(v6, 4000));
            round_trip(&mut play, protocol, client, asked.to, (Y, 8080));
        }
    }
}

/// Nobody captures another Service's address, or a node's, by writing it into `externalIPs`.
#[test]
fn should_not_let_external_ips_capture_cluster_ips() {
    let thief = format!("externalIPs: [10.96.0.10, 'fd00:96::10', 192.0.2.1], {PORTS}");
    let state = [
        web(PORTS, &[End::pod(Y)]),
        service("a-thief", 11, &thief),
        slices("a-thief", &[End::pod(Z)]),
    ];
    for v6 in FAMILIES {
        let ranges =
            ["--allow-external-ips", "10.96.0.0/16", "--allow-external-ips", "fd00:96::/64"];
        let mut play = Play::new(&state.concat()).with(&ranges);
        round_trip(&mut play, proto::TCP, (X, X.at(v6, 4000)), vip(10, v6, 80), (Y, 8080));
    }
}

#[test]
fn should_function_for_host_ports() {
    let spec = "containers: [{ports: [{containerPort: 80, hostPort: 8081}, \
                {containerPort: 53, hostPort: 5353, protocol: UDP}, \
                {containerPort: 9, hostPort: 9999, protocol: SCTP}]}]";
    let state = [cluster(), pod("w", 1, 6, spec)].concat();
    let w = Host::Pod("w", 6);
    for v6 in FAMILIES {
        let mut play = Play::new(&state);
        for (protocol, port, target) in
            [(proto::TCP, 8081, 80), (proto::UDP, 5353, 53), (proto::SCTP, 9999, 9)]
        {
            let to = SocketAddr::new(node_ip(v6), port);
            for client in [X, NODE, OUTSIDE] {
                let from = client.at(v6, 4000);
                let seen = round_trip(&mut play, protocol, (client, from), to, (w, target));
                assert_eq!(seen, from, "the pod is here: no need to hide the client");
            }
        }
        let other = SocketAddr::new(node_ip(v6), 8082);
        assert_eq!(play.send(X, &udp(X.at(v6, 4000), other)).by("host").to(), other);
    }
}

/// N12 and S8: the pod must not see itself as client, or it would answer itself directly.
#[test]
fn should_allow_pods_to_hairpin_back_to_themselves_through_services() {
    for v6 in FAMILIES {
        let spec = format!("type: NodePort, {NODE_PORTS}");
        let mut play = Play::new(&web(&spec, &[End::pod(X)]));
        for protocol in PROTOCOLS {
            for (port, to) in
                [(4000, vip(10, v6, 80)), (4001, SocketAddr::new(node_ip(v6), 30_080))]
            {
                let seen = round_trip(&mut play, protocol, (X, X.at(v6, port)), to, (X, 8080));
                assert_eq!(seen.ip(), gateway_ip(v6));
            }
        }
    }
}

/// The node calls a Service whose backend shares its network: its stack takes nothing from an
/// address of its own off a wire.
#[test]
fn should_allow_the_node_to_reach_itself_through_services() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::node()]));
        for protocol in PROTOCOLS {
            let client = (NODE, NODE.at(v6, 4000));
            let seen = round_trip(&mut play, protocol, client, vip(10, v6, 80), (NODE, 8080));
            assert_eq!(seen.ip(), gateway_ip(v6));
        }
    }
}

/// A server that is bound to no address answers a link-local client from its own link-local
/// address (RFC 6724 §5, rule 2), which the gateway's IPv6 address is.
#[test]
fn should_know_hairpin_answers_from_link_local_addresses() {
    let end = |host: Host| if host == NODE { End::node() } else { End::pod(host) };
    for host in [X, NODE] {
        let mut play = Play::new(&web(PORTS, &[end(host)]));
        let asked = udp(host.at(true, 4000), vip(10, true, 80));
        let seen = play.send(host, &asked).by(&host.file());
        let own = SocketAddr::new("fe80::858:aff:fe01:2".parse().expect("an address"), 8080);
        for _ in 0..2 {
            let heard = play.send(host, &udp(own, seen.from())).by(&host.file());
            assert_eq!((heard.from(), heard.to()), (asked.to, asked.from));
        }
        // To other ports of the gateway it is a stranger as ever, and nowhere else may it go.
        let other = SocketAddr::new(seen.from().ip(), seen.from().port() ^ 1);
        assert_eq!(play.send(host, &udp(own, other)).left.len(), 1, "port unreachable");
        let elsewhere = play.send(host, &udp(own, Y.at(true, 80)));
        assert!(elsewhere.left.is_empty() && elsewhere.drop.is_some());
    }
}

/// S16.
#[test]
fn should_keep_apart_two_addresses_with_one_backend_and_one_client_port() {
    let state =
        [web(PORTS, &[End::pod(Y)]), service("api", 11, PORTS), slices("api", &[End::pod(Y)])];
    for v6 in FAMILIES {
        for protocol in PROTOCOLS {
            let mut play = Play::new(&state.concat());
            let client = (X, X.at(v6, 4000));
            let one = round_trip(&mut play, protocol, client, vip(10, v6, 80), (Y, 8080));
            let two = round_trip(&mut play, protocol, client, vip(11, v6, 80), (Y, 8080));
            let three = round_trip(&mut play, protocol, client, Y.at(v6, 8080), (Y, 8080));
            assert_eq!(one, client.1);
            assert!(one != two && two != three && three != one, "{one} {two} {three}");
            assert_eq!((two.ip(), three.ip()), (one.ip(), one.ip()));
        }
    }
}

/// S14: these are others' business, and their packets go their way.
#[test]
fn should_leave_services_alone_that_are_not_for_it() {
    let foreign = service_of(
        "web",
        10,
        "labels: {service.kubernetes.io/service-proxy-name: other}",
        PORTS,
        "",
    );
    let headless = "---\n{apiVersion: v1, kind: Service, metadata: {name: h, namespace: a}, \
                    spec: {clusterIP: None, ports: [{port: 80}]}}\n";
    let named = "---\n{apiVersion: v1, kind: Service, metadata: {name: e, namespace: a}, \
                 spec: {type: ExternalName, externalName: example.com}}\n";
    let state = [
        &cluster()[..],
        &foreign,
        headless,
        named,
        &slices("web", &[End::pod(Y)]),
        &slices("h", &[End::pod(Y)]),
    ]
    .concat();
    for v6 in FAMILIES {
        let mut play = Play::new(&state);
        let asked = tcp(X.at(v6, 4000), vip(10, v6, 80), (1, 0, 2));
        let seen = play.send(X, &asked).by("host");
        assert_eq!((seen.from(), seen.to()), (asked.from, asked.to));
        // The headless one's backend is a pod like any other.
        let direct =
            round_trip(&mut play, proto::TCP, (X, X.at(v6, 4001)), Y.at(v6, 8080), (Y, 8080));
        assert_eq!(direct, X.at(v6, 4001));
    }
}

/// Service addresses answer no ping: there is nobody behind them; but they say so (S6).
#[test]
fn should_tell_who_pings_a_service_address() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let kind = if v6 { 128 } else { 8 };
        let ping = icmp(X.ip(v6), vip(10, v6, 0).ip(), [kind, 0], [0, 1, 0, 1], b"ping");
        let told = play.send(X, &ping).told("service_undefined_port");
        assert_eq!(told.parsed.key.src_addr(), vip(10, v6, 0).ip());
    }
}
