//! Services by real sockets: clients off the cluster behind the node's NIC, the node itself and
//! pods reach every kind of address, and load balancers' health checks are answered.

mod handover;
mod outlive;
mod world;

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_vswitch_testkit::running::PATIENCE;

use world::{BALANCER, CLIENT, NODE, PODS, World, ask, connect, ip, resets, rules};
#[test]
fn every_kind_of_address_from_everywhere() {
    podswitch_testkit::require_tap!();
    let world = World::new("services");
    let World { node, client, pods, .. } = &world;
    let before = (rules(node), sysctl::get(node, "net/ipv4/ip_local_reserved_ports").unwrap());
    world.state([true, true]);
    let switch = world.start(&["--json", "--stats", "0.2"]);
    switch.event("ready");
    world.serve();
    for f in 0..2 {
        // Outside clients under Cluster policy are masqueraded behind the node (S8)…
        assert_eq!(ask(client, NODE[f], 30_080).1, ip(NODE[f]));
        assert_eq!(ask(client, BALANCER[f], 80).1, ip(NODE[f]));
        // … under Local policy not (S3).
        assert_eq!(ask(client, NODE[f], 30_081).1, ip(CLIENT[f]));
        // The node itself.
        for (to, port) in [(NODE[f], 30_080), (BALANCER[f], 80), (NODE[f], 30_081)] {
            assert_eq!(ask(node, to, port).1, ip(NODE[f]), "{to} {port}");
        }
        let cluster_ip = ["10.96.0.10", "fd96::10"][f];
        assert_eq!(ask(node, cluster_ip, 80).1, ip(NODE[f]));
        // Pods keep their addresses, unless they call themselves.
        for (to, port) in [(NODE[f], 30_080), (BALANCER[f], 80), (cluster_ip, 80)] {
            let (pod, peer) = ask(&pods[0], to, port);
            if pod == 1 {
                assert_eq!(peer, ip(PODS[0][f]), "{to} {port}");
            }
        }
        // An endpoint off the cluster, which only the node's stack reaches.
        let far = ["10.96.0.13", "fd96::13"][f];
        for (from, to, port) in
            [(node, far, 80), (node, NODE[f], 30_083), (client, NODE[f], 30_083)]
        {
            assert_eq!(ask(from, to, port), (2, ip(NODE[f])), "{to} {port}");
        }
        // No endpoint: refused at once (S5).
        for (from, to, port) in [
            (client, NODE[f], 30_082),
            (node, NODE[f], 30_082),
            (node, ["10.96.0.12", "fd96::12"][f], 80),
            (&pods[0], ["10.96.0.12", "fd96::12"][f], 80),
        ] {
            let error = connect(from, to, port).expect_err("nobody is there");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to} {port}");
        }
    }
    let mut seen: Vec<usize> = (0..40).map(|_| ask(client, NODE[0], 30_080).0).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1], "both pods get connections");
    // Counted by Service and backend, by the time that all of it is in the figures.
    switch.event_with("stats", |stats| {
        let count = |name: &str| stats["services"][name].as_u64().unwrap_or(0);
        count("Service/a/web 80/TCP 10.1.0.3:8080") > 0
            && count("Service/a/web 80/TCP [fd00:1::2]:8080") > 0
            && count("Service/a/empty 80/TCP rejected") >= 8
    });
    assert_eq!(switch.stop(), Some(0));
    let after = (rules(node), sysctl::get(node, "net/ipv4/ip_local_reserved_ports").unwrap());
    assert_eq!(after, before, "all is put back");
}

/// What pods send off the cluster leaves with an address of the switch's choice, which is the node's
/// here: the answers find the switch, not the node's own stack.
#[test]
fn the_switch_masquerades() {
    podswitch_testkit::require_tap!();
    let world = World::new("masquerade");
    let World { client, pods, node, .. } = &world;
    world.state([true, true]);
    let flag = format!("{},{}", NODE[0], NODE[1]);
    let switch = world.start(&["--masquerade", &flag, "--cluster-cidr", "172.16.0.0/12"]);
    switch.says("ready");
    for f in 0..2 {
        let listen = |ns: &NetNs, address: &str| {
            let address = ip(address);
            ns.enter(|| TcpListener::bind((address, 9000))).unwrap().expect("bound")
        };
        let outside = listen(client, CLIENT[f]);
        let mut stream = connect(&pods[0], CLIENT[f], 9000).expect("connected");
        let (mut served, peer) = outside.accept().expect("somebody calls");
        assert_eq!(peer.ip(), ip(NODE[f]));
        assert!(peer.port() >= 44_000, "{peer}");
        served.write_all(b"welcome").expect("written");
        stream.read_exact(&mut [0; 7]).expect("an answer");
        // The node is of the cluster: it sees the pod.
        let inside = listen(node, NODE[f]);
        let _stream = connect(&pods[0], NODE[f], 9000).expect("connected");
        assert_eq!(inside.accept().expect("somebody calls").1.ip(), ip(PODS[0][f]));
    }
    assert_eq!(switch.stop(), Some(0));
}

/// The same by an uplink, to what is behind a router: nobody but the switch takes the answers, and each
/// comes once.
#[test]
fn the_switch_masquerades_by_its_uplink() {
    podswitch_testkit::require_tap!();
    let world = World::new("behind");
    let World { client, pods, node, .. } = &world;
    let behind = ["203.0.113.1", "2001:db8:ff::1"];
    let mut netlink = Netlink::open(client).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    netlink.set_up(lo).unwrap();
    for address in behind.map(ip) {
        netlink.add_address(lo, address.into()).unwrap();
        netlink.wait_until_local(address).unwrap();
    }
    world.state([true, true]);
    let flag = format!("{},{}", NODE[0], NODE[1]);
    let routes = [("203.0.113.0/24", 0), ("2001:db8:ff::/64", 1)]
        .map(|(range, f)| format!("{range}={}", CLIENT[f]));
    let switch = world.start(
        &[
            ["--masquerade", &flag, "--cluster-cidr", "172.16.0.0/12", "--uplink", "eth0"],
            ["--route", &routes[0], "--route", &routes[1], "--json", "--stats=0.3"],
        ]
        .concat(),
    );
    switch.event("ready");
    for address in behind {
        let listener = client.enter(|| TcpListener::bind((ip(address), 9000))).unwrap().unwrap();
        let echo = client.enter(|| UdpSocket::bind((ip(address), 9000))).unwrap().unwrap();
        for _ in 0..20 {
            let mut stream = connect(&pods[0], address, 9000).expect("connected");
            let (mut served, peer) = listener.accept().expect("somebody calls");
            assert!(NODE.map(ip).contains(&peer.ip()), "{peer}");
            let data = vec![7; 100_000];
            served.write_all(&data).expect("written");
            drop(served);
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("all of it");
            assert!(got == data);

            let any = if ip(address).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = pods[0].enter(|| UdpSocket::bind(any)).unwrap().unwrap();
            socket.send_to(b"?", (ip(address), 9000)).unwrap();
            let (_, peer) = echo.recv_from(&mut [0; 9]).unwrap();
            echo.send_to(b"!", peer).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.recv(&mut [0; 9]).expect("an answer");
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            assert!(socket.recv(&mut [0; 9]).is_err(), "it is answered twice");
        }
    }
    assert_eq!(resets(node), "0", "the node's stack keeps out of it");
    assert_eq!(switch.stop(), Some(0));
}

/// The status that a load balancer is answered.
fn health(from: &NetNs, to: &str) -> String {
    let mut stream = connect(from, to, 30_500).expect("somebody listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.split(' ').nth(1).expect("a status").to_owned()
}

#[test]
fn health_checks_and_a_killed_switch() {
    podswitch_testkit::require_tap!();
    let world = World::new("health");
    let World { node, client, .. } = &world;
    sysctl::set(node, "net/ipv4/ip_local_reserved_ports", "8080,9000-9010").unwrap();
    let settings = || {
        [
            "net/ipv4/ip_local_reserved_ports",
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
            "net/ipv4/conf/all/rp_filter",
        ]
        .map(|key| sysctl::get(node, key).unwrap())
    };
    let before = (rules(node), settings());
    world.state([false, true]);
    let switch = world.start(&["--masquerade", "off"]);
    switch.says("ready");
    world.serve();
    for address in NODE {
        assert_eq!(health(client, address), "200");
        assert_eq!(ask(client, address, 30_081).0, 1);
    }
    world.state([false, false]);
    switch.says("applied");
    assert_eq!(health(client, NODE[0]), "503");
    drop(switch);
    // The node's kernel is alone now: nobody is at the port.
    assert!(connect(client, NODE[0], 30_080).is_err());
    world.state([true, true]);
    let switch = world.start(&["--masquerade", "off"]);
    switch.says("ready");
    assert_eq!(health(client, NODE[1]), "200");
    ask(client, NODE[0], 30_080);
    ask(node, NODE[0], 30_080);
    assert_eq!(switch.stop(), Some(0));
    // As it was before the run that was killed.
    assert_eq!((rules(node), settings()), before);
}
