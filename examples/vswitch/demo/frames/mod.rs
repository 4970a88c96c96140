//! Forged frames, sent by a packet socket.

pub(super) mod tunnel;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use etherparse::PacketBuilder;
use podswitch_core::action::DropReason;
use podswitch_core::packet::{Batch, Pool, PoolConfig};
use podswitch_core::port::Device;
use podswitch_linux::NetNs;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice, Receive};
use podswitch_wire::addr::Mac;

use super::sockets::Outcome;
use super::world::Family;

/// Port that forged datagrams are sent to.
pub(super) const PORT: u16 = 4747;

/// A kind of forgery, and the expected drop reason.
pub(super) struct Forgery {
    pub(super) name: &'static str,
    pub(super) reason: DropReason,
    pub(super) frame: Vec<u8>,
}

/// The forging pod, the pod whose addresses are forged, and the receiver.
pub(super) struct Parties {
    pub(super) forger: (Mac, Family),
    pub(super) forged: (Mac, Family),
    pub(super) victim: Family,
    pub(super) gateway: Mac,
}

impl Parties {
    /// One forgery of each kind.
    pub(super) fn forgeries(&self) -> Vec<Forgery> {
        let ((mac, own), (other_mac, other)) = (self.forger, self.forged);
        let mut tagged = self.udp4(mac, own.v4);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        let forgery = |name, reason, frame| Forgery { name, reason, frame };
        vec![
            forgery("another's IPv4 address", DropReason::SpoofedIp, self.udp4(mac, other.v4)),
            forgery("another's IPv6 address", DropReason::SpoofedIp, self.udp6(mac, other.v6)),
            forgery("another's MAC address", DropReason::SpoofedMac, self.udp4(other_mac, own.v4)),
            forgery(
                "another's MAC and IPv6 address",
                DropReason::SpoofedMac,
                self.udp6(other_mac, other.v6),
            ),
            forgery(
                "a loopback address",
                DropReason::MartianSource,
                self.udp4(mac, Ipv4Addr::LOCALHOST),
            ),
            forgery("ARP for another", DropReason::SpoofedArp, gratuitous_arp(mac, other.v4)),
            forgery("a router advertisement", DropReason::RogueRouter, router_advertisement(mac)),
            forgery("a VLAN tag", DropReason::VlanFromPod, tagged),
        ]
    }

    fn udp4(&self, mac: Mac, from: Ipv4Addr) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(mac.0, self.gateway.0);
        let ip = ethernet.ipv4(from.octets(), self.victim.v4.octets(), 64);
        written(|out| ip.udp(PORT, PORT).write(out, b"forged"))
    }

    fn udp6(&self, mac: Mac, from: Ipv6Addr) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(mac.0, self.gateway.0);
        let ip = ethernet.ipv6(from.octets(), self.victim.v6.octets(), 64);
        written(|out| ip.udp(PORT, PORT).write(out, b"forged"))
    }
}

/// Sends a frame `times` times through an interface.
pub(super) fn send(namespace: &NetNs, interface: &str, frame: &[u8], times: usize) -> Outcome<()> {
    let receive = Receive::Messages;
    let config = PacketConfig { receive, promiscuous: false, ..PacketConfig::default() };
    let mut device = PacketDevice::new(namespace, interface, config).map_err(|e| e.to_string())?;
    let mut port = device.open(0, 1).map_err(|e| e.to_string())?;
    let (mut pool, mut batch) = (Pool::new(PoolConfig::default()), Batch::new());
    let mut sent = 0;
    while sent < times {
        while sent + batch.len() < times && !batch.is_full() {
            let mut packet = pool.alloc_for(frame.len()).ok_or("no buffer")?;
            packet.fill(frame);
            batch.push(packet);
        }
        match port.tx(&mut pool, &mut batch).map_err(|e| e.to_string())? {
            // The interface's queue is full. Wait until the switch has drained it.
            0 => thread::sleep(Duration::from_millis(1)),
            count => sent += count,
        }
    }
    Ok(())
}

/// A gratuitous ARP announcement.
fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::from(Mac::BROADCAST.0);
    frame.extend_from_slice(&mac.0);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    for mac in [mac, Mac::ZERO] {
        frame.extend_from_slice(&mac.0);
        frame.extend_from_slice(&address.octets());
    }
    frame
}

fn router_advertisement(mac: Mac) -> Vec<u8> {
    const EVERYBODY: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let ethernet = PacketBuilder::ethernet2(mac.0, [0x33, 0x33, 0, 0, 0, 1]);
    let ip = ethernet.ipv6(link_local(mac).octets(), EVERYBODY.octets(), 255);
    written(|out| ip.icmpv6_raw(134, 0, [64, 0, 7, 8]).write(out, &[0; 8]))
}

/// The link-local address that a kernel derives from a MAC address (RFC 4291 appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    let words = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
    Ipv6Addr::new(0xfe80, 0, 0, 0, words[0], words[1], words[2], words[3])
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("a vector takes everything");
    frame
}
