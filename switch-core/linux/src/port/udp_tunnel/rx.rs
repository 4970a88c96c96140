//! Reception: rebuilds the outer headers. Datagrams that the kernel merged (UDP_GRO) are split
//! again, but consecutive TCP segments inside them are merged into one GRO packet in place.
//!
//! A peer on the same machine may pass a GSO packet as one datagram, short or long, since no device
//! on the way segments it. Its inner checksum is partial: it equals the pseudo-header sum. Whether
//! a read returned one datagram or several is decided in [`joined`](crate::port::joined).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use arrayvec::ArrayVec;
use podswitch_core::packet::{Batch, Packet, Pool, SizeClass, coalesce};

use super::port::{FEW_SLOTS, Receiver, UdpTunnelPort};
use crate::port::gro::{Mtus, Outer};
use crate::sys::datagram::{self, SLOTS, Slot};

/// A burst ends at about this many bytes, so that GSO packets are still in the cache when the same
/// worker sends them.
const BURST_BYTES: usize = 384 * 1024;

impl UdpTunnelPort {
    /// Receives from each socket once.
    pub(super) fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<()> {
        for n in 0..self.receivers.len() {
            if batch.is_full() {
                break;
            }
            let receiver = &mut self.receivers[n];
            let mut slots: ArrayVec<Slot, SLOTS> = ArrayVec::new();
            while slots.len() < receiver.slots.min(batch.remaining_capacity()) {
                let Some(large) = pool.alloc(SizeClass::Large) else { break };
                let Some(small) = pool.alloc(SizeClass::Small) else {
                    pool.free(large);
                    break;
                };
                slots.push(Slot::new(small, large));
            }
            let result = match slots.len() {
                0 => Ok(0),
                _ => datagram::receive(receiver.socket.as_fd(), &mut slots),
            };
            let count = match &result {
                Ok(count) => *count,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED) => 0,
                    _ => {
                        free(slots, pool);
                        return result.map(drop);
                    }
                },
            };
            let bytes: usize = slots[..count].iter().map(|slot| slot.len).sum();
            adapt(receiver, count, bytes);
            let last = slots[..count].iter().map(|slot| slot.overflow).rfind(|n| *n != 0);
            if let Some(overflow) = last {
                let before = receiver.overflow.replace(overflow).unwrap_or(overflow);
                self.lost += u64::from(overflow.wrapping_sub(before));
            }
            let address = receiver.address;
            for (i, slot) in slots.into_iter().enumerate() {
                if i < count {
                    self.accept(slot, address, pool, batch);
                } else {
                    pool.free(slot.small);
                    pool.free(slot.large);
                }
            }
        }
        coalesce(batch, Some(self.port), pool);
        Ok(())
    }

    /// Makes frames from the contents of one slot. Frames for which the burst has no room wait.
    fn accept(&mut self, slot: Slot, address: IpAddr, pool: &mut Pool, batch: &mut Batch) {
        let Slot { mut small, mut large, len, from, class, segment, cut, .. } = slot;
        let Some(from) = from.filter(|_| !cut) else {
            // Longer than any datagram, without a source or without metadata: the kernel does not
            // return such messages.
            pool.free(small);
            pool.free(large);
            self.lost += 1;
            return;
        };
        let outer = Outer::new(from, SocketAddr::new(address, self.port), class);
        let mtus = Mtus { underlay: self.info.mtu as usize, inner: self.inner_mtu };
        let waiting = &mut self.waiting;
        let mut out = |packet: Packet| match batch.try_push(packet) {
            Ok(()) => {}
            Err(full) => waiting.push_back(full.element()),
        };
        // Use the smaller buffer if it is large enough.
        let packet = if len <= Pool::SMALL {
            pool.free(large);
            small.set_len(len);
            small
        } else {
            large.spare_mut()[..Pool::SMALL].copy_from_slice(&small.spare_mut()[..Pool::SMALL]);
            pool.free(small);
            large.set_len(len.min(large.capacity()));
            large
        };
        self.lost += outer.receive(packet, segment, mtus, pool, &mut out);
    }
}

fn free(slots: ArrayVec<Slot, SLOTS>, pool: &mut Pool) {
    for slot in slots {
        pool.free(slot.small);
        pool.free(slot.large);
    }
}

/// Offers more slots while small datagrams fill them, and fewer if datagrams are large or slots
/// stay empty.
fn adapt(receiver: &mut Receiver, count: usize, bytes: usize) {
    if count == receiver.slots && bytes < BURST_BYTES / 2 {
        receiver.slots = (receiver.slots * 2).min(SLOTS);
    } else if bytes > BURST_BYTES || count < receiver.slots / 4 {
        receiver.slots = (receiver.slots / 2).max(FEW_SLOTS);
    }
}
