//! Records of connections: their content, and that they are complete.

mod changes;

use std::sync::Arc;
use std::time::Duration;

use podswitch_core::config::Config;
use podswitch_core::control::Options;
use podswitch_core::engine::Limits;
use podswitch_core::records::{CloseReason, FlowChange, FlowRecord, FlowRecorder, FlowsLeftOut};
use podswitch_policy::rule::{NetworkPolicy, Peers, PortRule, Ports, Protocol, Rule, Selector};
use podswitch_policy::verdict::Why;
use podswitch_testkit::rig::services::{self, ACK, RST, SYN, at, packet, segment, vip};
use podswitch_testkit::rig::*;

const FIN: u8 = 1;

/// A switch whose connections are recorded.
struct Recorded {
    switch: Switch,
    recorder: FlowRecorder,
    records: Vec<FlowRecord>,
}

impl Recorded {
    fn new(config: &Config, workers: usize) -> Self {
        Self::with(config, workers, Options::default())
    }

    fn with(config: &Config, workers: usize, options: Options) -> Self {
        let switch = Switch::with(config, workers, options);
        let mut recorder = FlowRecorder::new();
        switch.control.observe_flows(|_| Some(recorder.observer()));
        recorder.published(switch.control.snapshot());
        let mut recorded = Self { switch, recorder, records: Vec::new() };
        recorded.switch.pass(Duration::ZERO);
        recorded
    }

    fn apply(&mut self, config: &Config) {
        self.switch.control.apply(config).unwrap();
        self.recorder.published(self.switch.control.snapshot());
    }

    /// Reads twice, since ends are delivered by the next reading.
    fn read(&mut self) {
        for _ in 0..2 {
            self.recorder.read(self.switch.now, |record| self.records.push(record));
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.switch.pass_slowly(seconds);
        self.read();
    }

    fn send(&mut self, port: usize, frame: &[u8]) {
        self.switch.send(port, frame);
        for end in 0..=HOST {
            self.switch.recv(end);
        }
    }

    fn of(&self, change: FlowChange) -> Vec<&FlowRecord> {
        self.records.iter().filter(|record| record.change == change).collect()
    }

    fn closed(&self) -> Vec<(CloseReason, &FlowRecord)> {
        let closed = self.records.iter().filter_map(|record| match record.change {
            FlowChange::Closed(reason) => Some((reason, record)),
            _ => None,
        });
        closed.collect()
    }

    fn one_closed(&self) -> (CloseReason, &FlowRecord) {
        let closed = self.closed();
        assert_eq!(closed.len(), 1, "{:#?}", self.records);
        closed[0]
    }
}

fn allow(port: u16) -> Arc<NetworkPolicy> {
    let port = PortRule::Range { protocol: Protocol::Tcp, first: port, last: port };
    Arc::new(NetworkPolicy {
        cookie: "NetworkPolicy/default/web".into(),
        namespace: "default".into(),
        name: "web".into(),
        pods: Selector::everything(),
        ingress: Some(vec![Rule { peers: Peers::Any, ports: Ports::AnyOf(vec![port]) }]),
        egress: None,
    })
}

/// A connection of pod 0 to port 80 of pod 1, whose frames have 54 bytes (IPv4) or 74.
fn talk(recorded: &mut Recorded, f: usize, segments: &[(usize, u32, u32, u8)]) {
    let ends = [at(addresses(0)[f], 4000), at(addresses(1)[f], 80)];
    for &(from, seq, ack, flags) in segments {
        let (src, dst) = (ends[from], ends[1 - from]);
        recorded.send(from, &framed(from, &segment(src, dst, (seq, ack, flags))));
    }
}

const OPEN: [(usize, u32, u32, u8); 3] =
    [(0, 100, 0, SYN), (1, 900, 101, SYN | ACK), (0, 101, 901, ACK)];

#[test]
fn a_connection_has_a_record_of_its_opening_and_one_of_its_end() {
    for f in [0, 1] {
        let config = Config { policies: vec![allow(80)], ..config() };
        let mut recorded = Recorded::new(&config, 1);
        let start = recorded.switch.now;
        talk(&mut recorded, f, &OPEN);
        recorded.read();
        let opened = recorded.of(FlowChange::Opened);
        assert_eq!(opened.len(), 1);
        let (opened, epoch) = (opened[0].clone(), recorded.switch.control.snapshot().epoch);
        assert_eq!((opened.start, opened.time, opened.epoch), (start, start, epoch));
        assert_eq!((opened.client.address, opened.client.port), (addresses(0)[f], 4000));
        assert_eq!(opened.client.pod.as_deref(), Some("p0"));
        assert_eq!(opened.server.pod.as_deref(), Some("p1"));
        assert_eq!(opened.server.node.as_deref(), Some("n1"));
        assert_eq!((opened.target, opened.is_translated), (at(addresses(1)[f], 80), false));
        assert_eq!((opened.protocol, opened.source_nat, &opened.service), (6, None, &None));
        let (egress, ingress) = (opened.egress.clone().unwrap(), opened.ingress.clone().unwrap());
        assert_eq!((egress.why, egress.policy, egress.rule), (Why::NotIsolated, None, None));
        assert_eq!(ingress.policy.as_deref(), Some("NetworkPolicy/default/web"));
        assert_eq!(ingress.rule, Some(0));

        recorded.switch.pass(Duration::from_secs(3));
        talk(
            &mut recorded,
            f,
            &[(0, 101, 901, FIN | ACK), (1, 901, 102, FIN | ACK), (0, 102, 902, ACK)],
        );
        recorded.pass(60);
        let (reason, closed) = recorded.one_closed();
        assert_eq!((reason, closed.id), (CloseReason::Fin, opened.id));
        let bytes = [54, 74][f];
        assert_eq!((closed.packets, closed.bytes), ([4, 2], [4 * bytes, 2 * bytes]));
        assert_eq!((closed.start, closed.duration()), (start, Duration::from_secs(3)));
        assert_eq!(recorded.recorder.take_left_out(), FlowsLeftOut::default());
    }
}

#[test]
fn a_reset_is_distinguished_from_a_timeout() {
    let mut recorded = Recorded::new(&config(), 1);
    talk(&mut recorded, 0, &OPEN);
    talk(&mut recorded, 0, &[(1, 901, 101, RST | ACK)]);
    recorded.pass(60);
    assert_eq!(recorded.one_closed().0, CloseReason::Rst);
    recorded.records.clear();
    recorded.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    recorded.pass(200);
    let (reason, record) = recorded.one_closed();
    assert_eq!((reason, record.packets, record.bytes), (CloseReason::Timeout, [1, 0], [43, 0]));
    assert_eq!(record.duration(), Duration::ZERO, "until its last packet");
}

#[test]
fn later_changes_explain_a_timeout() {
    let open = |recorded: &mut Recorded| {
        recorded.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
        recorded.read();
    };
    let mut recorded = Recorded::new(&config(), 1);
    open(&mut recorded);
    recorded.apply(&Config { policies: vec![allow(80)], ..config() });
    recorded.pass(200);
    let (reason, record) = recorded.one_closed();
    assert_eq!(reason, CloseReason::PolicyChanged);
    assert_eq!(record.ingress.as_ref().unwrap().why, Why::NotIsolated, "what allowed it");

    // Another pod has the address by then: the record names the pod that had it.
    let mut recorded = Recorded::new(&config(), 1);
    open(&mut recorded);
    let mut config = config();
    let mut other = (*config.endpoints[1]).clone();
    other.workload.name = "other".into();
    other.cookie = podswitch_core::id::Cookie::new("Pod/default/other");
    config.endpoints[1] = Arc::new(other);
    recorded.apply(&config);
    recorded.pass(200);
    let (reason, record) = recorded.one_closed();
    assert_eq!((reason, record.server.pod.as_deref()), (CloseReason::PodDeleted, Some("p1")));
}

#[test]
fn services_are_named_and_a_removed_backend_ends_connections() {
    for f in [0, 1] {
        let mut recorded = Recorded::new(&services::config(&[1]), 1);
        let client = (addresses(0)[f], 1000);
        let frame = framed(0, &packet(17, client, (vip(f), 80)));
        recorded.send(0, &frame);
        recorded.read();
        let opened = recorded.of(FlowChange::Opened)[0];
        assert_eq!(opened.target, at(vip(f), 80));
        assert_eq!((opened.server.address, opened.server.port), (addresses(1)[f], 8080));
        assert_eq!(opened.service.as_deref(), Some("Service/default/web"));
        assert!(opened.is_translated);
        recorded.apply(&services::config(&[2]));
        recorded.send(0, &frame);
        recorded.read();
        let (reason, record) = recorded.one_closed();
        assert_eq!(reason, CloseReason::BackendGone);
        assert_eq!((record.server.pod.as_deref(), record.packets), (Some("p1"), [1, 0]));
        let opened = recorded.of(FlowChange::Opened);
        assert_eq!(opened[1].server.pod.as_deref(), Some("p2"));
    }
}

#[test]
fn updates_are_of_connections_with_packets_since() {
    let mut recorded = Recorded::new(&config(), 1);
    talk(&mut recorded, 0, &OPEN);
    let since = recorded.switch.now;
    recorded.switch.pass(Duration::from_secs(5));
    talk(&mut recorded, 1, &OPEN);
    let alive = recorded.switch.control.connections();
    let count = |since| {
        let mut count = 0;
        recorded.recorder.update(&alive, since, recorded.switch.now, |record| {
            assert_eq!((record.change, record.packets), (FlowChange::Updated, [2, 1]));
            assert_eq!(record.server.pod.as_deref(), Some("p1"));
            count += 1;
        });
        count
    };
    assert_eq!(count(since), 2);
    assert_eq!(count(since + Duration::from_secs(1)), 1);
}

/// Sends UDP from one pod through two workers into a table that is too small for it, so that connections are evicted
/// while workers have counted packets in their own tables. Every packet is in a record.
#[test]
fn packets_of_evicted_connections_are_all_in_records() {
    let limits = Limits { connections: 64, connections_per_port: 64, flows: 2048, fdb: 16 };
    let options = Options { limits, ..Options::default() };
    let mut recorded = Recorded::with(&config(), 2, options);
    let (mut packets, mut bytes) = (0, 0);
    for round in 0..40u16 {
        for n in 0..30 {
            let frame = udp4(0, pod_v4(1), (1000 + 7 * round + n, 53), b"abc");
            for again in 0..3usize {
                recorded.switch.send_by(again % 2, 0, &frame);
                let arrived = recorded.switch.recv(1).len() as u64;
                packets += arrived;
                bytes += arrived * frame.len() as u64;
            }
        }
        recorded.switch.pass(Duration::from_millis(700));
        recorded.read();
    }
    recorded.pass(60);
    recorded.switch.pass_slowly(200);
    recorded.read();
    recorded.switch.now = recorded.switch.now + Duration::from_secs(30);
    recorded.read();
    assert!(recorded.switch.control.connections().is_empty());
    let evicted = recorded.of(FlowChange::Closed(CloseReason::Evicted)).len();
    assert!(evicted > 100, "{evicted}");
    assert_eq!(recorded.of(FlowChange::Opened).len(), recorded.closed().len());
    let left_out = recorded.recorder.take_left_out();
    let sum = |of: fn(&FlowRecord) -> [u64; 2]| -> u64 {
        recorded.closed().iter().map(|(_, record)| of(record)[0]).sum()
    };
    let counted = (sum(|r| r.packets) + left_out.packets, sum(|r| r.bytes) + left_out.bytes);
    assert_eq!(counted, (packets, bytes));
    assert_eq!(left_out, FlowsLeftOut::default());
}

/// More connections than the queue has room for: those left out are counted.
#[test]
fn connections_beyond_the_queue_are_counted() {
    const FLOWS: u32 = 40_000;
    let mut recorded = Recorded::new(&config(), 1);
    for n in 0..FLOWS {
        let ports = (1000 + (n % 50_000) as u16, 53);
        recorded.send(0, &udp4(0, pod_v4(1), ports, b"x"));
    }
    recorded.read();
    recorded.switch.pass_slowly(200);
    assert!(recorded.recorder.is_busy());
    recorded.read();
    recorded.switch.now = recorded.switch.now + Duration::from_secs(30);
    recorded.read();
    let left_out = recorded.recorder.take_left_out();
    assert!(left_out.opened > 0 && left_out.closed > 0, "{left_out:?}");
    let opened = recorded.of(FlowChange::Opened).len() as u64 + left_out.opened;
    let closed = recorded.closed().len() as u64 + left_out.closed;
    assert_eq!((opened, closed), (FLOWS.into(), FLOWS.into()));
    let packets: u64 = recorded.closed().iter().map(|(_, r)| r.packets[0]).sum();
    let bytes: u64 = recorded.closed().iter().map(|(_, r)| r.bytes[0]).sum();
    assert_eq!(packets + left_out.packets, FLOWS.into());
    assert_eq!(bytes + left_out.bytes, u64::from(FLOWS) * 43);
}

#[test]
fn the_last_records_are_those_of_live_connections() {
    let mut recorded = Recorded::new(&config(), 1);
    talk(&mut recorded, 0, &OPEN);
    let alive = recorded.switch.control.connections();
    let (now, records) = (recorded.switch.now, &mut recorded.records);
    recorded.recorder.finish(&alive, now, |record| records.push(record));
    let (reason, record) = recorded.one_closed();
    assert_eq!((reason, record.packets), (CloseReason::Shutdown, [2, 1]));
    assert_eq!(recorded.of(FlowChange::Opened).len(), 1);
}
