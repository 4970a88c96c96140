//! Ingress: counts a received burst, sends it to the stage that its port's role requires, and
//! parses routed frames.
//!
//! Parsing decides for each frame whether it may take the [fast path](super::fast).

use core::ops::Range;

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed, parse_fast, parse_into};

use super::direction::opens_association;
use super::frame::sender_id_of;
use super::{BurstContext, Engine};
use crate::action::{DropReason, Plan};
use crate::flow::table::{EntryId, LookupMiss};
use crate::id::PortId;
use crate::packet::{BATCH, Batch, Packet};
use crate::snapshot::PortFacts;

/// Facts about the packets of a burst on their way through the fast path.
pub(super) struct Burst {
    pub(super) ingress: PortId,
    /// The current second.
    pub(super) seconds: u32,
    /// A bit for each packet that may take the fast path.
    pub(super) eligible: u64,
    /// Parse errors of the other packets.
    pub(super) sound: [Result<(), DropReason>; BATCH],
    /// [Sender IDs](super::frame::sender_id).
    pub(super) senders: [u64; BATCH],
    /// Likely flow entries.
    pub(super) candidates: [EntryId; BATCH],
    /// Whether a packet of an unknown flow was found, and lookups for the others were prefetched.
    pub(super) missed: bool,
    /// Why the last packet looked up has no valid entry.
    pub(super) miss: Option<LookupMiss>,
    /// The plan of a packet that was rewritten but still needs its tunnel headers, in a way that
    /// the fast path does not support.
    pub(super) unencapsulated: Option<Plan>,
}

impl Burst {
    #[inline(always)]
    pub(super) fn new(ingress: PortId, seconds: u32) -> Self {
        Self {
            ingress,
            seconds,
            eligible: 0,
            sound: [Ok(()); BATCH],
            senders: [0; BATCH],
            candidates: [EntryId::NONE; BATCH],
            missed: false,
            miss: None,
            unencapsulated: None,
        }
    }

    #[inline(never)]
    pub(super) fn leave_unencapsulated(&mut self, plan: &Plan, source_port: SourcePort) {
        self.unencapsulated = Some(Plan { source_port, ..*plan });
    }
}

/// The destination MAC address of frames that are routed, in a form that is compared with a frame's
/// first eight bytes.
#[derive(Clone, Copy)]
pub(super) struct RouterMac {
    mask: u64,
    mac: u64,
}

impl RouterMac {
    /// `None`: any address.
    pub(super) fn new(mac: Option<Mac>) -> Self {
        match mac {
            Some(Mac([a, b, c, d, e, f])) => {
                Self { mask: !0xffff, mac: u64::from_be_bytes([a, b, c, d, e, f, 0, 0]) }
            }
            None => Self { mask: 0, mac: 0 },
        }
    }

    #[inline(always)]
    fn matches<const N: usize>(self, head: &[u8; N]) -> bool {
        let first = head.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        first & self.mask == self.mac
    }
}

impl Engine {
    /// Processes a burst that was received on `ingress`. `batch` is empty afterwards.
    pub fn process(&mut self, cx: &mut BurstContext<'_>, ingress: PortId, batch: &mut Batch) {
        self.counters.received.add(batch.len() as u64);
        let mut bytes = 0;
        for packet in batch.iter_mut() {
            packet.ingress = ingress;
            bytes += packet.len() as u64;
        }
        if let Some(port) = self.counters.port(ingress) {
            port.rx_frames.add(batch.len() as u64);
            port.rx_bytes.add(bytes);
        }
        match cx.snapshot.port(ingress) {
            PortFacts::Pod(_) | PortFacts::Host(_) => {
                let gateway = cx.snapshot.gateway.mac;
                self.route_burst(cx, ingress, Some(gateway), batch);
            }
            PortFacts::Uplink(uplink) => self.uplink_burst(cx, uplink, batch),
            PortFacts::Bridge(port) => self.bridge_burst(cx, ingress, port, batch),
            PortFacts::Unused => {
                for packet in batch.drain(..) {
                    self.drop(cx, packet, DropReason::EndpointNotReady, None);
                }
            }
        }
    }

    /// Parses the packets `group` of a burst, and prefetches the flow table's buckets of those that
    /// may take the fast path.
    #[inline(never)]
    pub(super) fn parse_group(
        &mut self,
        router: RouterMac,
        batch: &Batch,
        group: Range<usize>,
        burst: &mut Burst,
    ) {
        let hash_key = &self.shared.hash_key;
        let Some(packets) = batch.get(group.clone()) else { return };
        let places = self.parsed[group.clone()].iter_mut().zip(&mut burst.senders[group.clone()]);
        let mut eligible = 0;
        for ((packet, (parsed, sender)), i) in packets.iter().zip(places).zip(group) {
            let frame = packet.bytes();
            *sender = match frame.first_chunk::<42>() {
                Some(head)
                    if parse_fast(frame, hash_key, parsed) && !packet.offload.is_unfinished() =>
                {
                    if parsed.ttl <= 1 || !router.matches(head) {
                        continue;
                    }
                    sender_id_of(head, packet)
                }
                _ => match parse_fully(packet, hash_key, parsed, router) {
                    Ok(Some(sender)) => sender,
                    Ok(None) => continue,
                    Err(reason) => {
                        burst.sound[i] = Err(reason);
                        continue;
                    }
                },
            };
            self.flows.prefetch(parsed.hash);
            eligible |= 1 << i;
        }
        burst.eligible |= eligible;
    }
}

/// Parses a frame and checks its offload metadata against it. Metadata with wrong offsets would
/// make the switch rewrite bytes after policy was evaluated for them.
#[inline]
pub(super) fn parse_checked(
    packet: &Packet,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), DropReason> {
    parse_into(packet.bytes(), hash_key, parsed)?;
    packet.offload.check(parsed)
}

/// [`parse_checked`] of a frame that the short parser does not accept. Returns its sender if it may
/// take the fast path.
#[inline(never)]
fn parse_fully(
    packet: &Packet,
    hash_key: &HashKey,
    parsed: &mut Parsed,
    router: RouterMac,
) -> Result<Option<u64>, DropReason> {
    parse_checked(packet, hash_key, parsed)?;
    let head = packet.bytes().first_chunk::<16>();
    let head = head.filter(|head| is_eligible(packet.bytes(), parsed) && router.matches(head));
    Ok(head.map(|head| sender_id_of(head, packet)))
}

/// Whether the packet needs nothing beyond its flow's plan.
#[inline]
fn is_eligible(frame: &[u8], parsed: &Parsed) -> bool {
    matches!(parsed.network, Network::Ipv4 | Network::Ipv6)
        && parsed.fragment == Fragment::Whole
        // Other ICMP messages share one key per pair of addresses, and some must be dropped.
        && !matches!(parsed.icmp, Icmp::Error | Icmp::Neighbour | Icmp::Other)
        && parsed.tags == 0
        && parsed.ttl > 1
        // Evaluated in its own direction. A SYN leaves the fast path where its connection is
        // updated.
        && !opens_association(frame, parsed)
}
