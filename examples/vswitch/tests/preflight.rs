//! `preflight` on a good node, in a user namespace, without privilege, and where others are in the way.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::{NetNs, Netlink, userns};
use podswitch_testkit::{require_privilege, require_root, require_tap};
use podswitch_vswitch_testkit::{Folder, program};
use serde_json::Value;

struct Report(Value, Option<i32>);

impl Report {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        let report = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{told}"));
        Self(report, output.status.code())
    }

    fn level(&self, name: &str) -> &str {
        self.field(name, "level")
    }

    fn field(&self, name: &str, field: &str) -> &str {
        let checks = self.0["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no {name}: {}", self.0))[field].as_str().unwrap_or("")
    }
}

/// The command, with folders of its own, in `ns`.
fn preflight(folder: &Folder, ns: &NetNs) -> Command {
    let mut command = ns.command(program());
    fs::create_dir_all(folder.path("net.d")).unwrap();
    command.args(["preflight", "--json", "--cni-conf-dir", &folder.text("net.d")]);
    command
}

fn node() -> NetNs {
    let ns = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&ns).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    netlink.set_up(lo).unwrap();
    ns
}

#[test]
fn a_good_node_passes() {
    require_tap!();
    let (folder, ns) = (Folder::new(), node());
    let report = Report::of(&preflight(&folder, &ns).output().unwrap());
    for name in [
        "capabilities",
        "namespaces",
        "tun",
        "UDP GSO and GRO",
        "packet sockets",
        "nftables NAT",
        "nftables netdev hook",
        "settings",
        "kube-proxy",
        "tunnel port",
        "health and metrics port",
        "CNI configuration",
        "other networks",
        "source ports",
        "descriptors",
    ] {
        assert_eq!(report.level(name), "ok", "{name}: {}", report.0);
    }
    // No default route in there.
    assert_eq!(report.level("MTU"), "warn");
    assert_eq!((report.0["ok"].as_bool(), report.1), (Some(true), Some(0)), "{}", report.0);
    let text = preflight(&folder, &ns).args(["--uplink", "lo"]).output().unwrap();
    assert_eq!(Report::of(&text).level("MTU"), "ok");
}

#[test]
fn what_is_in_the_way_is_named_with_its_mending() {
    require_tap!();
    let (folder, ns) = (Folder::new(), node());
    let mut netlink = Netlink::open(&ns).unwrap();
    for name in ["flannel.1", "kube-ipvs0", "cali0123456789a"] {
        netlink.add_bridge(&LinkSpec::new(name)).unwrap();
    }
    let taken = ns.enter(|| {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4789)).unwrap();
        (udp, TcpListener::bind((Ipv4Addr::LOCALHOST, 9100)).unwrap())
    });
    let taken = taken.unwrap();
    fs::create_dir_all(folder.path("net.d")).unwrap();
    fs::write(folder.path("net.d/05-other.conflist"), "{}").unwrap();
    let report = Report::of(&preflight(&folder, &ns).output().unwrap());
    for (name, level, found) in [
        ("tunnel port", "fail", "4789"),
        ("health and metrics port", "fail", "127.0.0.1:9100"),
        ("CNI configuration", "fail", "05-other.conflist"),
        ("other networks", "warn", "flannel.1 (Flannel)"),
        ("kube-proxy", "warn", "IPVS"),
        ("Flannel's tunnel port", "ok", "8472"),
    ] {
        assert_eq!(report.level(name), level, "{name}: {}", report.0);
        assert!(report.field(name, "found").contains(found), "{name}: {}", report.0);
        assert_eq!(report.field(name, "mend").is_empty(), level == "ok", "{name}: {}", report.0);
    }
    assert_eq!((report.0["ok"].as_bool(), report.1), (Some(false), Some(1)));
    // Another port, no health: nothing clashes.
    let mut others = preflight(&folder, &ns);
    others.args(["--vxlan-port", "8472", "--metrics-address", "off"]);
    let report = Report::of(&others.output().unwrap());
    assert_eq!(report.level("tunnel port"), "ok", "{}", report.0);
    // A switch that runs has its ports itself.
    netlink.add_bridge(&LinkSpec::new("podswitch0")).unwrap();
    let report = Report::of(&preflight(&folder, &ns).output().unwrap());
    assert_eq!(report.level("tunnel port"), "ok", "{}", report.0);
    assert_eq!(report.level("health and metrics port"), "ok", "{}", report.0);
    drop(taken);
}

#[test]
fn an_uplink_that_is_not_there_fails() {
    require_privilege!();
    let (folder, ns) = (Folder::new(), node());
    let output = preflight(&folder, &ns).args(["--uplink", "eth7"]).output().unwrap();
    let report = Report::of(&output);
    assert_eq!((report.level("MTU"), report.1), ("fail", Some(1)), "{}", report.0);
    let lenient = preflight(&folder, &ns).args(["--uplink", "eth7", "--warn-only"]).output();
    assert_eq!(lenient.unwrap().status.code(), Some(0));
}

/// In a user namespace everything but the tun device is given.
#[test]
fn a_user_namespace_is_enough_for_most() {
    let mut command = Command::new(program());
    command.args(["preflight", "--json", "--cni-conf-dir", "/nowhere"]);
    userns::in_new_user_namespace(&mut command);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            return podswitch_testkit::privilege::skip(
                "a_user_namespace_is_enough_for_most",
                &format!("no user namespaces here: {error}"),
            );
        }
    };
    let report = Report::of(&output);
    assert_eq!(report.level("capabilities"), "ok", "{}", report.0);
    assert_eq!(report.level("namespaces"), "ok", "{}", report.0);
    assert_eq!(report.level("tunnel port"), "ok", "{}", report.0);
}

/// Nothing panics, everything that is missing is said.
#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    require_root!("it becomes another user");
    let copy = std::env::temp_dir().join(format!("vswitch-{}", std::process::id()));
    fs::copy(program(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.args(["preflight", "--json"]).uid(65_534).gid(65_534);
    let output = command.output();
    fs::remove_file(&copy).unwrap();
    let report = Report::of(&output.unwrap());
    assert_eq!(report.level("capabilities"), "fail", "{}", report.0);
    assert_eq!(report.level("namespaces"), "fail", "{}", report.0);
    assert_eq!(report.level("settings"), "fail", "{}", report.0);
    assert_eq!((report.0["ok"].as_bool(), report.1), (Some(false), Some(1)));
}
