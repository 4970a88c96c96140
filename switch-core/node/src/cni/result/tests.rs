use super::*;

fn attached<'a>(addresses: &'a [IpAddr], dns: Option<&'a Value>) -> Attached<'a> {
    Attached {
        interface: "eth0",
        mac: "0a:58:0a:01:00:02",
        mtu: 1450,
        netns: "/run/netns/x",
        addresses,
        dns,
    }
}

fn both() -> [IpAddr; 2] {
    [[10, 1, 0, 2].into(), "fd00::2".parse().unwrap()]
}

#[test]
fn each_version_has_its_format() {
    let (addresses, dns) = (both(), json!({"nameservers": ["10.96.0.10"]}));
    let result = added(Version::V1_1_0, None, &attached(&addresses, Some(&dns))).unwrap();
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "0a:58:0a:01:00:02", "mtu": 1450, "sandbox": "/run/netns/x"}],
        "ips": [
            {"address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 0},
            {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    assert_eq!(result, expected);
    let older = added(Version::V1_0_0, None, &attached(&addresses, None)).unwrap();
    assert_eq!((&older["interfaces"][0]["mtu"], &older["dns"]), (&Value::Null, &json!({})));
    assert_eq!(older["ips"][0].get("version"), None);
    for version in [Version::V0_3_1, Version::V0_4_0] {
        let oldest = added(version, None, &attached(&addresses, None)).unwrap();
        assert_eq!(
            (&oldest["ips"][0]["version"], &oldest["ips"][1]["version"]),
            (&json!("4"), &json!("6"))
        );
        assert_eq!(oldest["cniVersion"], version.as_str());
    }
}

#[test]
fn the_preceding_plugins_result_is_passed_on() {
    let before = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "br0"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": null,
        "dns": {"domain": "before"},
        "more": 1,
    });
    let (addresses, dns) = (both(), json!({"domain": "ours"}));
    let result = added(Version::V1_0_0, Some(&before), &attached(&addresses, Some(&dns))).unwrap();
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["ips"][0], before["ips"][0]);
    assert_eq!(result["ips"][1]["interface"], 1);
    assert_eq!(result["routes"].as_array().unwrap().len(), 2);
    assert_eq!((&result["dns"]["domain"], &result["more"]), (&json!("before"), &json!(1)));
    for wrong in [json!(1), json!({"ips": 1}), json!({"interfaces": {}})] {
        let refused = added(Version::V1_0_0, Some(&wrong), &attached(&addresses, None));
        assert_eq!(refused.unwrap_err().code, CniError::CONFIGURATION, "{wrong}");
    }
}

#[test]
fn check_reads_its_interface_from_prev_result() {
    let result = added(Version::V1_0_0, None, &attached(&both(), None)).unwrap();
    let found = expected(&result, "eth0", "/run/netns/x").unwrap();
    let mac = Some("0a:58:0a:01:00:02".to_owned());
    assert_eq!(found, Expected { mac, addresses: both().to_vec() });
    let other = expected(&result, "eth0", "/run/netns/y").unwrap_err().message;
    let text =
        "network configuration: prevResult.interfaces: has no interface eth0 in /run/netns/y";
    assert_eq!(other, text);
    let mut foreign = result.clone();
    foreign["interfaces"].as_array_mut().unwrap().push(json!({"name": "lo"}));
    foreign["ips"][1]["interface"] = json!(1);
    assert_eq!(expected(&foreign, "eth0", "/run/netns/x").unwrap().addresses, both()[..1]);
    foreign["ips"][0]["address"] = json!("x");
    assert_eq!(expected(&foreign, "eth0", "/run/netns/x").unwrap_err().code, 7);
}
