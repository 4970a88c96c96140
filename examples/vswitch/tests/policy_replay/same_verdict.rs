//! The same verdict on the wire as in the matrix: every case of the truth table, every pair of
//! which one end is a pod of this node, first packets of every kind.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podswitch_wire::addr::Mac;
use serde_json::Value;

use crate::replayed::{Input, first_packet, is_by_policy, pod_mac};
use podswitch_vswitch_testkit::cases::{self, ASKED, Case, OUTSIDE};
use podswitch_vswitch_testkit::{Folder, NODE, mac, run};

/// Address of an entry of the matrix.
fn address(name: &str, family: &str) -> IpAddr {
    let v4 = family == "ipv4";
    let text = match name.strip_prefix("node/n") {
        Some(number) if v4 => format!("192.0.2.{number}"),
        Some(number) => format!("fd01::{number}"),
        None => match name.split_once('/') {
            Some((namespace, pod)) => {
                let place =
                    |list: [&str; 3], item| list.iter().position(|i| *i == item).expect("known");
                let (namespace, pod) =
                    (place(cases::NAMESPACES, namespace), place(cases::PODS, pod) + 1);
                if v4 {
                    format!("10.0.{namespace}.{pod}")
                } else {
                    format!("fd00:0:0:{namespace}::{pod}")
                }
            }
            None => name.to_owned(),
        },
    };
    text.parse().expect("an address")
}

fn is_pod(name: &str) -> bool {
    name.contains('/') && !name.starts_with("node/")
}

/// The port that an entry's frames come in by and leave by, and its MAC address.
fn port(name: &str, family: &str) -> (String, Mac) {
    if !is_pod(name) {
        return ("host".to_owned(), Mac(mac(NODE)));
    }
    let IpAddr::V4(v4) = address(name, "ipv4") else { panic!("{name}") };
    (name.to_owned(), pod_mac(address(name, family), v4.octets()))
}

/// Lines of the matrix that are seen on n1's ports: from, to, family, what, allowed.
fn matrix(folder: &Folder, state: &str) -> Vec<(String, String, String, String, bool)> {
    let manifests = folder.manifest("state", state);
    let asked = ASKED.join(",");
    let mut arguments = vec!["explain", "--manifests", &manifests, "--matrix", &asked];
    arguments.extend(OUTSIDE.iter().flat_map(|address| ["--with", address]));
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("text");
    let line = |line: &str| {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [from, to, family, what, verdict] = fields.try_into().expect("five fields");
        let allow = verdict == "allow";
        // The pod in its node's network is its node.
        let seen = from != "x/h" && to != "x/h" && (is_pod(&from) || is_pod(&to));
        seen.then_some((from, to, family, what, allow))
    };
    text.lines().filter_map(line).collect()
}

/// Where the wire and the matrix disagree.
fn differences(case: &Case) -> (usize, Vec<String>) {
    let state = cases::cluster(["n1", "n1", "n1"]) + &case.policies();
    let lines = matrix(&Folder::new(), &state);
    let mut input = Input::default();
    let mut numbers = Vec::new();
    for (from, to, family, what, _) in &lines {
        let (name, sender) = port(from, family);
        let frame = first_packet(sender, address(from, family), address(to, family), what);
        numbers.push((name.clone(), input.add(&name, 1.0, frame)));
    }
    let replayed = input.replay(&state, &[]);
    let mut wrong = Vec::new();
    for ((from, to, family, what, allow), (port, number)) in lines.iter().zip(&numbers) {
        let drop = replayed.drop(port, *number);
        if (drop.is_none(), drop.is_some_and(is_by_policy)) != (*allow, !*allow) {
            let drop = drop.map(Value::to_string);
            wrong.push(format!("{}: {from} {to} {family} {what} {allow}: {drop:?}", case.name));
        }
    }
    // What was allowed left by the right port.
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    for (_, to, family, _, allow) in &lines {
        // Another node is on the other side of the tunnel.
        let by = if to == "node/n2" { "uplink".to_owned() } else { port(to, family).0 };
        *expected.entry(by).or_default() += usize::from(*allow);
    }
    for (name, count) in expected {
        let sent = replayed.sent(&name).len();
        if sent != count {
            wrong.push(format!("{}: {sent} frames left by {name}, not {count}", case.name));
        }
    }
    (lines.len(), wrong)
}

#[test]
fn the_wire_agrees_with_the_matrix() {
    // Every third case: each is some 2,000 frames.
    crate::all_agree(3, differences);
}
