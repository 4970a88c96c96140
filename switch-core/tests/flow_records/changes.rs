//! If a change of the state denies a connection or removes its pod, the next sweep records it as ended. If it
//! continues, it is recorded as opened again.

use podswitch_core::config::{Endpoint, Underlay};
use podswitch_policy::rule::Labels;
use podswitch_testkit::rig::{frames, overlay};

use super::*;

/// Longer than two rounds of the sweep and the wait for counts, and shorter than any timeout.
const SOON: u64 = 50;

/// Pods 0 to 2, with ranges of this node's pods in both families.
fn state() -> Config {
    let mut config = config();
    config.node.pod_cidrs.push("fd00::/64".parse().unwrap());
    config
}

/// A datagram of pod 0 to pod 1, or back.
fn datagram(f: usize, from: usize, ports: (u16, u16)) -> Vec<u8> {
    let [src, dst] = [from, 1 - from].map(|n| addresses(n)[f]);
    framed(from, &frames::ip(src, dst, 17, 64, None, &frames::udp(src, dst, ports, b"abc")))
}

impl Recorded {
    /// The invariants: of connections, and of the packets that they forwarded. `packets` and `bytes` are the totals.
    #[track_caller]
    fn adds_up(&mut self, [packets, bytes]: [u64; 2]) {
        let left_out = self.recorder.take_left_out();
        let opened = self.of(FlowChange::Opened).len() as u64;
        assert_eq!(opened + left_out.opened, self.switch.count(|c| c.opened.get()));
        let (now, mut rest) = (self.switch.now, Vec::new());
        let alive = self.switch.control.connections();
        self.recorder.finish(&alive, now, |record| rest.push(record));
        let all: Vec<&FlowRecord> =
            self.records.iter().chain(&rest).filter(|r| r.change != FlowChange::Opened).collect();
        assert_eq!(all.len() as u64 + left_out.closed, opened, "each has one end");
        let sum = |of: fn(&FlowRecord) -> [u64; 2]| -> u64 {
            all.iter().map(|record| of(record).iter().sum::<u64>()).sum()
        };
        let late = self.recorder.take_left_out();
        let left = [left_out.packets + late.packets, left_out.bytes + late.bytes];
        assert_eq!([sum(|r| r.packets) + left[0], sum(|r| r.bytes) + left[1]], [packets, bytes]);
    }
}

#[test]
fn a_denied_connection_is_recorded_at_once_and_again_if_it_continues() {
    for f in [0, 1] {
        let open = Config { policies: vec![allow(80)], ..state() };
        let shut = Config { policies: vec![allow(81)], ..state() };
        let mut recorded = Recorded::new(&open, 1);
        talk(&mut recorded, f, &OPEN);
        recorded.apply(&shut);
        talk(&mut recorded, f, &[(0, 101, 901, ACK)]);
        // Two rounds of the sweep.
        (0..210).for_each(|_| recorded.switch.pass(Duration::from_millis(100)));
        recorded.read();
        let (reason, first) = recorded.one_closed();
        let first = first.clone();
        assert_eq!((reason, first.packets), (CloseReason::PolicyChanged, [2, 1]));
        assert_eq!(first.ingress.as_ref().unwrap().rule, Some(0), "the rule that had allowed it");
        // Its slot is kept, but it is not reported as continuing.
        let alive = recorded.switch.control.connections();
        assert_eq!(alive.len(), 1);
        recorded.recorder.update(&alive, Default::default(), recorded.switch.now, |record| {
            panic!("{record:?}");
        });
        // A connection that stays denied has no further record.
        recorded.pass(SOON);
        assert_eq!(recorded.closed().len(), 1);

        recorded.apply(&open);
        talk(&mut recorded, f, &[(0, 101, 901, ACK), (1, 901, 101, ACK)]);
        recorded.pass(SOON);
        let opened: Vec<FlowRecord> =
            recorded.of(FlowChange::Opened).into_iter().cloned().collect();
        assert_eq!(opened.len(), 2);
        assert_eq!((opened[1].id, opened[1].packets), (first.id, [0, 0]));
        assert!(opened[1].start > first.time);
        let fins = [(0, 101, 901, FIN | ACK), (1, 901, 102, FIN | ACK), (0, 102, 902, ACK)];
        talk(&mut recorded, f, &fins);
        recorded.pass(SOON);
        let (reason, last) = recorded.closed()[1];
        assert_eq!((reason, last.packets), (CloseReason::Fin, [3, 2]), "since it continued");
        assert_eq!((last.start, last.id), (opened[1].start, first.id));
        let bytes = [54, 74][f];
        recorded.adds_up([8, 8 * bytes]);
    }
}

/// Packets that a worker has counted in its own table are in the record, although the record is made before they are
/// reported.
#[test]
fn counts_of_a_denied_datagram_connection_are_exact() {
    for f in [0, 1] {
        let mut recorded = Recorded::new(&state(), 2);
        let request = datagram(f, 0, (1000, 53));
        for n in 0..30 {
            recorded.switch.send_by(n % 2, 0, &request);
            recorded.switch.send_by(n % 2, 1, &datagram(f, 1, (53, 1000)));
        }
        recorded.apply(&Config { policies: vec![allow(80)], ..state() });
        recorded.pass(SOON);
        let (reason, record) = recorded.one_closed();
        assert_eq!((reason, record.packets), (CloseReason::PolicyChanged, [30, 30]));
        let bytes = 60 * request.len() as u64;
        recorded.pass(200);
        assert!(recorded.switch.control.connections().is_empty());
        assert_eq!(recorded.closed().len(), 1, "its end was recorded");
        recorded.adds_up([60, bytes]);
    }
}

#[test]
fn connections_of_a_removed_pod_are_recorded_at_once() {
    for (f, gone) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut recorded = Recorded::new(&state(), 1);
        talk(&mut recorded, f, &OPEN);
        // Of pods that stay.
        let [a, b] = [2, 1 - gone].map(|n| at(addresses(n)[f], 7));
        recorded.send(2, &framed(2, &segment(a, b, (1, 0, SYN))));
        let mut less = state();
        less.endpoints.remove(gone);
        recorded.apply(&less);
        recorded.pass(SOON);
        let (reason, record) = recorded.one_closed();
        assert_eq!((reason, record.packets), (CloseReason::PodDeleted, [2, 1]), "{f} {gone}");
        assert_eq!(record.client.pod.as_deref(), Some("p0"), "its former name");
        assert_eq!(record.server.pod.as_deref(), Some("p1"));
        recorded.adds_up([4, 4 * [54, 74][f]]);
    }
}

/// A known pod without a port, as after a restart, may get one later.
#[test]
fn a_pod_without_a_port_is_not_removed() {
    let mut recorded = Recorded::new(&state(), 1);
    talk(&mut recorded, 0, &OPEN);
    let mut detached = state();
    let endpoint = Endpoint { attachment: None, ..Endpoint::clone(&detached.endpoints[1]) };
    detached.endpoints[1] = Arc::new(endpoint);
    detached.ports.remove(1);
    recorded.apply(&detached);
    recorded.pass(SOON);
    assert!(recorded.closed().is_empty());
    recorded.adds_up([3, 3 * 54]);
}

/// Connections through a Service, with its address and backend.
#[test]
fn a_service_connection_that_policy_denies_is_recorded() {
    for f in [0, 1] {
        let mut recorded = Recorded::new(&services::config(&[1]), 1);
        let client = (addresses(0)[f], 1000);
        recorded.send(0, &framed(0, &packet(17, client, (vip(f), 80))));
        recorded.apply(&Config { policies: vec![allow(80)], ..services::config(&[1]) });
        recorded.pass(SOON);
        let (reason, record) = recorded.one_closed();
        assert_eq!((reason, record.target), (CloseReason::PolicyChanged, at(vip(f), 80)));
        assert_eq!(record.service.as_deref(), Some("Service/default/web"));
    }
}

/// Policies change while two workers forward traffic: each connection has as many ends as openings, and every packet is
/// in one record.
#[test]
fn the_invariants_hold_while_policies_change() {
    let open = state();
    let shut = Config { policies: vec![allow(80)], ..state() };
    let mut recorded = Recorded::new(&open, 2);
    let (mut packets, mut bytes) = (0, 0);
    for round in 0..60_usize {
        recorded.apply(if round % 3 == 1 { &shut } else { &open });
        for n in 0..40 {
            let f = usize::from(n) % 2;
            for (from, ports) in [(0, (1000 + n, 53)), (1, (53, 1000 + n))] {
                let frame = datagram(f, from, ports);
                recorded.switch.send_by((round + from) % 2, from, &frame);
                let arrived = recorded.switch.recv(1 - from).len() as u64;
                packets += arrived;
                bytes += arrived * frame.len() as u64;
            }
        }
        for _ in 0..1 + round % 37 {
            recorded.switch.pass(Duration::from_millis(500));
        }
        recorded.read();
    }
    assert!(recorded.of(FlowChange::Closed(CloseReason::PolicyChanged)).len() > 100);
    recorded.pass(300);
    recorded.switch.now = recorded.switch.now + Duration::from_secs(30);
    recorded.read();
    assert!(recorded.switch.control.connections().is_empty());
    recorded.adds_up([packets, bytes]);
}

/// Connections that go on after their record, and whose ends find no room in the queue: what the record has is not
/// counted twice.
#[test]
fn what_overflows_after_it_went_on_is_counted_once() {
    const FLOWS: u16 = 20_000;
    let open = state();
    let shut = Config { policies: vec![allow(80)], ..state() };
    let mut recorded = Recorded::new(&open, 1);
    let (mut packets, mut bytes) = (0, 0);
    let mut send = |recorded: &mut Recorded, n: u16| {
        let frame = datagram(0, 0, (1000 + n, 53));
        recorded.switch.send(0, &frame);
        let arrived = recorded.switch.recv(1).len() as u64;
        packets += arrived;
        bytes += arrived * frame.len() as u64;
    };
    for n in 0..FLOWS {
        send(&mut recorded, n);
        if n % 5000 == 0 {
            recorded.read();
        }
    }
    recorded.read();
    recorded.apply(&shut);
    // More than the queue takes at once.
    (0..6).for_each(|_| recorded.pass(12));
    let stopped = recorded.of(FlowChange::Closed(CloseReason::PolicyChanged)).len();
    assert_eq!(stopped, usize::from(FLOWS));
    recorded.apply(&open);
    for n in 0..FLOWS {
        send(&mut recorded, n);
        if n % 5000 == 0 {
            recorded.read();
        }
    }
    recorded.read();
    assert_eq!(recorded.of(FlowChange::Opened).len(), 2 * usize::from(FLOWS));
    // All time out before anything is read.
    recorded.switch.pass_slowly(300);
    assert!(recorded.switch.control.connections().is_empty());
    recorded.read();
    recorded.switch.now = recorded.switch.now + Duration::from_secs(30);
    recorded.read();
    let ended = recorded.closed().len() - stopped;
    assert!(ended < usize::from(FLOWS), "{ended} of {FLOWS} had room");
    recorded.adds_up([packets, bytes]);
}

/// Each node enforces policy for its own pods; both nodes record that a policy of one end has ended the connection.
#[test]
fn a_connection_that_the_other_node_denies_is_recorded() {
    let shut =
        NetworkPolicy { pods: Selector::of_labels(db()), ..NetworkPolicy::clone(&allow(80)) };
    let open = with_remote_db();
    let shut = Config { policies: vec![Arc::new(shut)], ..with_remote_db() };
    for v6 in [false, true] {
        let mut recorded = Recorded::new(&open, 1);
        let [client, server] = [overlay::pod(0, 0, v6), overlay::pod(1, 0, v6)];
        let request = overlay::from_pod(0, 0, &overlay::udp(client, server, (1000, 53), b"abc"));
        let send = |recorded: &mut Recorded| {
            recorded.switch.send(0, &request);
            recorded.switch.recv(overlay::UPLINK).len()
        };
        assert_eq!(send(&mut recorded), 1);
        // Only the server, a pod of another node, is selected.
        recorded.apply(&shut);
        recorded.pass(SOON);
        let (reason, record) = recorded.one_closed();
        assert_eq!((reason, record.packets), (CloseReason::PolicyChanged, [1, 0]));
        // The client goes on sending, and this node forwards: it is not opened again.
        assert_eq!(send(&mut recorded), 1);
        recorded.pass(SOON);
        assert_eq!((recorded.closed().len(), recorded.of(FlowChange::Opened).len()), (1, 1));
        // It is once it is allowed.
        recorded.apply(&open);
        assert_eq!(send(&mut recorded), 1);
        recorded.pass(1);
        assert_eq!((recorded.closed().len(), recorded.of(FlowChange::Opened).len()), (1, 2));
        recorded.adds_up([3, 3 * request.len() as u64]);
    }
}

fn db() -> Labels {
    [("app", "db")].into_iter().collect()
}

/// Node 0 of three; pod 0 of node 1 has a label.
fn with_remote_db() -> Config {
    let mut config = overlay::node_config(0, Underlay::Ipv4First);
    for endpoint in &mut config.endpoints {
        if &*endpoint.workload.name == "p10" {
            let mut labelled = Endpoint::clone(endpoint);
            labelled.workload.labels = db();
            *endpoint = Arc::new(labelled);
        }
    }
    config
}
