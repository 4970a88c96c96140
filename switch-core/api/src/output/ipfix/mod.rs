//! Sends records to an IPFIX collector (RFC 7011), in UDP datagrams that fit any path.
//!
//! A connection is a biflow (RFC 5103): it is exported when it ends, with the counts of both directions. If updates are
//! made ([`FlowChange::Updated`]), a continuing connection is exported with the counts since the last time. The counts
//! of all records of a connection add up to its own. Templates are sent at the start and every minute, since datagrams
//! may be lost.

mod encode;
mod message;
mod template;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

#[cfg(doc)]
use podswitch_node::FlowChange;

use super::record::Record;
use encode::Encoder;
use message::Messages;

/// Maximum number of records that wait for the thread; further ones are lost and counted.
const QUEUE: usize = 16_384;
/// How long a message that is not full waits.
const FLUSH: Duration = Duration::from_secs(1);
/// How often templates are sent again.
const TEMPLATES: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Counts {
    made: AtomicU64,
    sent: AtomicU64,
    without_export: AtomicU64,
    lost_queue: AtomicU64,
    lost_send: AtomicU64,
}

/// Counts of the records so far, by result. `made = sent + without_export + lost_queue + lost_send`, plus those in the
/// queue while the output runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IpfixCounts {
    /// Passed to the output.
    pub made: u64,
    /// Sent, as data records.
    pub sent: u64,
    /// Openings of connections, and other records that have no IPFIX form.
    pub without_export: u64,
    /// Lost because the output's thread was too slow.
    pub lost_queue: u64,
    /// Lost because the system could not send them.
    pub lost_send: u64,
}

/// Sends records to a collector on a thread of its own. The caller never waits.
pub struct Ipfix {
    records: Option<SyncSender<Arc<Record>>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Ipfix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ipfix").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Ipfix {
    /// Sends to `collector` (`HOST:PORT`), for the node called `node`. `on_thread_start` is called on the thread first,
    /// to drop privileges; `report` with messages for the operator.
    ///
    /// # Errors
    /// The name cannot be resolved; a socket cannot be opened; the thread cannot be started.
    pub fn start(
        collector: &str,
        node: &str,
        on_thread_start: impl FnOnce() + Send + 'static,
        report: impl FnMut(&str) + Send + 'static,
    ) -> io::Result<Self> {
        let mut found = collector.to_socket_addrs()?;
        let address = found.next().ok_or(io::ErrorKind::NotFound)?;
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        socket.set_write_timeout(Some(FLUSH))?;
        let counts = Arc::new(Counts::default());
        let (sender, records) = sync_channel(QUEUE);
        let messages = Messages::new(domain(node));
        let thread = std::thread::Builder::new().name("podswitch-ipfix".into()).spawn({
            let counts = Arc::clone(&counts);
            let name = collector.to_owned();
            move || {
                on_thread_start();
                let report = Box::new(report);
                Exporter { socket, messages, counts, name, report, has_problem: false }
                    .run(&records);
            }
        })?;
        Ok(Self { records: Some(sender), counts, thread: Some(thread) })
    }

    /// Passes a record to the output.
    pub fn write(&self, record: &Arc<Record>) {
        self.counts.made.fetch_add(1, Relaxed);
        let sent = self.records.as_ref().is_some_and(|r| r.try_send(Arc::clone(record)).is_ok());
        if !sent {
            self.counts.lost_queue.fetch_add(1, Relaxed);
        }
    }

    /// The counts of the records so far.
    pub fn counts(&self) -> IpfixCounts {
        let Counts { made, sent, without_export, lost_queue, lost_send } = &*self.counts;
        IpfixCounts {
            made: made.load(Relaxed),
            sent: sent.load(Relaxed),
            without_export: without_export.load(Relaxed),
            lost_queue: lost_queue.load(Relaxed),
            lost_send: lost_send.load(Relaxed),
        }
    }

    /// Sends the waiting records, ends, and returns the final counts.
    pub fn finish(mut self) -> IpfixCounts {
        self.end();
        self.counts()
    }

    fn end(&mut self) {
        self.records = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the panic has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Ipfix {
    /// Waits until everything is sent.
    fn drop(&mut self) {
        self.end();
    }
}

/// The observation domain of a node (RFC 7011 §3.1). It distinguishes nodes whose messages reach the collector from one
/// address. FNV-1a of the node's name.
fn domain(node: &str) -> u32 {
    node.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The thread.
struct Exporter {
    socket: UdpSocket,
    messages: Messages,
    counts: Arc<Counts>,
    name: String,
    report: Box<dyn FnMut(&str) + Send>,
    has_problem: bool,
}

impl Exporter {
    fn run(&mut self, records: &Receiver<Arc<Record>>) {
        let mut encoder = Encoder::default();
        let mut templates_at = clock();
        let mut flush_at = templates_at + FLUSH;
        loop {
            let now = clock();
            if now >= templates_at {
                templates_at = now + TEMPLATES;
                let message = self.messages.templates(wall());
                self.send(&message, 0);
            }
            if now >= flush_at {
                flush_at = now + FLUSH;
                self.flush();
            }
            match records.recv_timeout(flush_at.min(templates_at).saturating_duration_since(now)) {
                Ok(record) => match encoder.encode(&record) {
                    Some((template, data)) => {
                        if let Some((message, records)) = self.messages.add(template, &data, wall())
                        {
                            self.send(&message, records);
                        }
                    }
                    None => {
                        self.counts.without_export.fetch_add(1, Relaxed);
                    }
                },
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
        }
    }

    fn flush(&mut self) {
        for (message, records) in self.messages.flush(wall()) {
            self.send(&message, records);
        }
    }

    fn send(&mut self, message: &[u8], records: u64) {
        // An error may belong to the previous message: a closed port is known only after the ICMP error has arrived.
        let sent = self.socket.send(message).or_else(|first| {
            self.problem(&first);
            self.socket.send(message)
        });
        let count = match sent {
            Ok(_) => &self.counts.sent,
            Err(_) => &self.counts.lost_send,
        };
        count.fetch_add(records, Relaxed);
    }

    /// Reports a problem if it differs from the last one.
    fn problem(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_problem, true) {
            (self.report)(&format!(
                "the IPFIX collector {}: {error}; records may be lost",
                self.name
            ));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "intervals of a thread far from any packet")]
fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "messages have the time of day")]
fn wall() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests;
