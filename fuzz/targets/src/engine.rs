//! A switch with memory ports: it receives frames with their offload metadata, states are
//! published, time passes. Nothing panics, every frame is accounted for, and every frame sent to a
//! pod has the pod's MAC address.
//!
//! Input: a byte for the setup, then commands. The first byte of a command selects its kind:
//!
//! | below | what | further bytes |
//! | --- | --- | --- |
//! | 176 | a frame comes in by port `byte % ports` | a byte of [repairs](Repair), length (2), the frame |
//! | 208 | a state is published | which of the setup's |
//! | 256 | time passes | in units of 50 ms |

use std::time::Duration;

use podswitch_core::config::{Config, Underlay};
use podswitch_core::control::Options;
use podswitch_core::engine::Limits;
use podswitch_core::packet::{GsoType, Offload, Packet};
use podswitch_testkit::rig::{
    GATEWAY, HOST, HOST_MAC, Switch, addresses, frames, overlay, pod_mac, services, traffic,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::fill_l4;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

use crate::pieces::Pieces;

/// Maximum number of commands of one input that are executed.
const COMMANDS: usize = 200;

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    play(input).assert_adds_up();
}

/// The switch at the end.
fn play(input: &[u8]) -> Switch {
    let mut pieces = Pieces::new(input);
    let setup = Setup::new(pieces.byte());
    let limits = Limits { connections: 256, connections_per_port: 96, flows: 512, fdb: 64 };
    let options = Options { limits, ..Options::default() };
    let mut switch = Switch::with(&setup.states[0], 1, options);
    for _ in 0..COMMANDS {
        if pieces.is_empty() {
            break;
        }
        match pieces.byte() {
            command @ 0..176 => {
                let port = usize::from(command) % setup.ports;
                let packet = packet(&setup, port, &mut pieces);
                switch.send_packet(port, packet);
                setup.check_output(&mut switch);
            }
            176..208 => {
                let state = usize::from(pieces.byte()) % setup.states.len();
                switch.control.apply(&setup.states[state]).expect("states are good");
            }
            208.. => switch.pass(Duration::from_millis(50 * u64::from(pieces.byte()))),
        }
    }
    // Held frames (for a neighbour or for fragments) are released.
    for _ in 0..4 {
        switch.pass(Duration::from_secs(10));
        setup.check_output(&mut switch);
    }
    switch
}

/// The kind of the switch.
struct Setup {
    states: Vec<Config>,
    ports: usize,
    has_tunnel: bool,
}

impl Setup {
    fn new(which: u8) -> Self {
        match which % 3 {
            0 => Self { states: traffic::states(), ports: traffic::PORTS, has_tunnel: false },
            1 => {
                let node = |underlay| overlay::node_config(0, underlay);
                let mut fewer = node(Underlay::Ipv4First);
                fewer.nodes.truncate(1);
                let states = vec![
                    node(Underlay::Ipv4First),
                    node(Underlay::Ipv6First),
                    node(Underlay::Inner),
                    fewer,
                ];
                Self { states, ports: overlay::UPLINK + 1, has_tunnel: true }
            }
            _ => {
                let backends: [&[usize]; 3] = [&[1, 2], &[2], &[]];
                let states = backends.map(services::config).to_vec();
                Self { states, ports: HOST + 1, has_tunnel: false }
            }
        }
    }

    fn mac(&self, port: usize) -> Mac {
        match port {
            HOST => HOST_MAC,
            overlay::UPLINK if self.has_tunnel => overlay::underlay_mac(1),
            0..3 if self.has_tunnel => overlay::mac_of_pod(0, port),
            port => pod_mac(port % 200),
        }
    }

    /// Checks that frames sent to a pod have its MAC address.
    fn check_output(&self, switch: &mut Switch) {
        for port in 0..self.ports {
            for frame in switch.recv(port) {
                if port < HOST {
                    let to = frame.first_chunk().expect("a whole frame");
                    let is_group = to[0] & 1 == 1;
                    assert!(is_group || Mac(*to) == self.mac(port), "port {port}: {frame:02x?}");
                }
            }
        }
        switch.dropped();
    }
}

/// Bits: the parts of a frame that are corrected, so that it passes the first checks.
struct Repair(u8);

impl Repair {
    const MAC: u8 = 1;
    const SOURCE: u8 = 2;
    const DESTINATION: u8 = 4;
    const CHECKSUMS: u8 = 8;
    const OFFLOAD: u8 = 16;
    const TO_SERVICE: u8 = 32;

    fn has(&self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

fn packet(setup: &Setup, port: usize, pieces: &mut Pieces<'_>) -> Packet {
    let repair = Repair(pieces.byte());
    let len = usize::from(pieces.u16() % 2048);
    let offload = repair.has(Repair::OFFLOAD).then(|| offload(pieces));
    let mut frame = pieces.bytes(len).to_vec();
    if frame.len() >= 14 && repair.has(Repair::MAC) {
        let to = if port == overlay::UPLINK && setup.has_tunnel {
            overlay::underlay_mac(0)
        } else {
            GATEWAY
        };
        frame[..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&setup.mac(port).0);
    }
    put_addresses(setup, port, &mut frame, &repair);
    if repair.has(Repair::CHECKSUMS) {
        put_checksums(&mut frame);
    }
    let mut packet = Packet::from_frame(&frame);
    packet.offload = offload.unwrap_or_default();
    packet
}

/// The sender's own address, and that of a neighbour or a Service.
fn put_addresses(setup: &Setup, port: usize, frame: &mut [u8], repair: &Repair) {
    let (family, places) = match frame.get(12..14) {
        Some([8, 0]) if frame.len() >= 34 => (0, [26..30, 30..34]),
        Some([0x86, 0xdd]) if frame.len() >= 54 => (1, [22..38, 38..54]),
        _ => return,
    };
    let address = |n: usize| match setup.has_tunnel {
        true => overlay::pod(0, n, family == 1),
        false => addresses(n)[family],
    };
    let bytes = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(a) => a.octets().to_vec(),
        std::net::IpAddr::V6(a) => a.octets().to_vec(),
    };
    let [source, destination] = places;
    if repair.has(Repair::SOURCE) && port < HOST {
        frame[source].copy_from_slice(&bytes(address(port)));
    }
    if repair.has(Repair::DESTINATION) {
        frame[destination].copy_from_slice(&bytes(address((port + 1) % 3)));
    } else if repair.has(Repair::TO_SERVICE) {
        frame[destination].copy_from_slice(&bytes(services::vip(family)));
    }
}

fn put_checksums(frame: &mut [u8]) {
    if frame.len() >= 34 && frame[12..14] == [8, 0] {
        let header = usize::from(frame[14] & 15) * 4;
        if let Some(end) = Some(14 + header).filter(|end| *end <= frame.len() && header >= 20) {
            frame[24..26].fill(0);
            let sum = frames::checksum(&[&frame[14..end]]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    if let Ok(parsed) = parse(frame, &HashKey::new(1)) {
        fill_l4(frame, &parsed);
    }
}

fn offload(pieces: &mut Pieces<'_>) -> Offload {
    let what = pieces.byte();
    Offload {
        gso_type: match what & 3 {
            0 => GsoType::None,
            1 => GsoType::TcpV4,
            2 => GsoType::TcpV6,
            _ => GsoType::UdpL4,
        },
        ecn: what & 4 != 0,
        csum_partial: what & 8 != 0,
        csum_valid: what & 16 != 0,
        gso_size: pieces.u16(),
        hdr_len: pieces.u16(),
        csum_start: pieces.u16() % 256,
        csum_offset: pieces.u16() % 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If all frames were dropped by the first checks, the fuzzer would find little behind them.
    #[test]
    fn seeds_are_forwarded() {
        let forwarded = |input| play(input).count(|counters| counters.forwarded.get());
        assert_eq!(forwarded(include_bytes!("../../seeds/engine/udp")), 4);
        assert_eq!(forwarded(include_bytes!("../../seeds/engine/tcp")), 4);
        assert_eq!(forwarded(include_bytes!("../../seeds/engine/tunnel")), 3);
        assert_eq!(forwarded(include_bytes!("../../seeds/engine/service")), 4);
    }
}
