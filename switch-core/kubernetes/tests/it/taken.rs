//! Everything that an API server stores is accepted, and one bad object never blocks the others.

use podswitch_kubernetes::{Action, Compiled, Manifests, Options, PodAnnotations};
use podswitch_policy::service::model::{IpMode, TrafficPolicy};

use crate::{bad, compile, fault, good, is_said, notes, pod};

/// An object in flow style, as a document.
fn object(version: &str, kind: &str, rest: &str) -> String {
    format!("---\n{{apiVersion: {version}, kind: {kind}, {rest}}}\n")
}

fn node(name: &str, metadata: &str, address: &str, status: &str) -> String {
    let rest = format!(
        "metadata: {{name: {name}, {metadata}}},
         status: {{addresses: [{{type: InternalIP, address: '{address}'}}], {status}}}"
    );
    object("v1", "Node", &rest)
}

fn service(spec: &str, status: &str) -> String {
    let rest = format!(
        "metadata: {{name: web, namespace: a}},
         spec: {{clusterIP: 10.96.0.1, {spec}}}, status: {{{status}}}"
    );
    object("v1", "Service", &rest)
}

fn slice(rest: &str) -> String {
    let meta = "metadata: {name: s, namespace: a, labels: {kubernetes.io/service-name: web}}";
    object("discovery.k8s.io/v1", "EndpointSlice", &format!("{meta}, addressType: IPv4, {rest}"))
}

/// Names of the pods in a state.
fn pods(compiled: &Compiled) -> Vec<&str> {
    compiled.config.endpoints.iter().map(|e| &*e.workload.name).collect()
}

const DELETED: &str = "deletionTimestamp: '2026-01-01T00:00:00Z'";
const OLD: &str = "creationTimestamp: '2026-01-01T00:00:00Z'";
const NEW: &str = "creationTimestamp: '2026-01-01T00:00:01Z'";

#[test]
fn the_live_or_newer_of_two_pods_has_the_address() {
    let address = "10.0.0.1";
    let deleted_new = format!("{DELETED}, {NEW}");
    for (loser, losers_phase, winner) in [
        (DELETED, "phase: Running", ""),
        (&deleted_new, "", OLD),
        ("", "phase: Unknown", ""),
        (NEW, "phase: Unknown", OLD),
        (OLD, "phase: Running", NEW),
        // An object written by hand is newer than any other.
        (NEW, "", ""),
        ("creationTimestamp: '2026-01-01T01:00:00+01:00'", "", NEW),
    ] {
        let loser = pod("a-loser", address, loser, "", losers_phase);
        let winner = pod("b-winner", address, winner, "", "phase: Running");
        for text in [loser.clone() + &winner, winner.clone() + &loser] {
            let compiled = good(&(text + &pod("c-other", "10.0.0.2", "", "", "")));
            let mut found = pods(&compiled);
            found.sort_unstable();
            assert_eq!(found, ["b-winner", "c-other"], "{loser}{winner}");
            let field = "status.podIPs[0].ip".to_owned();
            assert_eq!(notes(&compiled, "Pod/default/a-loser"), [(field, Action::LeftOut)]);
            assert!(is_said(&compiled, &["a-loser", "10.0.0.1 is also Pod/default/b-winner's"]));
            assert_eq!(compiled.counts().left_out, 1);
        }
    }
    // Between equals the name decides, the same on every node; for objects written by hand, the
    // first wins.
    let text = pod("b", address, NEW, "", "") + &pod("a", address, NEW, "", "");
    assert_eq!(pods(&good(&text)), ["a"]);
    let text = pod("b", address, "", "", "") + &pod("a", address, "", "", "");
    assert_eq!(pods(&good(&text)), ["b"]);
}

#[test]
fn each_address_of_a_pod_is_decided_separately() {
    let both = "apiVersion: v1\nkind: Pod\nmetadata: {name: old, deletionTimestamp: x}\n\
                spec: {nodeName: n1}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n";
    let compiled = good(&(both.to_owned() + &pod("new", "10.0.0.1", "", "", "")));
    assert_eq!(pods(&compiled), ["old", "new"]);
    assert_eq!(compiled.config.endpoints[0].workload.addresses.len(), 1);
    assert_eq!(compiled.pods[0].addresses.len(), 1);
    let field = "status.podIPs[0].ip".to_owned();
    assert_eq!(notes(&compiled, "Pod/default/old"), [(field, Action::FieldLeftOut)]);
}

#[test]
fn the_live_or_newer_of_two_nodes_has_the_address() {
    let not_ready = "conditions: [{type: Ready, status: 'Unknown'}]";
    let ready =
        "conditions: [{type: MemoryPressure, status: 'False'}, {type: Ready, status: 'True'}]";
    for (loser, losers, winner, winners) in [
        (DELETED, ready, OLD, ready),
        (NEW, not_ready, OLD, ready),
        (OLD, ready, NEW, ready),
        (OLD, "", "", ""),
    ] {
        let text = node("a", loser, "192.0.2.2", losers)
            + &node("b", winner, "192.0.2.2", winners)
            + &node("c", "", "192.0.2.3", "");
        let compiled = good(&text);
        let names: Vec<_> = compiled.config.nodes.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["b", "c"], "{loser} {losers}");
        let field = "status.addresses[0].address".to_owned();
        assert_eq!(notes(&compiled, "Node/a"), [(field, Action::LeftOut)]);
    }
    // Only the name distinguishes them.
    let text = node("n2-renamed", OLD, "192.0.2.2", "") + &node("n2", OLD, "192.0.2.2", "");
    let compiled = good(&text);
    assert_eq!(&*compiled.config.nodes[0].name, "n2");
    assert_eq!(compiled.config.nodes.len(), 1);
    // This node is live, whatever its object contains: its switch runs.
    let text = node("n1", &format!("{DELETED}, {OLD}"), "192.0.2.2", not_ready)
        + &node("n2", NEW, "192.0.2.2", ready);
    let compiled = good(&text);
    assert!(compiled.has_node && compiled.config.nodes.is_empty());
    assert_eq!(compiled.config.node.addresses.len(), 1);
}

#[test]
fn unusable_addresses_are_left_out() {
    for ip in ["127.0.0.1", "169.254.7.7", "224.0.0.1", "0.0.0.0", "::1", "fe80::2", "ff02::1"] {
        let compiled = good(&pod("a", ip, "", "", ""));
        assert!(pods(&compiled).is_empty());
        assert!(
            notes(&compiled, "Pod/default/a")
                .contains(&("status.podIPs[0].ip".to_owned(), Action::FieldLeftOut))
        );
        let compiled = good(&node("n2", "", ip, ""));
        assert!(compiled.config.nodes[0].addresses.is_empty());
        assert!(
            notes(&compiled, "Node/n2")
                .contains(&("status.addresses[0].address".to_owned(), Action::FieldLeftOut))
        );
    }
    // An error in a node's status or annotations does not leave out the node.
    let text = node("n2", "annotations: {podswitch.io/vtep-mac: x}", "10.0.0.256", "");
    assert_eq!(bad(&text).len(), 2);
    assert_eq!(compile(&text).config.nodes.len(), 1);
}

#[test]
fn stale_or_unusual_service_statuses() {
    let spec = "type: LoadBalancer, ports: [{port: 80}]";
    for ip in ["127.0.0.1", "::1", "0.0.0.0", "169.254.7.7", "fe80::1", "255.255.255.255"] {
        let status =
            format!("loadBalancer: {{ingress: [{{ip: '{ip}', ipMode: VIP}}, {{ip: 192.0.2.9}}]}}");
        let compiled = good(&service(spec, &status));
        let ingress = &compiled.config.services[0].ingress;
        assert_eq!(ingress.len(), 1, "{ip}");
        let field = "status.loadBalancer.ingress[0].ip".to_owned();
        assert_eq!(notes(&compiled, "Service/a/web"), [(field, Action::FieldLeftOut)]);
    }
    let status = "loadBalancer: {ingress: [{ip: 192.0.2.9, ipMode: Later}, {ip: 192.0.2.10, ipMode: Proxy}]}";
    let compiled = good(&service(spec, status));
    assert_eq!(compiled.config.services[0].ingress.len(), 1);
    assert_eq!(compiled.config.services[0].ingress[0].mode, IpMode::Proxy);
    for kind in ["ClusterIP", "NodePort"] {
        let spec = format!("type: {kind}, ports: [{{port: 80}}]");
        let compiled = good(&service(&spec, status));
        assert!(compiled.config.services[0].ingress.is_empty());
        let field = "status.loadBalancer.ingress".to_owned();
        assert_eq!(notes(&compiled, "Service/a/web"), [(field, Action::FieldLeftOut)]);
    }
}

#[test]
fn values_of_newer_apis() {
    for (spec, field) in [
        ("type: Mesh, ports: [{port: 80}]", "spec.type"),
        (
            "sessionAffinity: Cookie, sessionAffinityConfig: {}, ports: [{port: 80}]",
            "spec.sessionAffinity",
        ),
        ("internalTrafficPolicy: PreferLocal, ports: [{port: 80}]", "spec.internalTrafficPolicy"),
        (
            "type: NodePort, externalTrafficPolicy: PreferLocal, ports: [{port: 80}]",
            "spec.externalTrafficPolicy",
        ),
        ("trafficDistribution: PreferSameRegion, ports: [{port: 80}]", "spec.trafficDistribution"),
        (
            "ports: [{name: a, port: 80}, {name: q, port: 443, protocol: QUIC}]",
            "spec.ports[1].protocol",
        ),
        ("newField: {a: [b]}, ports: [{port: 80, newField: 1}]", ""),
    ] {
        let compiled = good(&service(spec, "newStatus: 1"));
        let it = &compiled.config.services[0];
        assert!(it.is_balanced(), "{spec}");
        assert_eq!((it.ports.len(), it.ports[0].port), (1, 80), "{spec}");
        assert_eq!(it.internal_policy, TrafficPolicy::Cluster);
        assert_eq!(it.affinity, None);
        let said = notes(&compiled, "Service/a/web");
        assert_eq!(said.iter().map(|(field, _)| &**field).collect::<String>(), field, "{said:?}");
    }
    // A port after one that is left out is reported with its own index.
    let ports = "type: NodePort, ports: [{name: q, port: 1, protocol: QUIC}, {name: b, port: 2, nodePort: 30000}]";
    let other =
        service(ports, "").replace("name: web", "name: zzz").replace("10.96.0.1", "10.96.0.2");
    let first = service("type: NodePort, ports: [{port: 1, nodePort: 30000}]", "");
    assert_eq!(bad(&(first + &other)), [fault("Service/a/zzz", "spec.ports[1].nodePort")]);
    let compiled = good(&pod(
        "a",
        "10.0.0.1",
        "",
        "containers: [{ports: [{name: q, containerPort: 1, protocol: QUIC}, {name: h, containerPort: 80}]}]",
        "phase: Hibernating",
    ));
    assert_eq!(compiled.config.endpoints[0].workload.ports.len(), 1);
    let compiled = good(&slice("endpoints: []").replace("IPv4", "DualStack"));
    assert!(compiled.config.slices.is_empty());
    assert_eq!(
        notes(&compiled, "EndpointSlice/a/s"),
        [("addressType".to_owned(), Action::LeftOut)]
    );
}

#[test]
fn large_slices_and_unusable_ports() {
    for count in [100, 101, 405, 2000, 20_000] {
        let ports: String =
            (0..count).map(|i| format!("{{name: p{i}, port: {}}},", i + 1)).collect();
        let compiled =
            good(&slice(&format!("ports: [{ports}], endpoints: [{{addresses: [10.0.0.1]}}]")));
        assert_eq!(compiled.config.slices[0].ports.len(), count);
    }
    // The API server accepts any number.
    let ports = "{name: a, port: 8080}, {name: b, port: 0}, {name: c, port: 70000}, {name: d, port: -1}, {name: q, port: 1, protocol: QUIC}";
    let compiled = good(&slice(&format!("ports: [{ports}]")));
    assert_eq!(compiled.config.slices[0].ports.len(), 1);
    let fields: Vec<_> =
        notes(&compiled, "EndpointSlice/a/s").into_iter().map(|(f, _)| f).collect();
    assert_eq!(fields, ["ports[2].port", "ports[3].port", "ports[4].protocol"]);
}

#[test]
fn slices_for_others_are_not_used() {
    for label in
        ["service.kubernetes.io/headless: ''", "service.kubernetes.io/service-proxy-name: x"]
    {
        let text = slice("endpoints: [{addresses: [10.0.0.1]}]");
        let text = text.replace("labels: {", &format!("labels: {{{label}, "));
        let compiled = good(&text);
        assert!(compiled.config.slices.is_empty());
        assert!(notes(&compiled, "EndpointSlice/a/s").is_empty());
    }
}

#[test]
fn one_bad_object_blocks_no_other() {
    let text = pod("good", "10.0.0.1", "", "", "")
        + &pod("bad", "10.0.0.2", "labels: {a b: c}", "", "")
        + &service("ports: []", "")
        + &slice("endpoints: [{}]")
        + "---\njust text\n"
        + &object("v1", "Namespace", "metadata: {name: B}")
        + &object("v1", "Namespace", "metadata: {name: default}");
    let compiled = compile(&text);
    assert_eq!(pods(&compiled), ["good"]);
    assert_eq!(compiled.config.namespaces.len(), 1);
    assert!(compiled.config.services.is_empty() && compiled.config.slices.is_empty());
    let refused: Vec<_> = crate::refused(&compiled).iter().map(|r| r.object.to_string()).collect();
    let expected = ["Pod/default/bad", "Service/a/web", "EndpointSlice/a/s", "?/?", "Namespace/B"];
    assert_eq!(refused, expected);
    assert_eq!(compiled.counts().left_out, 5);
}

#[test]
fn unknown_podswitch_keys_are_reported_with_the_nearest_key() {
    for (kind, key, meant) in [
        ("Pod", "podswitch.io/netsn", "podswitch.io/netns"),
        ("Pod", "podswitch.io/network-namespace", "podswitch.io/netns"),
        ("Pod", "podswitch.io/netNS", "podswitch.io/netns"),
        ("Pod", "podswich.io/netns", "podswitch.io/netns"),
        ("Pod", "podswitch.io.netns", "podswitch.io/netns"),
        ("Pod", "podswitch.io/vtep-mac", "it is for Node"),
        ("Node", "podswitch.io/vtepmac", "podswitch.io/vtep-mac"),
        ("Node", "podswitch.io/netns", "it is for Pod"),
        ("Namespace", "podswitch.io/anything-else", "a Namespace has none"),
    ] {
        let rest = format!("metadata: {{name: x, annotations: {{{key}: y}}}}");
        let text = object("v1", kind, &rest);
        let found = bad(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].1, format!("metadata.annotations[{key}]"));
        assert!(is_said(&compile(&text), &[key, meant]), "{key}: {:?}", compile(&text).records);
    }
    for key in ["pod-template-hash", "podman.io/x", "example.com/netns", "podswitch.io/netns"] {
        good(&pod("a", "10.0.0.1", &format!("annotations: {{{key}: /x}}"), "", ""));
    }
}

#[test]
fn annotations_of_tenants_have_no_effect() {
    let text = pod(
        "a",
        "10.0.0.1",
        "annotations: {podswitch.io/netns: /proc/1/ns/net, podswitch.io/mac: 'ee:ee:ee:ee:ee:ee',
           podswitch.io/port: x, podswitch.io/typo: y}",
        "",
        "",
    );
    let manifests = Manifests::parse(std::path::Path::new("x.yaml"), &text).unwrap();
    let options = Options { pod_annotations: PodAnnotations::Ignore, ..Options::default() };
    let compiled = manifests.compile(Some("n1"), &options);
    assert!(crate::refused(&compiled).is_empty(), "{:?}", compiled.records);
    assert_eq!(compiled.pods[0].interface, None);
    assert_eq!(compiled.pods[0].mac.to_string(), "0a:58:0a:00:00:01");
    assert_eq!(bad(&text).len(), 3);
}

#[test]
fn a_network_namespace_stays_with_the_pod_that_named_it_first() {
    let netns = |path: &str| format!("annotations: {{podswitch.io/netns: {path}}}");
    let text = pod("victim", "10.0.0.1", &netns("/run/netns/v"), "", "")
        + &pod(
            "evil",
            "10.0.0.2",
            &format!(
                "{OLD}, {}",
                netns("/run/netns/v").replace("{pod", "{podswitch.io/interface: evil0, pod")
            ),
            "",
            "",
        );
    let compiled = compile(&text);
    let interfaces: Vec<_> =
        compiled.pods.iter().map(|pod| (&*pod.name, pod.interface.is_some())).collect();
    assert_eq!(interfaces, [("default/victim", true), ("default/evil", false)]);
    assert_eq!(bad(&text), [fault("Pod/default/evil", "metadata.annotations[podswitch.io/netns]")]);
}

#[test]
fn missing_namespaces() {
    let policy =
        object("networking.k8s.io/v1", "NetworkPolicy", "metadata: {name: p, namespace: prodd}");
    let namespace = object("v1", "Namespace", "metadata: {name: prod}");
    // A misspelled namespace makes the policy ineffective.
    assert_eq!(bad(&(namespace.clone() + &policy)), [fault("Namespace/prodd", "")]);
    // Manifests without any Namespace object, or with pods in it, are common in test set-ups.
    assert_eq!(notes(&good(&policy), "Namespace/prodd").len(), 1);
    let text = namespace + &policy + &pod("a", "10.0.0.1", "namespace: prodd", "", "");
    assert_eq!(notes(&good(&text), "Namespace/prodd").len(), 1);
}

#[test]
fn services_without_a_range_are_reported() {
    let compiled = good(&service("ports: [{port: 80}]", ""));
    assert!(is_said(&compiled, &["no range of Service addresses is known"]));
    let cidr = object(
        "networking.k8s.io/v1",
        "ServiceCIDR",
        "metadata: {name: k}, spec: {cidrs: [10.96.0.0/16]}",
    );
    let compiled = good(&(service("ports: [{port: 80}]", "") + &cidr));
    assert!(!is_said(&compiled, &["no range"]));
}
