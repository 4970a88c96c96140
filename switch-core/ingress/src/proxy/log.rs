//! The access log: JSON Lines, one for each request, in the field names of the Elastic Common
//! Schema like the switch's flow records.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::clock;
use super::metrics::Number;
use crate::routes::Route;

/// Lines that wait to be written; more are lost, and counted.
const QUEUE: usize = 16_384;

/// Where the access log goes: a thread of its own writes it.
#[derive(Debug)]
pub struct LogWriter {
    lines: SyncSender<String>,
    /// Lines that were not written.
    lost: Arc<Number>,
}

impl LogWriter {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        let lost = Arc::new(Number::default());
        let counted = lost.clone();
        let thread = thread::Builder::new().name("ingress-log".to_owned());
        thread.spawn(move || write(queue, out, &counted))?;
        Ok(Self { lines, lost })
    }

    /// Queues the line, or counts it as lost.
    pub(super) fn add(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.lost.add(1);
        }
    }

    /// The number of lines that were not written.
    pub(super) fn lost(&self) -> Arc<Number> {
        self.lost.clone()
    }
}

fn write(queue: Receiver<String>, mut out: Box<dyn Write + Send>, lost: &Number) {
    while let Ok(line) = queue.recv() {
        // What waits goes into one write.
        let (mut text, mut count) = (line, 1);
        text.push('\n');
        while text.len() < 1 << 16
            && let Ok(line) = queue.try_recv()
        {
            text.push_str(&line);
            text.push('\n');
            count += 1;
        }
        // Some of them may have been written: how many cannot be known.
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            lost.add(count);
        }
    }
}

/// A request, for the log.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) peer: SocketAddr,
    pub(super) client: IpAddr,
    pub(super) scheme: &'static str,
    pub(super) version: &'static str,
    pub(super) method: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) user_agent: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) route: Option<Arc<Route>>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) status: u16,
    pub(super) reason: Option<&'static str>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) duration: Duration,
}

#[derive(Serialize)]
struct Line<'e> {
    #[serde(rename = "@timestamp")]
    timestamp: String,
    #[serde(rename = "event.dataset")]
    dataset: &'static str,
    /// Nanoseconds.
    #[serde(rename = "event.duration")]
    duration: u64,
    #[serde(rename = "event.reason", skip_serializing_if = "Option::is_none")]
    reason: Option<&'e str>,
    #[serde(rename = "source.ip")]
    source: IpAddr,
    #[serde(rename = "source.port")]
    source_port: u16,
    #[serde(rename = "client.ip")]
    client: IpAddr,
    #[serde(rename = "destination.ip", skip_serializing_if = "Option::is_none")]
    destination: Option<IpAddr>,
    #[serde(rename = "destination.port", skip_serializing_if = "Option::is_none")]
    destination_port: Option<u16>,
    #[serde(rename = "http.version")]
    version: &'static str,
    #[serde(rename = "http.request.method")]
    method: &'e str,
    #[serde(rename = "http.request.id", skip_serializing_if = "Option::is_none")]
    request_id: Option<&'e str>,
    #[serde(rename = "http.request.body.bytes")]
    received: u64,
    #[serde(rename = "http.response.status_code")]
    status: u16,
    #[serde(rename = "http.response.body.bytes")]
    sent: u64,
    #[serde(rename = "url.scheme")]
    scheme: &'static str,
    #[serde(rename = "url.domain")]
    host: &'e str,
    #[serde(rename = "url.path")]
    path: &'e str,
    #[serde(rename = "url.query", skip_serializing_if = "Option::is_none")]
    query: Option<&'e str>,
    #[serde(rename = "user_agent.original", skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'e str>,
    #[serde(rename = "podswitch.ingress.object", skip_serializing_if = "Option::is_none")]
    ingress: Option<&'e str>,
    #[serde(rename = "podswitch.ingress.backend", skip_serializing_if = "Option::is_none")]
    backend: Option<&'e str>,
}

impl Entry {
    pub(super) fn line(&self) -> String {
        let line = Line {
            timestamp: clock::rfc3339(clock::now()),
            dataset: "podswitch.ingress",
            duration: u64::try_from(self.duration.as_nanos()).unwrap_or(u64::MAX),
            reason: self.reason,
            source: self.peer.ip(),
            source_port: self.peer.port(),
            client: self.client,
            destination: self.endpoint.map(|it| it.ip()),
            destination_port: self.endpoint.map(|it| it.port()),
            version: self.version,
            method: &self.method,
            request_id: self.request_id.as_deref(),
            received: self.received,
            status: self.status,
            sent: self.sent,
            scheme: self.scheme,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            user_agent: self.user_agent.as_deref(),
            ingress: self.route.as_ref().map(|route| route.ingress.as_str()),
            backend: self.route.as_ref().map(|route| &*route.backend.name),
        };
        serde_json::to_string(&line).unwrap_or_default()
    }
}
