//! What the workers share.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

use super::log::LogWriter;
use super::metrics::Metrics;
use super::options::Options;
use super::state::State;
use super::tls;

/// Shared by all workers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) state: Arc<ArcSwap<State>>,
    pub(super) metrics: Metrics,
    pub(super) log: Option<LogWriter>,
    pub(super) tls: Arc<ServerConfig>,
    /// TLS to endpoints: HTTP/1.1, HTTP/2.
    pub(super) endpoint_tls: [Arc<ClientConfig>; 2],
}

impl Shared {
    pub(super) fn new(options: Options, log: Option<LogWriter>) -> io::Result<Self> {
        let state = Arc::new(ArcSwap::from_pointee(State::default()));
        let tls = tls::server(state.clone())?;
        let endpoint_tls = [tls::client(b"http/1.1")?, tls::client(b"h2")?];
        let metrics = Metrics::new(log.as_ref().map(LogWriter::lost).unwrap_or_default());
        Ok(Self { options, state, metrics, log, tls, endpoint_tls })
    }
}
