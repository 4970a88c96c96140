//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use podswitch_ingress::{Options, proxy};
use podswitch_wire::cidr::Cidr;

/// Routes HTTP by Ingress objects and by HTTPRoutes of Gateway API.
#[derive(Debug, clap::Parser)]
#[command(name = "ingress", version)]
pub(crate) struct Flags {
    /// File or folder of manifests; read again when they change.
    #[arg(long, value_name = "PATH", required_unless_present = "kubernetes")]
    pub(crate) manifests: Option<PathBuf>,
    /// Follow the API server instead of manifests.
    #[arg(long, conflicts_with = "manifests")]
    kubernetes: bool,
    /// Kubeconfig; by default the credentials of the pod.
    #[arg(long, value_name = "PATH", requires = "kubernetes")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Address or host name that the status of served Ingresses and Gateways names. One replica
    /// writes it.
    #[arg(long, value_name = "ADDRESS", requires = "kubernetes")]
    publish_address: Vec<String>,
    /// Namespace of the Lease of the replica that writes the status.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", requires = "kubernetes")]
    lease_namespace: String,
    /// Name of that Lease. Programs that serve different Ingresses or Gateways need a Lease each.
    #[arg(long, value_name = "NAME", default_value = "podswitch-ingress", requires = "kubernetes")]
    lease_name: String,
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
    /// `spec.controller` of our IngressClasses, `spec.controllerName` of our GatewayClasses.
    #[arg(long, value_name = "NAME", default_value = "podswitch.io/ingress")]
    controller: String,
    /// Value of the annotation `kubernetes.io/ingress.class` that selects us.
    #[arg(long, value_name = "NAME", default_value = "podswitch")]
    class: String,
    /// Secret with the certificate for server names that have none.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object)]
    default_certificate: Option<(String, String)>,
    /// Serve this Gateway only: one Deployment for each, as each has an address of its own.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object)]
    gateway: Option<(String, String)>,
    /// The port of HTTP that clients see: that of listeners of Gateways, and for redirections.
    #[arg(long, value_name = "PORT", default_value_t = 80)]
    http_port: u16,
    /// The port of HTTPS that clients see: that of listeners of Gateways, and for redirections.
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

fn object(text: &str) -> Result<(String, String), String> {
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
            gateway: self.gateway.clone(),
            gateway_ports: (self.http_port, self.https_port),
            allow_local_endpoints: self.allow_local_endpoints,
        }
    }

    /// What the status of Ingresses is to name.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn publish(&self) -> Option<crate::api::Publish> {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "ingress".to_owned());
        (!self.publish_address.is_empty()).then(|| crate::api::Publish {
            addresses: self.publish_address.clone(),
            lease: (self.lease_namespace.clone(), self.lease_name.clone()),
            identity: format!("{host}_{}", std::process::id()),
            controller: self.controller.clone(),
            gateway: self.gateway.clone(),
        })
    }

    /// How they are served.
    pub(crate) fn proxy(&self) -> proxy::Options {
        let mut options = proxy::Options {
            http: self.http,
            https: self.https,
            http_port: self.http_port,
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
