//! Sends records to Elasticsearch, or to any server with its bulk API (`POST /_bulk`).
//!
//! ```text
//! node's thread -> bounded queue -> receive: documents -> spool (memory, then files) -> send: one bulk at a time
//! ```
//!
//! * **Every document arrives once.** It is created under a unique name, so that a bulk that is sent again after a lost
//!   answer changes nothing.
//! * **Back-pressure.** 413 halves the bulk. After 429, 502, 503, 504 or a failed connection, the bulk waits, longer
//!   each time, with jitter, or as long as `Retry-After` says. An answer may refuse single documents: documents for
//!   which the server had no capacity are sent again; documents that do not match its mapping are lost and counted.
//! * **Limits.** Documents that cannot be sent wait in memory, then in files, each up to a number of bytes. Beyond
//!   these limits, the oldest documents are removed and counted.
//!
//! Invariant: made + recovered from files = delivered + lost + waiting.

mod answer;
mod connection;
mod counts;
mod endpoint;
mod options;
mod send;
mod spool;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

pub use counts::{DeliveryCounts, Lost};
pub use endpoint::{Credentials, Endpoint, EndpointError};
pub use options::ElasticsearchOptions;

use super::record::Record;
use counts::Counts;

/// Maximum number of records that wait for the thread; further ones are lost and counted.
const QUEUE: usize = 16_384;

/// Sends records to Elasticsearch on a thread of its own. The caller never waits.
pub struct Elasticsearch {
    records: Option<mpsc::Sender<Arc<Record>>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Elasticsearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elasticsearch").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Elasticsearch {
    /// Starts the thread. `on_thread_start` is called on it first, to drop privileges. `report` is called on it with
    /// messages for the operator: the server is unreachable, it is reachable again, it refuses documents.
    ///
    /// The server need not be reachable yet.
    ///
    /// # Errors
    /// The folder of the spool cannot be used; the thread cannot be started.
    pub fn start(
        options: ElasticsearchOptions,
        on_thread_start: impl FnOnce() + Send + 'static,
        report: impl FnMut(&str) + Send + 'static,
    ) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let spool = spool::Spool::open(&options, Arc::clone(&counts))?;
        let connector = connection::Connector::new(&options)?;
        let (sender, records) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("podswitch-es".into()).spawn({
            let counts = Arc::clone(&counts);
            move || {
                on_thread_start();
                send::run(&runtime, options, connector, spool, records, counts, Box::new(report));
            }
        })?;
        Ok(Self { records: Some(sender), counts, thread: Some(thread) })
    }

    /// Passes a record to the output.
    pub fn write(&self, record: &Arc<Record>) {
        self.counts.add_made(1);
        let sent = self.records.as_ref().is_some_and(|r| r.try_send(Arc::clone(record)).is_ok());
        if !sent {
            self.counts.add_lost(Lost::Queue, 1);
        }
    }

    /// The counts of the records so far.
    pub fn counts(&self) -> DeliveryCounts {
        self.counts.read()
    }

    /// Ends as dropping does, and returns the final counts.
    pub fn finish(mut self) -> DeliveryCounts {
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

impl Drop for Elasticsearch {
    /// Sends waiting documents for up to [`linger`](ElasticsearchOptions::linger). Remaining documents are stored in
    /// files for the next run, or are lost.
    fn drop(&mut self) {
        self.end();
    }
}
