//! The packet format between the nodes: one packet, captured at a port of the underlay's bridge and
//! decoded by an independent parser.

use std::fmt::Write;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use etherparse::{
    Ethernet2Header, Icmpv4Type, LinkHeader, NetHeaders, PacketHeaders, TransportHeader, UdpHeader,
};
use podswitch_core::packet::{Batch, Pool, PoolConfig, finish_checksum};
use podswitch_core::port::{Device, Port};
use podswitch_core::time::Clock;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice, Receive};
use podswitch_vxlan::header::{FLAG_VNI, Header};

use super::ping;
use crate::Done;
use crate::demo::frames::tunnel::{VNI, VXLAN_PORT, vtep_mac};
use crate::demo::report::Report;
use crate::demo::sockets::Outcome;
use crate::demo::world::{World, bridge_port};

/// The longest wait for the packet.
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes on a line.
const LINE: usize = 16;

/// Captures a ping from red to cyan on the underlay, checks it and shows it.
pub(in crate::demo) fn wire_format(world: &World, report: &mut Report) -> Done {
    let name = "on the wire: a tunnelled packet is VXLAN as RFC 7348 has it";
    let frame = match catch(world) {
        Ok(frame) => frame,
        Err(error) => return report.check(name, Err(error)),
    };
    let read = Tunnelled::read(&frame);
    let as_expected = read.as_ref().map_err(Clone::clone).and_then(|read| read.check(world));
    report.check(name, as_expected)?;
    if let Ok(read) = read {
        report.show(&read.text);
    }
    report.show(&hex(&frame));
    Ok(())
}

/// The first tunnel packet that node one sends while red pings cyan.
fn catch(world: &World) -> Outcome<Vec<u8>> {
    let text = |e: std::io::Error| e.to_string();
    let config =
        PacketConfig { receive: Receive::Messages, promiscuous: false, ..Default::default() };
    let device = PacketDevice::new(&world.outside, &bridge_port(0), config);
    let mut device = device.map_err(|e| e.to_string())?;
    let mut port = device.open(0, 1).map_err(text)?;
    let (red, cyan) = (world.pod("red"), world.pod("cyan"));
    ping(&red.namespace, cyan.addresses.v4.into())?;
    let (mut pool, mut batch) = (Pool::new(PoolConfig::default()), Batch::new());
    let clock = Clock::start();
    let start = clock.now();
    while clock.now().since(start) < CAPTURE_TIMEOUT {
        port.rx(&mut pool, &mut batch).map_err(text)?;
        for mut packet in batch.drain(..) {
            // A network card would complete the checksum. There is none here, so it stays partial.
            let finished = finish_checksum(&mut packet);
            let frame = packet.bytes().to_vec();
            pool.free(packet);
            finished.map_err(|reason| reason.name().to_owned())?;
            if Tunnelled::read(&frame).is_ok_and(|read| read.icmp) {
                return Ok(frame);
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err("no tunnel packet with a ping inside crosses the underlay".to_owned())
}

/// One tunnel packet, decoded.
struct Tunnelled {
    outer: [IpAddr; 2],
    outer_ports: (u16, u16),
    /// Whether the outer checksum is absent or right.
    outer_sum: bool,
    flags: u8,
    vni: u32,
    inner_ethernet: Ethernet2Header,
    inner: [IpAddr; 2],
    inner_ttl: u8,
    icmp: bool,
    /// A line for each header.
    text: String,
}

impl Tunnelled {
    fn read(frame: &[u8]) -> Outcome<Self> {
        let mut text = String::new();
        let outside = headers(frame, &mut text)?;
        let Some(TransportHeader::Udp(udp)) = outside.headers.transport.clone() else {
            return Err("it is not UDP".to_owned());
        };
        let header = Header::new_checked(outside.headers.payload.slice())
            .map_err(|error| error.to_string())?;
        let (flags, vni) = (header.flags(), header.vni().get());
        line(&mut text, format_args!("VXLAN     flags {flags:#04x}, VNI {vni}"));
        let inside = headers(header.payload(), &mut text)?;
        let outer_sum = udp.checksum == 0
            || sum_of(&outside, &udp).is_some_and(|expected| expected == udp.checksum);
        Ok(Self {
            outer: outside.ends,
            outer_ports: (udp.source_port, udp.destination_port),
            outer_sum,
            flags,
            vni,
            inner: inside.ends,
            inner_ttl: inside.ttl,
            icmp: matches!(inside.headers.transport, Some(TransportHeader::Icmpv4(_))),
            inner_ethernet: inside.ethernet,
            text,
        })
    }

    /// Whether it is red's ping to cyan, from node to node.
    fn check(&self, world: &World) -> Outcome<()> {
        let [one, two] = world.nodes.each_ref().map(|node| node.addresses);
        let (red, cyan) = (world.pod("red").addresses, world.pod("cyan").addresses);
        let facts = [
            ("the nodes' addresses outside", self.outer == [one.v4, two.v4].map(IpAddr::V4)),
            ("the destination port", self.outer_ports.1 == VXLAN_PORT),
            ("a source port of the dynamic range", self.outer_ports.0 >= 32_768),
            ("a checksum that is right, or none", self.outer_sum),
            ("the I flag alone", self.flags == FLAG_VNI),
            ("the VNI", self.vni == u32::from(VNI)),
            ("the source's VTEP inside", self.inner_ethernet.source == vtep_mac(one).0),
            ("the destination's VTEP inside", self.inner_ethernet.destination == vtep_mac(two).0),
            ("the pods' addresses inside", self.inner == [red.v4, cyan.v4].map(IpAddr::V4)),
            ("a TTL that one switch lowered", self.inner_ttl == 63),
        ];
        match facts.into_iter().find(|(_, holds)| !holds) {
            None => Ok(()),
            Some((what, _)) => Err(format!("it lacks {what}:\n{}", self.text)),
        }
    }
}

/// Headers of a frame up to the transport layer.
struct Read<'a> {
    headers: PacketHeaders<'a>,
    ethernet: Ethernet2Header,
    ends: [IpAddr; 2],
    ttl: u8,
}

/// What the UDP checksum of a packet should be, if it is IPv4.
fn sum_of(read: &Read<'_>, udp: &UdpHeader) -> Option<u16> {
    match &read.headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            udp.calc_checksum_ipv4(ip, read.headers.payload.slice()).ok()
        }
        _ => None,
    }
}

/// Reads a frame's headers, and writes a line for each.
fn headers<'a>(frame: &'a [u8], text: &mut String) -> Outcome<Read<'a>> {
    let headers = PacketHeaders::from_ethernet_slice(frame).map_err(|e| e.to_string())?;
    let Some(LinkHeader::Ethernet2(ethernet)) = headers.link.clone() else {
        return Err("it is not Ethernet".to_owned());
    };
    let (from, to) = (
        podswitch_wire::addr::Mac(ethernet.source),
        podswitch_wire::addr::Mac(ethernet.destination),
    );
    line(text, format_args!("Ethernet  {from} → {to}"));
    let (ends, ttl): ([IpAddr; 2], u8) = match &headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => {
            let ends = [ip.source.into(), ip.destination.into()];
            let df = if ip.dont_fragment { ", DF" } else { "" };
            let [from, to]: [IpAddr; 2] = ends;
            line(
                text,
                format_args!(
                    "IPv4      {from} → {to}, {} bytes, TTL {}{df}",
                    ip.total_len, ip.time_to_live
                ),
            );
            (ends, ip.time_to_live)
        }
        Some(NetHeaders::Ipv6(ip, _)) => ([ip.source.into(), ip.destination.into()], ip.hop_limit),
        _ => return Err("it is not IP".to_owned()),
    };
    match &headers.transport {
        Some(TransportHeader::Udp(udp)) => line(
            text,
            format_args!(
                "UDP       {} → {}, {} bytes, checksum {:#06x}",
                udp.source_port, udp.destination_port, udp.length, udp.checksum
            ),
        ),
        Some(TransportHeader::Icmpv4(icmp)) => {
            let what = match &icmp.icmp_type {
                Icmpv4Type::EchoRequest(echo) => {
                    format!("echo request, identifier {:#06x}, sequence {}", echo.id, echo.seq)
                }
                other => format!("{other:?}"),
            };
            line(text, format_args!("ICMP      {what}"));
        }
        _ => {}
    }
    Ok(Read { headers, ethernet, ends, ttl })
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Bytes as `tcpdump -xx` prints them.
fn hex(frame: &[u8]) -> String {
    let mut text = String::new();
    for (number, bytes) in frame.chunks(LINE).enumerate() {
        let _ = write!(text, "{:#06x}: ", number * LINE);
        for pair in bytes.chunks(2) {
            text.push(' ');
            for byte in pair {
                let _ = write!(text, "{byte:02x}");
            }
        }
        text.push('\n');
    }
    text
}
