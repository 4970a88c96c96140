//! Connections as people and programs see their records.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use humantime::format_rfc3339_micros;
use podswitch_core::records::{Allowed, CloseReason, End, FlowChange, FlowRecord, NameQuestion};
use podswitch_core::time::Instant;
use podswitch_dns::type_name;
use podswitch_policy::verdict::Why;
use serde::{Serialize, Serializer};

use super::dropped::{Shown, protocol_name};
use crate::flows::state;

/// A connection that was opened, goes on, or ended ([`podswitch_core::records::FlowRecorder`]).
///
/// Serializes as one flat object, with times as RFC 3339 has them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordedFlow {
    /// What is known of it.
    pub record: FlowRecord,
    /// When it was opened.
    pub start: SystemTime,
    /// When it ended, as far as is known; the time of the record for those that go on.
    pub end: SystemTime,
    /// The time of the record.
    pub time: SystemTime,
    /// The node that saw it.
    pub node: Arc<str>,
}

impl RecordedFlow {
    /// A record of a connection that `node` saw open at `start`.
    pub fn new(record: FlowRecord, node: Arc<str>, start: SystemTime) -> Self {
        let at = |time: Instant| start + time.since(record.start);
        let (end, time) = (at(record.end()), at(record.time));
        Self { start, end, time, node, record }
    }

    /// Why it ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self.record.change {
            FlowChange::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    /// The state of a TCP connection.
    pub fn state(&self) -> Option<&'static str> {
        self.record.tcp.map(|[client, server]| state(client, server))
    }

    /// The rule that allowed it at one end, as `POLICY ingress[INDEX]`.
    pub fn rule(allowed: Option<&Allowed>, direction: &str) -> Option<String> {
        let Allowed { policy, rule, .. } = allowed?;
        Some(format!("{} {direction}[{}]", policy.as_deref()?, (*rule)?))
    }
}

fn why(why: Why) -> &'static str {
    match why {
        Why::NoPod => "no_pod",
        Why::OwnAddress => "own_address",
        Why::OwnNode => "own_node",
        Why::NotIsolated => "not_isolated",
        Why::Rule(_) => "rule",
        Why::Isolated => "isolated",
    }
}

impl fmt::Display for RecordedFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        write!(f, "{} {} ", format_rfc3339_micros(self.time), protocol_name(record.protocol))?;
        write!(f, "{} -> {}", Shown(&record.client), Shown(&record.server))?;
        if let Some(service) = &record.service {
            write!(f, " by {service} {}", record.target)?;
        }
        if let Some(source) = record.source_nat {
            write!(f, ", seen as {source}")?;
        }
        for (allowed, direction) in [(&record.egress, "egress"), (&record.ingress, "ingress")] {
            if let Some(rule) = Self::rule(allowed.as_ref(), direction) {
                write!(f, ", allowed by {rule}")?;
            }
        }
        if let Some(NameQuestion { name, qtype, rcode, .. }) = &record.question {
            write!(f, ", {name} {}: {}", type_name(*qtype), rcode.name())?;
        }
        if record.change != FlowChange::Opened {
            let ([packets, replies], [bytes, reply_bytes]) = (record.packets, record.bytes);
            write!(f, ", {packets}/{replies} packets, {bytes}/{reply_bytes} bytes")?;
            write!(f, ", {:.3} s", record.duration().as_secs_f64())?;
        }
        self.close_reason().map_or(Ok(()), |reason| write!(f, ", {}", reason.name()))
    }
}

/// The flat form: what `vswitch flows --json` says of a connection, and more. What is not known is left out.
#[derive(Serialize)]
struct Flat<'a> {
    time: String,
    node: &'a str,
    id: String,
    start: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    protocol: u8,
    src_pod: Option<String>,
    dst_pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_node: Option<&'a str>,
    service: Option<&'a str>,
    backend: Option<SocketAddr>,
    /// The client as the server sees it, if that is another address or port.
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_src: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<FlatAllowed<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<FlatAllowed<'a>>,
    /// What a name query that the switch answered asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<FlatDns<'a>>,
    epoch: u32,
    state: Option<&'static str>,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    /// The record as a line for people.
    text: String,
}

/// Named as in the Elastic Common Schema: `dns.question.name`.
#[derive(Serialize)]
struct FlatDns<'a> {
    question: FlatQuestion<'a>,
    response_code: &'static str,
}

#[derive(Serialize)]
struct FlatQuestion<'a> {
    name: &'a str,
    r#type: String,
}

impl<'a> From<&'a NameQuestion> for FlatDns<'a> {
    fn from(it: &'a NameQuestion) -> Self {
        let question = FlatQuestion { name: &it.name, r#type: type_name(it.qtype) };
        Self { question, response_code: it.rcode.name() }
    }
}

#[derive(Serialize)]
struct FlatAllowed<'a> {
    why: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<u32>,
}

impl<'a> From<&'a Allowed> for FlatAllowed<'a> {
    fn from(allowed: &'a Allowed) -> Self {
        Self { why: why(allowed.why), policy: allowed.policy.as_deref(), rule: allowed.rule }
    }
}

fn pod(end: &End) -> Option<String> {
    Some(format!("{}/{}", end.namespace.as_deref()?, end.pod.as_deref()?))
}

impl Serialize for RecordedFlow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = &self.record;
        let time = |time| format_rfc3339_micros(time).to_string();
        let is_over = record.change != FlowChange::Opened;
        let duration = u64::try_from(record.duration().as_millis()).unwrap_or(u64::MAX);
        let server = SocketAddr::new(record.server.address, record.server.port);
        Flat {
            time: time(self.time),
            node: &self.node,
            id: format!("{:016x}", record.id),
            start: time(self.start),
            end: is_over.then(|| time(self.end)),
            duration_ms: is_over.then_some(duration),
            reason: self.close_reason().map(CloseReason::name),
            src: record.client.address,
            dst: record.target.ip(),
            sport: record.client.port,
            dport: record.target.port(),
            protocol: record.protocol,
            src_pod: pod(&record.client),
            dst_pod: pod(&record.server),
            src_node: record.client.node.as_deref(),
            dst_node: record.server.node.as_deref(),
            service: record.service.as_deref(),
            backend: record.is_translated.then_some(server),
            nat_src: record.source_nat,
            egress: record.egress.as_ref().map(FlatAllowed::from),
            ingress: record.ingress.as_ref().map(FlatAllowed::from),
            dns: record.question.as_ref().map(FlatDns::from),
            epoch: record.epoch.0,
            state: self.state(),
            packets: record.packets[0],
            bytes: record.bytes[0],
            reply_packets: record.packets[1],
            reply_bytes: record.bytes[1],
            text: self.to_string(),
        }
        .serialize(serializer)
    }
}
