//! Queries on the connection table: filtered, sorted, limited, with rates and with the policies
//! that allow each connection.
//!
//! A [`FlowView`] is taken from the node and can be used on any other thread. A query over millions
//! of connections does not delay the node's thread; it delays workers only by the locks of the
//! table's shards, one chunk at a time. Names are resolved only for the connections that are
//! returned.

use std::cmp::Reverse;
use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use podswitch_core::control::ControlPlane;
use podswitch_core::engine::Shared;
use podswitch_core::flow::connection::ConnectionInfo;
use podswitch_core::records::End;
use podswitch_core::snapshot::Snapshot;
use podswitch_core::time::{Clock, Instant};
use podswitch_policy::explain::Side;
use podswitch_policy::verdict::Traffic;
use serde::Serialize;

use crate::flow_filter::FlowFilter;
use crate::flows::{Flow, Services, services};
use crate::names::UnknownName;

/// Sort orders of connections, the greatest value first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowSort {
    /// Bytes of both directions.
    #[default]
    Bytes,
    /// Packets of both directions.
    Packets,
    /// Bytes per second of both directions. Without an earlier sample all are equal.
    Rate,
    /// Time since the connection was opened.
    Age,
}

impl FlowSort {
    /// The names of all orders.
    pub const NAMES: [&str; 4] = ["bytes", "packets", "rate", "age"];

    /// The order with this name.
    ///
    /// # Errors
    /// No order has this name.
    pub fn named(name: &str) -> Result<Self, UnknownName> {
        match name {
            "bytes" => Ok(Self::Bytes),
            "packets" => Ok(Self::Packets),
            "rate" => Ok(Self::Rate),
            "age" => Ok(Self::Age),
            _ => Err(UnknownName::new("order", name, Self::NAMES)),
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Selects connections, their order, and their maximum number.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FlowQuery {
    /// Which connections.
    pub filter: FlowFilter,
    /// The order.
    pub sort: FlowSort,
    /// Maximum number of returned connections.
    pub limit: usize,
    /// Number of connections that come before those, in the order: those of earlier pages. At the cost of memory for as
    /// many.
    pub offset: usize,
}

impl FlowQuery {
    /// A query for the first `limit` connections that `filter` selects.
    pub const fn new(filter: FlowFilter, sort: FlowSort, limit: usize) -> Self {
        Self { filter, sort, limit, offset: 0 }
    }
}

/// The decision of one end's policies on a connection, by the state in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FlowDecision {
    /// `allow` or `deny`. A connection that is denied stays in the table until it times out.
    pub verdict: &'static str,
    /// The policy whose rule decides, if one does: `NetworkPolicy/NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Index of the rule in the policy's list for the direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    /// As a line of text.
    pub why: String,
}

impl From<&Side> for FlowDecision {
    fn from(side: &Side) -> Self {
        Self {
            verdict: side.verdict(),
            policy: side.policy.as_ref().map(ToString::to_string),
            rule: side.rule,
            why: side.to_string(),
        }
    }
}

/// Rates between two samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FlowRates {
    /// Packets per second from the client.
    pub packets_per_second: f64,
    /// Bytes per second from the client.
    pub bytes_per_second: f64,
    /// Packets per second from the server.
    pub reply_packets_per_second: f64,
    /// Bytes per second from the server.
    pub reply_bytes_per_second: f64,
}

/// A connection in a query's result.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FlowRow {
    /// Ends, state and counts.
    #[serde(flatten)]
    pub flow: Flow,
    /// The client's node, if it is in the cluster.
    pub src_node: Option<String>,
    /// The server's node: that of the backend, if there is one.
    pub dst_node: Option<String>,
    /// The client's address and port as the server sees them, if they were translated (SNAT).
    pub source_nat: Option<SocketAddr>,
    /// Seconds since it was opened, or first seen.
    pub age_seconds: u64,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// The policy that allows or denies it: that of the server's end, otherwise that of the
    /// client's; `None` if no policy decides.
    pub policy: Option<String>,
    /// Decision of the client's policies.
    pub egress: FlowDecision,
    /// Decision of the server's policies.
    pub ingress: FlowDecision,
    /// Rates, if there was an earlier sample.
    #[serde(flatten)]
    pub rates: Option<FlowRates>,
}

/// A query's result.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FlowPage {
    /// Epoch of the state by which names and decisions were resolved.
    pub epoch: u32,
    /// Number of connections that the filter selects.
    pub total: usize,
    /// Number of those that are not in `flows`, and not before it.
    pub left_out: usize,
    /// The sort order.
    pub sort: &'static str,
    /// Seconds between the two samples for the rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<f64>,
    /// The first connections.
    pub flows: Vec<FlowRow>,
}

/// Packets and bytes of both directions.
type Counts = [u64; 4];

fn counts(info: &ConnectionInfo) -> Counts {
    [info.packets[0], info.bytes[0], info.packets[1], info.bytes[1]]
}

/// The counters of connections at one time, for rates: 40 bytes a connection.
pub struct FlowSample {
    at: Instant,
    hasher: DefaultHashBuilder,
    /// Sorted by the hash of the key. If two keys have the same hash, one sample shows each other's
    /// rates.
    counts: Vec<(u64, Counts)>,
}

impl fmt::Debug for FlowSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowSample").field("len", &self.counts.len()).finish_non_exhaustive()
    }
}

impl FlowSample {
    /// The increase of the counters since the sample. A connection that is not in the sample is
    /// new. If the counters are smaller, it is a new connection between the same ends.
    fn since(&self, info: &ConnectionInfo) -> Counts {
        let (hash, now) = (self.hasher.hash_one(info.pinned.original), counts(info));
        let found = self.counts.binary_search_by_key(&hash, |(hash, _)| *hash);
        let before = found.ok().and_then(|at| self.counts.get(at));
        match before {
            Some((_, before)) if before.iter().zip(&now).all(|(before, now)| before <= now) => {
                std::array::from_fn(|n| now[n] - before[n])
            }
            _ => now,
        }
    }
}

/// Access to the connection table for queries, with the names of the state that was in force when
/// it was taken.
#[derive(Clone)]
pub struct FlowView {
    snapshot: Arc<Snapshot>,
    shared: Arc<Shared>,
    clock: Clock,
}

impl fmt::Debug for FlowView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowView").field("epoch", &self.snapshot.epoch).finish_non_exhaustive()
    }
}

impl FlowView {
    pub(crate) fn new(control: &ControlPlane) -> Self {
        let (snapshot, shared) = (control.snapshot(), Arc::clone(control.shared()));
        Self { snapshot, shared, clock: control.clock() }
    }

    /// Checks that every name of `filter` exists.
    ///
    /// # Errors
    /// A name does not exist.
    pub fn check(&self, filter: &FlowFilter) -> Result<(), UnknownName> {
        filter.conditions(&self.snapshot).map(drop)
    }

    /// Takes a sample of the counters of the selected connections.
    ///
    /// # Errors
    /// A name of the filter does not exist.
    pub fn sample(&self, filter: &FlowFilter) -> Result<FlowSample, UnknownName> {
        let conditions = filter.conditions(&self.snapshot)?;
        let hasher = DefaultHashBuilder::default();
        let (at, mut list) = (self.clock.now(), Vec::new());
        self.shared.tracker.list(|info| {
            if conditions.take(&info) {
                list.push((hasher.hash_one(info.pinned.original), counts(&info)));
            }
        });
        list.sort_unstable_by_key(|(hash, _)| *hash);
        Ok(FlowSample { at, hasher, counts: list })
    }

    /// The connections that a query selects, with rates since `before` if it is given. For
    /// connections that are neither TCP nor translated, packets and bytes may be up to about ten
    /// seconds old, and their rates uneven.
    ///
    /// # Errors
    /// A name of the filter does not exist.
    pub fn list(
        &self,
        query: &FlowQuery,
        before: Option<&FlowSample>,
    ) -> Result<FlowPage, UnknownName> {
        let conditions = query.filter.conditions(&self.snapshot)?;
        let now = self.clock.now();
        let (mut total, mut first) = (0, First::new(query.limit.saturating_add(query.offset)));
        self.shared.tracker.list(|info| {
            if conditions.take(&info) {
                total += 1;
                let place = match query.sort {
                    FlowSort::Bytes => info.bytes.iter().sum(),
                    FlowSort::Packets => info.packets.iter().sum(),
                    FlowSort::Age => u64::MAX - info.opened.time.as_nanos(),
                    FlowSort::Rate => before.map_or(0, |before| {
                        let [_, sent, _, answered] = before.since(&info);
                        sent + answered
                    }),
                };
                first.push(place, info);
            }
        });
        let services = services(&self.snapshot);
        let seconds = before.map(|before| now.since(before.at).as_secs_f64());
        let flows: Vec<_> = first
            .sorted()
            .skip(query.offset)
            .map(|info| {
                let rates = before.zip(seconds).map(|(before, seconds)| {
                    let [packets, bytes, reply_packets, reply_bytes] =
                        before.since(&info).map(|count| count as f64 / seconds.max(0.001));
                    FlowRates {
                        packets_per_second: packets,
                        bytes_per_second: bytes,
                        reply_packets_per_second: reply_packets,
                        reply_bytes_per_second: reply_bytes,
                    }
                });
                self.row(&info, &services, now, rates)
            })
            .collect();
        Ok(FlowPage {
            epoch: self.snapshot.epoch.0,
            total,
            left_out: total.saturating_sub(query.offset).saturating_sub(flows.len()),
            sort: query.sort.name(),
            interval_seconds: seconds,
            flows,
        })
    }

    fn row(
        &self,
        info: &ConnectionInfo,
        services: &Services,
        now: Instant,
        rates: Option<FlowRates>,
    ) -> FlowRow {
        let pinned = &info.pinned;
        let (original, reply) = (&pinned.original, &pinned.reply);
        let node = |address: IpAddr| {
            let end = End::named(address, 0, Some(&self.snapshot));
            end.node.map(|node| node.to_string())
        };
        let server = reply.src_addr();
        let client = SocketAddr::new(original.src_addr(), original.src_port);
        let seen = SocketAddr::new(reply.dst_addr(), reply.dst_port);
        let traffic = Traffic {
            protocol: original.proto,
            port: reply.src_port,
            via_service: pinned.is_via_service(),
        };
        let policies = self.snapshot.policy.explain(client.ip(), server, traffic);
        let [egress, ingress] = [&policies.egress, &policies.ingress].map(FlowDecision::from);
        let since = |second: u32| now.as_secs().saturating_sub(second.into());
        FlowRow {
            flow: Flow::of(info, &self.snapshot, services),
            src_node: node(client.ip()),
            dst_node: node(server),
            source_nat: (seen != client).then_some(seen),
            age_seconds: now.since(info.opened.time).as_secs(),
            idle_seconds: since(info.last_seen),
            policy: ingress.policy.clone().or_else(|| egress.policy.clone()),
            egress,
            ingress,
            rates,
        }
    }
}

/// Keeps the greatest values that are pushed. Uses memory for twice the limit.
struct First {
    limit: usize,
    list: Vec<(u64, ConnectionInfo)>,
}

impl First {
    fn new(limit: usize) -> Self {
        Self { limit, list: Vec::new() }
    }

    fn push(&mut self, place: u64, info: ConnectionInfo) {
        self.list.push((place, info));
        if self.list.len() >= self.limit.saturating_mul(2).max(64) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.list.len() > self.limit {
            self.list.select_nth_unstable_by_key(self.limit, Self::key);
            self.list.truncate(self.limit);
        }
    }

    /// Equal values are sorted by their ends, so that their order is the same in every result, and no connection is on two
    /// pages or on none.
    fn key((place, info): &(u64, ConnectionInfo)) -> impl Ord + use<> {
        (Reverse(*place), info.pinned.original.words())
    }

    fn sorted(mut self) -> impl Iterator<Item = ConnectionInfo> {
        self.cut();
        self.list.sort_by_key(Self::key);
        self.list.into_iter().map(|(_, info)| info)
    }
}

#[cfg(test)]
mod tests {
    use podswitch_core::flow::connection::ConnectionRef;
    use podswitch_core::id::PortId;
    use podswitch_core::pinned::{OpenedAt, Pinned};
    use podswitch_wire::flow_key::{FlowKey, proto};

    use super::*;

    fn info(number: u16, bytes: [u64; 2]) -> ConnectionInfo {
        let (client, server) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let key = FlowKey::new(client, server, proto::TCP, number, 80).expect("one family");
        ConnectionInfo {
            is_recorded: false,
            is_resumed: false,
            connection: ConnectionRef::NONE,
            pinned: Pinned::new(key, PortId(1)),
            packets: [1, 1],
            bytes,
            tcp: None,
            opened: OpenedAt::default(),
            last_seen: 0,
        }
    }

    #[test]
    fn the_greatest_values_are_kept_in_order() {
        let mut first = First::new(3);
        let mut most = 0;
        for number in 0..1000_u16 {
            first.push(u64::from(number * 7 % 1000), info(number, [0, 0]));
            most = most.max(first.list.len());
        }
        assert!(most <= 64, "{most}");
        let ports: Vec<u16> = first.sorted().map(|info| info.pinned.original.src_port).collect();
        // 7 * 857 % 1000 = 999, 7 * 714 % 1000 = 998, 7 * 571 % 1000 = 997.
        assert_eq!(ports, [857, 714, 571]);
        // Equal values: which of them are kept does not depend on the order in which they come.
        for rotated in 0..100 {
            let mut first = First::new(40);
            (0..100).for_each(|n| first.push(7, info((n + rotated) % 100, [0, 0])));
            let ports = first.sorted().map(|info| info.pinned.original.src_port);
            assert!(ports.eq(0..40), "{rotated}");
        }
        let mut none = First::new(0);
        none.push(1, info(1, [0, 0]));
        assert_eq!(none.sorted().count(), 0);
    }

    #[test]
    fn rates_are_computed_from_increments() {
        let hasher = DefaultHashBuilder::default();
        let known = info(1, [100, 50]);
        let hash = hasher.hash_one(known.pinned.original);
        let sample = FlowSample { at: Instant::ZERO, hasher, counts: vec![(hash, counts(&known))] };
        assert_eq!(sample.since(&info(1, [160, 50])), [0, 60, 0, 0]);
        assert_eq!(sample.since(&info(1, [10, 0])), [1, 10, 1, 0], "a new one with the same ends");
        assert_eq!(sample.since(&info(2, [7, 8])), [1, 7, 1, 8], "opened since");
    }

    #[test]
    fn orders_have_names() {
        for name in FlowSort::NAMES {
            assert_eq!(FlowSort::named(name).map(FlowSort::name), Ok(name));
        }
        let error = FlowSort::named("byte").expect_err("none").to_string();
        assert_eq!(error, "there is no order byte; did you mean bytes?");
    }
}
