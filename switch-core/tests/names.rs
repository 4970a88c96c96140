//! Cluster DNS on the engine: queries in, answers out, both families.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::Config;
use podswitch_core::control::Change;
use podswitch_core::records::{CloseReason, FlowChange, FlowRecord, FlowRecorder};
use podswitch_dns::facts::{ServiceFacts, ServiceKind};
use podswitch_dns::{Name, Rcode, Settings, Zone, query, record_type as rt};
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{EndpointSlice, Service, ServicePort, SlicePort};
use podswitch_testkit::rig::services::{self, FAMILIES, at, ends, one, quiet, vip};
use podswitch_testkit::rig::{self, Switch, addresses, allow_udp, framed, set_mtu};
use podswitch_wire::checksum::verify_l4;
use podswitch_wire::flow_key::proto;

const API: &str = "api.shop.svc.cluster.local";
/// Pod 0 asks, pod 1 serves kube-dns.
const CLIENT: usize = 0;
const BACKEND: usize = 1;

fn api(address: &str) -> ServiceFacts {
    ServiceFacts::cluster_ips("shop", "api", [address.parse().unwrap()])
}

fn zone(services: impl IntoIterator<Item = ServiceFacts>) -> Zone {
    let mut zone = Zone::new(Settings::default()).unwrap();
    for service in services {
        zone.upsert_service(Arc::new(service)).unwrap();
    }
    zone.set_synced(true);
    zone
}

fn config(backends: &[usize], zone: Zone) -> Config {
    let dns = |port: &str, protocol| SlicePort { protocol, ..SlicePort::tcp(port, 5353) };
    let service = Service {
        ports: vec![ServicePort { protocol: Protocol::Udp, ..ServicePort::tcp("dns", 53) }],
        ..Service::cluster_ip("kube-system", "kube-dns", [vip(0), vip(1)])
    };
    let slice = |f| EndpointSlice {
        namespace: "kube-system".into(),
        ports: vec![dns("dns", Protocol::Udp)],
        ..services::slice("kube-dns", f, backends)
    };
    Config {
        services: vec![Arc::new(service)],
        slices: FAMILIES.map(|f| Arc::new(slice(f))).to_vec(),
        zone: Some(Arc::new(zone)),
        ..services::config(&[])
    }
}

fn datagram(f: usize, port: u16, content: &[u8]) -> Vec<u8> {
    let (from, to) = (addresses(CLIENT)[f], vip(f));
    let udp = rig::frames::udp(from, to, (port, 53), content);
    framed(CLIENT, &rig::frames::ip(from, to, proto::UDP, 64, None, &udp))
}

fn ask(name: &str, qtype: u16) -> Vec<u8> {
    query(0x1234, &Name::parse(name).unwrap(), qtype, Some(1232))
}

/// The answer that pod 0 got: from the address and port that it asked.
#[track_caller]
fn answer(switch: &mut Switch, f: usize, port: u16) -> Vec<u8> {
    let (frame, parsed) = one(switch, CLIENT);
    ends(&parsed.key, at(vip(f), 53), at(addresses(CLIENT)[f], port));
    assert!(verify_l4(&frame, &parsed));
    assert_eq!(parsed.key.proto, proto::UDP);
    frame[usize::from(parsed.payload)..parsed.end as usize].to_vec()
}

fn rcode(answer: &[u8]) -> u8 {
    answer[3] & 15
}

#[test]
fn a_query_is_answered_from_the_address_that_was_asked() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[BACKEND], zone([api("10.96.0.7")])));
        for (port, name, qtype, expected) in [
            (4000, API, rt::A, Rcode::NoError),
            (4000, API, rt::AAAA, Rcode::NoError),
            (4001, API, rt::ANY, Rcode::NoError),
            (4002, "none.shop.svc.cluster.local", rt::A, Rcode::NxDomain),
        ] {
            switch.send(CLIENT, &datagram(f, port, &ask(name, qtype)));
            let got = answer(&mut switch, f, port);
            assert_eq!(rcode(&got), expected as u8, "{name}");
            let has_address = got.windows(4).any(|bytes| bytes == [10, 96, 0, 7]);
            let has_one = expected == Rcode::NoError && qtype != rt::AAAA;
            assert_eq!(has_address, has_one, "{name} {qtype}");
            quiet(&mut switch);
        }
        // Nothing is kept, and nothing is dropped.
        assert_eq!(switch.control.connections().len(), 0);
        assert_eq!(switch.dropped(), []);
        assert_eq!(switch.count(|counters| counters.consumed.get()), 4);
        assert_eq!(switch.count(|counters| counters.names.rcodes[0].get()), 3);
        assert_eq!(switch.count(|counters| counters.names.queries[f][1].get()), 1, "AAAA");
        assert_eq!(switch.count(|counters| counters.names.queries[1 - f][0].get()), 0);
        switch.assert_adds_up();
    }
}

#[test]
fn what_is_not_ours_goes_to_the_backend_and_back() {
    for f in FAMILIES {
        let mut alias = api("10.96.0.7");
        alias.name = "alias".into();
        alias.kind = ServiceKind::External("www.example.com".into());
        let mut switch = Switch::new(&config(&[BACKEND], zone([api("10.96.0.7"), alias])));
        let client = addresses(CLIENT)[f];
        let mut response = ask(API, rt::A);
        response[2] |= 0x80;
        let mut update = ask(API, rt::A);
        update[2] |= 0x28;
        let others = [
            ask("www.example.com", rt::A),
            // Its records are added by a forwarder.
            ask("alias.shop.svc.cluster.local", rt::A),
            update,
            response,
            vec![7; 5],
        ];
        for content in &others {
            switch.send(CLIENT, &datagram(f, 4000, content));
            let (frame, parsed) = one(&mut switch, BACKEND);
            ends(&parsed.key, at(client, 4000), at(addresses(BACKEND)[f], 5353));
            assert_eq!(&frame[usize::from(parsed.payload)..parsed.end as usize], &content[..]);
        }
        let reply = services::packet(proto::UDP, (addresses(BACKEND)[f], 5353), (client, 4000));
        switch.send(BACKEND, &framed(BACKEND, &reply));
        let (_, parsed) = one(&mut switch, CLIENT);
        ends(&parsed.key, at(vip(f), 53), at(client, 4000));
        // The next query of that socket is for the zone.
        switch.send(CLIENT, &datagram(f, 4000, &ask(API, rt::A)));
        assert_eq!(rcode(&answer(&mut switch, f, 4000)), 0);
        quiet(&mut switch);
        assert_eq!(switch.count(|counters| counters.names.passed.get()), others.len() as u64);
        switch.assert_adds_up();
    }
}

#[test]
fn before_all_objects_are_known_the_backend_answers() {
    let mut unknown = zone([api("10.96.0.7")]);
    unknown.set_synced(false);
    for zone in [Some(Arc::new(unknown)), None] {
        let config = Config { zone, ..config(&[BACKEND], zone_of_nothing()) };
        let mut switch = Switch::new(&config);
        switch.send(CLIENT, &datagram(0, 4000, &ask(API, rt::A)));
        one(&mut switch, BACKEND);
        quiet(&mut switch);
    }
}

fn zone_of_nothing() -> Zone {
    zone([])
}

#[test]
fn policy_is_that_of_the_backend() {
    for f in FAMILIES {
        // Backends may be reached at that port, not at the Service's.
        let mut config = config(&[BACKEND], zone([api("10.96.0.7")]));
        allow_udp(&mut config, &[53]);
        let mut switch = Switch::new(&config);
        switch.send(CLIENT, &datagram(f, 4000, &ask(API, rt::A)));
        quiet(&mut switch);
        assert_eq!(switch.dropped(), [(CLIENT as u16, DropReason::PolicyIngress)]);
        config.policies.clear();
        allow_udp(&mut config, &[5353]);
        switch.control.apply(&config).unwrap();
        for port in [4000, 4001] {
            switch.send(CLIENT, &datagram(f, port, &ask(API, rt::A)));
            answer(&mut switch, f, port);
        }
        let counted: Vec<_> = switch.control.policy_counts();
        let allowed = counted.iter().find(|count| count.rule == Some(0)).expect("counted");
        assert_eq!(allowed.decided, 2);
        switch.assert_adds_up();
    }
}

#[test]
fn without_a_backend_the_client_is_told() {
    let mut switch = Switch::new(&config(&[], zone([api("10.96.0.7")])));
    switch.send(CLIENT, &datagram(0, 4000, &ask(API, rt::A)));
    let (frame, parsed) = one(&mut switch, CLIENT);
    assert_eq!(frame[usize::from(parsed.l4)..][..2], [3, 3]);
    assert_eq!(switch.dropped(), [(CLIENT as u16, DropReason::ServiceNoEndpoints)]);
}

#[test]
fn a_change_is_answered_with_the_state_that_has_it() {
    let mut switch = Switch::new(&config(&[BACKEND], zone([api("10.96.0.7")])));
    let asked = datagram(0, 4000, &ask(API, rt::A));
    let moved = zone([api("10.96.0.8")]);
    switch.control.update([Change::Zone(Some(Arc::new(moved)))]).unwrap();
    switch.send(CLIENT, &asked);
    assert!(answer(&mut switch, 0, 4000).windows(4).any(|bytes| bytes == [10, 96, 0, 8]));
    // A publish that is refused leaves the names as they are.
    let bad = Change::Slice(Arc::new(EndpointSlice {
        family: podswitch_wire::flow_key::Family::V6,
        ..services::slice("kube-dns", 0, &[BACKEND])
    }));
    let refused = switch.control.update([Change::Zone(None), bad]);
    assert!(refused.is_err());
    switch.send(CLIENT, &asked);
    answer(&mut switch, 0, 4000);
    // Other changes keep them, too.
    switch.control.update([Change::NamespaceDeleted("nothing".into())]).unwrap();
    switch.send(CLIENT, &asked);
    answer(&mut switch, 0, 4000);
    switch.control.update([Change::Zone(None)]).unwrap();
    switch.send(CLIENT, &asked);
    one(&mut switch, BACKEND);
}

#[test]
fn damaged_and_fragmented_queries_are_not_answered_here() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[BACKEND], zone([api("10.96.0.7")])));
        let mut damaged = datagram(f, 4000, &ask(API, rt::A));
        *damaged.last_mut().unwrap() ^= 1;
        switch.send(CLIENT, &damaged);
        assert_eq!(switch.recv(CLIENT).len(), 0);
        assert_eq!(switch.recv(BACKEND).len(), 1);
        assert_eq!(switch.count(|counters| counters.names.passed.get()), 1);

        // Whole, the same query would be answered.
        let (from, to) = (addresses(CLIENT)[f], vip(f));
        let udp = rig::frames::udp(from, to, (4001, 53), &ask(API, rt::A));
        let pieces = rig::frames::fragments((from, to), proto::UDP, 7, &udp, &[32]);
        assert_eq!(pieces.len(), 2);
        for piece in &pieces {
            switch.send(CLIENT, &framed(CLIENT, piece));
        }
        assert_eq!(switch.recv(CLIENT).len(), 0);
        assert_eq!(switch.recv(BACKEND).len(), 2);
        assert_eq!(switch.dropped(), []);
        switch.send(CLIENT, &datagram(f, 4001, &ask(API, rt::A)));
        answer(&mut switch, f, 4001);
        quiet(&mut switch);
        switch.assert_adds_up();
    }
}

#[test]
fn an_answer_fits_what_the_client_receives() {
    let many = |n: u8| {
        let mut facts = api("10.96.0.7");
        facts.kind =
            ServiceKind::ClusterIps((0..n).map(|at| IpAddr::from([10, 96, 1, at])).collect());
        facts
    };
    for f in FAMILIES {
        let mut config = config(&[BACKEND], zone([many(120)]));
        set_mtu(&mut config, CLIENT, 1280);
        let mut switch = Switch::new(&config);
        let mut plain = query(1, &Name::parse(API).unwrap(), rt::A, None);
        for (size, most) in [(None, 512), (Some(4096), 1232)] {
            if size.is_some() {
                plain = query(1, &Name::parse(API).unwrap(), rt::A, size);
            }
            switch.send(CLIENT, &datagram(f, 4000, &plain));
            let got = answer(&mut switch, f, 4000);
            assert!(got.len() <= most, "{}", got.len());
            assert_eq!(got[2] & 2, 2, "truncated");
            assert!(got.len() > most - 40, "as much as fits");
        }
        assert_eq!(switch.count(|counters| counters.names.truncated.get()), 2);
    }
}

#[test]
fn an_answered_query_is_in_the_flow_records() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[BACKEND], zone([api("10.96.0.7")])));
        let mut recorder = FlowRecorder::new();
        switch.control.observe_flows(|_| Some(recorder.observer()));
        recorder.published(switch.control.snapshot());
        switch.pass(std::time::Duration::ZERO);
        switch.send(CLIENT, &datagram(f, 4000, &ask("none.shop.svc.cluster.local", rt::AAAA)));
        answer(&mut switch, f, 4000);
        let mut records: Vec<FlowRecord> = Vec::new();
        recorder.read(switch.now, |record| records.push(record));
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!(record.change, FlowChange::Closed(CloseReason::Answered));
        let question = record.question.as_ref().expect("a question");
        assert_eq!(question.name, "none.shop.svc.cluster.local.");
        assert_eq!((question.qtype, question.rcode), (rt::AAAA, Rcode::NxDomain));
        assert_eq!(record.client.pod.as_deref(), Some("p0"));
        assert_eq!(record.server.pod.as_deref(), Some("p1"));
        assert_eq!(record.service.as_deref(), Some("Service/kube-system/kube-dns"));
        assert_eq!(record.target, at(vip(f), 53));
        assert_eq!(record.packets, [1, 1]);
        assert!(record.bytes.iter().all(|bytes| *bytes > 60));
        assert!(recorder.take_left_out().is_none());
    }
}
