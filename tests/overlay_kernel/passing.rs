//! What passes the segment, and what an independent parser says of it.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use switch_core::packet::{Batch, Pool, PoolConfig};
use switch_core::port::Port;

use super::cluster::{Limit, PATIENCE};

/// Receives what passes a port of the segment until `wanted` says that it has seen enough.
pub(super) fn capture(port: &mut dyn Port, mut wanted: impl FnMut(&[u8]) -> bool) {
    let mut pool = Pool::new(PoolConfig::default());
    let (limit, mut batch) = (Limit::new(PATIENCE), Batch::new());
    while limit.left().is_some() {
        port.rx(&mut pool, &mut batch).expect("received");
        if batch.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for packet in batch.drain(..) {
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
    pub(super) ports: (u16, u16),
    /// The VXLAN header.
    pub(super) header: [u8; 8],
    /// Inner link-layer destination and source.
    pub(super) macs: ([u8; 6], [u8; 6]),
    pub(super) inner_ttl: u8,
    pub(super) inner: (IpAddr, IpAddr),
}

fn addresses(net: &NetSlice<'_>) -> (IpAddr, IpAddr, u8, bool) {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let (from, to) = (header.source_addr().into(), header.destination_addr().into());
            (from, to, header.ttl(), header.dont_fragment())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (from, to) = (header.source_addr().into(), header.destination_addr().into());
            (from, to, header.hop_limit(), true)
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
    let (source, destination, ttl, dont_fragment) = addresses(outer.net.as_ref()?);
    let (header, inner) = udp.payload().split_first_chunk::<8>().expect("a VXLAN header");
    let frame = SlicedPacket::from_ethernet(inner).expect("a frame inside");
    let (from, to, inner_ttl, _) = match frame.net.as_ref()? {
        NetSlice::Arp(_) => return None,
        net => addresses(net),
    };
    Some(Seen {
        source,
        destination,
        dont_fragment,
        ttl,
        ports: (udp.source_port(), udp.destination_port()),
        header: *header,
        macs: (inner[..6].try_into().ok()?, inner[6..12].try_into().ok()?),
        inner_ttl,
        inner: (from, to),
    })
}
