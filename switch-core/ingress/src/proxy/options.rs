//! How the proxy serves.

use std::net::SocketAddr;
use std::time::Duration;

use podswitch_wire::cidr::Cidr;

/// How the proxy serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address for plain HTTP.
    pub http: Option<SocketAddr>,
    /// Address for HTTPS.
    pub https: Option<SocketAddr>,
    /// The port of HTTP that clients see, for redirections.
    pub http_port: u16,
    /// The port of HTTPS that clients see, for redirections.
    pub https_port: u16,
    /// Worker threads.
    pub workers: usize,
    /// Whether hosts with TLS redirect plain requests, unless `ssl-redirect` says otherwise.
    pub ssl_redirect: bool,
    /// Whether every connection begins with a PROXY protocol header, version 1 or 2.
    pub proxy_protocol: bool,
    /// Peers whose `X-Forwarded-For`, `-Proto`, `-Host` and `-Port` are believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Open connections of clients, over all workers.
    pub max_connections: usize,
    /// Size of a request's head, in bytes.
    pub max_head: usize,
    /// Time for a request's head, for the TLS handshake, and for an idle connection.
    pub head_timeout: Duration,
    /// Longest pause within a request's body, and longest time in which a client takes nothing at all
    /// of its responses.
    pub client_timeout: Duration,
    /// Concurrent streams of an HTTP/2 connection.
    pub max_streams: u32,
    /// Idle connections kept for each endpoint and worker, and for how long.
    pub idle_connections: usize,
    /// How long an idle connection to an endpoint is kept.
    pub idle_timeout: Duration,
    /// Key of the values of affinity cookies: the same for all replicas.
    pub affinity_key: Vec<u8>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            http: None,
            https: None,
            http_port: 80,
            https_port: 443,
            workers: std::thread::available_parallelism().map_or(1, |n| n.get()),
            ssl_redirect: true,
            proxy_protocol: false,
            trusted_proxies: Vec::new(),
            max_connections: 16_384,
            max_head: 32 << 10,
            head_timeout: Duration::from_secs(60),
            client_timeout: Duration::from_secs(60),
            max_streams: 128,
            idle_connections: 64,
            idle_timeout: Duration::from_secs(60),
            affinity_key: b"podswitch".to_vec(),
        }
    }
}
