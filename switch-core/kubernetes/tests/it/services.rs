//! Service, EndpointSlice, ServiceCIDR and host ports.

use std::path::Path;

use podswitch_kubernetes::{Action, Manifests, Options};
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{
    IpMode, Service, ServiceType, TargetPort, TrafficDistribution, TrafficPolicy,
};
use podswitch_wire::flow_key::Family;

use crate::{bad, fault, good, is_said, notes, pod};

fn service(name: &str, metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, {metadata}}}\n\
         spec: {{{spec}}}\nstatus: {{{status}}}\n"
    )
}

fn slice(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: a, labels: {{kubernetes.io/service-name: web}}}}\n{rest}\n"
    )
}

#[track_caller]
fn one(spec: &str) -> Service {
    Service::clone(&good(&service("web", "", spec, "")).config.services[0])
}

#[test]
fn an_ordinary_service() {
    let it = one("clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a'], type: ClusterIP,
        selector: {app: web}, sessionAffinity: None, internalTrafficPolicy: Cluster, ipFamilies: [IPv4, IPv6],
        ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP, targetPort: dns},
                {name: s, port: 9, protocol: SCTP}]");
    assert_eq!((&*it.cookie, it.name.to_string()), ("Service/a/web", "a/web".to_owned()));
    assert_eq!(it.kind, ServiceType::ClusterIp);
    assert_eq!(it.cluster_ips.len(), 2);
    let ports: Vec<_> =
        it.ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.target.clone())).collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, 80, TargetPort::Number(8080)),
            ("dns", Protocol::Udp, 53, TargetPort::Name("dns".into())),
            ("s", Protocol::Sctp, 9, TargetPort::Number(9)),
        ]
    );
    assert_eq!(
        (it.internal_policy, it.external_policy),
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster)
    );
    assert!(it.is_balanced() && !it.publish_not_ready && it.affinity.is_none());
    // Omitted fields have the API's defaults (S14).
    let it = one("clusterIP: 10.96.0.10, ports: [{port: 80}]");
    assert_eq!(it.ports[0].target, TargetPort::Number(80));
    assert_eq!(&*it.ports[0].name, "");
}

#[test]
fn a_load_balancer_with_every_field() {
    let text = service(
        "web",
        "annotations: {podswitch.io/maglev-size: '65537'}",
        "type: LoadBalancer, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], externalTrafficPolicy: Local,
         internalTrafficPolicy: Local, healthCheckNodePort: 31000, sessionAffinity: ClientIP,
         sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, publishNotReadyAddresses: true,
         loadBalancerSourceRanges: [192.0.2.0/24, ' 198.51.100.0/24'], externalIPs: [203.0.113.9],
         trafficDistribution: PreferClose, allocateLoadBalancerNodePorts: true,
         ports: [{name: t, port: 80, nodePort: 30080}, {name: u, port: 80, nodePort: 30080, protocol: UDP}]",
        "loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: VIP}, {ip: 203.0.113.2, ipMode: Proxy}, {hostname: lb.example.com}]}",
    );
    let compiled = good(&text);
    let it = &compiled.config.services[0];
    assert_eq!(it.kind, ServiceType::LoadBalancer);
    assert_eq!(
        (it.internal_policy, it.external_policy),
        (TrafficPolicy::Local, TrafficPolicy::Local)
    );
    assert_eq!((it.health_check_node_port, it.affinity), (Some(31000), Some(60)));
    assert!(it.publish_not_ready);
    assert_eq!(it.source_ranges.len(), 2);
    assert_eq!(it.ingress.iter().map(|i| i.mode).collect::<Vec<_>>(), [IpMode::Vip, IpMode::Proxy]);
    assert_eq!(it.traffic_distribution, Some(TrafficDistribution::SameZone));
    assert_eq!(it.maglev_size, Some(65_537));
    assert_eq!(it.ports[1].node_port, Some(30_080));
    // External IPs are kept, but noted while no configuration allows them (CVE-2020-8554).
    assert_eq!(it.external_ips.len(), 1);
    assert!(is_said(&compiled, &["203.0.113.9"]));
    let options = Options {
        allowed_external_ips: vec!["203.0.113.0/24".parse().unwrap()],
        ..Options::default()
    };
    let manifests = Manifests::parse(Path::new("x.yaml"), &text).unwrap();
    let compiled = manifests.compile(None, &options);
    assert!(!is_said(&compiled, &["203.0.113.9"]));
    assert_eq!(compiled.config.allowed_external_ips, options.allowed_external_ips);
}

#[test]
fn services_that_are_not_balanced() {
    for (metadata, spec) in [
        ("", "clusterIP: None, clusterIPs: [None], ports: [{port: 80}]"),
        ("", "clusterIP: None"),
        ("", "type: ExternalName, externalName: example.com."),
        (
            "labels: {service.kubernetes.io/service-proxy-name: other}",
            "clusterIP: 10.96.0.1, ports: [{port: 80}]",
        ),
        (
            "labels: {service.kubernetes.io/headless: ''}",
            "clusterIP: 10.96.0.1, ports: [{port: 80}]",
        ),
        ("", "ports: [{port: 80}]"),
    ] {
        let compiled = good(&service("web", metadata, spec, ""));
        assert!(!compiled.config.services[0].is_balanced(), "{spec}");
    }
}

#[test]
fn affinity_has_the_apis_default() {
    let base = "clusterIP: 10.96.0.1, ports: [{port: 80}], sessionAffinity: ClientIP";
    assert_eq!(one(base).affinity, Some(10_800));
}

#[test]
fn service_faults() {
    const IP: &str = "clusterIP: 10.96.0.1, ports: [{port: 80}]";
    let with = |rest: &str| format!("{IP}, {rest}");
    let of = |kind: &str, rest: &str| format!("type: {kind}, {}", with(rest));
    let ports = |list: &str| format!("clusterIP: 10.96.0.1, ports: [{list}]");
    for (spec, field) in [
        (String::new(), "spec.ports"),
        ("clusterIP: x, ports: [{port: 80}]".into(), "spec.clusterIP"),
        ("clusterIP: 127.0.0.1, ports: [{port: 80}]".into(), "spec.clusterIP"),
        ("clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]".into(), "spec.clusterIPs[1]"),
        ("clusterIPs: [10.96.0.1, x], ports: [{port: 80}]".into(), "spec.clusterIPs[1]"),
        ("clusterIP: 10.96.0.2, clusterIPs: [10.96.0.1], ports: [{port: 80}]".into(), "spec.clusterIP"),
        ("clusterIPs: [None, 10.96.0.1], ports: [{port: 80}]".into(), "spec.clusterIPs[1]"),
        ("type: NodePort, clusterIP: None, ports: [{port: 80}]".into(), "spec.clusterIP"),
        ("type: ExternalName".into(), "spec.externalName"),
        ("type: ExternalName, externalName: 'a b'".into(), "spec.externalName"),
        ("type: ExternalName, externalName: a.b, clusterIP: 10.96.0.1".into(), "spec.clusterIP"),
        (ports("{}"), "spec.ports[0].port"),
        (ports("{port: 65536}"), "spec.ports[0].port"),
        (ports("{port: 80, name: HTTP}"), "spec.ports[0].name"),
        (ports("{port: 80, name: a}, {port: 81}"), "spec.ports[1].name"),
        (ports("{port: 80, name: a}, {port: 81, name: a}"), "spec.ports[1].name"),
        (ports("{port: 80, name: a}, {port: 80, name: b}"), "spec.ports[1]"),
        (ports("{port: 80, targetPort: 65536}"), "spec.ports[0].targetPort"),
        (ports("{port: 80, targetPort: '8080'}"), "spec.ports[0].targetPort"),
        (ports("{port: 80, nodePort: 30000}"), "spec.ports[0].nodePort"),
        ("type: NodePort, ports: [{port: 80, nodePort: 65536}]".into(), "spec.ports[0].nodePort"),
        ("type: NodePort, ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 81, nodePort: 30000}]".into(), "spec.ports[1].nodePort"),
        ("type: LoadBalancer, ports: [{port: 10250}]".into(), "spec.ports[0].port"),
        (with("selector: {'a b': c}"), "spec.selector"),
        (with("sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}"), "spec.sessionAffinityConfig"),
        (with("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds"),
        (with("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds"),
        (with("externalIPs: [127.0.0.1]"), "spec.externalIPs[0]"),
        (with("externalIPs: [x]"), "spec.externalIPs[0]"),
        (with("externalTrafficPolicy: Local"), "spec.externalTrafficPolicy"),
        (with("loadBalancerSourceRanges: [10.0.0.0/8]"), "spec.loadBalancerSourceRanges"),
        (of("LoadBalancer", "loadBalancerSourceRanges: [10.0.0.0]"), "spec.loadBalancerSourceRanges[0]"),
        (of("LoadBalancer", "healthCheckNodePort: 30000"), "spec.healthCheckNodePort"),
        (of("LoadBalancer", "externalTrafficPolicy: Local, healthCheckNodePort: -1"), "spec.healthCheckNodePort"),
        (with("publishNotReadyAddresses: 1"), "spec.publishNotReadyAddresses"),
    ] {
        assert_eq!(bad(&service("web", "", &spec, "")), [fault("Service/a/web", field)], "{spec}");
    }
    for size in ["x", "-1", "0", "4", "5000077"] {
        let metadata = format!("annotations: {{podswitch.io/maglev-size: '{size}'}}");
        let field = "metadata.annotations[podswitch.io/maglev-size]";
        assert_eq!(bad(&service("web", &metadata, IP, "")), [fault("Service/a/web", field)]);
    }
    let status = "loadBalancer: {ingress: [{}, {ip: x}]}";
    let field = "status.loadBalancer.ingress[1].ip";
    let text = service("web", "", &of("LoadBalancer", ""), status);
    assert_eq!(bad(&text), [fault("Service/a/web", field)]);
}

#[test]
fn services_that_collide() {
    let spec = "clusterIP: 10.96.0.1, ports: [{port: 80}]";
    let text = service("a", "", spec, "") + &service("b", "", spec, "");
    assert_eq!(bad(&text), [fault("Service/a/b", "spec.clusterIP")]);
    let text = pod("p", "10.96.0.1", "", "", "") + &service("b", "", spec, "");
    assert_eq!(bad(&text), [fault("Service/a/b", "spec.clusterIP")]);
    let spec = "type: NodePort, ports: [{port: 80, nodePort: 30080}]";
    let text = service("a", "", spec, "") + &service("b", "", spec, "");
    assert_eq!(bad(&text), [fault("Service/a/b", "spec.ports[0].nodePort")]);
}

#[test]
fn an_ordinary_slice() {
    let compiled = good(&slice(
        "web-abc",
        "addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: any}, {port: 53, protocol: UDP, name: ''}]
endpoints:
- addresses: [10.1.0.7]
  conditions: {ready: true, serving: true, terminating: false}
  nodeName: n1
  zone: z1
  hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}
  targetRef: {kind: Pod, name: web-0, namespace: a, uid: x}
- addresses: [10.1.0.8]
  conditions: {ready: false}
- addresses: [10.1.0.9]
",
    ));
    let it = &compiled.config.slices[0];
    assert_eq!((&*it.namespace, &*it.name, &*it.service), ("a", "web-abc", "web"));
    assert_eq!(it.family, Family::V4);
    let ports: Vec<_> = it.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(
        ports,
        [
            ("http", Protocol::Tcp, Some(8080)),
            ("any", Protocol::Tcp, None),
            ("", Protocol::Udp, Some(53)),
        ]
    );
    let first = &it.endpoints[0];
    assert_eq!((first.node.as_deref(), first.zone.as_deref()), (Some("n1"), Some("z1")));
    assert_eq!((first.hints.nodes.len(), first.hints.zones.len()), (1, 1));
    assert_eq!(first.target.as_deref(), Some("Pod/a/web-0"));
    // Missing is not false (S1).
    assert_eq!(it.endpoints[1].conditions.ready, Some(false));
    assert_eq!(it.endpoints[1].conditions.serving, None);
    assert_eq!(it.endpoints[2].conditions.ready, None);
    assert_eq!(it.endpoints[2].weight, 1);
}

#[test]
fn unusable_slices_are_noted() {
    let compiled =
        good(&slice("x", "addressType: FQDN\nendpoints: [{addresses: [a.example.com]}]"));
    assert!(compiled.config.slices.is_empty());
    let text = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x}, addressType: IPv4}";
    let compiled = good(text);
    assert!(compiled.config.slices.is_empty());
    assert_eq!(notes(&compiled, "EndpointSlice/default/x"), [(String::new(), Action::LeftOut)]);
}

#[test]
fn ended_pods_are_not_backends() {
    let pods = pod("gone", "10.1.0.1", "namespace: a", "", "phase: Failed")
        + &pod("old", "10.1.0.2", "namespace: a", "", "phase: Succeeded")
        + &pod("new", "10.1.0.2", "namespace: a", "", "phase: Running");
    let slice = slice(
        "s",
        "addressType: IPv4
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, namespace: a, name: gone}}
- {addresses: [10.1.0.1]}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, namespace: a, name: old}}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, namespace: a, name: new}}
- {addresses: [10.1.0.2]}
- {addresses: [10.1.0.3], targetRef: {kind: Pod, namespace: a, name: unknown}}
",
    );
    let compiled = good(&(pods + &slice));
    let left: Vec<_> =
        compiled.config.slices[0].endpoints.iter().map(|e| e.target.as_deref()).collect();
    assert_eq!(left, [Some("Pod/a/new"), None, Some("Pod/a/unknown")]);
}

#[test]
fn slice_faults() {
    let addresses = "10.0.0.1,".repeat(101);
    let endpoints = "{addresses: [10.0.0.1]},".repeat(1001);
    let ports: String = (0..20_001).map(|i| format!("{{name: p{i}}},")).collect();
    for (rest, field) in [
        ("endpoints: []".to_owned(), "addressType"),
        ("addressType: IPv4\nendpoints: [{}]".to_owned(), "endpoints[0].addresses"),
        ("addressType: IPv4\nendpoints: [{addresses: []}]".to_owned(), "endpoints[0].addresses"),
        (
            format!("addressType: IPv4\nendpoints: [{{addresses: [{addresses}]}}]"),
            "endpoints[0].addresses",
        ),
        (format!("addressType: IPv4\nendpoints: [{endpoints}]"), "endpoints"),
        (
            "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]".to_owned(),
            "endpoints[0].addresses[0]",
        ),
        (
            "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}]".to_owned(),
            "endpoints[0].addresses[0]",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1, x]}]".to_owned(),
            "endpoints[0].addresses[1]",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [169.254.169.254]}]".to_owned(),
            "endpoints[0].addresses[0]",
        ),
        (format!("addressType: IPv4\nports: [{ports}]"), "ports"),
        ("addressType: IPv4\nports: [{name: A_b}]".to_owned(), "ports[0].name"),
        ("addressType: IPv4\nports: [{}, {port: 1}]".to_owned(), "ports[1].name"),
    ] {
        let found = bad(&slice("s", &rest));
        assert_eq!(found, [fault("EndpointSlice/a/s", field)], "{}", &rest[..rest.len().min(90)]);
    }
}

#[test]
fn service_cidrs() {
    let cidr = |cidrs: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {{name: kubernetes}}, spec: {{cidrs: {cidrs}}}}}"
        )
    };
    let compiled = good(&cidr("[10.96.0.0/16, 'fd00:96::/112']"));
    assert_eq!(compiled.config.service_cidrs.len(), 2);
    for (cidrs, field) in [
        ("[]", "spec.cidrs"),
        ("[x]", "spec.cidrs[0]"),
        ("[10.96.0.1/16]", "spec.cidrs[0]"),
        ("[10.96.0.0/16, 10.97.0.0/16]", "spec.cidrs[1]"),
    ] {
        assert_eq!(bad(&cidr(cidrs)), [fault("ServiceCIDR/kubernetes", field)]);
    }
}

#[test]
fn host_ports() {
    let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n";
    let text = "---
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  nodeName: n1
  containers:
  - ports:
    - {containerPort: 80, hostPort: 8080}
    - {containerPort: 53, hostPort: 5353, protocol: UDP, hostIP: 192.0.2.1}
    - {containerPort: 81, hostPort: 8081, hostIP: 0.0.0.0}
    - {containerPort: 82}
status: {podIPs: [{ip: 10.1.0.7}, {ip: 'fd00::7'}]}
";
    let other = text
        .replace("name: a", "name: b")
        .replace("n1", "n2")
        .replace("::7", "::8")
        .replace("0.7", "0.8");
    let host = pod(
        "h",
        "192.0.2.1",
        "",
        "hostNetwork: true, containers: [{ports: [{containerPort: 9, hostPort: 9}]}]",
        "",
    );
    let compiled = good(&[node, text, &other, &host].concat());
    let [(cookie, ports)] = &compiled.config.host_ports[..] else { panic!() };
    assert_eq!(cookie.as_str(), "Pod/default/a");
    let ports: Vec<_> = ports
        .iter()
        .map(|p| (p.address.is_some(), p.protocol, p.port, p.target.to_string()))
        .collect();
    assert_eq!(
        ports,
        [
            (false, Protocol::Tcp, 8080, "10.1.0.7:80".to_owned()),
            (false, Protocol::Tcp, 8080, "[fd00::7]:80".to_owned()),
            (true, Protocol::Udp, 5353, "10.1.0.7:53".to_owned()),
            (false, Protocol::Tcp, 8081, "10.1.0.7:81".to_owned()),
        ]
    );
    for (spec, port, field) in [
        ("", "hostPort: 65536", "hostPort"),
        ("", "hostPort: 1, hostIP: x", "hostIP"),
        ("hostNetwork: true,", "hostPort: 1", "hostPort"),
    ] {
        let spec = format!("{spec} containers: [{{ports: [{{containerPort: 80, {port}}}]}}]");
        let field = format!("spec.containers[0].ports[0].{field}");
        assert_eq!(bad(&pod("a", "10.0.0.1", "", &spec, "")), [fault("Pod/default/a", &field)]);
    }
}

/// The compiler of the next stage accepts everything that is accepted here.
#[test]
fn accepted_objects_compile() {
    let mut compiler = podswitch_policy::service::compile::Compiler::new(Default::default());
    let compiled = good(include_str!("printed.yaml"));
    assert!(!compiled.config.services.is_empty() && !compiled.config.slices.is_empty());
    for service in &compiled.config.services {
        compiler.set_service(service.clone()).unwrap();
    }
}
