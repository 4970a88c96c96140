//! Sends consecutive UDP datagrams of a flow as one GSO packet, because a message costs the kernel more than a
//! datagram.

use std::io;

use arrayvec::ArrayVec;
use podswitch_core::packet::{
    BATCH, Batch, MAX_UDP_HEADERS, Packet, Pool, SizeClass, UdpRun, UdpRuns,
};

use super::port::PacketPort;

impl PacketPort {
    /// As `tx` of the port, for a burst that has runs of datagrams.
    pub(super) fn tx_joined(
        &mut self,
        pool: &mut Pool,
        batch: &mut Batch,
        runs: &UdpRuns,
    ) -> io::Result<usize> {
        let burst = std::mem::take(batch);
        // The packets to send, and for each a bit set of the packets of the burst that it contains.
        let mut units = Batch::new();
        let mut members: ArrayVec<u64, BATCH> = ArrayVec::new();
        let mut joined: u64 = 0;
        for at in 0..burst.len() {
            let Some((unit, of_run)) = runs.run(&burst, at).and_then(|run| join(&run, pool)) else {
                continue;
            };
            units.push(unit);
            members.push(of_run);
            joined |= of_run;
        }
        let mut waiting: [Option<Packet>; BATCH] = [const { None }; BATCH];
        for (at, packet) in burst.into_iter().enumerate() {
            match joined >> at & 1 {
                0 => {
                    units.push(packet);
                    members.push(1 << at);
                }
                _ => waiting[at] = Some(packet),
            }
        }
        let (done, mut result) = self.send_units(pool, units, &members, &mut waiting);
        let mut left: Batch = waiting.iter_mut().filter_map(Option::take).collect();
        let mut sent = done.count_ones() as usize;
        // Datagrams that could not be sent together are sent alone.
        if result.is_ok() && done & joined != joined {
            let (alone, ended) = self.send(&left, 0);
            result = ended;
            sent += alone.count_ones() as usize;
            for (at, packet) in std::mem::take(&mut left).into_iter().enumerate() {
                match alone >> at & 1 {
                    0 => left.push(packet),
                    _ => pool.free(packet),
                }
            }
        }
        batch.extend(left);
        result.map(|()| sent)
    }

    /// Sends in the order of each unit's first packet. Returns a bit for each packet of the burst that was sent.
    /// Packets that were not sent are in `waiting`.
    fn send_units(
        &mut self,
        pool: &mut Pool,
        units: Batch,
        members: &[u64],
        waiting: &mut [Option<Packet>; BATCH],
    ) -> (u64, io::Result<()>) {
        let mut order: ArrayVec<(u64, Packet), BATCH> =
            members.iter().copied().zip(units).collect();
        order.sort_unstable_by_key(|(members, _)| members.trailing_zeros());
        let (members, units): (ArrayVec<u64, BATCH>, Batch) = order.into_iter().unzip();
        let joined = members.iter().enumerate().filter(|(_, members)| !members.is_power_of_two());
        let joined = joined.fold(0, |joined, (at, _)| joined | 1 << at);
        let (bits, result) = self.send(&units, joined);
        let mut done = 0;
        for (at, (unit, members)) in units.into_iter().zip(members).enumerate() {
            let is_sent = bits >> at & 1 != 0;
            if is_sent {
                done |= members;
                let of_unit = (0..BATCH).filter(|at| members >> at & 1 != 0);
                of_unit.filter_map(|at| waiting[at].take()).for_each(|packet| pool.free(packet));
            }
            match waiting.get_mut(members.trailing_zeros() as usize) {
                // A single packet of the burst.
                Some(place) if members.is_power_of_two() && !is_sent => *place = Some(unit),
                _ => pool.free(unit),
            }
        }
        (done, result)
    }
}

/// The run as one packet, and its members. `None`: no buffer is free.
fn join(run: &UdpRun<'_>, pool: &mut Pool) -> Option<(Packet, u64)> {
    let mut whole = pool.alloc(SizeClass::Large)?;
    let mut head = [0; MAX_UDP_HEADERS];
    let (mut len, offload) = run.headers(&mut head);
    let space = whole.spare_mut();
    space[..len].copy_from_slice(&head[..len]);
    for payload in run.payloads() {
        space[len..len + payload.len()].copy_from_slice(payload);
        len += payload.len();
    }
    whole.set_len(len);
    whole.offload = offload;
    Some((whole, run.members().fold(0, |members, at| members | 1 << at)))
}
