//! Where records go, and how.

use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::{Credentials, Endpoint};

/// Where records go, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ElasticsearchOptions {
    /// The server.
    pub endpoint: Endpoint,
    /// How this node identifies itself.
    pub credentials: Option<Credentials>,
    /// The index or data stream; without, `logs-podswitch.flow-default` and `logs-podswitch.drop-default`.
    pub index: Option<String>,
    /// Most bytes of documents that wait in memory.
    pub memory: usize,
    /// Where documents wait that have no room in memory.
    pub spool: Option<PathBuf>,
    /// Most bytes of documents that wait there.
    pub spool_bytes: u64,
    /// Most documents of a bulk.
    pub bulk_documents: usize,
    /// Most bytes of a bulk.
    pub bulk_bytes: usize,
    /// A bulk that is not full is sent after this time.
    pub flush: Duration,
    /// The first and the longest pause after a failure.
    pub pause: (Duration, Duration),
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long the end may take.
    pub linger: Duration,
}

impl ElasticsearchOptions {
    /// To `endpoint`, with 32 MiB in memory, no files, and bulks of 2,000 documents or 5 MiB every second.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            credentials: None,
            index: None,
            memory: 32 << 20,
            spool: None,
            spool_bytes: 1 << 30,
            bulk_documents: 2_000,
            bulk_bytes: 5 << 20,
            flush: Duration::from_secs(1),
            pause: (Duration::from_millis(250), Duration::from_secs(30)),
            timeout: Duration::from_secs(30),
            linger: Duration::from_secs(3),
        }
    }
}
