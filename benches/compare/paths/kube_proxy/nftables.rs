//! The rules of kube-proxy's nftables mode, in the form in which it passes them to `nft`: a verdict
//! map leads to a Service's chain, and a random number selects an endpoint's chain through another
//! map.

use std::fmt::Write;

use super::super::Family;
use super::super::services::{Port, range};
use super::{MASQUERADE, pods};

/// Number of elements in one command, so that the length of a command is bounded.
const AT_ONCE: usize = 500;

/// All rules.
pub(super) fn rules(ports: &[Port], family: Family) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let mut text = base(ip, family);
    for port in ports {
        of_port(&mut text, ip, port, family);
    }
    let mut elements = |to: &str, of: &dyn Fn(&Port) -> String| {
        for some in ports.chunks(AT_ONCE) {
            let some: Vec<String> = some.iter().map(of).collect();
            let _ = writeln!(text, "add element {ip} kube-proxy {to} {{ {} }}", some.join(", "));
        }
    };
    elements("cluster-ips", &|port| port.at.ip().to_string());
    elements("service-ips", &|port| {
        let (address, protocol) = (port.at.ip(), port.protocol.name());
        format!("{address} . {protocol} . {} : goto {}", port.at.port(), service(port))
    });
    text
}

fn base(ip: &str, family: Family) -> String {
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let mut text = format!("add table {ip} kube-proxy\n");
    let mut add = |line: &str| {
        let _ = writeln!(text, "add {line}");
    };
    let t = format!("{ip} kube-proxy");
    let key = format!("{address} . inet_proto . inet_service");
    add(&format!("set {t} cluster-ips {{ type {address} ; }}"));
    add(&format!("set {t} nodeport-ips {{ type {address} ; }}"));
    for map in ["firewall-ips", "no-endpoint-services", "service-ips"] {
        add(&format!("map {t} {map} {{ type {key} : verdict ; }}"));
    }
    for map in ["no-endpoint-nodeports", "service-nodeports"] {
        add(&format!("map {t} {map} {{ type inet_proto . inet_service : verdict ; }}"));
    }
    for (chain, kind, hook, priority) in [
        ("filter-prerouting-pre-dnat", "filter", "prerouting", -110),
        ("filter-output-pre-dnat", "filter", "output", -110),
        ("filter-forward", "filter", "forward", 0),
        ("filter-input", "filter", "input", 0),
        ("filter-output", "filter", "output", 0),
        ("nat-output", "nat", "output", -100),
        ("nat-postrouting", "nat", "postrouting", 100),
        ("nat-prerouting", "nat", "prerouting", -100),
    ] {
        add(&format!("chain {t} {chain} {{ type {kind} hook {hook} priority {priority} ; }}"));
    }
    for chain in CHAINS {
        add(&format!("chain {t} {chain}"));
    }
    let range = range(family);
    let to_service = format!("{ip} daddr . meta l4proto . th dport vmap");
    let to_node = format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap");
    for rule in [
        format!("cluster-ips-check {ip} daddr @cluster-ips reject"),
        format!("cluster-ips-check {ip} daddr {{ {range} }} drop"),
        "filter-prerouting-pre-dnat ct state new jump firewall-check".to_owned(),
        "filter-forward ct state new jump service-endpoints-check".to_owned(),
        "filter-forward ct state new jump cluster-ips-check".to_owned(),
        "filter-input ct state new jump nodeport-endpoints-check".to_owned(),
        "filter-input ct state new jump service-endpoints-check".to_owned(),
        "filter-output ct state new jump service-endpoints-check".to_owned(),
        "filter-output-pre-dnat ct state new jump firewall-check".to_owned(),
        "filter-output ct state new jump cluster-ips-check".to_owned(),
        format!("firewall-check {to_service} @firewall-ips"),
        format!("mark-for-masquerade mark set mark or {MASQUERADE:#x}"),
        format!("masquerading mark and {MASQUERADE:#x} == 0 return"),
        format!("masquerading mark set mark xor {MASQUERADE:#x}"),
        "masquerading masquerade fully-random".to_owned(),
        "nat-output jump services".to_owned(),
        "nat-postrouting jump masquerading".to_owned(),
        "nat-prerouting jump services".to_owned(),
        format!("nodeport-endpoints-check {to_node} @no-endpoint-nodeports"),
        format!("services {to_service} @service-ips"),
        format!("services {to_node} @service-nodeports"),
        format!("service-endpoints-check {to_service} @no-endpoint-services"),
    ] {
        add(&format!("rule {t} {rule}"));
    }
    text
}

/// The chains that no hook leads to.
const CHAINS: [&str; 7] = [
    "cluster-ips-check",
    "firewall-check",
    "mark-for-masquerade",
    "masquerading",
    "nodeport-endpoints-check",
    "services",
    "service-endpoints-check",
];

fn of_port(text: &mut String, ip: &str, port: &Port, family: Family) {
    let (t, service) = (format!("{ip} kube-proxy"), service(port));
    let protocol = port.protocol.name();
    let endpoint = |number| format!("endpoint-{:08}-{}-{number}", port.number, protocol);
    for (number, address) in port.endpoints.iter().enumerate() {
        let chain = endpoint(number);
        let _ = write!(
            text,
            "add chain {t} {chain}\n\
             add rule {t} {chain} {ip} saddr {} jump mark-for-masquerade\n\
             add rule {t} {chain} meta l4proto {protocol} dnat to {address}\n",
            address.ip()
        );
    }
    let count = port.endpoints.len();
    let choices: Vec<String> = (0..count).map(|n| format!("{n} : goto {}", endpoint(n))).collect();
    let _ = write!(
        text,
        "add chain {t} {service}\n\
         add rule {t} {service} {ip} daddr {} {ip} saddr != {} jump mark-for-masquerade\n\
         add rule {t} {service} numgen random mod {count} vmap {{ {} }}\n",
        port.at.ip(),
        pods(family),
        choices.join(", ")
    );
}

fn service(port: &Port) -> String {
    format!("service-{:08}-compare/s{}/{}", port.number, port.number, port.protocol.name())
}
