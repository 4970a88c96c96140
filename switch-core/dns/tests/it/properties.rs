//! Any bytes, and any order of changes.

use std::sync::Arc;

use podswitch_dns::facts::{ServiceFacts, ServiceKind, SliceFacts};
use podswitch_dns::{MAX_SIZE, Name, Outcome, Settings, Transport, Zone, answer, record_type};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::{decode, ips, pod, service, slice, zone};

proptest! {
    /// No bytes make it panic, and what is answered can be read and is no longer than allowed.
    #[test]
    fn any_bytes(mut bytes in vec(any::<u8>(), 0..300), is_question in any::<bool>()) {
        let zone = zone(Settings::default());
        if is_question && bytes.len() >= 12 {
            bytes[2] &= 0x07;
            let additional = bytes[3] & 1;
            bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, additional]);
        }
        let mut out = [0; MAX_SIZE];
        if let Outcome::Answered(it) = answer(&zone, &bytes, Transport::Udp, 1, &mut out) {
            prop_assert!(it.len <= MAX_SIZE);
            decode(&out[..it.len]);
        }
    }

    /// Names of odd labels below the zone, of any type, with any size: always an answer of good form.
    #[test]
    fn any_labels(
        labels in vec(vec(any::<u8>(), 1..20), 0..6),
        tail in 0..6_usize,
        kind in prop_oneof![Just(33_u16), any::<u16>()],
        size in any::<Option<u16>>(),
        rotation in any::<u32>(),
    ) {
        let zone = zone(Settings::default());
        let tails = ["", "svc.", "set.prod.svc.", "web.prod.svc.", "prod.pod.", "twice.prod.svc."];
        let tail = Name::parse(&format!("{}cluster.local", tails[tail])).expect("a name");
        let base = podswitch_dns::query(9, &tail, kind, size);
        let mut query = base[..12].to_vec();
        for label in &labels {
            query.push(label.len() as u8);
            query.extend_from_slice(label);
        }
        query.extend_from_slice(&base[12..]);
        let mut out = [0; MAX_SIZE];
        let Outcome::Answered(it) = answer(&zone, &query, Transport::Udp, rotation, &mut out) else {
            panic!("not answered");
        };
        prop_assert!(it.len <= size.map_or(512, |size| usize::from(size).clamp(512, 1232)));
        decode(&out[..it.len]);
    }

    /// Changes in any order come to what the last state comes to from nothing.
    #[test]
    fn incremental_is_from_nothing(changes in vec(change(), 1..40)) {
        let mut zone = Zone::new(Settings::default()).expect("settings");
        zone.set_synced(true);
        let (mut state, mut copies) = (State::default(), Vec::new());
        for change in &changes {
            copies.push((zone.clone(), state.clone()));
            change.apply(&mut zone);
            state.take(change);
        }
        copies.push((zone, state));
        // Copies that were taken on the way have not changed since.
        for (zone, state) in copies.iter().rev().take(3) {
            let expected = state.zone();
            for query in questions() {
                prop_assert_eq!(bytes(zone, &query), bytes(&expected, &query), "{:?}", state);
            }
        }
    }
}

/// Everything that the generated objects could be asked for.
fn questions() -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for service in ["a", "b"] {
        for zone in ["cluster", "clusterset"] {
            let base = format!("{service}.ns.svc.{zone}.local");
            for front in ["", "h.", "10-1-0-1.", "_p._tcp.", "_q._udp.", "h.east.", "east."] {
                names.push(format!("{front}{base}"));
            }
        }
    }
    names.extend(
        ["ns.svc.cluster.local", "ns.pod.cluster.local", "pods.svc.cluster.local"]
            .map(str::to_owned),
    );
    for n in 0..4 {
        names.push(format!("{n}.0.1.10.in-addr.arpa"));
        names.push(format!("10-1-0-{n}.pods.pod.cluster.local"));
    }
    let types = [record_type::A, record_type::AAAA, record_type::SRV, record_type::PTR];
    let question = |name: &String| {
        let name = Name::parse(name).expect("a name");
        types.map(|kind| podswitch_dns::query(1, &name, kind, Some(1232)))
    };
    names.iter().flat_map(question).collect()
}

fn bytes(zone: &Zone, query: &[u8]) -> Option<Vec<u8>> {
    let mut out = [0; MAX_SIZE];
    match answer(zone, query, Transport::Udp, 0, &mut out) {
        Outcome::Answered(it) => Some(out[..it.len].to_vec()),
        _ => None,
    }
}

#[derive(Clone, Debug)]
enum Change {
    Service(bool, Arc<ServiceFacts>),
    NoService(bool, &'static str),
    Slice(Arc<SliceFacts>),
    NoSlice(Arc<SliceFacts>),
    Pod(u8, Option<&'static str>),
    Namespace(bool),
}

impl Change {
    fn apply(&self, zone: &mut Zone) {
        let done = match self {
            Self::Service(false, facts) => zone.upsert_service(facts.clone()),
            Self::Service(true, facts) => zone.upsert_import(facts.clone()),
            Self::NoService(false, name) => zone.delete_service("ns", name),
            Self::NoService(true, name) => zone.delete_import("ns", name),
            Self::Slice(facts) => zone.upsert_slice(facts.clone()),
            Self::NoSlice(facts) => zone.delete_slice(facts),
            Self::Pod(n, Some(address)) => zone.upsert_pod(pod("pods", &n.to_string(), &[address])),
            Self::Pod(n, None) => zone.delete_pod("pods", &n.to_string()),
            Self::Namespace(exists) => zone.set_namespace("ns", *exists),
        };
        done.expect("good names");
    }

    /// What it is about.
    fn key(&self) -> String {
        match self {
            Self::Service(import, facts) => format!("service {import} {}", facts.name),
            Self::NoService(import, name) => format!("service {import} {name}"),
            Self::Slice(facts) | Self::NoSlice(facts) => {
                format!("slice {:?} {} {}", facts.cluster, facts.service, facts.name)
            }
            Self::Pod(n, _) => format!("pod {n}"),
            Self::Namespace(_) => "namespace".to_owned(),
        }
    }
}

/// The last change of each object.
#[derive(Clone, Debug, Default)]
struct State(std::collections::BTreeMap<String, Change>);

impl State {
    fn take(&mut self, change: &Change) {
        self.0.insert(change.key(), change.clone());
    }

    fn zone(&self) -> Zone {
        let mut zone = Zone::new(Settings::default()).expect("settings");
        zone.set_synced(true);
        self.0.values().for_each(|change| change.apply(&mut zone));
        zone
    }
}

fn change() -> impl Strategy<Value = Change> {
    let name = prop_oneof![Just("a"), Just("b")];
    let ports =
        prop_oneof![Just(&["p/tcp/80"][..]), Just(&["p/tcp/80", "q/udp/53"][..]), Just(&[][..])];
    let kind = prop_oneof![
        Just(ServiceKind::Headless),
        Just(ips(&["10.1.0.1", "fd00::1"])),
        Just(ips(&["10.1.0.2"])),
        Just(ServiceKind::External("b.ns.svc.cluster.local".into())),
    ];
    let facts = (name.clone(), kind, ports.clone())
        .prop_map(|(name, kind, ports)| service(&format!("{name}.ns"), kind, ports));
    let endpoints = vec(
        prop_oneof![Just("h@10.1.0.0"), Just("10.1.0.1"), Just("!10.1.0.2"), Just("h@fd00::2")],
        0..4,
    );
    let cluster = prop_oneof![3 => Just(None), 1 => Just(Some("east"))];
    let slices = (name.clone(), 0..2_u8, endpoints, ports, cluster).prop_map(
        |(name, number, endpoints, ports, cluster)| {
            let facts = slice(&format!("{name}.ns"), number, &endpoints, ports);
            Arc::new(SliceFacts { cluster: cluster.map(Into::into), ..(*facts).clone() })
        },
    );
    let addresses = prop_oneof![Just(None), Just(Some("10.1.0.1")), Just(Some("10.1.0.3"))];
    prop_oneof![
        4 => (prop::bool::weighted(0.2), facts).prop_map(|(import, it)| Change::Service(import, it)),
        2 => (prop::bool::weighted(0.2), name).prop_map(|(import, it)| Change::NoService(import, it)),
        4 => slices.clone().prop_map(Change::Slice),
        2 => slices.prop_map(Change::NoSlice),
        2 => (0..3_u8, addresses).prop_map(|(n, address)| Change::Pod(n, address)),
        1 => any::<bool>().prop_map(Change::Namespace),
    ]
}
