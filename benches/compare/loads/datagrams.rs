//! Datagrams of 18 bytes (frames of 60) from one UDP socket to another: millions a second that the
//! reader receives.
//!
//! The two stacks and the reader's system call for each datagram limit the rate as much as the path
//! does. The sender passes 64 datagrams to the kernel per call (`sendmmsg`).

use std::io::IoSlice;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use super::{STOP_CHECK_INTERVAL, Sample, Stop, StopOnDrop, count_for};
use crate::Outcome;
use crate::paths::services::Protocol;
use crate::paths::{Family, Path};

const PAYLOAD: [u8; 18] = [0x5a; 18];
const BURST: usize = 64;

pub(super) fn run(path: &Path, family: Family, time: Duration) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Udp, family);
    let server = path.server.open(|| UdpSocket::bind(ends.listen))?;
    let target = ends.target(server.local_addr().map_err(|e| e.to_string())?, 0);
    server.set_read_timeout(Some(STOP_CHECK_INTERVAL)).map_err(|e| e.to_string())?;
    let client = path.client.open(|| UdpSocket::bind((family.unspecified(), 0)))?;
    client.connect(target).map_err(|e| e.to_string())?;
    let (stop, received) = (Stop::default(), AtomicU64::new(0));
    thread::scope(|scope| {
        let _end = StopOnDrop(&stop);
        scope.spawn(|| receive(&server, &received, &stop));
        let sender = scope.spawn(|| send(&client, &stop));
        let (count, usage) = count_for(time, || Ok(received.load(Relaxed)))?;
        stop.set();
        sender.join().map_err(|_| "the sender panicked")??;
        let values = vec![count as f64 / usage.wall.as_secs_f64() / 1e6];
        Ok(Sample { values, work: count as f64, usage })
    })
}

fn receive(server: &UdpSocket, received: &AtomicU64, stop: &Stop) {
    let mut buffer = [0; 64];
    let mut count = 0;
    while !stop.is_set() {
        if server.recv(&mut buffer).is_ok() {
            count += 1;
            received.store(count, Relaxed);
        }
    }
}

fn send(client: &UdpSocket, stop: &Stop) -> Outcome<()> {
    let parts = [IoSlice::new(&PAYLOAD)];
    let mut control: [SendAncillaryBuffer<'_, '_, '_>; BURST] =
        std::array::from_fn(|_| SendAncillaryBuffer::default());
    let mut messages: Vec<MMsgHdr<'_>> =
        control.iter_mut().map(|control| MMsgHdr::new(&parts, control)).collect();
    while !stop.is_set() {
        match sendmmsg(client, &mut messages, SendFlags::empty()) {
            Ok(_) => {}
            // The interface's queue is full.
            Err(Errno::NOBUFS | Errno::INTR) => thread::yield_now(),
            Err(error) => return Err(format!("send: {error}")),
        }
    }
    Ok(())
}
