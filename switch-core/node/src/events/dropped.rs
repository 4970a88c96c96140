//! Dropped frames as people and programs see them.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use humantime::format_rfc3339_micros;
use podswitch_core::action::DropClass;
use podswitch_core::records::{DropRecord, End};
use podswitch_policy::rule::Direction;
use podswitch_wire::flow_key::proto;
use serde::{Serialize, Serializer};

use crate::pod_name::PodName;

/// Dropped frames: one, or several that are alike and were counted together
/// ([`podswitch_core::records`]). The counts of all of them sum up to the drop counters of
/// [`Stats`](crate::Stats).
///
/// Serializes as one flat object, with times as RFC 3339 has them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DroppedFrames {
    /// What is known of them.
    pub record: DropRecord,
    /// When the first was dropped.
    pub first: SystemTime,
    /// When the last was dropped.
    pub last: SystemTime,
    /// The node that dropped them.
    pub node: Arc<str>,
    /// The pod behind the port that they came in by, if a pod is.
    pub pod: Option<PodName>,
}

impl DroppedFrames {
    /// Frames that `node` dropped from `first` to `last`.
    pub fn new(record: DropRecord, node: Arc<str>, first: SystemTime, last: SystemTime) -> Self {
        Self { record, first, last, node, pod: None }
    }

    /// Whether a policy denied them.
    pub fn is_denied(&self) -> bool {
        self.record.reason.class() == DropClass::Policy
    }

    /// For denials by policy, the end whose policies denied it: `ingress` or `egress`.
    pub fn direction(&self) -> Option<&'static str> {
        self.record.direction.map(direction_name)
    }

    /// The rule that denied them, as `POLICY ingress[INDEX]`.
    pub fn rule(&self) -> Option<String> {
        let (policy, rule) = (self.record.policy.as_deref()?, self.record.rule?);
        Some(format!("{policy} {}[{rule}]", self.direction()?))
    }
}

/// Name of an IP protocol, or its number.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        proto::TCP => "TCP".into(),
        proto::UDP => "UDP".into(),
        proto::SCTP => "SCTP".into(),
        proto::ICMP => "ICMP".into(),
        proto::ICMPV6 => "ICMPv6".into(),
        other => other.to_string(),
    }
}

/// The letters that tcpdump uses.
fn tcp_flags(flags: u8) -> String {
    "FSRP.UEC"
        .chars()
        .enumerate()
        .filter(|(bit, _)| flags >> bit & 1 == 1)
        .map(|(_, c)| c)
        .collect()
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

impl fmt::Display for DroppedFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        write!(f, "{} ", format_rfc3339_micros(self.last))?;
        if record.count != 1 {
            write!(f, "{} times ", record.count)?;
        }
        write!(f, "{}", record.reason.name())?;
        if let Some(protocol) = record.protocol {
            write!(f, " {}", protocol_name(protocol))?;
        }
        if record.tcp_flags != 0 {
            write!(f, " [{}]", tcp_flags(record.tcp_flags))?;
        }
        match (&record.src, &record.dst) {
            (Some(src), Some(dst)) => {
                write!(f, " {} -> {}", Shown(src), Shown(dst))?;
            }
            _ => match (&self.pod, record.port) {
                (Some(pod), _) => write!(f, " from {pod}")?,
                (None, Some(port)) => write!(f, " from port {port}")?,
                (None, None) => write!(f, " (others, counted together)")?,
            },
        }
        if let Some(service) = &record.service {
            write!(f, " of {service}")?;
        }
        if let Some(backend) = record.backend {
            write!(f, " = {backend}")?;
        }
        let direction = record.direction.map_or("", direction_name);
        match (&record.policy, record.rule, &record.object) {
            (Some(policy), Some(rule), _) => {
                write!(f, ", denied by {policy} {direction}[{rule}]")
            }
            _ if !record.isolated_by.is_empty() => {
                let policies = record.isolated_by.join(", ");
                write!(f, ", no {direction} rule allows it; isolated by {policies}")
            }
            (_, _, Some(object)) => write!(f, ", by {object}"),
            (_, _, None) => Ok(()),
        }
    }
}

/// An end as a line of text has it.
pub(super) struct Shown<'a>(pub(super) &'a End);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let End { address, port, namespace, pod, node, .. } = self.0;
        match (namespace, pod, node) {
            (Some(namespace), Some(pod), _) => write!(f, "{namespace}/{pod} ")?,
            (_, _, Some(node)) => write!(f, "node/{node} ")?,
            _ => {}
        }
        match (address, port) {
            (address, 0) => write!(f, "{address}"),
            (std::net::IpAddr::V6(address), port) => write!(f, "[{address}]:{port}"),
            (address, port) => write!(f, "{address}:{port}"),
        }
    }
}

/// The flat form. What is not known is left out.
#[derive(Serialize)]
struct Flat<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<String>,
    node: &'a str,
    worker: usize,
    reason: &'static str,
    class: &'static str,
    count: u64,
    bytes: u64,
    epoch: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<FlatEnd<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<FlatEnd<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    tcp_flags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<u16>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    fragment: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    isolated_by: Vec<&'a str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    frame: String,
    /// The sum of what found no place among those counted together.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    other: bool,
    /// The record as a line for people.
    text: String,
}

#[derive(Serialize)]
struct FlatEnd<'a> {
    address: std::net::IpAddr,
    #[serde(skip_serializing_if = "is_zero")]
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

impl<'a> From<&'a End> for FlatEnd<'a> {
    fn from(end: &'a End) -> Self {
        Self {
            address: end.address,
            port: end.port,
            namespace: end.namespace.as_deref(),
            pod: end.pod.as_deref(),
            node: end.node.as_deref(),
        }
    }
}

impl Serialize for DroppedFrames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = &self.record;
        let time = |time| format_rfc3339_micros(time).to_string();
        Flat {
            time: time(self.last),
            first: (record.count != 1).then(|| time(self.first)),
            node: &self.node,
            worker: record.worker,
            reason: record.reason.name(),
            class: record.reason.class().name(),
            count: record.count,
            bytes: record.bytes,
            epoch: record.epoch.0,
            port: record.port.map(|port| port.0),
            pod: self.pod.as_ref().map(ToString::to_string),
            src: record.src.as_ref().map(FlatEnd::from),
            dst: record.dst.as_ref().map(FlatEnd::from),
            protocol: record.protocol.map(protocol_name),
            tcp_flags: tcp_flags(record.tcp_flags),
            vlan: record.vlan,
            fragment: record.is_fragment,
            service: record.service.as_deref(),
            backend: record.backend.map(|backend| backend.to_string()),
            object: record.object.as_ref().map(|object| object.as_str()),
            direction: record.direction.map(direction_name),
            policy: record.policy.as_deref(),
            rule: record.rule,
            isolated_by: record.isolated_by.iter().map(|policy| &**policy).collect(),
            frame: record.prefix.iter().map(|byte| format!("{byte:02x}")).collect(),
            other: record.is_other,
            text: self.to_string(),
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podswitch_core::action::DropReason;

    use super::*;

    fn frames(reason: DropReason, count: u64) -> DroppedFrames {
        let mut record = DropRecord::new(0, reason);
        record.count = count;
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        DroppedFrames { record, first: time, last: time, node: "n1".into(), pod: None }
    }

    #[test]
    fn a_record_becomes_a_line() {
        let mut drop = frames(DropReason::PolicyIngress, 3);
        let record = &mut drop.record;
        record.protocol = Some(proto::TCP);
        record.tcp_flags = 0x12;
        let mut src = End::new([10, 0, 0, 1].into(), 0);
        (src.namespace, src.pod) = (Some("shop".into()), Some("web".into()));
        let mut dst = End::new("fd00::2".parse().expect("an address"), 80);
        dst.node = Some("n2".into());
        (record.src, record.dst) = (Some(src), Some(dst));
        record.direction = Some(Direction::Ingress);
        record.isolated_by = vec!["NetworkPolicy/shop/a".into(), "NetworkPolicy/shop/b".into()];
        let line = "1970-01-01T00:00:01.500000Z 3 times policy_ingress TCP [S.] shop/web 10.0.0.1 -> \
                    node/n2 [fd00::2]:80";
        assert_eq!(
            drop.to_string(),
            format!(
                "{line}, no ingress rule allows it; isolated by NetworkPolicy/shop/a, \
                 NetworkPolicy/shop/b"
            )
        );
        drop.record.policy = Some("ClusterNetworkPolicy/x".into());
        drop.record.rule = Some(2);
        let denied = format!("{line}, denied by ClusterNetworkPolicy/x ingress[2]");
        assert_eq!(drop.to_string(), denied);
    }

    #[test]
    fn little_is_known_of_others() {
        let drop = frames(DropReason::NoRoute, 2);
        let line = "1970-01-01T00:00:01.500000Z 2 times no_route (others, counted together)";
        assert_eq!(drop.to_string(), line);
    }
}
