//! Routers beside a node: flows to a network behind several of them, with real sockets.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use podswitch_linux::netlink::Route;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_vswitch_testkit::Folder;
use podswitch_vswitch_testkit::cluster::{
    Fabric, Limit, Node, PATIENCE, ip, namespace, node_address, put,
};

const PORT: u16 = 7777;
const ROUTERS: [u8; 2] = [101, 102];
/// Behind both routers.
const TARGETS: [&str; 2] = ["203.0.113.1", "2001:db8:ff::1"];
const FLOWS: usize = 40;

/// A namespace that is a router and what is behind it: says its number to whoever asks.
fn router(fabric: &Fabric, number: u8) -> NetNs {
    let ns = namespace();
    plug(fabric, &ns, number);
    let mut netlink = Netlink::open(&ns).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    for target in TARGETS.map(ip) {
        netlink.add_address(lo, target.into()).unwrap();
        netlink.wait_until_local(target).unwrap();
        let socket = ns.enter(|| UdpSocket::bind((target, PORT))).unwrap().expect("bound");
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                buffer[len] = number;
                let _ = socket.send_to(&buffer[..=len], from);
            }
        });
    }
    ns
}

fn plug(fabric: &Fabric, ns: &NetNs, number: u8) {
    fabric.plug(ns, &[false, true].map(|v6| node_address(number, v6)), None);
    let mut netlink = Netlink::open(ns).unwrap();
    let link = netlink.link("eth0").unwrap().index;
    for (range, v6) in [("10.1.0.0/24", false), ("fd00:1::/64", true)] {
        let route = Route::to(range.parse().unwrap()).via(node_address(1, v6)).link(link);
        netlink.add_route(&route).unwrap();
    }
}

/// One flow of a pod.
struct Flow {
    socket: UdpSocket,
    /// The questions that were answered.
    answered: HashSet<u32>,
}

impl Flow {
    fn ask(&self, question: u32) {
        let question = question.to_be_bytes();
        // What the network says of an earlier one is told here.
        if self.socket.send(&question).is_err() {
            let _ = self.socket.send(&question);
        }
    }

    /// The next answer: to which question, and by whom. Each question is answered once, however late.
    fn answer(&mut self) -> Option<(u32, u8)> {
        let mut buffer = [0; 16];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) => {
                    assert_eq!(len, 5, "a question and a router's number");
                    let question = u32::from_be_bytes(buffer[..4].try_into().unwrap());
                    assert!(self.answered.insert(question), "it is answered twice");
                    return Some((question, buffer[4]));
                }
                // What the network says.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(_) => return None,
            }
        }
    }
}

/// Flows of a pod, all to one address.
struct Flows {
    flows: Vec<Flow>,
    asked: u32,
}

impl Flows {
    fn new(from: &NetNs, target: IpAddr) -> Self {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let flow = |_| {
            let socket = from.enter(|| UdpSocket::bind(any)).unwrap().expect("bound");
            socket.connect(SocketAddr::new(target, PORT)).expect("connected");
            Flow { socket, answered: HashSet::new() }
        };
        Self { flows: (0..FLOWS).map(flow).collect(), asked: 0 }
    }

    /// Asks once by each: the router that answered.
    fn ask(&mut self) -> Vec<Option<u8>> {
        self.asked += 1;
        let question = self.asked;
        self.flows.iter().for_each(|flow| flow.ask(question));
        let mut patience = Duration::from_millis(300);
        let answer = |flow: &mut Flow| {
            flow.socket.set_read_timeout(Some(patience)).unwrap();
            while let Some((to, by)) = flow.answer() {
                if to == question {
                    return Some(by);
                }
            }
            // All were asked at once: one long wait is enough for the rest.
            patience = Duration::from_millis(10);
            None
        };
        let answers: Vec<_> = self.flows.iter_mut().map(answer).collect();
        for flow in &mut self.flows {
            flow.socket.set_nonblocking(true).unwrap();
            while flow.answer().is_some() {}
            flow.socket.set_nonblocking(false).unwrap();
        }
        answers
    }

    /// Asks until all are answered as wanted; those of `steady` never otherwise.
    fn until(&mut self, steady: &[Option<u8>], wanted: impl Fn(&[Option<u8>]) -> bool) {
        let limit = Limit::new(PATIENCE);
        loop {
            let answers = self.ask();
            for (at, (now, before)) in answers.iter().zip(steady).enumerate() {
                // One that is lost on an overloaded machine is no other way.
                let same = before.is_none() || now.is_none() || now == before;
                assert!(same, "flow {at} went from {before:?} to {now:?}");
            }
            if wanted(&answers) {
                return;
            }
            assert!(limit.left().is_some(), "{answers:?}");
        }
    }
}

fn equal_cost(more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false, true], &["tap"]);
    // As the nodes of a cluster are.
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        sysctl::set(&node.ns, setting, "1").unwrap();
    }
    // The kernel finds out soon who is gone.
    for family in ["ipv4", "ipv6"] {
        let setting = format!("net/{family}/neigh/eth0/base_reachable_time_ms");
        sysctl::set(&node.ns, &setting, "1000").unwrap();
    }
    let routers = ROUTERS.map(|number| router(&fabric, number));
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let [via4, via6] = [false, true].map(|v6| {
        let [a, b] = ROUTERS.map(|number| node_address(number, v6));
        format!("{}={a},{b}", ["203.0.113.0/24", "2001:db8:ff::/64"][usize::from(v6)])
    });
    let options = ["--uplink", "eth0", "--route", &via4, "--route", &via6];
    let switch = node.start(&folder, &[&options, more].concat());
    switch.event("ready");
    let mut flows = TARGETS.map(|target| Flows::new(&node.pods[0].ns, ip(target)));
    let all_by = |answers: &[Option<u8>], hops: &[u8]| {
        answers.iter().all(|answer| answer.is_some_and(|hop| hops.contains(&hop)))
    };
    let spread = flows.each_mut().map(|flows| {
        // Both are known first; until then all goes by one of them.
        flows.until(&[], |now| ROUTERS.iter().all(|hop| now.contains(&Some(*hop))));
        flows.until(&[], |now| all_by(now, &ROUTERS));
        let first = flows.ask();
        for hop in ROUTERS {
            let share = first.iter().filter(|answer| **answer == Some(hop)).count();
            assert!((8..=FLOWS - 8).contains(&share), "{share} of {FLOWS} by {hop}");
        }
        for _ in 0..3 {
            flows.until(&first, |now| now == first);
        }
        first
    });
    // The second router is gone: its flows move, the others stay.
    let mut netlink = Netlink::open(&routers[1]).unwrap();
    let link = netlink.link("eth0").unwrap().index;
    netlink.delete_link(link).unwrap();
    for (flows, spread) in flows.iter_mut().zip(&spread) {
        let steady: Vec<_> =
            spread.iter().map(|hop| hop.filter(|hop| *hop == ROUTERS[0])).collect();
        flows.until(&steady, |now| all_by(now, &ROUTERS[..1]));
    }
    // It is back: so are they.
    plug(&fabric, &routers[1], ROUTERS[1]);
    for (flows, spread) in flows.iter_mut().zip(&spread) {
        let steady: Vec<_> =
            spread.iter().map(|hop| hop.filter(|hop| *hop == ROUTERS[0])).collect();
        flows.until(&steady, |now| now == &spread[..]);
    }
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn flows_share_equal_routers_and_leave_one_that_is_gone() {
    equal_cost(&[]);
}

#[test]
fn flows_share_equal_routers_beside_a_tunnel_by_frames() {
    equal_cost(&["--underlay", "packet"]);
}
