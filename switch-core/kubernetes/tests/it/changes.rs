//! A store that is changed object by object reaches the same state as a complete compilation, and
//! reports what changed.

use std::collections::BTreeMap;
use std::path::Path;

use podswitch_core::config::Config;
use podswitch_core::control::Change;
use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Action, Changes, Manifests, Object, Options, PodChange, Store};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A state as text, object by object, in an order that does not depend on the history.
fn flat(config: &Config) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    let mut add =
        |key: String, text: String| assert!(map.insert(key.clone(), text).is_none(), "{key}");
    config.endpoints.iter().for_each(|o| add(o.cookie.to_string(), format!("{o:?}")));
    config.namespaces.iter().for_each(|o| add(format!("Namespace/{}", o.name), format!("{o:?}")));
    config.nodes.iter().for_each(|o| add(o.cookie.to_string(), format!("{o:?}")));
    config.policies.iter().for_each(|o| add(o.cookie.to_string(), format!("{o:?}")));
    config.cluster_policies.iter().for_each(|o| add(o.cookie.to_string(), format!("{o:?}")));
    config.services.iter().for_each(|o| add(o.cookie.to_string(), format!("{o:?}")));
    config
        .slices
        .iter()
        .for_each(|o| add(format!("Slice/{}/{}", o.namespace, o.name), format!("{o:?}")));
    for (pod, ports) in &config.host_ports {
        add(format!("host ports of {pod}"), format!("{ports:?}"));
    }
    add("node".to_owned(), format!("{:?}", config.node));
    add("service CIDRs".to_owned(), format!("{:?}", config.service_cidrs));
    map
}

/// Applies changes to a flat state.
fn apply(map: &mut BTreeMap<String, String>, changes: &Changes) {
    for change in &changes.objects {
        let (key, text) = match change {
            Change::Pod(o) => (o.cookie.to_string(), Some(format!("{o:?}"))),
            Change::PodDeleted(name) => (name.to_string(), None),
            Change::Namespace(o) => (format!("Namespace/{}", o.name), Some(format!("{o:?}"))),
            Change::NamespaceDeleted(name) => (format!("Namespace/{name}"), None),
            Change::Node(o) => (o.cookie.to_string(), Some(format!("{o:?}"))),
            Change::NodeDeleted(name) => (format!("Node/{name}"), None),
            Change::Policy(o) => (o.cookie.to_string(), Some(format!("{o:?}"))),
            Change::PolicyDeleted(name) | Change::ClusterPolicyDeleted(name) => {
                (name.to_string(), None)
            }
            Change::ClusterPolicy(o) => (o.cookie.to_string(), Some(format!("{o:?}"))),
            Change::Service(o) => (o.cookie.to_string(), Some(format!("{o:?}"))),
            Change::ServiceDeleted(o) => (format!("Service/{o}"), None),
            Change::Slice(o) => {
                (format!("Slice/{}/{}", o.namespace, o.name), Some(format!("{o:?}")))
            }
            Change::SliceDeleted(namespace, name) => (format!("Slice/{namespace}/{name}"), None),
            Change::HostPorts(pod, ports) => {
                let text = (!ports.is_empty()).then(|| format!("{ports:?}"));
                (format!("host ports of {pod}"), text)
            }
            other => panic!("{other:?} is not an object of Kubernetes"),
        };
        match text {
            Some(text) => drop(map.insert(key, text)),
            None => drop(map.remove(&key)),
        }
    }
    if let Some(base) = &changes.base {
        map.insert("node".to_owned(), format!("{:?}", base.node));
        map.insert("service CIDRs".to_owned(), format!("{:?}", base.service_cidrs));
    }
}

fn object(value: &Value) -> Object {
    Object::from_json(&value.to_string()).expect("an object")
}

const VALUES: usize = 11;

/// One of a few objects with conflicting claims: `which` of a kind, in one of several versions.
fn any_object(kind: u8, which: u8, version: u8) -> Value {
    let address = |n: u8| format!("10.0.0.{n}");
    let name = format!("o{}", which % 4);
    let namespace = format!("ns{}", which % 2);
    let created = format!("2026-01-01T00:00:{:02}Z", version % 5);
    let mut meta = json!({"name": name, "namespace": namespace, "creationTimestamp": created});
    if version.is_multiple_of(3) {
        meta["deletionTimestamp"] = json!("2026-02-01T00:00:00Z");
    }
    if version == 10 {
        meta["labels"] = json!({"not a label": ""});
    }
    let alone = |mut meta: Value| {
        meta.as_object_mut().unwrap().remove("namespace");
        meta
    };
    match kind % 8 {
        0 | 1 => {
            let phase = ["Running", "Failed", "Unknown", "Running"][usize::from(version) % 4];
            let host = version == 7;
            let ips = if host {
                json!([])
            } else {
                json!([{"ip": address(version % 4)}, {"ip": format!("fd00::{}", version % 3)}])
            };
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
                "spec": {"nodeName": format!("o{}", version % 3), "hostNetwork": host, "containers": [{"ports": [{"containerPort": 80, "hostPort": 8000 + u16::from(version % 2)}]}]},
                "status": {"phase": phase, "podIPs": ips}})
        }
        2 => {
            meta = alone(meta);
            if version == 4 {
                meta["annotations"] = json!({"flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":{}}}", 1 + which % 2)});
            }
            json!({"apiVersion": "v1", "kind": "Node", "metadata": meta,
                "spec": {"podCIDRs": [format!("10.{}.0.0/{}", version % 3, 15 + version % 2)]},
                "status": {"addresses": [{"type": "InternalIP", "address": address(version % 6)}]}})
        }
        3 => {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"v": version.to_string()}}})
        }
        4 => json!({"apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"type": "NodePort", "clusterIP": address(version % 5), "ports": [{"port": 80, "nodePort": 30000 + u16::from(version % 2)}]}}),
        5 => {
            meta["labels"] = json!({"kubernetes.io/service-name": "o1"});
            let target = json!({"kind": "Pod", "namespace": namespace, "name": name});
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
                "endpoints": [{"addresses": [address(version % 4)], "targetRef": target}, {"addresses": [address(which % 4)]}]})
        }
        6 => {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": alone(meta), "spec": {"cidrs": [format!("10.{}.0.0/16", 96 + version % 3)]}})
        }
        _ => {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta,
            "spec": {"podSelector": {"matchLabels": {"v": (version % 3).to_string()}}}})
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any sequence of upserts and deletes leads to the state that the remaining objects give when
    /// compiled from scratch, and so do the changes reported on the way.
    #[test]
    fn any_sequence_leads_to_the_same_state(
        steps in prop::collection::vec((any::<u8>(), 0u8..4, 0u8..VALUES as u8, 0u8..5), 1..60)
    ) {
        let mut store = Store::new(Some("o0"), Options::default());
        let mut objects: BTreeMap<Cookie, Value> = BTreeMap::new();
        let mut told = BTreeMap::new();
        for (kind, which, version, what) in steps {
            // An unusable policy depends on the history; separate tests cover that.
            let version = if kind % 8 == 7 { version % 10 } else { version };
            let value = any_object(kind, which, version);
            let object = object(&value);
            if what == 0 {
                store.delete(object.name());
                objects.remove(object.name());
            } else {
                store.upsert(&object);
                objects.insert(object.name().clone(), value);
            }
            // Changes may be taken at any time, or several at once.
            if what < 3 {
                apply(&mut told, &store.take_changes());
            }
        }
        apply(&mut told, &store.take_changes());
        let mut fresh = Store::new(Some("o0"), Options::default());
        for value in objects.values() {
            fresh.upsert(&object(value));
        }
        let (found, expected) = (store.compiled(), fresh.compiled());
        prop_assert_eq!(flat(&found.config), flat(&expected.config));
        prop_assert_eq!(found.flannel, expected.flannel);
        prop_assert_eq!(&told, &flat(&expected.config));
        let sorted = |mut records: Vec<_>| { records.sort(); records };
        prop_assert_eq!(sorted(found.records), sorted(expected.records));
        let names = |pods: &[podswitch_kubernetes::LocalPod]| {
            let mut names: Vec<_> = pods.iter().map(|p| (p.name.clone(), p.addresses.clone(), p.mac)).collect();
            names.sort();
            names
        };
        prop_assert_eq!(names(&found.pods), names(&expected.pods));
    }

    /// Changes that were undone leave no trace.
    #[test]
    fn changes_can_be_undone(
        before in prop::collection::vec((any::<u8>(), 0u8..4, 0u8..10), 0..30),
        after in prop::collection::vec((any::<u8>(), 0u8..4, 0u8..VALUES as u8, any::<bool>()), 1..30),
    ) {
        let mut store = Store::new(Some("o0"), Options::default());
        for (kind, which, version) in before {
            store.upsert(&object(&any_object(kind, which, version)));
        }
        let mut told = BTreeMap::new();
        apply(&mut told, &store.take_changes());
        let expected = flat(&store.compiled().config);
        store.begin();
        for (kind, which, version, upsert) in after {
            let object = object(&any_object(kind, which, version));
            if upsert { store.upsert(&object) } else { store.delete(object.name()) }
        }
        store.take_back();
        apply(&mut told, &store.take_changes());
        prop_assert_eq!(flat(&store.compiled().config), expected.clone());
        prop_assert_eq!(told, expected);
    }
}

fn policy(port: u32) -> Object {
    object(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "a"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": port}]}]}}))
}

#[test]
fn the_last_good_version_of_a_policy_stays() {
    let mut store = Store::new(None, Options::default());
    store.upsert(&policy(80));
    let good = store.compiled().config.policies[0].clone();
    drop(store.take_changes());
    for bad in [policy(0), policy(70_000)] {
        store.upsert(&bad);
        assert!(store.take_changes().is_empty());
        assert_eq!(store.compiled().config.policies, std::slice::from_ref(&good));
        let records = store.records();
        let [record] = &records.iter().filter(|r| r.refused).collect::<Vec<_>>()[..] else {
            panic!("{records:?}")
        };
        assert_eq!((record.action, record.action.name()), (Action::KeptLastGood, "kept_last_good"));
        assert_eq!(record.field, "spec.ingress[0].ports[0].port");
    }
    // The same if its version or kind becomes misspelled.
    let mistyped =
        object(&json!({"apiVersion": "networking.k8s.io/v1beta1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "a"}, "spec": {"podSelector": {}}}));
    store.upsert(&mistyped);
    assert_eq!(store.compiled().config.policies, [good]);
    // A good version replaces it; a deleted one is not remembered.
    store.upsert(&policy(443));
    assert_eq!(store.take_changes().objects.len(), 1);
    store.delete(policy(80).name());
    store.upsert(&policy(0));
    let compiled = store.compiled();
    assert_eq!(compiled.config.policies[0].ingress.as_deref(), Some(&[][..]));
    assert_eq!((compiled.counts().closed, compiled.counts().kept_last_good), (1, 0));
    // A policy that only isolates is not a good version.
    store.upsert(&policy(0));
    assert_eq!(store.compiled().counts().closed, 1);
}

#[test]
fn changes_include_this_nodes_pods() {
    let pod = |name: &str, ip: &str, node: &str, created: u8| {
        object(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{created}Z"),
                "annotations": {"podswitch.io/netns": format!("/run/netns/{name}")}},
            "spec": {"nodeName": node}, "status": {"podIPs": [{"ip": ip}]}}))
    };
    let mut store = Store::new(Some("n1"), Options::default());
    store.upsert(&pod("a", "10.0.0.1", "n1", 1));
    store.upsert(&pod("b", "10.0.0.2", "n2", 1));
    let changes = store.take_changes();
    assert!(changes.base.is_some(), "the first call gives everything");
    assert_eq!(changes.pods.len(), 1);
    let PodChange::Upsert(local) = &changes.pods[0] else { panic!() };
    assert_eq!((&*local.name, local.interface.is_some()), ("default/a", true));
    assert!(store.take_changes().is_empty());
    // Upserting the same object again changes nothing.
    store.upsert(&pod("a", "10.0.0.1", "n1", 1));
    assert!(store.take_changes().is_empty());
    // A newer pod elsewhere has the address: the old pod is removed, and returns with it.
    store.upsert(&pod("c", "10.0.0.1", "n2", 2));
    let changes = store.take_changes();
    assert_eq!(changes.pods, [PodChange::Delete(Cookie::new("Pod/default/a"))]);
    assert_eq!(changes.objects.len(), 2);
    store.delete(&Cookie::new("Pod/default/c"));
    let changes = store.take_changes();
    assert!(matches!(&changes.pods[..], [PodChange::Upsert(local)] if local.name == "default/a"));
    assert!(changes.base.is_none());
}

#[test]
fn objects_written_by_hand_keep_their_address() {
    let pod = |name: &str, ip: &str, label: &str| {
        object(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"l": label}},
            "spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": ip}]}}),
        )
    };
    let mut store = Store::new(Some("n1"), Options::default());
    // The thief arrived first, with another address.
    store.upsert(&pod("a-thief", "10.0.0.9", ""));
    store.upsert(&pod("victim", "10.0.0.1", ""));
    store.upsert(&pod("a-thief", "10.0.0.1", ""));
    let has_it = |store: &mut Store| {
        let compiled = store.compiled();
        let owner = compiled
            .config
            .endpoints
            .iter()
            .find(|e| e.workload.addresses[0].to_string() == "10.0.0.1");
        owner.map(|e| e.workload.name.to_string())
    };
    assert_eq!(has_it(&mut store).as_deref(), Some("victim"));
    // Other changes do not cost the victim its address.
    store.upsert(&pod("victim", "10.0.0.1", "changed"));
    assert_eq!(has_it(&mut store).as_deref(), Some("victim"));
    store.upsert(&pod("victim", "10.0.0.2", ""));
    assert_eq!(has_it(&mut store).as_deref(), Some("a-thief"));
}

#[test]
fn only_a_single_object_of_a_supported_kind_is_accepted() {
    for text in [
        "",
        "{",
        "[]",
        "7",
        "{\"kind\":\"List\",\"items\":[]}",
        "{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\"}",
    ] {
        assert!(Object::from_json(text).is_err(), "{text}");
    }
    let name = object(&any_object(0, 1, 1)).name().to_string();
    assert_eq!(name, "Pod/ns1/o1");
    // A manifest and a store give the same result.
    let value = any_object(0, 1, 3);
    let mut store = Store::new(None, Options::default());
    store.upsert(&object(&value));
    let manifests = Manifests::parse(Path::new("a.json"), &value.to_string()).unwrap();
    let compiled = manifests.compile(None, &Options::default());
    assert_eq!(flat(&store.compiled().config), flat(&compiled.config));
}
