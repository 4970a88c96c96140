//! What `vswitch run` may do while it runs, as the kernel tells of it, and that it still does its work.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_linux::confine::{CONTROL, CapabilitySet};
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, head, pod};

/// A line of a thread's status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn set(status: &str, name: &str) -> CapabilitySet {
    let bits = u64::from_str_radix(&field(status, name), 16).expect("a number");
    CapabilitySet::from_bits_retain(bits)
}

/// The status of each thread.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    tasks.filter_map(Result::ok).filter_map(status).collect()
}

#[test]
fn a_running_switch_holds_little() {
    podswitch_testkit::require_tap!();
    let [node, x, y, z] = [(); 4].map(|()| NetNs::anonymous().expect("a namespace"));
    let attached = |name: &str, number, ns: &NetNs, kind: &str| {
        let path = ns.path();
        pod(
            name,
            number,
            &format!("podswitch.io/netns: {}, podswitch.io/port: {kind}", path.display()),
        )
    };
    let folder = Folder::new();
    let name = format!("privilege-{}", std::process::id());
    let one = head() + &attached("x", 2, &x, "tap");
    folder.manifest("state", &one.replace("n1", &name));
    let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
    let switch = Running::start(&[
        "--node",
        &name,
        "--manifests",
        &manifests,
        "--node-netns",
        &netns,
        "--workers",
        "2",
        "--run-dir",
        &folder.text("run"),
    ]);
    switch.says("ready");

    // A thread that has just begun still has its parent's name.
    let limit = Limit::new(PATIENCE);
    let begun = |threads: &[String]| {
        threads.iter().filter(|status| field(status, "Name").starts_with("cni-")).count() == 2
    };
    let threads = loop {
        let threads = threads(switch.id());
        if begun(&threads) || limit.left().is_none() {
            break threads;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (mut workers, mut answering) = (0, 0);
    for status in &threads {
        let (name, held) = (field(status, "Name"), set(status, "CapPrm"));
        let expected = match &*name {
            // The second is the node's own: it enters namespaces.
            "control" | "podswitch-node" => CONTROL,
            // They answer the CNI plugin, and leave to the node's thread what needs more.
            name if name.starts_with("cni-") => {
                answering += 1;
                CapabilitySet::empty()
            }
            // It answers at the control socket, likewise.
            "podswitch-api" => CapabilitySet::empty(),
            // They write standard output and the log.
            "output" => CapabilitySet::empty(),
            name if name.starts_with("podswitch-") => {
                workers += 1;
                CapabilitySet::empty()
            }
            "vswitch" => CapabilitySet::NET_ADMIN,
            // Helpers of the thread that enters namespaces.
            _ => held & CONTROL,
        };
        assert_eq!(held, expected, "{name}");
        assert!(held.contains(set(status, "CapEff")), "{name}");
        assert_eq!(set(status, "CapInh"), CapabilitySet::empty(), "{name}");
        assert_eq!(set(status, "CapAmb"), CapabilitySet::empty(), "{name}");
        assert!(CONTROL.contains(set(status, "CapBnd")), "{name}");
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
        assert_eq!(field(status, "Seccomp"), "2", "{name}");
    }
    assert_eq!((workers, answering), (2, 2));

    // The process that keeps the devices has nothing.
    let parent = switch.id().to_string();
    let all = fs::read_dir("/proc").expect("a folder").flatten();
    let all = all.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    let holders: Vec<String> = all
        .filter(|status| status.starts_with("Name:") && field(status, "PPid") == parent)
        .collect();
    assert_eq!(holders.len(), 1, "{holders:?}");
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(set(&holders[0], capabilities), CapabilitySet::empty(), "{capabilities}");
    }
    assert_eq!(field(&holders[0], "NoNewPrivs"), "1");
    assert_eq!(field(&holders[0], "Seccomp"), "2");

    // It still attaches pods of either kind, and stops in order.
    let two = one + &attached("y", 3, &y, "veth");
    folder.manifest("state", &two.replace("n1", &name));
    switch.says("applied");
    let mut netlink = podswitch_linux::Netlink::open(&y).expect("netlink");
    assert!(netlink.find_link("eth0").expect("asked").is_some());

    // Nor does what a runtime asks for need more.
    let socket = folder.path("run").join("cni.sock");
    let config = format!(
        r#"{{"cniVersion": "1.0.0", "name": "n", "type": "podswitch-cni", "socket": {socket:?}}}"#
    );
    for verb in ["ADD", "DEL"] {
        let mut call = Command::new(podswitch_vswitch_testkit::plugin());
        call.envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")]);
        let mut call =
            call.env("CNI_NETNS", z.path()).stdin(Stdio::piped()).spawn().expect("it starts");
        call.stdin.take().expect("piped").write_all(config.as_bytes()).expect("written");
        assert!(call.wait().expect("it ends").success(), "{verb}");
    }
    assert_eq!(switch.stop(), Some(0));
}
