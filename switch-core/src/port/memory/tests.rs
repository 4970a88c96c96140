use std::time::Duration;

use super::*;
use crate::packet::{BATCH, PoolConfig, SizeClass};

fn frame(n: usize) -> Vec<u8> {
    (0..60).map(|i| (n + i) as u8).collect()
}

fn pool() -> Pool {
    Pool::new(PoolConfig::default())
}

#[test]
fn frames_pass_both_ways_in_order() {
    let (mut device, end) = pair("m0", 100, Offloads::ALL);
    let mut port = device.open(0, 1).unwrap();
    let (mut pool, mut batch) = (pool(), Batch::new());
    for n in 0..100 {
        end.send_frame(&frame(n)).unwrap();
    }
    assert_eq!(end.send_frame(&frame(0)).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), BATCH);
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 0, "the batch is full");
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), BATCH);
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 36);
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 36);
    assert_eq!(pool.outstanding(), (0, 0));
    assert_eq!(end.pending(), 100);
    for n in 0..100 {
        assert_eq!(end.recv_frame().unwrap(), frame(n));
    }
    assert!(end.recv().is_none());
}

#[test]
fn frames_that_do_not_fit_stay_in_the_batch() {
    let (mut device, end) = pair("m0", 3, Offloads::NONE);
    let mut port = device.open(0, 1).unwrap();
    let (mut pool, mut batch) = (pool(), Batch::new());
    for n in 0..5 {
        let mut packet = pool.alloc(SizeClass::Small).unwrap();
        packet.fill(&frame(n));
        batch.push(packet);
    }
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 3);
    assert_eq!(batch[0].bytes(), frame(3));
    assert_eq!(pool.outstanding(), (2, 0));
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 0);
    assert_eq!(end.recv_frame().unwrap(), frame(0));
    assert_eq!(port.tx(&mut pool, &mut batch).unwrap(), 1);
    assert_eq!(batch.len(), 1);
}

#[test]
fn buffers_and_metadata_travel_with_the_frame() {
    let (mut device, end) = pair("m0", 8, Offloads::ALL);
    let mut port = device.open(0, 1).unwrap();
    let (mut pool, mut batch) = (pool(), Batch::new());
    let mut packet = Packet::with_capacity(Pool::LARGE);
    packet.fill(&frame(1));
    packet.offload.csum_start = 34;
    let place = packet.bytes().as_ptr();
    end.send(packet).unwrap();
    port.rx(&mut pool, &mut batch).unwrap();
    assert_eq!(pool.outstanding(), (0, 1));
    port.tx(&mut pool, &mut batch).unwrap();
    let packet = end.recv().unwrap();
    assert_eq!(packet.bytes().as_ptr(), place);
    assert_eq!(packet.offload.csum_start, 34);
    end.recycle(packet);
    let again = end.buffer(40);
    assert_eq!(again.bytes().as_ptr(), place);
    assert_eq!(again.offload.csum_start, 0);
}

#[test]
fn a_dropped_side_is_noticed() {
    let (mut device, end) = pair("m0", 8, Offloads::ALL);
    let mut port = device.open(0, 1).unwrap();
    let (mut pool, mut batch) = (pool(), Batch::new());
    end.send_frame(&frame(1)).unwrap();
    drop(end);
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 1, "frames sent before are received first");
    let gone =
        |result: io::Result<usize>| result.unwrap_err().kind() == io::ErrorKind::NotConnected;
    assert!(gone(port.tx(&mut pool, &mut batch)));
    assert_eq!(batch.len(), 1);
    assert!(gone(port.rx(&mut pool, &mut batch)));
    assert!(!port.arm());
    while !batch.is_full() {
        batch.push(Packet::from_frame(&frame(2)));
    }
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 0, "without room it cannot tell");

    let (mut device, end) = pair("m1", 8, Offloads::ALL);
    let port = device.open(0, 1).unwrap();
    drop(device);
    assert!(!end.is_closed());
    drop(port);
    assert!(end.is_closed());
    assert!(end.wait(Duration::from_secs(60)).unwrap());
    assert_eq!(end.send_frame(&frame(1)).unwrap_err().kind(), io::ErrorKind::NotConnected);
}

fn readable(port: &dyn Port) -> bool {
    let fd = port.poll_fd().unwrap();
    let mut set = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut set, Some(&rustix::event::Timespec::default())).unwrap() == 1
}

#[test]
fn the_doorbell_rings_only_for_a_sleeper() {
    let (mut device, end) = pair("m0", 8, Offloads::ALL);
    let mut port = device.open(0, 1).unwrap();
    let (mut pool, mut batch) = (pool(), Batch::new());
    end.send_frame(&frame(1)).unwrap();
    assert!(!readable(&*port), "nobody sleeps");
    assert!(!port.arm(), "there is a frame already");
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 1);
    assert!(port.arm());
    assert!(!readable(&*port));
    end.send_frame(&frame(2)).unwrap();
    assert!(readable(&*port));
    assert_eq!(port.rx(&mut pool, &mut batch).unwrap(), 1);
    assert!(!readable(&*port), "silent again");
    end.send_frame(&frame(3)).unwrap();
    assert!(!readable(&*port));
    let mut other = device.open(1, 2).unwrap();
    other.rx(&mut pool, &mut batch).unwrap();
    assert!(other.arm());
    drop(port);
    assert!(readable(&*other), "the other worker may have slept because this one polled");
}

/// A sender may ring late, for a packet that has already been received.
#[test]
fn a_late_ring_does_not_end_the_wait() {
    let (mut device, end) = pair("m0", 8, Offloads::ALL);
    let mut port = device.open(0, 1).unwrap();
    let (mut pool, mut batch) = (pool(), Batch::new());
    end.wait(Duration::ZERO).unwrap();
    end.link.from_switch.wake();
    assert!(!end.wait(Duration::from_millis(1)).unwrap(), "nothing came");
    std::thread::scope(|scope| {
        end.link.from_switch.wake();
        let waiting = scope.spawn(|| end.wait(Duration::from_secs(60)).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        batch.push(Packet::from_frame(&frame(1)));
        port.tx(&mut pool, &mut batch).unwrap();
        assert!(waiting.join().unwrap(), "gave up");
    });
}

/// Two workers and a peer that all sleep whenever they can: every frame comes back.
#[test]
fn no_frame_is_left_with_sleepers() {
    const FRAMES: usize = 20_000;
    let (mut device, end) = pair("m0", 16, Offloads::ALL);
    let stop = AtomicBool::new(false);
    let worker = |mut port: Box<dyn Port>| {
        let (mut pool, mut batch) = (pool(), Batch::new());
        while !stop.load(Ordering::Relaxed) {
            let Ok(taken) = port.rx(&mut pool, &mut batch) else { break };
            if taken == 0 && port.arm() {
                let fd = port.poll_fd().unwrap();
                lane::wait(fd, Duration::from_secs(20)).unwrap();
            }
            while !batch.is_empty() && !stop.load(Ordering::Relaxed) {
                if port.tx(&mut pool, &mut batch).unwrap() == 0 {
                    std::thread::yield_now();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        // If the test fails here, `end` is dropped, so that the workers end.
        let end = end;
        let ports = [device.open(0, 2).unwrap(), device.open(1, 2).unwrap()];
        for port in ports {
            let worker = &worker;
            scope.spawn(move || worker(port));
        }
        let (mut sent, mut received, mut sum) = (0, 0, 0);
        while received < FRAMES {
            if sent < FRAMES && end.send_frame(&(sent as u32).to_be_bytes()).is_ok() {
                sent += 1;
            } else if end.pending() == 0 {
                assert!(end.wait(Duration::from_secs(20)).unwrap(), "lost after {received}");
            }
            while let Some(packet) = end.recv() {
                sum += u32::from_be_bytes(packet.bytes().try_into().unwrap()) as usize;
                received += 1;
                end.recycle(packet);
            }
        }
        stop.store(true, Ordering::Relaxed);
        drop(end);
        assert_eq!(sum, FRAMES * (FRAMES - 1) / 2);
    });
}

/// Two workers compete for the room in a small queue: frames that do not fit keep their order.
#[test]
fn each_workers_frames_keep_their_order() {
    const FRAMES: u32 = 20_000;
    let (mut device, end) = pair("m0", 5, Offloads::ALL);
    let worker = |mut port: Box<dyn Port>, mark: u32| {
        let (mut pool, mut batch) = (pool(), Batch::new());
        let mut next = 0;
        while next < FRAMES || !batch.is_empty() {
            while next < FRAMES && !batch.is_full() {
                let mut packet = pool.alloc(SizeClass::Small).unwrap();
                packet.fill(&next.to_be_bytes());
                packet.mark = mark;
                batch.push(packet);
                next += 1;
            }
            if port.tx(&mut pool, &mut batch).unwrap() == 0 {
                std::thread::yield_now();
            }
        }
        assert_eq!(pool.outstanding(), (0, 0));
    };
    std::thread::scope(|scope| {
        // If the test fails here, `end` is dropped, so that the workers end.
        let end = end;
        for mark in 0..2 {
            let port = device.open(0, 2).unwrap();
            let worker = &worker;
            scope.spawn(move || worker(port, mark));
        }
        let mut next = [0, 0];
        while next != [FRAMES; 2] {
            assert!(end.wait(Duration::from_secs(20)).unwrap());
            while let Some(packet) = end.recv() {
                let expected = &mut next[packet.mark as usize];
                assert_eq!(packet.bytes(), expected.to_be_bytes());
                *expected += 1;
            }
        }
    });
}

#[test]
fn a_frame_loop_repeats_its_frames() {
    let info = PortInfo { name: "c".into(), mac: None, mtu: MTU, offloads: Offloads::NONE };
    let mut frames = FrameLoop::new(info.clone(), (0..3).map(frame));
    let (mut pool, mut batch) = (pool(), Batch::new());
    assert_eq!(frames.rx(&mut pool, &mut batch).unwrap(), BATCH);
    for (n, packet) in batch.iter().enumerate() {
        assert_eq!(packet.bytes(), frame(n % 3));
    }
    assert_eq!(frames.tx(&mut pool, &mut batch).unwrap(), BATCH);
    assert_eq!((frames.sent(), frames.sent_bytes()), (64, 64 * 60));
    assert_eq!(pool.outstanding(), (0, 0));
    frames.rx(&mut pool, &mut batch).unwrap();
    assert_eq!(batch[0].bytes(), frame(64 % 3), "continues at its position");
    let mut empty = FrameLoop::new(info, Vec::<Vec<u8>>::new());
    batch.clear();
    assert_eq!(empty.rx(&mut pool, &mut batch).unwrap(), 0);
}
