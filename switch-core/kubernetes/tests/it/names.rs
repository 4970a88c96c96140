//! What objects say of names (`dns.rs`).

use std::path::Path;

use podswitch_dns::facts::{Facts, Protocol, ServiceKind};
use podswitch_kubernetes::{Manifests, Options};

use crate::pod;

/// All that a text says of names, in its order.
fn facts(text: &str) -> Vec<Facts> {
    let manifests = Manifests::parse(Path::new("test.yaml"), text).expect("readable");
    manifests.name_facts(&Options::default()).map(|(_, facts)| facts).collect()
}

fn service(spec: &str) -> Option<ServiceKind> {
    let text = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: a}}, spec: {{{spec}}}}}"
    );
    facts(&text).pop().map(|facts| match facts {
        Facts::Service(facts) => facts.kind.clone(),
        other => panic!("{other:?}"),
    })
}

#[test]
fn services_by_kind() {
    let addresses = ["10.96.0.1", "fd00::1"].map(|text| text.parse().expect("an address"));
    let both = "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 1}]";
    assert_eq!(service(both), Some(ServiceKind::ClusterIps(addresses.into())));
    assert_eq!(service("clusterIP: None"), Some(ServiceKind::Headless));
    assert_eq!(service("clusterIPs: [None]"), Some(ServiceKind::Headless));
    // The API server has given it none yet: its name exists, without addresses.
    assert_eq!(service("ports: [{port: 1}]"), Some(ServiceKind::ClusterIps(Vec::new())));
    let external = "type: ExternalName, externalName: db.example.com.";
    assert_eq!(service(external), Some(ServiceKind::External("db.example.com.".into())));
    for refused in ["type: ExternalName", "clusterIP: 10.96.0.256, ports: [{port: 1}]"] {
        assert_eq!(service(refused), None, "{refused}");
    }
}

/// The switch leaves the slices of headless Services out; names are made of them.
#[test]
fn slices_of_headless_services() {
    let text = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: set-1
  namespace: a
  labels: {kubernetes.io/service-name: set, service.kubernetes.io/headless: ''}
addressType: IPv4
ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: none}, {name: x, port: 1, protocol: XYZ}]
endpoints:
- {addresses: [10.0.0.1], hostname: set-0, conditions: {ready: true}}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.3], hostname: Not.A.Label}
";
    let found = facts(text);
    let [Facts::Slice(slice)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&*slice.namespace, &*slice.name, &*slice.service), ("a", "set-1", "set"));
    assert_eq!(slice.cluster, None);
    let endpoints: Vec<_> =
        slice.endpoints.iter().map(|it| (it.hostname.as_deref(), it.is_ready)).collect();
    assert_eq!(endpoints, [(Some("set-0"), true), (None, false), (None, true)]);
    let ports: Vec<_> = slice.ports.iter().map(|it| (&*it.name, it.protocol, it.number)).collect();
    let expected = [
        ("http", Protocol::Tcp, Some(80)),
        ("dns", Protocol::Udp, Some(53)),
        ("none", Protocol::Tcp, None),
    ];
    assert_eq!(ports, expected);
    let compiled = crate::compile(text);
    assert!(compiled.config.slices.is_empty());
}

#[test]
fn pods_and_namespaces() {
    let host = pod("host", "192.0.2.1", "", "hostNetwork: true", "");
    let ended = pod("ended", "10.0.0.9", "", "", "phase: Succeeded");
    let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    let found = facts(&[&*pod("a", "10.0.0.1", "", "", ""), &*host, &*ended, namespace].concat());
    let mut names = Vec::new();
    for facts in &found {
        match facts {
            Facts::Pod(pod) => {
                names.push(format!("{}/{} {:?}", pod.namespace, pod.name, pod.addresses))
            }
            Facts::Namespace(name) => names.push(name.to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(names, ["default/a [10.0.0.1]", "default/host [192.0.2.1]", "shop"]);
}

/// What is defined twice, or cannot be used, has no name.
#[test]
fn refused_objects_have_no_name() {
    let twice = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n".repeat(2);
    assert_eq!(facts(&twice).len(), 1);
    let bad = "{apiVersion: v1, kind: Namespace, metadata: {name: Shop_1}}";
    assert_eq!(facts(bad), []);
}
