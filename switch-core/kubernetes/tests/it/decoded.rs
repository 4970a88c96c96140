//! Objects as an API server sends them: decoded by kind, read before a store has them, and in their
//! thin form.

use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Action, Kind, Object, ObjectError, Options, Store};

fn object(kind: Kind, json: &str) -> Object {
    Object::decode(kind, json).expect(json)
}

const POD: &str = r#"{"metadata":{"name":"web","namespace":"shop","uid":"u-1","resourceVersion":"7",
    "labels":{"app":"web"},"annotations":{"podswitch.io/mac":"0a:58:0a:01:00:07","note":"long"},
    "managedFields":[{"manager":"kubelet","fieldsV1":{"f:spec":{}}}],"creationTimestamp":"2026-11-30T05:05:29Z"},
    "spec":{"nodeName":"n1","volumes":[{"name":"v"}],"initContainers":[{"restartPolicy":"Always",
    "ports":[{"name":"side","containerPort":9}]},{"ports":[{"name":"init","containerPort":8}]}],
    "containers":[{"image":"i","ports":[{"name":"http","containerPort":80,"protocol":"TCP","hostPort":8080}]}]},
    "status":{"phase":"Running","hostIP":"192.0.2.1","podIP":"10.1.0.7","podIPs":[{"ip":"10.1.0.7"}]}}"#;
const NODE: &str = r#"{"metadata":{"name":"n1","annotations":{"podswitch.io/vtep-mac":"0e:58:01:02:03:04"}},
    "spec":{"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24"],"taints":[{"key":"k"}]},
    "status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}],
    "conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"True"}],"images":[{}]}}"#;
const POLICY: &str = r#"{"metadata":{"name":"p","namespace":"shop"},"spec":{"podSelector":{"matchLabels":{"app":"web"}},
    "policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.9.0.0/16"]}}],
    "ports":[{"port":"http"},{"port":80,"endPort":90}]}]}}"#;
const SERVICE: &str = r#"{"metadata":{"name":"s","namespace":"shop"},"spec":{"type":"NodePort","clusterIP":"11.0.0.1",
    "clusterIPs":["11.0.0.1"],"ports":[{"name":"http","port":80,"targetPort":"http","nodePort":30080}],
    "sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}}}}"#;
const SLICE: &str = r#"{"metadata":{"name":"s-x","namespace":"shop","labels":{"kubernetes.io/service-name":"s"}},
    "addressType":"IPv4","endpoints":[{"addresses":["10.1.0.7"],"conditions":{"ready":true},"nodeName":"n1","zone":"z",
    "hints":{"forZones":[{"name":"z"}]},"targetRef":{"kind":"Pod","namespace":"shop","name":"web"}},
    {"addresses":["10.1.0.8"],"conditions":{"ready":false}},{"addresses":["10.1.0.9"]}],
    "ports":[{"name":"http","port":8080,"protocol":"TCP"}]}"#;
const CIDR: &str = r#"{"metadata":{"name":"c"},"spec":{"cidrs":["11.0.0.0/8"]}}"#;
const NAMESPACE: &str =
    r#"{"metadata":{"name":"shop","labels":{"team":"t"}},"status":{"phase":"Active"}}"#;
const CLUSTER_POLICY: &str = r#"{"metadata":{"name":"cp"},"spec":{"tier":"Admin","priority":5,
    "subject":{"namespaces":{}},"ingress":[{"name":"r","action":"Deny","from":[{"namespaces":{}}]}]}}"#;

const ALL: [(Kind, &str); 8] = [
    (Kind::Namespace, NAMESPACE),
    (Kind::Node, NODE),
    (Kind::Pod, POD),
    (Kind::NetworkPolicy, POLICY),
    (Kind::ClusterNetworkPolicy, CLUSTER_POLICY),
    (Kind::Service, SERVICE),
    (Kind::EndpointSlice, SLICE),
    (Kind::ServiceCidr, CIDR),
];

/// Everything that a store derives from objects.
fn made_of(objects: &[Object]) -> String {
    let mut store = Store::new(Some("n1"), Options::default());
    objects.iter().for_each(|object| store.upsert(object));
    let changes = store.take_changes();
    format!("{:?} {:?} {:?}", changes, store.records(), store.compiled())
}

#[test]
fn decoding_by_kind_equals_decoding_by_the_objects_own_kind() {
    let decoded: Vec<Object> = ALL.iter().map(|(kind, json)| object(*kind, json)).collect();
    let told: Vec<Object> = ALL
        .iter()
        .map(|(kind, json)| {
            let version = match kind.group() {
                "" => kind.versions()[0].to_owned(),
                group => format!("{group}/{}", kind.versions()[0]),
            };
            let head = format!(r#"{{"apiVersion":"{version}","kind":"{}","#, kind.name());
            Object::from_json(&json.replacen('{', &head, 1)).expect(json)
        })
        .collect();
    assert_eq!(made_of(&decoded), made_of(&told));
    for (decoded, told) in decoded.iter().zip(&told) {
        assert_eq!((decoded.name(), decoded.kind()), (told.name(), told.kind()));
    }
}

#[test]
fn the_thin_form_gives_the_same_state() {
    let objects: Vec<Object> = ALL.iter().map(|(kind, json)| object(*kind, json)).collect();
    let thin: Vec<String> = objects.iter().map(|it| it.to_json().expect("well formed")).collect();
    let again: Vec<Object> =
        objects.iter().zip(&thin).map(|(it, thin)| object(it.kind(), thin)).collect();
    assert_eq!(made_of(&objects), made_of(&again));
    let pod = &thin[2];
    assert!(!pod.contains("managedFields") && !pod.contains("note"), "{pod}");
    assert_eq!(again[2].uid(), Some("u-1"));
}

#[test]
fn invalid_objects_keep_their_name_and_kind() {
    for (kind, json, field) in [
        (
            Kind::Pod,
            r#"{"metadata":{"name":"x","namespace":"a"},"spec":{"nodeName":7}}"#,
            "spec.nodeName",
        ),
        (Kind::Node, r#"{"metadata":{"name":"x"},"spec":{"podCIDRs":"no list"}}"#, "spec.podCIDRs"),
        (
            Kind::NetworkPolicy,
            r#"{"metadata":{"name":"x","namespace":"a"},"spec":{"newField":1}}"#,
            "spec.newField",
        ),
    ] {
        let bad = object(kind, json);
        assert!(!bad.is_well_formed());
        let mut store = Store::new(None, Options::default());
        store.upsert(&bad);
        let records = store.records();
        let record = records.iter().find(|record| record.object == *bad.name()).expect(json);
        assert!(record.field.starts_with(field) || field.starts_with(&record.field), "{record}");
        assert_eq!(record.action == Action::Closed, kind.is_policy());
        // An unusable policy is kept; another unusable object is not.
        assert_eq!(bad.to_json().is_some(), kind.is_policy());
    }
    assert!(matches!(Object::decode(Kind::Pod, "{"), Err(ObjectError::Syntax(_))));
    assert_eq!(Object::decode(Kind::Pod, "[1]").err(), Some(ObjectError::OtherKind));
    let nameless = object(Kind::Pod, r#"{"metadata":{"namespace":"a"}}"#);
    assert_eq!(nameless.name(), &Cookie::new("Pod/a/?"));
}

#[test]
fn parts_that_programs_read() {
    let (pod, node) = (object(Kind::Pod, POD), object(Kind::Node, NODE));
    assert_eq!((pod.uid(), pod.node_name()), (Some("u-1"), Some("n1")));
    assert_eq!(pod.labels().collect::<Vec<_>>(), [("app", "web")]);
    assert_eq!(pod.annotation("note"), Some("long"));
    let ports: Vec<_> =
        pod.named_ports().iter().map(|port| (port.name.to_string(), port.port)).collect();
    assert_eq!(
        ports,
        [("http".into(), 80), ("side".into(), 9)],
        "sidecars count, init containers do not"
    );
    assert_eq!(node.node_condition("NetworkUnavailable"), Some("True"));
    assert_eq!(node.node_condition("Other"), None);
    let ready: Vec<_> = object(Kind::EndpointSlice, SLICE)
        .ready_endpoints()
        .iter()
        .map(|endpoint| endpoint.address.to_string())
        .collect();
    assert_eq!(ready, ["10.1.0.7:8080", "10.1.0.9:8080"]);

    assert!(!object(Kind::NetworkPolicy, POLICY).has_pod_peers());
    assert!(object(Kind::ClusterNetworkPolicy, CLUSTER_POLICY).has_pod_peers());
    for peer in [r#""podSelector":{}"#, r#""namespaceSelector":{}"#] {
        for side in [r#""ingress":[{"from""#, r#""egress":[{"to""#] {
            let json = format!(
                r#"{{"metadata":{{"name":"p","namespace":"a"}},"spec":{{"podSelector":{{}},{side}:[{{{peer}}}]}}]}}}}"#
            );
            assert!(object(Kind::NetworkPolicy, &json).has_pod_peers(), "{json}");
        }
    }
}

#[test]
fn an_annotated_address_counts_until_the_status_has_one_and_takes_no_other_pods() {
    let pod = |name: &str, annotation: &str, status: &str, created: u32| {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"a","creationTimestamp":"2026-11-30T05:05:{created:02}Z",
                "annotations":{{"podswitch.io/addresses":"{annotation}"}}}},"spec":{{"nodeName":"n2"}},
                "status":{{"phase":"Pending"{status}}}}}"#
        );
        object(Kind::Pod, &json)
    };
    let reported =
        |address: &str| format!(r#","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]"#);
    let addresses = |store: &mut Store, name: &str| {
        let config = store.compiled().config;
        let found = config.endpoints.iter().find(|pod| &*pod.workload.name == name);
        found.map(|pod| pod.workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let mut store = Store::new(Some("n1"), Options::default());
    store.upsert(&pod("x", "10.1.0.2, fd00::2", "", 1));
    assert_eq!(addresses(&mut store, "x"), Some(vec!["10.1.0.2".into(), "fd00::2".into()]));
    store.upsert(&pod("x", "10.1.0.2,fd00::2", &reported("10.1.0.3"), 1));
    assert_eq!(
        addresses(&mut store, "x"),
        Some(vec!["10.1.0.3".into()]),
        "the status takes precedence"
    );
    // A newer pod that only claims the address does not take it away, whichever comes first.
    store.upsert(&pod("thief", "10.1.0.3", "", 30));
    assert_eq!(addresses(&mut store, "thief"), None);
    assert_eq!(addresses(&mut store, "x"), Some(vec!["10.1.0.3".into()]));
    let lost = store.records().into_iter().find(|record| record.object.as_str() == "Pod/a/thief");
    let lost = lost.expect("it is reported").to_string();
    assert!(lost.contains("podswitch.io/addresses") && lost.contains("Pod/a/x"), "{lost}");
    store.delete(&Cookie::new("Pod/a/x"));
    assert_eq!(addresses(&mut store, "thief"), Some(vec!["10.1.0.3".into()]));
    // An unusable address is left out and reported.
    store.upsert(&pod("bad", "10.1.0.300,127.0.0.1,10.1.0.4,10.1.0.5", "", 1));
    assert_eq!(addresses(&mut store, "bad"), Some(vec!["10.1.0.4".into()]));
    let said =
        store.records().iter().filter(|record| record.object.as_str() == "Pod/a/bad").count();
    assert_eq!(said, 3);
}
