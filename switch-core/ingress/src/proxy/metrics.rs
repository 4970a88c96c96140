//! Counters, shared by the workers.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows, or a gauge.
#[derive(Debug, Default)]
pub(super) struct Number(AtomicU64);

impl Number {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    pub(super) fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Why a request or a connection was refused, or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// More connections than the limit.
    ConnectionLimit,
    /// The PROXY protocol header is missing or malformed.
    ProxyHeader,
    /// The TLS handshake failed or took too long.
    TlsHandshake,
    /// The head is not HTTP.
    MalformedHead,
    /// The head is too large or has too many fields.
    HeadTooLarge,
    /// The head took too long.
    HeadTimeout,
    /// Both Content-Length and Transfer-Encoding.
    AmbiguousLength,
    /// No host, several, or one that the target contradicts.
    Host,
    /// The path cannot be normalised.
    Path,
    /// CONNECT, TRACE, or a target that is no path.
    Method,
    /// The body exceeds the limit.
    BodyTooLarge,
    /// The client sent its body too slowly.
    BodyTimeout,
    /// The client ended in its body, or the body is malformed.
    Body,
    /// The client took nothing of a response for too long.
    ClientStalled,
    /// No route.
    NoRoute,
    /// The client's address is not in the allowed ranges.
    SourceRange,
    /// An annotation closes the route.
    Closed,
    /// The rule of an HTTPRoute or its backend cannot be used.
    BackendInvalid,
    /// The backend has no endpoints.
    NoEndpoints,
    /// No endpoint accepts connections.
    Connect,
    /// An endpoint took too long.
    EndpointTimeout,
    /// An endpoint answered with something that is not HTTP, or ended its connection, also in a body.
    Endpoint,
    /// Nothing went through an upgraded connection for too long.
    TunnelTimeout,
    /// A side of an upgraded connection failed.
    Tunnel,
}

impl Reason {
    const ALL: [Self; 24] = [
        Self::ConnectionLimit,
        Self::ProxyHeader,
        Self::TlsHandshake,
        Self::MalformedHead,
        Self::HeadTooLarge,
        Self::HeadTimeout,
        Self::AmbiguousLength,
        Self::Host,
        Self::Path,
        Self::Method,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::Body,
        Self::ClientStalled,
        Self::NoRoute,
        Self::SourceRange,
        Self::Closed,
        Self::BackendInvalid,
        Self::NoEndpoints,
        Self::Connect,
        Self::EndpointTimeout,
        Self::Endpoint,
        Self::TunnelTimeout,
        Self::Tunnel,
    ];

    /// Its name in metrics and logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ConnectionLimit => "connection_limit",
            Self::ProxyHeader => "proxy_header",
            Self::TlsHandshake => "tls_handshake",
            Self::MalformedHead => "malformed_head",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::AmbiguousLength => "ambiguous_length",
            Self::Host => "host",
            Self::Path => "path",
            Self::Method => "method",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::Body => "body",
            Self::ClientStalled => "client_stalled",
            Self::NoRoute => "no_route",
            Self::SourceRange => "source_range",
            Self::Closed => "closed",
            Self::BackendInvalid => "backend_invalid",
            Self::NoEndpoints => "no_endpoints",
            Self::Connect => "connect",
            Self::EndpointTimeout => "endpoint_timeout",
            Self::Endpoint => "endpoint",
            Self::TunnelTimeout => "tunnel_timeout",
            Self::Tunnel => "tunnel",
        }
    }

    /// The status of the response, for requests.
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::ConnectionLimit | Self::Closed | Self::NoEndpoints => 503,
            Self::ProxyHeader | Self::TlsHandshake | Self::MalformedHead => 400,
            Self::HeadTooLarge => 431,
            Self::HeadTimeout | Self::BodyTimeout | Self::ClientStalled => 408,
            Self::AmbiguousLength | Self::Host | Self::Path | Self::Body => 400,
            Self::Method => 405,
            Self::BodyTooLarge => 413,
            Self::NoRoute => 404,
            Self::SourceRange => 403,
            Self::BackendInvalid => 500,
            Self::Connect | Self::Endpoint | Self::Tunnel => 502,
            Self::EndpointTimeout | Self::TunnelTimeout => 504,
        }
    }
}

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) connections: Number,
    pub(super) open: Number,
    pub(super) handshakes: Number,
    pub(super) upgraded: Number,
    pub(super) workers: Number,
    /// Workers whose threads have ended.
    pub(super) ended: Number,
    pub(super) accept_errors: Number,
    pub(super) reloads: Number,
    log_lost: Arc<Number>,
    pub(super) received: Number,
    pub(super) sent: Number,
    /// By the status's first digit, from 1.
    responses: [Number; 5],
    /// Upper bounds of [`BOUNDS`], and the rest.
    durations: [Number; 9],
    duration_sum_us: Number,
    refused: [Number; Reason::ALL.len()],
    pub(super) endpoint_connections: Number,
    pub(super) endpoint_reused: Number,
    pub(super) retries: Number,
}

/// Bounds of the duration histogram, in microseconds.
const BOUNDS: [u64; 8] = [500, 1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];

impl Metrics {
    /// `log_lost`: counted by the log.
    pub(super) fn new(log_lost: Arc<Number>) -> Self {
        Self { log_lost, ..Self::default() }
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].add(1);
    }

    pub(super) fn response(&self, status: u16, micros: u64) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.responses[class].add(1);
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        self.durations[bucket].add(1);
        self.duration_sum_us.add(micros);
    }

    /// In the Prometheus text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::with_capacity(4096);
        let mut one = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            let name = format!("podswitch_ingress_{name}");
            _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let plain = |number: &Number| [(String::new(), number.get())];
        for (name, help, number) in [
            ("connections_total", "Connections of clients.", &self.connections),
            ("tls_handshakes_total", "Completed TLS handshakes.", &self.handshakes),
            (
                "upgrades_total",
                "Connections that were upgraded, such as WebSockets.",
                &self.upgraded,
            ),
            (
                "accept_errors_total",
                "Connections that could not be accepted, such as without free descriptors.",
                &self.accept_errors,
            ),
            ("workers_ended_total", "Workers that have ended.", &self.ended),
            ("reloads_total", "Routes put in force.", &self.reloads),
            ("log_lost_total", "Lines of the access log that were lost.", &self.log_lost),
            ("request_body_bytes_total", "Bytes of request bodies.", &self.received),
            ("response_body_bytes_total", "Bytes of response bodies.", &self.sent),
            ("endpoint_connections_total", "Connections to endpoints.", &self.endpoint_connections),
            ("endpoint_reused_total", "Requests on a kept connection.", &self.endpoint_reused),
            ("retries_total", "Requests that were sent again.", &self.retries),
        ] {
            one(name, "counter", help, &plain(number));
        }
        one("open_connections", "gauge", "Open connections of clients.", &plain(&self.open));
        one("workers", "gauge", "Workers that were started.", &plain(&self.workers));
        let classes: Vec<_> = (1..=5)
            .zip(&self.responses)
            .map(|(class, number)| (format!("{{status=\"{class}xx\"}}"), number.get()))
            .collect();
        one("responses_total", "counter", "Responses by class of status.", &classes);
        let reasons: Vec<_> = Reason::ALL
            .iter()
            .map(|it| {
                let number = self.refused[*it as usize].get();
                (format!("{{reason=\"{}\"}}", it.name()), number)
            })
            .collect();
        let help = "Requests and connections that were refused or failed, by reason.";
        one("refused_total", "counter", help, &reasons);
        self.histogram(&mut text);
        text
    }

    fn histogram(&self, text: &mut String) {
        let name = "podswitch_ingress_request_duration_seconds";
        let help = "Time from a request's head to the end of its response.";
        _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut count = 0;
        for (bound, number) in BOUNDS.iter().zip(&self.durations) {
            count += number.get();
            let bound = *bound as f64 / 1e6;
            _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        count += self.durations[BOUNDS.len()].get();
        let sum = self.duration_sum_us.get() as f64 / 1e6;
        _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    }
}
