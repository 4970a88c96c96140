//! Sends a request to an endpoint of its route.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::body::{Progress, RequestBody};
use super::local::{Local, LocalExecutor};
use super::metrics::Reason;
use super::pool::{Key, MOST_STREAMS, Slot};
use super::response::GiveBack;
use crate::routes::Route;
use crate::settings::Protocol;

/// Endpoints that are tried before a request fails.
const MOST_ENDPOINTS: usize = 3;

/// How long a kept connection may take to be ready.
const READY: Duration = Duration::from_secs(1);

/// A request that was sent more often than this fails.
const MOST_SENDS: usize = 8;

/// A response, and where it came from.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) endpoint: SocketAddr,
    pub(super) give_back: Option<GiveBack>,
}

/// Why there is none.
pub(super) struct Failed {
    pub(super) reason: Reason,
    pub(super) endpoint: Option<SocketAddr>,
}

/// Sends a request; its target and header fields are those for the endpoint. `first`: the number
/// of the endpoint to try first.
pub(super) async fn forward(
    local: &Rc<Local>,
    route: &Arc<Route>,
    first: usize,
    request: Request<RequestBody>,
) -> Result<Answer, Failed> {
    let endpoints = &route.backend.endpoints;
    let protocol = route.settings.protocol;
    let mut request = Some(request);
    let mut tried = 0;
    let mut failure = Failed { reason: Reason::NoEndpoints, endpoint: None };
    for _ in 0..MOST_SENDS {
        if tried == MOST_ENDPOINTS.min(endpoints.len()) {
            break;
        }
        let Some(sent) = request.take() else { break };
        let endpoint = endpoints[(first + tried) % endpoints.len()];
        let key = Key { endpoint, protocol };
        let outcome = match protocol {
            Protocol::Http | Protocol::Https => one(local, key, route, sent).await,
            Protocol::Grpc | Protocol::Grpcs => stream(local, key, route, sent).await,
        };
        match outcome {
            Ok((response, give_back)) => {
                return Ok(Answer { response, endpoint, give_back: Some(give_back) });
            }
            Err(Retry { reason, request: again, other }) => {
                failure = Failed { reason, endpoint: Some(endpoint) };
                request = again.map(|again| *again);
                tried += usize::from(other);
                if request.is_some() {
                    local.shared.metrics.retries.add(1);
                }
            }
        }
    }
    Err(failure)
}

/// A request that failed.
struct Retry {
    reason: Reason,
    /// The request, if it can be sent again.
    request: Option<Box<Request<RequestBody>>>,
    /// Whether another endpoint should get it.
    other: bool,
}

type Sent = Result<(Response<Incoming>, GiveBack), Retry>;

/// HTTP/1.1: a connection of its own for the time of the request.
async fn one(
    local: &Rc<Local>,
    key: Key,
    route: &Arc<Route>,
    request: Request<RequestBody>,
) -> Sent {
    let settings = &route.settings;
    let kept = kept(local, key).await;
    let is_kept = kept.is_some();
    let mut sender = match kept {
        Some(sender) => sender,
        None => match connect_one(local, key, settings.connect_timeout).await {
            Ok(sender) => sender,
            Err(reason) => {
                return Err(Retry { reason, request: Some(Box::new(request)), other: true });
            }
        },
    };
    let progress = request.body().progress().clone();
    // A kept connection may end at any time. What changes nothing can be sent again.
    let again = (is_kept && can_repeat(&request)).then(|| repeat(&request, &progress));
    let sending = sender.try_send_request(request);
    match within(settings.read_timeout, &progress, sending).await {
        Some(Ok(response)) => {
            let local = local.clone();
            Ok((response, GiveBack::Connection { local, key, sender, progress }))
        }
        Some(Err(mut error)) => {
            if let Some(request) = error.take_message() {
                let request = Some(Box::new(request));
                return Err(Retry { reason: Reason::Endpoint, request, other: !is_kept });
            }
            let fault = progress.fault.get();
            let request = again.filter(|_| fault.is_none()).map(Box::new);
            let reason = fault.unwrap_or(Reason::Endpoint);
            Err(Retry { reason, request, other: false })
        }
        None => Err(Retry { reason: Reason::EndpointTimeout, request: None, other: false }),
    }
}

/// HTTP/2: a stream of a connection that requests of the worker share.
async fn stream(
    local: &Rc<Local>,
    key: Key,
    route: &Arc<Route>,
    request: Request<RequestBody>,
) -> Sent {
    let settings = &route.settings;
    let kept = local.pool.stream(key);
    let is_kept = kept.is_some();
    let (mut sender, slot) = match kept {
        Some(shared) => shared,
        None => match connect_shared(local, key, settings.connect_timeout).await {
            Ok(shared) => shared,
            Err(reason) => {
                return Err(Retry { reason, request: Some(Box::new(request)), other: true });
            }
        },
    };
    let progress = request.body().progress().clone();
    let sending = sender.try_send_request(request);
    match within(settings.read_timeout, &progress, sending).await {
        Some(Ok(response)) => Ok((response, GiveBack::Stream(slot))),
        Some(Err(mut error)) => {
            let request = error.take_message().map(Box::new);
            let reason = progress.fault.get().unwrap_or(Reason::Endpoint);
            Err(Retry { reason, request, other: !is_kept })
        }
        None => Err(Retry { reason: Reason::EndpointTimeout, request: None, other: false }),
    }
}

/// The result, unless there is none for `pause` after the last progress of the request's body.
async fn within<T>(pause: Duration, progress: &Progress, it: impl Future<Output = T>) -> Option<T> {
    let mut it = std::pin::pin!(it);
    loop {
        let before = (progress.bytes.get(), progress.done.get());
        match timeout(pause, &mut it).await {
            Ok(result) => return Some(result),
            Err(_) if before == (progress.bytes.get(), progress.done.get()) => return None,
            Err(_) => {}
        }
    }
}

/// RFC 9110 section 9.2.1, and without a body.
fn can_repeat(request: &Request<RequestBody>) -> bool {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    is_safe && http_body::Body::is_end_stream(request.body())
}

fn repeat(request: &Request<RequestBody>, progress: &Rc<Progress>) -> Request<RequestBody> {
    let (mut parts, ()) = Request::new(()).into_parts();
    let Parts { method, uri, version, headers, .. } = &mut parts;
    *method = request.method().clone();
    *uri = request.uri().clone();
    *version = request.version();
    *headers = request.headers().clone();
    Request::from_parts(parts, RequestBody::empty(progress.clone()))
}

/// A connection that was kept and can be used.
async fn kept(local: &Rc<Local>, key: Key) -> Option<http1::SendRequest<RequestBody>> {
    while let Some(mut sender) = local.pool.take(key) {
        // At once, but for a connection whose end is not known yet.
        if matches!(timeout(READY, sender.ready()).await, Ok(Ok(()))) {
            local.shared.metrics.endpoint_reused.add(1);
            return Some(sender);
        }
    }
    None
}

async fn connect_one(
    local: &Rc<Local>,
    key: Key,
    within: Duration,
) -> Result<http1::SendRequest<RequestBody>, Reason> {
    let connecting = async {
        let stream = connect(local, key.endpoint).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(256 << 10);
        if key.protocol == Protocol::Http {
            let (sender, connection) =
                builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reason::Endpoint)?;
            spawn_local(connection.with_upgrades());
            return Ok(sender);
        }
        let stream = secure(local, key.endpoint, stream, false).await?;
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reason::Endpoint)?;
        spawn_local(connection.with_upgrades());
        Ok(sender)
    };
    timeout(within, connecting).await.unwrap_or(Err(Reason::EndpointTimeout))
}

/// How much of a response an endpoint may send before the client takes it (RFC 9113 section 6.9.1), in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
/// All clients of a worker share connections to an endpoint. More responses than a connection has streams have room in it:
/// those that no client takes leave room for others.
const FULL_STREAMS: u32 = 2 * MOST_STREAMS as u32;

async fn connect_shared(
    local: &Rc<Local>,
    key: Key,
    within: Duration,
) -> Result<(http2::SendRequest<RequestBody>, Slot), Reason> {
    let connecting = async {
        let stream = connect(local, key.endpoint).await?;
        let mut builder = http2::Builder::new(LocalExecutor);
        builder.timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
        builder.initial_stream_window_size(STREAM_WINDOW);
        builder.initial_connection_window_size(STREAM_WINDOW * FULL_STREAMS);
        let sender = if key.protocol == Protocol::Grpc {
            let (sender, connection) =
                builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reason::Endpoint)?;
            spawn_local(connection);
            sender
        } else {
            let stream = secure(local, key.endpoint, stream, true).await?;
            let (sender, connection) =
                builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reason::Endpoint)?;
            spawn_local(connection);
            sender
        };
        let slot = local.pool.share(key, sender.clone());
        Ok((sender, slot))
    };
    timeout(within, connecting).await.unwrap_or(Err(Reason::EndpointTimeout))
}

async fn connect(local: &Rc<Local>, endpoint: SocketAddr) -> Result<TcpStream, Reason> {
    let stream = TcpStream::connect(endpoint).await.map_err(|_| Reason::Connect)?;
    local.shared.metrics.endpoint_connections.add(1);
    _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn secure(
    local: &Rc<Local>,
    endpoint: SocketAddr,
    stream: TcpStream,
    is_http2: bool,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Reason> {
    let connector = TlsConnector::from(local.shared.endpoint_tls[usize::from(is_http2)].clone());
    let name = ServerName::IpAddress(endpoint.ip().into());
    connector.connect(name, stream).await.map_err(|_| Reason::Endpoint)
}
