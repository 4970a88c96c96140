//! Queries for a table of very many connections: pages, filters, order and rates; the size of the switch, and what it
//! costs the worker meanwhile.

use std::collections::HashSet;
use std::net::{IpAddr, UdpSocket};
use std::thread;

use podswitch_core::time::Clock;
use podswitch_vswitch_testkit::cluster::{Fabric, Limit, Node, PATIENCE, Pod, put};
use podswitch_vswitch_testkit::{Folder, run};
use serde_json::Value;

/// Pods that send, each to one more pod.
const SENDERS: usize = 8;
/// Connections of one socket: by destination port.
const OF_SOCKET: u16 = 10_000;

/// Datagrams from `pod`, each of a connection of its own.
fn send(pod: &Pod, to: IpAddr, count: usize) {
    let open = || UdpSocket::bind(("0.0.0.0", 0));
    let mut left = count;
    while left > 0 {
        let socket = pod.ns.enter(open).expect("entered").expect("bound");
        for port in (1..=OF_SOCKET).take(left) {
            // Errors are those of earlier datagrams.
            let _ = socket.send_to(b"x", (to, port));
        }
        left = left.saturating_sub(OF_SOCKET.into());
    }
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Asks about `count` connections, and prints what that takes.
fn queries(count: usize) {
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["veth"; SENDERS + 1]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let switch = node.start(&folder, &["--run-dir", &folder.text("run")]);
    switch.event("ready");
    let socket = folder.text("run/ctl.sock");
    let ask = |command: &str, arguments: &[&str]| -> Value {
        let output = run(&[&[command, "--json", "--socket", &socket], arguments].concat());
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{command} {arguments:?}: {err}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let (senders, to) = (&node.pods[..SENDERS], node.pods[SENDERS].addresses[0]);
    let total = || ask("flows", &["--limit", "0", "--protocol", "UDP"])["total"].as_u64();
    let limit = Limit::new(4 * PATIENCE);
    // A datagram may be lost on an overloaded machine: all are sent again until each has its connection.
    let each = count / SENDERS;
    thread::scope(|scope| {
        for pod in senders {
            scope.spawn(move || send(pod, to, each));
        }
    });
    while total().unwrap_or(0) < (count as u64) * 9 / 10 {
        assert!(limit.left().is_some(), "{:?} of {count} connections", total());
        thread::scope(|scope| {
            for pod in senders {
                scope.spawn(move || send(pod, to, each / 10));
            }
        });
    }
    let (clock, before) = (Clock::start(), resident(switch.id()));
    println!("{:?} connections; the switch has {before} KiB", total());
    let mut largest = before;
    let mut timed = |arguments: &[&str]| {
        let began = clock.now();
        let answer = ask("flows", arguments);
        let (took, size) = (clock.now().since(began), resident(switch.id()));
        largest = largest.max(size);
        println!("flows {}: {took:?}, {size} KiB", arguments.join(" "));
        answer
    };
    let pod = format!("a/{}", senders[0].name);
    let of_pod = timed(&["--pod", &pod, "--limit", "10"]);
    assert_eq!(of_pod["flows"].as_array().map(Vec::len), Some(10), "{of_pod}");
    let selected = of_pod["total"].as_u64().expect("a number");
    assert!(selected >= each as u64 * 8 / 10 && selected < (count / 2) as u64, "{selected}");
    let none = timed(&["--port", "65000"]);
    assert_eq!(none["total"], 0, "{none}");
    for sort in ["bytes", "packets", "age"] {
        let page = timed(&["--sort", sort, "--limit", "1000"]);
        let rows = page["flows"].as_array().expect("a list");
        assert_eq!(rows.len(), 1000);
        assert_eq!(page["left_out"].as_u64(), page["total"].as_u64().map(|total| total - 1000));
        if sort != "age" {
            let of = |row: &Value, name: &str| row[name].as_u64().unwrap_or_default();
            let sum = |row: &Value| of(row, sort) + of(row, &format!("reply_{sort}"));
            assert!(rows.is_sorted_by(|a, b| sum(a) >= sum(b)), "{sort}");
        }
    }
    let rated = timed(&["--sort", "rate", "--interval", "0.5", "--limit", "100"]);
    assert_eq!(rated["flows"].as_array().map(Vec::len), Some(100));
    assert!(rated["interval_seconds"].as_f64() >= Some(0.5), "{rated}");
    // Pages of the pod's connections, whose order does not change while nothing is sent.
    let mut seen = HashSet::new();
    for offset in [0, 300, 600] {
        let offset = offset.to_string();
        let page = timed(&["--pod", &pod, "--sort", "age", "--limit", "300", "--offset", &offset]);
        let rows = page["flows"].as_array().expect("a list");
        seen.extend(rows.iter().map(|row| (row["sport"].to_string(), row["dport"].to_string())));
    }
    assert_eq!(seen.len(), 900, "no connection is on two pages");
    let perf = ask("perf", &["--seconds", "0"]);
    for worker in perf["workers"].as_array().expect("a list") {
        println!("longest pause of a worker: {}", worker["longest_pause"]);
        println!("times of its polls: {}", worker["poll_time"]);
    }
    // Rates keep 40 bytes of each connection, and the answer its rows.
    let bound = (count as u64 * 100) / 1024 + 64 * 1024;
    assert!(largest - before < bound, "{before} KiB, then {largest}: more than {bound} more");
}

#[test]
fn twenty_thousand_connections_are_queried() {
    podswitch_testkit::require_privilege!();
    queries(20_000);
}

/// `cargo test --release -p podswitch-vswitch --test many_flows -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn a_million_connections_are_queried() {
    podswitch_testkit::require_privilege!();
    queries(1_000_000);
}
