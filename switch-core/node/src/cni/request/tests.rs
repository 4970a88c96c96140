use podswitch_policy::rule::Protocol;
use serde_json::json;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const ADD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/x"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=x;K8S_POD_UID=u-1"),
];

fn config(more: Value) -> String {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "podswitch-cni"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

/// ADD with additional configuration.
fn add(more: Value) -> Result<Add, CniError> {
    match Request::read(&environment(&ADD), &config(more), None)?.verb {
        Verb::Add(add) => Ok(*add),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_add_is_read_with_every_option_of_a_runtime() {
    let plain = add(json!({})).unwrap();
    assert_eq!((plain.key.container.as_str(), plain.key.interface.as_str()), ("c1", "eth0"));
    assert_eq!((&*plain.pod, plain.is_pod, plain.uid.as_deref()), ("a/x", true, Some("u-1")));
    assert_eq!((plain.kind, plain.mac, &plain.ranges), (None, None, &None));

    let full = add(json!({
        "port": "veth",
        "dns": {"nameservers": ["10.96.0.10"], "search": ["svc"]},
        "ipam": {"type": "podswitch", "ranges": [[{"subnet": "10.2.0.0/24"}]]},
        "runtimeConfig": {
            "mac": "02:00:00:00:00:07",
            "ips": ["10.1.0.9/24", "fd00::9"],
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
                {"hostPort": 0, "containerPort": 81, "protocol": "tcp"},
            ],
        },
    }))
    .unwrap();
    assert_eq!(full.kind, Some(InterfaceKind::Veth));
    assert_eq!(full.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
    assert_eq!(full.addresses, ["10.1.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
    assert_eq!(full.dns, Some(json!({"nameservers": ["10.96.0.10"], "search": ["svc"]})));
    assert_eq!(full.ports.len(), 2, "one is not opened");
    assert_eq!(
        (full.ports[0].protocol, full.ports[0].port, full.ports[0].target),
        (Protocol::Tcp, 8080, 80)
    );
    assert_eq!(full.ports[1].address, Some([192, 0, 2, 1].into()));
    assert_eq!(full.ranges.unwrap()[0][0].to_string(), "10.2.0.0/24 (10.2.0.2 to 10.2.0.254)");

    // What the runtime provides takes precedence over the configuration.
    let runtime = add(json!({
        "dns": {"nameservers": ["1.1.1.1"]},
        "ipam": {"ranges": [[{"subnet": "10.2.0.0/24"}]]},
        "runtimeConfig": {
            "dns": {"servers": ["10.0.0.1"], "searches": ["a"], "options": ["ndots:5"]},
            "ipRanges": [[{"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.10", "rangeEnd": "10.3.0.20",
                           "gateway": "10.3.0.11"}], [{"subnet": "fd03::/64"}]],
        },
    }))
    .unwrap();
    let dns = json!({"nameservers": ["10.0.0.1"], "search": ["a"], "options": ["ndots:5"]});
    assert_eq!(runtime.dns, Some(dns));
    let ranges = runtime.ranges.unwrap();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[0][0].contains([10, 3, 0, 10].into()));
    assert!(
        !ranges[0][0].contains([10, 3, 0, 11].into())
            && !ranges[0][0].contains([10, 3, 0, 21].into())
    );
}

#[test]
fn a_container_that_is_not_a_pod_gets_its_own_name() {
    let of = |container: &str, interface: &str| {
        let mut variables = environment(&ADD[..4]);
        variables.insert("CNI_CONTAINERID".into(), container.into());
        variables.insert("CNI_IFNAME".into(), interface.into());
        match Request::read(&variables, &config(json!({})), None).unwrap().verb {
            Verb::Add(add) => (add.pod.to_string(), add.is_pod),
            other => panic!("{other:?}"),
        }
    };
    let (name, is_pod) = of("Cnitool_77.383ca0a0715733ca066-x", "eth0");
    assert!(!is_pod && name.starts_with("cni.container/ccnitool77383ca0a"), "{name}");
    assert_eq!(of("Cnitool_77.383ca0a0715733ca066-x", "eth0").0, name);
    assert_ne!(of("Cnitool_77.383ca0a0715733ca066-x", "eth1").0, name);
    assert_ne!(of("Cnitool-77.383ca0a0715733ca066-x", "eth0").0, name);
}

#[test]
fn a_refusal_has_the_code_of_the_specification_and_names_field_and_reason() {
    let text = |more: Value| {
        let error = add(more).unwrap_err();
        (error.code, error.message.replace("network configuration: ", ""))
    };
    let cases = [
        (
            json!({"cniVersion": "0.2.0"}),
            1,
            "cniVersion: \"0.2.0\" is not supported; supported are 0.3.1, 0.4.0, 1.0.0, 1.1.0",
        ),
        (
            json!({"cniVersion": null}),
            1,
            "cniVersion: is missing, which means 0.1.0; that is not supported",
        ),
        (json!({"name": ""}), 7, "name: \"\" is not letters, digits, '_', '.' and '-'"),
        (json!({"name": "a/b"}), 7, "name: \"a/b\" is not letters, digits, '_', '.' and '-'"),
        (json!({"port": "tun"}), 7, "port: \"tun\" is neither \"tap\" nor \"veth\""),
        (
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}),
            2,
            "runtimeConfig.bandwidth: {\"ingressRate\":1} is not supported",
        ),
        (
            json!({"ipam": {"routes": [{"dst": "0.0.0.0/0"}]}}),
            2,
            "ipam.routes: [{\"dst\":\"0.0.0.0/0\"}] is not supported",
        ),
        (json!({"ipam": {"type": "../x"}}), 7, "ipam.type: \"../x\" is not a plugin name"),
        (json!({"ipam": {"type": "host-local"}}), 7, "ipam.type: there is no result of host-local"),
        (
            json!({"ipam": {"ranges": [[{"subnet": 1}]]}}),
            7,
            "ipam.ranges[0][0].subnet: invalid type: integer `1`, expected a string",
        ),
        (json!({"ipam": {"ranges": [[]]}}), 7, "ipam.ranges[0]: is empty"),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0"}]]}}),
            7,
            "ipam.ranges[0][0].subnet: \"10.0.0.0\" is not a range of addresses",
        ),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]}}),
            7,
            "ipam.ranges[0][0]: rangeStart: 10.0.1.1 is not in 10.0.0.0/24",
        ),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]]}}),
            7,
            "ipam.ranges[0][0]: rangeEnd: is before rangeStart",
        ),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}}),
            7,
            "ipam.ranges[0]: has ranges of both families; a set must have one",
        ),
        (
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.1.0/24"}]]}}),
            7,
            "ipam.ranges: has more than one set of a family",
        ),
        (
            json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}),
            7,
            "runtimeConfig.mac: ff:ff:ff:ff:ff:ff is not a unicast address",
        ),
        (
            json!({"runtimeConfig": {"mac": "x"}}),
            7,
            "runtimeConfig.mac: \"x\" is not a MAC address",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.0.0.1/33"]}}),
            7,
            "runtimeConfig.ips[0]: \"10.0.0.1/33\" has no prefix length from 0 to 32",
        ),
        (
            json!({"runtimeConfig": {"ips": ["127.0.0.1"]}}),
            7,
            "runtimeConfig.ips[0]: 127.0.0.1 is not a valid pod address",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}}),
            7,
            "runtimeConfig.ips: has more than one address of a family",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}}),
            7,
            "runtimeConfig.portMappings[0].hostPort: 70000 is not from 0 to 65535",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}),
            7,
            "runtimeConfig.portMappings[0].containerPort: is missing or 0",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}}),
            7,
            "runtimeConfig.portMappings[0].protocol: \"x\" is neither tcp, udp nor sctp",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]}}),
            7,
            "runtimeConfig.portMappings[0].hostIP: \"x\" is not an IP address",
        ),
        (
            json!({"dns": {"nameservers": "x"}}),
            7,
            "dns.nameservers: invalid type: string \"x\", expected a sequence",
        ),
    ];
    for (more, code, expected) in cases {
        assert_eq!(text(more.clone()), (code, expected.to_owned()), "{more}");
    }
    let error = |pairs: &[(&str, &str)], config: &str| {
        let error = Request::read(&environment(pairs), config, None).unwrap_err();
        (error.code, error.message)
    };
    let good = config(json!({}));
    assert_eq!(error(&ADD, "{").0, 6);
    assert_eq!(error(&ADD, "[]"), (6, "network configuration: not a JSON object".into()));
    let missing = "required environment variables are missing: CNI_NETNS, CNI_IFNAME";
    assert_eq!(error(&ADD[..2], &good), (4, missing.into()));
    assert_eq!(
        error(&[("CNI_COMMAND", "FLY")], &good),
        (4, "CNI_COMMAND: \"FLY\" is unknown".into())
    );
    let with = |name: &'static str, value: &'static str| {
        let mut pairs = ADD.to_vec();
        pairs.retain(|(other, _)| *other != name);
        pairs.push((name, value));
        error(&pairs, &good)
    };
    assert_eq!(with("CNI_CONTAINERID", "../x").0, 4);
    assert_eq!(
        with("CNI_IFNAME", "a/b"),
        (4, "CNI_IFNAME: \"a/b\" is not an interface name".into())
    );
    assert_eq!(
        with("CNI_IFNAME", "sixteen-letters-"),
        (4, "CNI_IFNAME: \"sixteen-letters-\" has 16 bytes, more than 15".into())
    );
    assert_eq!(with("CNI_NETNS", "x"), (4, "CNI_NETNS: \"x\" is not an absolute path".into()));
    assert_eq!(
        with("CNI_ARGS", "K8S_POD_NAME"),
        (4, "CNI_ARGS: \"K8S_POD_NAME\" is not KEY=VALUE".into())
    );
    assert_eq!(
        with("CNI_ARGS", "K8S_POD_NAME=x"),
        (4, "CNI_ARGS: K8S_POD_NAMESPACE is missing".into())
    );
    assert_eq!(
        with("CNI_ARGS", "IP=10.0.0.x"),
        (4, "CNI_ARGS: IP: \"10.0.0.x\" is not an IP address".into())
    );
}

#[test]
fn verbs_have_versions_and_required_fields() {
    let of = |command: &str, version: &str, more: Value| {
        let mut variables = environment(&ADD);
        variables.insert("CNI_COMMAND".into(), command.into());
        variables.insert("CNI_PATH".into(), "/opt/cni/bin".into());
        let mut more = more;
        more["cniVersion"] = json!(version);
        Request::read(&variables, &config(more), None).map(|request| request.verb)
    };
    let code = |result: Result<Verb, CniError>| result.unwrap_err().code;
    assert!(matches!(of("DEL", "0.3.1", json!({})), Ok(Verb::Del(_))));
    assert!(matches!(of("DEL", "1.1.0", json!({"port": "x", "dns": 1})), Ok(Verb::Del(_))));
    assert_eq!(code(of("DEL", "0.2.0", json!({}))), 1);
    assert_eq!(code(of("CHECK", "0.3.1", json!({}))), 1);
    assert_eq!(code(of("CHECK", "0.4.0", json!({}))), 7, "prevResult");
    assert!(matches!(of("CHECK", "0.4.0", json!({"prevResult": {}})), Ok(Verb::Check { .. })));
    assert_eq!(code(of("GC", "1.0.0", json!({}))), 1);
    assert_eq!(code(of("GC", "1.1.0", json!({}))), 7, "no list is not an empty one");
    let listed = json!([{"containerID": "c1", "ifname": "eth0"}]);
    for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let Ok(Verb::Gc(keys)) = of("GC", "1.1.0", json!({name: listed})) else { panic!("{name}") };
        assert_eq!(keys[0].to_string(), "eth0 of container c1");
    }
    let wrong = json!({"cni.dev/valid-attachments": [{"ifname": "eth0"}]});
    assert_eq!(code(of("GC", "1.1.0", wrong)), 7);

    let mut add = environment(&ADD);
    add.insert("CNI_COMMAND".into(), "ADD".into());
    let delegated = config(json!({"ipam": {"type": "host-local"}}));
    let read = |result: Value| Request::read(&add, &delegated, Some(&result));
    let result =
        json!({"ips": [{"address": "10.9.0.2/24", "version": "4"}], "dns": {"domain": "d"}});
    let Verb::Add(request) = read(result).unwrap().verb else { panic!() };
    assert_eq!(request.ipam.as_ref().unwrap().addresses, ["10.9.0.2".parse::<IpAddr>().unwrap()]);
    assert_eq!(request.ipam.unwrap().dns, Some(json!({"domain": "d"})));
    assert_eq!(read(json!({"ips": []})).unwrap_err().code, 7);
    assert_eq!(
        read(json!({"ips": [{"address": "10.9.0.2"}, {"address": "10.9.0.3"}]})).unwrap_err().code,
        7
    );
}
