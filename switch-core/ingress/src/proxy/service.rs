//! One request, from its head to the head of its response.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::body::{Progress, RequestBody};
use super::forward::{Answer, Failed, forward};
use super::headers::{self, Origin};
use super::local::Local;
use super::log::Entry;
use super::metrics::Reason;
use super::objects::Responses;
use super::request::Asked;
use super::response::{Finish, ResponseBody};
use super::{affinity, canary, cors, filtered, tunnel};
use crate::path::normalise;
use crate::routes::{Route, Target};
use crate::settings::{Protocol, Settings};

/// What is known of a request when its response is made.
struct Exchange {
    local: Rc<Local>,
    start: Instant,
    client: IpAddr,
    route: Option<Arc<Route>>,
    /// Those of the route's object.
    responses: Option<Arc<Responses>>,
    endpoint: Option<std::net::SocketAddr>,
    progress: Option<Rc<Progress>>,
    entry: Option<Box<Entry>>,
    /// The connection ends after the response.
    close: bool,
}

/// Answers a request. `is_ambiguous`: its length could be understood in two ways.
pub(super) async fn serve(
    local: Rc<Local>,
    origin: Origin,
    request: Request<Incoming>,
    is_ambiguous: bool,
) -> Response<ResponseBody> {
    let start = Instant::now();
    let trusted = &local.shared.options.trusted_proxies;
    let client = headers::client(request.headers(), &origin, trusted);
    let entry = local.shared.log.is_some().then(|| entry(&request, &origin, client));
    let mut exchange = Exchange {
        local,
        start,
        client,
        route: None,
        responses: None,
        endpoint: None,
        progress: None,
        entry,
        close: false,
    };
    let answer = match is_ambiguous {
        true => {
            exchange.close = true;
            Err(Reason::AmbiguousLength)
        }
        false => answer(&mut exchange, origin, request).await,
    };
    match answer {
        Ok(response) => exchange.finish(response, None),
        Err(reason) => {
            exchange.local.shared.metrics.refused(reason);
            let response = refusal(reason, exchange.close);
            exchange.finish(response, Some(reason))
        }
    }
}

impl Exchange {
    fn finish(
        mut self,
        mut response: Response<ResponseBody>,
        refused: Option<Reason>,
    ) -> Response<ResponseBody> {
        if !response.headers().contains_key(header::SERVER) {
            response.headers_mut().insert(header::SERVER, HeaderValue::from_static("podswitch"));
        }
        if let Some(responses) = &self.responses {
            responses.add(response.status().as_u16());
        }
        if let Some(entry) = &mut self.entry {
            entry.route = self.route.take();
            entry.endpoint = self.endpoint;
        }
        let finish = Finish {
            local: self.local,
            start: self.start,
            status: response.status().as_u16(),
            sent: 0,
            progress: self.progress,
            refused,
            broken: None,
            entry: self.entry,
            held: None,
        };
        response.map(|body| body.finish(finish))
    }
}

async fn answer(
    exchange: &mut Exchange,
    origin: Origin,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Reason> {
    let (mut parts, body) = request.into_parts();
    // What follows an ambiguous head on the connection cannot be trusted.
    let asked = Asked::read(&parts).inspect_err(|_| exchange.close = true)?;
    let state = exchange.local.shared.state.load_full();
    let random = || exchange.local.random();
    let route = match filtered::route(&state.routes, &parts, &asked, &origin, random) {
        Target::Route(route) => canary::choose(route, &parts.headers, || exchange.local.random()),
        Target::None => return Err(Reason::NoRoute),
    };
    let route = route.clone();
    exchange.route = Some(route.clone());
    exchange.responses = state.objects.get(&route.ingress).cloned();
    let settings = &*route.settings;
    if settings.closed.is_some() {
        return Err(Reason::Closed);
    }
    let client = exchange.client;
    if !settings.allow.is_empty() && !settings.allow.iter().any(|it| it.contains(client)) {
        return Err(Reason::SourceRange);
    }
    let is_tls = origin.is_tls || headers::is_forwarded_tls(&parts.headers, &origin);
    let filters = route.filters.as_deref();
    if let Some(to) = filters.and_then(|filters| filters.redirect.as_ref()) {
        let options = &exchange.local.shared.options;
        let ports = (options.http_port, options.https_port);
        let location = filtered::location(to, &asked, is_tls, ports)?;
        let mut response = moved(to.status, &location);
        filtered::response(response.headers_mut(), &route);
        return Ok(response);
    }
    if filters.is_some_and(|filters| filters.invalid.is_some()) {
        return Err(Reason::BackendInvalid);
    }
    if let Some(response) = redirect(exchange, &route, &asked, is_tls) {
        return Ok(response);
    }
    let allowed = settings
        .cors
        .as_ref()
        .and_then(|cors| cors::allowed(cors, &parts.headers).map(|origin| (cors, origin.clone())));
    if settings.cors.is_some() && cors::is_preflight(&parts.method, &parts.headers) {
        let mut response = status(StatusCode::NO_CONTENT);
        if let Some((cors, origin)) = &allowed {
            cors::add(cors, origin, true, response.headers_mut());
        }
        return Ok(response);
    }
    if route.backend.endpoints.is_empty() {
        return Err(Reason::NoEndpoints);
    }
    check_length(&parts.headers, settings).inspect_err(|_| exchange.close = true)?;

    let cookie = settings.affinity.as_ref().map(|it| affinity::cookie(&parts.headers, &it.name));
    let bound = cookie.flatten().and_then(|value| {
        let endpoints = &route.backend.endpoints;
        endpoints.iter().position(|it| state.cookies.get(it).is_some_and(|known| **known == *value))
    });
    let first = match bound {
        Some(first) => first,
        None => exchange.local.turn(&route.backend.name) % route.backend.endpoints.len(),
    };
    let upgrade = upgrade(&parts);
    prepare(&mut parts, &asked, &route, &origin, client, exchange)?;
    let pause = exchange.local.shared.options.client_timeout;
    let body = RequestBody::new(body, settings.body_size, pause);
    let progress = body.progress().clone();
    exchange.progress = Some(progress.clone());
    let client_side = upgrade.as_ref().and_then(|_| parts.extensions.remove());
    if let Some(protocol) = upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    let sending = forward(&exchange.local, &route, first, Request::from_parts(parts, body));
    let limit = filters.and_then(|filters| filters.timeout).filter(|limit| !limit.is_zero());
    let sent = match limit {
        None => sending.await,
        Some(limit) => timeout_at(exchange.start + limit, sending)
            .await
            .unwrap_or(Err(Failed { reason: Reason::EndpointTimeout, endpoint: None })),
    };
    let Answer { response, endpoint, give_back } =
        sent.map_err(|Failed { reason, endpoint }| {
            exchange.endpoint = endpoint;
            exchange.close |= progress.fault.get().is_some();
            reason
        })?;
    exchange.endpoint = Some(endpoint);
    let pause = settings.read_timeout;
    let mut response = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        switch(exchange, response, client_side, settings)?
    } else {
        let mut response =
            response.map(|incoming| ResponseBody::endpoint(incoming, pause, give_back));
        headers::remove_hop_by_hop(response.headers_mut());
        response
    };
    *response.version_mut() = Version::HTTP_11;
    let is_bound = bound.is_some_and(|bound| route.backend.endpoints[bound] == endpoint);
    if let (Some(it), false) = (&settings.affinity, is_bound)
        && let Some(value) = state.cookies.get(&endpoint)
        && let Ok(value) = HeaderValue::from_str(&affinity::set_cookie(it, value, &route, is_tls))
    {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    if let Some((cors, origin)) = &allowed {
        cors::add(cors, origin, false, response.headers_mut());
    }
    filtered::response(response.headers_mut(), &route);
    Ok(response)
}

/// The protocol that the client wants to switch to.
fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    headers::upgrade(&parts.headers)
}

/// Redirections that the settings of the route ask for.
fn redirect(
    exchange: &Exchange,
    route: &Route,
    asked: &Asked,
    is_tls: bool,
) -> Option<Response<ResponseBody>> {
    let options = &exchange.local.shared.options;
    let settings = &route.settings;
    let to_tls = route.is_tls && settings.ssl_redirect.unwrap_or(options.ssl_redirect);
    // A host without a name cannot be redirected to.
    if !is_tls && (to_tls || settings.force_ssl_redirect) && !asked.host.is_empty() {
        let host = &asked.host;
        let target = asked.target(&asked.path);
        let location = match options.https_port {
            443 => format!("https://{host}{target}"),
            port => format!("https://{host}:{port}{target}"),
        };
        return Some(moved(308, &location));
    }
    if let Some(redirect) = &settings.redirect {
        return Some(moved(redirect.status, &redirect.to));
    }
    match &settings.app_root {
        Some(root) if asked.path == "/" => Some(moved(302, root)),
        _ => None,
    }
}

fn moved(status_code: u16, location: &str) -> Response<ResponseBody> {
    let mut response = status(StatusCode::from_u16(status_code).unwrap_or(StatusCode::FOUND));
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A body whose length is known to be too large is not read.
fn check_length(headers: &HeaderMap, settings: &Settings) -> Result<(), Reason> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    match (length, settings.body_size) {
        (Some::<u64>(length), Some(most)) if length > most => Err(Reason::BodyTooLarge),
        _ => Ok(()),
    }
}

/// Makes the head that the endpoint gets.
fn prepare(
    parts: &mut Parts,
    asked: &Asked,
    route: &Route,
    origin: &Origin,
    client: IpAddr,
    exchange: &mut Exchange,
) -> Result<(), Reason> {
    let headers = &mut parts.headers;
    headers::remove_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    let request_id = exchange.local.request_id();
    if let Some(entry) = &mut exchange.entry {
        entry.request_id = Some(request_id.clone());
    }
    headers::forwarded(headers, origin, client, &asked.authority, &request_id);
    let filters = route.filters.as_deref();
    let target = match (rewritten(route, &asked.path), filters.and_then(|it| it.path.as_ref())) {
        (Some(text), _) => rewritten_target(&text, asked.query.as_deref())?,
        (None, Some(change)) => asked.target(&change.apply(&asked.path)),
        (None, None) => asked.target(&asked.path),
    };
    let host = filters.and_then(|it| it.host.as_ref()).or(route.settings.upstream_vhost.as_ref());
    let host = host.map_or(&*asked.authority, |host| host);
    filtered::change(headers, filters.map_or(&[][..], |it| &it.request));
    match route.settings.protocol {
        Protocol::Http | Protocol::Https => {
            parts.version = Version::HTTP_11;
            headers::join_cookies(headers);
            if let Ok(host) = HeaderValue::from_str(host) {
                headers.insert(header::HOST, host);
            }
            parts.uri = target.parse().map_err(|_| Reason::Path)?;
        }
        Protocol::Grpc | Protocol::Grpcs => {
            parts.version = Version::HTTP_2;
            headers.remove(header::HOST);
            let is_tls = route.settings.protocol == Protocol::Grpcs;
            let uri = Uri::builder()
                .scheme(if is_tls { "https" } else { "http" })
                .authority(if host.is_empty() { "localhost" } else { host })
                .path_and_query(target)
                .build();
            parts.uri = uri.map_err(|_| Reason::Path)?;
        }
    }
    Ok(())
}

/// Path and query after a rewrite. The request's path has no `..` any more: where one comes up, it
/// was joined from the target and a group, and would lead out of the target's folder.
fn rewritten_target(text: &str, query: Option<&str>) -> Result<String, Reason> {
    let (path, own) = match text.split_once('?') {
        Some((path, own)) => (path, Some(own)),
        None => (text, None),
    };
    if path.split('/').any(|element| element == "..") {
        return Err(Reason::Path);
    }
    let path = normalise(path).map_err(|_| Reason::Path)?;
    Ok(match (own.filter(|own| !own.is_empty()), query) {
        (Some(own), Some(query)) => format!("{path}?{own}&{query}"),
        (Some(query), None) | (None, Some(query)) => format!("{path}?{query}"),
        (None, None) => path.into_owned(),
    })
}

/// The path after `rewrite-target`.
fn rewritten(route: &Route, path: &str) -> Option<String> {
    let target = &route.settings.rewrite.as_ref()?.0;
    let groups = route.pattern.as_ref().and_then(|pattern| pattern.captures(path.as_bytes()));
    let mut text = String::with_capacity(target.len() + path.len());
    let mut rest = target.chars().peekable();
    while let Some(c) = rest.next() {
        match rest.peek().filter(|_| c == '$').and_then(|digit| digit.to_digit(10)) {
            Some(number) => {
                rest.next();
                let group = groups.as_ref().and_then(|groups| groups.get(number as usize));
                text.push_str(&String::from_utf8_lossy(
                    group.map_or(b"", |group| group.as_bytes()),
                ));
            }
            None => text.push(c),
        }
    }
    if !text.starts_with('/') {
        text.insert(0, '/');
    }
    Some(text)
}

/// The endpoint switches protocols, and so does the client's connection.
fn switch(
    exchange: &Exchange,
    mut response: Response<Incoming>,
    client: Option<hyper::upgrade::OnUpgrade>,
    settings: &Settings,
) -> Result<Response<ResponseBody>, Reason> {
    let protocol = headers::upgrade(response.headers());
    // An endpoint that switches without having been asked is broken.
    let (Some(client), Some(protocol)) = (client, protocol) else { return Err(Reason::Endpoint) };
    let endpoint = hyper::upgrade::on(&mut response);
    let pause = settings.read_timeout.max(settings.send_timeout);
    exchange.local.shared.metrics.upgraded.add(1);
    let local = exchange.local.clone();
    spawn_local(exchange.local.clone().tunnel(async move {
        if let Err(reason) = tunnel::run(client, endpoint, pause).await {
            local.shared.metrics.refused(reason);
        }
    }));
    let mut response = response.map(|_| ResponseBody::empty());
    headers::remove_hop_by_hop(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, protocol);
    Ok(response)
}

fn status(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

/// The response to a request that is refused or failed.
fn refusal(reason: Reason, close: bool) -> Response<ResponseBody> {
    let code = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let text = format!("{} {}\n", code.as_u16(), code.canonical_reason().unwrap_or_default());
    let mut response = Response::new(ResponseBody::text(Bytes::from(text)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if reason == Reason::Method {
        let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        headers.insert(header::ALLOW, methods);
    }
    response
}

fn entry(request: &Request<Incoming>, origin: &Origin, client: IpAddr) -> Box<Entry> {
    let text = |name| {
        let value: Option<&HeaderValue> = request.headers().get(name);
        value.and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let authority = request.uri().authority().map(|it| it.as_str().to_owned());
    Box::new(Entry {
        peer: origin.peer,
        client,
        scheme: if origin.is_tls { "https" } else { "http" },
        version: match request.version() {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        },
        method: request.method().to_string(),
        host: authority.or_else(|| text(header::HOST)).unwrap_or_default(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().map(str::to_owned),
        user_agent: text(header::USER_AGENT),
        request_id: None,
        route: None,
        endpoint: None,
        status: 0,
        reason: None,
        received: 0,
        sent: 0,
        duration: std::time::Duration::ZERO,
    })
}
