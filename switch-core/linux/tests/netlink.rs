//! Namespaces and rtnetlink against the real kernel.

use podswitch_testkit::net;

use std::net::{IpAddr, TcpListener, UdpSocket};

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec, Route, Rule, Vxlan};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn at(text: &str) -> InterfaceAddress {
    text.parse().unwrap()
}

#[test]
fn anonymous_namespaces_differ_and_loopback_is_up() {
    podswitch_testkit::require_privilege!();
    let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    assert!(!a.is_same(&b));
    assert!(a.is_same(&a.clone()));
    assert!(NetNs::open(a.path()).unwrap().is_same(&a));
    let here = NetNs::current().unwrap();
    assert!(!a.is_same(&here));
    assert!(a.enter(|| NetNs::current().unwrap().is_same(&a)).unwrap());
    // The same port in both namespaces: the sockets do not conflict.
    let bind = |ns: &NetNs| ns.enter(|| TcpListener::bind("127.0.0.1:5000")).unwrap();
    let (_x, _y) = (bind(&a).unwrap(), bind(&b).unwrap());
    assert!(bind(&a).is_err());
}

#[test]
fn named_namespaces_are_found_and_removed() {
    podswitch_testkit::require_privilege!();
    let name = format!("podswitch-test-{}", std::process::id());
    let ns = NetNs::create(&name).unwrap();
    let _name = net::NameGuard(name.clone());
    assert!(NetNs::create(&name).unwrap_err().is_already_there());
    assert!(NetNs::find(&name).unwrap().unwrap().is_same(&ns));
    assert!(NetNs::find_or_create(&name).unwrap().is_same(&ns));
    assert!(NetNs::open(ns.path()).unwrap().is_same(&ns));
    let path = ns.path();
    drop(ns);
    assert!(!path.exists());
    assert!(NetNs::find(&name).unwrap().is_none());
    // Kept: it exists longer than its value.
    let kept = NetNs::find_or_create(&name).unwrap();
    kept.keep();
    drop(kept);
    assert!(NetNs::find(&name).unwrap().is_some());
    NetNs::remove(&name).unwrap();
    // A file without a mount remains after a reboot. (The folder of an unprivileged user was
    // removed with its last namespace.)
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(NetNs::find(&name).unwrap().is_none());
    drop(NetNs::create(&name).unwrap());
    assert!(!path.exists());
    assert!(NetNs::create("a/b").is_err());
    assert!(NetNs::open("/proc/self/ns/uts").is_err());
    assert!(NetNs::open("/dev/null").is_err());
}

#[test]
fn errors_name_object_and_operation() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&ns).unwrap();
    let error = netlink.link("nowhere").unwrap_err();
    assert!(error.is_not_found());
    assert!(error.to_string().starts_with("look up interface nowhere: "), "{error}");
    let error = netlink.add_route(&Route::to(cidr("10.0.0.0/8")).via(ip("10.9.9.9"))).unwrap_err();
    assert!(error.to_string().starts_with("add route 10.0.0.0/8 via 10.9.9.9: "), "{error}");
    // The kernel's own message is passed on.
    assert!(error.to_string().contains("invalid gateway"), "{error}");
    let panic = std::panic::catch_unwind(|| ns.enter(|| panic!("inside")));
    assert!(panic.is_err());
}

#[test]
fn veth_pair_carries_both_families() {
    podswitch_testkit::require_privilege!();
    let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let mut left = Netlink::open(&a).unwrap();
    let mut right = Netlink::open(&b).unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let index = left
        .add_veth(&LinkSpec::new("l").mtu(1400).up(), &LinkSpec::new("r").mac(mac).up(), &b)
        .unwrap();
    let (l, r) = (left.link("l").unwrap(), right.link("r").unwrap());
    assert_eq!((l.index, l.mtu, l.kind.as_deref()), (index, 1400, Some("veth")));
    assert_eq!((l.peer, r.peer), (Some(r.index), Some(l.index)));
    assert_eq!(r.mac, Some(mac));
    assert!(l.is_up && r.is_up && r.is_running);
    for (netlink, index, host) in [(&mut left, l.index, 1), (&mut right, r.index, 2)] {
        netlink.add_address(index, at(&format!("10.0.0.{host}/24"))).unwrap();
        netlink.add_address(index, at(&format!("fd00::{host}/64"))).unwrap();
        // Again: no-op.
        netlink.add_address(index, at(&format!("fd00::{host}/64"))).unwrap();
        netlink.wait_until_local(ip(&format!("10.0.0.{host}"))).unwrap();
        netlink.wait_until_local(ip(&format!("fd00::{host}"))).unwrap();
    }
    let error = left.wait_until_local(ip("fd00::2")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    let addresses = right.addresses().unwrap();
    let v6 = addresses.iter().find(|a| a.address == at("fd00::2/64")).unwrap();
    assert!(!v6.is_tentative);
    for (from, to) in [("10.0.0.1:0", "10.0.0.2:7000"), ("[fd00::1]:0", "[fd00::2]:7000")] {
        let receiver = b.enter(|| UdpSocket::bind(to)).unwrap().unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let sender = a.enter(|| UdpSocket::bind(from)).unwrap().unwrap();
        sender.send_to(b"hello", to).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
    }
    right.delete_address(r.index, at("10.0.0.2/24")).unwrap();
    assert!(right.delete_address(r.index, at("10.0.0.2/24")).unwrap_err().is_not_found());
    left.delete_link(index).unwrap();
    assert!(right.find_link("r").unwrap().is_none());
}

#[test]
fn links_are_changed_and_moved() {
    podswitch_testkit::require_privilege!();
    let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let mut netlink = Netlink::open(&a).unwrap();
    let bridge = netlink.add_bridge(&LinkSpec::new("br0").up()).unwrap();
    let veth = netlink.add_veth(&LinkSpec::new("p0"), &LinkSpec::new("p1"), &a).unwrap();
    netlink.set_master(veth, Some(bridge)).unwrap();
    assert_eq!(netlink.link("p0").unwrap().master, Some(bridge));
    netlink.set_master(veth, None).unwrap();
    assert_eq!(netlink.link("p0").unwrap().master, None);
    netlink.set_mtu(veth, 9000).unwrap();
    netlink.set_mac(veth, Mac([2, 1, 2, 3, 4, 5])).unwrap();
    netlink.rename(veth, "renamed").unwrap();
    netlink.set_up(veth).unwrap();
    let link = netlink.link("renamed").unwrap();
    assert_eq!((link.mtu, link.mac), (9000, Some(Mac([2, 1, 2, 3, 4, 5]))));
    assert!(link.is_up);
    netlink.set_down(veth).unwrap();
    assert!(!netlink.link("renamed").unwrap().is_up);
    netlink.set_netns(veth, &b).unwrap();
    assert!(netlink.find_link("renamed").unwrap().is_none());
    let names: Vec<_> = Netlink::open(&b).unwrap().links().unwrap();
    assert!(names.iter().any(|l| l.name == "renamed"));
    assert!(netlink.add_bridge(&LinkSpec::new("br0")).unwrap_err().is_already_there());
}

#[test]
fn routes_and_rules_round_trip() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&ns).unwrap();
    let link = netlink.add_veth(&LinkSpec::new("a").up(), &LinkSpec::new("b").up(), &ns).unwrap();
    netlink.add_address(link, at("10.1.0.1/32")).unwrap();
    netlink.add_address(link, at("fd01::1/128")).unwrap();
    let routes = [
        Route::to(cidr("169.254.1.1/32")).link(link),
        Route::to(cidr("0.0.0.0/0")).via(ip("169.254.1.1")).link(link).onlink(),
        Route::to(cidr("10.2.0.0/16"))
            .via(ip("169.254.1.1"))
            .link(link)
            .onlink()
            .source(ip("10.1.0.1"))
            .mtu(1400),
        Route::to(cidr("10.3.0.0/16")).via(ip("169.254.1.1")).link(link).onlink().table(7000),
        Route::to(cidr("::/0")).via(ip("fe80::1")).link(link).onlink().metric(77),
        Route::to(cidr("fd02::/64")).via(ip("fe80::1")).link(link).source(ip("fd01::1")).table(100),
    ];
    for route in &routes {
        netlink.add_route(route).unwrap();
        netlink.add_route(route).unwrap();
        let all = netlink.routes().unwrap();
        let same = |r: &&Route| {
            (r.destination, r.gateway, r.link, r.source, r.table, r.mtu)
                == (
                    route.destination,
                    route.gateway,
                    route.link,
                    route.source,
                    route.table,
                    route.mtu,
                )
        };
        assert_eq!(all.iter().filter(same).count(), 1, "{route}: {all:?}");
    }
    for route in &routes[1..] {
        netlink.delete_route(route).unwrap();
        assert!(netlink.delete_route(route).unwrap_err().is_not_found());
    }
    for is_ipv6 in [false, true] {
        let rule =
            Rule { is_ipv6, priority: 5, table: 7000, mark: Some((1, 0xff)), ..Rule::default() };
        netlink.add_rule(&rule).unwrap();
        netlink.add_rule(&rule).unwrap();
        netlink.delete_rule(&rule).unwrap();
        assert!(netlink.delete_rule(&rule).unwrap_err().is_not_found());
    }
}

#[test]
fn kernel_vxlan_interfaces_are_created() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&ns).unwrap();
    let vxlan = Vxlan {
        vni: 1,
        local: Some(ip("127.0.0.1")),
        remote: None,
        port: 8472,
        learning: false,
        link: None,
    };
    match netlink.add_vxlan(&LinkSpec::new("vx0").up(), &vxlan) {
        Err(error) if error.raw_os_error() == Some(95) => {
            podswitch_testkit::privilege::skip("VXLAN devices", "no VXLAN in this kernel");
        }
        result => {
            let index = result.unwrap();
            assert_eq!(netlink.link("vx0").unwrap().kind.as_deref(), Some("vxlan"));
            let mac = Mac([2, 0, 0, 0, 0, 9]);
            netlink.add_tunnel_entry(index, mac, ip("127.0.0.2")).unwrap();
            netlink.add_tunnel_entry(index, Mac::ZERO, ip("127.0.0.2")).unwrap();
            netlink.add_tunnel_entry(index, Mac::ZERO, ip("127.0.0.3")).unwrap();
            netlink.add_neighbour(index, ip("10.0.0.9"), mac).unwrap();
            netlink.add_neighbour(index, ip("fd00::9"), mac).unwrap();
            netlink.delete_neighbour(index, ip("10.0.0.9")).unwrap();
        }
    }
}

#[test]
fn settings_are_those_of_the_namespace() {
    podswitch_testkit::require_privilege!();
    let (a, b) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    sysctl::set(&a, "net/ipv4/ip_forward", "1").unwrap();
    sysctl::set(&b, "net/ipv4/ip_forward", "0").unwrap();
    assert_eq!(sysctl::get(&a, "net/ipv4/ip_forward").unwrap(), "1");
    assert_eq!(sysctl::get(&b, "net/ipv4/ip_forward").unwrap(), "0");
    assert!(sysctl::get(&a, "net/ipv4/no_such_thing").unwrap_err().is_not_found());
}
