//! What passes the segment, and what an independent parser says of it.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use podswitch_core::packet::{Batch, Pool, PoolConfig, finish_checksum};
use podswitch_core::port::Port;

use podswitch_vswitch_testkit::cluster::{Limit, PATIENCE};

/// Receives what passes a port of the segment until `wanted` says that it has seen enough.
pub(super) fn capture(port: &mut dyn Port, mut wanted: impl FnMut(&[u8]) -> bool) {
    let mut pool = Pool::new(PoolConfig::default());
    let (limit, mut batch) = (Limit::new(PATIENCE), Batch::new());
    while limit.left().is_some() {
        port.rx(&mut pool, &mut batch).expect("received");
        if batch.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for mut packet in batch.drain(..) {
            // What a virtual cable leaves to its far end.
            if !packet.offload.is_gso() {
                finish_checksum(&mut packet).expect("a checksum that can be finished");
            }
            let done = wanted(packet.bytes());
            pool.free(packet);
            if done {
                return;
            }
        }
    }
    panic!("what was wanted does not pass");
}

/// A tunnel packet as an independent parser reads it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) dont_fragment: bool,
    pub(super) ttl: u8,
    /// Type of service or traffic class.
    pub(super) class: u8,
    pub(super) flow_label: u32,
    /// Bytes of the IP packet.
    pub(super) total_len: usize,
    /// What the UDP header says.
    pub(super) udp_len: usize,
    pub(super) has_checksum: bool,
    /// As it must be; one that is missing is.
    pub(super) checksum_holds: bool,
    pub(super) ports: (u16, u16),
    /// The VXLAN header.
    pub(super) header: [u8; 8],
    /// Inner link-layer destination and source.
    pub(super) macs: ([u8; 6], [u8; 6]),
    pub(super) inner_ttl: u8,
    pub(super) inner_class: u8,
    pub(super) inner_len: usize,
    pub(super) inner: (IpAddr, IpAddr),
    /// Inner layer-4 destination, of UDP.
    inner_port: Option<u16>,
}

impl Seen {
    /// Whether a datagram to there is inside.
    pub(super) fn is_for(&self, address: IpAddr, port: u16) -> bool {
        self.inner.1 == address && self.inner_port == Some(port)
    }
}

/// What an IP header says.
struct Ip {
    ends: (IpAddr, IpAddr),
    ttl: u8,
    class: u8,
    flow_label: u32,
    len: usize,
    dont_fragment: bool,
}

fn ip(net: &NetSlice<'_>) -> Ip {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            Ip {
                ends: (header.source_addr().into(), header.destination_addr().into()),
                ttl: header.ttl(),
                class: header.dcp().value() << 2 | header.ecn().value(),
                flow_label: 0,
                len: header.total_len().into(),
                dont_fragment: header.dont_fragment(),
            }
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            Ip {
                ends: (header.source_addr().into(), header.destination_addr().into()),
                ttl: header.hop_limit(),
                class: header.traffic_class(),
                flow_label: header.flow_label().value(),
                len: 40 + usize::from(header.payload_length()),
                dont_fragment: true,
            }
        }
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

pub(super) fn dissect(frame: &[u8], port: u16) -> Option<Seen> {
    let outer = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Udp(udp)) = &outer.transport else { return None };
    if udp.destination_port() != port {
        return None;
    }
    let Ip { ends, ttl, class, flow_label, len, dont_fragment } = ip(outer.net.as_ref()?);
    let (header, inner) = udp.payload().split_first_chunk::<8>().expect("a VXLAN header");
    let frame = SlicedPacket::from_ethernet(inner).expect("a frame inside");
    let inner_ip = match frame.net.as_ref()? {
        NetSlice::Arp(_) => return None,
        net => ip(net),
    };
    let (of_header, payload) = (udp.to_header(), udp.payload());
    let sum = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            of_header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            of_header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload)
        }
        _ => panic!("two families"),
    };
    let inner_port = match &frame.transport {
        Some(TransportSlice::Udp(udp)) => Some(udp.destination_port()),
        _ => None,
    };
    Some(Seen {
        source: ends.0,
        destination: ends.1,
        dont_fragment,
        ttl,
        class,
        flow_label,
        total_len: len,
        udp_len: udp.length().into(),
        has_checksum: udp.checksum() != 0,
        checksum_holds: udp.checksum() == 0 || sum.is_ok_and(|sum| sum == udp.checksum()),
        ports: (udp.source_port(), udp.destination_port()),
        header: *header,
        macs: (inner[..6].try_into().ok()?, inner[6..12].try_into().ok()?),
        inner_ttl: inner_ip.ttl,
        inner_class: inner_ip.class,
        inner_len: inner_ip.len,
        inner: inner_ip.ends,
        inner_port,
    })
}
