//! Transmission: passes each port the frames that the engine has queued for it, after computing checksums and
//! segmenting GSO packets if the port does not support that.

use std::io;

use super::{Worker, WorkerPort};
use crate::action::DropReason;
use crate::engine::Trace;
use crate::id::PortId;
use crate::packet::{BATCH, Batch, Offloads, Origin, fit, is_fit};
use crate::time::Instant;

fn total_bytes(batch: &Batch) -> u64 {
    batch.iter().map(|packet| packet.len() as u64).sum()
}

impl Worker {
    /// Sends all queued frames, port by port. Frames that a port does not accept are counted and
    /// freed.
    pub(super) fn flush(&mut self, now: Instant) {
        let mut out = std::mem::take(&mut self.out);
        out.flush(|id, batch| self.transmit(now, id, batch));
        self.out = out;
    }

    fn transmit(&mut self, now: Instant, id: PortId, batch: &mut Batch) {
        let at = self.index.get(id.index()).copied().flatten();
        let Some(WorkerPort { port, .. }) = at.and_then(|at| self.ports.get_mut(usize::from(at)))
        else {
            return self.drop_unsent(now, DropReason::PortDown, batch);
        };
        let offloads = port.info().offloads;
        let (mut bytes, mut unfinished) = (0, false);
        for packet in batch.iter() {
            bytes += packet.len() as u64;
            unfinished |= packet.offload.is_unfinished();
        }
        if unfinished && !batch.iter().all(|p| is_fit(p, offloads)) {
            self.finish_batch(now, offloads, batch);
            bytes = total_bytes(batch);
        }
        self.send(now, id, batch, bytes);
    }

    /// Sends the batch and then everything in `finished`. `bytes`: total bytes of the batch.
    fn send(&mut self, now: Instant, id: PortId, batch: &mut Batch, mut bytes: u64) {
        let at = self.index.get(id.index()).copied().flatten();
        let Some(at) = at.map(usize::from).filter(|&at| at < self.ports.len()) else { return };
        loop {
            let frames = batch.len();
            if let Some(capture) = self.engine.capture() {
                capture.sending(now, id, batch);
            }
            let result = self.ports[at].port.tx(&mut self.pool, batch);
            if let Some(capture) = self.engine.capture() {
                capture.sent(frames - batch.len());
            }
            let left = total_bytes(batch);
            if let Some(counters) = self.engine.counters().port(id) {
                counters.tx_frames.add((frames - batch.len()) as u64);
                counters.tx_bytes.add(bytes - left);
            }
            let reason = if result.is_err() { DropReason::TxFailed } else { DropReason::TxFull };
            if !batch.is_empty() {
                self.drop_unsent(now, reason, batch);
            }
            if let Err(error) = result {
                while let Some(packet) = self.finished.pop_front() {
                    self.engine.not_sent(now, Trace::from(&packet), reason);
                    self.pool.free(packet);
                }
                return self.port_failed(id, error);
            }
            if self.finished.is_empty() {
                return;
            }
            let count = self.finished.len().min(BATCH);
            batch.extend(self.finished.drain(..count));
            bytes = total_bytes(batch);
        }
    }

    /// Computes checksums and segments GSO packets, if the port does not do it. Packets that exceed the batch wait in
    /// `finished`.
    fn finish_batch(&mut self, now: Instant, offloads: Offloads, batch: &mut Batch) {
        let mut finished = std::mem::take(&mut self.finished);
        for packet in batch.drain(..) {
            let trace = Trace::from(&packet);
            let mut pieces = 0u64;
            let result = fit(packet, offloads, &mut self.pool, &mut |_, mut piece| {
                piece.ingress = trace.ingress;
                piece.mark = trace.mark;
                piece.tag = trace.tag;
                piece.origin = if pieces == 0 { trace.origin } else { Origin::Copy };
                pieces += 1;
                finished.push_back(piece);
            });
            self.engine.counters().copies.add(pieces.saturating_sub(1));
            match result {
                Err(error) if pieces == 0 => self.engine.not_sent(now, trace, error.reason),
                // A part of the frame was sent. The part that was not sent counts as a lost copy.
                Err(_) => self.engine.counters().originated_lost.add(1),
                Ok(_) => {}
            }
        }
        let count = finished.len().min(BATCH);
        batch.extend(finished.drain(..count));
        self.finished = finished;
    }

    fn drop_unsent(&mut self, now: Instant, reason: DropReason, batch: &mut Batch) {
        for packet in batch.drain(..) {
            self.engine.not_sent(now, Trace::from(&packet), reason);
            self.pool.free(packet);
        }
    }

    /// Removes a port whose device no longer exists. Other errors may be temporary, and show in the counters.
    pub(super) fn port_failed(&mut self, id: PortId, error: io::Error) {
        if error.kind() == io::ErrorKind::NotConnected {
            self.remove(id);
            self.handle.report_failure(id, error);
        }
    }
}
