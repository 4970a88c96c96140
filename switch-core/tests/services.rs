//! Services on the engine: frames in, frames out, both families. Addresses, endpoints, changes.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

use podswitch_testkit::rig;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::config::{RemoteNode, VtepMac};
use podswitch_core::id::Cookie;
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{
    Conditions, HostPort, Ingress, IpMode, ServiceType, TrafficPolicy,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::tcp_flags;
use rig::services::*;
use rig::{HOST, Switch, addresses, framed};

#[test]
fn cluster_ip_both_ways_for_every_protocol_and_family() {
    for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
        for f in FAMILIES {
            let mut switch = Switch::new(&config(&[1]));
            let (client, backend) = (addresses(0)[f], addresses(1)[f]);
            for _ in 0..2 {
                switch.send(0, &framed(0, &packet(protocol, (client, 4000), (vip(f), 80))));
                let (_, parsed) = one(&mut switch, 1);
                ends(&parsed.key, at(client, 4000), at(backend, 8080));
                assert_eq!(parsed.ttl, 63);
            }
            let answer = match protocol {
                proto::TCP => segment(at(backend, 8080), at(client, 4000), (500, 101, SYN | ACK)),
                _ => packet(protocol, (backend, 8080), (client, 4000)),
            };
            for _ in 0..2 {
                switch.send(1, &framed(1, &answer));
                let (_, parsed) = one(&mut switch, 0);
                ends(&parsed.key, at(vip(f), 80), at(client, 4000));
            }
            assert_eq!(switch.control.connections().len(), 1);
            switch.assert_adds_up();
        }
    }
}

#[test]
fn connections_spread_over_the_backends_and_stay_with_theirs() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[1, 2]));
        let client = addresses(0)[f];
        let mut at_backend = [0; 3];
        let mut first = Vec::new();
        for port in 1000..1400 {
            switch.send(0, &framed(0, &packet(proto::UDP, (client, port), (vip(f), 80))));
            let got = [1, 2].into_iter().find(|&b| !switch.recv(b).is_empty()).unwrap();
            at_backend[got] += 1;
            first.push(got);
        }
        // Chi-square with one degree of freedom: 10.8 at the 99.9 % point.
        let skew = (at_backend[1] as f64 - 200.0).powi(2) / 200.0 * 2.0;
        assert!(skew < 10.8, "{at_backend:?}");
        // A third backend gets new connections only.
        let mut more = config(&[1, 2]);
        more.slices = FAMILIES.map(|f| Arc::new(slice("web", f, &[0, 1, 2]))).to_vec();
        switch.control.apply(&more).unwrap();
        for (n, port) in (1000..1400).enumerate() {
            switch.send(0, &framed(0, &packet(proto::UDP, (client, port), (vip(f), 80))));
            assert_eq!(switch.recv(first[n]).len(), 1, "port {port} stays with {}", first[n]);
        }
    }
}

#[test]
fn without_backends_the_client_gets_an_error_at_once() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[]));
        let client = addresses(0)[f];
        switch.send(0, &framed(0, &packet(proto::TCP, (client, 4000), (vip(f), 80))));
        let (frame, parsed) = one(&mut switch, 0);
        ends(&parsed.key, at(vip(f), 80), at(client, 4000));
        assert_eq!(frame[usize::from(parsed.l4) + 13], RST | ACK);
        for (protocol, port) in [(proto::UDP, 80), (proto::SCTP, 80), (proto::UDP, 81)] {
            switch.send(0, &framed(0, &packet(protocol, (client, 4000), (vip(f), port))));
            let (frame, parsed) = one(&mut switch, 0);
            assert_eq!(parsed.key.src_addr(), vip(f));
            let unreachable: [u8; 2] = if f == 0 { [3, 3] } else { [1, 4] };
            assert_eq!(frame[usize::from(parsed.l4)..][..2], unreachable);
        }
        let none = [DropReason::ServiceNoEndpoints; 3];
        let reasons: Vec<_> = switch.dropped().into_iter().map(|(_, reason)| reason).collect();
        assert_eq!(reasons, [&none[..], &[DropReason::ServiceUndefinedPort]].concat());
        let nobody = if f == 0 { "10.96.9.9" } else { "fd00:96::999" }.parse().unwrap();
        switch.send(0, &framed(0, &packet(proto::TCP, (client, 4000), (nobody, 80))));
        quiet(&mut switch);
        assert_eq!(switch.dropped(), [(0, DropReason::ServiceUnallocated)]);
        switch.assert_adds_up();
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[0]));
        let pod = addresses(0)[f];
        switch.send(0, &framed(0, &packet(proto::UDP, (pod, 4000), (vip(f), 80))));
        let (_, parsed) = one(&mut switch, 0);
        let mapped = parsed.key.src_port;
        ends(&parsed.key, at(gateway(f), mapped), at(pod, 8080));
        assert!(mapped >= 44_000);
        switch.send(0, &framed(0, &packet(proto::UDP, (pod, 8080), (gateway(f), mapped))));
        let (_, parsed) = one(&mut switch, 0);
        ends(&parsed.key, at(vip(f), 80), at(pod, 4000));
    }
}

/// Two addresses of Services with one backend, one port of the client (S16).
#[test]
fn two_services_one_backend_one_client_port() {
    for f in FAMILIES {
        for protocol in [proto::TCP, proto::UDP] {
            let services = vec![service("web", vip), service("api", second_vip)];
            let mut switch = Switch::new(&config_with(services, &[1]));
            let (client, backend) = (addresses(0)[f], addresses(1)[f]);
            let mut ports = Vec::new();
            for vip in [vip(f), second_vip(f)] {
                switch.send(0, &framed(0, &packet(protocol, (client, 4000), (vip, 80))));
                let (_, parsed) = one(&mut switch, 1);
                ends(&parsed.key, at(client, parsed.key.src_port), at(backend, 8080));
                ports.push(parsed.key.src_port);
            }
            // A third connection, not through a Service.
            switch.send(0, &framed(0, &packet(protocol, (client, 4000), (backend, 8080))));
            ports.push(one(&mut switch, 1).1.key.src_port);
            assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 3, "{ports:?}");
            for (mapped, from) in
                ports.iter().zip([at(vip(f), 80), at(second_vip(f), 80), at(backend, 8080)])
            {
                let answer = match protocol {
                    proto::TCP => {
                        segment(at(backend, 8080), at(client, *mapped), (9, 101, SYN | ACK))
                    }
                    _ => packet(protocol, (backend, 8080), (client, *mapped)),
                };
                switch.send(1, &framed(1, &answer));
                let (_, parsed) = one(&mut switch, 0);
                ends(&parsed.key, from, at(client, 4000));
            }
        }
    }
}

/// From outside, the backend sees the node (S8); with Local policy it sees the client (S3).
#[test]
fn node_ports_for_clients_outside_the_node_and_pods() {
    for f in FAMILIES {
        for local in [false, true] {
            let mut web = service("web", vip);
            web.kind = ServiceType::NodePort;
            web.ports[1].node_port = Some(30_080);
            web.external_policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let mut switch = Switch::new(&config_with(vec![web], &[1]));
            let (client, backend) = (outside(f), addresses(1)[f]);
            switch
                .send(HOST, &framed(HOST, &packet(proto::UDP, (client, 4000), (node(f), 30_080))));
            let (_, parsed) = one(&mut switch, 1);
            let source = at(parsed.key.src_addr(), parsed.key.src_port);
            if local {
                assert_eq!(source, at(client, 4000));
            } else {
                assert_eq!(source.ip(), node(f));
                assert!(source.port() >= 44_000);
            }
            assert_eq!(at(parsed.key.dst_addr(), parsed.key.dst_port), at(backend, 8080));
            let answer = packet(proto::UDP, (backend, 8080), (source.ip(), source.port()));
            switch.send(1, &framed(1, &answer));
            let (_, parsed) = one(&mut switch, HOST);
            ends(&parsed.key, at(node(f), 30_080), at(client, 4000));
            // A pod and the node itself keep their addresses.
            for (port, from) in [(0, addresses(0)[f]), (HOST, node(f))] {
                switch.send(
                    port,
                    &framed(port, &packet(proto::UDP, (from, 5000), (node(f), 30_080))),
                );
                let (_, parsed) = one(&mut switch, 1);
                ends(&parsed.key, at(from, 5000), at(backend, 8080));
            }
        }
    }
}

#[test]
fn local_policy_without_a_local_endpoint_drops() {
    let mut web = service("web", vip);
    web.kind = ServiceType::NodePort;
    web.ports[1].node_port = Some(30_080);
    web.external_policy = TrafficPolicy::Local;
    let mut config = config_with(vec![web], &[1]);
    for slice in &mut config.slices {
        let mut elsewhere = (**slice).clone();
        elsewhere.endpoints.iter_mut().for_each(|e| e.node = Some("n2".into()));
        *slice = Arc::new(elsewhere);
    }
    let mut switch = Switch::new(&config);
    for f in FAMILIES {
        switch
            .send(HOST, &framed(HOST, &packet(proto::UDP, (outside(f), 4000), (node(f), 30_080))));
        quiet(&mut switch);
        assert_eq!(switch.dropped(), [(HOST as u16, DropReason::ServiceNoLocalEndpoints)]);
    }
}

/// Other nodes belong to the cluster, with a tunnel or without: Local policy does not apply to them
/// (S3), and if the backend is here it sees their own addresses (S8).
#[test]
fn other_nodes_are_clients_inside_the_cluster() {
    let mut web = service("web", vip);
    web.kind = ServiceType::NodePort;
    web.ports[1].node_port = Some(30_080);
    let mut config = config_with(vec![web], &[1]);
    let others = ["192.168.0.2", "fd00:1::2"].map(|ip| ip.parse().unwrap());
    config.nodes.push(Arc::new(RemoteNode {
        cookie: Cookie::new("Node/n2"),
        name: "n2".into(),
        labels: Default::default(),
        addresses: others.to_vec(),
        pod_cidrs: Vec::new(),
        vtep: VtepMac { ipv4: Mac([2, 0, 0, 0, 2, 1]), ipv6: None },
        underlay_mac: Mac([2, 0, 0, 0, 2, 2]),
        precedence: Default::default(),
    }));
    let mut switch = Switch::new(&config);
    for f in FAMILIES {
        let asked = packet(proto::UDP, (others[f], 4000), (node(f), 30_080));
        switch.send(HOST, &framed(HOST, &asked));
        let (_, parsed) = one(&mut switch, 1);
        ends(&parsed.key, at(others[f], 4000), at(addresses(1)[f], 8080));
    }
}

#[test]
fn load_balancer_source_ranges_and_proxies() {
    for f in FAMILIES {
        let lb: IpAddr = ["198.51.100.1", "2001:db8:1::1"][f].parse().unwrap();
        let mut web = service("web", vip);
        web.kind = ServiceType::LoadBalancer;
        web.ingress = vec![Ingress { address: lb, mode: IpMode::Vip }];
        web.source_ranges = vec![cidr("203.0.113.0/29"), cidr("2001:db8::/64")];
        let mut config = config_with(vec![web.clone()], &[1]);
        let mut switch = Switch::new(&config);
        switch.send(HOST, &framed(HOST, &packet(proto::UDP, (outside(f), 4000), (lb, 80))));
        assert_eq!(one(&mut switch, 1).1.key.dst_addr(), addresses(1)[f]);
        let stranger = ["203.0.113.9", "2001:db8:9::1"][f].parse().unwrap();
        switch.send(HOST, &framed(HOST, &packet(proto::UDP, (stranger, 4000), (lb, 80))));
        quiet(&mut switch);
        assert_eq!(switch.dropped(), [(HOST as u16, DropReason::ServiceSourceRange)]);
        // A packet to a proxy's address is not short-circuited (S13): a pod's packet to it leaves
        // by the node.
        web.ingress[0].mode = IpMode::Proxy;
        config.services = vec![Arc::new(web)];
        switch.control.apply(&config).unwrap();
        switch.send(0, &framed(0, &packet(proto::UDP, (addresses(0)[f], 4001), (lb, 80))));
        ends(&one(&mut switch, HOST).1.key, at(addresses(0)[f], 4001), at(lb, 80));
    }
}

#[test]
fn host_ports_lead_to_their_pod() {
    for f in FAMILIES {
        let mut config = rig::config();
        let port = HostPort {
            address: None,
            protocol: Protocol::Udp,
            port: 5353,
            target: at(addresses(2)[f], 53),
        };
        config.host_ports = vec![(Cookie::new("Pod/default/p2"), Arc::new([port]))];
        let mut switch = Switch::new(&config);
        switch.send(HOST, &framed(HOST, &packet(proto::UDP, (outside(f), 4000), (node(f), 5353))));
        ends(&one(&mut switch, 2).1.key, at(outside(f), 4000), at(addresses(2)[f], 53));
        let answer = packet(proto::UDP, (addresses(2)[f], 53), (outside(f), 4000));
        switch.send(2, &framed(2, &answer));
        ends(&one(&mut switch, HOST).1.key, at(node(f), 5353), at(outside(f), 4000));
    }
}

/// Host ports are reachable at every address of the node, including ExternalIPs, and at 127.0.0.1
/// and ::1 for the node's own processes; a host port that is bound to an address is reachable only there.
#[test]
fn host_ports_at_any_address_of_the_node() {
    let external: [IpAddr; 2] = ["203.0.113.50", "2001:db8:50::1"].map(|a| a.parse().unwrap());
    for f in FAMILIES {
        let loopback: IpAddr = ["127.0.0.1", "::1"][f].parse().unwrap();
        let mut config = rig::config();
        let port = |address, port, pod: usize| HostPort {
            address,
            protocol: Protocol::Tcp,
            port,
            target: at(addresses(pod)[f], 8080),
        };
        config.node.local_addresses = external.to_vec();
        let at_external = port(Some(external[f]), 8444, 2);
        let ports = [port(None, 8443, 2), at_external, port(Some(loopback), 8445, 2)];
        let others = [port(Some(node(f)), 8445, 1)];
        config.host_ports = vec![
            (Cookie::new("Pod/default/p2"), Arc::new([])),
            (Cookie::new("Pod/default/p1"), Arc::new([])),
        ];
        config.host_ports[0].1 = ports.into();
        config.host_ports[1].1 = others.into();
        let mut switch = Switch::new(&config);
        let mut last = 4000;
        let mut syn = |switch: &mut Switch, from: IpAddr, to: IpAddr, port: u16, pod: usize| {
            last += 1;
            let (from, to) = (at(from, last), at(to, port));
            switch.send(HOST, &framed(HOST, &segment(from, to, (100, 0, SYN))));
            let key = one(switch, pod).1.key;
            let backend = at(addresses(pod)[f], 8080);
            let client = at(key.src_addr(), key.src_port);
            ends(&key, client, backend);
            switch.send(pod, &framed(pod, &segment(backend, client, (900, 101, SYN | ACK))));
            ends(&one(switch, HOST).1.key, to, from);
            client.ip()
        };
        let outside = outside(f);
        for to in [node(f), external[f]] {
            assert_eq!(syn(&mut switch, outside, to, 8443, 2), outside);
        }
        syn(&mut switch, outside, external[f], 8444, 2);
        syn(&mut switch, outside, node(f), 8445, 1);
        let passed_by = |switch: &mut Switch, by: usize, from: IpAddr, to: IpAddr, port: u16| {
            let packet = segment(at(from, 4001), at(to, port), (100, 0, SYN));
            switch.send(by, &framed(by, &packet));
            let got = (0..3).any(|pod| pod != by && !switch.recv(pod).is_empty());
            switch.recv(HOST);
            switch.dropped();
            got
        };
        assert!(!passed_by(&mut switch, HOST, outside, node(f), 8444), "at one address only");
        // The node's own processes, from any of their addresses.
        assert_eq!(syn(&mut switch, node(f), loopback, 8443, 2), node(f));
        assert_eq!(syn(&mut switch, node(f), loopback, 8445, 2), node(f));
        let seen = syn(&mut switch, loopback, loopback, 8445, 2);
        assert_eq!(seen, node(f), "no pod sees {loopback}");
        // Nobody else may use it: neither a pod that forges it nor a client at another address;
        // nothing else leaves with it.
        assert!(!passed_by(&mut switch, 0, addresses(0)[f], loopback, 8445));
        assert!(!passed_by(&mut switch, 0, loopback, loopback, 8445));
        assert!(!passed_by(&mut switch, HOST, loopback, addresses(2)[f], 8080));
        let other = ["127.0.0.2", "::2"][f].parse().unwrap();
        assert!(!passed_by(&mut switch, HOST, loopback, other, 8445));
        switch.assert_adds_up();
    }
}

/// Policy Local keeps the client's address even if the endpoint is a server of the node itself
/// (S3); with policy Cluster, and for the node's own processes, the node is the client.
#[test]
fn a_server_of_the_node_sees_its_client() {
    for f in FAMILIES {
        for policy in [TrafficPolicy::Local, TrafficPolicy::Cluster] {
            let mut web = service("web", vip);
            web.kind = ServiceType::LoadBalancer;
            web.external_policy = policy;
            web.ports[0].node_port = Some(30_080);
            let mut config = config_with(vec![web], &[]);
            let mut server = slice("web", f, &[1]);
            server.endpoints[0].addresses = vec![node(f)];
            config.slices = vec![Arc::new(server)];
            let mut switch = Switch::new(&config);
            let (client, front) = (at(outside(f), 4000), at(node(f), 30_080));
            switch.send(HOST, &framed(HOST, &segment(client, front, (100, 0, SYN))));
            let key = one(&mut switch, HOST).1.key;
            let server = at(node(f), 8080);
            let seen = at(key.src_addr(), key.src_port);
            ends(&key, seen, server);
            assert_eq!(seen == client, policy == TrafficPolicy::Local, "{seen}");
            switch.send(HOST, &framed(HOST, &segment(server, seen, (900, 101, SYN | ACK))));
            ends(&one(&mut switch, HOST).1.key, front, client);
            // The node's own process.
            let own = at(node(f), 4001);
            switch.send(HOST, &framed(HOST, &segment(own, at(vip(f), 80), (100, 0, SYN))));
            let key = one(&mut switch, HOST).1.key;
            assert_eq!(key.src_addr(), gateway(f));
            // A packet that does not come back from a Service is recognised as a loop, as before.
            let stray = ["203.0.113.99", "2001:db8::99"][f].parse().unwrap();
            let stray = segment(at(outside(f), 1), at(stray, 2), (1, 0, SYN));
            switch.send(HOST, &framed(HOST, &stray));
            assert_eq!(switch.dropped(), [(HOST as u16, DropReason::Hairpin)]);
        }
    }
}

#[test]
fn affinity_lasts_until_its_timeout_or_until_its_backend_stops() {
    for f in FAMILIES {
        let mut web = service("web", vip);
        web.affinity = Some(100);
        let full = config_with(vec![web.clone()], &[0, 1, 2]);
        let mut switch = Switch::new(&full);
        let client = outside(f);
        let mut port = 1000;
        let mut ask = |switch: &mut Switch| {
            port += 1;
            switch.send(HOST, &framed(HOST, &packet(proto::UDP, (client, port), (vip(f), 80))));
            (0..3).find(|&b| !switch.recv(b).is_empty()).expect("a backend")
        };
        let home = ask(&mut switch);
        for _ in 0..50 {
            assert_eq!(ask(&mut switch), home);
        }
        // Its pin stays when new backends change the hash's selection; without the backend it ends.
        let rest: Vec<usize> = (0..3).filter(|b| *b != home).collect();
        switch.control.apply(&config_with(vec![web.clone()], &rest)).unwrap();
        let other = ask(&mut switch);
        assert_ne!(other, home);
        switch.control.apply(&full).unwrap();
        switch.pass(Duration::from_secs(99));
        assert_eq!(ask(&mut switch), other, "pinned to the second");
        switch.pass(Duration::from_secs(99));
        assert_eq!(ask(&mut switch), other, "use refreshed it");
        switch.pass(Duration::from_secs(101));
        assert_eq!(ask(&mut switch), home, "the hash's choice again");
    }
}

/// UDP moves at once when its backend stops serving (S10).
#[test]
fn udp_leaves_a_backend_that_stops_serving() {
    for f in FAMILIES {
        for how in ["gone", "not serving", "service deleted"] {
            let mut switch = Switch::new(&config(&[1, 2]));
            let (client, mut ports) = (addresses(0)[f], Vec::new());
            for port in 2000..2020 {
                switch.send(0, &framed(0, &packet(proto::UDP, (client, port), (vip(f), 80))));
                if !switch.recv(1).is_empty() {
                    ports.push(port);
                }
                switch.recv(2);
            }
            assert!(!ports.is_empty());
            let mut after = config(&[2]);
            if how == "not serving" {
                after = config(&[1, 2]);
                for s in &mut after.slices {
                    let mut changed = (**s).clone();
                    changed.endpoints[0].conditions = Conditions {
                        ready: Some(false),
                        serving: Some(false),
                        terminating: Some(true),
                    };
                    *s = Arc::new(changed);
                }
            } else if how == "service deleted" {
                after.services.clear();
            }
            switch.control.apply(&after).unwrap();
            for port in ports {
                switch.send(0, &framed(0, &packet(proto::UDP, (client, port), (vip(f), 80))));
                assert_eq!(switch.recv(1).len(), 0, "{how}");
                let moved = switch.recv(2).len();
                assert_eq!(moved, usize::from(how != "service deleted"), "{how}");
            }
        }
    }
}

/// TCP to a terminating backend continues; when the pod is removed the client gets a reset (S11).
#[test]
fn tcp_continues_until_its_backend_is_removed() {
    for f in FAMILIES {
        let mut all = config(&[1]);
        all.node.pod_cidrs.push(cidr("fd00::/64"));
        let mut switch = Switch::new(&all);
        let (client, backend) = (at(addresses(0)[f], 4000), at(addresses(1)[f], 8080));
        let vip = at(vip(f), 80);
        switch.send(0, &framed(0, &segment(client, vip, (100, 0, SYN))));
        switch.send(1, &framed(1, &segment(backend, client, (500, 101, SYN | ACK))));
        switch.send(0, &framed(0, &segment(client, vip, (101, 501, ACK))));
        assert_eq!((switch.recv(0).len(), switch.recv(1).len()), (1, 2));
        // No longer in the Service, but the pod still exists: the connection continues.
        let mut without = config(&[2]);
        without.node = all.node.clone();
        switch.control.apply(&without).unwrap();
        switch.send(0, &framed(0, &segment(client, vip, (101, 501, ACK))));
        ends(&one(&mut switch, 1).1.key, client, backend);
        without.endpoints.remove(1);
        without.ports.remove(1);
        switch.control.apply(&without).unwrap();
        switch.send(0, &framed(0, &segment(client, vip, (101, 501, ACK))));
        let (frame, parsed) = one(&mut switch, 0);
        ends(&parsed.key, vip, client);
        assert_eq!(frame[usize::from(parsed.l4) + 13] & RST, RST);
        assert_eq!(switch.control.connections().len(), 0);
    }
}

/// A segment that opens no connection gets no backend, and is not forwarded untranslated (S15).
#[test]
fn unknown_and_out_of_window_segments_never_pass() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[1]));
        let (client, backend) = (at(addresses(0)[f], 4000), at(addresses(1)[f], 8080));
        let vip = at(vip(f), 80);
        for flags in [ACK, ACK | tcp_flags::FIN, SYN | ACK, RST, RST | ACK] {
            switch.send(0, &framed(0, &segment(client, vip, (100, 7, flags))));
            assert_eq!(switch.recv(1).len(), 0, "flags {flags:#x}");
            let told = switch.recv(0).len();
            assert_eq!(told, usize::from(flags & RST == 0), "flags {flags:#x}");
            assert_eq!(switch.dropped(), [(0, DropReason::TcpInvalidState)]);
        }
        assert_eq!(switch.control.connections().len(), 0);
        switch.send(0, &framed(0, &segment(client, vip, (100, 0, SYN))));
        switch.send(1, &framed(1, &segment(backend, client, (500, 101, SYN | ACK))));
        switch.send(0, &framed(0, &segment(client, vip, (101, 501, ACK))));
        assert_eq!((switch.recv(0).len(), switch.recv(1).len()), (1, 2));
        // The case of the upstream test: a segment far outside the window.
        switch.send(1, &framed(1, &segment(backend, client, (900_000_000, 101, RST | ACK))));
        quiet(&mut switch);
        assert_eq!(switch.dropped(), [(1, DropReason::TcpOutOfWindow)]);
    }
}
