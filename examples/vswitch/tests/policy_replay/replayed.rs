//! Runs `replay` and reads what it wrote.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;
use serde_json::Value;

use podswitch_testkit::rig::frames as bytes;
use podswitch_vswitch_testkit::{Folder, frames, mac, replay};

pub(crate) const GATEWAY: Mac = Mac([0xee; 6]);
/// TCP flags.
pub(crate) const SYN: u8 = 2;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;

/// Frames with their times in seconds.
type Frames = Vec<(f64, Vec<u8>)>;

/// Captures by port, being written.
#[derive(Default)]
pub(crate) struct Input {
    captures: Vec<(String, Frames)>,
}

impl Input {
    /// Adds a frame of a port, and gives its number within its capture, from 1.
    pub(crate) fn add(&mut self, port: &str, time: f64, frame: Vec<u8>) -> usize {
        let at = match self.captures.iter().position(|(name, _)| name == port) {
            Some(at) => at,
            None => {
                self.captures.push((port.to_owned(), Vec::new()));
                self.captures.len() - 1
            }
        };
        self.captures[at].1.push((time, frame));
        self.captures[at].1.len()
    }

    /// Replays everything at node n1: the state, and others that take its place after so many
    /// seconds.
    #[track_caller]
    pub(crate) fn replay(&self, state: &str, later: &[(f64, &str)]) -> Replayed {
        let captures = self.captures.iter().map(|(port, frames)| (&**port, &**frames));
        let folder = replay(state, later.iter().copied(), captures, &[]);
        Replayed::read(folder)
    }
}

/// What a replay wrote.
pub(crate) struct Replayed {
    folder: Folder,
    /// By port and number.
    drops: HashMap<(String, u64), Value>,
}

impl Replayed {
    fn read(folder: Folder) -> Self {
        let read = |name: &str| fs::read_to_string(folder.path("out").join(name)).expect("a file");
        let drop = |line: &str| {
            let drop: Value = serde_json::from_str(line).expect("an object a line");
            let port = drop["port"].as_str().expect("a name").to_owned();
            ((port, drop["frame"].as_u64().expect("a number")), drop)
        };
        let drops: HashMap<_, _> = read("drops.jsonl").lines().map(drop).collect();
        let summary: Value = serde_json::from_str(&read("summary.json")).expect("JSON");
        let count = |key: &str| summary[key].as_u64().expect("a number");
        assert_eq!(count("received"), count("forwarded") + count("consumed") + count("dropped"));
        assert_eq!(count("dropped"), drops.len() as u64, "each frame at most once");
        Self { folder, drops }
    }

    /// Why a frame did not go on; `None` if it did.
    pub(crate) fn drop(&self, port: &str, number: usize) -> Option<&Value> {
        self.drops.get(&(port.to_owned(), number as u64))
    }

    /// The reason alone, `sent` if it went on.
    pub(crate) fn fate(&self, port: &str, number: usize) -> &str {
        self.drop(port, number).map_or("sent", |drop| drop["reason"].as_str().expect("a name"))
    }

    /// Frames that left by a port.
    pub(crate) fn sent(&self, port: &str) -> Vec<Vec<u8>> {
        let name = format!("{}.pcap", port.replace('/', "_"));
        frames(&self.folder.path("out").join(name)).into_iter().map(|(_, frame)| frame).collect()
    }
}

/// A pod's own MAC address by default: of its IPv4 address.
pub(crate) fn pod_mac(address: IpAddr, v4: [u8; 4]) -> Mac {
    match address {
        IpAddr::V4(address) => Mac(mac(address)),
        IpAddr::V6(_) => Mac(mac(v4.into())),
    }
}

/// A frame to the gateway with a packet in it.
pub(crate) fn frame(
    sender: Mac,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    message: &[u8],
) -> Vec<u8> {
    let packet = bytes::ip(from, to, protocol, 64, None, message);
    bytes::ethernet(GATEWAY, sender, bytes::ethertype(from), &packet)
}

/// The first packet of what asks for `what`: `80/TCP`, `ICMP`.
pub(crate) fn first_packet(sender: Mac, from: IpAddr, to: IpAddr, what: &str) -> Vec<u8> {
    const SPORT: u16 = 40_000;
    let (port, name) = what.split_once('/').unwrap_or(("0", what));
    let ports = (SPORT, port.parse().expect("a port"));
    match name {
        "TCP" => {
            let message = bytes::tcp(from, to, ports, (1000, 0, SYN), b"");
            frame(sender, from, to, proto::TCP, &message)
        }
        "UDP" => frame(sender, from, to, proto::UDP, &bytes::udp(from, to, ports, b"question")),
        "SCTP" => frame(sender, from, to, proto::SCTP, &sctp_init(ports)),
        "ICMP" => {
            let kind = if from.is_ipv4() { 8 } else { 128 };
            let [a, b] = SPORT.to_be_bytes();
            let message = bytes::icmp(from, to, [kind, 0], [a, b, 0, 1], b"echo");
            frame(sender, from, to, bytes::icmp_protocol(from), &message)
        }
        other => panic!("{other}"),
    }
}

/// An SCTP packet with an INIT chunk (RFC 9260 §3.3.2).
fn sctp_init(ports: (u16, u16)) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(ports.0.to_be_bytes());
    message.extend(ports.1.to_be_bytes());
    // Verification tag 0, checksum to come.
    message.extend([0; 8]);
    message.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]);
    let sum = podswitch_wire::checksum::crc32c(&message);
    message[8..12].copy_from_slice(&sum.to_le_bytes());
    message
}

/// Whether it was a policy that had the frame of this line dropped.
pub(crate) fn is_by_policy(drop: &Value) -> bool {
    drop["class"] == "policy"
        && matches!(&drop["policy"], Value::String(name) if name.contains("NetworkPolicy/"))
}
