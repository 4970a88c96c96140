//! What annotations say about the routes of an Ingress.

use std::time::Duration;

use podswitch_wire::cidr::Cidr;

/// Settings of an Ingress. Names and defaults are those of ingress-nginx.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Plain requests of a host with TLS are redirected (308). Default: as the proxy's option.
    pub ssl_redirect: Option<bool>,
    /// Plain requests are redirected (308) even if the Ingress has no TLS entry.
    pub force_ssl_redirect: bool,
    /// The path is replaced.
    pub rewrite: Option<Rewrite>,
    /// Paths are regular expressions.
    pub use_regex: bool,
    /// Where `/` is redirected to (302).
    pub app_root: Option<Box<str>>,
    /// Every request is redirected.
    pub redirect: Option<Redirect>,
    /// What the endpoints speak.
    pub protocol: Protocol,
    /// Session affinity by cookie.
    pub affinity: Option<Affinity>,
    /// Time to connect to an endpoint.
    pub connect_timeout: Duration,
    /// Longest pause between two reads from an endpoint.
    pub read_timeout: Duration,
    /// Longest pause between two writes to an endpoint.
    pub send_timeout: Duration,
    /// Longest body of a request, in bytes. None: no limit.
    pub body_size: Option<u64>,
    /// `Host` of requests to endpoints.
    pub upstream_vhost: Option<Box<str>>,
    /// Cross-origin resource sharing.
    pub cors: Option<Cors>,
    /// Clients that are served. Empty: all.
    pub allow: Vec<Cidr>,
    /// The Ingress takes a part of the requests of another one.
    pub canary: Option<Canary>,
    /// An annotation that restricts access cannot be honoured: every request is refused (503).
    pub closed: Option<Box<str>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ssl_redirect: None,
            force_ssl_redirect: false,
            rewrite: None,
            use_regex: false,
            app_root: None,
            redirect: None,
            protocol: Protocol::Http,
            affinity: None,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
            body_size: Some(1 << 20),
            upstream_vhost: None,
            cors: None,
            allow: Vec::new(),
            canary: None,
            closed: None,
        }
    }
}

/// A replacement of the path: text with `$1` to `$9` for groups of the path's expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite(pub Box<str>);

impl Rewrite {
    /// Whether it names groups of the path's expression.
    pub fn has_groups(&self) -> bool {
        self.0.as_bytes().windows(2).any(|pair| pair[0] == b'$' && pair[1].is_ascii_digit())
    }
}

/// A redirection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Status, 300 to 308.
    pub status: u16,
    /// `Location`.
    pub to: Box<str>,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/1.1 over TLS; certificates are not verified, as in ingress-nginx.
    Https,
    /// HTTP/2 without TLS.
    Grpc,
    /// HTTP/2 over TLS; certificates are not verified.
    Grpcs,
}

/// Session affinity by cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The cookie's name.
    pub name: Box<str>,
    /// `Path`. None: the path of the rule.
    pub path: Option<Box<str>>,
    /// `Max-Age`, in seconds.
    pub max_age: Option<u64>,
    /// `Expires`: so many seconds from now.
    pub expires: Option<u64>,
    /// `Domain`.
    pub domain: Option<Box<str>>,
    /// `Secure`. None: when the request came over TLS.
    pub secure: Option<bool>,
    /// `SameSite`.
    pub same_site: Option<SameSite>,
}

/// `SameSite` of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// `None`.
    None,
    /// `Lax`.
    Lax,
    /// `Strict`.
    Strict,
}

/// Cross-origin resource sharing (the Fetch standard, section 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Origins; `*` is every one, `https://*.example.com` those of subdomains.
    pub origins: Vec<Box<str>>,
    /// `Access-Control-Allow-Methods`.
    pub methods: Box<str>,
    /// `Access-Control-Allow-Headers`.
    pub headers: Box<str>,
    /// `Access-Control-Expose-Headers`.
    pub expose: Option<Box<str>>,
    /// `Access-Control-Allow-Credentials`.
    pub credentials: bool,
    /// `Access-Control-Max-Age`, in seconds.
    pub max_age: u64,
}

/// What a canary Ingress takes, in the order header, cookie, weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canary {
    /// Share of the requests, of `weight_total`.
    pub weight: u32,
    /// The whole.
    pub weight_total: u32,
    /// The header: `always` and `never` decide, other values do not.
    pub by_header: Option<Box<str>>,
    /// The value that selects, instead of `always`.
    pub by_header_value: Option<Box<str>>,
    /// The cookie: `always` and `never` decide.
    pub by_cookie: Option<Box<str>>,
}
