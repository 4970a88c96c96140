//! UDP packets in frames of 60 bytes, as fast as a packet socket in the client's pod sends them:
//! millions a second that the server's stack delivers to UDP.
//!
//! The path limits the rate. The frames are built beforehand and sent 64 per call, past the
//! client's own stack. Nobody reads the server's socket; its stack counts the packets. A reader
//! would take processor time from the path and be slower than most paths: the load `datagrams` has
//! one.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use etherparse::PacketBuilder;
use podswitch_core::packet::{Batch, Pool, PoolConfig};
use podswitch_core::port::{Device, Port};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice, Receive};

use super::{Sample, Stop, StopOnDrop, TIMEOUT, count_for};
use crate::Outcome;
use crate::paths::services::Protocol;
use crate::paths::{Family, Path, Pod};

/// Number of flows, by source port: enough that each of several queues gets some.
const FLOWS: u16 = 64;
/// 14 bytes of Ethernet, 20 of IPv4, 8 of UDP.
const PAYLOAD: [u8; 18] = [0x5a; 18];

pub(super) fn run(path: &Path, time: Duration) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Udp, Family::V4);
    let server = path.server.open(|| UdpSocket::bind(ends.listen))?;
    let target = ends.target(server.local_addr().map_err(|e| e.to_string())?, 0);
    let frames: Vec<Vec<u8>> =
        (0..FLOWS).map(|flow| frame(path, 20_000 + flow, target)).collect::<Outcome<_>>()?;
    let receive = Receive::Messages;
    let config = PacketConfig { receive, promiscuous: false, ..PacketConfig::default() };
    let mut device =
        PacketDevice::new(&path.client.namespace, "eth0", config).map_err(|e| e.to_string())?;
    let mut sender = device.open(0, 1).map_err(|e| e.to_string())?;
    let stop = Stop::default();
    thread::scope(|scope| {
        let _end = StopOnDrop(&stop);
        let send = || send(&mut *sender, &frames, &stop);
        let sender = thread::Builder::new()
            .name("sender".into())
            .spawn_scoped(scope, send)
            .map_err(|e| e.to_string())?;
        arrives(&server)?;
        let (count, usage) = count_for(time, || delivered(&path.server))?;
        stop.set();
        sender.join().map_err(|_| "the sender panicked")??;
        let values = vec![count as f64 / usage.wall.as_secs_f64() / 1e6];
        Ok(Sample { values, work: count as f64, usage })
    })
}

fn frame(path: &Path, from: u16, to: SocketAddr) -> Outcome<Vec<u8>> {
    let SocketAddr::V4(to) = to else { return Err(format!("{to} is not an IPv4 address")) };
    let client = &path.client;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(client.mac.0, client.next_hop.0)
        .ipv4(client.v4.octets(), to.ip().octets(), 64)
        .udp(from, to.port())
        .write(&mut frame, &PAYLOAD)
        .expect("a vector takes it");
    Ok(frame)
}

fn send(port: &mut dyn Port, frames: &[Vec<u8>], stop: &Stop) -> Outcome<()> {
    let (mut pool, mut batch) = (Pool::new(PoolConfig::default()), Batch::new());
    let mut next = frames.iter().cycle();
    while !stop.is_set() {
        while !batch.is_full() {
            let frame = next.next().expect("there are some");
            let mut packet = pool.alloc_for(frame.len()).ok_or("no buffer")?;
            packet.fill(frame);
            batch.push(packet);
        }
        if port.tx(&mut pool, &mut batch).map_err(|e| format!("send: {e}"))? == 0 {
            // The interface's queue is full.
            thread::yield_now();
        }
    }
    Ok(())
}

/// Checks that the server's socket receives the frames.
fn arrives(server: &UdpSocket) -> Outcome<()> {
    server.set_read_timeout(Some(TIMEOUT)).map_err(|e| e.to_string())?;
    let mut buffer = [0; 64];
    match server.recv(&mut buffer) {
        Ok(count) if buffer[..count] == PAYLOAD => Ok(()),
        Ok(count) => Err(format!("{count} bytes arrived, but not those that were sent")),
        Err(error) => Err(format!("nothing arrived: {error}")),
    }
}

/// IPv4 packets that the pod's stack has delivered to UDP and other protocols so far (RFC 4293,
/// ipSystemStatsInDelivers). Nearly all of them are the sent frames.
fn delivered(pod: &Pod) -> Outcome<u64> {
    let text = pod.open(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    names
        .split(' ')
        .zip(values.split(' '))
        .find_map(|(name, value)| (name == "InDelivers").then(|| value.parse().ok()).flatten())
        .ok_or_else(|| "the kernel does not report the number of delivered packets".to_owned())
}
