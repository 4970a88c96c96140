//! Namespaces and nodes.

use std::net::IpAddr;

use proptest::prelude::*;

use podswitch_kubernetes::{Action, Manifests, Options};

use crate::{bad, compile, fault, good, is_said, pod, refused};

fn node(name: &str, metadata: &str, spec: &str, ips: &[&str]) -> String {
    let addresses: String =
        ips.iter().map(|ip| format!("{{type: InternalIP, address: '{ip}'}},")).collect();
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, {metadata}}}\nspec: {{{spec}}}\n\
         status: {{addresses: [{addresses} {{type: Hostname, address: {name}}}]}}\n"
    )
}

#[test]
fn the_name_label_is_the_systems() {
    let text = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {x: '1', kubernetes.io/metadata.name: b}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: c, labels: }}
";
    let compiled = good(&(text.to_owned() + &pod("p", "10.0.0.1", "namespace: made-up", "", "")));
    let namespaces = &compiled.config.namespaces;
    let label = |at: usize, key| namespaces[at].labels.get(key);
    assert_eq!(label(0, "kubernetes.io/metadata.name"), Some("a"));
    assert_eq!(label(0, "x"), Some("1"));
    assert_eq!(label(1, "kubernetes.io/metadata.name"), Some("c"));
    assert_eq!(label(2, "kubernetes.io/metadata.name"), Some("made-up"));
    assert!(is_said(&compiled, &["made-up"]));
}

#[test]
fn namespace_faults() {
    for (metadata, field) in [
        ("name: A", "metadata.name"),
        ("name: a.b", "metadata.name"),
        ("name: ''", "metadata.name"),
        ("labels: {a: b}", "metadata.name"),
        ("name: a, namespace: b", "metadata.namespace"),
        ("name: a, labels: {'a b': c}", "metadata.labels"),
        ("name: a, labels: {a: 'b c'}", "metadata.labels"),
        ("name: a, annotations: {'a b': c}", "metadata.annotations"),
    ] {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{{metadata}}}}}");
        let found = bad(&text);
        assert_eq!(found.len(), 1, "{text} {found:?}");
        assert_eq!(found[0].1, field, "{text}");
    }
    let huge = format!("{{name: a, annotations: {{x: {}}}}}", "y".repeat(300_000));
    let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {huge}}}");
    assert_eq!(bad(&text), [fault("Namespace/a", "metadata.annotations")]);
}

#[test]
fn this_node_and_the_others() {
    let text = node(
        "n1",
        "",
        "podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd01::/64']",
        &["192.0.2.1", "2001:db8::1"],
    ) + &node("n2", "", "podCIDR: 10.2.0.0/24", &["192.0.2.2"])
        + &node(
            "n3",
            "labels: {zone: z}, annotations: {podswitch.io/vtep-mac: '02:00:00:00:00:03', podswitch.io/mac: '02:00:00:00:01:03'}",
            "",
            &["2001:db8::10a:b0c"],
        )
        + &node("n4", "", "", &[]);
    let compiled = good(&text);
    let local = &compiled.config.node;
    assert_eq!(&*local.name, "n1");
    assert_eq!(local.addresses, ["192.0.2.1", "2001:db8::1"].map(|a| a.parse::<IpAddr>().unwrap()));
    assert_eq!(local.pod_cidrs.len(), 2);
    let remote = &compiled.config.nodes;
    assert_eq!(remote.iter().map(|n| &*n.name).collect::<Vec<_>>(), ["n2", "n3", "n4"]);
    assert_eq!(remote[0].cookie.as_str(), "Node/n2");
    assert_eq!(remote[0].vtep.of(true).to_string(), "0e:58:c0:00:02:02");
    assert_eq!(remote[0].pod_cidrs[0].to_string(), "10.2.0.0/24");
    assert_eq!(remote[1].vtep.ipv4.to_string(), "02:00:00:00:00:03");
    assert_eq!(remote[1].underlay_mac.to_string(), "02:00:00:00:01:03");
    assert_eq!(remote[1].labels.get("zone"), Some("z"));
    assert_eq!(local.vtep.ipv4.to_string(), "0e:58:c0:00:02:01");
    assert_eq!(local.underlay_mac.to_string(), "0a:58:c0:00:02:01");
    assert_eq!(compiled.flannel, None);
    assert!(is_said(&compiled, &["Node/n4", "InternalIP"]));
}

#[test]
fn mac_addresses_of_an_ipv6_node_are_derived_from_its_last_bytes() {
    let compiled = good(&node("n9", "", "", &["2001:db8::10a:b0c"]));
    assert_eq!(compiled.config.nodes[0].vtep.ipv4.to_string(), "0e:58:01:0a:0b:0c");
    // IPv4 first, in any order.
    let compiled = good(&node("n9", "", "", &["2001:db8::10a:b0c", "192.0.2.9"]));
    assert_eq!(compiled.config.nodes[0].vtep.ipv4.to_string(), "0e:58:c0:00:02:09");
}

#[test]
fn flannels_annotations() {
    let annotations = r#"annotations: {
      flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"8a:c3:11:22:33:44"}',
      flannel.alpha.coreos.com/backend-v6-data: '{"VNI":1,"VtepMAC":"8a:c3:11:22:33:66"}',
      flannel.alpha.coreos.com/backend-type: vxlan,
      flannel.alpha.coreos.com/kube-subnet-manager: 'true',
      flannel.alpha.coreos.com/public-ip: 198.51.100.7,
      flannel.alpha.coreos.com/public-ipv6: '2001:db8::7'}"#;
    let compiled = good(&node("n2", annotations, "podCIDR: 10.244.1.0/24", &["192.0.2.2"]));
    let facts = &compiled.config.nodes[0];
    assert_eq!(facts.vtep.of(false).to_string(), "8a:c3:11:22:33:44");
    assert_eq!(facts.vtep.of(true).to_string(), "8a:c3:11:22:33:66");
    assert_eq!(compiled.flannel.unwrap().vni, Some(1));
    let addresses: Vec<_> = facts.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["198.51.100.7", "2001:db8::7", "192.0.2.2"]);

    let other = r#"annotations: {flannel.alpha.coreos.com/backend-data: 'null',
      flannel.alpha.coreos.com/backend-type: host-gw, flannel.alpha.coreos.com/public-ip: x}"#;
    let compiled = good(&node("n2", other, "", &["192.0.2.2"]));
    assert!(compiled.flannel.is_none());
    assert_eq!(compiled.config.nodes[0].vtep.ipv4.to_string(), "0e:58:c0:00:02:02");
}

#[test]
fn flannel_faults() {
    for (key, value) in [
        ("backend-data", "{"),
        ("backend-data", r#"{"VNI":"x"}"#),
        ("backend-data", r#"{"VNI":16777216}"#),
        ("backend-data", r#"{"VNI":1,"VtepMAC":"8a:c3"}"#),
        ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#),
        ("public-ip", "10.0.0"),
        ("public-ip", "2001:db8::1"),
        ("public-ipv6", "10.0.0.1"),
    ] {
        let key = format!("flannel.alpha.coreos.com/{key}");
        let text = node("n2", &format!("annotations: {{{key}: '{value}'}}"), "", &["192.0.2.2"]);
        assert_eq!(bad(&text), [fault("Node/n2", &format!("metadata.annotations[{key}]"))]);
    }
    let vni = |name, vni, ip| {
        let data = format!("{{\"VNI\":{vni}}}");
        let key = "flannel.alpha.coreos.com/backend-data";
        node(name, &format!("annotations: {{{key}: '{data}'}}"), "", &[ip])
    };
    let text = vni("a", 1, "192.0.2.1") + &vni("b", 2, "192.0.2.2");
    assert_eq!(bad(&text).len(), 1);
}

#[test]
fn node_faults() {
    for (metadata, spec, ips, field) in [
        ("", "", &["10.0.0"][..], "status.addresses[0].address"),
        ("", "", &["010.0.0.1"], "status.addresses[0].address"),
        ("", "", &["10.0.0.1", "::ffff:10.0.0.1"], "status.addresses[1].address"),
        ("", "", &["10.0.0.1", "10.0.0.1"], "status.addresses[1].address"),
        ("", "podCIDR: 10.0.0.0", &[], "spec.podCIDR"),
        ("", "podCIDRs: [10.0.0.0/33]", &[], "spec.podCIDRs[0]"),
        ("", "podCIDRs: [10.0.0.0/24, 10.0.1.0/24]", &[], "spec.podCIDRs[1]"),
        ("", "podCIDR: 10.0.0.0/24, podCIDRs: [10.0.1.0/24]", &[], "spec.podCIDR"),
        (
            "annotations: {podswitch.io/vtep-mac: x}",
            "",
            &[],
            "metadata.annotations[podswitch.io/vtep-mac]",
        ),
        (
            "annotations: {podswitch.io/mac: '01:00:00:00:00:00'}",
            "",
            &[],
            "metadata.annotations[podswitch.io/mac]",
        ),
        ("namespace: a", "", &[], "metadata.namespace"),
    ] {
        let text = node("n2", metadata, spec, ips);
        assert_eq!(bad(&text), [fault("Node/n2", field)], "{text}");
    }
}

#[test]
fn nodes_that_collide() {
    // The second by name does not get its range, whichever range is larger.
    for (first, second) in
        [("10.0.0.0/16", "10.0.3.0/24"), ("10.0.3.0/24", "10.0.0.0/16"), ("fd00::/64", "fd00::/64")]
    {
        let text = node("a", "", &format!("podCIDRs: ['{first}']"), &[])
            + &node("b", "", "podCIDRs: [10.9.0.0/16]", &[])
            + &node("c", "", &format!("podCIDRs: ['{second}']"), &[]);
        assert_eq!(bad(&text), [fault("Node/c", "spec.podCIDRs[0]")]);
    }
}

#[test]
fn a_state_without_this_node_is_reported() {
    let compiled = compile(&pod("a", "10.0.0.1", "", "", ""));
    assert_eq!(&*compiled.config.node.name, "n1");
    assert!(!compiled.has_node);
    let record = compiled.refused().next().unwrap();
    assert_eq!((record.object.as_str(), record.action), ("Node/n1", Action::None));
    assert!(compile(&node("n1", "", "", &[])).has_node);
    // A Node object that cannot be used counts as missing.
    assert!(!compile(&node("n1", "labels: {a b: c}", "", &["10.0.0.1"])).has_node);
    let compiled = Manifests::default().compile(None, &Options::default());
    assert!(compiled.has_node);
}

proptest! {
    /// The index finds the same overlaps as comparing every pair.
    #[test]
    fn overlaps_are_found(ranges in prop::collection::vec((0u32..64, 26u8..=32), 1..12)) {
        let texts: Vec<_> = ranges
            .iter()
            .map(|&(address, prefix)| {
                let prefix = 32 - (32 - prefix).min(address.trailing_zeros() as u8);
                format!("10.0.0.{address}/{prefix}")
            })
            .collect();
        let cidrs: Vec<podswitch_wire::cidr::Cidr> = texts.iter().map(|t| t.parse().unwrap()).collect();
        let overlap = |a: podswitch_wire::cidr::Cidr, b: podswitch_wire::cidr::Cidr| {
            a.contains(b.address()) || b.contains(a.address())
        };
        let bad: Vec<_> = (0..cidrs.len())
            .filter(|&i| (0..i).any(|j| overlap(cidrs[i], cidrs[j])))
            .map(|i| fault(&format!("Node/m{i:02}"), "spec.podCIDRs[0]"))
            .collect();
        let text: String = texts
            .iter()
            .enumerate()
            .map(|(at, range)| node(&format!("m{at:02}"), "", &format!("podCIDRs: ['{range}']"), &[]))
            .collect();
        let compiled = compile(&text);
        let found = refused(&compiled);
        let found: Vec<_> = found.into_iter().map(|r| (r.object.to_string(), r.field.clone())).collect();
        prop_assert_eq!(found, bad, "{:?}", texts);
    }
}
