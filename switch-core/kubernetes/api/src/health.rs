//! Probes by HTTP on loopback: `/livez` and `/healthz` while the switch's control thread goes round, whatever becomes of
//! the API server; `/readyz` once the first state is in force at every worker.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use podswitch_core::time::{Clock, Instant};
use podswitch_node::METRICS_CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// After how long without a round the control thread counts as hung: a whole state of the largest cluster takes
/// seconds.
const HUNG: Duration = Duration::from_secs(60);
/// Connections at a time.
const CONNECTIONS: usize = 32;
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(10);

/// A text that the owner of the node renews now and then, and `/metrics` answers with.
#[derive(Clone, Debug, Default)]
pub struct MetricsText(Arc<Mutex<Bytes>>);

impl MetricsText {
    /// Replaces the text.
    pub fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    fn get(&self) -> Bytes {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the probes say.
#[derive(Debug)]
pub(crate) struct Health {
    clock: Clock,
    /// The last round, in ms of `clock`.
    alive_at: AtomicU64,
    is_ready: AtomicBool,
    metrics: MetricsText,
}

impl Health {
    pub(crate) fn new(metrics: MetricsText) -> Self {
        Self {
            clock: Clock::start(),
            alive_at: AtomicU64::new(0),
            is_ready: AtomicBool::new(false),
            metrics,
        }
    }

    fn now(&self) -> u64 {
        let now = self.clock.now().since(Instant::default());
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    /// The control thread goes round.
    pub(crate) fn alive(&self) {
        self.alive_at.store(self.now(), Relaxed);
    }

    /// The first state is in force.
    pub(crate) fn ready(&self) {
        self.is_ready.store(true, Relaxed);
    }

    fn answer(&self, path: &str) -> (StatusCode, Bytes) {
        let fixed = |text: &'static str| Bytes::from_static(text.as_bytes());
        let is_alive =
            u128::from(self.now().saturating_sub(self.alive_at.load(Relaxed))) < HUNG.as_millis();
        let (good, bad) = match path {
            "/livez" | "/healthz" => (is_alive, "the control thread hangs\n"),
            "/readyz" => {
                (is_alive && self.is_ready.load(Relaxed), "the first state is not in force\n")
            }
            "/metrics" => return (StatusCode::OK, self.metrics.get()),
            _ => return (StatusCode::NOT_FOUND, fixed("not found\n")),
        };
        match good {
            true => (StatusCode::OK, fixed("ok\n")),
            false => (StatusCode::SERVICE_UNAVAILABLE, fixed(bad)),
        }
    }
}

/// Answers for good.
pub(crate) async fn serve(listener: TcpListener, health: Arc<Health>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is free; one will be.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let health = health.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let (status, text) = match *request.method() {
                    Method::GET | Method::HEAD => health.answer(request.uri().path()),
                    _ => (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"only GET\n")),
                };
                let mut response = Response::new(Full::new(text));
                let kind = HeaderValue::from_static(METRICS_CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                *response.status_mut() = status;
                std::future::ready(Ok::<_, std::convert::Infallible>(response))
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 << 10);
            // A client that fails is the client's matter.
            let _ = timeout(LIFE, http.serve_connection(TokioIo::new(stream), answer)).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_follows_the_first_state_and_alive_the_rounds() {
        let metrics = MetricsText::default();
        metrics.set("podswitch_epoch 1\n".into());
        let health = Health::new(metrics);
        health.alive();
        assert_eq!(health.answer("/livez").0, StatusCode::OK);
        assert_eq!(health.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.ready();
        for path in ["/livez", "/healthz", "/readyz"] {
            assert_eq!(health.answer(path), (StatusCode::OK, "ok\n".into()), "{path}");
        }
        assert_eq!(health.answer("/metrics"), (StatusCode::OK, "podswitch_epoch 1\n".into()));
        assert_eq!(health.answer("/").0, StatusCode::NOT_FOUND);
    }
}
