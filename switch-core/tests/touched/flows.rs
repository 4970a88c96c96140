//! Flows between all kinds of ends, packet by packet.

use std::net::IpAddr;

use podswitch_core::action::DropReason;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{FlowKey, HashKey};
use podswitch_wire::parse::{parse, tcp_flags};

use super::rig::overlay::{
    Tunnelled, UPLINK, VXLAN, dissect, from_pod, inner, node_address, pod, underlay_mac,
};
use super::rig::random::Rng;
use super::rig::{HOST, HOST_MAC, Switch, frames};
use super::world::{NODE_PORT, load_balancer, outside, spare, vip};

/// The frames that left with their ports, and the drops.
pub(crate) type Seen = (Vec<(usize, Vec<u8>)>, Vec<(u16, DropReason)>);

const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0xc, 1]);

pub(crate) fn send(switch: &mut Switch, port: usize, frame: &[u8]) -> Seen {
    switch.send(port, frame);
    let out = (0..=UPLINK).flat_map(|port| switch.recv(port).into_iter().map(move |f| (port, f)));
    let out = out.collect();
    (out, switch.dropped())
}

/// The source of a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sender {
    /// A pod of this node.
    Pod(usize),
    /// The node's stack.
    Host,
    /// Any host on the uplink, without a tunnel.
    Uplink,
    /// Another node, through the tunnel.
    Tunnel(usize),
}

impl Sender {
    fn frame(self, packet: &[u8]) -> (usize, Vec<u8>) {
        let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let gateway = super::rig::GATEWAY;
        match self {
            Self::Pod(n) => (n, from_pod(0, n, packet)),
            Self::Host => (HOST, frames::ethernet(gateway, HOST_MAC, ethertype, packet)),
            Self::Uplink => {
                (UPLINK, frames::ethernet(underlay_mac(0), CLIENT_MAC, ethertype, packet))
            }
            Self::Tunnel(n) => (UPLINK, Tunnelled::new(n, 0, false, &inner(n, 0, packet)).frame()),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Flow {
    key: FlowKey,
    sender: Sender,
    /// The key and sender of the replies, once a packet was delivered.
    answer: Option<(FlowKey, Sender)>,
    /// Number of packets that passed, by direction.
    passed: [u32; 2],
}

impl Flow {
    pub(crate) fn random(rng: &mut Rng, number: usize) -> Self {
        let v6 = rng.chance(40);
        let (sender, source) = match rng.below(10) {
            0..=4 => {
                let n = rng.below(3);
                (Sender::Pod(n), if rng.chance(10) { spare(n, v6) } else { pod(0, n, v6) })
            }
            5 => (Sender::Host, [outside(0, v6), node_address(0, v6)][rng.below(2)]),
            6 | 7 => {
                let n = 1 + rng.below(2);
                (Sender::Tunnel(n), pod(n, rng.below(3), v6))
            }
            _ => (Sender::Uplink, outside(1 + rng.below(3), v6)),
        };
        let service = rng.below(3);
        let ports = [53, 80, 8080];
        let (destination, port) = match rng.below(12) {
            0..=2 => (pod(0, rng.below(3), v6), ports[rng.below(3)]),
            3 => (spare(rng.below(3), v6), ports[rng.below(3)]),
            4 => (pod(1 + rng.below(2), rng.below(3), v6), ports[rng.below(3)]),
            5..=7 => (vip(service, v6), 80),
            8 | 9 => (node_address(0, v6), [NODE_PORT + service as u16, 9000][rng.below(2)]),
            10 => (load_balancer(service, v6), 80),
            _ => (outside(7, v6), 53),
        };
        let protocol = if rng.chance(35) { 6 } else { 17 };
        let from = 2000 + (number * 40 + rng.below(40)) as u16;
        let key = FlowKey::new(source, destination, protocol, from, port).expect("one family");
        Self { key, sender, answer: None, passed: [0; 2] }
    }

    /// The next packet of a direction, if that has one.
    pub(crate) fn next(&self, reply: bool) -> Option<(usize, Vec<u8>)> {
        let (key, sender) = if reply { self.answer? } else { (self.key, self.sender) };
        let ports = (key.src_port, key.dst_port);
        let (src, dst) = (key.src_addr(), key.dst_addr());
        let message = match key.proto {
            17 => frames::udp(src, dst, ports, b"known"),
            _ => frames::tcp(src, dst, ports, self.segment(reply), b""),
        };
        Some(sender.frame(&frames::ip(src, dst, key.proto, 64, None, &message)))
    }

    /// A handshake, and then acknowledgments.
    fn segment(&self, reply: bool) -> (u32, u32, u8) {
        match (self.passed[usize::from(reply)], reply) {
            (0, false) => (100, 0, tcp_flags::SYN),
            (0, true) => (900, 101, tcp_flags::SYN | tcp_flags::ACK),
            (_, false) => (101, 901, tcp_flags::ACK),
            (_, true) => (901, 101, tcp_flags::ACK),
        }
    }

    /// The result for a packet: if it was delivered, its replies can begin.
    pub(crate) fn learn(&mut self, (out, drops): &Seen, reply: bool) {
        let ([(port, frame)], []) = (&out[..], &drops[..]) else {
            if !reply && self.key.proto == 6 {
                // Like an end system that was reset or gets no answer: starts again.
                self.passed = [0; 2];
            }
            return;
        };
        self.passed[usize::from(reply)] += 1;
        if reply {
            return;
        }
        let parsed = parse(frame, &HashKey::new(1)).expect("parses");
        let is_tunnel = *port == UPLINK && parsed.key.proto == 17 && parsed.key.dst_port == VXLAN;
        let (key, sender) = if is_tunnel {
            let seen = dissect(frame);
            let inside = parse(&seen.inner, &HashKey::new(1)).expect("parses");
            let node = (1..3).find(|n| is_of(*n, seen.destination)).expect("a node");
            (inside.key, Sender::Tunnel(node))
        } else {
            let sender = match *port {
                HOST => Sender::Host,
                UPLINK => Sender::Uplink,
                pod => Sender::Pod(pod),
            };
            (parsed.key, sender)
        };
        if key.src_port == self.key.dst_port && key.dst_port == self.key.src_port {
            // An answer of the switch itself, or of the gateway.
            return;
        }
        self.answer = Some((key.reversed(), sender));
    }
}

fn is_of(node: usize, address: IpAddr) -> bool {
    [false, true].into_iter().any(|v6| address == node_address(node, v6))
}
