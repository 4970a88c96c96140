//! The first packet of a connection, made by the node and sent out of a pod's interface for real: what `trace` only
//! calculates is then seen, on this node and on others.
//!
//! Runs on the node's thread. The workers receive the frame like any other of the pod.

use std::hash::BuildHasher;
use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep, TcpOptionElement};
use hashbrown::DefaultHashBuilder;
use podswitch_core::control::ControlPlane;
use podswitch_linux::{HostError, send_frame};
use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::sctp_checksum;
use podswitch_wire::flow_key::{FlowKey, proto};
use podswitch_wire::sctp::{self, chunk};
use serde::Serialize;

use crate::explain::Connection;
use crate::pods::{Exit, Pods};

/// TTL or hop limit.
const TTL: u8 = 64;
/// Receive window of TCP, in bytes.
const WINDOW: u16 = 64_240;
/// Length of an INIT chunk without parameters (RFC 9260 §3.3.2).
const INIT_LEN: u16 = 20;

/// Why no packet was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The sender is not a pod that is attached here.
    #[error(
        "{0} is not an address of a pod that is attached to this node: only such a pod can send"
    )]
    NotHere(IpAddr),
    /// The two addresses are of different families.
    #[error("{0} and {1} are of different families")]
    Families(IpAddr, IpAddr),
    /// The packet would belong to a connection of the pod.
    #[error("the pod has a connection from port {0} already: choose another sport")]
    InUse(u16),
    /// The protocol is not one of those whose first packet is known.
    #[error("protocol {0}: only TCP, UDP, SCTP and ICMP can be sent")]
    Protocol(u8),
    /// The system refused it.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A packet that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SentPacket {
    /// The pod that it was sent from.
    pub pod: String,
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; for ICMP the identifier.
    pub sport: u16,
    /// Destination port; 0 for ICMP.
    pub port: u16,
    /// What it is, such as `TCP SYN`.
    pub what: &'static str,
    /// Bytes, in hex, that are in this packet, wherever it is and whatever is translated, and in no other: the sequence
    /// number and the timestamp of TCP, the initiate tag and the TSN of SCTP, the payload of UDP and ICMP.
    pub marks: [String; 2],
    /// Length of the frame in bytes.
    pub length: usize,
}

/// What the packet is recognised by.
#[derive(Clone, Copy, Debug)]
struct Marks([u32; 2]);

impl Marks {
    /// New ones. Not secret: the pods that see them may forge further packets of the kind.
    fn new() -> Self {
        let random = |seed: u8| DefaultHashBuilder::default().hash_one(seed) as u32 | 1;
        Self([random(0), random(1)])
    }

    fn hex(self) -> [String; 2] {
        self.0.map(|mark| format!("{mark:08x}"))
    }

    fn payload(self) -> Vec<u8> {
        let [first, second] = self.0.map(u32::to_be_bytes);
        [b"podswitch trace ".as_slice(), &first, &second].concat()
    }
}

/// The frame with the first packet of `connection`, and what it is.
fn frame(
    connection: &Connection,
    [src, dst]: [Mac; 2],
    mtu: u16,
    marks: Marks,
) -> Result<(Vec<u8>, &'static str), SendError> {
    let Connection { src: from, dst: to, protocol, sport, dport } = *connection;
    let ethernet = PacketBuilder::ethernet2(src.0, dst.0);
    let (packet, headers) = match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (ethernet.ipv4(a.octets(), b.octets(), TTL), 40),
        (IpAddr::V6(a), IpAddr::V6(b)) => (ethernet.ipv6(a.octets(), b.octets(), TTL), 60),
        _ => return Err(SendError::Families(from, to)),
    };
    let Marks([first, second]) = marks;
    let mut bytes = Vec::new();
    // Memory takes every byte, and all of this is far shorter than an IP packet may be.
    let what = match protocol {
        proto::TCP => {
            let options = [
                TcpOptionElement::MaximumSegmentSize(mtu.saturating_sub(headers)),
                TcpOptionElement::Timestamp(second, 0),
            ];
            let segment = packet.tcp(sport, dport, first, WINDOW).syn();
            let segment = segment.options(&options).map_err(|_| SendError::Protocol(protocol))?;
            segment.write(&mut bytes, &[]).ok().map(|()| "TCP SYN")
        }
        proto::UDP => {
            let datagram = packet.udp(sport, dport);
            datagram.write(&mut bytes, &marks.payload()).ok().map(|()| "UDP datagram")
        }
        proto::ICMP if from.is_ipv4() => {
            let echo = packet.icmpv4_echo_request(sport, 1);
            echo.write(&mut bytes, &marks.payload()).ok().map(|()| "ICMP echo request")
        }
        proto::ICMPV6 if from.is_ipv6() => {
            let echo = packet.icmpv6_echo_request(sport, 1);
            echo.write(&mut bytes, &marks.payload()).ok().map(|()| "ICMPv6 echo request")
        }
        proto::SCTP => init(packet, connection, marks, &mut bytes),
        _ => None,
    };
    what.map(|what| (bytes, what)).ok_or(SendError::Protocol(protocol))
}

/// An SCTP packet with an INIT chunk.
fn init(
    packet: PacketBuilderStep<IpHeaders>,
    connection: &Connection,
    Marks([tag, tsn]): Marks,
    bytes: &mut Vec<u8>,
) -> Option<&'static str> {
    let mut body = vec![0; sctp::HEADER_LEN];
    body.extend([chunk::INIT, 0]);
    body.extend(INIT_LEN.to_be_bytes());
    body.extend(tag.to_be_bytes());
    body.extend(65_536u32.to_be_bytes());
    // One stream in each direction.
    body.extend([0, 1, 0, 1]);
    body.extend(tsn.to_be_bytes());
    let mut header = sctp::Packet::new_checked(&mut body[..]).ok()?;
    header.set_src_port(connection.sport);
    header.set_dst_port(connection.dport);
    let checksum = sctp_checksum(&body)?;
    sctp::Packet::new_checked(&mut body[..]).ok()?.set_checksum(checksum);
    packet.write(bytes, IpNumber::SCTP, &body).ok().map(|()| "SCTP INIT")
}

/// Sends the first packet of each connection out of the interface of the pod that has its source address. All are checked
/// before the first one is sent.
///
/// # Errors
/// See [`SendError`]; nothing was sent, unless the system refused a further one.
pub(crate) fn send(
    control: &ControlPlane,
    pods: &Pods,
    connections: &[Connection],
) -> Result<Vec<SentPacket>, SendError> {
    let prepared: Result<Vec<_>, _> =
        connections.iter().map(|connection| prepare(control, pods, connection)).collect();
    let sent = prepared?.into_iter().map(|(exit, frame, packet)| {
        send_frame(&exit.namespace, exit.index, &frame)?;
        Ok(packet)
    });
    sent.collect()
}

/// The frame with the first packet of a connection, and where it is sent from.
fn prepare(
    control: &ControlPlane,
    pods: &Pods,
    connection: &Connection,
) -> Result<(Exit, Vec<u8>, SentPacket), SendError> {
    let Connection { src, dst, protocol, sport, dport } = *connection;
    let exit = pods.exit(src).ok_or(SendError::NotHere(src))?;
    let key = FlowKey::new(src, dst, protocol, sport, dport);
    let key = key.ok_or(SendError::Families(src, dst))?;
    if control.shared().tracker.is_taken(&key) {
        return Err(SendError::InUse(sport));
    }
    let marks = Marks::new();
    let macs = [exit.mac, control.snapshot().gateway.mac];
    let (frame, what) = frame(connection, macs, exit.mtu, marks)?;
    let is_icmp = matches!(protocol, proto::ICMP | proto::ICMPV6);
    let packet = SentPacket {
        pod: exit.pod.clone(),
        from: src,
        to: dst,
        protocol,
        sport,
        port: if is_icmp { 0 } else { dport },
        what,
        marks: marks.hex(),
        length: frame.len(),
    };
    Ok((exit, frame, packet))
}

#[cfg(test)]
mod tests {
    use podswitch_wire::flow_key::HashKey;
    use podswitch_wire::parse::parse;

    use super::*;

    const MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([0xee; 6])];

    fn contains(frame: &[u8], mark: u32) -> bool {
        frame.windows(4).any(|four| four == mark.to_be_bytes())
    }

    #[test]
    fn packets_are_those_of_the_connection_and_carry_the_marks() {
        let ends = [("10.1.0.2", "10.96.0.1"), ("fd00::2", "fd00:96::1")];
        for (from, to) in ends {
            let (src, dst): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let icmp = if src.is_ipv4() { (proto::ICMP, 8) } else { (proto::ICMPV6, 128) };
            for (protocol, dport) in [(proto::TCP, 80), (proto::UDP, 53), (proto::SCTP, 9), icmp] {
                let connection = Connection { src, dst, protocol, sport: 50_123, dport };
                let marks = Marks::new();
                let (frame, what) = frame(&connection, MACS, 1500, marks).unwrap();
                let parsed = parse(&frame, &HashKey::new(0)).unwrap();
                let key = FlowKey::new(src, dst, protocol, 50_123, dport).unwrap();
                assert_eq!(parsed.key, key, "{what}");
                assert!(marks.0.iter().all(|mark| contains(&frame, *mark)), "{what}");
                // Checksums are right: a library that shares nothing with the engine reads it.
                let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                assert!(sliced.net.is_some(), "{what}");
            }
        }
    }

    #[test]
    fn an_init_has_a_good_checksum() {
        let connection = Connection {
            src: [10, 1, 0, 2].into(),
            dst: [10, 1, 0, 3].into(),
            protocol: proto::SCTP,
            sport: 1,
            dport: 2,
        };
        let (frame, _) = frame(&connection, MACS, 1500, Marks([7, 9])).unwrap();
        let body = &frame[34..];
        let packet = sctp::Packet::new_checked(body).unwrap();
        assert_eq!(Some(packet.checksum()), sctp_checksum(body));
        let chunks: Vec<_> = packet.chunks().collect();
        assert_eq!((chunks.len(), chunks[0].kind, chunks[0].value.len()), (1, chunk::INIT, 16));
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 1, 0, 2].into(), "fd00::1".parse().unwrap());
        let connection = |src, dst, protocol| Connection { src, dst, protocol, sport: 1, dport: 2 };
        let says = |connection| {
            frame(&connection, MACS, 1500, Marks::new()).map(drop).unwrap_err().to_string()
        };
        assert_eq!(
            says(connection(v4, v4, 47)),
            "protocol 47: only TCP, UDP, SCTP and ICMP can be sent"
        );
        assert!(says(connection(v4, v6, 6)).contains("different families"));
        assert!(says(connection(v4, v4, proto::ICMPV6)).starts_with("protocol 58"));
    }
}
