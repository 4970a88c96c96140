//! Pods: addresses, ports, attachment.

use podswitch_core::config::PortRole;
use podswitch_core::id::PortId;
use podswitch_kubernetes::InterfaceKind;
use podswitch_policy::rule::Protocol;

use crate::{bad, fault, good, is_said, pod};

#[test]
fn an_ordinary_pod() {
    let compiled = good(&pod(
        "web-0",
        "10.1.0.7",
        "namespace: prod, labels: {app: web, 'k8s.io/x': ''}, annotations: {podswitch.io/netns: /run/netns/web}",
        "containers: [{name: c, ports: [{name: http, containerPort: 80}, {containerPort: 81},
           {name: dns, protocol: UDP, containerPort: 53}, {name: s, protocol: SCTP, containerPort: 9}]}]",
        "phase: Running, podIP: 10.1.0.7",
    ));
    let endpoint = &compiled.config.endpoints[0];
    assert_eq!(endpoint.cookie.as_str(), "Pod/prod/web-0");
    assert_eq!(&*endpoint.node, "n1");
    let workload = &endpoint.workload;
    assert_eq!((&*workload.namespace, &*workload.name), ("prod", "web-0"));
    assert_eq!(workload.labels.iter().collect::<Vec<_>>(), [("app", "web"), ("k8s.io/x", "")]);
    assert_eq!(workload.addresses, ["10.1.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert!(!workload.host_network);
    let ports: Vec<_> = workload.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(
        ports,
        [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53), ("s", Protocol::Sctp, 9),]
    );
    let local = &compiled.pods[0];
    assert_eq!((&*local.name, local.endpoint), ("prod/web-0", 0));
    assert_eq!(local.mac.to_string(), "0a:58:0a:01:00:07");
    let interface = local.interface.as_ref().unwrap();
    assert_eq!(interface.netns.to_str(), Some("/run/netns/web"));
    assert_eq!((interface.kind, &*interface.name), (InterfaceKind::Tap, "eth0"));
}

#[test]
fn attachment_as_annotated() {
    let compiled = good(&pod(
        "a",
        "10.1.0.7",
        "annotations: {podswitch.io/netns: /n, podswitch.io/port: veth, podswitch.io/interface: net1, podswitch.io/mac: '02:00:00:00:00:01'}",
        "",
        "",
    ));
    let local = &compiled.pods[0];
    assert_eq!(local.mac.to_string(), "02:00:00:00:00:01");
    let interface = local.interface.as_ref().unwrap();
    assert_eq!((interface.kind, &*interface.name), (InterfaceKind::Veth, "net1"));
}

#[test]
fn ports_are_given_by_the_caller() {
    let text = pod("a", "10.1.0.7", "", "", "") + &pod("b", "10.1.0.8", "", "", "");
    let mut compiled = good(&text);
    assert!(compiled.config.ports.is_empty());
    assert!(compiled.config.endpoints.iter().all(|e| e.attachment.is_none()));
    compiled.attach(1, PortId(9), 1450);
    let attachment = compiled.config.endpoints[1].attachment.unwrap();
    assert_eq!((attachment.port, attachment.mtu), (PortId(9), 1450));
    assert_eq!(attachment.mac.to_string(), "0a:58:0a:01:00:08");
    assert_eq!(compiled.config.ports[0].port, PortId(9));
    assert_eq!(compiled.config.ports[0].role, PortRole::Pod);
    assert!(compiled.config.endpoints[0].attachment.is_none());
}

#[test]
fn ipv6_and_both() {
    let compiled = good(&pod("a", "fd00::a:b0c", "", "", ""));
    assert_eq!(compiled.pods[0].mac.to_string(), "0a:58:00:0a:0b:0c");
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {nodeName: n1}
status: {podIP: 'fd00::1', podIPs: [{ip: 'fd00::1'}, {ip: 10.0.0.1}]}
";
    let compiled = good(text);
    assert_eq!(compiled.pods[0].addresses.len(), 2);
    assert_eq!(compiled.pods[0].mac.to_string(), "0a:58:0a:00:00:01");
}

#[test]
fn an_old_pod_with_only_podip() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n2},
                 status: {podIP: 10.0.0.1}}";
    let compiled = good(text);
    assert_eq!(compiled.config.endpoints[0].workload.addresses.len(), 1);
    assert!(compiled.pods.is_empty(), "it is on another node");
}

#[test]
fn pods_without_an_endpoint() {
    let ended = |phase| pod("a", "10.0.0.1", "", "", &format!("phase: {phase}"));
    for phase in ["Succeeded", "Failed"] {
        // Its address belongs to another pod by now.
        let compiled = good(&(ended(phase) + &pod("b", "10.0.0.1", "", "", "phase: Running")));
        assert_eq!(compiled.config.endpoints.len(), 1);
        assert_eq!(compiled.pods.len(), 1);
    }
    let pending = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n1}, status: {phase: Pending}}";
    let compiled = good(pending);
    assert!(compiled.config.endpoints.is_empty() && compiled.pods.is_empty());
    assert!(is_said(&compiled, &["Pod/default/a"]));
    assert!(good("{apiVersion: v1, kind: Pod, metadata: {name: a}}").config.endpoints.is_empty());
}

#[test]
fn pods_with_their_nodes_network() {
    let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n";
    let host = "hostNetwork: true";
    let text = node.to_owned()
        + &pod("a", "192.0.2.1", "annotations: {podswitch.io/netns: /n}", host, "")
        + &pod("b", "192.0.2.1", "", host, "")
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: c}, spec: {nodeName: n1, hostNetwork: yes}}\n"
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: d}, spec: {nodeName: n7, hostNetwork: true}, status: {hostIP: 192.0.2.7}}\n";
    let compiled = good(&text);
    assert!(compiled.pods.is_empty());
    let addresses: Vec<_> =
        compiled.config.endpoints.iter().map(|e| e.workload.addresses[0].to_string()).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.7"]);
    assert!(compiled.config.endpoints.iter().all(|e| e.workload.host_network));
}

#[test]
fn the_first_of_two_ports_with_the_same_name_counts() {
    let compiled = good(&pod(
        "a",
        "10.0.0.1",
        "",
        "containers: [{ports: [{name: x, containerPort: 1}]}, {ports: [{name: x, containerPort: 2},
           {name: x, containerPort: 3, protocol: UDP}]}],
         initContainers: [{ports: [{name: y, containerPort: 4}]},
           {restartPolicy: Always, ports: [{name: z, containerPort: 5}]}]",
        "",
    ));
    let ports: Vec<_> =
        compiled.config.endpoints[0].workload.ports.iter().map(|p| (&*p.name, p.port)).collect();
    assert_eq!(ports, [("x", 1), ("x", 3), ("z", 5)]);
}

#[test]
fn pod_faults() {
    let long = "a".repeat(254);
    for (metadata, spec, ip, field) in [
        ("", "", "10.0.0", "status.podIPs[0].ip"),
        ("", "", "010.0.0.1", "status.podIPs[0].ip"),
        ("", "", "::ffff:10.0.0.1", "status.podIPs[0].ip"),
        ("", "", "", "status.podIPs[0].ip"),
        ("namespace: A", "", "10.0.0.1", "metadata.namespace"),
        ("labels: {a/b/c: d}", "", "10.0.0.1", "metadata.labels"),
        ("", "nodeName: N", "10.0.0.1", "spec.nodeName"),
        (
            "annotations: {podswitch.io/mac: '02:00:00:00:00'}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/mac]",
        ),
        (
            "annotations: {podswitch.io/mac: '03:00:00:00:00:01'}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/mac]",
        ),
        (
            "annotations: {podswitch.io/mac: 'ee:ee:ee:ee:ee:ee'}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/mac]",
        ),
        (
            "annotations: {podswitch.io/port: macvlan}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/port]",
        ),
        (
            "annotations: {podswitch.io/interface: a/b}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/interface]",
        ),
        (
            "annotations: {podswitch.io/interface: abcdefghijklmnop}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/interface]",
        ),
        (
            "annotations: {podswitch.io/netns: web}",
            "",
            "10.0.0.1",
            "metadata.annotations[podswitch.io/netns]",
        ),
        (
            "",
            "containers: [{ports: [{}]}]",
            "10.0.0.1",
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            "",
            "containers: [{ports: [{containerPort: 65536}]}]",
            "10.0.0.1",
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            "",
            "containers: [{ports: [{containerPort: 1, name: HTTP}]}]",
            "10.0.0.1",
            "spec.containers[0].ports[0].name",
        ),
        (
            "",
            "initContainers: [{}, {ports: [{containerPort: -1}]}]",
            "10.0.0.1",
            "spec.initContainers[1].ports[0].containerPort",
        ),
    ] {
        let spec = if spec.starts_with("nodeName") {
            spec.to_owned()
        } else {
            format!("nodeName: n1, {spec}")
        };
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, {metadata}}}\nspec: {{{spec}}}\n\
             status: {{podIPs: [{{ip: '{ip}'}}]}}\n"
        );
        let found = bad(&text);
        assert_eq!(found.len(), 1, "{text} {found:?}");
        assert_eq!(found[0].1, field, "{text}");
    }
    for name in ["", "A", "a_b", &long] {
        let found = bad(&pod(&format!("'{name}'"), "10.0.0.1", "", "", ""));
        assert_eq!(found[0].1, "metadata.name");
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let found = bad(&pod(
        "A",
        "10.0.0",
        "labels: {a b: c, d: 'e f'}, annotations: {podswitch.io/port: x}",
        "containers: [{ports: [{containerPort: 0, protocol: x, name: Y}]}]",
        "podIP: 10.0.0.1",
    ));
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn addresses_of_a_family() {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: a}
status: {podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}, {ip: 'fd00::1'}, {ip: 'fd00::2'}]}
";
    assert_eq!(
        bad(text),
        [
            fault("Pod/default/a", "status.podIP"),
            fault("Pod/default/a", "status.podIPs[1].ip"),
            fault("Pod/default/a", "status.podIPs[3].ip"),
        ]
    );
}

#[test]
fn pods_that_collide() {
    let text = "---\n{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}\n".to_owned()
        + &pod("a", "10.0.0.1", "", "", "");
    assert_eq!(bad(&text), [fault("Pod/default/a", "status.podIPs[0].ip")]);
    let netns = "annotations: {podswitch.io/netns: /run/netns/x}";
    let text = pod("a", "10.0.0.1", netns, "", "") + &pod("b", "10.0.0.2", netns, "", "");
    assert_eq!(bad(&text), [fault("Pod/default/b", "metadata.annotations[podswitch.io/netns]")]);
}
