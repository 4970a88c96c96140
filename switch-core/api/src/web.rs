//! The TCP server: probes, `/metrics` and, if enabled, the page with the read-only answers that it needs.
//!
//! There is no authentication, so the page is off by default, and if enabled it is served on loopback only, unless
//! configured otherwise. A web site that a user of this machine visits must not be able to read the page through the
//! user's browser. So the page and its answers are sent only to requests whose `Host` is an address or `localhost`, and
//! which the browser does not mark as another site's. A name that was made to resolve to this address (DNS rebinding)
//! does not pass. There are no CORS headers, and no request changes a state.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use podswitch_node::{METRICS_CONTENT_TYPE, NodeCaller, Probes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::background::Background;
use crate::drop_log::DropLog;
use crate::page;
use crate::routes::Answer;
use crate::server::{HEAD_TIMEOUT, MAX_CONNECTIONS, MAX_HEAD};
use crate::service::{Body, Served, not_get, respond, whole};

/// Maximum life of a connection: if all places are in use, probes wait at most this long.
const LIFE: Duration = Duration::from_secs(15);

/// Who may use the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageAccess {
    /// Nobody.
    #[default]
    Off,
    /// Connections to a loopback address, at whatever address the socket listens.
    Loopback,
    /// All clients that can connect.
    All,
}

/// Serves requests on a thread of its own until it is dropped.
pub struct WebServer {
    web: Arc<Web>,
    address: SocketAddr,
    socket: StdListener,
    _background: Background,
}

impl fmt::Debug for WebServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebServer").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Web {
    probes: Probes,
    page: PageAccess,
    /// Set once there is a node.
    served: OnceLock<Arc<Served>>,
}

impl WebServer {
    /// Listens and starts to answer probes. Serves everything else once there is [a node](Self::serve).
    ///
    /// # Errors
    /// The address cannot be bound, or the system refuses a thread.
    pub fn start(address: SocketAddr, probes: Probes, page: PageAccess) -> io::Result<Self> {
        Self::on(StdListener::bind(address)?, probes, page)
    }

    /// As [`start`](Self::start), on a socket that listens already.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn on(listener: StdListener, probes: Probes, page: PageAccess) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let socket = listener.try_clone()?;
        let address = listener.local_addr()?;
        let web = Arc::new(Web { probes, page, served: OnceLock::new() });
        let background = Background::start("podswitch-web", accept(listener, Arc::clone(&web)))?;
        Ok(Self { web, address, socket, _background: background })
    }

    /// Sets the node that answers from now on, and its drops.
    pub fn serve(&self, node: NodeCaller, drops: Arc<DropLog>) {
        self.web.served.get_or_init(|| Arc::new(Served::new(node, drops)));
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The socket, for a process that goes on with it.
impl AsFd for WebServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

async fn accept(listener: StdListener, web: Arc<Web>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is free; one will be freed later.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let web = Arc::clone(&web);
        tokio::spawn(async move {
            // Errors of a client are ignored.
            let _ = timeout(LIFE, connection(stream, web)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, web: Arc<Web>) {
    let is_loopback = stream.local_addr().is_ok_and(|local| is_loopback(local.ip()));
    let service = service_fn(|request| {
        let web = Arc::clone(&web);
        async move { Ok::<_, Infallible>(web.answer(request, is_loopback).await) }
    });
    // As in `accept`.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

impl Web {
    async fn answer(&self, request: Request<Incoming>, is_loopback: bool) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return whole(not_get());
        }
        let path = request.uri().path();
        let probe = |good, why: &'static str| match good {
            true => plain(StatusCode::OK, "ok\n"),
            false => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        };
        match path {
            "/livez" | "/healthz" => probe(self.probes.is_alive(), "the control thread hangs\n"),
            "/readyz" => probe(self.probes.is_ready(), "the first state is not in force\n"),
            "/metrics" => self.ask(&request).await,
            _ => match self.refuses(path, request.headers(), is_loopback) {
                Some((status, reason)) => whole(Answer::error(status, reason)),
                None => self.page(&request).await,
            },
        }
    }

    async fn ask(&self, request: &Request<Incoming>) -> Response<Body> {
        match self.served.get() {
            Some(served) => respond(request.uri(), Arc::clone(served)).await,
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "the first state is not in force\n"),
        }
    }

    /// Why a request for the page or its answers is refused.
    fn refuses(
        &self,
        path: &str,
        headers: &HeaderMap,
        is_loopback: bool,
    ) -> Option<(StatusCode, &'static str)> {
        let is_answer = path.starts_with("/v1/");
        if page::file(path).is_none() && !is_answer {
            return Some((StatusCode::NOT_FOUND, "not found"));
        }
        match self.page {
            PageAccess::Off => return Some((StatusCode::NOT_FOUND, "the page is off: --page")),
            PageAccess::Loopback if !is_loopback => {
                let reason = "the page is for connections to a loopback address; --page=all";
                return Some((StatusCode::FORBIDDEN, reason));
            }
            PageAccess::Loopback | PageAccess::All => {}
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let Some(host) = host.filter(|host| is_own_host(host)) else {
            let reason =
                "the page is served by address, or as localhost: another Host may be a trick";
            return Some((StatusCode::MISDIRECTED_REQUEST, reason));
        };
        let is_foreign = |origin: &HeaderValue| {
            let origin = origin.to_str().unwrap_or_default();
            origin.strip_prefix("http://") != Some(host)
        };
        let site = headers.get("sec-fetch-site").map_or("none", |s| s.to_str().unwrap_or_default());
        // A link from another site to the page is allowed, but no other site may read the answers.
        let is_navigation =
            path == "/" && headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate");
        if headers.get(ORIGIN).is_some_and(is_foreign)
            || !matches!(site, "none" | "same-origin") && !is_navigation
        {
            return Some((StatusCode::FORBIDDEN, "the request comes from another site's page"));
        }
        None
    }

    async fn page(&self, request: &Request<Incoming>) -> Response<Body> {
        let uri = request.uri();
        let mut response = match page::file(uri.path()) {
            Some((content_type, text)) => {
                let body = text.as_bytes().into();
                whole(Answer { status: StatusCode::OK, content_type, body })
            }
            // A stream would hold its connection forever.
            None if uri.query().is_some_and(|query| query.contains("follow=true")) => {
                let reason = "follow=true is for the control socket";
                whole(Answer::error(StatusCode::BAD_REQUEST, reason))
            }
            None if uri.path() == "/v1/capture" => {
                let reason = "captures are for the control socket";
                whole(Answer::error(StatusCode::FORBIDDEN, reason))
            }
            None => self.ask(request).await,
        };
        let headers = response.headers_mut();
        let fixed: [(HeaderName, &'static str); 5] = [
            (CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-store"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        ];
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = text.as_bytes().into();
    whole(Answer { status, content_type: METRICS_CONTENT_TYPE, body })
}

/// Whether a `Host` is an address or `localhost`, with or without a port.
fn is_own_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(page: PageAccess) -> Web {
        Web { probes: Probes::default(), page, served: OnceLock::new() }
    }

    fn refused(web: &Web, path: &str, headers: &[(&'static str, &'static str)]) -> u16 {
        let pairs = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        web.refuses(path, &pairs.collect(), true).map_or(200, |(status, _)| status.as_u16())
    }

    #[test]
    fn hosts_are_addresses_or_localhost() {
        for host in
            ["127.0.0.1:9100", "127.0.0.1", "[::1]:9100", "[::1]", "localhost:1", "LocalHost"]
        {
            assert!(is_own_host(host), "{host}");
        }
        for host in
            ["evil.example:9100", "evil.example", "", "[evil]:1", "127.0.0.1.evil.example", "[::1"]
        {
            assert!(!is_own_host(host), "{host}");
        }
    }

    #[test]
    fn other_sites_are_refused() {
        let web = web(PageAccess::Loopback);
        let own = ("host", "127.0.0.1:9100");
        assert_eq!(refused(&web, "/v1/status", &[own]), 200);
        assert_eq!(refused(&web, "/v1/status", &[]), 421);
        assert_eq!(refused(&web, "/", &[("host", "rebound.example:9100")]), 421);
        assert_eq!(refused(&web, "/v1/status", &[own, ("sec-fetch-site", "same-origin")]), 200);
        for site in ["cross-site", "same-site"] {
            assert_eq!(
                refused(&web, "/v1/status", &[own, ("sec-fetch-site", site)]),
                403,
                "{site}"
            );
            let navigation = [own, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
            assert_eq!(refused(&web, "/v1/status", &navigation), 403);
            assert_eq!(refused(&web, "/", &navigation), 200);
        }
        assert_eq!(refused(&web, "/v1/flows", &[own, ("origin", "http://127.0.0.1:9100")]), 200);
        assert_eq!(refused(&web, "/v1/flows", &[own, ("origin", "http://evil.example")]), 403);
        assert_eq!(refused(&web, "/v1/flows", &[own, ("origin", "null")]), 403);
        assert_eq!(refused(&web, "/else", &[own]), 404);
    }

    #[test]
    fn the_page_is_off_or_on_loopback() {
        let headers = [(HOST, HeaderValue::from_static("192.0.2.1:9100"))].into_iter().collect();
        for (page, loopback, elsewhere) in [
            (PageAccess::Off, 404, 404),
            (PageAccess::Loopback, 200, 403),
            (PageAccess::All, 200, 200),
        ] {
            let web = web(page);
            let status = |is_loopback| {
                web.refuses("/", &headers, is_loopback).map_or(200, |(status, _)| status.as_u16())
            };
            assert_eq!((status(true), status(false)), (loopback, elsewhere), "{page:?}");
        }
    }
}
