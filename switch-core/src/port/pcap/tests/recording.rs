//! Recording of a port's traffic.

use std::io;
use std::sync::{Arc, mpsc};

use super::*;
use crate::packet::{Batch, Pool, PoolConfig};
use crate::port::memory::pair;
use crate::port::{Device, Now, Offloads, wrap};
use crate::time::Instant;

/// A file in memory that passes its content on when it is closed.
struct Memory(Vec<u8>, mpsc::Sender<Vec<u8>>);

impl io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.1.send(std::mem::take(&mut self.0));
    }
}

#[test]
fn passing_frames_are_recorded_unless_the_queue_is_full() {
    let (sender, receiver) = mpsc::channel();
    let writer = CaptureWriter::new(Memory(Vec::new(), sender), Format::Pcap).unwrap();
    let recorder = Arc::new(Recorder::start(writer, 100, 50).unwrap());
    let now = Now::new();
    let (device, end) = pair("m0", 2, Offloads::ALL);
    let (theirs, clock) = (Arc::clone(&recorder), now.clone());
    let mut device =
        wrap(device, move |port, _| Box::new(theirs.wrap(port, clock.clone(), 1_000_000_000)));
    let mut port = device.open(0, 1).unwrap();
    drop(device);
    let (mut pool, mut batch) = (Pool::new(PoolConfig::default()), Batch::new());
    end.send_frame(&[1; 60]).unwrap();
    end.send_frame(&[2; 20]).unwrap();
    now.set(Instant::from_nanos(5));
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 2);
    batch.push(crate::packet::Packet::from_frame(&[3; 30]));
    now.set(Instant::from_nanos(9));
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 2);
    assert_eq!(batch.len(), 1, "the queue holds two");
    let counters = Arc::into_inner(recorder).unwrap().finish().unwrap();
    assert_eq!(counters, RecorderCounters { written: 4, missed: 0, failed: 0 });
    let at = |nanos: u64, byte: u8, len: usize, original: u32| {
        record(1_000_000_000 + nanos, &vec![byte; len], original)
    };
    let expected = [at(5, 1, 50, 60), at(5, 2, 20, 20), at(9, 1, 50, 60), at(9, 2, 20, 20)];
    assert_eq!(read(&receiver.recv().unwrap()).unwrap(), expected);
    // The recording has ended; the port has not.
    assert_eq!(end.recv_frame().unwrap(), [1; 60]);
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 1);
}

/// A file that blocks until it is released, and then fails.
struct Stuck(mpsc::Receiver<()>);

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The file header passes.
        if bytes.len() == 60 {
            let _ = self.0.recv();
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn a_slow_or_failing_file_loses_captured_frames_only() {
    let (sender, receiver) = mpsc::channel();
    let writer = CaptureWriter::new(Stuck(receiver), Format::Pcap).unwrap();
    let recorder = Recorder::start(writer, 8, 100).unwrap();
    let (mut device, end) = pair("m0", 64, Offloads::ALL);
    let mut port = recorder.wrap(device.open(0, 1).unwrap(), Now::new(), 0);
    let (mut pool, mut batch) = (Pool::new(PoolConfig::default()), Batch::new());
    for n in 0..60 {
        end.send_frame(&[n; 60]).unwrap();
    }
    assert_eq!(crate::port::Port::rx(&mut port, &mut pool, &mut batch).unwrap(), 60);
    let missed = recorder.counters().missed;
    assert!((51..=52).contains(&missed), "{missed}: eight wait, one may be being written");
    drop(sender);
    assert_eq!(recorder.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
}
