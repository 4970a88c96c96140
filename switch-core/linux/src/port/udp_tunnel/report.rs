//! Path MTU: if the kernel or a router refuses a tunnel packet as too long, the switch receives the
//! ICMP error that a raw uplink would have received (RFC 792, 1191, 4443).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use podswitch_core::packet::{Batch, Packet};
use podswitch_wire::checksum::{Sum, sum};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;
use rustix::event::{Timespec, epoll};

use super::plan::read;
use super::port::UdpTunnelPort;
use super::senders::Family;
use crate::port::underlay_mac;
use crate::sys::udp;

/// Maximum number of waiting reports.
const REPORTS: usize = 16;
/// Maximum number of errors read from one socket at a time.
const ERRORS: usize = 16;
/// Bytes of a tunnel packet that are quoted, from its IP header on: enough for all inner headers.
const QUOTE: usize = 256;

impl UdpTunnelPort {
    /// Moves waiting reports into the burst.
    pub(super) fn take_reports(&mut self, batch: &mut Batch) {
        if self.reports.is_empty() {
            return;
        }
        while !batch.is_full()
            && let Some(report) = self.reports.pop_front()
        {
            batch.push(report);
        }
        if self.reports.is_empty() {
            let _ = rustix::io::read(&self.signal, &mut [0u8; 8]);
        }
    }

    /// Reports that the kernel refused a datagram of the tunnel packet `frame` (of a GSO packet: a
    /// segment) with `payload` bytes after the UDP header, because it is too long.
    pub(super) fn report_too_long(&mut self, frame: &[u8], payload: usize, family: &Family) {
        let Some(outer) = read(frame) else { return };
        let Ok(mtu) = family.path_mtu(outer.to) else { return };
        let len = payload + outer.udp + 8 - 14;
        if mtu as usize >= len {
            return;
        }
        let mut quote = frame[14..outer.end.min(14 + QUOTE)].to_vec();
        put_lengths(&mut quote, len);
        self.report(outer.to.ip(), family.address, mtu, &quote);
    }

    /// Reads ICMP errors about sent datagrams.
    pub(super) fn read_errors(&mut self) {
        let Some(errors) = &self.errors else { return };
        let mut events = [const { std::mem::MaybeUninit::uninit() }; REPORTS];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(errors, &mut events[..], Some(&now)) else { return };
        let senders = std::sync::Arc::clone(&self.senders);
        let mut quoted = [0; QUOTE];
        for event in events.iter() {
            let Some((family, sender)) = senders.by_number(event.data.u64()) else { continue };
            for _ in 0..ERRORS {
                let Ok(error) = udp::take_error(sender.fd.as_fd(), &mut quoted) else { break };
                let Some(error) = error.filter(|e| e.errno == libc::EMSGSIZE) else { continue };
                if error.info < self.info.mtu {
                    let payload = &quoted[..error.quoted];
                    let quote = self.quote(family.address, sender.port, error.to, payload);
                    let by = error.by.map_or(error.to.ip(), |by| by.ip());
                    self.report(by, family.address, error.info, &quote);
                }
            }
        }
    }

    /// The start of a tunnel packet whose payload began with these bytes. Its length is unknown,
    /// but at most the MTU.
    fn quote(&self, source: IpAddr, port: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut quote = match (source, to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto::UDP, 0, 0];
                ip.extend(source.octets());
                ip.extend(to.octets());
                ip
            }
            (source, to) => {
                let mut ip = vec![0x60, 0, 0, 0, 0, 0, proto::UDP, 64];
                for address in [source, to] {
                    match address {
                        IpAddr::V6(v6) => ip.extend(v6.octets()),
                        IpAddr::V4(v4) => ip.extend(v4.to_ipv6_mapped().octets()),
                    }
                }
                ip
            }
        };
        quote.extend(port.to_be_bytes());
        quote.extend(to.port().to_be_bytes());
        quote.extend([0; 4]);
        quote.extend(payload);
        put_lengths(&mut quote, self.info.mtu as usize);
        quote
    }

    /// Lets the switch receive "fragmentation needed" or "packet too big" about `quote`.
    fn report(&mut self, by: IpAddr, to: IpAddr, mtu: u32, quote: &[u8]) {
        if self.reports.len() >= REPORTS {
            return;
        }
        let frame = match (by, to) {
            (IpAddr::V4(by), IpAddr::V4(to)) => {
                let len = 28 + quote.len();
                let mut frame = ethernet(by.into(), to.into(), ethertype::IPV4);
                frame.extend([0x45, 0]);
                frame.extend((len as u16).to_be_bytes());
                frame.extend([0, 0, 0, 0, 64, proto::ICMP, 0, 0]);
                frame.extend(by.octets());
                frame.extend(to.octets());
                put_sum(&mut frame, 14, 24, Sum::ZERO);
                frame.extend([3, 4, 0, 0, 0, 0]);
                frame.extend((mtu.min(0xffff) as u16).to_be_bytes());
                frame.extend(quote);
                put_sum(&mut frame, 34, 36, Sum::ZERO);
                frame
            }
            (IpAddr::V6(by), IpAddr::V6(to)) => {
                let len = (8 + quote.len()) as u16;
                let mut frame = ethernet(by.into(), to.into(), ethertype::IPV6);
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(len.to_be_bytes());
                frame.extend([proto::ICMPV6, 64]);
                frame.extend(by.octets());
                frame.extend(to.octets());
                frame.extend([2, 0, 0, 0]);
                frame.extend(mtu.to_be_bytes());
                frame.extend(quote);
                let pseudo = sum(&frame[22..54]) + Sum::word(len) + Sum::word(proto::ICMPV6.into());
                put_sum(&mut frame, 54, 56, pseudo);
                frame
            }
            _ => return,
        };
        let mut packet = Packet::from_frame(&frame);
        packet.offload.csum_valid = true;
        self.reports.push_back(packet);
        // In the worst case it is readable already.
        let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
    }
}

fn ethernet(from: IpAddr, to: IpAddr, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(128 + QUOTE);
    frame.extend(underlay_mac(to).0);
    frame.extend(underlay_mac(from).0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// Writes the checksum of all bytes from `from` on to `at`, which must hold zero.
fn put_sum(frame: &mut [u8], from: usize, at: usize, pseudo: Sum) {
    let checksum = (sum(&frame[from..]) + pseudo).checksum();
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Sets the lengths in a UDP packet's headers for an IP packet of `len` bytes.
fn put_lengths(packet: &mut [u8], len: usize) {
    let v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    if !v4 {
        put(packet, 4, len.saturating_sub(40));
        put(packet, 44, len.saturating_sub(40));
        return;
    }
    let header = usize::from(packet[0] & 15) * 4;
    put(packet, 2, len);
    put(packet, header + 4, len.saturating_sub(header));
    put(packet, 10, 0);
    let checksum = packet.get(..header).map_or(0, |ip| sum(ip).checksum());
    put(packet, 10, checksum.into());
}

fn put(packet: &mut [u8], at: usize, value: usize) {
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&(value as u16).to_be_bytes());
    }
}
