//! The proxy: serves HTTP by the compiled routes.
//!
//! Called by the program, from any thread. Each worker is a thread with one runtime, its own
//! listeners (`SO_REUSEPORT`) and its own pool of connections to endpoints; workers share the
//! routes, which [`Proxy::publish`] swaps at once, and counters. A request keeps the route that it
//! began with, and so does a connection that was upgraded (WebSocket).
//!
//! Everything is bounded: connections, the size and number of header fields, bodies, the time that
//! a client or an endpoint may take. What is refused is counted by reason.

mod activity;
mod affinity;
mod body;
mod canary;
mod client_stream;
mod clock;
mod connection;
mod cors;
mod counted;
mod filtered;
mod forward;
mod frames;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod headers;
mod keys;
mod listen;
mod local;
mod log;
mod metrics;
mod objects;
mod options;
mod pool;
mod proxy_protocol;
mod request;
mod response;
mod service;
mod shared;
mod state;
mod tls;
mod tunnel;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use podswitch_kubernetes::Record;
use tokio::sync::watch;

pub use log::LogWriter;
pub use options::Options;

use crate::routes::Routes;
use shared::Shared;
use state::State;
use worker::Listeners;

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    stop: watch::Sender<Option<Duration>>,
    workers: Vec<JoinHandle<()>>,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
}

impl Proxy {
    /// Opens the listeners and starts the workers, without routes: every request is answered with
    /// status 404 until [`publish`](Self::publish).
    ///
    /// # Errors
    /// An address cannot be listened at, or a thread cannot be started.
    pub fn start(options: Options, log: Option<LogWriter>) -> io::Result<Self> {
        let mut listeners = Vec::new();
        let (mut http, mut https) = (options.http, options.https);
        for _ in 0..options.workers.max(1) {
            // The first worker's port, if any port would do.
            let plain = http.map(listen::listen).transpose()?;
            let tls = https.map(listen::listen).transpose()?;
            http = plain.as_ref().map(|it| it.local_addr()).transpose()?;
            https = tls.as_ref().map(|it| it.local_addr()).transpose()?;
            listeners.push(Listeners { http: plain, https: tls });
        }
        let shared = Arc::new(Shared::new(options, log)?);
        let (stop, stopped) = watch::channel(None);
        let mut proxy = Self { shared, stop, workers: Vec::new(), http, https };
        for (number, listeners) in listeners.into_iter().enumerate() {
            let (shared, stopped) = (proxy.shared.clone(), stopped.clone());
            let thread = std::thread::Builder::new().name(format!("ingress-{number}"));
            let worker = worker::Worker::prepare(shared, listeners, stopped)?;
            let ended = Ended(proxy.shared.clone());
            proxy.workers.push(thread.spawn(move || {
                let _ended = ended;
                worker.run();
            })?);
            proxy.shared.metrics.workers.add(1);
        }
        Ok(proxy)
    }

    /// The address of plain HTTP.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The address of HTTPS.
    pub fn https(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Puts routes in force at once. Returns records about certificates that cannot be used, for
    /// whose names the default certificate is used.
    pub fn publish(&self, routes: Routes) -> Vec<Record> {
        let before = self.shared.state.load_full();
        let (state, records) = State::new(routes, &before, &self.shared.options);
        self.shared.state.store(Arc::new(state));
        self.shared.metrics.reloads.add(1);
        records
    }

    /// A reader of the proxy's metrics, for another thread.
    pub fn metrics(&self) -> MetricsReader {
        MetricsReader(self.shared.clone())
    }

    /// Stops to accept, lets requests in flight finish for at most `patience`, and ends the
    /// workers. Connections that were upgraded end when `patience` is over.
    pub fn stop(mut self, patience: Duration) {
        self.stop.send_if_modified(|stop| stop.is_none() && stop.replace(patience).is_none());
        for worker in self.workers.drain(..) {
            _ = worker.join();
        }
    }
}

/// Counts a worker that ends, even by a panic.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.metrics.ended.add(1);
    }
}

/// Reads the metrics of a proxy.
#[derive(Clone, Debug)]
pub struct MetricsReader(Arc<Shared>);

impl MetricsReader {
    /// In the Prometheus text format.
    pub fn text(&self) -> String {
        let mut text = self.0.metrics.text();
        self.0.state.load().objects.text(&mut text);
        text
    }

    /// Whether every worker runs.
    pub fn is_healthy(&self) -> bool {
        self.0.metrics.ended.get() == 0
    }
}

/// Without patience.
impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.send_if_modified(|stop| stop.is_none() && stop.replace(Duration::ZERO).is_none());
    }
}
