//! The counters of a node, all workers together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use podswitch_core::snapshot::PortFacts;
use podswitch_core::stats::NameCounters;
use podswitch_core::worker::WorkerHandle;
use podswitch_dns::{Rcode, type_name};
use serde::{Deserialize, Serialize};

use crate::policy_view;

/// Counters of all workers, since the first run that kept them
/// ([`NodeOptions::keep_connections`](crate::NodeOptions::keep_connections)).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The state in force.
    pub epoch: u32,
    /// Pods attached.
    pub pods: usize,
    /// Frames received: those forwarded, consumed and dropped.
    pub received: u64,
    /// Frames forwarded.
    pub forwarded: u64,
    /// Frames that the switch itself took: ARP, ND, echo to the gateway.
    pub consumed: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Frames that the switch made.
    pub originated: u64,
    /// Further copies of frames: flooding, fragments.
    pub copies: u64,
    /// Packets that hit a flow table.
    pub hits: u64,
    /// Packets that needed the slow path.
    pub misses: u64,
    /// Known flows that a change was found not to concern.
    pub kept: u64,
    /// Known flows that were re-evaluated after a change.
    pub judged_again: u64,
    /// Connections alive.
    pub connections: usize,
    /// The most connections that there may be.
    pub connection_limit: usize,
    /// Connections opened.
    pub opened: u64,
    /// Share of time that workers spent in rounds that moved frames, in percent of one core each.
    pub busy_percent: f64,
    /// Frames to a burst.
    pub batch_fill: f64,
    /// Each worker.
    pub workers: Vec<WorkerStats>,
    /// Ports by kind: `pod`, `host` (the node's stack), `tunnel`, `uplink`, `bridge`. Those that are gone count, too.
    pub ports: BTreeMap<&'static str, PortStats>,
    /// Dropped frames by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Decisions by policy rule: `POLICY ingress[0]`, or `POLICY ingress` where none of its rules
    /// matched.
    pub policies: BTreeMap<String, u64>,
    /// Connections by Service port: `SERVICE PORT/PROTOCOL BACKEND` opened to that backend, or
    /// `departed` for backends that are gone, `rejected`, `dropped`.
    pub services: BTreeMap<String, u64>,
    /// Name queries that workers answered, of this run.
    pub dns: DnsStats,
}

/// Counters of name queries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DnsStats {
    /// The domain that is answered for; empty: none.
    pub zone: String,
    /// Answered queries by family (`ipv4`, `ipv6`) and type of the records asked for.
    pub queries: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Answers by response code.
    pub rcodes: BTreeMap<&'static str, u64>,
    /// Bytes of the queries, without headers.
    pub query_bytes: u64,
    /// Bytes of the answers, without headers.
    pub answer_bytes: u64,
    /// Answers that not all records fitted in.
    pub truncated: u64,
    /// Datagrams to the name server's Service that went to its backend.
    pub passed: u64,
}

impl DnsStats {
    /// Number of answered queries.
    pub fn answered(&self) -> u64 {
        self.rcodes.values().sum()
    }

    fn add(&mut self, counters: &NameCounters) {
        for (family, counters) in ["ipv4", "ipv6"].into_iter().zip(&counters.queries) {
            let types = NameCounters::TYPES.iter().map(|qtype| type_name(*qtype));
            let types = types.chain(["other".to_owned()]);
            for (name, counter) in types.zip(counters).filter(|(_, counter)| counter.get() > 0) {
                *self.queries.entry(family).or_default().entry(name).or_default() += counter.get();
            }
        }
        for (rcode, counter) in Rcode::ALL.iter().zip(&counters.rcodes) {
            if counter.get() > 0 {
                *self.rcodes.entry(rcode.name()).or_default() += counter.get();
            }
        }
        self.query_bytes += counters.query_bytes.get();
        self.answer_bytes += counters.answer_bytes.get();
        self.truncated += counters.truncated.get();
        self.passed += counters.passed.get();
    }
}

/// Counters of one worker, of this run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Time in rounds that moved frames, in seconds.
    pub busy_seconds: f64,
    /// Frames received.
    pub received: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Bursts received.
    pub bursts: u64,
    /// Packets that hit the flow table.
    pub hits: u64,
    /// Packets that took the slow path.
    pub misses: u64,
}

/// Counters of the ports of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

impl Stats {
    /// Reads the counters of `control`, which has `pods` pods attached.
    pub(crate) fn read(control: &ControlPlane, pods: usize, ports: &PortKinds) -> Self {
        let mut stats = Self::without_objects(control, pods, ports);
        stats.read_objects(control);
        stats
    }

    /// As [`read`](Self::read), without the counts of policies and Services, of which there may be hundreds of thousands.
    pub(crate) fn without_objects(control: &ControlPlane, pods: usize, ports: &PortKinds) -> Self {
        let workers: Workers = control.workers().cloned().collect();
        let mut stats = Self {
            epoch: control.snapshot().epoch.0,
            pods,
            connections: control.shared().tracker.len(),
            connection_limit: control.shared().tracker.limit(),
            ..Self::default()
        };
        stats.read_workers(&workers, ports);
        if let Some(names) = &control.snapshot().names {
            stats.dns.zone = names.zone.settings().domain.to_string();
        }
        stats
    }

    /// Only what workers count; they may have stopped.
    pub(crate) fn of_workers(workers: &Workers, ports: &PortKinds) -> Self {
        let mut stats = Self::default();
        stats.read_workers(workers, ports);
        stats
    }

    fn read_objects(&mut self, control: &ControlPlane) {
        for count in control.policy_counts() {
            self.policies.insert(policy_view::name(&count), count.decided);
        }
        for count in control.service_counts() {
            let name = format!("{} {}/{}", count.service, count.port, count.protocol);
            let others = [
                ("departed", count.departed),
                ("rejected", count.rejected),
                ("dropped", count.dropped),
            ];
            let backends = count.opened.iter().map(|(backend, n)| (backend.to_string(), *n));
            let others = others.into_iter().filter(|(_, n)| *n > 0);
            for (what, n) in backends.chain(others.map(|(what, n)| (what.to_owned(), n))) {
                // Two ports of one number are two protocols; two host ports of one pod are not.
                *self.services.entry(format!("{name} {what}")).or_default() += n;
            }
        }
    }

    fn read_workers(&mut self, workers: &Workers, ports: &PortKinds) {
        self.ports = ports.sums(workers);
        let (mut frames, mut bursts) = (0, 0);
        for worker in workers {
            let counters = &worker.counters;
            self.received += counters.received.get();
            self.forwarded += counters.forwarded.get();
            self.consumed += counters.consumed.get();
            self.dropped += counters.dropped_total();
            self.originated += counters.originated.get();
            self.copies += counters.copies.get();
            self.hits += counters.hits.get();
            self.misses += counters.misses.get();
            self.kept += counters.kept.get();
            self.judged_again += counters.rederived.get();
            self.opened += counters.opened.get();
            self.dns.add(&counters.names);
            let load = worker.load.read();
            self.busy_percent += 100.0 * load.busy_share();
            frames += load.frames;
            bursts += load.bursts;
            self.workers.push(WorkerStats {
                busy_seconds: Duration::from_nanos(load.busy_nanos).as_secs_f64(),
                received: counters.received.get(),
                dropped: counters.dropped_total(),
                bursts: load.bursts,
                hits: counters.hits.get(),
                misses: counters.misses.get(),
            });
            for reason in DropReason::ALL {
                let count = counters.dropped(*reason);
                if count > 0 {
                    *self.drops.entry(reason.name()).or_default() += count;
                }
            }
        }
        self.batch_fill = if bursts == 0 { 0.0 } else { frames as f64 / bursts as f64 };
    }
}

/// Workers, by the handles that their counters stay with when they stop.
pub(crate) type Workers = Vec<Arc<WorkerHandle>>;

/// What ports are for, or were for last, so that sums by kind never fall when a port goes: workers keep the counters of
/// a port's number for good.
#[derive(Debug, Default)]
pub(crate) struct PortKinds(Vec<Tracked>);

/// A port's number.
#[derive(Clone, Debug, Default)]
struct Tracked {
    kind: Option<&'static str>,
    /// What it counted as other kinds.
    before: BTreeMap<&'static str, PortStats>,
    /// The sum of those.
    base: PortStats,
}

impl PortKinds {
    /// Takes up the ports of the state in force. Called after each publish.
    pub(crate) fn follow(&mut self, control: &ControlPlane) {
        let snapshot = control.snapshot();
        let workers: Workers = control.workers().cloned().collect();
        if self.0.len() < snapshot.ports.len() {
            self.0.resize_with(snapshot.ports.len(), Tracked::default);
        }
        for (number, (facts, tracked)) in snapshot.ports.iter().zip(&mut self.0).enumerate() {
            let kind = match facts {
                PortFacts::Unused => continue,
                PortFacts::Pod(_) => "pod",
                PortFacts::Host(_) => "host",
                PortFacts::Uplink(uplink) if uplink.tunnel && !uplink.direct => "tunnel",
                PortFacts::Uplink(_) => "uplink",
                PortFacts::Bridge(_) => "bridge",
            };
            if let Some(old) = tracked.kind.replace(kind).filter(|old| *old != kind) {
                let now = counted(&workers, number);
                tracked.before.entry(old).or_default().add(now.less(tracked.base));
                tracked.base = now;
            }
        }
    }

    fn sums(&self, workers: &Workers) -> BTreeMap<&'static str, PortStats> {
        let mut sums: BTreeMap<&'static str, PortStats> = BTreeMap::new();
        for (number, tracked) in self.0.iter().enumerate() {
            for (kind, stats) in &tracked.before {
                sums.entry(kind).or_default().add(*stats);
            }
            if let Some(kind) = tracked.kind {
                let now = counted(workers, number).less(tracked.base);
                sums.entry(kind).or_default().add(now);
            }
        }
        sums
    }
}

/// The counters of a port's number at all workers.
fn counted(workers: &Workers, number: usize) -> PortStats {
    let mut sum = PortStats::default();
    let Ok(number) = u16::try_from(number) else { return sum };
    for worker in workers {
        if let Some(port) = worker.counters.port(PortId(number)) {
            sum.add(PortStats {
                rx_packets: port.rx_frames.get(),
                rx_bytes: port.rx_bytes.get(),
                tx_packets: port.tx_frames.get(),
                tx_bytes: port.tx_bytes.get(),
            });
        }
    }
    sum
}

impl PortStats {
    pub(crate) fn add(&mut self, other: Self) {
        self.rx_packets = self.rx_packets.saturating_add(other.rx_packets);
        self.rx_bytes = self.rx_bytes.saturating_add(other.rx_bytes);
        self.tx_packets = self.tx_packets.saturating_add(other.tx_packets);
        self.tx_bytes = self.tx_bytes.saturating_add(other.tx_bytes);
    }

    pub(crate) fn less(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.saturating_sub(other.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(other.rx_bytes),
            tx_packets: self.tx_packets.saturating_sub(other.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(other.tx_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use podswitch_core::config::{Config, LocalNode};
    use podswitch_core::control::Options;
    use podswitch_core::time::Clock;
    use podswitch_policy::rule::{Direction, NetworkPolicy, Peers, Ports, Rule, Selector};
    use podswitch_policy::service::model::{
        Endpoint, EndpointSlice, Service, ServicePort, SlicePort, family_of,
    };

    use super::*;
    use crate::{Meters, ObjectCounts};

    const OBJECTS: u32 = 10_000;
    const BACKENDS: u32 = 25;

    fn address(base: u32, number: u32) -> IpAddr {
        Ipv4Addr::from(base + number).into()
    }

    /// A state of the target size: so many policies with rules of both directions, and Services with backends.
    fn full() -> Config {
        let rule = || Rule { peers: Peers::Any, ports: Ports::Any };
        let policy = |number| NetworkPolicy {
            cookie: format!("NetworkPolicy/shop/p{number}").into(),
            namespace: "shop".into(),
            name: format!("p{number}").into(),
            pods: Selector::everything(),
            ingress: Some(vec![rule()]),
            egress: Some(vec![rule()]),
        };
        let service = |number| {
            let vip = address(0x0b00_0000, number);
            let mut service = Service::cluster_ip("shop", &format!("s{number}"), [vip]);
            service.ports = vec![ServicePort::tcp("http", 80)];
            service
        };
        let slice = |number| EndpointSlice {
            namespace: "shop".into(),
            name: format!("s{number}-0").into(),
            service: format!("s{number}").into(),
            family: family_of(address(0, 0)),
            ports: vec![SlicePort::tcp("http", 8080)],
            endpoints: (0..BACKENDS)
                .map(|backend| {
                    Endpoint::ready(address(0x0a00_0000, number * BACKENDS + backend)).on("n2")
                })
                .collect(),
        };
        Config {
            node: LocalNode { name: "n1".into(), ..LocalNode::default() },
            policies: (0..OBJECTS).map(|number| Arc::new(policy(number))).collect(),
            services: (0..OBJECTS).map(|number| Arc::new(service(number))).collect(),
            slices: (0..OBJECTS).map(|number| Arc::new(slice(number))).collect(),
            service_cidrs: vec!["11.0.0.0/8".parse().expect("a range")],
            ..Config::default()
        }
    }

    /// `cargo test --release -p podswitch-node -- --ignored --nocapture full_size`
    #[test]
    #[ignore = "a measurement"]
    fn a_scrape_of_a_full_size_state() {
        let mut control = ControlPlane::new(Options::default());
        control.set_workers(1).expect("a worker");
        control.apply(&full()).expect("a good state");
        let (kinds, meters, clock) = (PortKinds::default(), Meters::default(), Clock::start());
        // Objects have series once they have decided something: so have all of these.
        let snapshot = control.snapshot();
        for (_, info) in snapshot.policy.policies() {
            for direction in Direction::BOTH {
                snapshot.policy_counters.add(info.counter(direction, Some(0)));
            }
        }
        for (_, entry) in snapshot.services.iter() {
            (0..entry.backends().len()).for_each(|backend| entry.count_opened(backend));
        }
        let mut series = String::new();
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let began = clock.now();
                let stats = Stats::without_objects(&control, 0, &kinds);
                series = stats.to_prometheus(&ObjectCounts::read(&control), &meters);
                clock.now().since(began)
            })
            .collect();
        times.sort();
        let of = |family: &str| series.lines().filter(|line| line.starts_with(family)).count();
        assert_eq!(of("podswitch_policy_decisions_total{"), 2 * OBJECTS as usize);
        assert_eq!(of("podswitch_service_connections_total{"), OBJECTS as usize);
        let (median, worst) = (times[10], times[20]);
        println!("scrape: median {median:?}, worst {worst:?}, {} bytes", series.len());
    }
}
