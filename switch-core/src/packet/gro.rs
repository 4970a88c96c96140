//! GRO: coalesces consecutive TCP segments of one flow into one packet. The inverse of segmentation.
//! Called by ports on reception where the kernel does not do it: inside a tunnel that user space
//! terminates.
//!
//! Segments are merged only if [`segment`](super::segment) would produce them again, byte for byte. The one exception
//! is the IPv4 identification of packets with DF, which has no meaning (RFC 6864 §4.1). Every checksum that the GRO
//! packet no longer carries was verified.

use arrayvec::ArrayVec;
use podswitch_wire::checksum::{Sum, sum};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use super::gso::finish_ipv4;
use super::layout::{be16, put_be16};
use super::{BATCH, Batch, Packet, Pool, SizeClass};

mod run;

pub use run::GroRun;
use run::{ETHERNET, Ids, Tcp};

/// Flows that are coalesced at the same time.
const FLOWS: usize = 8;

/// A run of segments that may continue.
struct Open {
    /// Index of its first segment in the resulting burst.
    at: usize,
    tunnel: Option<Tunnel>,
    run: GroRun,
    ids: Ids,
    /// Whether the first segment's checksums were verified.
    verified: bool,
}

/// Offsets of the outer headers of a tunnel packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tunnel {
    v4: bool,
    udp: usize,
    /// Start of the inner frame.
    inner: usize,
}

impl Tunnel {
    /// Reads the outer headers of a VXLAN packet to UDP port `port`. `None` if the frame is something
    /// else, or has IP options or padding, or is a fragment.
    fn read(frame: &[u8], port: u16) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        let (v4, udp, end) = match be16(frame, 12) {
            ethertype::IPV4 if ip.len() >= 36 => {
                if ip[0] != 0x45 || ip[9] != proto::UDP || be16(ip, 6) & 0xbfff != 0 {
                    return None;
                }
                (true, ETHERNET + 20, ETHERNET + usize::from(be16(ip, 2)))
            }
            ethertype::IPV6 if ip.len() >= 56 && ip[6] == proto::UDP => {
                (false, ETHERNET + 40, ETHERNET + 40 + usize::from(be16(ip, 4)))
            }
            _ => return None,
        };
        let whole = end == frame.len() && usize::from(be16(frame, udp + 4)) == end - udp;
        (whole && be16(frame, udp + 2) == port).then_some(Self { v4, udp, inner: udp + 16 })
    }

    /// The sum of the pseudo-header.
    fn pseudo(&self, frame: &[u8]) -> Sum {
        let addresses = ETHERNET + if self.v4 { 12 } else { 8 }..self.udp;
        let len = (frame.len() - self.udp) as u16;
        sum(&frame[addresses]) + Sum::word(u16::from(proto::UDP)) + Sum::word(len)
    }

    /// Whether the UDP checksum is valid or absent, given that the inner checksum is valid: the bytes that
    /// it covers sum to the complement of its pseudo-header.
    fn verify(&self, frame: &[u8], inner: &Tcp) -> bool {
        let l4 = self.inner + inner.l4;
        let inside = Sum::word(!inner.pseudo(&frame[self.inner..]).fold());
        be16(frame, self.udp + 6) == 0
            || (self.pseudo(frame) + sum(&frame[self.udp..l4]) + inside).holds()
    }

    /// Whether the headers are equal, apart from fields that differ between segments.
    fn is_same(&self, a: &[u8], b: &[u8]) -> bool {
        let same = |from: usize, to: usize| a[from..to] == b[from..to];
        let udp = self.udp;
        let ip = if self.v4 {
            same(0, ETHERNET + 2) && same(ETHERNET + 6, ETHERNET + 10) && same(ETHERNET + 12, udp)
        } else {
            same(0, ETHERNET + 4) && same(ETHERNET + 6, udp)
        };
        let summed = |frame: &[u8]| be16(frame, udp + 6) != 0;
        ip && same(udp, udp + 4) && same(udp + 8, self.inner) && summed(a) == summed(b)
    }

    /// Updates the outer headers for the GRO packet.
    fn finish(&self, frame: &mut [u8]) {
        let udp = self.udp;
        let len = (frame.len() - udp) as u16;
        if self.v4 {
            put_be16(frame, ETHERNET + 2, (frame.len() - ETHERNET) as u16);
            finish_ipv4(frame, ETHERNET, 20);
        } else {
            put_be16(frame, ETHERNET + 4, len);
        }
        put_be16(frame, udp + 4, len);
        // Not the final checksum, but not 0 either: segmentation will compute one.
        if be16(frame, udp + 6) != 0 {
            let pseudo = self.pseudo(frame).fold();
            put_be16(frame, udp + 6, if pseudo == 0 { 0xffff } else { pseudo });
        }
    }
}

/// Coalesces consecutive TCP segments in `batch`, of up to eight flows at the same time, either directly
/// or inside VXLAN packets to UDP port `tunnel`. The order within a flow is kept. Packets that were
/// merged into others are returned to `pool`. A packet with a wrong checksum is left unchanged. The
/// offload metadata of a coalesced tunnel packet describes its inner frame, and says that the outer
/// checksum was verified (`csum_valid`).
///
/// Returns the number of packets that were merged into others.
pub fn coalesce(batch: &mut Batch, tunnel: Option<u16>, pool: &mut Pool) -> usize {
    if batch.len() < 2 {
        return 0;
    }
    let before = batch.len();
    let mut out: ArrayVec<Packet, BATCH> = ArrayVec::new();
    let mut open: ArrayVec<Open, FLOWS> = ArrayVec::new();
    for packet in batch.drain(..) {
        if let Some(packet) = add(packet, tunnel, &mut open, &mut out, pool) {
            out.push(packet);
        }
    }
    for run in open {
        close(&run, &mut out);
    }
    *batch = out;
    before - batch.len()
}

/// Adds a packet to the run that it continues. Otherwise returns the packet, after it has begun a run,
/// or ended some.
fn add(
    packet: Packet,
    tunnel: Option<u16>,
    open: &mut ArrayVec<Open, FLOWS>,
    out: &mut ArrayVec<Packet, BATCH>,
    pool: &mut Pool,
) -> Option<Packet> {
    let frame = packet.bytes();
    let outer = tunnel.and_then(|port| Tunnel::read(frame, port));
    let inner = &frame[outer.map_or(0, |t| t.inner)..];
    let Some(tcp) = Tcp::read(inner) else {
        // It may be TCP of any flow in a form that is not merged. No later segment may overtake it.
        if !is_unrelated(inner) {
            open.drain(..).for_each(|run| close(&run, out));
        }
        return Some(packet);
    };
    let at = open.iter().position(|run| {
        let first = out[run.at].bytes();
        run.tunnel.map(|t| t.inner) == outer.map(|t| t.inner)
            && run.run.tcp.v4 == tcp.v4
            && tcp.is_same_flow(&first[run.tunnel.map_or(0, |t| t.inner)..], inner)
    });
    let run = GroRun::start(inner).filter(|_| !packet.offload.is_gso());
    if let Some(at) = at {
        if run.is_some() && append(&mut open[at], &packet, out, pool) {
            pool.free(packet);
            return None;
        }
        close(&open.remove(at), out);
    }
    if let Some(run) = run.filter(|run| !run.closed) {
        if open.is_full() {
            close(&open.remove(0), out);
        }
        let ids = Ids::One;
        open.push(Open { at: out.len(), tunnel: outer, run, ids, verified: false });
    }
    Some(packet)
}

/// Whether a frame that could not be read as TCP certainly belongs to no TCP flow.
fn is_unrelated(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23).is_some_and(|protocol| *protocol != proto::TCP),
        Some([0x86, 0xdd]) => {
            frame.get(20).is_some_and(|next| matches!(*next, proto::UDP | proto::ICMPV6))
        }
        Some([0x81, 0x00] | [0x88, 0xa8]) => false,
        _ => true,
    }
}

/// Whether all checksums are valid, or were verified by the device.
fn is_good(packet: &Packet, outer: Option<&Tunnel>, run: &GroRun) -> bool {
    let offload = packet.offload;
    let frame = packet.bytes();
    let start = outer.map_or(0, |t| t.inner);
    let inner = &frame[start..];
    let outer_ip = outer.is_none_or(|t| !t.v4 || sum(&frame[ETHERNET..t.udp]).holds());
    if !outer_ip || !run.verify_ip(inner) {
        return false;
    }
    // A partial checksum was never on a wire.
    let is_partial = |start: usize, offset: u16| {
        offload.csum_partial
            && (usize::from(offload.csum_start), offload.csum_offset) == (start, offset)
    };
    if is_partial(start + run.tcp.l4, 16) {
        return true;
    }
    match outer {
        None => !offload.csum_partial && (offload.csum_valid || run.verify(inner)),
        Some(tunnel) => {
            let verified = is_partial(tunnel.udp, 6) || offload.csum_valid;
            let known = verified || !offload.csum_partial;
            known && run.verify(inner) && (verified || tunnel.verify(frame, &run.tcp))
        }
    }
}

/// Appends the packet's payload to the run, in a buffer that is large enough.
fn append(
    open: &mut Open,
    packet: &Packet,
    out: &mut ArrayVec<Packet, BATCH>,
    pool: &mut Pool,
) -> bool {
    let start = open.tunnel.map_or(0, |t| t.inner);
    let (first, frame) = (out[open.at].bytes(), packet.bytes());
    // The run's TCP header may be longer than this whole frame.
    let Some(payload) = frame.get(start + open.run.tcp.payload..) else { return false };
    let mut ids = Ids::One;
    if let Some(tunnel) = &open.tunnel {
        if !tunnel.is_same(first, frame) {
            return false;
        }
        if tunnel.v4 {
            let next = open.ids.and(&first[ETHERNET..], &frame[ETHERNET..], open.run.count);
            let Some(next) = next else { return false };
            ids = next;
        }
    }
    let len = first.len() + payload.len();
    // The length field of the outermost IP packet has 16 bits.
    if len - ETHERNET > usize::from(u16::MAX) {
        return false;
    }
    let mut run = open.run;
    if !run.push(&first[start..], &frame[start..]) {
        return false;
    }
    // Checksums are verified only when there is something to merge.
    let tunnel = open.tunnel.as_ref();
    open.verified = open.verified || is_good(&out[open.at], tunnel, &run);
    if !open.verified || !is_good(packet, tunnel, &run) {
        return false;
    }
    let whole = &mut out[open.at];
    if whole.capacity() < len {
        let Some(mut large) = pool.alloc(SizeClass::Large) else { return false };
        large.fill(whole.bytes());
        large.inherit(whole, true);
        large.offload = whole.offload;
        pool.free(core::mem::replace(whole, large));
    }
    let at = whole.len();
    whole.set_len(len);
    whole.bytes_mut()[at..].copy_from_slice(payload);
    (open.run, open.ids) = (run, ids);
    true
}

/// Writes the headers of the GRO packet, if there is more than one segment.
fn close(open: &Open, out: &mut ArrayVec<Packet, BATCH>) {
    if open.run.count() < 2 {
        return;
    }
    let whole = &mut out[open.at];
    let start = open.tunnel.map_or(0, |t| t.inner);
    let frame = whole.bytes_mut();
    let mut offload = open.run.finish(&mut frame[start..]);
    if let Some(tunnel) = &open.tunnel {
        tunnel.finish(frame);
        offload.csum_valid = true;
    }
    offload.shift(start as i32);
    whole.offload = offload;
}

#[cfg(test)]
mod tests;
