//! Records of dropped frames: their content, and that they are complete at any rate.

use std::collections::BTreeMap;
use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::Config;
use podswitch_core::records::{DropRecord, PREFIX, Recorder};
use podswitch_policy::rule::{
    Direction, Labels, NetworkPolicy, Peers, PortRule, Ports, Protocol, Rule, Selector,
};
use podswitch_testkit::rig::*;

/// A switch whose drops are recorded.
struct Recorded {
    switch: Switch,
    recorder: Recorder,
}

impl Recorded {
    fn new(config: &Config, workers: usize) -> Self {
        let switch = Switch::with_workers(config, workers);
        let mut recorder = Recorder::new();
        switch.control.observe(|_| Some(recorder.observer()));
        recorder.published(switch.control.snapshot());
        let mut recorded = Self { switch, recorder };
        recorded.poll();
        recorded
    }

    fn poll(&mut self) {
        for worker in &mut self.switch.workers {
            worker.poll(self.switch.now);
        }
    }

    fn apply(&mut self, config: &Config) {
        self.switch.control.apply(config).unwrap();
        self.recorder.published(self.switch.control.snapshot());
    }

    /// Everything recorded so far.
    fn records(&mut self) -> Vec<DropRecord> {
        let mut records = Vec::new();
        self.recorder.read(|record| records.push(record));
        self.switch.control.collect(self.recorder.pending());
        self.poll();
        self.recorder.read(|record| records.push(record));
        records
    }

    fn one(&mut self) -> DropRecord {
        let mut records = self.records();
        assert_eq!(records.len(), 1, "{records:#?}");
        records.remove(0)
    }

    fn counted(&self, reason: DropReason) -> u64 {
        self.switch.count(|counters| counters.dropped(reason))
    }
}

fn policy(name: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/default/{name}").into(),
        namespace: "default".into(),
        name: name.into(),
        pods: Selector::everything(),
        ingress,
        egress,
    })
}

#[test]
fn a_denial_names_both_ends_and_the_policies_that_isolate() {
    let mut config = config();
    config.policies = vec![policy("b", Some(vec![]), None), policy("a", Some(vec![]), None)];
    let mut recorded = Recorded::new(&config, 1);
    let frame = udp4(0, pod_v4(1), (1000, 53), b"question");
    recorded.switch.send(0, &frame);
    let record = recorded.one();
    assert_eq!(record.reason, DropReason::PolicyIngress);
    assert_eq!((record.count, record.bytes), (1, frame.len() as u64));
    assert_eq!((record.first, record.last), (recorded.switch.now, recorded.switch.now));
    assert_eq!(record.epoch, recorded.switch.control.snapshot().epoch);
    assert_eq!(record.port.unwrap().0, 0);
    let (src, dst) = (record.src.as_ref().unwrap(), record.dst.as_ref().unwrap());
    assert_eq!((src.address, src.port), (pod_v4(0).into(), 1000));
    assert_eq!((src.namespace.as_deref(), src.pod.as_deref()), (Some("default"), Some("p0")));
    assert_eq!((dst.address, dst.port), (pod_v4(1).into(), 53));
    assert_eq!((dst.pod.as_deref(), dst.node.as_deref()), (Some("p1"), Some("n1")));
    assert_eq!((record.protocol, record.service.clone()), (Some(17), None));
    assert_eq!(
        (record.direction, record.policy, record.rule),
        (Some(Direction::Ingress), None, None)
    );
    let mut isolated_by: Vec<_> = record.isolated_by.iter().map(|p| &**p).collect();
    isolated_by.sort();
    assert_eq!(isolated_by, ["NetworkPolicy/default/a", "NetworkPolicy/default/b"]);
    assert_eq!(record.prefix, frame);
}

#[test]
fn egress_ipv6_and_frames_that_do_not_parse_are_recorded() {
    let mut config = config();
    config.policies = vec![policy("shut", None, Some(vec![]))];
    let mut recorded = Recorded::new(&config, 1);
    let frame = udp6(0, pod_v6(1), (1000, 53), &[7; 400]);
    recorded.switch.send(0, &frame);
    let record = recorded.one();
    assert_eq!(
        (record.reason, record.direction),
        (DropReason::PolicyEgress, Some(Direction::Egress))
    );
    assert_eq!(record.src.unwrap().address, addresses(0)[1]);
    assert_eq!(record.prefix, frame[..PREFIX]);

    let mut broken = udp4(0, pod_v4(1), (1000, 53), b"x");
    broken[25] ^= 1;
    recorded.switch.send(0, &broken);
    let record = recorded.one();
    assert_eq!(record.reason, DropReason::Ipv4Checksum);
    assert_eq!((record.src, record.dst, record.protocol), (None, None, None));
    assert_eq!(record.prefix, broken);
}

#[test]
fn names_are_those_of_the_time_of_the_drop() {
    let mut config = config();
    config.policies = vec![policy("first", Some(vec![]), None)];
    let mut recorded = Recorded::new(&config, 1);
    recorded.switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    let dropped_in = recorded.switch.control.snapshot().epoch;
    // Another pod has the address before the record is read.
    let mut endpoint = (*config.endpoints[1]).clone();
    endpoint.workload.name = "other".into();
    endpoint.workload.labels = Labels::default();
    endpoint.cookie = podswitch_core::id::Cookie::new("Pod/default/other");
    config.endpoints[1] = Arc::new(endpoint);
    config.policies = vec![policy("second", Some(vec![]), None)];
    recorded.apply(&config);
    recorded.switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    let records = recorded.records();
    let seen: Vec<_> = records
        .iter()
        .map(|record| {
            let pod = record.dst.as_ref().unwrap().pod.as_deref().unwrap();
            (record.epoch == dropped_in, pod, &*record.isolated_by[0])
        })
        .collect();
    assert_eq!(
        seen,
        [
            (true, "p1", "NetworkPolicy/default/first"),
            (false, "other", "NetworkPolicy/default/second")
        ]
    );
}

#[test]
fn a_rule_that_allows_other_ports_is_no_denying_rule() {
    let mut config = config();
    let port = PortRule::Range { protocol: Protocol::Udp, first: 54, last: 54 };
    let rule = Rule { peers: Peers::Any, ports: Ports::AnyOf([port].into_iter().collect()) };
    config.policies = vec![policy("dns", Some(vec![rule]), None)];
    let mut recorded = Recorded::new(&config, 1);
    recorded.switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    let record = recorded.one();
    assert_eq!((record.policy, record.rule), (None, None));
    assert_eq!(*record.isolated_by, ["NetworkPolicy/default/dns".into()]);
}

/// Rows are collected one reading later, and other states may be in force by then.
#[test]
fn rows_have_the_names_of_their_snapshot() {
    let mut config = config();
    config.policies = vec![policy("first", Some(vec![]), None)];
    let mut recorded = Recorded::new(&config, 1);
    recorded.recorder.read(|record| panic!("nothing yet: {record:?}"));
    let dropped_in = recorded.switch.control.snapshot().epoch;
    for _ in 0..20 {
        recorded.switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    }
    for number in 0..5 {
        config.policies = vec![policy(&format!("later{number}"), Some(vec![]), None)];
        recorded.apply(&config);
    }
    let records = recorded.records();
    let row = records.iter().find(|record| !record.is_single()).expect("a row");
    assert_eq!((row.count, row.epoch), (12, dropped_in));
    assert_eq!(*row.isolated_by, ["NetworkPolicy/default/first".into()]);
}

/// The invariant, with two workers, many reasons and ends, and a reader that is late or does not
/// read.
#[test]
fn records_add_up_under_a_flood() {
    flood(40);
}

/// `cargo test --release -p podswitch-core --test records -- --ignored`
#[test]
#[ignore = "takes long"]
fn records_add_up_under_five_million_drops() {
    flood(5_000);
}

/// Rounds of a thousand drops.
fn flood(rounds: u16) {
    let mut config = config();
    config.policies = vec![policy("shut", Some(vec![]), None)];
    let mut recorded = Recorded::new(&config, 2);
    let mut sums: BTreeMap<DropReason, u64> = BTreeMap::new();
    let mut kinds = [0u64; 3];
    let mut add = |records: Vec<DropRecord>| {
        for record in records {
            *sums.entry(record.reason).or_default() += record.count;
            let kind = if record.is_other { 0 } else { usize::from(record.is_single()) + 1 };
            kinds[kind] += 1;
        }
    };
    let mut sent = 0u64;
    for round in 0..rounds {
        for n in 0..1000u16 {
            let number = round.wrapping_mul(1000).wrapping_add(n);
            let frame = match n % 5 {
                // Many ends: more than there are rows.
                0 | 1 => udp4(0, pod_v4(1), (number, number), b"flood"),
                2 => udp6(0, pod_v6(1), (number, 53), b"flood"),
                // Not this pod's address.
                3 => udp4(1, pod_v4(1), (1, 1), b"spoof"),
                _ => {
                    let mut frame = udp4(0, pod_v4(1), (1, 1), b"broken");
                    frame[25] ^= 1;
                    frame
                }
            };
            recorded.switch.send_by(usize::from(n / 7 % 2), 0, &frame);
            sent += 1;
        }
        // Nobody reads in every second round.
        if round % 2 == 0 {
            add(recorded.records());
        }
    }
    add(recorded.records());
    let counted: BTreeMap<DropReason, u64> = DropReason::ALL
        .iter()
        .map(|reason| (*reason, recorded.counted(*reason)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(sums, counted);
    assert_eq!(sums.values().sum::<u64>(), sent);
    assert!(counted.len() >= 3, "{counted:?}");
    assert!(kinds.iter().all(|kind| *kind > 0), "other, together, single: {kinds:?}");
    recorded.switch.assert_adds_up();
}
