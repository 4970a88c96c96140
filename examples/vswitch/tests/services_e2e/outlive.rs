//! What outlives the switch: connections, session affinity, counters.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_vswitch_testkit::running::{Limit, PATIENCE};
use podswitch_vswitch_testkit::{RunDir, run};
use serde_json::Value;

use crate::world::{BALANCER, CLIENT, NODE, PODS, World, connect, ip, resets, rules};
/// How a run ends that another follows.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// With nobody that keeps its devices.
    Killed,
    /// While a holder keeps its devices.
    Held,
    /// As planned, with `--keep`.
    Stopped,
}

/// A connection with both ends in hand.
pub(crate) struct Open {
    pub(crate) what: String,
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

/// Both ends of a connection to a server of [`World::serve_both`].
pub(crate) fn open(
    from: &NetNs,
    (to, port): (&str, u16),
    servers: &Receiver<(u16, TcpStream)>,
) -> Open {
    let what = format!("[{to}]:{port}");
    let mut client = connect(from, to, port).unwrap_or_else(|e| panic!("{what}: {e}"));
    // The client sends its port, since the server sees another one if it is translated.
    let own = client.local_addr().expect("an address").port();
    client.write_all(&own.to_be_bytes()).expect("written");
    let (told, server) = servers.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(told, own, "{what}");
    server.set_read_timeout(Some(PATIENCE)).expect("set");
    Open { what, client, server }
}

/// Connections of every kind, both families: the switch ends again and again while they are open, either end or both
/// send while there is none, and other backends are ready when it comes back. Each goes on with its own, whichever end
/// speaks first. Then the last run stops without `--keep`, and nothing is left.
fn connections_outlive(end: End, name: &str) {
    let world = World::new(name);
    let World { client, pods, node, .. } = &world;
    let settings = || {
        ["net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
            .map(|key| sysctl::get(node, key).unwrap())
    };
    let before = (rules(node), settings());
    let folder = RunDir::new(name);
    let run_dir = folder.0.clone();
    let masquerade = format!("{},{}", NODE[0], NODE[1]);
    let flags = ["--run-dir", &run_dir, "--masquerade", &masquerade];
    let flags = [&flags[..], &["--cluster-cidr", "172.16.0.0/12"]].concat();
    let hold = if end == End::Killed { "off" } else { "start" };
    let kept = [&flags[..], &["--keep", "--hold", hold]].concat();
    world.state([false, true]);
    let mut switch = world.start(&kept);
    switch.says("ready");
    let servers = world.serve_both();
    let mut connections = Vec::new();
    for f in 0..2 {
        let vip = ["10.96.0.10", "fd96::10"][f];
        for (from, to, port) in [
            (&pods[0], vip, 80),
            // Back to itself.
            (&pods[1], vip, 80),
            (node, vip, 80),
            (client, NODE[f], 30_080),
            (client, BALANCER[f], 80),
            (&pods[0], NODE[f], 30_080),
            // Without a Service, and masqueraded.
            (&pods[0], PODS[1][f], 8080),
            (&pods[0], CLIENT[f], 8080),
        ] {
            connections.push(open(from, (to, port), &servers));
        }
    }
    let reset = resets(node);
    for round in 0..3u8 {
        match end {
            End::Killed | End::Held => drop(switch),
            End::Stopped => assert_eq!(switch.stop(), Some(0)),
        }
        let from_client = [round; 3000];
        let from_server = [round + 100; 3000];
        for Open { what, client, server } in &mut connections {
            let failed = |e| -> () { panic!("{what}: {e}") };
            if round != 1 {
                client.write_all(&from_client).unwrap_or_else(failed);
            }
            if round != 2 {
                server.write_all(&from_server).unwrap_or_else(failed);
            }
        }
        // Time for an answer of a stack that the segments are not for.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(resets(node), reset, "the node's stack keeps out of it");
        // New connections would go to the other pod.
        world.state([round % 2 == 0, round % 2 == 1]);
        let workers = (1 + round % 2).to_string();
        switch = world.start(&[&kept[..], &["--workers", &workers]].concat());
        switch.says("ready");
        for Open { what, client, server } in &mut connections {
            let failed = |e| -> () { panic!("{what}, {round}: {e}") };
            if round == 1 {
                client.write_all(&from_client).unwrap_or_else(failed);
            }
            if round == 2 {
                server.write_all(&from_server).unwrap_or_else(failed);
            }
            for (to, sent) in [(&mut *server, from_client), (client, from_server)] {
                let mut got = [9; 3000];
                to.read_exact(&mut got).unwrap_or_else(failed);
                assert_eq!(got, sent, "{what}, {round}");
            }
        }
    }
    let new = open(&pods[0], ("10.96.0.10", 80), &servers);
    let at = new.server.local_addr().expect("an address").ip().to_canonical();
    assert_eq!(at, ip(PODS[0][0]), "a new one goes to the pod that is ready");
    // A run that leaves everything, and one that does not.
    assert_eq!(switch.stop(), Some(0));
    assert_ne!((rules(node), settings()), before);
    if end == End::Stopped {
        let conf_dir = world.folder.text("net.d");
        let arguments = ["uninstall", "--run-dir", &run_dir, "--cni-conf-dir", &conf_dir];
        let output = node.enter(|| run(&arguments)).unwrap();
        assert!(output.status.success(), "{output:?}");
    } else {
        let switch = world.start(&flags);
        switch.says("ready");
        assert_eq!(switch.stop(), Some(0));
        let left = fs::read_dir(&run_dir).unwrap().map(|e| e.unwrap().file_name());
        let of_runs = |name: &&std::ffi::OsString| {
            let name = name.to_string_lossy();
            name.starts_with("connections") || name.starts_with("kept")
        };
        let left: Vec<_> = left.collect();
        assert_eq!(left.iter().find(of_runs), None, "{left:?}");
        fs::remove_dir_all(&run_dir).expect("removed");
    }
    assert_eq!((rules(node), settings()), before);
    assert!(!fs::exists(&run_dir).unwrap());
    let refused =
        connect(client, NODE[0], 30_080).expect_err("the node's stack has its ports again");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn connections_outlive_a_kill() {
    podswitch_testkit::require_tap!();
    connections_outlive(End::Killed, "outlive");
}

#[test]
fn connections_outlive_a_kill_with_a_holder() {
    podswitch_testkit::require_privilege!();
    connections_outlive(End::Held, "held");
}

#[test]
fn connections_outlive_a_planned_stop() {
    podswitch_testkit::require_tap!();
    connections_outlive(End::Stopped, "planned");
}

/// The pod that answers a datagram from one of the client's addresses to the Service with affinity.
#[track_caller]
fn ask_sticky(client: &NetNs, source: IpAddr) -> u8 {
    let socket = client.enter(|| UdpSocket::bind((source, 0))).unwrap().expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let to = SocketAddr::new(ip(NODE[usize::from(source.is_ipv6())]), 30_090);
    socket.send_to(b"?", to).expect("sent");
    let mut pod = [9];
    socket.recv(&mut pod).expect("an answer");
    pod[0]
}

/// Every count that `before` has is in `after`, and not smaller.
pub(crate) fn assert_monotone(before: &Value, after: &Value, path: &str) {
    const OF_RUN: [&str; 6] =
        ["workers", "epoch", "connections", "busy_percent", "batch_fill", "port"];
    match before {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !OF_RUN.contains(&&***name)) {
                assert_monotone(value, &after[name], &format!("{path}/{name}"));
            }
        }
        Value::Array(entries) => {
            for (n, entry) in entries.iter().enumerate() {
                assert_monotone(entry, &after[n], &format!("{path}/{n}"));
            }
        }
        Value::Number(was) => assert!(after.as_f64() >= was.as_f64(), "{path}: {was}, {after}"),
        _ => {}
    }
}

/// Clients keep their backends, though others are ready and they have no connection; counts go on. The switch ends
/// in either way.
fn affinity_and_counts_outlive(end: End, name: &str) {
    let world = World::new(name);
    let World { client, pods, .. } = &world;
    let sources = |from: u8| {
        (from..from + 8)
            .flat_map(|n| [ip(&format!("192.0.2.{n}")), ip(&format!("2001:db8:1::{n:x}"))])
    };
    let mut netlink = Netlink::open(client).unwrap();
    let link = netlink.link("eth0").unwrap().index;
    for source in sources(20).chain(sources(40)) {
        let length = if source.is_ipv4() { 24 } else { 64 };
        netlink.add_address(link, format!("{source}/{length}").parse().unwrap()).unwrap();
        netlink.wait_until_local(source).unwrap();
    }
    let folder = RunDir::new(name);
    let run_dir = folder.0.clone();
    let flags = ["--run-dir", &run_dir, "--keep", "--json", "--stats", "0.2"];
    let pods_now = || -> Value {
        let output = run(&["pods", "--socket", &format!("{run_dir}/ctl.sock"), "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    world.state([false, true]);
    let mut switch = world.start(&flags);
    switch.event("ready");
    world.serve_datagrams();
    for source in sources(20) {
        assert_eq!(ask_sticky(client, source), 1, "only it is ready");
    }
    // Nobody has this address.
    let lost = pods[0].enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    lost.send_to(b"x", "10.1.0.77:9").unwrap();
    world.state([true, true]);
    switch.event("applied");
    for source in sources(20) {
        assert_eq!(ask_sticky(client, source), 1, "it has affinity");
    }
    for round in 0..2 {
        let before = switch.event_with("stats", |stats| {
            let opened =
                |pod: &str| stats["services"][format!("Service/a/sticky 80/UDP {pod}")].as_u64();
            opened("10.1.0.3:8080") >= Some(16 + round * 8)
                && opened("[fd00:1::3]:8080") >= Some(16 + round * 8)
                && stats["drops"]["unknown_pod"].as_u64() >= Some(1)
        });
        let pods_before = pods_now();
        assert!(pods_before.to_string().contains("sent_packets"), "{pods_before}");
        match end {
            End::Killed | End::Held => {
                // Written down every few seconds.
                let limit = Limit::new(PATIENCE);
                let kept = || fs::read_to_string(format!("{run_dir}/kept-learnt"));
                while !sources(20).all(|s| kept().is_ok_and(|text| text.contains(&s.to_string()))) {
                    limit.left().expect("it is written down");
                    thread::sleep(Duration::from_millis(50));
                }
                drop(switch);
            }
            End::Stopped => assert_eq!(switch.stop(), Some(0)),
        }
        switch = world.start(&flags);
        switch.event("ready");
        let after = switch.event("stats");
        assert_monotone(&before, &after, "");
        assert_monotone(&pods_before, &pods_now(), "pods");
        // Workers do not wait for who reads: once nothing is on its way.
        switch.event_with("stats", |stats| {
            let total = |name: &str| stats[name].as_u64().expect("a count");
            total("received") == total("forwarded") + total("consumed") + total("dropped")
        });
        for source in sources(20) {
            assert_eq!(ask_sticky(client, source), 1, "{round}: {source}");
        }
    }
    // Those of nobody are divided.
    let mut others: Vec<_> = sources(40).map(|source| ask_sticky(client, source)).collect();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others, [0, 1]);
    assert_eq!(switch.stop(), Some(0));
    // Damage, and another version, are refused with a note, and the switch starts all the same.
    for (file, text) in [("kept-learnt", "podswitch-kept 9 0 0\n"), ("kept-counts", "rubbish")] {
        fs::write(format!("{run_dir}/{file}"), text).expect("written");
    }
    let log = world.folder.path("log");
    let file = fs::File::create(&log).unwrap();
    let switch = world.start_with(&["--run-dir", &run_dir], |command| {
        command.stderr(file);
    });
    switch.says("ready");
    assert_eq!(switch.stop(), Some(0));
    let text = fs::read_to_string(&log).unwrap();
    for note in ["what was learnt: it is of format 9", "what was counted: it is damaged"] {
        assert!(text.contains(note), "{text}");
    }
    fs::remove_dir_all(&run_dir).expect("removed");
}

#[test]
fn affinity_and_counts_outlive_a_kill() {
    podswitch_testkit::require_tap!();
    affinity_and_counts_outlive(End::Killed, "learnt");
}

#[test]
fn affinity_and_counts_outlive_a_planned_stop() {
    podswitch_testkit::require_tap!();
    affinity_and_counts_outlive(End::Stopped, "counted");
}
