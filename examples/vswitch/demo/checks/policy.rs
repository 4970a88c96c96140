//! NetworkPolicy between nodes: each node enforces for its own pods, on new and established
//! connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use podswitch_core::action::DropReason;

use super::{expect_seen, wait_for};
use crate::Done;
use crate::demo::report::Report;
use crate::demo::servers::{self, Servers};
use crate::demo::sockets::{self, Connection, Outcome, PATIENCE};
use crate::demo::world::{DemoPod, SERVICE_PORT, Service, TARGET_PORT, World};

/// Enough time for allowed traffic to arrive.
const ARRIVAL_TIME: Duration = Duration::from_millis(250);
/// Bytes sent each way.
const BYTES: usize = 20_000;

/// Only red may connect to cyan, which is on the other node.
const ONLY_RED: (&str, &str) = (
    "only-red",
    "{podSelector: {matchLabels: {name: cyan}}, ingress: [{\
     from: [{podSelector: {matchLabels: {name: red}}}], ports: [{port: 8080}]}]}",
);
/// The same for black instead of red.
const ONLY_BLACK: (&str, &str) = (
    "only-black",
    "{podSelector: {matchLabels: {name: cyan}}, ingress: [{\
     from: [{podSelector: {matchLabels: {name: black}}}]}]}",
);
/// White may connect to blue, which is on the other node, and to no other pod.
const ONLY_TO_BLUE: (&str, &str) = (
    "only-to-blue",
    "{podSelector: {matchLabels: {name: white}}, policyTypes: [Egress], egress: [{\
     to: [{podSelector: {matchLabels: {name: blue}}}]}]}",
);

/// See the module's description.
pub(in crate::demo) fn policy(world: &mut World, report: &mut Report) -> Done {
    let pods = ["red", "blue", "green", "cyan"].map(|name| world.pod(name).clone());
    let _servers = match Servers::start(&pods) {
        Ok(servers) => servers,
        Err(error) => return report.check("policy: servers", Err(error)),
    };
    let to_cyan = Service { name: "cyan", number: 9, affinity: false, backends: vec!["cyan"] };
    let through = to_cyan.cluster_ips();
    let put = world.change(|setup| {
        setup.policies = vec![ONLY_RED, ONLY_TO_BLUE];
        setup.services = vec![to_cyan];
    });
    report.check("policy: applied on both nodes", put)?;
    let pod = |name: &str| world.pod(name);
    for (family, cyan) in pod("cyan").addresses.each() {
        let of_family = |pod: &DemoPod| pod.addresses.like(cyan);
        for (from, to, target) in [
            ("red", "cyan", at(cyan)),
            ("white", "blue", at(of_family(pod("blue")))),
            ("red", "cyan's Service", SocketAddr::new(through.like(cyan), SERVICE_PORT)),
        ] {
            let from = pod(from);
            let answer = servers::ask_tcp(&from.namespace, target, BYTES);
            let outcome = expect_seen(answer.map(|answer| answer.seen), of_family(from));
            report.check(format!("policy: {} → {to} is allowed, {family}", from.name), outcome)?;
        }
        // Denied by the node of the pod that the policy selects.
        for (from, to, target, node, reason) in [
            ("blue", "cyan", at(cyan), 1, DropReason::PolicyIngress),
            (
                "blue",
                "cyan's Service",
                SocketAddr::new(through.like(cyan), SERVICE_PORT),
                1,
                DropReason::PolicyIngress,
            ),
            ("white", "green", at(of_family(pod("green"))), 1, DropReason::PolicyEgress),
        ] {
            let outcome = denied(world, pod(from), target, node, reason);
            report.check(format!("policy: {from} → {to} is denied, {family}"), outcome)?;
        }
    }
    // From here on, the configuration changes while these pods are in use.
    let (red, cyan) = (world.pod("red").clone(), world.pod("cyan").clone());
    for (family, address) in cyan.addresses.each() {
        let outcome = established(world, &red, &cyan, address);
        let name = "policy: an established connection through the tunnel is re-evaluated";
        report.check(format!("{name}, {family}"), outcome)?;
    }
    let freed = world.change(|setup| *setup = Default::default());
    report.check("policy: removed", freed)
}

fn at(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, TARGET_PORT)
}

/// Connecting fails in silence, and the node counts the reason.
fn denied(
    world: &World,
    from: &DemoPod,
    to: SocketAddr,
    node: usize,
    reason: DropReason,
) -> Outcome<()> {
    let before = world.nodes[node].dropped(reason);
    let connect = || Ok(TcpStream::connect_timeout(&to, ARRIVAL_TIME));
    match sockets::open(&from.namespace, connect)? {
        Ok(_) => return Err("the connection succeeds".to_owned()),
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        Err(error) => return Err(format!("{error}, although a timeout is expected")),
    }
    match wait_for(|| world.nodes[node].dropped(reason) > before) {
        true => Ok(()),
        false => Err(format!("not dropped as {}", reason.name())),
    }
}

/// A connection that is allowed, forbidden and allowed again while it lives.
fn established(world: &mut World, from: &DemoPod, to: &DemoPod, address: IpAddr) -> Outcome<()> {
    // Their listener is not at the servers' port, which only-red names.
    world.change(|setup| setup.policies.clear())?;
    let Connection { mut client, mut server, .. } =
        sockets::connect(&from.namespace, &to.namespace, address)?;
    let arrives = |client: &mut TcpStream, server: &mut TcpStream, byte: u8, patience| {
        client.write_all(&[byte]).map_err(|e| format!("write: {e}"))?;
        receives(server, byte, patience)
    };
    if !arrives(&mut client, &mut server, 1, PATIENCE)? {
        return Err("nothing arrives at first".to_owned());
    }
    world.change(|setup| setup.policies = vec![ONLY_BLACK])?;
    let before = world.nodes[to.node].dropped(DropReason::PolicyIngress);
    if arrives(&mut client, &mut server, 2, ARRIVAL_TIME)? {
        return Err("data still arrives although it is denied".to_owned());
    }
    if !wait_for(|| world.nodes[to.node].dropped(DropReason::PolicyIngress) > before) {
        return Err("it is not dropped as policy_ingress".to_owned());
    }
    world.change(|setup| setup.policies.clear())?;
    // TCP retransmits what was dropped.
    match receives(&mut server, 2, PATIENCE)? {
        true => Ok(()),
        false => Err("no data arrives after it is allowed again".to_owned()),
    }
}

fn receives(end: &mut TcpStream, byte: u8, patience: Duration) -> Outcome<bool> {
    end.set_read_timeout(Some(patience)).map_err(|e| e.to_string())?;
    let mut buffer = [0];
    match end.read(&mut buffer) {
        Ok(1) if buffer[0] == byte => Ok(true),
        Ok(_) => Err("the connection ended".to_owned()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(format!("read: {error}")),
    }
}
