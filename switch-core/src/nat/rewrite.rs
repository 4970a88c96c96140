//! Rewrites addresses and ports of a frame in place, and updates every checksum that covers them
//! incrementally (RFC 1624): a wrong checksum stays wrong, and a partial one stays partial.

use podswitch_wire::checksum::{Delta, sctp_update};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed};

use crate::action::{Plan, PlanFlags};
use crate::packet::Packet;

/// Applies the whole plan to a frame of the common form: an unfragmented TCP or UDP packet without
/// VLAN tags, IP options and partial checksum. False, and nothing was changed, if it has another
/// form.
#[inline(always)]
pub(crate) fn rewrite_common(packet: &mut Packet, parsed: &Parsed, plan: &Plan) -> bool {
    if packet.offload.csum_partial || parsed.fragment != Fragment::Whole {
        return false;
    }
    let frame = packet.bytes_mut();
    match (parsed.l4, parsed.key.proto) {
        // After Ethernet and IPv4 or IPv6 without options. The parameter is where the layer-4
        // checksum ends.
        (34, proto::UDP) => rewrite_at::<42>(frame, plan, Delta::apply_udp),
        (34, proto::TCP) => rewrite_at::<52>(frame, plan, Delta::apply),
        (54, proto::UDP) if parsed.network == Network::Ipv6 => {
            rewrite_at::<62>(frame, plan, Delta::apply_udp)
        }
        (54, proto::TCP) if parsed.network == Network::Ipv6 => {
            rewrite_at::<72>(frame, plan, Delta::apply)
        }
        _ => false,
    }
}

/// [`rewrite_common`] for a frame whose layer-4 checksum ends at `END`.
#[inline(always)]
fn rewrite_at<const END: usize>(
    frame: &mut [u8],
    plan: &Plan,
    apply: impl Fn(Delta, u16) -> u16,
) -> bool {
    let Some(head) = frame.first_chunk_mut::<END>() else { return false };
    head[..12].copy_from_slice(&plan.macs);
    let l4 = if END < 62 {
        head[22] = head[22].wrapping_sub(1);
        let sum = plan.address_delta.apply_hop(u16::from_be_bytes([head[24], head[25]]));
        head[24..26].copy_from_slice(&sum.to_be_bytes());
        head[26..30].copy_from_slice(&plan.src[..4]);
        head[30..34].copy_from_slice(&plan.dst[..4]);
        34
    } else {
        head[21] = head[21].wrapping_sub(1);
        head[22..38].copy_from_slice(&plan.src);
        head[38..54].copy_from_slice(&plan.dst);
        54
    };
    head[l4..l4 + 2].copy_from_slice(&plan.src_port.to_be_bytes());
    head[l4 + 2..l4 + 4].copy_from_slice(&plan.dst_port.to_be_bytes());
    let sum = apply(plan.flow_delta, u16::from_be_bytes([head[END - 2], head[END - 1]]));
    head[END - 2..].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Rewrites addresses and ports as `plan` says, in a frame of any form.
#[inline(never)]
pub(crate) fn rewrite(packet: &mut Packet, parsed: &Parsed, plan: &Plan) {
    let partial = packet.offload.is_of(parsed);
    let frame = packet.bytes_mut();
    addresses(frame, parsed, plan);
    // Later fragments have no layer-4 header. The checksum in the first covers the datagram.
    if parsed.fragment == Fragment::Later {
        return;
    }
    let l4 = usize::from(parsed.l4);
    let end = parsed.end as usize;
    let Some(layer4) = frame.get_mut(l4..end) else { return };
    match parsed.key.proto {
        proto::TCP => sum16(layer4, 16, partial, plan, Delta::apply),
        proto::UDP => sum16(layer4, 6, partial, plan, Delta::apply_udp),
        proto::SCTP => sctp(layer4, partial, plan),
        proto::ICMP | proto::ICMPV6 => icmp(layer4, parsed, partial, plan),
        _ => {}
    }
}

fn addresses(frame: &mut [u8], parsed: &Parsed, plan: &Plan) {
    let l3 = usize::from(parsed.l3);
    let (src, dst, width) = match parsed.network {
        Network::Ipv4 => (l3 + 12, l3 + 16, 4),
        Network::Ipv6 => (l3 + 8, l3 + 24, 16),
        Network::Arp | Network::Other => return,
    };
    if frame.len() < dst + width {
        return;
    }
    if plan.flags.has(PlanFlags::SNAT) {
        frame[src..src + width].copy_from_slice(&plan.src[..width]);
    }
    if plan.flags.has(PlanFlags::DNAT) {
        frame[dst..dst + width].copy_from_slice(&plan.dst[..width]);
    }
    if parsed.network == Network::Ipv4 {
        update(&mut frame[l3..], 10, |c| plan.address_delta.apply(c));
    }
}

/// TCP and UDP: the ports, and the checksum at `field`.
#[inline]
fn sum16(
    layer4: &mut [u8],
    field: usize,
    partial: bool,
    plan: &Plan,
    apply: impl Fn(Delta, u16) -> u16,
) {
    ports(layer4, plan);
    if partial {
        update(layer4, field, |c| plan.address_delta.apply_partial(c));
    } else {
        update(layer4, field, |c| apply(plan.flow_delta, c));
    }
}

fn ports(layer4: &mut [u8], plan: &Plan) {
    if let Some(ports) = layer4.first_chunk_mut::<4>() {
        if plan.flags.has(PlanFlags::SNAT) {
            [ports[0], ports[1]] = plan.src_port.to_be_bytes();
        }
        if plan.flags.has(PlanFlags::DNAT) {
            [ports[2], ports[3]] = plan.dst_port.to_be_bytes();
        }
    }
}

/// SCTP: the CRC covers the packet but not the addresses (RFC 9260 §6.8). A partial CRC is computed
/// later.
fn sctp(layer4: &mut [u8], partial: bool, plan: &Plan) {
    let Some(&[a, b, c, d, ..]) = layer4.first_chunk::<12>() else { return };
    ports(layer4, plan);
    if partial {
        return;
    }
    let len = layer4.len();
    if let Some(header) = layer4.first_chunk_mut::<12>() {
        let new = [header[0], header[1], header[2], header[3]];
        let old = [header[8], header[9], header[10], header[11]];
        header[8..].copy_from_slice(&sctp_update(old, len, [a, b, c, d], new));
    }
}

/// ICMP queries and replies: the identifier takes the place of the querying side's port (RFC 5508
/// §3). Only the ICMPv6 checksum covers the addresses.
fn icmp(layer4: &mut [u8], parsed: &Parsed, partial: bool, plan: &Plan) {
    let identifier = match parsed.icmp {
        Icmp::Query if plan.flags.has(PlanFlags::SNAT) => Some(plan.src_port),
        Icmp::Reply if plan.flags.has(PlanFlags::DNAT) => Some(plan.dst_port),
        _ => None,
    };
    let mut delta = match parsed.network {
        Network::Ipv6 => plan.address_delta,
        _ => Delta::NONE,
    };
    if let (Some(new), Some(header)) = (identifier, layer4.first_chunk_mut::<8>()) {
        let old = u16::from_be_bytes([header[4], header[5]]);
        [header[4], header[5]] = new.to_be_bytes();
        delta = delta.and(Delta::u16(old, new));
    }
    if partial {
        update(layer4, 2, |c| plan.address_delta.apply_partial(c));
    } else {
        update(layer4, 2, |c| delta.apply(c));
    }
}

/// Replaces the 16-bit field at `at`.
#[inline]
fn update(bytes: &mut [u8], at: usize, with: impl FnOnce(u16) -> u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        let new = with(u16::from_be_bytes([field[0], field[1]]));
        field.copy_from_slice(&new.to_be_bytes());
    }
}
