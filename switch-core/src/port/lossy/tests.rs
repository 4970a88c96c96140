use super::*;
use crate::packet::PoolConfig;
use crate::port::memory::{MemoryEnd, pair};
use crate::port::{Device, Offloads};

const FRAMES: u32 = 10_000;

fn pool() -> Pool {
    Pool::new(PoolConfig::default())
}

fn port(rx: Faults, tx: Faults, seed: u64) -> (Lossy<Box<dyn Port>>, MemoryEnd) {
    let (mut device, end) = pair("m0", FRAMES as usize * 2, Offloads::ALL);
    (Lossy::new(device.open(0, 1).unwrap(), rx, tx, seed), end)
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[..4].try_into().unwrap())
}

/// Sends numbered frames towards the switch and returns those that arrive.
fn received(faults: Faults, seed: u64) -> (Vec<u32>, Arc<LossyCounters>) {
    let (mut port, end) = port(faults, Faults::default(), seed);
    let (mut pool, mut batch) = (pool(), Batch::new());
    let mut numbers = Vec::new();
    for n in 0..FRAMES {
        end.send_frame(&n.to_be_bytes()).unwrap();
    }
    loop {
        let count = port.rx(&mut pool, &mut batch).unwrap();
        assert_eq!(count, batch.len());
        if count == 0 && port.arm() {
            break;
        }
        for packet in batch.drain(..) {
            numbers.push(number(packet.bytes()));
            pool.free(packet);
        }
    }
    assert_eq!(pool.outstanding(), (0, 0));
    (numbers, port.counters())
}

/// The same for frames that the switch sends.
fn sent(faults: Faults, seed: u64) -> (Vec<u32>, Arc<LossyCounters>) {
    let (mut port, end) = port(Faults::default(), faults, seed);
    let (mut pool, mut batch) = (pool(), Batch::new());
    for n in 0..FRAMES {
        let mut packet = pool.alloc_for(4).unwrap();
        packet.fill(&n.to_be_bytes());
        batch.push(packet);
        if batch.is_full() || n + 1 == FRAMES {
            let count = batch.len();
            assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), count);
            assert!(batch.is_empty());
        }
    }
    while !port.arm() {
        assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 0);
    }
    assert_eq!(pool.outstanding(), (0, 0));
    let numbers = std::iter::from_fn(|| end.recv_frame()).map(|frame| number(&frame)).collect();
    (numbers, port.counters())
}

/// Both directions must do the same with the same faults.
fn both(faults: Faults) -> [(Vec<u32>, Arc<LossyCounters>); 2] {
    [received(faults, 1), sent(faults, 2)]
}

fn near(count: u64, per_mille: u64) {
    let expected = u64::from(FRAMES) * per_mille / 1000;
    assert!(count.abs_diff(expected) < expected / 4, "{count}, expected about {expected}");
}

#[test]
fn without_faults_nothing_changes() {
    for (numbers, _) in both(Faults::default()) {
        assert!(numbers.into_iter().eq(0..FRAMES));
    }
}

#[test]
fn lost_frames_are_those_counted() {
    for (numbers, counters) in both(Faults { lose: 100, ..Faults::default() }) {
        near(counters.lost(), 100);
        assert_eq!(numbers.len() as u64 + counters.lost(), u64::from(FRAMES));
        assert!(numbers.is_sorted());
    }
    for (numbers, _) in both(Faults { lose: 1000, ..Faults::default() }) {
        assert!(numbers.is_empty());
    }
}

#[test]
fn repeated_frames_come_twice() {
    for (mut numbers, counters) in both(Faults { repeat: 50, ..Faults::default() }) {
        near(counters.repeated(), 50);
        assert_eq!(numbers.len() as u64, u64::from(FRAMES) + counters.repeated());
        numbers.dedup();
        assert!(numbers.into_iter().eq(0..FRAMES));
    }
}

#[test]
fn reordered_frames_are_overtaken_and_none_is_lost() {
    for (mut numbers, counters) in both(Faults { reorder: 200, ..Faults::default() }) {
        near(counters.reordered(), 160);
        let turned = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
        assert!(turned >= counters.reordered() - 1, "{turned} of {}", counters.reordered());
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..FRAMES));
    }
}

#[test]
fn a_frame_without_a_successor_is_not_held_forever() {
    let all = Faults { reorder: 1000, ..Faults::default() };
    let (mut port, end) = port(all, all, 1);
    let (mut pool, mut batch) = (pool(), Batch::new());
    end.send_frame(&[1]).unwrap();
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 0);
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 1);
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 1);
    assert_eq!(end.pending(), 0);
    port.rx(&mut pool, &mut batch).unwrap();
    assert_eq!(end.pending(), 0, "something may still follow in this round");
    port.rx(&mut pool, &mut batch).unwrap();
    assert_eq!(end.pending(), 1);
}

#[test]
fn corrupted_frames_differ_in_one_bit() {
    for (numbers, counters) in both(Faults { corrupt: 30, ..Faults::default() }) {
        near(counters.corrupted(), 30);
        let mut corrupted = 0;
        for (expected, got) in numbers.into_iter().enumerate() {
            let bits = (expected as u32 ^ got).count_ones();
            assert!(bits <= 1);
            corrupted += u64::from(bits);
        }
        assert_eq!(corrupted, counters.corrupted());
    }
}

#[test]
fn a_partial_checksum_is_completed_before_a_bit_is_inverted() {
    let all = Faults { corrupt: 1000, ..Faults::default() };
    let (mut port, end) = port(all, Faults::default(), 3);
    let (mut pool, mut batch) = (pool(), Batch::new());
    let mut packet = end.buffer(60);
    packet.bytes_mut().fill(0);
    packet.offload.csum_partial = true;
    (packet.offload.csum_start, packet.offload.csum_offset) = (34, 16);
    end.send(packet).unwrap();
    let mut packet = end.buffer(60);
    packet.bytes_mut().fill(0);
    packet.offload.csum_partial = true;
    packet.offload.gso_type = crate::packet::GsoType::TcpV4;
    end.send(packet).unwrap();
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 2);
    assert!(!batch[0].offload.csum_partial && !batch[0].offload.csum_valid);
    // A zero sum is stored as ffff, and the inverted bit makes it differ from that.
    let ones: u32 = batch[0].bytes().iter().map(|byte| byte.count_ones()).sum();
    assert!(ones == 15 || ones == 17, "{ones}");
    assert!(batch[1].bytes().iter().all(|byte| *byte == 0), "GSO packets are not corrupted");
    assert_eq!(port.counters().corrupted(), 1);
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let faults = Faults { lose: 50, repeat: 50, reorder: 50, corrupt: 50 };
    assert_eq!(received(faults, 7).0, received(faults, 7).0);
    assert_ne!(received(faults, 7).0, received(faults, 8).0);
    assert_eq!(sent(faults, 7).0, sent(faults, 7).0);
}

#[test]
fn a_full_port_makes_the_sender_wait() {
    let (mut device, end) = pair("m0", 10, Offloads::ALL);
    let repeat = Faults { repeat: 1000, ..Faults::default() };
    let mut port = Lossy::new(device.open(0, 1).unwrap(), Faults::default(), repeat, 1);
    let (mut pool, mut batch) = (pool(), Batch::new());
    let burst = |pool: &mut Pool, batch: &mut Batch| {
        for n in 0..8u32 {
            let mut packet = pool.alloc_for(4).unwrap();
            packet.fill(&n.to_be_bytes());
            batch.push(packet);
        }
    };
    burst(&mut pool, &mut batch);
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 8);
    burst(&mut pool, &mut batch);
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 0, "six wait already");
    assert_eq!(batch.len(), 8);
    assert!(!port.arm());
    for n in 0..10 {
        assert_eq!(number(&end.recv_frame().unwrap()), n / 2);
    }
    let mut none = Batch::new();
    port.rx(&mut pool, &mut none).unwrap();
    assert_eq!(end.pending(), 6, "received frames are sent on");
}
