//! The installed rules are read back, and real traffic is sent through them.

use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Output};
use std::time::Duration;

use netlink_packet_core::NlasIterator;
use podswitch_testkit::privilege::is_there;
use podswitch_wire::cidr::Cidr;

use super::contents::Contents;
use super::elements::SetChange;
use super::intervals::{Intervals, intervals};
use super::*;
use crate::netlink::{LinkSpec, Route};
use crate::sysctl;

fn cidrs(list: &[&str]) -> Vec<Cidr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn intervals_are_disjoint_and_complete() {
    let ranges = cidrs(&["10.0.0.0/24", "10.0.1.0/24", "10.0.0.128/25", "10.0.3.0/32", "fd00::/8"]);
    let v4 = |a: [u8; 4]| u128::from(u32::from_be_bytes(a));
    assert_eq!(
        intervals(&ranges, true),
        [(v4([10, 0, 0, 0]), v4([10, 0, 1, 255])), (v4([10, 0, 3, 0]), v4([10, 0, 3, 0]))]
    );
    assert_eq!(intervals(&ranges, false), [(0xfd << 120, (0xfe << 120) - 1)]);
    assert_eq!(intervals(&cidrs(&["0.0.0.0/0", "1.2.3.4/32"]), true), [(0, u32::MAX.into())]);
    assert_eq!(intervals(&cidrs(&["::/0"]), false), [(0, u128::MAX)]);
    assert_eq!(intervals(&[], true), []);
}

fn tables(ns: &NetNs, family: Family) -> usize {
    Connection::open(ns)
        .unwrap()
        .list(Kind::GetTable, family, |_| {}, || "list".into())
        .unwrap()
        .len()
}

/// The names of each rule's expressions.
fn rules(ns: &NetNs, family: Family, table: &str) -> Vec<Vec<String>> {
    let fill = |a: &mut message::Attributes<'_>| {
        a.text(1, table);
    };
    let list = Connection::open(ns).unwrap().list(Kind::GetRule, family, fill, || "list".into());
    list.unwrap().iter().map(|rule| expression_names(rule)).collect()
}

fn expression_names(rule: &[u8]) -> Vec<String> {
    let find = |data: &[u8], kind: u16| {
        NlasIterator::new(data)
            .map(Result::unwrap)
            .find(|nla| nla.kind() == kind)
            .map(|nla| nla.value().to_vec())
    };
    NlasIterator::new(&find(rule, 4).unwrap()[..])
        .map(|element| {
            let name = find(element.unwrap().value(), 1).unwrap();
            String::from_utf8(name).unwrap().trim_end_matches('\0').to_owned()
        })
        .collect()
}

fn dual_stack() -> MasqueradeConfig {
    MasqueradeConfig {
        pods: cidrs(&["10.7.0.0/24", "fd07::/64"]),
        cluster: cidrs(&["10.7.0.0/16", "fd07::/48", "192.0.2.128/25"]),
        ..MasqueradeConfig::default()
    }
}

#[test]
fn masquerade_is_installed_replaced_and_removed() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    let mut masquerade = Masquerade::install(&ns, &dual_stack()).unwrap();
    let wanted = ["meta", "cmp", "meta", "cmp", "payload", "lookup", "payload", "lookup", "masq"];
    assert_eq!(rules(&ns, Family::Inet, "podswitch"), [wanted, wanted]);
    // Another running process owns the table.
    let error = Masquerade::install(&ns, &dual_stack()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
    let only_v6 = MasqueradeConfig { pods: cidrs(&["fd07::/64"]), ..dual_stack() };
    masquerade.update(&only_v6).unwrap();
    masquerade.update(&only_v6).unwrap();
    assert_eq!(rules(&ns, Family::Inet, "podswitch"), [wanted]);
    // Thousands of ranges.
    let many =
        (0..20_000u32).map(|i| Cidr::host(IpAddr::from((0x1400_0000 + 2 * i).to_be_bytes())));
    masquerade.update(&MasqueradeConfig { cluster: many.collect(), ..dual_stack() }).unwrap();
    assert_eq!(tables(&ns, Family::Inet), 1);
    drop(masquerade);
    assert_eq!(tables(&ns, Family::Inet), 0);
    drop(Masquerade::install(&ns, &dual_stack()).unwrap());
    assert_eq!(tables(&ns, Family::Inet), 0);
}

#[test]
fn tables_of_an_earlier_run_are_replaced() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    // Without an owner, as on an old kernel: the table stays when the connection is closed.
    Masquerade::install_without_owner(&ns, &dual_stack()).unwrap().leave_in_force().unwrap();
    assert_eq!(tables(&ns, Family::Inet), 1);
    let masquerade = Masquerade::install(&ns, &dual_stack()).unwrap();
    assert_eq!(rules(&ns, Family::Inet, "podswitch").len(), 2);
    drop(masquerade);
    assert_eq!(tables(&ns, Family::Inet), 0);
    // With an owner, closing is enough.
    let mut connection = Connection::open(&ns).unwrap();
    let mut transaction = Transaction::new(Family::Inet);
    transaction.add(Kind::NewTable, |a| {
        a.text(1, "podswitch").number(2, NFT_TABLE_F_OWNER);
    });
    connection.commit(transaction, || "own a table".into()).unwrap();
    assert_eq!(tables(&ns, Family::Inet), 1);
    drop(connection);
    assert_eq!(tables(&ns, Family::Inet), 0);
}

/// A line of hosts: pod, node, outside. Returns the pod's and the outside's namespaces.
fn line(node: &NetNs) -> (NetNs, NetNs) {
    let (pod, outside) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let mut netlink = Netlink::open(node).unwrap();
    for (name, far, near_v4, near_v6) in [
        ("topod", &pod, "10.7.0.1/24", "fd07::1/64"),
        ("uplink", &outside, "192.0.2.1/24", "2001:db8::1/64"),
    ] {
        let index =
            netlink.add_veth(&LinkSpec::new(name).up(), &LinkSpec::new("eth0").up(), far).unwrap();
        netlink.add_address(index, near_v4.parse().unwrap()).unwrap();
        netlink.add_address(index, near_v6.parse().unwrap()).unwrap();
    }
    for (ns, v4, v6, gateways) in [
        (&pod, "10.7.0.2/24", "fd07::2/64", Some(("10.7.0.1", "fd07::1"))),
        (&outside, "192.0.2.9/24", "2001:db8::9/64", None),
    ] {
        let mut netlink = Netlink::open(ns).unwrap();
        let eth0 = netlink.link("eth0").unwrap().index;
        netlink.add_address(eth0, v4.parse().unwrap()).unwrap();
        netlink.add_address(eth0, v6.parse().unwrap()).unwrap();
        // An address of the outside that is configured as one of the cluster.
        if gateways.is_none() {
            netlink.add_address(eth0, "192.0.2.200/24".parse().unwrap()).unwrap();
            for (to, via) in [("10.7.0.0/24", "192.0.2.1"), ("fd07::/64", "2001:db8::1")] {
                let back = Route::to(to.parse().unwrap()).via(via.parse().unwrap()).link(eth0);
                netlink.add_route(&back).unwrap();
            }
        }
        for (to, via) in gateways.iter().flat_map(|(a, b)| [("0.0.0.0/0", a), ("::/0", b)]) {
            let route = Route::to(to.parse().unwrap()).via(via.parse().unwrap()).link(eth0);
            netlink.add_route(&route).unwrap();
        }
    }
    let forward = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
    sysctl::set_all(node, &forward).unwrap();
    (pod, outside)
}

/// How often a datagram is sent again, a tenth of a second apart, before it counts as lost. New
/// links need some time before they forward anything.
const PATIENT: usize = 50;
const BRIEF: usize = 3;

/// Sends a datagram from `from` to `to`, port 7, and returns the source that the receiver saw,
/// after a reply has returned.
fn exchange(line: &(NetNs, NetNs), from: &str, to: &str, attempts: usize) -> Option<IpAddr> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let receiver = line.1.enter(|| UdpSocket::bind((to, 7))).unwrap().unwrap();
    let sender = line.0.enter(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    sender.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..attempts {
        sender.send_to(b"out", (to, 7)).unwrap();
        if let Ok((_, source)) = receiver.recv_from(&mut [0; 8]) {
            receiver.send_to(b"back", source).unwrap();
            assert_eq!(sender.recv(&mut [0; 8]).unwrap(), 4);
            return Some(source.ip());
        }
    }
    None
}

#[test]
fn only_off_cluster_traffic_is_masqueraded() {
    podswitch_testkit::require_privilege!();
    let node = NetNs::anonymous().unwrap();
    let line = line(&node);
    let seen = |from, to| exchange(&line, from, to, PATIENT).map(|a| a.to_string());
    assert_eq!(seen("10.7.0.2", "192.0.2.9").as_deref(), Some("10.7.0.2"));
    let mut masquerade = Masquerade::install(&node, &dual_stack()).unwrap();
    assert_eq!(seen("10.7.0.2", "192.0.2.9").as_deref(), Some("192.0.2.1"));
    assert_eq!(seen("fd07::2", "2001:db8::9").as_deref(), Some("2001:db8::1"));
    // To the cluster: the pod's own address is kept.
    assert_eq!(seen("10.7.0.2", "192.0.2.200").as_deref(), Some("10.7.0.2"));
    // Out of the switch's port: the pod's own address is kept.
    let config = MasqueradeConfig { host_interface: "uplink".into(), ..dual_stack() };
    masquerade.update(&config).unwrap();
    assert_eq!(seen("10.7.0.2", "192.0.2.9").as_deref(), Some("10.7.0.2"));
    // Not from a pod.
    let config = MasqueradeConfig { pods: cidrs(&["10.99.0.0/16"]), ..dual_stack() };
    masquerade.update(&config).unwrap();
    assert_eq!(seen("10.7.0.2", "192.0.2.9").as_deref(), Some("10.7.0.2"));
    drop(masquerade);
    assert_eq!(seen("10.7.0.2", "192.0.2.9").as_deref(), Some("10.7.0.2"));
}

fn front(address: &str, protocol: u8, port: u16) -> L4Address {
    L4Address { address: address.parse().unwrap(), protocol, port }
}

fn to(ranges: &[&str]) -> Ingress {
    Ingress { to: cidrs(ranges), ..Ingress::default() }
}

fn from(ranges: &[&str]) -> Ingress {
    Ingress { from: cidrs(ranges), ..Ingress::default() }
}

fn between(from: &str, to: &str) -> Ingress {
    let between = Between { from: cidrs(&[from]), to: cidrs(&[to]) };
    Ingress { between, ..Ingress::default() }
}

fn answers(from: &[&str], to: &[&str], first_port: u16) -> Ingress {
    let answers = Between { from: cidrs(from), to: cidrs(to) };
    Ingress { answers, first_port, ..Ingress::default() }
}

fn service_addresses(service_addresses: &[L4Address]) -> Ingress {
    Ingress { service_addresses: service_addresses.to_vec(), ..Ingress::default() }
}

#[test]
fn ingress_drops_the_configured_packets() {
    podswitch_testkit::require_privilege!();
    let node = NetNs::anonymous().unwrap();
    let line = line(&node);
    let patience = |wanted| if wanted { PATIENT } else { BRIEF };
    let v4 = |wanted| exchange(&line, "10.7.0.2", "192.0.2.9", patience(wanted)).is_some();
    let v6 = |wanted| exchange(&line, "fd07::2", "2001:db8::9", patience(wanted)).is_some();
    let udp_to = |ports: &[u16]| Ingress { udp_to: ports.to_vec(), ..Ingress::default() };
    let (senders, receivers) =
        (["10.7.0.0/30", "fd07::2/127"], ["192.0.2.9/32", "2001:db8::9/128"]);
    for (drops, v4_passes, v6_passes, count) in [
        (Ingress::default(), true, true, 0),
        (udp_to(&[8]), true, true, 1),
        (udp_to(&[8, 7]), false, false, 2),
        (to(&["192.0.2.0/28"]), false, true, 1),
        (to(&["192.0.2.0/29", "192.0.2.9/32", "2001:db8::/125"]), false, true, 2),
        (to(&["2001:db8::/125"]), true, true, 1),
        (to(&["2001:db8::8/125"]), true, false, 1),
        (from(&["10.7.0.0/30"]), false, true, 1),
        (from(&["10.9.0.0/16", "fd07::2/127", "fd08::/16"]), true, false, 2),
        (between("10.7.0.0/30", "192.0.2.0/28"), false, true, 1),
        (between("10.7.0.0/30", "192.0.2.0/29"), true, true, 1),
        (between("10.7.0.4/30", "192.0.2.0/28"), true, true, 1),
        (between("fd07::2/127", "2001:db8::8/125"), true, false, 1),
        (between("10.7.0.0/30", "2001:db8::8/125"), true, true, 0),
        // The receiver's port is 7.
        (answers(&senders, &receivers, 7), false, false, 6),
        (answers(&senders, &receivers[..1], 6), false, true, 3),
        (answers(&senders[1..], &receivers, 1), true, false, 3),
        (answers(&senders, &receivers, 8), true, true, 6),
        (answers(&["10.7.0.4/30"], &receivers, 7), true, true, 3),
        (
            service_addresses(&[front("192.0.2.9", 17, 7), front("2001:db8::9", 17, 8)]),
            false,
            true,
            2,
        ),
        (
            service_addresses(&[front("192.0.2.9", 6, 7), front("2001:db8::9", 17, 7)]),
            true,
            false,
            2,
        ),
        (service_addresses(&[front("192.0.2.8", 17, 7)]), true, true, 1),
    ] {
        IngressDrop::install(&node, "podswitch-in", "topod", &drops).unwrap();
        assert_eq!(v4(v4_passes), v4_passes, "{drops:?}");
        assert_eq!(v6(v6_passes), v6_passes, "{drops:?}");
        assert_eq!(rules(&node, Family::Netdev, "podswitch-in").len(), count, "{drops:?}");
        // The table stays although the connection that created it is closed.
        assert_eq!(tables(&node, Family::Netdev), 1);
    }
    IngressDrop::remove(&node, "podswitch-in").unwrap();
    IngressDrop::remove(&node, "podswitch-in").unwrap();
    assert!(v4(true) && v6(true));
    let error =
        IngressDrop::install(&node, "podswitch-in", "nowhere", &Ingress::default()).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_eq!(tables(&node, Family::Netdev), 0);
}

#[test]
fn kube_proxy_is_found_by_its_tables_and_chains() {
    podswitch_testkit::require_privilege!();
    for (table, chain, found) in [
        ("kube-proxy", "services", Some(crate::KubeProxy::Nftables)),
        ("nat", "KUBE-SERVICES", Some(crate::KubeProxy::Iptables)),
        ("nat", "PREROUTING", None),
        ("filter", "KUBE-FIREWALL", None),
    ] {
        for family in [Family::Ipv4, Family::Ipv6] {
            let ns = NetNs::anonymous().unwrap();
            let mut transaction = Transaction::new(family);
            transaction.add(Kind::NewTable, |a| {
                a.text(1, table);
            });
            transaction.add(Kind::NewChain, |a| {
                a.text(1, table).text(3, chain);
            });
            let what = || "make a table".to_owned();
            Connection::open(&ns).unwrap().commit(transaction, what).unwrap();
            assert_eq!(crate::KubeProxy::detect(&ns).unwrap(), found, "{table} {chain} {family:?}");
        }
    }
    assert_eq!(crate::KubeProxy::detect(&NetNs::anonymous().unwrap()).unwrap(), None);
}

/// Runs the `nft` program in a namespace. `None`: it is not installed.
fn nft(ns: &NetNs, command: &str) -> Option<Output> {
    let run = || Command::new("nft").args(command.split(' ')).output();
    ns.enter(run).unwrap().ok()
}

/// Checks that other programs can change the installed table, and that each change is noticed.
fn changes_are_noticed(ns: &NetNs, table: &str, set: &str, mut is_intact: impl FnMut() -> bool) {
    let nft = |command: String| {
        let output = nft(ns, &command).expect("it is there");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    assert!(is_intact());
    // Tables of others are not checked.
    nft("add table inet other".into());
    nft("add set inet other s { type ipv4_addr; }".into());
    assert!(is_intact());
    let changes = [
        format!("flush set {table} {set}"),
        format!("add element {table} {set} {{ 198.51.100.0/24 }}"),
        format!("delete element {table} {set} {{ 10.7.0.0/24 }}"),
        format!("flush table {table}"),
        format!("delete table {table}"),
    ];
    for change in changes {
        nft(change.clone());
        assert!(!is_intact(), "{change}");
        assert!(is_intact(), "{change}: it was restored");
    }
}

/// Includes set elements, because a flushed set matches nothing.
#[test]
fn changes_by_others_are_noticed_and_restored() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    let there = nft(&ns, "list tables").is_some();
    if !is_there("changes by the nft program", "nft (Debian: nftables)", there) {
        return;
    }
    // The table of an interface, which no process owns.
    let mut netlink = Netlink::open(&ns).unwrap();
    let (near, far) = (LinkSpec::new("near").up(), LinkSpec::new("far").up());
    netlink.add_veth(&near, &far, &ns).unwrap();
    let drops = between("10.7.0.0/24", "10.8.0.0/24");
    let install = || IngressDrop::install(&ns, "drops", "near", &drops).unwrap();
    let mut installed = install();
    changes_are_noticed(&ns, "netdev drops", "between_from4", || {
        let is_intact = installed.is_intact().unwrap();
        if !is_intact {
            installed = install();
        }
        is_intact
    });
    // Masquerading on a kernel where tables have no owners.
    let config = dual_stack();
    let mut masquerade = Masquerade::install_without_owner(&ns, &config).unwrap();
    let repair = |masquerade: &mut Masquerade| !masquerade.repair().unwrap();
    changes_are_noticed(&ns, "inet podswitch", "pods4", || repair(&mut masquerade));
    drop(masquerade);
    // On kernels with owners, nobody else can change them.
    let mut masquerade = Masquerade::install(&ns, &config).unwrap();
    if masquerade.is_owned() {
        let refused = nft(&ns, "flush set inet podswitch pods4").unwrap();
        assert!(!refused.status.success());
    }
    assert!(repair(&mut masquerade));
}

/// The handle of a table, which another table of the same name does not have.
fn handle(ns: &NetNs, name: &str) -> Vec<u8> {
    const HANDLE: u16 = 4;
    let mut connection = Connection::open(ns).unwrap();
    let list = connection.list(Kind::GetTable, Family::Inet, |_| {}, || "list".into()).unwrap();
    let table = list.iter().find(|table| text(table, 1).as_deref() == Some(name)).unwrap();
    let mut attributes = NlasIterator::new(&table[..]).flatten();
    attributes.find(|nla| nla.kind() == HANDLE).unwrap().value().to_vec()
}

/// Everything in a table.
fn contents(ns: &NetNs, table: &str) -> Contents {
    Contents::read(&mut Connection::open(ns).unwrap(), Family::Inet, table).unwrap()
}

/// A deterministic sequence of changes: nested, adjacent and single ranges, of both families.
fn range(number: u32) -> Cidr {
    let (block, prefix) = (number % 16, [32, 24, 25, 22][number as usize % 4]);
    match number % 3 {
        0 => {
            let mask = u16::MAX << (24 - prefix.min(24));
            let third = (block as u16 & mask) as u8;
            let last = if prefix == 32 { number as u8 } else { 0 };
            Cidr::new([10, 9, third, last].into(), prefix).unwrap()
        }
        1 => Cidr::host([0xfd09, 0, 0, 0, 0, 0, 0, block as u16].into()),
        _ => Cidr::new([0xfd09, 0, 0, block as u16, 0, 0, 0, 0].into(), 64).unwrap(),
    }
}

#[test]
fn single_ranges_are_changed_in_place() {
    podswitch_testkit::require_privilege!();
    let (ns, whole) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    for owned in [true, false] {
        let mut config = dual_stack();
        let install = |ns| match owned {
            true => Masquerade::install(ns, &dual_stack()).unwrap(),
            false => Masquerade::install_without_owner(ns, &dual_stack()).unwrap(),
        };
        let mut masquerade = install(&ns);
        let table = handle(&ns, "podswitch");
        let mut seed = 1_u32;
        for round in 0..200 {
            let mut change = RangeChange::default();
            for _ in 0..1 + round % 3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let range = range(seed >> 8);
                if let Some(at) = config.cluster.iter().position(|r| *r == range) {
                    config.cluster.swap_remove(at);
                    change.removed.push(range);
                } else if !change.removed.contains(&range) {
                    config.cluster.push(range);
                    change.added.push(range);
                }
            }
            change.removed.retain(|range| !config.cluster.contains(range));
            change.added.retain(|range| config.cluster.contains(range));
            match round % 2 {
                0 => masquerade.change(&RangeChange::default(), &change).unwrap(),
                _ => masquerade.update(&config).unwrap(),
            }
            let now = contents(&ns, "podswitch");
            assert_eq!(handle(&ns, "podswitch"), table, "round {round}: it was replaced");
            let other = Masquerade::install(&whole, &config).unwrap();
            assert_eq!(now.sets, contents(&whole, "podswitch").sets, "round {round}");
            drop(other);
        }
        // What others change elsewhere is no change of this table, and what they change in it is.
        let other =
            Masquerade::install(&ns, &MasqueradeConfig { table: "other".into(), ..dual_stack() });
        assert!(!masquerade.repair().unwrap());
        drop(other);
        // A family without pods has neither rule nor sets.
        let of_pods = |removed: &[&str], added: &[&str]| RangeChange {
            removed: cidrs(removed),
            added: cidrs(added),
        };
        masquerade.change(&of_pods(&["10.7.0.0/24"], &[]), &RangeChange::default()).unwrap();
        assert_eq!(contents(&ns, "podswitch").rules.len(), 1);
        masquerade.change(&of_pods(&[], &["10.7.0.0/24"]), &RangeChange::default()).unwrap();
        assert_eq!(contents(&ns, "podswitch").rules.len(), 2);
    }
}

#[test]
fn a_failed_change_in_place_replaces_the_table() {
    podswitch_testkit::require_privilege!();
    let ns = NetNs::anonymous().unwrap();
    let mut masquerade = Masquerade::install_without_owner(&ns, &dual_stack()).unwrap();
    // Somebody removes what the next change would remove.
    let gone = Intervals::of(&cidrs(&["192.0.2.128/25"]), true);
    let change = gone.change_to(&Intervals::default());
    let mut connection = Connection::open(&ns).unwrap();
    let mut theirs = contents(&ns, "podswitch");
    theirs
        .change(&mut connection, vec![SetChange::of_intervals("cluster4".into(), change, true)])
        .unwrap();
    let change =
        RangeChange { removed: cidrs(&["192.0.2.128/25"]), added: cidrs(&["10.8.0.0/16"]) };
    masquerade.change(&RangeChange::default(), &change).unwrap();
    let wanted = MasqueradeConfig {
        cluster: cidrs(&["10.7.0.0/16", "fd07::/48", "10.8.0.0/16"]),
        ..dual_stack()
    };
    let whole = NetNs::anonymous().unwrap();
    let other = Masquerade::install(&whole, &wanted).unwrap();
    assert_eq!(contents(&ns, "podswitch").sets, contents(&whole, "podswitch").sets);
    drop(other);
    // Without a namespace's table at all, too.
    Masquerade::remove(&ns, "podswitch").unwrap();
    masquerade.update(&dual_stack()).unwrap();
    assert!(!masquerade.repair().unwrap());
}

#[test]
fn marks_are_changed_in_place() {
    podswitch_testkit::require_privilege!();
    let (ns, whole) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let config =
        |service_addresses: &[L4Address], servers: &[L4Address], sources: &[&str]| MarkingConfig {
            table: "marks".into(),
            host_interface: "podswitch0".into(),
            mark: 0x0800_0000,
            mtu: 1500,
            sources: sources.iter().map(|a| a.parse().unwrap()).collect(),
            service_addresses: service_addresses.to_vec(),
            servers: servers.to_vec(),
            server_mark: 0x1000_0000,
        };
    let (a, b, c) = (
        front("192.0.2.1", 6, 30_000),
        front("192.0.2.1", 17, 30_001),
        front("fd00::1", 6, 30_000),
    );
    let mut marking = Marking::install(&ns, &config(&[a], &[], &["192.0.2.1"])).unwrap();
    let table = handle(&ns, "marks");
    for (service_addresses, servers, sources) in [
        (&[a, b][..], &[][..], &["192.0.2.1"][..]),
        (&[b, c], &[a, c], &["192.0.2.1", "fd00::1"]),
        (&[], &[], &["192.0.2.2"]),
        (&[c], &[c], &[]),
    ] {
        let config = config(service_addresses, servers, sources);
        marking.update(&config).unwrap();
        let now = contents(&ns, "marks");
        assert_eq!(handle(&ns, "marks"), table, "it was replaced");
        let other = Marking::install(&whole, &config).unwrap();
        assert_eq!(now.sets, contents(&whole, "marks").sets);
        drop(other);
        assert!(!marking.repair().unwrap());
    }
    // The MTU is part of the rules.
    marking.update(&MarkingConfig { mtu: 1400, ..config(&[a], &[], &[]) }).unwrap();
    assert_ne!(handle(&ns, "marks"), table);
}
