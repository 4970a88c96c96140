//! Services on the engine: frames in, frames out, both families.
#![allow(clippy::disallowed_types, reason = "tests hold what an observer tells")]

mod rig;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use policy::rule::Protocol;
use policy::service::model::{
    Conditions, Endpoint, EndpointSlice, HostPort, Ingress, IpMode, Service, ServicePort,
    ServiceType, SlicePort, TrafficPolicy, family_of,
};
use rig::frames::{fragments, icmp, icmp_protocol, ip, tcp, udp};
use rig::{HOST, HOST_MAC, Switch, addresses, framed};
use switch_core::action::DropReason;
use switch_core::config::{Cidr, Config, Masquerade};
use switch_core::flow::connection::SourceNat;
use switch_core::id::Cookie;
use wire::checksum::{sctp_checksum, verify_l4};
use wire::flow_key::{FlowKey, HashKey, proto};
use wire::parse::{Parsed, parse, parse_quoted, tcp_flags};

const FAMILIES: [usize; 2] = [0, 1];
const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const RST: u8 = tcp_flags::RST;

fn vip(family: usize) -> IpAddr {
    ["10.96.0.10", "fd00:96::10"][family].parse().unwrap()
}

fn second_vip(family: usize) -> IpAddr {
    ["10.96.0.11", "fd00:96::11"][family].parse().unwrap()
}

fn node(family: usize) -> IpAddr {
    ["192.168.0.1", "fd00:1::1"][family].parse().unwrap()
}

fn gateway(family: usize) -> IpAddr {
    ["169.254.1.1", "fe80::1"][family].parse().unwrap()
}

fn outside(family: usize) -> IpAddr {
    ["203.0.113.7", "2001:db8::7"][family].parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// A Service with a TCP, a UDP and an SCTP port 80 → 8080, at both families' addresses.
fn service(name: &str, vip: impl Fn(usize) -> IpAddr) -> Service {
    let port = |protocol, name: &str| ServicePort { protocol, ..ServicePort::tcp(name, 80) };
    Service {
        ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u"), port(Protocol::Sctp, "s")],
        ..Service::cluster_ip("default", name, [vip(0), vip(1)])
    }
}

fn slice(service: &str, family: usize, backends: &[usize]) -> EndpointSlice {
    let port = |protocol, name: &str| SlicePort { protocol, ..SlicePort::tcp(name, 8080) };
    EndpointSlice {
        namespace: "default".into(),
        name: format!("{service}-{family}").into(),
        service: service.into(),
        family: family_of(vip(family)),
        ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u"), port(Protocol::Sctp, "s")],
        endpoints: backends
            .iter()
            .map(|&b| Endpoint::ready(addresses(b)[family]).on("n1"))
            .collect(),
    }
}

fn config_with(services: Vec<Service>, backends: &[usize]) -> Config {
    let slices = services
        .iter()
        .flat_map(|s| FAMILIES.map(|f| Arc::new(slice(&s.name.name, f, backends))))
        .collect();
    Config {
        services: services.into_iter().map(Arc::new).collect(),
        slices,
        service_cidrs: vec![cidr("10.96.0.0/16"), cidr("fd00:96::/112")],
        ..rig::config()
    }
}

fn config(backends: &[usize]) -> Config {
    config_with(vec![service("web", vip)], backends)
}

fn sctp(ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet[..2].copy_from_slice(&ports.0.to_be_bytes());
    packet[2..4].copy_from_slice(&ports.1.to_be_bytes());
    packet.extend([1, 0, 0, 4]);
    let sum = sctp_checksum(&packet).unwrap();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// A packet of protocol `proto`; TCP is a SYN.
fn packet(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let ports = (from.1, to.1);
    let message = match protocol {
        proto::TCP => tcp(from.0, to.0, ports, (100, 0, SYN), &[]),
        proto::UDP => udp(from.0, to.0, ports, b"question"),
        _ => sctp(ports),
    };
    ip(from.0, to.0, protocol, 64, None, &message)
}

fn segment(from: SocketAddr, to: SocketAddr, tcp_fields: (u32, u32, u8)) -> Vec<u8> {
    let message = tcp(from.ip(), to.ip(), (from.port(), to.port()), tcp_fields, &[]);
    ip(from.ip(), to.ip(), proto::TCP, 64, None, &message)
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// The one frame that left by `port`, parsed and with good checksums.
#[track_caller]
fn one(switch: &mut Switch, port: usize) -> (Vec<u8>, Parsed) {
    let mut frames = switch.recv(port);
    assert_eq!(frames.len(), 1, "by port {port}; drops: {:?}", switch.dropped());
    let frame = frames.remove(0);
    let parsed = parse(&frame, &HashKey::new(1)).expect("parses");
    assert!(verify_l4(&frame, &parsed), "checksum: {:?}", parsed.key);
    (frame, parsed)
}

#[track_caller]
fn ends(key: &FlowKey, from: SocketAddr, to: SocketAddr) {
    assert_eq!(at(key.src_addr(), key.src_port), from, "source");
    assert_eq!(at(key.dst_addr(), key.dst_port), to, "destination");
}

#[track_caller]
fn quiet(switch: &mut Switch) {
    for port in 0..=HOST {
        assert_eq!(switch.recv(port).len(), 0, "port {port}");
    }
}

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
        // Chi-square with one degree of freedom: 10.8 at a thousandth.
        let skew = (at_backend[1] as f64 - 200.0).powi(2) / 200.0 * 2.0;
        assert!(skew < 10.8, "{at_backend:?}");
        // A third backend takes new connections only.
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
fn nobody_there_is_told_at_once() {
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
            // A third, not through a Service at all.
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
        // A proxy's address is not short-circuited (S13): a pod's packet to it leaves by the node.
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

#[test]
fn affinity_holds_until_its_time_is_over_and_leaves_a_backend_that_stops() {
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
        // Its pin survives new backends and the hash's opinion of them; without the backend it ends.
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

/// TCP to a terminating backend runs on; when the pod is gone the client is told (S11).
#[test]
fn tcp_runs_on_until_its_backend_is_gone() {
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
        // Out of the Service, the pod still there: the connection lives.
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

/// Nothing that opens no connection is given a backend, nor leaks (S15).
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
        // The upstream test's: a segment far outside the window.
        switch.send(1, &framed(1, &segment(backend, client, (900_000_000, 101, RST | ACK))));
        quiet(&mut switch);
        assert_eq!(switch.dropped(), [(1, DropReason::TcpOutOfWindow)]);
    }
}

#[test]
fn fragments_of_translated_datagrams_go_one_way() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[1, 2]));
        let (client, body) = (addresses(0)[f], [7u8; 100]);
        for port in 3000..3010 {
            let message = udp(client, vip(f), (port, 80), &body);
            let mut pieces =
                fragments((client, vip(f)), proto::UDP, u32::from(port), &message, &[40, 24]);
            pieces.reverse();
            for piece in &pieces {
                switch.send(0, &framed(0, piece));
            }
            let got = [1, 2].map(|b| switch.recv(b));
            let (frames, b) = if got[0].is_empty() { (&got[1], 2) } else { (&got[0], 1) };
            assert_eq!(frames.len(), 3, "{:?}", switch.dropped());
            assert!(got[0].is_empty() || got[1].is_empty());
            let backend = addresses(b)[f];
            // The datagram's checksum holds over the new addresses and port.
            let mut whole = vec![0; 108];
            for frame in frames {
                let parsed = parse(frame, &HashKey::new(1)).unwrap();
                assert_eq!(parsed.key.dst_addr(), backend);
                let data = &frame[usize::from(parsed.l4)..parsed.end as usize];
                let at = usize::from(parsed.fragment_offset);
                whole[at..at + data.len()].copy_from_slice(data);
            }
            assert_eq!(u16::from_be_bytes([whole[2], whole[3]]), 8080);
            let rebuilt = udp(client, backend, (port, 8080), &body);
            assert_eq!(whole, rebuilt, "backend {b}");
        }
    }
}

/// ICMP errors about translated packets, from the backend and from a router, and about answers.
#[test]
fn icmp_errors_are_translated_outside_and_inside() {
    for f in FAMILIES {
        for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
            let mut switch = Switch::new(&config(&[1]));
            let (client, backend) = (addresses(0)[f], addresses(1)[f]);
            switch.send(0, &framed(0, &packet(protocol, (client, 4000), (vip(f), 80))));
            let (frame, parsed) = one(&mut switch, 1);
            let seen = frame[usize::from(parsed.l3)..].to_vec();
            let unreachable: [u8; 2] = if f == 0 { [3, 3] } else { [1, 4] };
            let error = icmp(backend, client, unreachable, [0; 4], &seen);
            let error = ip(backend, client, icmp_protocol(client), 64, None, &error);
            switch.send(1, &framed(1, &error));
            let (frame, parsed) = one(&mut switch, 0);
            assert_eq!((parsed.key.src_addr(), parsed.key.dst_addr()), (vip(f), client));
            let quote = &frame[usize::from(parsed.payload)..parsed.end as usize];
            let quoted = parse_quoted(quote, parsed.network, &HashKey::new(1)).unwrap();
            ends(&quoted.key, at(client, 4000), at(vip(f), 80));
            // What is quoted is whole, so its own checksums can be looked at too.
            let ethertype = if f == 0 { 0x0800 } else { 0x86dd };
            let inner = rig::frames::ethernet(rig::GATEWAY, HOST_MAC, ethertype, quote);
            let inner_parsed = parse(&inner, &HashKey::new(1)).expect("the quoted header holds");
            assert!(verify_l4(&inner, &inner_parsed), "inner checksum, protocol {protocol}");
            // The client complains about the answer: it arrives as a complaint about what the
            // backend sent.
            let answer = match protocol {
                proto::TCP => segment(at(backend, 8080), at(client, 4000), (9, 101, SYN | ACK)),
                _ => packet(protocol, (backend, 8080), (client, 4000)),
            };
            switch.send(1, &framed(1, &answer));
            let (frame, parsed) = one(&mut switch, 0);
            let seen = frame[usize::from(parsed.l3)..].to_vec();
            let error = icmp(client, vip(f), unreachable, [0; 4], &seen);
            let error = ip(client, vip(f), icmp_protocol(client), 64, None, &error);
            switch.send(0, &framed(0, &error));
            let (frame, parsed) = one(&mut switch, 1);
            assert_eq!((parsed.key.src_addr(), parsed.key.dst_addr()), (client, backend));
            let quote = &frame[usize::from(parsed.payload)..parsed.end as usize];
            let quoted = parse_quoted(quote, parsed.network, &HashKey::new(1)).unwrap();
            ends(&quoted.key, at(backend, 8080), at(client, 4000));
            switch.assert_adds_up();
        }
    }
}

/// A router on the way to a hidden client's peer speaks for itself (traceroute, PMTU discovery).
#[test]
fn errors_of_routers_keep_their_source() {
    for f in FAMILIES {
        let mut config = rig::config();
        let egress: [IpAddr; 2] =
            ["198.51.100.9".parse().unwrap(), "2001:db8:5::9".parse().unwrap()];
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: Vec::new(),
        });
        let mut switch = Switch::new(&config);
        let client = addresses(0)[f];
        let router = ["203.0.113.254", "2001:db8::fe"][f].parse().unwrap();
        switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (outside(f), 33434))));
        let (frame, parsed) = one(&mut switch, HOST);
        let mapped = parsed.key.src_port;
        ends(&parsed.key, at(egress[f], mapped), at(outside(f), 33434));
        let seen = frame[usize::from(parsed.l3)..].to_vec();
        let exceeded: [u8; 2] = if f == 0 { [11, 0] } else { [3, 0] };
        let error = icmp(router, egress[f], exceeded, [0; 4], &seen);
        let error = ip(router, egress[f], icmp_protocol(client), 64, None, &error);
        switch.send(HOST, &framed(HOST, &error));
        let (frame, parsed) = one(&mut switch, 0);
        assert_eq!((parsed.key.src_addr(), parsed.key.dst_addr()), (router, client));
        let quote = &frame[usize::from(parsed.payload)..parsed.end as usize];
        let quoted = parse_quoted(quote, parsed.network, &HashKey::new(1)).unwrap();
        ends(&quoted.key, at(client, 4000), at(outside(f), 33434));
    }
}

/// P3: one mapping for all destinations, none for the cluster; pings keep apart by identifier.
#[test]
fn masquerade_by_the_switch() {
    for f in FAMILIES {
        let mut config = config(&[1]);
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: vec![cidr("203.0.113.128/25"), cidr("2001:db8:77::/48")],
        });
        let mut switch = Switch::new(&config);
        let client = addresses(0)[f];
        let other: IpAddr = ["203.0.113.8", "2001:db8::8"][f].parse().unwrap();
        let inside: IpAddr = ["203.0.113.200", "2001:db8:77::1"][f].parse().unwrap();
        let mut mapped = Vec::new();
        for to in [outside(f), other] {
            switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (to, 53))));
            mapped.push(one(&mut switch, HOST).1.key.src_port);
        }
        assert_eq!(mapped[0], mapped[1], "endpoint-independent");
        switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (inside, 53))));
        ends(&one(&mut switch, HOST).1.key, at(client, 4000), at(inside, 53));
        switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (addresses(2)[f], 53))));
        ends(&one(&mut switch, 2).1.key, at(client, 4000), at(addresses(2)[f], 53));
        // Echo from two pods with one identifier: each gets its own answer.
        let (asks, answers): ([u8; 2], [u8; 2]) =
            if f == 0 { ([8, 0], [0, 0]) } else { ([128, 0], [129, 0]) };
        let mut identifiers = Vec::new();
        for pod in [0, 2] {
            let from = addresses(pod)[f];
            let ping = icmp(from, outside(f), asks, [0, 77, 0, 1], b"ping");
            let ping = ip(from, outside(f), icmp_protocol(from), 64, None, &ping);
            switch.send(pod, &framed(pod, &ping));
            let (frame, parsed) = one(&mut switch, HOST);
            identifiers.push([4, 5].map(|i| frame[usize::from(parsed.l4) + i]));
        }
        assert_ne!(identifiers[0], identifiers[1]);
        for (pod, id) in [0, 2].into_iter().zip(identifiers) {
            let egress = ["198.51.100.9", "2001:db8:5::9"][f].parse().unwrap();
            let pong = icmp(outside(f), egress, answers, [id[0], id[1], 0, 1], b"ping");
            let pong = ip(outside(f), egress, icmp_protocol(egress), 64, None, &pong);
            switch.send(HOST, &framed(HOST, &pong));
            let (frame, parsed) = one(&mut switch, pod);
            assert_eq!(frame[usize::from(parsed.l4) + 4..][..2], [0, 77]);
            assert_eq!(parsed.key.dst_addr(), addresses(pod)[f]);
        }
        let masked = switch
            .control
            .connections()
            .iter()
            .filter(|c| c.pinned.source_nat == SourceNat::Endpoint)
            .count();
        assert_eq!((masked, switch.control.shared().tracker.nat().in_use()), (4, 3));
        switch.pass_slowly(400);
        assert_eq!(switch.control.shared().tracker.nat().in_use(), 0, "all given back");
    }
}

/// Ports are never shared: when they are used up, new connections are refused with a reason.
#[test]
fn nat_ports_run_out_with_a_reason_and_come_back() {
    let mut web = service("web", vip);
    web.kind = ServiceType::NodePort;
    web.ports[1].node_port = Some(30_080);
    let mut config = config_with(vec![web], &[1]);
    config.node.nat_ports = 50_000..=50_099;
    let mut switch = Switch::new(&config);
    let ask = |switch: &mut Switch, port| {
        switch
            .send(HOST, &framed(HOST, &packet(proto::UDP, (outside(0), port), (node(0), 30_080))));
    };
    let mut seen = HashSet::new();
    for port in 1000..1100 {
        ask(&mut switch, port);
        assert!(seen.insert(one(&mut switch, 1).1.key.src_port));
    }
    ask(&mut switch, 1100);
    quiet(&mut switch);
    assert_eq!(switch.dropped(), [(HOST as u16, DropReason::NatPortsExhausted)]);
    ask(&mut switch, 1000);
    assert_eq!(switch.recv(1).len(), 1, "what lives goes on");
    switch.pass_slowly(140);
    ask(&mut switch, 1100);
    assert_eq!(switch.recv(1).len(), 1);
}
