//! The overlay as programs see it: what one node's replay sends by `uplink` is what the other's
//! receives, and `explain` tells the same way.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use podswitch_vswitch_testkit::{Folder, GATEWAY, frames, mac, run};
use serde_json::Value;

type Frames = Vec<(f64, Vec<u8>)>;

const X: [&str; 2] = ["10.1.0.2", "fd00:1::2"];
const Y: [&str; 2] = ["10.2.0.3", "fd00:2::3"];
/// Of Y, but in no range of its node.
const STRAY: &str = "10.9.9.9";

/// Two nodes, a pod on each and one outside every range; `more` goes into the nodes' annotations.
fn state(more: [&str; 2]) -> String {
    let node = |n: usize, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{n}, annotations: {{{more}}}}}\n\
             spec: {{podCIDRs: [10.{n}.0.0/24, \"fd00:{n}::/64\"]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.0.2.{n}}}, \
             {{type: InternalIP, address: \"fd00:ffff::{n}\"}}]}}\n"
        )
    };
    let pod = |name: &str, node: usize, addresses: &[&str]| {
        let ips: Vec<String> = addresses.iter().map(|a| format!("{{ip: \"{a}\"}}")).collect();
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a}}\n\
             spec: {{nodeName: n{node}}}\n\
             status: {{phase: Running, podIPs: [{}]}}\n",
            ips.join(", ")
        )
    };
    [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n".to_owned(),
        node(1, more[0]),
        node(2, more[1]),
        pod("x", 1, &X),
        pod("y", 2, &Y),
        pod("stray", 2, &[STRAY]),
    ]
    .concat()
}

/// A replay of one node, and what it wrote.
struct Node {
    folder: Folder,
    name: &'static str,
}

impl Node {
    fn replay(state: &str, name: &'static str, port: &str, frames: &Frames, more: &[&str]) -> Self {
        let folder = Folder::new();
        let (manifests, out) = (folder.manifest("state", state), folder.text("out"));
        let input = format!("{port}={}", folder.capture("in.pcap", frames));
        let arguments = ["replay", "--node", name, "--manifests", &manifests, "--out", &out];
        let output = run(&[&arguments[..], &["--in", &input], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        Self { folder, name }
    }

    fn sent(&self, port: &str) -> Frames {
        frames(&self.folder.path("out").join(format!("{port}.pcap")))
    }

    fn reasons(&self) -> Vec<String> {
        let path = self.folder.path("out/drops.jsonl");
        let text = std::fs::read_to_string(path).expect("drops");
        let reason = |line: &str| {
            let drop: Value = serde_json::from_str(line).expect("an object a line");
            drop["reason"].as_str().expect("text").to_owned()
        };
        text.lines().map(reason).collect()
    }

    fn assert_no_drops(&self) {
        assert_eq!(self.reasons(), Vec::<String>::new(), "at {}", self.name);
    }
}

/// A datagram between two addresses to the gateway's MAC address.
fn udp(from: &str, to: &str, len: usize) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut frame = Vec::new();
    // A pod's link-layer address is made from its IPv4 address.
    let own = if from == X[1].parse::<IpAddr>().unwrap() { X[0] } else { Y[0] };
    let ethernet = match from {
        IpAddr::V4(from) => PacketBuilder::ethernet2(mac(from), GATEWAY),
        IpAddr::V6(_) => PacketBuilder::ethernet2(mac(own.parse().unwrap()), GATEWAY),
    };
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    ip.udp(1000, 2000).write(&mut frame, &vec![7; len]).unwrap();
    frame
}

/// Outer addresses, UDP port, VNI and inner frame, by a parser of others'.
fn dissect(frame: &[u8]) -> (Vec<u8>, u16, u32, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("Ethernet");
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("UDP") };
    let payload = udp.payload();
    assert_eq!(payload[0], 8);
    let vni = u32::from_be_bytes([0, payload[4], payload[5], payload[6]]);
    let addresses = match frame[12] {
        0x08 => frame[26..34].to_vec(),
        _ => frame[22..54].to_vec(),
    };
    (addresses, udp.destination_port(), vni, payload[8..].to_vec())
}

fn hops(frame: &[u8]) -> u8 {
    if frame[12] == 0x08 { frame[22] } else { frame[21] }
}

#[test]
fn what_leaves_one_node_arrives_at_the_other() {
    for underlay in ["ipv4", "ipv6"] {
        let state = state(["", ""]);
        let flags = ["--underlay-family", underlay];
        let asked: Frames = vec![
            (1.0, udp(X[0], Y[0], 30)),
            (1.1, udp(X[1], Y[1], 30)),
            (1.2, udp(X[0], STRAY, 30)),
            (1.3, udp(X[0], Y[0], 1300)),
        ];
        let first = Node::replay(&state, "n1", "a/x", &asked, &flags);
        first.assert_no_drops();
        let carried = first.sent("uplink");
        assert_eq!(carried.len(), 4);
        assert_eq!(first.sent("host").len(), 0);
        for (_, frame) in &carried {
            assert_eq!(frame[..6], mac(Ipv4Addr::new(192, 0, 2, 2)));
            assert_eq!(frame[6..12], mac(Ipv4Addr::new(192, 0, 2, 1)));
            let (addresses, port, vni, inner) = dissect(frame);
            assert_eq!(
                (addresses.len(), port, vni),
                (if underlay == "ipv4" { 8 } else { 32 }, 4789, 1)
            );
            assert_eq!(inner[..12], [0x0e, 0x58, 192, 0, 2, 2, 0x0e, 0x58, 192, 0, 2, 1]);
            assert_eq!(hops(&inner), 63);
        }
        let second = Node::replay(&state, "n2", "uplink", &carried, &flags);
        second.assert_no_drops();
        let got = second.sent("a_y");
        assert_eq!(got.len(), 3);
        assert_eq!(second.sent("a_stray").len(), 1);
        assert!(got.iter().all(|(_, frame)| hops(frame) == 62 && frame[6..12] == GATEWAY));

        let answers: Frames = vec![(1.0, udp(Y[0], X[0], 9)), (1.1, udp(Y[1], X[1], 9))];
        let back = Node::replay(&state, "n2", "a/y", &answers, &flags);
        let home = Node::replay(&state, "n1", "uplink", &back.sent("uplink"), &flags);
        home.assert_no_drops();
        assert_eq!(home.sent("a_x").len(), 2);
    }
}

/// Each family by a tunnel of its own, over that family.
fn in_two_tunnels(more: [&str; 2], flags: &[&str], macs: [[[u8; 6]; 2]; 2], port: u16) {
    let state = state(more);
    let asked: Frames = vec![(1.0, udp(X[0], Y[0], 30)), (1.1, udp(X[1], Y[1], 30))];
    let first = Node::replay(&state, "n1", "a/x", &asked, flags);
    first.assert_no_drops();
    let carried = first.sent("uplink");
    assert_eq!(carried.len(), 2);
    for (f, (_, frame)) in carried.iter().enumerate() {
        let (addresses, to, vni, inner) = dissect(frame);
        let ends = [["192.0.2.1", "192.0.2.2"], ["fd00:ffff::1", "fd00:ffff::2"]][f];
        let ends = ends.map(|end| match end.parse().unwrap() {
            IpAddr::V4(end) => end.octets().to_vec(),
            IpAddr::V6(end) => end.octets().to_vec(),
        });
        assert_eq!((addresses, to, vni), (ends.concat(), port, 1));
        assert_eq!(inner[..12], macs[f].concat());
        assert_eq!(inner[12], [0x08, 0x86][f]);
    }
    let second = Node::replay(&state, "n2", "uplink", &carried, flags);
    second.assert_no_drops();
    assert_eq!(second.sent("a_y").len(), 2);

    let folder = Folder::new();
    let manifests = folder.manifest("state", &state);
    let ask = ["explain", "--json", "--manifests", &manifests, "--from", "a/x", "--to", "a/y:80"];
    for (family, ends) in
        [("ipv4", ["192.0.2.1", "192.0.2.2"]), ("ipv6", ["fd00:ffff::1", "fd00:ffff::2"])]
    {
        let output = run(&[&ask[..], &["--family", family], flags].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let vxlan = &answer["route"]["vxlan"];
        assert_eq!([&vxlan["source"], &vxlan["destination"]], ends, "{answer}");
    }
}

#[test]
fn each_family_can_have_a_tunnel_of_its_own() {
    let vtep = [2, 1].map(|n| [0x0e, 0x58, 192, 0, 2, n]);
    in_two_tunnels(["", ""], &["--underlay-family", "inner"], [vtep; 2], 4789);
    // As dual-stack Flannel has it, whatever is said.
    let flannel = [1, 2].map(|n| {
        format!(
            "flannel.alpha.coreos.com/backend-type: vxlan, \
             flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"ae:bc:00:00:04:0{n}\"}}', \
             flannel.alpha.coreos.com/backend-v6-data: '{{\"VNI\":1,\"VtepMAC\":\"ae:bc:00:00:06:0{n}\"}}', \
             flannel.alpha.coreos.com/public-ip: 192.0.2.{n}, \
             flannel.alpha.coreos.com/public-ipv6: 'fd00:ffff::{n}'"
        )
    });
    let macs = [4, 6].map(|f| [2, 1].map(|n| [0xae, 0xbc, 0, 0, f, n]));
    for family in ["ipv4", "ipv6", "inner"] {
        let flags = ["--underlay-family", family];
        in_two_tunnels([&flannel[0], &flannel[1]], &flags, macs, 8472);
    }
}

#[test]
fn a_tunnel_packet_for_another_network_reaches_nobody() {
    let state = state(["", ""]);
    let asked: Frames = vec![(1.0, udp(X[0], Y[0], 30))];
    let other = Node::replay(&state, "n1", "a/x", &asked, &["--vni", "77", "--vxlan-port", "4790"]);
    let carried = other.sent("uplink");
    let (_, port, vni, _) = dissect(&carried[0].1);
    assert_eq!((port, vni), (4790, 77));
    let alike = Node::replay(&state, "n2", "uplink", &carried, &["--vxlan-port", "4790"]);
    assert_eq!(alike.reasons(), ["tunnel_unknown_vni"]);
    let deaf = Node::replay(&state, "n2", "uplink", &carried, &[]);
    assert_eq!(deaf.reasons(), ["not_for_us"], "another port is not the tunnel's");
    // From a node that nobody knows of.
    let mut stranger = Node::replay(&state, "n1", "a/x", &asked, &[]).sent("uplink");
    let frame = &mut stranger[0].1;
    frame[29] = 99;
    frame[24..26].fill(0);
    let sum = podswitch_wire::checksum::sum(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let other = Node::replay(&state, "n2", "uplink", &stranger, &[]);
    assert_eq!(other.reasons(), ["tunnel_unknown_vtep"]);
}

#[test]
fn flannels_annotations_are_honoured() {
    let flannel = |n: u8| {
        format!(
            "flannel.alpha.coreos.com/backend-type: vxlan, \
             flannel.alpha.coreos.com/backend-data: '{{\"VNI\":5,\"VtepMAC\":\"ae:bc:00:00:00:0{n}\"}}', \
             flannel.alpha.coreos.com/public-ip: 198.51.100.{n}"
        )
    };
    let state = state([&flannel(1), &flannel(2)]);
    let asked: Frames = vec![(1.0, udp(X[0], Y[0], 30))];
    let first = Node::replay(&state, "n1", "a/x", &asked, &[]);
    let carried = first.sent("uplink");
    let (addresses, port, vni, inner) = dissect(&carried[0].1);
    assert_eq!(addresses, [198, 51, 100, 1, 198, 51, 100, 2]);
    assert_eq!((port, vni), (8472, 5));
    assert_eq!(inner[..12], [0xae, 0xbc, 0, 0, 0, 2, 0xae, 0xbc, 0, 0, 0, 1]);
    let second = Node::replay(&state, "n2", "uplink", &carried, &[]);
    second.assert_no_drops();
    assert_eq!(second.sent("a_y").len(), 1);
}

#[test]
fn nodes_on_one_segment_and_routers_are_reached_without_a_tunnel() {
    let state = state(["", ""]);
    let asked: Frames = vec![(1.0, udp(X[0], Y[0], 30)), (1.1, udp(X[1], Y[1], 30))];
    let flags = ["--routing", "host-gw"];
    let first = Node::replay(&state, "n1", "a/x", &asked, &flags);
    let carried = first.sent("uplink");
    assert_eq!(carried.len(), 2);
    assert_eq!(carried[0].1[..6], mac(Ipv4Addr::new(192, 0, 2, 2)));
    assert_eq!(carried[0].1[26..34], [10, 1, 0, 2, 10, 2, 0, 3], "as it is");
    let second = Node::replay(&state, "n2", "uplink", &carried, &flags);
    second.assert_no_drops();
    assert_eq!(second.sent("a_y").len(), 2);

    let routes = ["--route", "203.0.113.0/24=192.0.2.101,192.0.2.102"];
    let mut asked = Frames::new();
    for n in 0..50u8 {
        asked.push((f64::from(n), udp(X[0], &format!("203.0.113.{n}"), 10)));
    }
    let node = Node::replay(&state, "n1", "a/x", &asked, &routes);
    node.assert_no_drops();
    let to = |last: u8| {
        let mac = mac(Ipv4Addr::new(192, 0, 2, last));
        node.sent("uplink").iter().filter(|(_, frame)| frame[..6] == mac).count()
    };
    assert_eq!(to(101) + to(102), 50);
    assert!(to(101) > 10 && to(102) > 10, "{} and {}", to(101), to(102));
}

#[test]
fn explain_tells_the_way_through_the_tunnel() {
    let folder = Folder::new();
    let manifests = folder.manifest("state", &state(["", ""]));
    let ask = |more: &[&str]| {
        let arguments = ["explain", "--manifests", &manifests, "--from", "a/x", "--to", "a/y:80"];
        String::from_utf8(run(&[&arguments[..], more].concat()).stdout).expect("text")
    };
    let text = ask(&["--vni", "9"]);
    assert!(
        text.contains("route: on n1 through the overlay to n2 (VXLAN 9, 192.0.2.1 to 192.0.2.2, UDP port 4789)"),
        "{text}"
    );
    let answer: Value = serde_json::from_str(&ask(&["--json"])).expect("JSON");
    let route = &answer["route"];
    assert_eq!((&route["kind"], &route["port"]), (&"remote".into(), &"uplink".into()));
    assert_eq!((&route["tunnel"], &route["remote"]), (&true.into(), &"n2".into()));
    assert_eq!(route["vxlan"]["destination"], "192.0.2.2");
    let text = ask(&["--routing", "host-gw"]);
    assert!(text.contains("route: on n1 to n2, by the uplink"), "{text}");
}

#[test]
fn bad_options_say_what_is_wrong() {
    let folder = Folder::new();
    let manifests = folder.manifest("state", &state(["", ""]));
    for (flag, value, reason) in [
        ("--vni", "16777216", "VNI"),
        ("--vxlan-port", "0", "1..=65535"),
        ("--route", "10.0.0.0/8=here", "neither an address, host nor blackhole"),
        ("--routing", "magic", "host-gw"),
    ] {
        let output = run(&["check", "--manifests", &manifests, flag, value]);
        assert_eq!(output.status.code(), Some(2), "{flag}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(reason), "{flag}: {said}");
    }
    assert!(Path::new(&manifests).exists());
}
