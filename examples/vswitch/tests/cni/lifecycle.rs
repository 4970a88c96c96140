//! ADD, CHECK, DEL, GC, STATUS and VERSION.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn pods_are_attached_checked_and_detached() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let (x, y) = (Container::new(), Container::new());
    let dns = json!({"dns": {"nameservers": ["10.96.0.10"]}});
    let added = world.of("ADD", &x, Some("x"), &dns);
    let of_x = added.addresses();
    assert_eq!(of_x, ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00:1::2".parse().unwrap()]);
    let interface = &added.value["interfaces"][0];
    assert_eq!(interface["sandbox"], x.netns.path().display().to_string());
    assert_eq!(added.value["dns"]["nameservers"][0], "10.96.0.10");
    let link = Netlink::open(&x.netns).unwrap().link("eth0").unwrap();
    assert_eq!(link.mac.unwrap().to_string(), interface["mac"].as_str().unwrap());
    assert_eq!(u64::from(link.mtu), interface["mtu"].as_u64().unwrap());
    assert_eq!(fs::metadata(world.socket()).unwrap().permissions().mode() & 0o777, 0o600);

    // The answer is true at once: the first datagram of either family arrives.
    let of_y = world.add(&y, None);
    for (from, to) in of_x.iter().zip(&of_y) {
        let (from, to) = (x.socket(*from, 7000), y.socket(*to, 7000));
        assert!(next_arrives(&from, &to), "{to:?}");
        assert!(next_arrives(&to, &from), "{from:?}");
    }

    let previous = json!({"prevResult": added.value});
    let check = |config: &Value| world.of("CHECK", &x, Some("x"), config);
    assert!(check(&previous).ok);
    assert_eq!(check(&json!({})).error().0, 7);
    let mut other = previous.clone();
    other["prevResult"]["interfaces"][0]["mac"] = json!("02:00:00:00:00:01");
    let text = check(&other).error().1.to_owned();
    assert!(text.contains("its MAC address is 0a:58:0a:01:00:02, not 02:00:00:00:00:01"), "{text}");
    other = previous.clone();
    other["prevResult"]["ips"][0]["address"] = json!("10.1.0.9/32");
    assert_eq!(check(&other).error().0, 7);

    // Twice is once too often.
    let (code, text) = {
        let again = world.of("ADD", &x, Some("x"), &json!({}));
        let (c, t) = again.error();
        (c, t.to_owned())
    };
    assert_eq!(code, 101, "{text}");
    assert_eq!(world.leases().len(), 2);

    world.del(&x);
    assert!(!x.has_interface("eth0"));
    world.del(&x);
    assert_eq!(check(&previous).error().0, 3);
    // With the namespace gone.
    let id = y.id.clone();
    drop(y);
    let gone = [("CNI_CONTAINERID", &*id), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/no")];
    assert!(world.call("DEL", &gone[..2], &json!({})).ok);
    assert!(world.call("DEL", &gone, &json!({})).ok);
    assert_eq!(world.leases().len(), 0);
    assert_eq!(world.call("DEL", &gone[..1], &json!({})).error().0, 4);

    let status = world.call("STATUS", &[], &json!({}));
    assert!(status.ok, "{status:?}");
    assert_eq!(world.call("STATUS", &[], &json!({"cniVersion": "1.0.0"})).error().0, 1);
    let version = world.call("VERSION", &[], &json!({"cniVersion": "0.4.0"})).value;
    assert_eq!(version["cniVersion"], "0.4.0");
    assert_eq!(version["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let taken = Container::new();
    world.put_interface("eth0", &taken.netns);
    let refused = world.of("ADD", &taken, None, &json!({}));
    assert_eq!(refused.error().0, 101);
    world.del(&taken);
    assert!(taken.has_interface("eth0"), "another's");
    assert_eq!(world.leases().len(), 0, "and nothing is held");

    // Ours was replaced by another of that name.
    let replaced = Container::new();
    world.add(&replaced, None);
    let mut netlink = Netlink::open(&replaced.netns).unwrap();
    let ours = netlink.link("eth0").unwrap().index;
    netlink.set_down(ours).unwrap();
    netlink.rename(ours, "old0").unwrap();
    world.put_interface("eth0", &replaced.netns);
    world.del(&replaced);
    assert!(replaced.has_interface("eth0"));
    assert!(!replaced.has_interface("old0"));

    // The node's own namespace is no pod's.
    let node = Container { id: "node".into(), netns: world.node.clone() };
    let refused = world.of("ADD", &node, None, &json!({}));
    assert_eq!(refused.error().0, 4);
    assert_eq!(world.leases().len(), 0);
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn what_is_asked_for_is_given() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let x = Container::new();
    let asked = json!({
        "cniVersion": "0.3.1", "port": "veth",
        "runtimeConfig": {"mac": "02:00:00:00:00:07", "ips": ["10.1.0.77/24"]},
    });
    let added = world.of("ADD", &x, None, &asked);
    assert_eq!(added.addresses()[0], IpAddr::from([10, 1, 0, 77]));
    assert_eq!(added.addresses().len(), 2, "the other family comes of the range");
    assert_eq!(added.value["ips"][0]["version"], "4");
    let link = Netlink::open(&x.netns).unwrap().link("eth0").unwrap();
    assert_eq!(link.mac.unwrap().to_string(), "02:00:00:00:00:07");
    assert_eq!(link.kind.as_deref(), Some("veth"));
    let y = Container::new();
    let text = world.of("ADD", &y, None, &asked).error().1.to_owned();
    assert!(text.contains("10.1.0.77 is held by eth0 of container"), "{text}");
    let ranges = json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.128/25", "rangeStart": "10.1.0.200"}]]}});
    let of_y = world.of("ADD", &y, None, &ranges).addresses();
    assert_eq!(of_y, [IpAddr::from([10, 1, 0, 200])]);
    let (from, to) = (y.socket(of_y[0], 7000), x.socket([10, 1, 0, 77].into(), 7000));
    assert!(arrives(&from, &to, 50));

    let keep = json!({"cni.dev/valid-attachments": [{"containerID": y.id, "ifname": "eth0"}]});
    let other = json!({"name": "other", "cni.dev/valid-attachments": []});
    assert!(world.call("GC", &[], &other).ok, "of another network");
    assert_eq!(world.leases().len(), 2);
    assert!(world.call("GC", &[], &keep).ok);
    assert_eq!(world.leases().len(), 1);
    assert!(!x.has_interface("eth0") && y.has_interface("eth0"));
    assert_eq!(switch.stop(), Some(0));
    assert!(y.has_interface("eth0"), "only DEL removes it");
}

#[test]
fn a_sandbox_that_is_replaced_does_not_take_the_pod_along() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let (old, new, other) = (Container::new(), Container::new(), Container::new());
    let of_old = world.add(&old, Some("x"));
    let of_other = world.add(&other, Some("other"));
    // The pod's next sandbox comes before the DEL of the last.
    let of_new = world.add(&new, Some("x"));
    assert_ne!(of_old, of_new);
    world.del(&old);
    assert!(!old.has_interface("eth0"));
    let (from, to) = (other.socket(of_other[0], 7000), new.socket(of_new[0], 7000));
    assert!(arrives(&from, &to, 50));
    world.del(&new);
    assert!(!new.has_interface("eth0"));
    assert_eq!(world.leases().len(), 1);
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn status_says_when_there_are_no_addresses() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let with = |ranges: &str| {
        let text = head().replace("n1", &world.name);
        let text = text.replace("[10.1.0.0/24, \"fd00:1::/64\"]", ranges);
        fs::write(world.folder.path("state").join("state.yaml"), text).expect("written");
    };
    with("[]");
    let switch = world.start(&[]);
    let status = || world.call("STATUS", &[], &json!({}));
    assert_eq!(status().error(), (50, "the node has no podCIDRs"));
    let x = Container::new();
    assert_eq!(world.of("ADD", &x, None, &json!({})).error().0, 11);
    with("[10.1.0.0/30]");
    switch.says("applied");
    let until = |what: &dyn Fn() -> bool| {
        assert!((0..400).any(|_| what() || {
            std::thread::sleep(Duration::from_millis(50));
            false
        }));
    };
    until(&|| status().ok);
    let containers: Vec<Container> = (0..4).map(|_| Container::new()).collect();
    containers.iter().for_each(|container| drop(world.add(container, None)));
    let full = world.of("ADD", &x, None, &json!({}));
    assert_eq!(full.error().0, 11);
    assert!(full.error().1.contains("no address is free in 10.1.0.0/30"), "{full:?}");
    until(&|| !status().ok);
    assert_eq!(status().error().0, 50);
    assert_eq!(switch.stop(), Some(0));
}
