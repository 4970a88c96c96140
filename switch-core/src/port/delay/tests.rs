use super::*;
use crate::packet::PoolConfig;
use crate::port::memory::{MemoryEnd, pair};
use crate::port::{Device, Offloads};

const MS: Duration = Duration::from_millis(1);

struct Set {
    port: Delay<Box<dyn Port>>,
    end: MemoryEnd,
    now: Now,
    pool: Pool,
    batch: Batch,
}

fn set(limit: usize, capacity: usize) -> Set {
    let (mut device, end) = pair("m0", capacity, Offloads::ALL);
    let now = Now::new();
    let port = Delay::new(device.open(0, 1).unwrap(), 5 * MS, 2 * MS, limit, now.clone());
    Set { port, end, now, pool: Pool::new(PoolConfig::default()), batch: Batch::new() }
}

impl Set {
    fn at(&mut self, millis: u32) {
        self.now.set(Instant::ZERO + MS * millis);
    }

    fn rx(&mut self) -> Vec<u8> {
        let count = self.port.rx(&mut self.pool, &mut self.batch).unwrap();
        assert_eq!(count, self.batch.len());
        let numbers = self.batch.iter().map(|packet| packet.bytes()[0]).collect();
        for packet in self.batch.drain(..) {
            self.pool.free(packet);
        }
        numbers
    }

    fn tx(&mut self, numbers: std::ops::Range<u8>) -> usize {
        for n in numbers {
            let mut packet = self.pool.alloc_for(1).unwrap();
            packet.fill(&[n]);
            self.batch.push(packet);
        }
        let count = self.port.tx(&mut self.pool, &mut self.batch).unwrap();
        for packet in self.batch.drain(..) {
            self.pool.free(packet);
        }
        count
    }
}

#[test]
fn received_frames_come_later_in_order() {
    let mut set = set(100, 100);
    set.end.send_frame(&[1]).unwrap();
    assert!(set.rx().is_empty());
    set.at(3);
    set.end.send_frame(&[2]).unwrap();
    assert!(set.rx().is_empty());
    assert!(!set.port.arm(), "frames are in flight");
    assert_eq!(set.port.next_due(), Some(Instant::ZERO + 5 * MS));
    set.at(5);
    assert_eq!(set.rx(), [1]);
    set.at(7);
    assert!(set.rx().is_empty());
    set.at(8);
    assert_eq!(set.rx(), [2]);
    assert!(set.port.arm());
    assert_eq!(set.port.next_due(), None);
    assert_eq!(set.pool.outstanding(), (0, 0));
}

#[test]
fn sent_frames_leave_later() {
    let mut set = set(100, 100);
    assert_eq!(set.tx(0..3), 3);
    assert_eq!(set.end.pending(), 0);
    set.at(2);
    set.rx();
    assert_eq!(set.end.pending(), 3);
    assert_eq!(set.tx(3..4), 1);
    set.at(4);
    set.tx(4..5);
    let got: Vec<_> = std::iter::from_fn(|| set.end.recv_frame()).flatten().collect();
    assert_eq!(got, [0, 1, 2, 3]);
}

#[test]
fn the_number_of_frames_in_flight_is_limited() {
    let mut set = set(10, 100);
    for n in 0..30 {
        set.end.send_frame(&[n]).unwrap();
    }
    assert!(set.rx().is_empty());
    assert_eq!(set.port.overflowed().load(Ordering::Relaxed), 20);
    assert_eq!(set.tx(0..30), 10);
    assert_eq!(set.tx(0..30), 0);
    set.at(5);
    assert_eq!(set.rx(), (0..10).collect::<Vec<_>>());
    assert_eq!(set.end.pending(), 10);
    assert_eq!(set.pool.outstanding(), (0, 0));
}

#[test]
fn frames_that_the_port_refuses_wait() {
    let mut set = set(100, 2);
    assert_eq!(set.tx(0..5), 5);
    set.at(2);
    set.rx();
    assert_eq!(set.end.pending(), 2);
    for n in 0..5 {
        assert_eq!(set.end.recv_frame().unwrap(), [n]);
        set.rx();
    }
    assert!(set.port.arm());
}

#[test]
fn frames_in_flight_arrive_after_the_peer_was_dropped() {
    let mut set = set(100, 100);
    set.end.send_frame(&[1]).unwrap();
    assert!(set.rx().is_empty());
    drop(std::mem::replace(&mut set.end, pair("other", 1, Offloads::ALL).1));
    assert!(set.rx().is_empty());
    set.at(5);
    assert_eq!(set.rx(), [1]);
    let error = set.port.rx(&mut set.pool, &mut set.batch).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
}
