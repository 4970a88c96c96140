//! One connection of a client: PROXY protocol, TLS, HTTP.

use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::activity::{Activity, State};
use super::client_stream::ClientStream;
use super::counted::{Counted, Taken};
use super::frames::FramedStream;
use super::headers::Origin;
use super::local::{Local, LocalExecutor};
use super::metrics::Reason;
use super::{proxy_protocol, service, tls};

/// Serves a connection until it ends.
pub(super) async fn serve(
    local: Rc<Local>,
    mut stream: TcpStream,
    mut peer: SocketAddr,
    is_tls: bool,
) {
    let shared = local.shared.clone();
    let local_address = stream.local_addr();
    let port = local_address.as_ref().map_or(0, SocketAddr::port);
    let address = local_address.map_or(Ipv4Addr::UNSPECIFIED.into(), |it| it.ip().to_canonical());
    _ = stream.set_nodelay(true);
    let is_known = |peer: SocketAddr| {
        let address = peer.ip().to_canonical();
        shared.options.trusted_proxies.iter().any(|range| range.contains(address))
    };
    // Whoever connects can claim an address: that one is not enough to be believed.
    let is_sender_known = is_known(peer);
    if shared.options.proxy_protocol {
        let reading = proxy_protocol::read(&mut stream);
        match timeout(shared.options.head_timeout, reading).await {
            Ok(Ok(from)) => peer = from.unwrap_or(peer),
            _ => return shared.metrics.refused(Reason::ProxyHeader),
        }
    }
    let is_trusted = is_sender_known && is_known(peer);
    let origin = Origin { peer, address, is_tls, is_trusted, port };
    let (stream, taken) = Counted::new(stream);
    if !is_tls {
        return serve_http1(local, stream, taken, origin).await;
    }
    let accepting = TlsAcceptor::from(tls::at(&shared.tls, &shared.state, address)).accept(stream);
    let Ok(Ok(stream)) = timeout(shared.options.head_timeout, accepting).await else {
        return shared.metrics.refused(Reason::TlsHandshake);
    };
    shared.metrics.handshakes.add(1);
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        serve_http2(local, stream, taken, origin).await;
    } else {
        serve_http1(local, stream, taken, origin).await;
    }
}

async fn serve_http1<S>(local: Rc<Local>, stream: S, taken: Taken, origin: Origin)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let options = &local.shared.options;
    let mut stopped = local.stopped.clone();
    let (stream, heads) = ClientStream::http1(stream, taken, options.client_timeout);
    let requests = Cell::new(0);
    let service = service_fn(|request| {
        let local = local.clone();
        let is_ambiguous = heads.is_ambiguous(requests.replace(requests.get() + 1));
        async move { Ok::<_, Infallible>(service::serve(local, origin, request, is_ambiguous).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout)
        .max_header_size(options.max_head)
        .max_buf_size((options.max_head * 2).max(64 << 10))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        if error.is_timeout() {
            heads.set_late();
        }
        count(&local, &error);
    }
}

async fn serve_http2<S>(local: Rc<Local>, stream: S, taken: Taken, origin: Origin)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let options = &local.shared.options;
    let mut stopped = local.stopped.clone();
    let activity = Activity::new();
    let service = service_fn(|request| {
        let (local, exchange) = (local.clone(), activity.begin());
        async move {
            let response = service::serve(local, origin, request, false).await;
            Ok::<_, Infallible>(response.map(|body| exchange.follow(body)))
        }
    });
    let stream = ClientStream::http2(stream, taken.clone(), options.client_timeout);
    let stream = FramedStream::new(stream, taken, activity.clone());
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(u32::try_from(options.max_head).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(options.head_timeout))
        // The answer comes after what the client has still to read.
        .keep_alive_timeout(options.client_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let (mut is_stopped, mut is_ending) = (false, false);
    let ended = loop {
        for _ in 0..activity.release(options.client_timeout) {
            local.shared.metrics.refused(Reason::ClientStalled);
        }
        let wake = match activity.state(options.head_timeout, options.client_timeout) {
            State::Good(until) => until,
            State::Idle if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
                activity.touch();
                continue;
            }
            // The client does not end the connection: nothing of it is refused.
            State::Idle => return,
            State::Stalled => return local.shared.metrics.refused(Reason::ClientStalled),
        };
        tokio::select! {
            ended = connection.as_mut() => break ended,
            _ = stopped.changed(), if !is_stopped => {
                is_stopped = true;
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(wake) => {}
        }
    };
    if let Err(error) = ended {
        count(&local, &error);
    }
}

/// hyper has answered with status 400 or 431, or has closed the connection.
fn count(local: &Local, error: &hyper::Error) {
    let reason = if is_stalled(error) {
        Reason::ClientStalled
    } else if error.is_timeout() {
        Reason::HeadTimeout
    } else if error.is_parse_too_large() {
        Reason::HeadTooLarge
    } else if error.is_parse() {
        Reason::MalformedHead
    } else {
        return;
    };
    local.shared.metrics.refused(reason);
}

/// Whether the client took nothing for too long: see [`ClientStream`].
fn is_stalled(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref().map(io::Error::kind);
        if kind == Some(io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}
