//! The destination of records, and options for sending them.

use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::{Credentials, Endpoint};

/// The destination of records, and options for sending them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ElasticsearchOptions {
    /// The server.
    pub endpoint: Endpoint,
    /// This node's credentials.
    pub credentials: Option<Credentials>,
    /// A PEM file with the certificates of the authorities that may have signed that of the server;
    /// `None`: those that the system trusts, or those in `SSL_CERT_FILE`. For `https` only.
    pub ca_file: Option<PathBuf>,
    /// The index or data stream; `None`: `logs-podswitch.flow-default` and `logs-podswitch.drop-default`.
    pub index: Option<String>,
    /// Maximum bytes of documents that wait in memory.
    pub memory: usize,
    /// The folder for documents that have no room in memory.
    pub spool: Option<PathBuf>,
    /// Maximum bytes of documents in that folder.
    pub spool_bytes: u64,
    /// Maximum number of documents in a bulk.
    pub bulk_documents: usize,
    /// Maximum bytes of a bulk.
    pub bulk_bytes: usize,
    /// A bulk that is not full is sent after this time.
    pub flush: Duration,
    /// The first and the maximum pause after a failure.
    pub pause: (Duration, Duration),
    /// Timeout of an answer.
    pub timeout: Duration,
    /// Maximum time for sending at the end.
    pub linger: Duration,
}

impl ElasticsearchOptions {
    /// Defaults for `endpoint`: 32 MiB in memory, no files, and bulks of up to 2,000 documents or 5 MiB every second.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            credentials: None,
            ca_file: None,
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
