//! Encodes records according to the templates.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use podswitch_node::{CloseReason, DroppedFrames, FlowChange, RecordedFlow};
use podswitch_wire::flow_key::proto;

use super::super::record::Record;
use super::template::Template;

/// Number of continuing connections whose counts are remembered. Others are exported only when they
/// end.
const REMEMBERED: usize = 65_536;

/// flowEndReason.
const IDLE: u8 = 1;
const ACTIVE: u8 = 2;
const ENDED: u8 = 3;
const FORCED: u8 = 4;
const RESOURCES: u8 = 5;
/// biflowDirection: the source is the initiator.
const INITIATOR: u8 = 1;
/// forwardingStatus (RFC 7270 §4.12).
const FORWARDED: u8 = 64;
const DROPPED: u8 = 128;
const DROPPED_ACL: u8 = 129;
const DROPPED_NO_ROUTE: u8 = 131;
const DROPPED_SPOOFED: u8 = 140;
/// firewallEvent.
const IGNORED: u8 = 0;
const DELETED: u8 = 2;
const DENIED: u8 = 3;
const UPDATED: u8 = 5;

/// Packets and bytes from the client and from the server.
type Counted = [u64; 4];

/// Encodes data records.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// The counts of continuing connections that were already exported.
    exported: HashMap<u64, Counted>,
}

impl Encoder {
    /// The data record of a record, if it has one.
    pub(super) fn encode(&mut self, record: &Record) -> Option<(Template, Vec<u8>)> {
        match record {
            Record::Flow(flow) => self.flow(flow),
            Record::Drop(frames) => Some(dropped(frames)),
            Record::LeftOut { .. } => None,
        }
    }

    /// The counts since the last record of the connection.
    fn since(&mut self, flow: &RecordedFlow) -> Option<Counted> {
        let record = &flow.record;
        let [packets, replies] = record.packets;
        let [bytes, reply_bytes] = record.bytes;
        let now = [packets, bytes, replies, reply_bytes];
        let before = match record.change {
            FlowChange::Opened => return None,
            FlowChange::Updated if self.exported.contains_key(&record.id) => {
                self.exported.insert(record.id, now)
            }
            FlowChange::Updated if self.exported.len() < REMEMBERED => {
                self.exported.insert(record.id, now)
            }
            FlowChange::Updated => return None,
            FlowChange::Closed(_) => self.exported.remove(&record.id),
        };
        let before = before.unwrap_or_default();
        Some(std::array::from_fn(|at| now[at].saturating_sub(before[at])))
    }

    fn flow(&mut self, flow: &RecordedFlow) -> Option<(Template, Vec<u8>)> {
        let [packets, bytes, replies, reply_bytes] = self.since(flow)?;
        let record = &flow.record;
        let (client, target) = (&record.client, record.target);
        let template = match client.address {
            IpAddr::V4(_) => Template::Flow4,
            IpAddr::V6(_) => Template::Flow6,
        };
        let (reason, event) = match record.change {
            FlowChange::Closed(reason) => (end_reason(reason), DELETED),
            _ => (ACTIVE, UPDATED),
        };
        let seen = record.source_nat.map_or((client.address, client.port), |s| (s.ip(), s.port()));
        let server = (record.server.address, record.server.port);
        let port = |port| if has_ports(record.protocol) { port } else { 0 };
        let mut data = Data::default();
        data.bytes(&record.id.to_be_bytes());
        data.address(client.address).address(target.ip());
        data.port(port(client.port)).port(port(target.port()));
        data.byte(record.protocol);
        data.count(bytes).count(packets).count(reply_bytes).count(replies);
        data.time(flow.start).time(flow.end);
        data.byte(reason).byte(INITIATOR);
        data.address(seen.0).address(server.0);
        data.port(port(seen.1)).port(port(server.1));
        data.byte(FORWARDED).byte(event);
        Some((template, data.0))
    }
}

fn end_reason(reason: CloseReason) -> u8 {
    match reason {
        CloseReason::Fin | CloseReason::Rst | CloseReason::Answered => ENDED,
        CloseReason::Evicted => RESOURCES,
        CloseReason::Replaced | CloseReason::BackendGone | CloseReason::Shutdown => FORCED,
        // Idle at the end, for any reason.
        _ => IDLE,
    }
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP)
}

fn dropped(frames: &DroppedFrames) -> (Template, Vec<u8>) {
    let record = &frames.record;
    let mut data = Data::default();
    let mut template = Template::DropOther;
    if let (Some(src), Some(dst), Some(protocol)) = (&record.src, &record.dst, record.protocol) {
        template = match src.address {
            IpAddr::V4(_) => Template::Drop4,
            IpAddr::V6(_) => Template::Drop6,
        };
        let port = |port| if has_ports(protocol) { port } else { 0 };
        data.address(src.address).address(dst.address);
        data.port(port(src.port)).port(port(dst.port)).byte(protocol);
    }
    data.count(record.bytes).count(record.count);
    data.time(frames.first).time(frames.last);
    let status = match record.reason.name() {
        _ if frames.is_denied() => DROPPED_ACL,
        "no_route" => DROPPED_NO_ROUTE,
        name if name.starts_with("spoofed") => DROPPED_SPOOFED,
        _ => DROPPED,
    };
    data.byte(status).byte(if frames.is_denied() { DENIED } else { IGNORED });
    (template, data.0)
}

/// The fields of a data record, in order.
#[derive(Default)]
struct Data(Vec<u8>);

impl Data {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn byte(&mut self, byte: u8) -> &mut Self {
        self.bytes(&[byte])
    }

    fn port(&mut self, port: u16) -> &mut Self {
        self.bytes(&port.to_be_bytes())
    }

    fn count(&mut self, count: u64) -> &mut Self {
        self.bytes(&count.to_be_bytes())
    }

    fn address(&mut self, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    /// Milliseconds since 1970.
    fn time(&mut self, time: SystemTime) -> &mut Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.count(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::samples;
    use super::*;

    fn flow(change: FlowChange, packets: [u64; 2]) -> Record {
        let mut flow = samples::flow(change, false);
        flow.record.packets = packets;
        Record::Flow(Box::new(flow))
    }

    fn counts(record: Option<(Template, Vec<u8>)>) -> [u64; 2] {
        let (_, data) = record.unwrap();
        [29, 45].map(|at| u64::from_be_bytes(data[at..at + 8].try_into().unwrap()))
    }

    #[test]
    fn records_have_the_length_of_their_template() {
        let mut encoder = Encoder::default();
        for is_v6 in [false, true] {
            let flow = samples::flow(FlowChange::Closed(CloseReason::Fin), is_v6);
            let (template, data) = encoder.encode(&Record::Flow(Box::new(flow))).unwrap();
            assert_eq!(template, if is_v6 { Template::Flow6 } else { Template::Flow4 });
            assert_eq!(data.len(), template.length());
        }
        for drop in [samples::denied(), samples::not_ip()] {
            let (template, data) = encoder.encode(&Record::Drop(Box::new(drop))).unwrap();
            assert_eq!(data.len(), template.length());
        }
    }

    #[test]
    fn the_counts_of_all_records_of_a_connection_sum_up_to_its_own() {
        let mut encoder = Encoder::default();
        assert!(encoder.encode(&flow(FlowChange::Opened, [1, 0])).is_none());
        assert_eq!(counts(encoder.encode(&flow(FlowChange::Updated, [5, 4]))), [5, 4]);
        assert_eq!(counts(encoder.encode(&flow(FlowChange::Updated, [7, 4]))), [2, 0]);
        let closed = FlowChange::Closed(CloseReason::Timeout);
        assert_eq!(counts(encoder.encode(&flow(closed, [9, 5]))), [2, 1]);
        assert_eq!(counts(encoder.encode(&flow(closed, [9, 5]))), [9, 5], "another one");
    }
}
