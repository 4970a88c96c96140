//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podswitch_ingress::{Options, proxy};
use podswitch_wire::cidr::Cidr;

/// Routes HTTP by Kubernetes Ingress objects.
#[derive(Debug, clap::Parser)]
#[command(name = "ingress", version)]
pub(crate) struct Flags {
    /// File or folder of manifests; read again when they change.
    #[arg(long, value_name = "PATH")]
    pub(crate) manifests: PathBuf,
    /// Report what is left out or not honoured, and exit: 1 if an object cannot be used as written.
    #[arg(long)]
    pub(crate) check: bool,
    /// Address for plain HTTP, such as 0.0.0.0:80.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Address for HTTPS, such as 0.0.0.0:443.
    #[arg(long, value_name = "ADDRESS")]
    https: Option<SocketAddr>,
    /// Address for /metrics and /healthz.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// `spec.controller` of our IngressClasses.
    #[arg(long, value_name = "NAME", default_value = "podswitch.io/ingress")]
    controller: String,
    /// Value of the annotation `kubernetes.io/ingress.class` that selects us.
    #[arg(long, value_name = "NAME", default_value = "podswitch")]
    class: String,
    /// Secret with the certificate for server names that have none.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = secret)]
    default_certificate: Option<(String, String)>,
    /// The port of HTTPS that clients see, for redirections.
    #[arg(long, value_name = "PORT", default_value_t = 443)]
    https_port: u16,
    /// Do not redirect plain requests of hosts with TLS, unless an annotation says so.
    #[arg(long)]
    no_ssl_redirect: bool,
    /// Connections begin with a PROXY protocol header, version 1 or 2.
    #[arg(long)]
    proxy_protocol: bool,
    /// Peers whose X-Forwarded-* fields are believed.
    #[arg(long, value_name = "CIDR")]
    trusted_proxy: Vec<Cidr>,
    /// Worker threads; by default one for each core.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Open connections of clients.
    #[arg(long, value_name = "NUMBER", default_value_t = 16_384)]
    max_connections: usize,
    /// Seconds for a request's head, for a TLS handshake, and for idle connections.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    head_timeout: u64,
    /// Seconds that requests in flight may take after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u64,
    /// Access log in JSON Lines: a file, or - for standard output.
    #[arg(long, value_name = "PATH")]
    pub(crate) log: Option<PathBuf>,
    /// Key of affinity cookies: the same for all replicas.
    #[arg(long, value_name = "TEXT")]
    affinity_key: Option<String>,
    /// Permit endpoints with loopback and link-local addresses, for tests.
    #[arg(long)]
    allow_local_endpoints: bool,
}

fn secret(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/').filter(|(namespace, name)| {
        !namespace.is_empty() && !name.is_empty() && !name.contains('/')
    });
    let (namespace, name) = parts.ok_or("is not NAMESPACE/NAME")?;
    Ok((namespace.to_owned(), name.to_owned()))
}

impl Flags {
    /// Which objects are served.
    pub(crate) fn options(&self) -> Options {
        Options {
            controller: self.controller.clone(),
            class: self.class.clone(),
            default_certificate: self.default_certificate.clone(),
            allow_local_endpoints: self.allow_local_endpoints,
        }
    }

    /// How they are served.
    pub(crate) fn proxy(&self) -> proxy::Options {
        let mut options = proxy::Options {
            http: self.http,
            https: self.https,
            https_port: self.https_port,
            ssl_redirect: !self.no_ssl_redirect,
            proxy_protocol: self.proxy_protocol,
            trusted_proxies: self.trusted_proxy.clone(),
            max_connections: self.max_connections,
            head_timeout: Duration::from_secs(self.head_timeout),
            ..proxy::Options::default()
        };
        if let Some(workers) = self.workers {
            options.workers = workers.into();
        }
        if let Some(key) = &self.affinity_key {
            options.affinity_key = key.clone().into_bytes();
        }
        options
    }
}
