//! Follows the objects of one kind: a list, then a watch from the version of the list, without end.
//! An interrupted watch continues at its last version; a new list is needed only if the API server
//! no longer knows that version (410). Runs on the API thread.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use kube::client::Body;
use podswitch_kubernetes::{Kind, Object};
use podswitch_node::Meters;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::error::RequestError;
use crate::feed::{BATCH, Feed, Message, PodScope};
use crate::servers::Servers;
use crate::split::ListSplitter;

/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));
/// How long the API server should keep a watch open. A random part is added, so that nodes do not
/// reconnect at the same time.
const WATCH_SECONDS: u64 = 290;
/// How long a watch may be silent. The API server sends a bookmark about every minute.
const WATCH_SILENCE: Duration = Duration::from_secs(100);
/// How long a list may stall.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// Page size of a list that does not come from the API server's cache.
const PAGE: u32 = 500;
/// How often to check for a kind that the cluster does not serve.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(60);
/// Longest line of a watch, in bytes.
const MAX_LINE: usize = 8 << 20;

/// Why following a version ended.
enum End {
    /// The API server no longer knows the version.
    Gone,
    /// The kind is no longer served.
    NotServed,
    /// The scope of pods changed.
    ScopeChanged,
    /// The source is gone.
    Closed,
    Failed(RequestError),
}

impl From<RequestError> for End {
    fn from(error: RequestError) -> Self {
        match error.code() {
            Some(410) => Self::Gone,
            Some(404) => Self::NotServed,
            _ => Self::Failed(error),
        }
    }
}

/// Follows one kind.
pub(crate) struct Follower {
    pub(crate) kind: Kind,
    pub(crate) servers: std::sync::Arc<Servers>,
    pub(crate) feed: Feed,
    pub(crate) node: String,
    /// Which pods to follow; `None`: none yet.
    pub(crate) scope: watch::Receiver<Option<PodScope>>,
    pub(crate) meters: Meters,
}

impl Follower {
    /// Whether a cluster may lack this kind.
    fn is_optional(&self) -> bool {
        matches!(self.kind, Kind::ClusterNetworkPolicy | Kind::ServiceCidr)
    }

    /// Follows the kind until the source is gone.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut version = self.kind.versions()[0];
        let mut last_version = None;
        loop {
            if self.is_optional() {
                match self.discover().await {
                    Ok(Some(found)) => version = found,
                    Ok(None) => {
                        self.feed.shared.recovered();
                        if !self.none_there().await {
                            return;
                        }
                        sleep(DISCOVERY_PAUSE).await;
                        continue;
                    }
                    Err(error) => {
                        self.pause(&mut backoff, &error).await;
                        continue;
                    }
                }
            }
            let scope = self.wait_for_scope().await;
            let Some(scope) = scope else { return };
            match self.list_and_watch(version, scope, &mut last_version, &mut backoff).await {
                End::Closed => return,
                // A server whose cache lags may not know a version that another server returned.
                End::Gone => {
                    let kind = self.kind.plural();
                    tracing::info!(target: "kubernetes", kind, "the watched version is gone (410): listing again");
                    self.meters.watch_restarted(kind);
                    last_version = Some(String::new());
                    sleep(backoff.next()).await;
                }
                End::ScopeChanged => {}
                End::NotServed if self.is_optional() => {}
                End::NotServed => {
                    let reason = format!("the API server has no {}", self.kind.plural());
                    self.pause(&mut backoff, &RequestError::Protocol(reason)).await;
                }
                End::Failed(error) => self.pause(&mut backoff, &error).await,
            }
        }
    }

    async fn wait_for_scope(&mut self) -> Option<PodScope> {
        if self.kind != Kind::Pod {
            return Some(PodScope::Cluster);
        }
        let scope = self.scope.wait_for(Option::is_some).await.ok()?;
        *scope
    }

    async fn pause(&self, backoff: &mut Backoff, error: &RequestError) {
        self.meters.watch_restarted(self.kind.plural());
        // If no server can be reached, the reason is the same for every kind.
        self.feed.shared.failed(match error {
            RequestError::Away(reason) => reason.clone(),
            error => format!("{}: {error}", self.kind.plural()),
        });
        let asked = match error {
            RequestError::Status { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let pause = backoff.next().max(asked.min(PAUSES.1));
        let (kind, pause_ms) = (self.kind.plural(), pause.as_millis() as u64);
        tracing::info!(target: "kubernetes", kind, reason = %error, pause_ms, "retrying a watch or list");
        sleep(pause).await;
    }

    /// Reports that no object of this kind exists.
    async fn none_there(&self) -> bool {
        self.feed.send(Message::ListBegins(self.kind)).await
            && self.feed.send(Message::ListEnds(self.kind, PodScope::Cluster)).await
    }

    /// The version of this kind that the API server serves, if podswitch reads it.
    async fn discover(&self) -> Result<Option<&'static str>, RequestError> {
        #[derive(Deserialize)]
        struct Resources {
            resources: Vec<Resource>,
        }
        #[derive(Deserialize)]
        struct Resource {
            name: String,
        }
        for version in self.kind.versions() {
            let path = format!("/apis/{}/{version}", self.kind.group());
            let text = match self.servers.call(|| get(&path)).await {
                Ok(text) => text,
                Err(error) if error.code() == Some(404) => continue,
                Err(error) => return Err(error),
            };
            self.feed.shared.answered();
            let found: Resources = serde_json::from_slice(&text)
                .map_err(|error| RequestError::Protocol(format!("{path}: {error}")))?;
            if found.resources.iter().any(|resource| resource.name == self.kind.plural()) {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    fn path(&self, version: &str) -> String {
        match self.kind.group() {
            "" => format!("/api/{version}/{}", self.kind.plural()),
            group => format!("/apis/{group}/{version}/{}", self.kind.plural()),
        }
    }

    fn selector(&self, scope: PodScope) -> String {
        match (self.kind, scope) {
            (Kind::Pod, PodScope::Node) => {
                format!("&fieldSelector=spec.nodeName%3D{}", escape(&self.node))
            }
            _ => String::new(),
        }
    }

    /// Lists, then watches. `last_version`: the last version seen; a new list must not be older. If
    /// empty, the list bypasses the cache.
    async fn list_and_watch(
        &mut self,
        version: &str,
        scope: PodScope,
        last_version: &mut Option<String>,
        backoff: &mut Backoff,
    ) -> End {
        let base = format!("{}?", self.path(version)) + &self.selector(scope);
        let mut seen = match self.list(&base, scope, last_version.as_deref().unwrap_or("0")).await {
            Ok(seen) => seen,
            // This server does not know the version yet. The next list is made without one.
            Err(End::Failed(error)) if matches!(error.code(), Some(400 | 500 | 504)) => {
                *last_version = Some(String::new());
                return End::Failed(error);
            }
            Err(end) => return end,
        };
        self.feed.shared.recovered();
        let kind = self.kind.plural();
        tracing::debug!(target: "kubernetes", kind, version = seen, "listed; the watch begins");
        loop {
            *last_version = Some(seen.clone());
            let began = tokio::time::Instant::now();
            let mut wanted = self.scope.clone();
            let watched = tokio::select! {
                watched = self.watch(&base, &mut seen) => watched,
                () = scope_change(&mut wanted, scope), if self.kind == Kind::Pod => {
                    return End::ScopeChanged;
                }
            };
            match watched {
                // The watch ended normally.
                Ok(()) => {
                    let (kind, version) = (self.kind.plural(), &*seen);
                    tracing::debug!(target: "kubernetes", kind, version, "a watch ended normally and continues");
                    self.feed.shared.recovered();
                    if began.elapsed() > Duration::from_secs(5) {
                        backoff.reset();
                    } else {
                        sleep(backoff.next()).await;
                    }
                }
                Err(End::Failed(error)) => {
                    if began.elapsed() > Duration::from_secs(30) {
                        backoff.reset();
                    }
                    self.pause(backoff, &error).await;
                }
                Err(end) => return end,
            }
        }
    }

    /// Lists all objects. Returns the version of the list.
    async fn list(&self, base: &str, scope: PodScope, version: &str) -> Result<String, End> {
        if !self.feed.send(Message::ListBegins(self.kind)).await {
            return Err(End::Closed);
        }
        // From the API server's cache if any version will do; in pages if the cache is bypassed.
        let first = match version {
            "" => format!("{base}&limit={PAGE}"),
            version => {
                format!("{base}&resourceVersion={version}&resourceVersionMatch=NotOlderThan")
            }
        };
        let mut url = first;
        loop {
            let meta = self.list_page(&url).await?;
            match meta.next.filter(|next| !next.is_empty()) {
                Some(next) => url = format!("{base}&limit={PAGE}&continue={}", escape(&next)),
                None => {
                    if !self.feed.send(Message::ListEnds(self.kind, scope)).await {
                        return Err(End::Closed);
                    }
                    return Ok(meta.resource_version.unwrap_or_default());
                }
            }
        }
    }

    async fn list_page(&self, url: &str) -> Result<ListMeta, End> {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMeta,
        }
        let mut body = self.servers.send(|| get(url)).await?.into_body();
        self.feed.shared.answered();
        let (mut splitter, mut batch) = (ListSplitter::new(), Batch::new(self.kind));
        while let Some(bytes) = next_bytes(&mut body, LIST_SILENCE).await? {
            self.feed.shared.answered();
            let split = splitter.feed(&bytes, &mut |item| batch.add(item));
            split.map_err(|error| RequestError::Protocol(error.to_string()))?;
            if batch.objects.len() >= BATCH && !batch.send(&self.feed).await {
                return Err(End::Closed);
            }
        }
        if !batch.send(&self.feed).await {
            return Err(End::Closed);
        }
        let rest = splitter.finish().map_err(|error| RequestError::Protocol(error.to_string()))?;
        let list: List = serde_json::from_slice(&rest)
            .map_err(|error| RequestError::Protocol(format!("not a list: {error}")))?;
        Ok(list.metadata)
    }

    /// Watches from the version `seen` on, and updates it.
    async fn watch(&self, base: &str, seen: &mut String) -> Result<(), End> {
        let seconds = WATCH_SECONDS + random() % 60;
        let url = format!(
            "{base}&watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            escape(seen)
        );
        let mut body = self.servers.send(|| get(&url)).await?.into_body();
        self.feed.shared.answered();
        self.feed.shared.recovered();
        let mut line: Vec<u8> = Vec::new();
        while let Some(bytes) = next_bytes(&mut body, WATCH_SILENCE).await? {
            self.feed.shared.answered();
            let mut batch = Batch::new(self.kind);
            let taken = self.take_bytes(&bytes, &mut line, seen, &mut batch).await;
            // Also what precedes an error: the next watch begins after it.
            if !batch.send(&self.feed).await {
                return Err(End::Closed);
            }
            taken?;
        }
        Ok(())
    }

    /// Processes the next bytes of a watch. `line`: the incomplete line before them.
    async fn take_bytes(
        &self,
        bytes: &[u8],
        line: &mut Vec<u8>,
        seen: &mut String,
        batch: &mut Batch,
    ) -> Result<(), End> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if line.len() + part.len() > MAX_LINE {
                return Err(RequestError::Protocol("a line is too long".into()).into());
            }
            line.extend_from_slice(part);
            if part.last() == Some(&b'\n') {
                self.take_line(line, seen, batch).await?;
                line.clear();
            }
        }
        Ok(())
    }

    /// Processes one event of a watch.
    async fn take_line(
        &self,
        line: &[u8],
        seen: &mut String,
        batch: &mut Batch,
    ) -> Result<(), End> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct Versioned {
            metadata: ListMeta,
        }
        #[derive(Deserialize)]
        struct Status {
            #[serde(default)]
            code: u16,
            #[serde(default)]
            message: String,
        }
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let broken = |error| RequestError::Protocol(format!("not an event of a watch: {error}"));
        let line: Line<'_> = serde_json::from_slice(line).map_err(broken)?;
        let text = line.object.get();
        if line.kind == "ERROR" {
            let Status { code, message } = serde_json::from_str(text).map_err(broken)?;
            return Err(RequestError::Status { code, message, retry_after: None }.into());
        }
        let version: Versioned = serde_json::from_str(text).map_err(broken)?;
        match line.kind {
            "ADDED" | "MODIFIED" => batch.add(text.as_bytes()),
            "DELETED" => {
                // In order with the other objects.
                if !batch.send(&self.feed).await {
                    return Err(End::Closed);
                }
                if let Ok(object) = Object::decode(self.kind, text)
                    && !self.feed.send(Message::Deleted(object.name().clone())).await
                {
                    return Err(End::Closed);
                }
            }
            _ => {}
        }
        if let Some(version) = version.metadata.resource_version.filter(|text| !text.is_empty()) {
            *seen = version;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Objects to be sent to the store.
struct Batch {
    kind: Kind,
    objects: Vec<Object>,
    unreadable: Option<String>,
}

impl Batch {
    fn new(kind: Kind) -> Self {
        Self { kind, objects: Vec::new(), unreadable: None }
    }

    fn add(&mut self, json: &[u8]) {
        let object = std::str::from_utf8(json).map_err(|error| error.to_string());
        match object.and_then(|json| Object::decode(self.kind, json).map_err(|e| e.to_string())) {
            Ok(object) => self.objects.push(object),
            Err(error) => self.unreadable = Some(error),
        }
    }

    async fn send(&mut self, feed: &Feed) -> bool {
        if let Some(reason) = self.unreadable.take()
            && !feed.send(Message::Unreadable(self.kind, reason)).await
        {
            return false;
        }
        if self.objects.is_empty() {
            return true;
        }
        feed.send(Message::Objects(self.kind, std::mem::take(&mut self.objects))).await
    }
}

/// The next bytes of a response; `None` at its end.
async fn next_bytes(body: &mut Body, silence: Duration) -> Result<Option<Bytes>, RequestError> {
    loop {
        match timeout(silence, body.frame()).await {
            Err(_) => {
                let reason = format!("silent for {} s", silence.as_secs());
                return Err(RequestError::Away(reason));
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                return Err(RequestError::Away(format!("the connection was cut off: {error}")));
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// Resolves when the scope changes to something other than `scope`.
async fn scope_change(wanted: &mut watch::Receiver<Option<PodScope>>, scope: PodScope) {
    let is_other = |wanted: &Option<PodScope>| wanted.is_some_and(|wanted| wanted != scope);
    let is_closed = wanted.wait_for(is_other).await.is_err();
    if is_closed {
        // The scope will not change any more. The task ends when the feed is closed.
        std::future::pending::<()>().await;
    }
}

/// A GET request.
pub(crate) fn get(url: &str) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = url.parse().unwrap_or_default();
    let accept = http::HeaderValue::from_static("application/json");
    request.headers_mut().insert(http::header::ACCEPT, accept);
    request
}

/// Escapes a value of a query string.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Growing pauses, half of each random, so that nodes do not all reconnect at once.
#[derive(Debug, Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = PAUSES.0.saturating_mul(1 << self.0.min(10)).min(PAUSES.1);
        self.0 = self.0.saturating_add(1);
        let half = pause / 2;
        half + half.mul_f64((random() % 1000) as f64 / 1000.0)
    }

    pub(crate) fn reset(&mut self) {
        self.0 = 0;
    }
}

/// A random number. It need not be unpredictable.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();
        assert!((PAUSES.0 / 2..=PAUSES.0).contains(&pauses[0]), "{pauses:?}");
        assert!((PAUSES.1 / 2..=PAUSES.1).contains(&pauses[11]), "{pauses:?}");
        backoff.reset();
        assert!(backoff.next() <= PAUSES.0);
    }

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(escape("a=b&c/é"), "a%3Db%26c%2F%C3%A9");
    }
}
