//! The worker's side of a capture.

use std::mem::{replace, take};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::filter::Headers;
use super::frame::{CaptureOptions, Copy, RawFate};
use super::queue::Queue;
use crate::engine::{Dropped, Tap};
use crate::id::PortId;
use crate::packet::{BATCH, Batch};
use crate::port::pcap::Direction;
use crate::records::RawDrop;
use crate::snapshot::Snapshot;
use crate::time::Instant;

/// Maximum number of sent frames that are held until the end of a poll.
const OUTBOUND: usize = 1024;

/// Numbers of captured bursts. All workers and captures of the process share them: a fragment may be held by one worker
/// and released by another, in a later capture.
static BURSTS: AtomicU32 = AtomicU32::new(0);

fn next_burst() -> u32 {
    // Tags have 26 bits for the number, and 0 means none. A number repeats after 67 million bursts.
    match BURSTS.fetch_add(1, Relaxed) % (1 << 26) {
        0 => 1,
        number => number,
    }
}

/// See the module's description.
pub(super) struct WorkerTap {
    /// Number of the capture.
    id: u64,
    queue: Arc<Queue>,
    options: CaptureOptions,
    /// The snapshot with which frames are evaluated now.
    snapshot: Arc<Snapshot>,
    /// Number of the current burst, unused by any other burst of any worker for a long time. 0: there is no current
    /// burst.
    burst: u32,
    /// Copies of the current burst's frames, by index in the burst.
    inbound: [Option<Copy>; BATCH],
    /// Bit set of the frames that match the filter. The others are kept until they are sent: the reply of a Service's
    /// backend has the Service's address only after translation.
    taken: u64,
    has_inbound: bool,
    /// Copies of frames that were sent since the last burst was received.
    outbound: Vec<Copy>,
    /// Copies of frames that a port is about to send, with their index in the burst and their tags.
    sending: Vec<(usize, u32, Copy)>,
}

/// The index in its burst of the packet with this tag.
fn place(tag: u32) -> usize {
    tag as usize % BATCH
}

impl WorkerTap {
    pub(super) fn new(
        id: u64,
        queue: Arc<Queue>,
        options: CaptureOptions,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        Self {
            id,
            queue,
            options,
            snapshot,
            burst: 0,
            inbound: [const { None }; BATCH],
            taken: 0,
            outbound: Vec::with_capacity(OUTBOUND),
            sending: Vec::with_capacity(BATCH),
            has_inbound: false,
        }
    }

    /// Whether the frame with this tag was received in the current burst.
    fn is_current(&self, tag: u32) -> bool {
        tag != 0 && tag / BATCH as u32 == self.burst
    }

    /// Whether the received frame with this tag is captured.
    fn is_taken(&self, tag: u32) -> bool {
        self.is_current(tag) && self.taken >> place(tag) & 1 == 1
    }

    /// Copies a frame if the filter matches, or if it is `wanted` for another reason. Returns whether the filter
    /// matches.
    fn copy(
        &self,
        (now, port): (Instant, PortId),
        direction: Direction,
        frame: &[u8],
        wanted: bool,
    ) -> Option<(Copy, bool)> {
        let headers = Headers::read(frame, &self.snapshot);
        let is_taken = self.options.filter.takes(port, &headers);
        if !wanted && !is_taken {
            return None;
        }
        let mut buffer = self.queue.buffer();
        buffer.extend_from_slice(&frame[..frame.len().min(self.options.snap_len)]);
        let copy = Copy {
            time: now,
            port,
            direction,
            original_len: frame.len() as u32,
            headers,
            frame: buffer,
            snapshot: Arc::clone(&self.snapshot),
            fate: RawFate::Unknown,
        };
        Some((copy, is_taken))
    }
}

impl Tap for WorkerTap {
    fn id(&self) -> u64 {
        self.id
    }

    fn received(
        &mut self,
        snapshot: &Arc<Snapshot>,
        now: Instant,
        port: PortId,
        batch: &mut Batch,
    ) {
        self.finish();
        if !Arc::ptr_eq(&self.snapshot, snapshot) {
            self.snapshot = Arc::clone(snapshot);
        }
        self.burst = next_burst();
        self.taken = 0;
        let waits = self.options.filter.depends_on_ends() && !self.options.drops_only;
        for (at, packet) in batch.iter_mut().enumerate().take(BATCH) {
            packet.tag = self.burst * BATCH as u32 + at as u32;
            let copy = self.copy((now, port), Direction::Inbound, packet.bytes(), waits);
            self.has_inbound |= copy.is_some();
            self.inbound[at] = copy.map(|(copy, is_taken)| {
                self.taken |= u64::from(is_taken) << at;
                copy
            });
        }
    }

    fn dropped(&mut self, drop: &Dropped<'_>) {
        let tag = drop.trace.tag;
        if self.is_current(tag) {
            if let Some(copy) = &mut self.inbound[place(tag)] {
                // If a port did not accept a frame, its buffer has been freed. Its copy is still here.
                let frame = drop.frame.unwrap_or(&copy.frame);
                copy.fate = dropped(drop, frame, &copy.snapshot);
            }
            return;
        }
        // Held since an earlier burst.
        let (port, Some(frame)) = (drop.trace.ingress, drop.frame) else { return };
        if let Some((mut copy, _)) = self.copy((drop.now, port), Direction::Inbound, frame, false) {
            copy.fate = dropped(drop, frame, &copy.snapshot);
            self.queue.push(copy);
        }
    }

    fn sending(&mut self, now: Instant, port: PortId, batch: &Batch) {
        if self.options.drops_only {
            return;
        }
        for (at, packet) in batch.iter().enumerate() {
            let tag = packet.tag;
            let (is_followed, frame) = (self.is_taken(tag), packet.bytes());
            let copy = self.copy((now, port), Direction::Outbound, frame, is_followed);
            if let Some((mut copy, is_taken)) = copy {
                if is_taken && self.is_current(tag) {
                    self.taken |= 1 << place(tag);
                }
                copy.fate = RawFate::Sent { origin: packet.origin, ingress: packet.ingress };
                self.sending.push((at, tag, copy));
            }
        }
    }

    fn sent(&mut self, count: usize) {
        let mut sending = take(&mut self.sending);
        for (at, tag, copy) in sending.drain(..) {
            if at >= count {
                self.queue.recycle(copy.frame);
                continue;
            }
            if self.is_current(tag)
                && let Some(inbound) = &mut self.inbound[place(tag)]
                && !matches!(inbound.fate, RawFate::Dropped(_))
            {
                inbound.fate = RawFate::Forwarded(copy.port);
            }
            match self.outbound.len() < OUTBOUND {
                true => self.outbound.push(copy),
                false => self.queue.lose(copy),
            }
        }
        self.sending = sending;
    }

    fn finish(&mut self) {
        if replace(&mut self.has_inbound, false) {
            let taken = take(&mut self.taken);
            for (at, place) in self.inbound.iter_mut().enumerate() {
                let Some(copy) = place.take() else { continue };
                let is_unwanted =
                    self.options.drops_only && !matches!(copy.fate, RawFate::Dropped(_));
                match is_unwanted || taken >> at & 1 == 0 {
                    true => self.queue.recycle(copy.frame),
                    false => self.queue.push(copy),
                }
            }
        }
        for copy in self.outbound.drain(..) {
            self.queue.push(copy);
        }
        // Frames dropped from now on were held fragments.
        self.burst = 0;
    }
}

/// The fate of a dropped frame. `frame`: its bytes. `snapshot`: the snapshot of its burst, which the engine no longer
/// knows when a port refuses the frame.
fn dropped(drop: &Dropped<'_>, frame: &[u8], snapshot: &Snapshot) -> RawFate {
    let (mut raw, frame) = RawDrop::new(&Dropped {
        trace: drop.trace,
        now: drop.now,
        epoch: snapshot.epoch,
        reason: drop.reason,
        object: drop.object,
        frame: Some(frame),
        count: drop.count,
    });
    raw.frame = frame;
    RawFate::Dropped(Box::new(raw))
}
