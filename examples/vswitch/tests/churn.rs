//! A day of churn, compressed: object after object changes, interfaces and addresses flap, the switch is killed and
//! started again. At the end the node is as one that was started just now with the same objects: the same verdicts, the
//! same addresses, routes and rules, no more descriptors and memory. A clean stop leaves the node as it was at first.
//!
//! `PODSWITCH_CHURN_CHANGES` sets how many objects change; 100,000 take some minutes.

mod churn_model;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_testkit::rig::random::Rng;
use podswitch_vswitch_testkit::Folder;
use podswitch_vswitch_testkit::running::Running;

use churn_model::{Model, PODS, pod_address};

/// Objects that change, unless the environment says otherwise.
const CHANGES: usize = 1_000;
/// How many change at a time.
const AT_ONCE: usize = 100;
const NODE: [&str; 2] = ["192.0.2.1/24", "2001:db8:1::1/64"];
const PORTS: [u16; 2] = [53, 80];

/// A node with a NIC and pods, each in a namespace of its own.
struct World {
    folder: Folder,
    node: NetNs,
    /// Behind the NIC.
    _beyond: NetNs,
    pods: Vec<NetNs>,
}

impl World {
    fn new() -> Self {
        let make = || NetNs::anonymous().expect("a namespace");
        let (node, beyond) = (make(), make());
        sysctl::set(&node, "net/ipv6/conf/default/dad_transmits", "0").unwrap();
        let mut netlink = Netlink::open(&node).unwrap();
        let lo = netlink.link("lo").unwrap().index;
        netlink.set_up(lo).unwrap();
        netlink.add_veth(&LinkSpec::new("u0").up(), &LinkSpec::new("u0").up(), &beyond).unwrap();
        let world = Self {
            folder: Folder::new(),
            node,
            _beyond: beyond,
            pods: (0..PODS).map(|_| make()).collect(),
        };
        world.restore_addresses();
        world
    }

    fn restore_addresses(&self) {
        let mut netlink = Netlink::open(&self.node).unwrap();
        let index = netlink.link("u0").unwrap().index;
        for address in NODE {
            // It may be there.
            let _ = netlink.add_address(index, address.parse().unwrap());
        }
    }

    /// Puts the model's state in place at one stroke.
    fn write(&self, model: &Model) {
        fs::write(self.folder.path("next"), model.manifests(&self.pods)).unwrap();
        fs::create_dir_all(self.folder.path("state")).unwrap();
        fs::rename(self.folder.path("next"), self.folder.path("state/state.json")).unwrap();
    }

    fn start(&self, model: &Model) -> Running {
        let (manifests, netns) =
            (self.folder.text("state"), self.node.path().display().to_string());
        let arguments = ["--node", &model.node, "--manifests", &manifests, "--node-netns", &netns];
        let more = ["--service-cidr", "10.96.0.0/12", "--stats", "1", "--json"];
        let switch = Running::start(&[&arguments[..], &more].concat());
        switch.event("ready");
        switch
    }

    /// Somebody takes something from the node or a pod. What cannot be taken at the moment stays.
    fn flap(&self, rng: &mut Rng) {
        let pod = &self.pods[rng.below(PODS)];
        let index = |ns: &NetNs, name: &str| {
            Netlink::open(ns).unwrap().find_link(name).unwrap().map(|link| link.index)
        };
        let with = |ns: &NetNs, name: &str, take: &dyn Fn(&mut Netlink, u32)| {
            if let Some(index) = index(ns, name) {
                take(&mut Netlink::open(ns).unwrap(), index);
            }
        };
        let down_up = |netlink: &mut Netlink, index: u32| {
            let _ = netlink.set_down(index);
            let _ = netlink.set_up(index);
        };
        let flush = |netlink: &mut Netlink, index: u32| {
            for address in netlink.addresses().unwrap().into_iter().filter(|a| a.link == index) {
                let _ = netlink.delete_address(index, address.address);
            }
        };
        match rng.below(12) {
            0 => with(pod, "eth0", &down_up),
            1 => with(pod, "eth0", &flush),
            2 => with(pod, "eth0", &|netlink, index| drop(netlink.delete_link(index))),
            3 => with(pod, "eth0", &|netlink, index| {
                let _ = netlink.set_down(index);
                let _ = netlink.rename(index, "x0");
                let _ = netlink.set_up(index);
            }),
            4 => with(pod, "eth0", &|netlink, index| drop(netlink.set_mtu(index, 1200))),
            5 => with(&self.node, "podswitch0", &down_up),
            6 => with(&self.node, "podswitch0", &|netlink, index| {
                drop(netlink.delete_link(index));
            }),
            7 => with(&self.node, "u0", &down_up),
            8 => with(&self.node, "u0", &flush),
            9 => with(&self.node, "u0", &|netlink, index| {
                let _ = netlink.set_mtu(index, 1400);
                let _ = netlink.set_mtu(index, 1500);
            }),
            10 => {
                let mut netlink = Netlink::open(&self.node).unwrap();
                for rule in netlink.rules().unwrap().into_iter().filter(|r| r.priority < 100) {
                    let _ = netlink.delete_rule(&rule);
                }
            }
            _ => {
                for (key, value) in [
                    ("net/ipv4/ip_forward", "0"),
                    ("net/ipv6/conf/all/forwarding", "0"),
                    ("net/ipv4/ip_local_reserved_ports", ""),
                ] {
                    sysctl::set(&self.node, key, value).unwrap();
                }
            }
        }
        self.restore_addresses();
    }

    /// Interfaces, addresses, routes, rules and settings of the node and its pods, as words.
    fn found(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let pods = self.pods.iter().enumerate().map(|(n, ns)| (format!("pod {n}"), ns));
        for (name, ns) in pods.chain([("node".to_owned(), &self.node)]) {
            all.extend(found(ns).into_iter().map(|what| format!("{name}: {what}")));
        }
        all
    }

    /// Which pods' datagrams reach which, by address, port and Service.
    fn verdicts(&self, model: &Model) -> Vec<String> {
        let mut verdicts = Vec::new();
        for (to, server) in self.pods.iter().enumerate() {
            for v6 in [false, true] {
                for port in PORTS {
                    let address = pod_address(to, v6);
                    let Ok(socket) = server.enter(|| UdpSocket::bind((address, port))).unwrap()
                    else {
                        verdicts.push(format!("{address} is not there"));
                        continue;
                    };
                    socket.set_read_timeout(Some(Duration::from_millis(40))).unwrap();
                    for from in (0..PODS).filter(|from| *from != to) {
                        let passes = arrives(&self.pods[from], (address, port), &[&socket]);
                        verdicts.push(format!("{from} to {address} {port}: {passes}"));
                    }
                }
            }
        }
        let servers: Vec<UdpSocket> = (0..PODS)
            .filter_map(|n| {
                self.pods[n].enter(|| UdpSocket::bind((pod_address(n, false), 8080))).unwrap().ok()
            })
            .collect();
        servers.iter().for_each(|s| s.set_read_timeout(Some(Duration::from_millis(15))).unwrap());
        let servers: Vec<&UdpSocket> = servers.iter().collect();
        for address in model.cluster_ips() {
            let passes = arrives(&self.pods[0], (address, 80), &servers);
            verdicts.push(format!("Service {address}: {passes}"));
        }
        verdicts
    }
}

/// Whether one of a few datagrams arrives at one of the servers.
fn arrives(from: &NetNs, to: (IpAddr, u16), servers: &[&UdpSocket]) -> bool {
    let any = if to.0.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    (0..3).any(|_| {
        let _ = client.send_to(b"?", to);
        servers.iter().any(|server| server.recv_from(&mut [0; 8]).is_ok())
    })
}

/// Without what is random (MAC addresses of the NIC, the kernel's own link-local addresses).
fn found(ns: &NetNs) -> BTreeSet<String> {
    let mut netlink = Netlink::open(ns).unwrap();
    let mut found = BTreeSet::new();
    for link in netlink.links().unwrap() {
        let mac = link.mac.filter(|_| link.name != "u0" && !link.name.starts_with("psu"));
        found.insert(format!("{} up={} mtu={} {mac:?}", link.name, link.is_up, link.mtu));
    }
    let addresses = netlink.addresses().unwrap().into_iter().map(|a| a.address.to_string());
    found.extend(addresses.filter(|a| !a.starts_with("fe80:")));
    let routes = netlink.routes().unwrap().into_iter().filter(|r| r.gateway.is_some());
    found.extend(routes.map(|r| {
        format!("{} via {:?} from {:?} in {}", r.destination, r.gateway, r.source, r.table)
    }));
    found.extend(netlink.rules().unwrap().iter().map(ToString::to_string));
    for key in
        ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/ip_local_reserved_ports"]
    {
        found.insert(format!("{key} = {}", sysctl::get(ns, key).unwrap()));
    }
    found
}

/// Descriptors, and resident memory in KiB.
fn held(switch: &Running) -> (usize, usize) {
    let status = fs::read_to_string(format!("/proc/{}/status", switch.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss = line.trim().split(' ').next().unwrap().parse().unwrap();
    (fs::read_dir(format!("/proc/{}/fd", switch.id())).unwrap().count(), rss)
}

#[test]
fn a_day_of_churn_leaves_nothing_behind() {
    podswitch_testkit::require_tap!();
    let set = std::env::var("PODSWITCH_CHURN_CHANGES");
    let changes = set.map_or(CHANGES, |n| n.parse().expect("PODSWITCH_CHURN_CHANGES is a number"));
    let mut rng = Rng::new(2026);
    let mut model = Model::new(&format!("churn-{}", std::process::id()));
    let world = World::new();
    let at_first = world.found();
    world.write(&model);
    let mut switch = world.start(&model);
    let rounds = changes.div_ceil(AT_ONCE);
    let mut kills = 0;
    for round in 0..rounds {
        (0..AT_ONCE).for_each(|_| model.change(&mut rng));
        if rng.chance(if rounds > 100 { 3 } else { 20 }) || round == rounds / 2 {
            kills += 1;
            drop(switch);
            world.flap(&mut rng);
            world.write(&model);
            switch = world.start(&model);
        } else {
            world.write(&model);
            switch.event("applied");
        }
        world.flap(&mut rng);
    }
    // Everything that was taken is put back.
    thread::sleep(Duration::from_secs(8));
    let (verdicts, after) = (world.verdicts(&model), world.found());
    let stats = switch.next_event("stats");
    let after_churn = held(&switch);
    assert_eq!(switch.stop(), Some(0));
    let left = world.found();
    let differs: Vec<_> = left.symmetric_difference(&at_first).collect();
    assert!(differs.is_empty(), "a clean stop: {differs:#?}");
    assert!(NetNs::find(&format!("podswitch-{}", model.node)).unwrap().is_none());

    let fresh = World::new();
    fresh.write(&model);
    let switch = fresh.start(&model);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(verdicts, fresh.verdicts(&model), "the same verdicts");
    let allowed = verdicts.iter().filter(|verdict| verdict.ends_with("true")).count();
    assert!(allowed > 0 && allowed < verdicts.len(), "{verdicts:#?}");
    let started = fresh.found();
    let differs: Vec<_> = after.symmetric_difference(&started).collect();
    assert!(differs.is_empty(), "from a fresh start: {differs:#?}");
    let fresh_stats = switch.next_event("stats");
    assert_eq!(stats["pods"], fresh_stats["pods"]);
    let after_start = held(&switch);
    println!(
        "{} changes, {kills} kills: descriptors {} (fresh {}), memory {} KiB (fresh {} KiB), {} verdicts, {allowed} allowed",
        rounds * AT_ONCE,
        after_churn.0,
        after_start.0,
        after_churn.1,
        after_start.1,
        verdicts.len()
    );
    assert!(
        after_churn.0.abs_diff(after_start.0) <= 4,
        "descriptors: {after_churn:?}, {after_start:?}"
    );
    // The allocator keeps some of what a large state took.
    assert!(
        after_churn.1 <= after_start.1 * 2 + 32 * 1024,
        "memory: {after_churn:?}, {after_start:?}"
    );
    assert_eq!(switch.stop(), Some(0));
}
