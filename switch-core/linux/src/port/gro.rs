//! Tunnel datagrams received as one buffer: merged by the kernel (UDP_GRO), or never segmented
//! because their sender is on the same machine. [`Received`] decides whether they are one or
//! several. Several are split, but consecutive TCP segments inside them are merged into one GRO
//! packet in place. Ports call this on reception, on their worker's thread.

use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayVec;
use podswitch_core::packet::{GroRun, GsoType, Offload, Packet, Pool};
use podswitch_vxlan::ecn::Ecn;
use podswitch_wire::checksum::{Sum, is_partial, sum, verify_l4};
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::{Network, Parsed, ethertype, parse};

use self::received::{Received, VXLAN};
use super::underlay_mac;

#[cfg(any(test, feature = "fuzz"))]
#[allow(unreachable_pub, reason = "public where fuzz targets are built")]
pub mod fuzz;
mod received;

/// Bytes of a UDP header.
const UDP: usize = 8;
/// Bytes of Ethernet, IPv6 and UDP headers.
const LONGEST: usize = 62;

/// Maximum number of datagrams that the kernel merges (`UDP_GRO_CNT_MAX` is 64) or a sender passes as one buffer
/// (`UDP_MAX_SEGMENTS`, 128 since Linux 6.9).
const DATAGRAMS: usize = 128;

/// MTUs that bound the inner packets, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mtus {
    /// MTU of the underlay.
    pub(super) underlay: usize,
    /// MTU of the receivers of the inner packets.
    pub(super) inner: usize,
}

/// The outer headers of every datagram of one buffer: Ethernet, IP and UDP.
pub(super) struct Outer {
    head: [u8; LONGEST],
    v4: bool,
    /// Start of the IP header.
    l3: usize,
    /// Start of the UDP header.
    udp: usize,
    /// Whether the UDP checksum field of frames is filled: not with a valid value, but marked as
    /// verified.
    is_summed: bool,
}

impl Outer {
    /// Headers that were not received, rebuilt from the kernel's metadata.
    pub(super) fn new(from: SocketAddr, to: SocketAddr, class: u8) -> Self {
        let mut head = [0; LONGEST];
        head[..6].copy_from_slice(&underlay_mac(to.ip()).0);
        head[6..12].copy_from_slice(&underlay_mac(from.ip()).0);
        let (v4, udp) = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                head[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
                head[14..16].copy_from_slice(&[0x45, class]);
                head[20..24].copy_from_slice(&[0x40, 0, 64, proto::UDP]);
                head[26..30].copy_from_slice(&from.octets());
                head[30..34].copy_from_slice(&to.octets());
                (true, 34)
            }
            (from, to) => {
                head[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
                head[14..16].copy_from_slice(&[0x60 | class >> 4, class << 4]);
                head[20..22].copy_from_slice(&[proto::UDP, 64]);
                head[22..38].copy_from_slice(&v6(from));
                head[38..54].copy_from_slice(&v6(to));
                (false, 54)
            }
        };
        head[udp..udp + 2].copy_from_slice(&from.port().to_be_bytes());
        head[udp + 2..udp + 4].copy_from_slice(&to.port().to_be_bytes());
        // IPv6 requires a checksum.
        Self { head, v4, l3: 14, udp, is_summed: !v4 }
    }

    /// The headers of a UDP GSO packet to `port`, untagged and without options; `None` if it is not
    /// one.
    pub(super) fn of(packet: &Packet, port: u16) -> Option<Self> {
        let (frame, offload) = (packet.bytes(), &packet.offload);
        let udp = usize::from(offload.csum_start);
        let (kind, protocol) = match udp {
            34 => (ethertype::IPV4, 23),
            54 => (ethertype::IPV6, 20),
            _ => return None,
        };
        let tunnel = offload.gso_type == GsoType::UdpL4
            && frame.len() >= udp + UDP
            && frame[12..14] == kind.to_be_bytes()
            && frame[protocol] == proto::UDP
            && (udp == 54 || frame[14] == 0x45)
            && frame[udp + 2..udp + 4] == port.to_be_bytes();
        let mut head = [0; LONGEST];
        head[..udp + UDP].copy_from_slice(frame.get(..udp + UDP)?);
        tunnel.then_some(Self { head, v4: udp == 34, l3: 14, udp, is_summed: true })
    }

    /// Splits a GSO packet with these headers, which its metadata says it is segmented by, into as
    /// few frames as possible. Returns how many datagrams were lost.
    pub(super) fn open(
        &self,
        mut packet: Packet,
        mtus: Mtus,
        pool: &mut Pool,
        out: &mut impl FnMut(Packet),
    ) -> u64 {
        let segment = usize::from(packet.offload.gso_size);
        let frame = packet.bytes();
        let len = usize::from(u16::from_be_bytes([frame[self.udp + 4], frame[self.udp + 5]]));
        packet.truncate(self.udp + len.max(UDP));
        packet.pull_front(self.udp + UDP);
        match segment == 0 || segment >= packet.len() {
            true => self.single(packet, mtus, 0, out),
            false => return self.split(packet, segment, mtus, pool, out),
        }
        0
    }

    /// Makes frames from a buffer that a UDP socket returned: as few as possible. If the kernel's segment size
    /// contradicts the buffer, makes one frame that the worker drops because of its metadata. Returns how many
    /// datagrams were lost.
    pub(super) fn receive(
        &self,
        mut packet: Packet,
        segment: usize,
        mtus: Mtus,
        pool: &mut Pool,
        out: &mut impl FnMut(Packet),
    ) -> u64 {
        match Received::of(packet.bytes(), segment) {
            Received::Datagram => self.single(packet, mtus, 0, out),
            Received::Gso(size) => self.single(packet, mtus, size, out),
            Received::Joined(size) => return self.split(packet, size, mtus, pool, out),
            Received::Inconsistent => {
                self.complete(&mut packet, Offload::INVALID);
                out(packet);
            }
        }
        0
    }

    /// Makes the frame of one datagram. `segment`: payload of each segment of the GSO packet inside, zero if the kernel
    /// did not report it.
    fn single(&self, mut packet: Packet, mtus: Mtus, segment: usize, out: &mut impl FnMut(Packet)) {
        let offload = self.inner_offload(packet.bytes(), mtus, segment);
        self.complete(&mut packet, offload);
        out(packet);
    }

    /// Metadata of the inner frame of a datagram if its checksum is partial: its sender left the
    /// checksum to an offload that the packet never passed.
    fn inner_offload(&self, datagram: &[u8], mtus: Mtus, segment: usize) -> Offload {
        let Some(inner) = datagram.get(VXLAN..) else { return Offload::default() };
        let Ok(parsed) = parse(inner, &HashKey::new(0)) else { return Offload::default() };
        if !is_partial(inner, &parsed) {
            return Offload::default();
        }
        let (l3, payload, end) =
            (usize::from(parsed.l3), usize::from(parsed.payload), parsed.end as usize);
        let is_tcp = parsed.key.proto == proto::TCP;
        let longest = mtus.underlay.saturating_sub(podswitch_vxlan::template::overhead(!self.v4));
        let longest = longest.min(mtus.inner);
        let size = match segment {
            // The kernel reports no segment size for TCP. The packet is longer than its receiver's
            // MTU, so the sender relied on segmentation. Only the sender knows its MSS.
            0 if is_tcp && end - l3 > longest => longest.saturating_sub(payload - l3),
            size => size,
        };
        let is_gso = size != 0 && end - payload > size;
        // One in 65,536 complete checksums looks partial; those of GSO packets are always partial.
        if !is_gso && verify_l4(inner, &parsed) {
            return Offload::default();
        }
        let partial = Offload {
            csum_partial: true,
            csum_start: parsed.l4,
            csum_offset: if is_tcp { 16 } else { 6 },
            ..Offload::default()
        };
        if !is_gso {
            return partial;
        }
        Offload {
            gso_type: gso_type(&parsed),
            ecn: is_cwr_signal(inner, &parsed),
            gso_size: u16::try_from(size).unwrap_or(u16::MAX),
            hdr_len: parsed.payload,
            ..partial
        }
    }

    /// Splits merged datagrams into as few frames as possible. Returns how many were lost for lack
    /// of a buffer.
    fn split(
        &self,
        mut joined: Packet,
        segment: usize,
        mtus: Mtus,
        pool: &mut Pool,
        out: &mut impl FnMut(Packet),
    ) -> u64 {
        let alone = |run: Option<GroRun>, datagram: &[u8]| match run {
            // Its checksum has been verified.
            Some(_) => Offload::default(),
            None => self.inner_offload(datagram, mtus, 0),
        };
        let mut later: ArrayVec<Packet, { DATAGRAMS - 1 }> = ArrayVec::new();
        let bytes = joined.bytes();
        let first = run_of(bytes, segment);
        let mut at = first.as_ref().map_or(1, GroRun::count) * segment;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let run = run_of(rest, segment);
            let count = run.as_ref().map_or(1, GroRun::count);
            let one = segment.min(rest.len());
            let len = run.as_ref().map_or(one, |run| VXLAN + run.frame_len());
            // Without a buffer the rest is lost and counted, as with a full queue.
            let Some(mut packet) = pool.alloc_for(len) else { break };
            match run.filter(|run| run.count() > 1) {
                None => {
                    packet.fill(&rest[..one]);
                    self.complete(&mut packet, alone(run, &rest[..one]));
                }
                Some(run) => {
                    packet.set_len(len);
                    let headers = VXLAN + run.headers();
                    let mut end = headers;
                    let target = packet.bytes_mut();
                    target[..headers].copy_from_slice(&rest[..headers]);
                    for datagram in rest.chunks(segment).take(run.count()) {
                        let payload = &datagram[headers..];
                        target[end..end + payload.len()].copy_from_slice(payload);
                        end += payload.len();
                    }
                    let offload = run.finish(&mut target[VXLAN..]);
                    self.complete(&mut packet, offload);
                }
            }
            if let Err(full) = later.try_push(packet) {
                pool.free(full.element());
                break;
            }
            at += count * segment;
        }
        let lost = bytes.len().saturating_sub(at).div_ceil(segment) as u64;
        let offload = match first.filter(|run| run.count() > 1) {
            None => {
                joined.truncate(segment);
                alone(first, joined.bytes())
            }
            Some(run) => join(&mut joined, &run, segment),
        };
        self.complete(&mut joined, offload);
        out(joined);
        later.into_iter().for_each(out);
        lost
    }

    /// Puts the outer headers in front of a datagram's payload. `offload` is about the inner frame.
    fn complete(&self, packet: &mut Packet, mut offload: Offload) {
        let payload = packet.len();
        let (udp, len) = (self.udp, self.udp + UDP);
        let head = packet.push_front(len);
        head.copy_from_slice(&self.head[..len]);
        let udp_len = (payload + UDP) as u16;
        let put = |head: &mut [u8], at: usize, value: u16| {
            head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        put(head, udp + 4, udp_len);
        let l3 = self.l3;
        if self.v4 {
            put(head, l3 + 2, udp_len + (udp - l3) as u16);
            put(head, l3 + 10, 0);
            let checksum = sum(&head[l3..udp]).checksum();
            put(head, l3 + 10, checksum);
        } else {
            put(head, l3 + 4, udp_len);
        }
        if self.is_summed {
            let addresses = if self.v4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 };
            let pseudo = sum(&head[addresses]) + Sum::word(udp_len) + Sum::word(proto::UDP.into());
            put(head, udp + 6, pseudo.fold().max(1));
        }
        offload.shift((len + VXLAN) as i32);
        offload.csum_valid = true;
        packet.offload = offload;
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Whether CWR in the header of a GSO packet is the sender's reaction to congestion, which belongs to the first segment
/// only (RFC 3168 §6.1.2), and not a part of AccECN's counter, which every segment has (RFC 9768 §3.2.2). The kernel
/// does not report it. It is the former unless something shows the latter, as in `tcp_gso_segment`: the AE flag, or an
/// ECN field that no RFC 3168 sender uses in such a packet. Such a sender sets CWR only in new data, which is ECT(0)
/// (§6.1.4), and which routers mark CE.
fn is_cwr_signal(frame: &[u8], parsed: &Parsed) -> bool {
    /// In the byte of the data offset (RFC 9768 §3.1).
    const AE: u8 = 0x01;
    const CWR: u8 = 0x80;
    let header = frame.get(usize::from(parsed.l4)..).unwrap_or_default();
    let has_ae = header.get(12).is_some_and(|byte| byte & AE != 0);
    let ecn = Ecn::from_traffic_class(parsed.traffic_class);
    parsed.key.proto == proto::TCP
        && parsed.tcp_flags & CWR != 0
        && !has_ae
        && matches!(ecn, Ecn::Ect0 | Ecn::Ce)
}

fn gso_type(parsed: &Parsed) -> GsoType {
    match (parsed.key.proto, parsed.network) {
        (proto::TCP, Network::Ipv4) => GsoType::TcpV4,
        (proto::TCP, _) => GsoType::TcpV6,
        _ => GsoType::UdpL4,
    }
}

/// The run of TCP segments at the beginning of merged datagrams; `None` if the first is not a TCP segment.
fn run_of(bytes: &[u8], segment: usize) -> Option<GroRun> {
    let mut datagrams = bytes.chunks(segment);
    let (header, first) = datagrams.next()?.split_at_checked(VXLAN)?;
    let mut run = GroRun::start(first)?;
    if !run.verify(first) {
        return None;
    }
    for datagram in datagrams {
        let Some((other, frame)) = datagram.split_at_checked(VXLAN) else { break };
        let mut longer = run;
        if other != header || !longer.push(first, frame) || !run.verify(frame) {
            break;
        }
        run = longer;
    }
    Some(run)
}

/// Moves the payloads of the run at the start of `joined` together, which makes it one GRO packet.
fn join(joined: &mut Packet, run: &GroRun, segment: usize) -> Offload {
    let headers = VXLAN + run.headers();
    let bytes = joined.bytes_mut();
    let mut end = segment;
    for n in 1..run.count() {
        let from = n * segment + headers;
        let to = ((n + 1) * segment).min(bytes.len());
        bytes.copy_within(from..to, end);
        end += to - from;
    }
    joined.truncate(VXLAN + run.frame_len());
    run.finish(&mut joined.bytes_mut()[VXLAN..])
}

#[cfg(test)]
mod tests;
