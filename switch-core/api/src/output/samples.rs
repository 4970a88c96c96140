//! Records for tests.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use podswitch_core::action::DropReason;
use podswitch_core::records::DropRecord;
use podswitch_core::time::Instant;
use podswitch_node::{DroppedFrames, End, FlowChange, FlowRecord, RecordedFlow};
use podswitch_wire::flow_key::proto;

/// Start time of the connections in tests: 2023-11-14T22:13:20Z.
pub(super) fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

pub(super) fn end(address: IpAddr, port: u16, pod: Option<&str>, node: Option<&str>) -> End {
    let mut end = End::new(address, port);
    end.namespace = pod.map(|_| "shop".into());
    end.pod = pod.map(Into::into);
    end.node = node.map(Into::into);
    end
}

/// A connection of pod web on n1 to port 443 of a Service, served by pod db on n2 at port 8443: 5 packets of 500 bytes in
/// 2.5 s, 4 of 4,000 back.
pub(super) fn flow(change: FlowChange, is_v6: bool) -> RecordedFlow {
    let address = |last: u16| -> IpAddr {
        match is_v6 {
            false => [10, 1, 0, last as u8].into(),
            true => [0xfd00, 0, 0, 0, 0, 0, 0, last].into(),
        }
    };
    let client = end(address(2), 40_000, Some("web"), Some("n1"));
    let server = end(address(3), 8443, Some("db"), Some("n2"));
    let mut record = FlowRecord::new(change, 7, proto::TCP, client, server);
    record.target = (address(99), 443).into();
    record.is_translated = true;
    record.service = Some("Service/shop/db".into());
    record.start = Instant::from_secs(100);
    record.last_packet = record.start + Duration::from_millis(2_500);
    record.time = record.start + Duration::from_secs(40);
    record.packets = [5, 4];
    record.bytes = [500, 4_000];
    RecordedFlow::new(record, "n1".into(), start())
}

/// Three frames from pod web to pod db that a policy denied.
pub(super) fn denied() -> DroppedFrames {
    let mut record = DropRecord::new(0, DropReason::PolicyIngress);
    record.count = 3;
    record.bytes = 180;
    record.protocol = Some(proto::TCP);
    record.src = Some(end([10, 1, 0, 2].into(), 0, Some("web"), Some("n1")));
    record.dst = Some(end([10, 1, 0, 3].into(), 80, Some("db"), Some("n1")));
    record.isolated_by = vec!["NetworkPolicy/shop/db".into()];
    DroppedFrames::new(record, "n1".into(), start(), start() + Duration::from_secs(1))
}

/// A frame that is not IP.
pub(super) fn not_ip() -> DroppedFrames {
    let mut record = DropRecord::new(0, DropReason::EtherTypeUnsupported);
    (record.count, record.bytes) = (1, 60);
    DroppedFrames::new(record, "n1".into(), start(), start())
}
