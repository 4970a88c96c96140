//! Headers, EDNS, and datagrams that are not plain questions.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode as TheirRcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use podswitch_dns::{
    Answer, Ignored, MAX_SIZE, NotOurs, Outcome, Rcode, Settings, Transport, Zone, answer,
};

use crate::world::{query, zone};

fn send(zone: &Zone, query: &[u8]) -> (Outcome, Vec<u8>) {
    let mut out = [0; MAX_SIZE];
    let outcome = answer(zone, query, Transport::Udp, 0, &mut out);
    let len = match outcome {
        Outcome::Answered(Answer { len, .. }) => len,
        _ => 0,
    };
    (outcome, out[..len].to_vec())
}

fn rcode(outcome: Outcome) -> Rcode {
    match outcome {
        Outcome::Answered(it) => it.rcode,
        other => panic!("{other:?}"),
    }
}

const WEB: &str = "web.prod.svc.cluster.local";

#[test]
fn the_header_answers_the_header() {
    let zone = zone(Settings::default());
    let mut asked = query(WEB, Rtype::A);
    for (rd, cd) in [(false, false), (true, false), (false, true), (true, true)] {
        asked[2] = u8::from(rd);
        // AD in a query means that the client understands it (RFC 6840); nothing is signed here.
        asked[3] = 0x20 | if cd { 0x10 } else { 0 };
        let (_, bytes) = send(&zone, &asked);
        let message = Message::from_octets(bytes).expect("a header");
        let header = message.header();
        assert_eq!((header.id(), header.qr(), header.opcode()), (0x1234, true, Opcode::QUERY));
        assert_eq!((header.rd(), header.cd(), header.ad()), (rd, cd, false));
        assert!(header.aa() && header.ra() && !header.z());
        let question = message.sole_question().expect("the question");
        assert_eq!(question.qname().to_string(), WEB);
    }
    let zone = self::zone(Settings { is_recursive: false, ..Settings::default() });
    let (_, bytes) = send(&zone, &asked);
    assert!(!Message::from_octets(bytes).expect("a header").header().ra());
}

#[test]
fn edns() {
    let zone = zone(Settings::default());
    for (dnssec, version) in [(false, 0), (true, 0), (false, 1)] {
        let mut message = MessageBuilder::new_vec().question();
        let name: Name<Vec<u8>> = WEB.parse().expect("a name");
        message.push((name, Rtype::A, Class::IN)).expect("room");
        let mut additional = message.additional();
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(4096);
                opt.set_version(version);
                opt.set_dnssec_ok(dnssec);
                opt.padding(7)
            })
            .expect("room");
        let (outcome, bytes) = send(&zone, &additional.finish());
        let message = Message::from_octets(bytes).expect("a header");
        let opt = message.opt().expect("an OPT record");
        assert_eq!((opt.udp_payload_size(), opt.version()), (1232, 0));
        assert_eq!(opt.dnssec_ok(), dnssec);
        if version == 0 {
            assert_eq!(message.header_counts().ancount(), 1);
        } else {
            assert_eq!(rcode(outcome), Rcode::BadVers);
            assert_eq!(message.opt_rcode(), OptRcode::BADVERS);
            assert_eq!(message.header_counts().ancount(), 0);
        }
    }
    // Without OPT there is none in the answer (RFC 6891 section 6.1.1).
    let (_, bytes) = send(&zone, &query(WEB, Rtype::A));
    assert!(Message::from_octets(bytes).expect("a header").opt().is_none());
}

#[test]
fn before_all_objects_are_known() {
    let mut zone = zone(Settings {
        reverse_zones: vec![podswitch_dns::Name::parse("0.10.in-addr.arpa").expect("a name")],
        ..Settings::default()
    });
    zone.set_synced(false);
    for name in [
        WEB,
        "none.prod.svc.cluster.local",
        "cluster.local",
        "ext.prod.svc.cluster.local",
        "web.prod.svc.clusterset.local",
        "1.0.0.10.in-addr.arpa",
    ] {
        let (outcome, bytes) = send(&zone, &query(name, Rtype::A));
        assert_eq!(rcode(outcome), Rcode::ServFail, "{name}");
        let header = Message::from_octets(bytes).expect("a header").header();
        assert!(!header.aa() && header.rcode() == TheirRcode::SERVFAIL, "{name}");
    }
    for name in ["example.test", "2.0.0.172.in-addr.arpa"] {
        let (outcome, _) = send(&zone, &query(name, Rtype::A));
        assert_eq!(outcome, Outcome::NotOurs(NotOurs::OtherZone), "{name}");
    }
}

#[test]
fn other_classes_and_transfers_are_refused() {
    let zone = zone(Settings::default());
    for kind in [Rtype::AXFR, Rtype::IXFR] {
        for name in ["cluster.local", WEB] {
            assert_eq!(rcode(send(&zone, &query(name, kind)).0), Rcode::Refused);
        }
    }
    for class in [Class::CH, Class::HS, Class::ANY, Class::NONE] {
        let mut message = MessageBuilder::new_vec().question();
        let name: Name<Vec<u8>> = WEB.parse().expect("a name");
        message.push((name, Rtype::A, class)).expect("room");
        let (outcome, bytes) = send(&zone, &message.finish());
        assert_eq!(rcode(outcome), Rcode::Refused, "{class}");
        assert!(!Message::from_octets(bytes).expect("a header").header().aa());
    }
}

#[test]
fn what_is_for_the_slower_way() {
    let zone = zone(Settings::default());
    let asked = query(WEB, Rtype::A);
    let change = |at: usize, value: u8| {
        let mut query = asked.clone();
        query[at] = value;
        query
    };
    let with_record = |section: usize, record: &[u8]| {
        let mut query = change(section, 1);
        query.extend_from_slice(record);
        query
    };
    let a = b"\x01a\0\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04";
    let mut compressed = asked[..12].to_vec();
    compressed.extend_from_slice(b"\x03web\xc0\x0c\0\x01\0\x01");
    for (datagram, expected) in [
        (change(2, 0x10), NotOurs::Opcode),
        (change(2, 0x28), NotOurs::Opcode),
        (change(5, 0), NotOurs::Questions),
        (change(5, 2), NotOurs::Questions),
        (change(4, 1), NotOurs::Questions),
        (compressed, NotOurs::Compressed),
        (with_record(7, a), NotOurs::Records),
        (with_record(9, a), NotOurs::Records),
        (with_record(11, a), NotOurs::Records),
        (query("example.test", Rtype::A), NotOurs::OtherZone),
    ] {
        assert_eq!(send(&zone, &datagram).0, Outcome::NotOurs(expected), "{datagram:?}");
    }
}

#[test]
fn what_gets_no_answer() {
    let zone = zone(Settings::default());
    let asked = query(WEB, Rtype::A);
    let mut response = asked.clone();
    response[2] |= 0x80;
    assert_eq!(send(&zone, &response).0, Outcome::Ignored(Ignored::Response));
    for len in 0..12 {
        assert_eq!(send(&zone, &asked[..len]).0, Outcome::Ignored(Ignored::Short));
    }
    let mut small = [0; 40];
    let outcome = answer(&zone, &asked, Transport::Udp, 0, &mut small);
    assert_eq!(outcome, Outcome::Ignored(Ignored::Buffer));
}

#[test]
fn malformed_queries() {
    let zone = zone(Settings::default());
    let asked = query(WEB, Rtype::A);
    let mut cases: Vec<Vec<u8>> = (12..asked.len()).map(|len| asked[..len].to_vec()).collect();
    let mut reserved = asked.clone();
    reserved[12] = 0x43;
    cases.push(reserved);
    let mut long = asked[..12].to_vec();
    long.extend(b"\x01a".repeat(128));
    long.extend_from_slice(b"\0\0\x01\0\x01");
    cases.push(long);
    let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
    let with_options = |count: u8, records: &[u8]| {
        let mut query = asked.clone();
        query[11] = count;
        query.extend_from_slice(records);
        query
    };
    cases.push(with_options(1, &opt[..9]));
    cases.push(with_options(2, &opt.repeat(2)));
    cases.push(with_options(1, b"\0\0\x29\x04\xd0\0\0\0\0\0\x04\0\x0c\0\x09"));
    for query in cases {
        let (outcome, bytes) = send(&zone, &query);
        assert_eq!(rcode(outcome), Rcode::FormErr, "{query:?}");
        let message = Message::from_octets(bytes).expect("a header");
        assert_eq!((message.header().id(), message.as_slice().len()), (0x1234, 12));
        assert_eq!(message.header().rcode(), TheirRcode::FORMERR);
    }
    // What comes after the last record does not matter.
    let mut more = asked.clone();
    more.extend_from_slice(b"noise");
    assert_eq!(rcode(send(&zone, &more).0), Rcode::NoError);
}
