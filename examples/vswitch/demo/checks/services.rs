//! Services with backends on both nodes, for pods, nodes and a client outside the cluster.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use podswitch_linux::NetNs;

use super::{expect_seen, gateway, refused_by_tcp, refused_by_udp};
use crate::Done;
use crate::demo::report::Report;
use crate::demo::servers::{self, Servers, ask_tcp, ask_udp};
use crate::demo::sockets::Outcome;
use crate::demo::world::{Family, OUTSIDE, SERVICE_PORT, Service, World};

/// Enough connections that every backend gets some. The probability that one of two gets none is
/// 2^-23.
const MANY: usize = 24;
/// Bytes sent each way.
const BYTES: usize = 100_000;

/// The backends on both nodes.
const BOTH: [&str; 2] = ["green", "cyan"];

const fn service(name: &'static str, number: u8) -> Service {
    Service { name, number, affinity: false, backends: Vec::new() }
}

/// Every Service of the checks. The number determines its addresses and ports.
fn all() -> Vec<Service> {
    vec![
        Service { backends: BOTH.into(), ..service("web", 1) },
        Service { backends: vec!["green"], ..service("of-one", 2) },
        Service { backends: vec!["cyan"], ..service("of-two", 3) },
        service("empty", 4),
        Service { affinity: true, backends: BOTH.into(), ..service("sticky", 5) },
        Service { backends: vec!["red"], ..service("self", 6) },
        Service { backends: vec!["green"], ..service("moving", 7) },
    ]
}

fn cluster_ip(number: u8, like: IpAddr) -> SocketAddr {
    SocketAddr::new(service("", number).cluster_ips().like(like), SERVICE_PORT)
}

/// See the module's description.
pub(in crate::demo) fn services(world: &mut World, report: &mut Report) -> Done {
    let pods = ["red", "green", "cyan"].map(|name| world.pod(name).clone());
    let _servers = match Servers::start(&pods) {
        Ok(servers) => servers,
        Err(error) => return report.check("Services: servers", Err(error)),
    };
    let put = world.change(|setup| setup.services = all());
    report.check("Services: applied on both nodes", put)?;
    for (family, like) in OUTSIDE.each() {
        spread(world, report, family, like)?;
        empty(world, report, family, like)?;
        node_ports(world, report, family, like)?;
        for name in ["red", "white"] {
            let pod = world.pod(name);
            let outcome = sticks(&pod.namespace, cluster_ip(5, like));
            report.check(format!("Services: {name} stays with its backend, {family}"), outcome)?;
        }
        let red = world.pod("red");
        let answer = ask_tcp(&red.namespace, cluster_ip(6, like), BYTES);
        let seen = Family { v4: gateway().ipv4, v6: gateway().ipv6 }.like(like);
        let outcome = expect_seen(answer.map(|answer| answer.seen), seen);
        report.check(format!("Services: red reaches itself, {family}"), outcome)?;
        let outcome = moves(world, like);
        let name = "Services: UDP moves at once to the other node when its backend goes";
        report.check(format!("{name}, {family}"), outcome)?;
    }
    let gone = world.change(|setup| *setup = Default::default());
    report.check("Services: removed", gone)
}

/// Connections to a cluster IP go to backends on both nodes, which see the client's own address.
fn spread(world: &World, report: &mut Report, family: &str, like: IpAddr) -> Done {
    let [one, two] = &world.nodes;
    let (red, white) = (world.pod("red"), world.pod("white"));
    let clients = [
        ("red", &red.namespace, red.addresses),
        ("white", &white.namespace, white.addresses),
        ("node one", &one.namespace, one.addresses),
        ("node two", &two.namespace, two.addresses),
    ];
    for (name, namespace, own) in clients {
        let target = cluster_ip(1, like);
        let ask = |round| ask_tcp(namespace, target, if round == 0 { BYTES } else { 0 });
        let outcome = reaches_both(own.like(like), ask);
        let what = "Services: cluster IP, TCP spreads over both nodes";
        report.check(format!("{what}, from {name}, {family}"), outcome)?;
        let outcome = reaches_both(own.like(like), |_| ask_udp(namespace, target));
        let what = "Services: cluster IP, UDP spreads over both nodes";
        report.check(format!("{what}, from {name}, {family}"), outcome)?;
    }
    Ok(())
}

fn reaches_both(own: IpAddr, ask: impl Fn(usize) -> Outcome<servers::Answer>) -> Outcome<()> {
    let mut seen = BTreeSet::new();
    for round in 0..MANY {
        let answer = ask(round)?;
        expect_seen(Ok(answer.seen), own)?;
        seen.insert(answer.pod);
    }
    match seen.iter().map(String::as_str).eq(["cyan", "green"]) {
        true => Ok(()),
        false => Err(format!("{MANY} connections went to {seen:?} only")),
    }
}

/// A Service without endpoints rejects at once: TCP by RST, UDP by port unreachable (S5).
fn empty(world: &World, report: &mut Report, family: &str, like: IpAddr) -> Done {
    let target = cluster_ip(4, like);
    for name in ["red", "white"] {
        let namespace = &world.pod(name).namespace;
        let what = "Services: one without endpoints rejects";
        let outcome = refused_by_tcp(namespace, target);
        report.check(format!("{what} TCP of {name}, {family}"), outcome)?;
        let outcome = refused_by_udp(namespace, target);
        report.check(format!("{what} UDP of {name}, {family}"), outcome)?;
    }
    Ok(())
}

/// A client outside the cluster reaches each node's NodePort although the backend is on the other
/// node; the backend sees the called node's address (S8).
fn node_ports(world: &World, report: &mut Report, family: &str, like: IpAddr) -> Done {
    for (title, node, number, backend) in
        [("one", &world.nodes[0], 3, "cyan"), ("two", &world.nodes[1], 2, "green")]
    {
        let address = node.addresses.like(like);
        let target = SocketAddr::new(address, service("", number).node_port());
        for (protocol, answer) in [
            ("TCP", ask_tcp(&world.outside, target, BYTES)),
            ("UDP", ask_udp(&world.outside, target)),
        ] {
            let outcome = answer.and_then(|answer| match answer.pod == backend {
                true => expect_seen(Ok(answer.seen), address),
                false => Err(format!("{answer:?}")),
            });
            let name = format!("Services: NodePort of node {title}, backend on the other");
            report.check(format!("{name}, {protocol}, {family}"), outcome)?;
        }
    }
    Ok(())
}

/// A client with affinity gets the same backend each time (S9).
fn sticks(from: &NetNs, to: SocketAddr) -> Outcome<()> {
    let first = ask_tcp(from, to, 0)?.pod;
    for _ in 0..MANY {
        let pod = ask_tcp(from, to, 0)?.pod;
        if pod != first {
            return Err(format!("{first} first, and then {pod}"));
        }
    }
    Ok(())
}

/// One socket keeps sending while the backend is replaced by one on the other node, and back.
fn moves(world: &mut World, like: IpAddr) -> Outcome<()> {
    let red = world.pod("red").namespace.clone();
    let socket = servers::udp_client(&red, cluster_ip(7, like))?;
    for backend in ["green", "cyan", "green"] {
        world.change(|setup| {
            for service in setup.services.iter_mut().filter(|s| s.name == "moving") {
                service.backends = vec![backend];
            }
        })?;
        let answer = servers::ask_by(&socket)?;
        if answer.pod != backend {
            return Err(format!("{} answers and not {backend}", answer.pod));
        }
    }
    Ok(())
}
