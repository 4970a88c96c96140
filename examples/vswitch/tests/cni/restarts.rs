//! The switch dies and comes back: pods go on, what a runtime asked meanwhile is done, nothing is had twice.

use podswitch_vswitch_testkit::running::{Limit, PATIENCE};
use rustix::process::Signal;

use super::*;

#[test]
fn pods_go_on_after_a_kill_and_queued_dels_are_done() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let (x, y, z) = (Container::new(), Container::new(), Container::new());
    let (of_x, of_y) = (world.add(&x, Some("x")), world.add(&y, Some("y")));
    let of_z = world.add(&z, None);
    let sockets: Vec<_> =
        of_x.iter().zip(&of_y).map(|(a, b)| (x.socket(*a, 7000), y.socket(*b, 7000))).collect();
    assert!(arrives(&sockets[0].0, &sockets[0].1, 50));
    switch.signal(Signal::KILL);
    drop(switch);

    // The agent is gone: DEL succeeds, STATUS waits and sees, ADD says so.
    world.del(&z);
    assert_eq!(world.files("cni-queue").len(), 1);
    assert!(world.call("STATUS", &[], &json!({})).ok, "a restart is not worth a report");
    let status = status_file(&world);
    fs::write(&status, r#"{"version":1,"uptime":1.0,"code":0,"msg":""}"#).unwrap();
    let stale = world.call("STATUS", &[], &json!({}));
    assert_eq!(stale.error().0, 51);
    let late = Container::new();
    let refused = world.of("ADD", &late, None, &json!({}));
    assert_eq!(refused.error().0, 11);

    let switch = world.start(&[]);
    for (from, to) in &sockets {
        assert!(arrives(from, to, 50), "{to:?}");
    }
    assert_eq!(world.files("cni-queue").len(), 0);
    assert_eq!(world.leases().len(), 2);
    assert!(!z.has_interface("eth0"));
    assert!(world.call("STATUS", &[], &json!({})).ok);
    // Neither what is held nor what was released a short time ago.
    let of_late = world.add(&late, None);
    for address in of_x.iter().chain(&of_y).chain(&of_z) {
        assert!(!of_late.contains(address), "{address}");
    }

    // An orderly stop leaves the interfaces, and the next start finds them.
    assert_eq!(switch.stop(), Some(0));
    assert!(x.has_interface("eth0"));
    let switch = world.start(&[]);
    assert!(arrives(&sockets[0].0, &sockets[0].1, 50));
    for container in [&x, &y, &late] {
        world.del(container);
        assert!(!container.has_interface("eth0"));
    }
    assert_eq!(world.leases().len(), 0);
    assert_eq!(switch.stop(), Some(0));
}

fn status_file(world: &World) -> PathBuf {
    world.folder.path("run").join("cni.status")
}

#[test]
fn a_socket_that_is_in_use_is_refused() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let switch = world.start(&[]);
    let (manifests, run_dir) = (world.folder.text("state"), world.folder.text("run"));
    let second = NetNs::anonymous().unwrap();
    let netns = second.path().display().to_string();
    let output = podswitch_vswitch_testkit::run(&[
        "run",
        "--node",
        &world.name,
        "--manifests",
        &manifests,
        "--node-netns",
        &netns,
        "--run-dir",
        &run_dir,
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&run_dir), "{text}");
    assert!(world.of("ADD", &Container::new(), None, &json!({})).ok, "the first goes on");
    assert_eq!(switch.stop(), Some(0));
}

/// ADDs and DELs go on while the switch is killed and started again: an ADD that was answered holds, no address is had
/// twice, and when all are deleted nothing is left.
#[test]
fn kills_in_between_neither_leak_nor_double_addresses() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let mut switch = Some(world.start(&[]));
    let mut attached: Vec<(Container, Vec<IpAddr>)> = Vec::new();
    let mut all: Vec<Container> = Vec::new();
    for round in 0..4 {
        let killed = std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                let mut added = Vec::new();
                for _ in 0..12 {
                    let container = Container::new();
                    let answer = world.of("ADD", &container, None, &json!({}));
                    added.push((container, answer));
                }
                added
            });
            std::thread::sleep(Duration::from_millis(30 + 40 * round));
            // Killed, and waited for.
            drop(switch.take());
            switch = Some(world.start(&[]));
            adding.join().expect("it ends")
        });
        for (container, answer) in killed {
            if answer.ok {
                let addresses = answer.addresses();
                attached.push((container, addresses));
            } else {
                all.push(container);
            }
        }
        let mut seen = HashSet::new();
        for (_, addresses) in &attached {
            for address in addresses {
                assert!(seen.insert(*address), "{address} twice");
            }
        }
        // Half of them go; some of the DELs meet a switch that is not there.
        for (container, _) in attached.drain(..attached.len() / 2).collect::<Vec<_>>() {
            world.del(&container);
            all.push(container);
        }
        let sockets: Vec<_> = attached.iter().map(|(c, a)| c.socket(a[0], 7000)).collect();
        if let [first, .., last] = &sockets[..] {
            assert!(arrives(first, last, 50));
        }
    }
    all.extend(attached.into_iter().map(|(container, _)| container));
    // Whatever an ADD came to, its DEL comes, and may come twice.
    all.iter().for_each(|container| world.del(container));
    let limit = Limit::new(PATIENCE);
    while !world.leases().is_empty() && limit.left().is_some() {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(world.leases(), HashSet::new());
    assert!(all.iter().all(|container| !container.has_interface("eth0")));
    assert_eq!(switch.and_then(Running::stop), Some(0));
}
