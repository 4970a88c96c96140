//! Streams of numbered datagrams, of which none may be lost.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podswitch_linux::NetNs;

/// Pause between two datagrams: hundreds a second.
pub const FAST: Duration = Duration::from_millis(2);
/// Most datagrams on their way, so that no queue is full on a machine that is busy: a socket's receive buffer has room
/// for some 270.
const MOST: u32 = 100;
/// How long the sender waits for one of them. Then it was lost.
const PATIENCE: u32 = 20_000;

/// Numbered datagrams that a pod sends all the time, and those that arrived.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<Vec<u32>>,
}

impl Stream {
    pub fn start(from: &NetNs, to: &NetNs, destination: &str, port: u16, pause: Duration) -> Self {
        let receiver = to.enter(|| UdpSocket::bind(("::", port))).unwrap().expect("bound");
        receiver.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
        let bind = if destination.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let sender = from.enter(|| UdpSocket::bind(bind)).unwrap().expect("bound");
        sender.connect(destination).expect("a route");
        let stop = Arc::new(AtomicBool::new(false));
        let (sends, receives) = (Arc::clone(&stop), Arc::clone(&stop));
        let arrived = Arc::new(AtomicU32::new(0));
        let seen_by_sender = Arc::clone(&arrived);
        Self {
            stop,
            sender: thread::spawn(move || {
                let (mut number, mut waited) = (0u32, 0);
                while !sends.load(Relaxed) {
                    if number.saturating_sub(seen_by_sender.load(Relaxed)) >= MOST
                        && waited < PATIENCE
                    {
                        waited += 1;
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    if sender.send(&number.to_be_bytes()).is_ok() {
                        number += 1;
                    }
                    thread::sleep(pause);
                }
                number
            }),
            receiver: thread::spawn(move || {
                let mut seen = Vec::new();
                let mut buffer = [0; 4];
                loop {
                    match receiver.recv(&mut buffer) {
                        Ok(_) => {
                            seen.push(u32::from_be_bytes(buffer));
                            arrived.store(seen.len() as u32, Relaxed);
                        }
                        // All that were sent have arrived by now, or never will.
                        Err(_) if receives.load(Relaxed) => return seen,
                        Err(_) => {}
                    }
                }
            }),
        }
    }

    /// None was lost, and none came twice.
    #[track_caller]
    pub fn is_complete(self, what: &str) {
        self.stop.store(true, Relaxed);
        let sent = self.sender.join().expect("sent");
        let mut seen = self.receiver.join().expect("received");
        seen.sort_unstable();
        let lost: Vec<u32> = (0..sent).filter(|n| seen.binary_search(n).is_err()).collect();
        assert!(lost.is_empty(), "{what}: {} of {sent} lost: {lost:?}", lost.len());
        assert_eq!(seen.len(), sent as usize, "{what}: some came twice");
    }
}
