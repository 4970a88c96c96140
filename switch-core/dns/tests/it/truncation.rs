//! Answers that are too long for a datagram, and the order of records.

use std::collections::BTreeSet;

use domain::base::iana::Rtype;
use podswitch_dns::facts::ServiceKind;
use podswitch_dns::{
    MAX_SIZE, MAX_TCP, Name, Outcome, Settings, Transport, Zone, answer, record_type,
};

use crate::world::{answered, decode, query, service, slice, zone};

/// A headless Service with `count` endpoints.
fn with_endpoints(count: u8) -> Zone {
    let mut zone = zone(Settings::default());
    let many = service("many.prod", ServiceKind::Headless, &["http/tcp/80"]);
    zone.upsert_service(many).expect("a Service");
    let endpoints: Vec<_> = (0..count).map(|n| format!("10.9.0.{n}")).collect();
    let endpoints: Vec<_> = endpoints.iter().map(|text| &**text).collect();
    zone.upsert_slice(slice("many.prod", 0, &endpoints, &["http/tcp/80"])).expect("a slice");
    zone
}

const MANY: &str = "many.prod.svc.cluster.local";

#[test]
fn the_client_says_what_it_can_receive() {
    let zone = with_endpoints(200);
    let name = Name::parse(MANY).expect("a name");
    // Header, question and 16 bytes a record, with EDNS 11 bytes less.
    let head = 12 + MANY.len() + 2 + 4;
    for (size, expected) in [
        (None, (512 - head) / 16),
        (Some(0), (512 - 11 - head) / 16),
        (Some(512), (512 - 11 - head) / 16),
        (Some(1000), (1000 - 11 - head) / 16),
        (Some(1232), (1232 - 11 - head) / 16),
        (Some(4096), (1232 - 11 - head) / 16),
        (Some(65_535), (1232 - 11 - head) / 16),
    ] {
        let query = podswitch_dns::query(1, &name, record_type::A, size);
        let mut out = [0; MAX_SIZE];
        let Outcome::Answered(it) = answer(&zone, &query, Transport::Udp, 0, &mut out) else {
            panic!("not answered")
        };
        let bound = size.map_or(512, |size| usize::from(size).clamp(512, 1232));
        assert!(it.len <= bound, "{size:?}: {}", it.len);
        let reply = decode(&out[..it.len]);
        assert!(reply.truncated && it.is_truncated, "{size:?}");
        assert_eq!(reply.answer.len(), expected, "{size:?}");
    }
    let mut out = vec![0; MAX_TCP];
    let query = podswitch_dns::query(1, &name, record_type::A, Some(512));
    let Outcome::Answered(it) = answer(&zone, &query, Transport::Tcp, 0, &mut out) else {
        panic!("not answered")
    };
    let reply = decode(&out[..it.len]);
    assert_eq!((reply.truncated, reply.answer.len()), (false, 200));
}

/// Records that are only additional may be missing without TC (RFC 2181 section 9).
#[test]
fn additional_records_are_left_out() {
    let zone = with_endpoints(18);
    let name = Name::parse(&format!("_http._tcp.{MANY}")).expect("a name");
    let query = podswitch_dns::query(1, &name, record_type::SRV, Some(1232));
    let mut out = [0; MAX_SIZE];
    let Outcome::Answered(it) = answer(&zone, &query, Transport::Udp, 0, &mut out) else {
        panic!("not answered")
    };
    let reply = decode(&out[..it.len]);
    assert_eq!((reply.truncated, reply.answer.len()), (false, 18));
    assert!((1..18).contains(&reply.additional.len()), "{reply:?}");
}

/// A client without TCP gets every address in time, though each answer is cut (RFC 1794).
#[test]
fn the_order_turns() {
    let zone = with_endpoints(100);
    let query = query(MANY, Rtype::A);
    let (mut seen, mut first) = (BTreeSet::new(), BTreeSet::new());
    for rotation in 0..100 {
        let mut out = [0; MAX_SIZE];
        let Outcome::Answered(it) = answer(&zone, &query, Transport::Udp, rotation, &mut out)
        else {
            panic!("not answered")
        };
        let reply = decode(&out[..it.len]);
        first.insert(reply.answer[0].clone());
        seen.extend(reply.answer);
    }
    assert_eq!((seen.len(), first.len()), (100, 100));
}

/// Whatever the order, the records are the same, and those of SRV have their additional ones.
#[test]
fn a_turn_loses_nothing() {
    let zone = zone(Settings::default());
    for (name, kind) in [
        ("_http._tcp.set.prod.svc.cluster.local", Rtype::SRV),
        ("kube-dns.kube-system.svc.cluster.local", Rtype::SRV),
        ("set.prod.svc.cluster.local", Rtype::A),
    ] {
        let query = query(name, kind);
        let sorted = |rotation| {
            let mut reply = answered(&zone, &query, rotation).expect("ours");
            reply.answer.sort();
            reply.additional.sort();
            reply
        };
        let expected = sorted(0);
        for rotation in [1, 2, 3, 4, 5, 1_000, u32::MAX] {
            assert_eq!(sorted(rotation), expected, "{name}, {rotation}");
        }
    }
}
