//! Validation by the control plane: invalid parts of a configuration are refused with object, field
//! and reason, and change nothing; valid parts route packets as configured.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::{
    BridgeDomain, Config, NextHop, PortConfig, PortRole, RemoteNode, Route, Vlans, VtepMac,
};
use podswitch_core::id::{Cookie, PortId};
use podswitch_policy::rule::{Namespace, NetworkPolicy};
use podswitch_wire::addr::Mac;
use rig::frames;
use rig::*;

/// The errors that `spoil` causes, as "object: field".
fn refused(spoil: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut switch = Switch::new(&config());
    let before = switch.control.snapshot();
    let mut config = config();
    spoil(&mut config);
    let errors = switch.control.apply(&config).expect_err("is wrong").0;
    assert!(Arc::ptr_eq(&before, &switch.control.snapshot()), "nothing changed");
    assert!(errors.iter().all(|e| !e.reason.is_empty()));
    errors.iter().map(|e| format!("{}: {}", e.object, e.field)).collect()
}

/// Changes pod `n`.
fn change(config: &mut Config, n: usize, with: impl FnOnce(&mut podswitch_core::config::Endpoint)) {
    let mut endpoint = (*config.endpoints[n]).clone();
    with(&mut endpoint);
    config.endpoints[n] = Arc::new(endpoint);
}

fn attach(config: &mut Config, n: usize, port: u16, mac: Mac, mtu: u16) {
    change(config, n, |e| {
        e.attachment = Some(podswitch_core::config::Attachment { port: PortId(port), mac, mtu });
    });
}

#[test]
fn errors_of_pods_are_named() {
    let p0 = "Pod/default/p0";
    let field = |field: &str| vec![format!("{p0}: {field}")];
    let group = Mac([1, 0, 0, 0, 0, 1]);
    assert_eq!(refused(|c| attach(c, 0, 0, group, 1500)), field("attachment.mac"));
    assert_eq!(refused(|c| attach(c, 0, 0, pod_mac(0), 1279)), field("attachment.mtu"));
    assert_eq!(refused(|c| attach(c, 0, 3, pod_mac(0), 1500)), field("attachment.port"));
    assert_eq!(refused(|c| attach(c, 0, 77, pod_mac(0), 1500)), field("attachment.port"));
    let taken = refused(|c| attach(c, 1, 0, pod_mac(1), 1500));
    assert_eq!(taken, ["Pod/default/p1: attachment.port"]);
    // The gateway's and the node's addresses are in use.
    let taken = ["169.254.1.1", "fe80::1", "192.168.0.1", "fd00:1::1"];
    let addresses = ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"];
    let addresses = addresses.into_iter().chain(taken);
    for address in addresses {
        let address: IpAddr = address.parse().unwrap();
        let refused = refused(|c| change(c, 0, |e| e.workload.addresses.push(address)));
        assert_eq!(refused, field("addresses[2]"), "{address}");
    }
    let refused = refused(|c| change(c, 1, |e| e.workload.addresses[1] = pod_v6(0).into()));
    assert_eq!(refused, ["Pod/default/p1: addresses[1]"]);
}

fn bridge_port(domain: &str, untagged: Option<u16>, tagged: &[u16]) -> PortRole {
    PortRole::Bridge { domain: domain.into(), vlans: Vlans { untagged, tagged: tagged.to_vec() } }
}

#[test]
fn errors_of_ports_are_named() {
    let push =
        |role: PortRole| move |c: &mut Config| c.ports.push(PortConfig { port: PortId(9), role });
    let domain = |c: &mut Config, ageing_secs| {
        let domain = BridgeDomain { name: "lan".into(), ageing_secs, learn_limit: 5 };
        c.bridges.push(Arc::new(domain));
    };
    let host = |mac| PortRole::Host { mac, mtu: 1500 };
    assert_eq!(refused(push(host(HOST_MAC))), ["Port/9: role"], "a second node");
    let wrong_mac = refused(|c| c.ports[3].role = host(Mac::BROADCAST));
    assert_eq!(wrong_mac, ["Port/3: mac"]);
    assert_eq!(refused(push(bridge_port("lan", Some(1), &[]))), ["Port/9: domain"]);
    for vlans in [(Some(0), vec![]), (Some(4095), vec![]), (None, vec![4095]), (Some(5), vec![5])] {
        let errors = refused(|c| {
            domain(c, 60);
            push(bridge_port("lan", vlans.0, &vlans.1))(c);
        });
        assert_eq!(errors, ["Port/9: vlans"], "{vlans:?}");
    }
    assert_eq!(refused(|c| domain(c, 0)), ["BridgeDomain/lan: ageing_secs"]);
    let twice = refused(|c| {
        domain(c, 60);
        domain(c, 60);
    });
    assert_eq!(twice, ["BridgeDomain/lan: name"]);
    let far = PortConfig { port: PortId(4096), role: PortRole::Pod };
    assert_eq!(refused(|c| c.ports.push(far)), ["Port/4096: port"]);
    let again = PortConfig { port: PortId(3), role: PortRole::Pod };
    assert!(refused(|c| c.ports.push(again)).contains(&"Port/3: port".into()));
}

fn remote(name: &str, byte: u8) -> Arc<RemoteNode> {
    Arc::new(RemoteNode {
        cookie: Cookie::new(format!("Node/{name}")),
        name: name.into(),
        labels: Default::default(),
        addresses: vec![[192, 168, 0, byte].into()],
        pod_cidrs: vec![format!("10.{byte}.0.0/24").parse().unwrap()],
        vtep: VtepMac::default(),
        underlay_mac: Mac::ZERO,
        precedence: Default::default(),
    })
}

fn named(cookie: &str) -> Arc<NetworkPolicy> {
    let mut config = Config::default();
    allow_udp(&mut config, &[53]);
    Arc::new(NetworkPolicy { cookie: cookie.into(), ..(*config.policies[0]).clone() })
}

fn namespace(name: &str) -> Arc<Namespace> {
    Arc::new(Namespace { name: name.into(), labels: Default::default() })
}

/// Objects are identified by their names: if two had the same name, the second would replace the
/// first, and its removal would leave neither in force.
#[test]
fn names_are_unique() {
    let same_cookie = refused(|c| change(c, 1, |e| e.cookie = Cookie::new("Pod/default/p0")));
    assert_eq!(same_cookie, ["Pod/default/p0: name"]);
    let nodes = refused(|c| c.nodes = vec![remote("n2", 2), remote("n3", 3), remote("n2", 4)]);
    assert_eq!(nodes, ["Node/n2: name"]);
    assert_eq!(refused(|c| c.nodes = vec![remote("n1", 2)]), ["Node/n1: name"], "this node");
    let namespaces = refused(|c| c.namespaces = vec![namespace("a"), namespace("a")]);
    assert_eq!(namespaces, ["Namespace/a: name"]);
    assert_eq!(refused(|c| c.policies = vec![named("a"), named("a")]), ["a: name"]);
    assert_eq!(refused(|c| c.policies = vec![named("a"); 2]), ["a: name"], "even the same object");

    // The same for an object that is in force, at any position of the list.
    let mut switch = Switch::new(&config());
    let mut state = config();
    state.policies = vec![named("a"), named("b"), named("c")];
    switch.control.apply(&state).unwrap();
    for at in 0..=3 {
        let mut twice = state.clone();
        twice.policies.insert(at, named("b"));
        assert!(switch.control.apply(&twice).is_err(), "at {at}");
    }
    // A removed object's name can be used again, and other objects stay in force.
    let mut renamed = state.clone();
    renamed.policies = vec![named("b"), named("d"), named("a")];
    switch.control.apply(&renamed).unwrap();
    renamed.policies = vec![named("c"), named("b")];
    switch.control.apply(&renamed).unwrap();
    renamed.policies = vec![named("b")];
    switch.control.apply(&renamed).unwrap();
    switch.send(0, &udp4(0, pod_v4(1), (1, 2), b"x"));
    assert_eq!(switch.dropped(), [(0, PolicyIngress)]);
    renamed.policies.clear();
    switch.control.apply(&renamed).unwrap();
    switch.send(0, &udp4(0, pod_v4(1), (1, 2), b"x"));
    assert_eq!(switch.recv(1).len(), 1);
}

#[test]
fn all_errors_are_found_at_once() {
    let errors = refused(|c| {
        attach(c, 0, 0, Mac::ZERO, 60);
        c.node.gateway.mac = Mac::BROADCAST;
        c.node.addresses.push(c.node.addresses[0]);
        c.node.addresses.push([224, 0, 0, 1].into());
        c.routes.push(Arc::new(Route {
            destination: "10.9.0.0/16".parse().unwrap(),
            next_hops: Vec::new(),
        }));
        c.policies = vec![named("a"), named("a")];
    });
    for wanted in [
        "Pod/default/p0: attachment.mac",
        "Pod/default/p0: attachment.mtu",
        "Node/n1: gateway.mac",
        "Node/n1: addresses[2]",
        "Node/n1: addresses[3]",
        "Route/10.9.0.0/16: next_hops",
        "a: name",
    ] {
        assert!(errors.contains(&wanted.into()), "{wanted} in {errors:?}");
    }
}

/// The egress port of a packet to `to`, or the reason for its drop.
fn way(switch: &mut Switch, to: &str) -> Result<usize, DropReason> {
    let to: IpAddr = to.parse().unwrap();
    let src = addresses(0)[usize::from(to.is_ipv6())];
    let message = frames::udp(src, to, (1, 2), b"x");
    switch.send(0, &framed(0, &frames::ip(src, to, 17, 64, None, &message)));
    if let [(0, reason)] = switch.dropped()[..] {
        return Err(reason);
    }
    (1..4).find(|&port| switch.recv(port).len() == 1).ok_or(EndOfInput)
}

#[test]
fn the_longest_prefix_decides() {
    let mut config = config();
    config.node.pod_cidrs.push("fd00::/64".parse().unwrap());
    config.nodes = vec![remote("n2", 2)];
    let route = |destination: &str, hop: NextHop| {
        let destination = destination.parse().unwrap();
        Arc::new(Route { destination, next_hops: vec![hop] })
    };
    config.routes = vec![
        route("172.16.0.0/12", NextHop::Blackhole),
        route("172.17.0.0/16", NextHop::Host),
        route("172.17.5.0/24", NextHop::Blackhole),
        route("172.17.5.5/32", NextHop::Host),
        route("2001:db8::/32", NextHop::Blackhole),
        route("2001:db8:1::/48", NextHop::Host),
        // Neither route overrides more specific ones: the node's own addresses and its pods.
        route("192.168.0.1/32", NextHop::Blackhole),
        route("10.1.0.0/16", NextHop::Blackhole),
    ];
    let mut switch = Switch::new(&config);
    for (to, wanted) in [
        ("172.16.0.1", Err(NoRoute)),
        ("172.17.0.1", Ok(HOST)),
        ("172.17.5.1", Err(NoRoute)),
        ("172.17.5.5", Ok(HOST)),
        ("172.32.0.1", Ok(HOST)),
        ("2001:db8::1", Err(NoRoute)),
        ("2001:db8:1::1", Ok(HOST)),
        ("192.168.0.1", Ok(HOST)),
        ("fd00:1::1", Ok(HOST)),
        ("10.1.0.11", Ok(1)),
        ("10.1.0.99", Err(UnknownPod)),
        ("fd00::b", Ok(1)),
        ("fd00::99", Err(UnknownPod)),
        ("10.2.0.9", Ok(HOST)),
        ("8.8.8.8", Ok(HOST)),
        ("127.0.0.1", Err(MartianDestination)),
        ("0.1.2.3", Err(MartianDestination)),
        ("240.0.0.1", Err(MartianDestination)),
        ("224.0.0.1", Err(MulticastUnsupported)),
        ("255.255.255.255", Err(MulticastUnsupported)),
        ("::1", Err(MartianDestination)),
        ("fe80::2", Err(MartianDestination)),
        ("::ffff:10.1.0.11", Err(MartianDestination)),
        ("ff02::1", Err(MulticastUnsupported)),
    ] {
        assert_eq!(way(&mut switch, to), wanted, "{to}");
    }
    // Without the node's port there is no way out, and a pod that is not attached cannot be
    // reached.
    config.ports.remove(3);
    change(&mut config, 2, |e| e.attachment = None);
    switch.control.apply(&config).unwrap();
    assert_eq!(way(&mut switch, "8.8.8.8"), Err(NoRoute));
    assert_eq!(way(&mut switch, "192.168.0.1"), Err(NoRoute));
    assert_eq!(way(&mut switch, "10.1.0.12"), Err(UnknownPod));
    switch.assert_adds_up();
}

#[test]
fn the_node_may_use_its_own_addresses_but_not_pods() {
    let mut switch = Switch::new(&config());
    let send = |switch: &mut Switch, src: &str, dst: &str| {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let message = frames::udp(src, dst, (1, 2), b"x");
        switch.send(HOST, &framed(HOST, &frames::ip(src, dst, 17, 64, None, &message)));
        let dropped = switch.dropped();
        dropped.first().map(|d| d.1)
    };
    assert_eq!(send(&mut switch, "192.168.0.1", "10.1.0.10"), None);
    assert_eq!(send(&mut switch, "8.8.8.8", "10.1.0.10"), None, "from beyond");
    assert_eq!(send(&mut switch, "10.1.0.11", "10.1.0.10"), Some(HostSpoofsPod));
    assert_eq!(send(&mut switch, "fd00::b", "fd00::a"), Some(HostSpoofsPod));
    assert_eq!(send(&mut switch, "127.0.0.1", "10.1.0.10"), Some(MartianSource));
    assert_eq!(send(&mut switch, "192.168.0.1", "8.8.8.8"), Some(Hairpin), "its own way");
    assert_eq!(switch.recv(0).len(), 2);
    switch.assert_adds_up();
}
