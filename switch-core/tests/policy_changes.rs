//! Policy changes: no packet is evaluated with a mixture of two states (threat T-L7), and a cached
//! verdict equals a new evaluation (threat T-C2).

use podswitch_testkit::rig;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use podswitch_core::action::DropReason;
use podswitch_core::config::Config;
use podswitch_core::flow::connection::{Direction, Pinned};
use podswitch_core::id::PortId;
use podswitch_core::resolve::{Decision, Query, resolve};
use podswitch_core::snapshot::Snapshot;
use podswitch_policy::rule::{
    Labels, NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule, Selector,
};
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};
use proptest::prelude::*;
use rig::*;

fn of_label(key: &str, value: &str) -> Selector {
    Selector::of_labels(Labels::new([(key.into(), value.into())]))
}

fn peer(selector: Selector) -> Peer {
    Peer::Selectors { pods: Some(selector), namespaces: None }
}

fn policy(
    name: &str,
    pods: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/default/{name}").into(),
        namespace: "default".into(),
        name: name.into(),
        pods,
        ingress,
        egress,
    })
}

/// The rig's pods, each with its number as the label `n`, and pod 1 with an additional colour.
fn coloured(colour: &str, policies: Vec<Arc<NetworkPolicy>>) -> Config {
    let mut config = config();
    for (n, endpoint) in config.endpoints.iter_mut().enumerate() {
        let labels = Labels::new([("n".into(), n.to_string().into())]);
        let labels = if n == 1 { labels.with("colour", colour) } else { labels };
        Arc::make_mut(endpoint).workload.labels = labels;
    }
    config.policies = policies;
    config
}

fn any_port_of(selectors: &[Selector]) -> Rule {
    let peers = selectors.iter().cloned().map(peer).collect();
    Rule { peers: Peers::AnyOf(peers), ports: Ports::Any }
}

/// Two states. Of the four datagrams below, each state allows others than the other one, and a
/// mixture of both allows and denies more than either.
fn states() -> [Config; 2] {
    let n = |number: &str| of_label("n", number);
    let to = |number: &str| Some(vec![any_port_of(&[n(number)])]);
    let into_2 = |colour: &str| Some(vec![any_port_of(&[of_label("colour", colour), n("0")])]);
    [
        coloured(
            "green",
            vec![
                policy("p0", n("0"), None, to("1")),
                policy("p1", n("1"), to("0"), None),
                policy("p2", n("2"), into_2("green"), None),
            ],
        ),
        coloured(
            "blue",
            vec![
                policy("p0", n("0"), None, to("2")),
                policy("p2", n("2"), into_2("blue"), Some(vec![])),
            ],
        ),
    ]
}

/// Source, destination, and whether each of the two states allows the datagram: the third is never
/// allowed, because one end or the other denies it; the fourth is always allowed, but not with the
/// labels of one state and the rules of the other.
const PROBES: [(usize, usize, [bool; 2]); 4] =
    [(0, 1, [true, false]), (0, 2, [false, true]), (2, 1, [false, false]), (1, 2, [true, true])];

/// Sends every probe, and returns which of them arrived.
fn probe(switch: &mut Switch, round: u16, v6: bool) -> [bool; 4] {
    // An odd number of connections, so that each is evaluated in both states.
    let sport = 2000 + round % 63;
    for (number, (from, to, _)) in PROBES.into_iter().enumerate() {
        let ports = (sport, 1000 + number as u16);
        let frame = match v6 {
            false => udp4(from, pod_v4(to), ports, b"probe"),
            true => udp6(from, pod_v6(to), ports, b"probe"),
        };
        switch.ends[from].send_frame(&frame).expect("there is room");
    }
    switch.workers[0].poll(switch.now);
    let mut passed = [false; 4];
    for port in 0..3 {
        for frame in switch.recv(port) {
            let at = 14 + if v6 { 40 } else { 20 } + 2;
            let number = usize::from(u16::from_be_bytes([frame[at], frame[at + 1]])) - 1000;
            assert_eq!(PROBES[number].1, port);
            passed[number] = true;
        }
    }
    passed
}

fn expected(state: usize) -> [bool; 4] {
    PROBES.map(|(.., allowed)| allowed[state])
}

#[test]
fn the_next_poll_is_evaluated_with_the_new_state() {
    let states = states();
    let mut switch = Switch::new(&states[0]);
    for round in 0..2000u16 {
        let state = usize::from(round % 2);
        switch.control.apply(&states[state]).expect("valid");
        // First packets and later ones, of connections that lived through many states.
        for v6 in [false, true] {
            assert_eq!(probe(&mut switch, round, v6), expected(state), "round {round}");
        }
        switch.dropped();
    }
    switch.assert_adds_up();
}

#[test]
fn no_packet_sees_a_mixture_of_two_states() {
    const FLIPS: u64 = 10_000;
    let states = states();
    let mut switch = Switch::new(&states[0]);
    let mut control = std::mem::replace(
        &mut switch.control,
        podswitch_core::control::ControlPlane::new(Default::default()),
    );
    let (rounds, flips, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (mut first, mut second, mut outside) = (0u64, 0u64, 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for flip in 0..FLIPS {
                control.apply(&states[(flip % 2) as usize]).expect("valid");
                flips.store(flip, Ordering::Relaxed);
                // Some states are certain to see packets; the others change at any moment.
                let seen = rounds.load(Ordering::Relaxed);
                while flip % 10 < 2 && rounds.load(Ordering::Relaxed) == seen {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut flip = 0;
        while !done.load(Ordering::Relaxed) {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            // This state has seen enough packets: with few cores the other thread needs time to
            // run.
            if round.is_multiple_of(16) {
                let latest = flips.load(Ordering::Relaxed);
                if latest == flip {
                    std::thread::yield_now();
                }
                flip = latest;
            }
            let passed = probe(&mut switch, round as u16, round % 2 == 1);
            // Each port is a burst of its own: only the packets of one pod are evaluated with one
            // state.
            match passed {
                [true, false, false, true] => first += 1,
                [false, true, false, true] => second += 1,
                _ => outside += 1,
            }
            if round % 64 == 0 {
                switch.dropped();
            }
        }
    });
    println!("{FLIPS} flips, verdicts: {first} of one state, {second} of the other");
    assert_eq!(outside, 0, "verdicts of neither state");
    assert!(first > FLIPS / 20 && second > FLIPS / 20, "both were in force: {first}, {second}");
    // All four were evaluated, with any verdict.
    let total = (first + second) * 4;
    let sum = |of: fn(&podswitch_core::stats::WorkerCounters) -> u64| {
        control.workers().map(|w| of(&w.counters)).sum::<u64>()
    };
    assert_eq!(sum(|c| c.received.get()), total);
    assert_eq!(sum(|c| c.forwarded.get()) + sum(|c| c.dropped_total()), total);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    /// Another state, of those that the case has.
    Apply(usize),
    /// A packet from one of the ports to one of the places.
    Packet { from: usize, to: usize, ports: (u16, u16), kind: Kind, v6: bool },
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Sctp,
    Echo,
}

/// Destinations of packets: the pods, the node, off-cluster addresses, a pod that does not exist.
fn place(to: usize, v6: bool) -> IpAddr {
    let text = match (to, v6) {
        (0..3, false) => return pod_v4(to).into(),
        (0..3, true) => return pod_v6(to).into(),
        (3, false) => "192.168.0.1",
        (3, true) => "fd00:1::1",
        (4, false) => "203.0.113.9",
        (4, true) => "2001:db8::9",
        (_, false) => "10.1.0.99",
        (_, true) => "fd00::99",
    };
    text.parse().expect("an address")
}

fn a_step(states: usize) -> impl Strategy<Value = Step> {
    let port = || prop_oneof![Just(53u16), Just(80), Just(4000), Just(4001)];
    let kind = prop_oneof![4 => Just(Kind::Udp), 1 => Just(Kind::Sctp), 1 => Just(Kind::Echo)];
    let packet = (0..4usize, 0..6usize, (port(), port()), kind, any::<bool>())
        .prop_map(|(from, to, ports, kind, v6)| Step::Packet { from, to, ports, kind, v6 });
    prop_oneof![1 => (0..states).prop_map(Step::Apply), 12 => packet]
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let number = |n: u8| of_label("n", &n.to_string());
    let block = |text: &str| Peer::IpBlock { cidr: text.parse().expect("a range"), except: vec![] };
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        4 => prop::collection::vec(0u8..3, 1..3)
            .prop_map(move |list| Peers::AnyOf(list.into_iter().map(|n| peer(number(n))).collect())),
        1 => Just(Peers::AnyOf(vec![block("10.1.0.0/28"), block("2001:db8::/32")])),
    ];
    let entry = (prop_oneof![Just(Protocol::Udp), Just(Protocol::Sctp)], any::<bool>()).prop_map(
        |(protocol, wide)| match wide {
            true => PortRule::Range { protocol, first: 53, last: 80 },
            false => PortRule::port(protocol, 53),
        },
    );
    let ports =
        prop_oneof![Just(Ports::Any), prop::collection::vec(entry, 1..3).prop_map(Ports::AnyOf),];
    (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports })
}

/// A state with some policies.
fn a_state() -> impl Strategy<Value = Config> {
    let rules = || prop::option::of(prop::collection::vec(a_rule(), 0..3));
    let one = (prop::option::of(0u8..3), rules(), rules());
    prop::collection::vec(one, 0..4).prop_map(|list| {
        let policies = list.into_iter().enumerate().map(|(at, (subject, ingress, egress))| {
            let pods = match subject {
                Some(n) => of_label("n", &n.to_string()),
                None => Selector::everything(),
            };
            policy(&format!("p{at}"), pods, ingress, egress)
        });
        coloured("red", policies.collect())
    })
}

/// The frame of a step; from the node's port, as if it came from off the cluster.
fn frame_of(from: usize, to: usize, (sport, dport): (u16, u16), kind: Kind, v6: bool) -> Vec<u8> {
    let source = if from == HOST { place(4, v6) } else { place(from, v6) };
    let destination = place(to, v6);
    let mac = if from == HOST { HOST_MAC } else { pod_mac(from) };
    let (protocol, message) = match kind {
        Kind::Udp => (proto::UDP, frames::udp(source, destination, (sport, dport), b"x")),
        Kind::Sctp => {
            let mut message = [&sport.to_be_bytes()[..], &dport.to_be_bytes()].concat();
            message.extend([0; 28]);
            // DATA: an INIT is evaluated in its own direction, independent of known connections.
            message[12..16].copy_from_slice(&[0, 3, 0, 20]);
            (proto::SCTP, message)
        }
        Kind::Echo => {
            let [a, b] = sport.to_be_bytes();
            let head = [if v6 { 128 } else { 8 }, 0];
            let message = frames::icmp(source, destination, head, [a, b, 0, 1], b"x");
            (frames::icmp_protocol(source), message)
        }
    };
    let packet = frames::ip(source, destination, protocol, 64, None, &message);
    frames::ethernet(GATEWAY, mac, frames::ethertype(source), &packet)
}

/// The result for every packet if only the opener of each connection is remembered.
#[derive(Default)]
struct Uncached(HashMap<FlowKey, (Pinned, Direction)>);

impl Uncached {
    fn fate(&mut self, snapshot: &Snapshot, key: &FlowKey, ingress: PortId) -> CaptureOutcome {
        let known = self.0.get(key).copied();
        let known = known.as_ref().map(|(pinned, direction)| (pinned, *direction));
        match resolve(snapshot, &Query { known, ..Query::new(key, ingress) }) {
            Decision::Forward { plan, pinned, .. } => {
                self.0.entry(pinned.original).or_insert((pinned, Direction::Original));
                self.0.entry(pinned.reply).or_insert((pinned, Direction::Reply));
                CaptureOutcome::Sent(plan.out)
            }
            Decision::Gateway => panic!("no packet goes to the gateway here"),
            Decision::Drop(denial) => CaptureOutcome::Dropped(denial.reason),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CaptureOutcome {
    Sent(PortId),
    Dropped(DropReason),
}

/// The result for a frame: the port by which it left, or the drop reason.
fn real_fate(switch: &mut Switch, from: usize, frame: &[u8]) -> CaptureOutcome {
    switch.send(from, frame);
    let left: Vec<u16> =
        (0..4u16).flat_map(|port| vec![port; switch.recv(usize::from(port)).len()]).collect();
    match (&switch.dropped()[..], &left[..]) {
        ([], [port]) => CaptureOutcome::Sent(PortId(*port)),
        // The sender may have got an error.
        ([(_, reason)], _) => CaptureOutcome::Dropped(*reason),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_packets_get_the_uncached_verdict(
        states in prop::collection::vec(a_state(), 3),
        steps in prop::collection::vec(a_step(3), 1..300),
    ) {
        let mut switch = Switch::new(&states[0]);
        let mut uncached = Uncached::default();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Apply(state) => { switch.control.apply(&states[state]).expect("valid"); }
                Step::Packet { from, to, ports, kind, v6 } => {
                    if from == HOST && to >= 3 {
                        continue;
                    }
                    let frame = frame_of(from, to, ports, kind, v6);
                    let parsed = podswitch_wire::parse::parse(&frame, &HashKey::new(1)).expect("well formed");
                    let ingress = PortId(from as u16);
                    let snapshot = switch.control.snapshot();
                    let fresh = uncached.fate(&snapshot, &parsed.key, ingress);
                    let real = real_fate(&mut switch, from, &frame);
                    prop_assert_eq!(real, fresh, "step {}: {:?}", number, parsed.key);
                }
            }
        }
        switch.assert_adds_up();
    }
}
