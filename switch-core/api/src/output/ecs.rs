//! Records as documents with the field names of the Elastic Common Schema
//! (<https://www.elastic.co/guide/en/ecs/current/>). Fields without an ECS name are under `podswitch`.

use std::sync::Arc;
use std::time::SystemTime;

use humantime::format_rfc3339_micros;
use podswitch_dns::type_name;
use podswitch_node::{CloseReason, DroppedFrames, End, FlowChange, FlowsLeftOut, RecordedFlow};
use podswitch_wire::flow_key::proto;
use serde_json::{Map, Value, json};

use super::community_id::CommunityId;
use super::record::Record;

/// The version of the schema whose names are used.
const ECS_VERSION: &str = "8.17.0";

/// The data set that a record belongs to: `flow` or `drop`.
pub(super) fn dataset(record: &Record) -> &'static str {
    match record {
        Record::Drop(_) => "drop",
        Record::Flow(_) | Record::LeftOut { .. } => "flow",
    }
}

/// The document of a record. `data_stream`: whether its fields name the data stream to which it is sent.
pub(super) fn document(record: &Record, data_stream: bool) -> Value {
    let mut document = match record {
        Record::Flow(flow) => of_flow(flow),
        Record::Drop(frames) => of_drop(frames),
        Record::LeftOut { counts, time, node } => of_left_out(counts, *time, node),
    };
    let dataset = format!("podswitch.{}", dataset(record));
    document["ecs"] = json!({ "version": ECS_VERSION });
    document["event"]["module"] = "podswitch".into();
    document["event"]["dataset"] = (&*dataset).into();
    if data_stream {
        document["data_stream"] =
            json!({ "type": "logs", "dataset": dataset, "namespace": "default" });
    }
    without_nulls(&mut document);
    document
}

/// Removes fields with unknown values.
fn without_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(without_nulls);
        map.retain(|_, value| !value.is_null() && !value.as_object().is_some_and(Map::is_empty));
    }
}

fn time(time: SystemTime) -> Value {
    format_rfc3339_micros(time).to_string().into()
}

fn observer(node: &str) -> Value {
    json!({
        "name": node,
        "type": "switch",
        "vendor": "podswitch",
        "product": "podswitch",
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn transport(protocol: u8) -> Value {
    match protocol {
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::SCTP => "sctp".into(),
        proto::ICMP => "icmp".into(),
        proto::ICMPV6 => "ipv6-icmp".into(),
        other => other.to_string().into(),
    }
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP)
}

/// The addresses and port of an end.
fn end(end: &End, protocol: u8) -> Value {
    json!({
        "address": end.address.to_string(),
        "ip": end.address.to_string(),
        "port": has_ports(protocol).then_some(end.port).filter(|port| *port != 0),
    })
}

/// The names of an end.
fn names(end: &End) -> Value {
    json!({
        "namespace": end.namespace.as_deref(),
        "pod": end.pod.as_deref(),
        "node": end.node.as_deref(),
    })
}

/// Whether the ends are inside, from the point of view of the cluster.
fn direction(src: &End, dst: &End) -> &'static str {
    match (src.node.is_some(), dst.node.is_some()) {
        (true, true) => "internal",
        (true, false) => "outbound",
        (false, true) => "inbound",
        (false, false) => "external",
    }
}

/// The pod on this node, or the other pod if only that one is known.
fn orchestrator(node: &str, ends: [&End; 2]) -> Value {
    let is_here = |end: &&&End| end.node.as_deref() == Some(node) && end.pod.is_some();
    let end = ends.iter().find(is_here).or_else(|| ends.iter().find(|end| end.pod.is_some()));
    json!({
        "type": "kubernetes",
        "namespace": end.and_then(|end| end.namespace.as_deref()),
        "resource": {
            "name": end.and_then(|end| end.pod.as_deref()),
            "type": end.map(|_| "pod"),
        },
    })
}

fn of_flow(flow: &RecordedFlow) -> Value {
    let record = &flow.record;
    let protocol = record.protocol;
    let (action, kinds) = match record.change {
        FlowChange::Opened => ("flow_opened", ["connection", "start", "allowed"]),
        FlowChange::Updated => ("flow_updated", ["connection", "info", "allowed"]),
        FlowChange::Closed(_) => ("flow_closed", ["connection", "end", "allowed"]),
    };
    let is_over = record.change != FlowChange::Opened;
    let count = |count: u64| is_over.then_some(count);
    let mut source = end(&record.client, protocol);
    source["packets"] = count(record.packets[0]).into();
    source["bytes"] = count(record.bytes[0]).into();
    if let Some(nat) = record.source_nat {
        source["nat"] = json!({ "ip": nat.ip().to_string(), "port": nat.port() });
    }
    let target = End::new(record.target.ip(), record.target.port());
    let mut destination = end(&target, protocol);
    destination["packets"] = count(record.packets[1]).into();
    destination["bytes"] = count(record.bytes[1]).into();
    if record.is_translated {
        let End { address, port, .. } = &record.server;
        destination["nat"] = json!({ "ip": address.to_string(), "port": port });
    }
    // For ICMP, echo requests are tracked; the port of the server is their type.
    let ports = match has_ports(protocol) {
        true => (record.client.port, record.target.port()),
        false => (record.target.port(), 0),
    };
    let id =
        CommunityId::new(protocol, (record.client.address, ports.0), (record.target.ip(), ports.1));
    let rules = [(&record.egress, "egress"), (&record.ingress, "ingress")]
        .map(|(allowed, direction)| RecordedFlow::rule(allowed.as_ref(), direction));
    let duration = u64::try_from(record.duration().as_nanos()).unwrap_or(u64::MAX);
    let dns = record.question.as_ref().map(|question| {
        json!({
            "type": "answer",
            "question": { "name": question.name.trim_end_matches('.'), "type": type_name(question.qtype), "class": "IN" },
            "response_code": question.rcode.name(),
        })
    });
    json!({
        "@timestamp": time(flow.time),
        "dns": dns,
        "event": {
            "kind": "event",
            "category": ["network"],
            "type": kinds,
            "action": action,
            "outcome": "success",
            "id": format!("{:016x}", record.id),
            "start": time(flow.start),
            "end": is_over.then(|| time(flow.end)),
            "duration": is_over.then_some(duration),
            "reason": flow.close_reason().map(CloseReason::name),
        },
        "source": source,
        "destination": destination,
        "network": {
            "transport": transport(protocol),
            "iana_number": protocol.to_string(),
            "type": if record.client.address.is_ipv4() { "ipv4" } else { "ipv6" },
            "direction": direction(&record.client, &record.server),
            "community_id": id.map(|id| id.to_string()),
            "packets": count(record.packets.iter().sum()),
            "bytes": count(record.bytes.iter().sum()),
        },
        "rule": { "name": array(rules.into_iter().flatten()) },
        "observer": observer(&flow.node),
        "orchestrator": orchestrator(&flow.node, [&record.client, &record.server]),
        "podswitch": {
            "epoch": record.epoch.0,
            "source": names(&record.client),
            "destination": names(&record.server),
            "service": record.service.as_deref(),
            "tcp_state": flow.state(),
        },
    })
}

/// One value, several, or none.
fn array(values: impl Iterator<Item = String>) -> Value {
    let mut values: Vec<Value> = values.map(Value::from).collect();
    match values.len() {
        0 => Value::Null,
        1 => values.remove(0),
        _ => values.into(),
    }
}

fn of_drop(frames: &DroppedFrames) -> Value {
    let record = &frames.record;
    let class = record.reason.class().name();
    let kinds: &[&str] = match frames.is_denied() {
        true => &["connection", "denied"],
        false => &["connection", "info"],
    };
    let mut document = json!({
        "@timestamp": time(frames.last),
        "message": frames.to_string(),
        "event": {
            "kind": "event",
            "category": ["network"],
            "type": kinds,
            "action": "dropped",
            "outcome": "failure",
            "reason": record.reason.name(),
            "start": time(frames.first),
            "end": time(frames.last),
        },
        "network": {
            "packets": record.count,
            "bytes": record.bytes,
            "vlan": { "id": record.vlan.map(|vlan| vlan.to_string()) },
        },
        "rule": { "name": frames.rule() },
        "observer": observer(&frames.node),
        "podswitch": {
            "epoch": record.epoch.0,
            "worker": record.worker,
            "class": class,
            "direction": frames.direction(),
            "pod": frames.pod.as_ref().map(ToString::to_string),
            "object": record.object.as_ref().map(ToString::to_string),
            "isolated_by": match record.isolated_by.is_empty() {
                true => Value::Null,
                false => record.isolated_by.iter().map(|policy| Value::from(&**policy)).collect(),
            },
            "service": record.service.as_deref(),
            "backend": record.backend.map(|backend| backend.to_string()),
            "frame": match record.prefix.is_empty() {
                true => Value::Null,
                false => Value::from(record.prefix.iter().map(|b| format!("{b:02x}")).collect::<String>()),
            },
        },
    });
    let (Some(src), Some(dst), Some(protocol)) = (&record.src, &record.dst, record.protocol) else {
        return document;
    };
    document["source"] = end(src, protocol);
    document["source"]["packets"] = record.count.into();
    document["source"]["bytes"] = record.bytes.into();
    document["destination"] = end(dst, protocol);
    document["network"]["transport"] = transport(protocol);
    document["network"]["iana_number"] = protocol.to_string().into();
    document["network"]["type"] = if src.address.is_ipv4() { "ipv4" } else { "ipv6" }.into();
    document["network"]["direction"] = direction(src, dst).into();
    if record.is_single() && has_ports(protocol) {
        let id = CommunityId::new(protocol, (src.address, src.port), (dst.address, dst.port));
        document["network"]["community_id"] = id.map(|id| id.to_string()).into();
    }
    document["orchestrator"] = orchestrator(&frames.node, [src, dst]);
    document["podswitch"]["source"] = names(src);
    document["podswitch"]["destination"] = names(dst);
    document
}

fn of_left_out(counts: &FlowsLeftOut, at: SystemTime, node: &Arc<str>) -> Value {
    let FlowsLeftOut { opened, closed, packets, bytes, .. } = *counts;
    json!({
        "@timestamp": time(at),
        "event": { "kind": "metric", "category": ["network"], "type": ["info"], "action": "flows_left_out" },
        "observer": observer(node),
        "podswitch": {
            "left_out": { "opened": opened, "closed": closed, "packets": packets, "bytes": bytes },
        },
    })
}

#[cfg(test)]
mod tests {
    use podswitch_node::FlowChange;

    use super::super::samples;
    use super::*;

    fn of(record: Record) -> Value {
        document(&record, true)
    }

    #[test]
    fn a_connection_is_a_document() {
        let mut flow = samples::flow(FlowChange::Closed(CloseReason::Fin), false);
        flow.record.source_nat = Some("192.0.2.1:61000".parse().unwrap());
        let document = of(Record::Flow(Box::new(flow)));
        let expected = json!({
            "@timestamp": "2023-11-14T22:14:00.000000Z",
            "ecs": { "version": "8.17.0" },
            "data_stream": { "type": "logs", "dataset": "podswitch.flow", "namespace": "default" },
            "event": {
                "kind": "event", "category": ["network"], "type": ["connection", "end", "allowed"],
                "action": "flow_closed", "outcome": "success", "id": "0000000000000007",
                "start": "2023-11-14T22:13:20.000000Z", "end": "2023-11-14T22:13:22.500000Z",
                "duration": 2_500_000_000u64, "reason": "fin",
                "module": "podswitch", "dataset": "podswitch.flow",
            },
            "source": {
                "address": "10.1.0.2", "ip": "10.1.0.2", "port": 40000, "packets": 5, "bytes": 500,
                "nat": { "ip": "192.0.2.1", "port": 61000 },
            },
            "destination": {
                "address": "10.1.0.99", "ip": "10.1.0.99", "port": 443, "packets": 4, "bytes": 4000,
                "nat": { "ip": "10.1.0.3", "port": 8443 },
            },
            "network": {
                "transport": "tcp", "iana_number": "6", "type": "ipv4", "direction": "internal",
                "community_id": "1:LDEeTKAuOkzDGF8mkRmMmolXO7A=", "packets": 9, "bytes": 4500,
            },
            "observer": {
                "name": "n1", "type": "switch", "vendor": "podswitch", "product": "podswitch",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "orchestrator": {
                "type": "kubernetes", "namespace": "shop", "resource": { "name": "web", "type": "pod" },
            },
            "podswitch": {
                "epoch": 0, "service": "Service/shop/db",
                "source": { "namespace": "shop", "pod": "web", "node": "n1" },
                "destination": { "namespace": "shop", "pod": "db", "node": "n2" },
            },
        });
        assert_eq!(document, expected);
        let opened = of(Record::Flow(Box::new(samples::flow(FlowChange::Opened, true))));
        assert_eq!(opened["network"]["type"], "ipv6");
        for path in ["/event/end", "/event/duration", "/source/packets", "/network/bytes", "/rule"]
        {
            assert_eq!(opened.pointer(path), None, "{path}: it is not known yet");
        }
    }

    #[test]
    fn drops_are_documents() {
        let document = of(Record::Drop(Box::new(samples::denied())));
        assert_eq!(document["event"]["type"], json!(["connection", "denied"]));
        assert_eq!(document["event"]["reason"], "policy_ingress");
        assert_eq!(document["event"]["outcome"], "failure");
        assert_eq!(document["event"]["dataset"], "podswitch.drop");
        assert_eq!(document["podswitch"]["isolated_by"], json!(["NetworkPolicy/shop/db"]));
        assert_eq!(document["network"]["packets"], 3);
        assert_eq!(
            (&document["source"]["port"], &document["destination"]["port"]),
            (&Value::Null, &80.into())
        );
        assert_eq!(document["network"].get("community_id"), None, "several ports");
        let document = of(Record::Drop(Box::new(samples::not_ip())));
        assert_eq!((document.get("source"), &document["network"]["bytes"]), (None, &60.into()));
    }
}
