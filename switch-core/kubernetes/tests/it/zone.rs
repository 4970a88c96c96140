//! The zone that a store keeps with its objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use podswitch_core::control::Change;
use podswitch_dns::{Explained, Name, Zone, explain, record_type as rt};
use podswitch_kubernetes::{NameOptions, Object, Options, Store};
use podswitch_policy::service::model::EndpointSlice;
use proptest::prelude::*;
use serde_json::{Value, json};

const RESOLVER: [&str; 2] = ["169.254.53.53", "fd70:6f64:7377::53"];

fn store() -> Store {
    let resolver = RESOLVER.map(|text| text.parse().unwrap()).to_vec();
    let names = Some(NameOptions { resolver, ..NameOptions::default() });
    Store::new(Some("n1"), Options { names, ..Options::default() })
}

fn object(value: &Value) -> Object {
    Object::from_json(&value.to_string()).unwrap()
}

/// Object number `which` of its kind, in one of its versions.
fn any_object(kind: u8, which: u8, version: u8) -> Value {
    let name = ["web", "db"][usize::from(which % 2)];
    let namespace = ["a", "b"][usize::from(which / 2 % 2)];
    let meta = json!({"name": name, "namespace": namespace});
    match kind % 4 {
        0 => {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": match version % 4 {
                0 => json!({"clusterIP": format!("10.96.0.{}", which + 1), "ports": [{"name": "http", "port": 80}]}),
                1 => json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
                2 => json!({"type": "ExternalName", "externalName": "db.a.svc.cluster.local"}),
                // It cannot be used.
                _ => json!({"clusterIP": "10.96.0.256", "ports": [{"port": 80}]}),
            }})
        }
        1 => json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": namespace,
                "labels": {"kubernetes.io/service-name": (["web", "db"][usize::from(version % 2)])}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [format!("10.1.{which}.{version}")], "hostname": "h",
                "conditions": {"ready": !version.is_multiple_of(3)}}]}),
        2 => json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        _ => {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"nodeName": "n1"},
            "status": {"phase": (["Running", "Failed"][usize::from(version % 2)]),
                "podIPs": [{"ip": format!("10.1.{which}.{}", version / 2 + 1)}]}})
        }
    }
}

/// What is answered to every question that these objects have an answer to, and others.
fn answers(zone: &Zone) -> Vec<Explained> {
    let mut names = vec!["cluster.local".to_owned(), "svc.cluster.local".to_owned()];
    for namespace in ["a", "b"] {
        names.push(format!("{namespace}.svc.cluster.local"));
        for service in ["web", "db"] {
            for front in ["", "h.", "_http._tcp."] {
                names.push(format!("{front}{service}.{namespace}.svc.cluster.local"));
            }
        }
        for (which, last) in (0..4).flat_map(|which| (0..8).map(move |last| (which, last))) {
            names.push(format!("10-1-{which}-{last}.{namespace}.pod.cluster.local"));
        }
    }
    for (which, last) in (0..4).flat_map(|which| (0..8).map(move |last| (which, last))) {
        names.push(format!("{last}.{which}.1.10.in-addr.arpa"));
    }
    let parsed = names.iter().map(|text| Name::parse(text).unwrap());
    let types = [rt::A, rt::SRV, rt::PTR, rt::CNAME];
    let ask = |name: Name| types.map(|qtype| explain(zone, &name, qtype));
    let mut list: Vec<Explained> = parsed.flat_map(ask).collect();
    // Its serial counts changes.
    for record in list.iter_mut().flat_map(|it| &mut it.records) {
        if record.kind == "SOA" {
            record.data.clear();
        }
    }
    list
}

/// The last zone among changes.
fn taken(store: &mut Store, known: &mut Option<Arc<Zone>>) {
    for change in store.take_changes().objects {
        if let Change::Zone(zone) = change {
            *known = zone;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Any sequence of changes, some of them undone, leads to the zone of the objects that remain.
    #[test]
    fn any_sequence_leads_to_the_same_names(
        steps in prop::collection::vec((any::<u8>(), 0u8..4, 0u8..8, 0u8..6), 1..40)
    ) {
        let mut store = store();
        let mut objects = BTreeMap::new();
        let mut known = None;
        for (kind, which, version, what) in steps {
            let value = any_object(kind, which, version);
            let it = object(&value);
            match what {
                0 => {
                    store.delete(it.name());
                    objects.remove(it.name());
                }
                1 => {
                    store.begin();
                    store.upsert(&it);
                    store.take_back();
                }
                _ => {
                    store.upsert(&it);
                    objects.insert(it.name().clone(), value);
                }
            }
            if what % 2 == 0 {
                taken(&mut store, &mut known);
            }
        }
        taken(&mut store, &mut known);
        let mut fresh = self::store();
        objects.values().for_each(|value| fresh.upsert(&object(value)));
        let expected = fresh.compiled().config.zone.expect("a zone");
        prop_assert!(expected.is_synced());
        prop_assert_eq!(answers(&known.expect("taken")), answers(&expected));
        prop_assert_eq!(answers(&store.compiled().config.zone.expect("a zone")), answers(&expected));
    }
}

#[test]
fn what_names_do_not_depend_on_changes_no_zone() {
    let mut store = store();
    let pod = |phase: &str, ready: &str| {
        object(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "a", "labels": {"ready": ready}},
            "spec": {"nodeName": "n1"},
            "status": {"phase": phase, "podIPs": [{"ip": "10.1.0.2"}]}}))
    };
    let mut known = None;
    store.upsert(&pod("Running", "no"));
    taken(&mut store, &mut known);
    assert!(known.take().is_some());
    store.upsert(&pod("Running", "yes"));
    taken(&mut store, &mut known);
    assert!(known.is_none(), "labels are of no use to it");
    store.upsert(&pod("Succeeded", "yes"));
    taken(&mut store, &mut known);
    assert!(known.is_some());
    // Without names, nothing is kept.
    let mut plain = Store::new(Some("n1"), Options::default());
    plain.upsert(&pod("Running", "no"));
    taken(&mut plain, &mut known.take());
    assert!(plain.compiled().config.zone.is_none());
}

#[test]
fn the_resolver_is_the_last_backend_of_its_service() {
    let service = |port: &str| {
        object(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": port, "port": 53, "protocol": "UDP"},
                {"name": "metrics", "port": 9153}]}}))
    };
    let slices = |store: &mut Store| -> Vec<Arc<EndpointSlice>> {
        let changes = store.take_changes().objects.into_iter();
        changes.filter_map(|it| if let Change::Slice(it) = it { Some(it) } else { None }).collect()
    };
    let mut store = store();
    assert!(slices(&mut store).is_empty());
    store.upsert(&service("dns"));
    let list = slices(&mut store);
    let addresses: Vec<_> =
        list.iter().map(|slice| slice.endpoints[0].addresses[0].to_string()).collect();
    assert_eq!(addresses, RESOLVER);
    for slice in &list {
        let endpoint = &slice.endpoints[0];
        assert!(!endpoint.conditions.is_ready() && endpoint.conditions.is_serving());
        assert!(endpoint.conditions.is_terminating());
        assert_eq!(endpoint.node.as_deref(), Some("n1"));
        let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.port)).collect();
        assert_eq!(ports, [("dns", Some(53))]);
    }
    assert_eq!(store.compiled().config.slices.len(), 2);
    store.upsert(&service("udp"));
    assert_eq!(slices(&mut store)[0].ports[0].name.as_ref(), "udp");
    assert!(slices(&mut store).is_empty());
    store.delete(service("udp").name());
    let gone = store.take_changes().objects.into_iter();
    assert_eq!(gone.filter(|it| matches!(it, Change::SliceDeleted(..))).count(), 2);
    assert!(store.compiled().config.slices.is_empty());
}
