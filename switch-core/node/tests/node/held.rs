//! Devices that a holder keeps when the node has failed.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use podswitch_linux::{NetNs, Netlink};
use podswitch_node::hold::{HoldEnd, HoldOptions, Holder, HolderLink};
use podswitch_node::{NodeError, NodeOptions, PodInterfaces};

use crate::{config, labels, namespaces, pod, reaches, socket, start};

fn has_carrier(ns: &NetNs, name: &str) -> bool {
    Netlink::open(ns).unwrap().link(name).unwrap().is_running
}

/// The node's thread panics: pods keep their link, and what they send waits for the next run.
#[test]
fn a_panic_leaves_the_devices_open() {
    podswitch_testkit::require_privilege!();
    let folder = std::env::temp_dir().join(format!("podswitch-held-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut holder = Holder::bind(&folder).unwrap();
    let (_stop, stopped) = UnixStream::pair().unwrap();
    let options = HoldOptions { bound: Duration::from_secs(60), stays: false };
    let holding = thread::spawn(move || holder.serve(options, stopped.as_fd()).unwrap());
    let [node_ns, red, blue] = namespaces();
    let options = || NodeOptions::new("n1").namespace(node_ns.clone());
    let pods = || {
        [pod("red", &red, 2).labels(labels("red")), pod("blue", &blue, 3).labels(labels("blue"))]
    };
    let (link, _) = HolderLink::connect(&folder).unwrap();
    let (mut node, _events) = start(options(), config());
    for pod in pods() {
        node.add_pod(pod).unwrap();
    }
    node.hold(Some(link), &folder);
    let (from, to) = (socket(&red, 2, 7), socket(&blue, 3, 7));
    assert!(reaches(&from, &to));
    let handle = node.spawn().unwrap();
    let ended = handle.with(|_| panic!("a test's own")).unwrap_err();
    assert!(matches!(ended, NodeError::Ended), "{ended}");
    let error = handle.stop(PodInterfaces::Keep).unwrap_err();
    assert!(matches!(&error, NodeError::Panicked(why) if why == "a test's own"), "{error}");
    for (ns, name) in [(&red, "eth0"), (&blue, "eth0"), (&node_ns, "podswitch0")] {
        assert!(has_carrier(ns, name), "{name} in {ns}");
    }
    for n in 0..20u8 {
        from.send_to(&[n], to.local_addr().unwrap()).unwrap();
    }
    let (link, files) = HolderLink::connect(&folder).unwrap();
    let (mut node, _events) = start(options().held(files), config());
    for pod in pods() {
        node.add_pod(pod).unwrap();
    }
    node.hold(Some(link), &folder);
    let mut seen: Vec<u8> = Vec::new();
    let mut byte = [0];
    while seen.last() != Some(&19) {
        // Later than this only on a machine that is overloaded.
        if to.recv(&mut byte).is_ok() {
            seen.push(byte[0]);
        }
    }
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    assert!(reaches(&from, &to));
    node.stop(PodInterfaces::Remove).unwrap();
    assert_eq!(holding.join().unwrap(), HoldEnd::Planned);
    fs::remove_dir_all(&folder).unwrap();
}
