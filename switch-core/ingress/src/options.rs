//! What decides which objects are served.

/// What decides which Ingresses are served, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `spec.controller` of our IngressClasses, `spec.controllerName` of our GatewayClasses.
    pub controller: String,
    /// The value of the annotation `kubernetes.io/ingress.class` that selects us, besides the names
    /// of our IngressClasses.
    pub class: String,
    /// Namespace and name of the Secret with the certificate for server names without one.
    pub default_certificate: Option<(String, String)>,
    /// Namespace and name of the only Gateway that is served. None: all of our classes.
    pub gateway: Option<(String, String)>,
    /// The ports of Gateway listeners for HTTP and HTTPS: those that clients see. Others are not
    /// available.
    pub gateway_ports: (u16, u16),
    /// Whether endpoints may have loopback and link-local addresses. The API server refuses them;
    /// manifests could lead requests to services of the proxy's own host.
    pub allow_local_endpoints: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controller: "podswitch.io/ingress".to_owned(),
            class: "podswitch".to_owned(),
            default_certificate: None,
            gateway: None,
            gateway_ports: (80, 443),
            allow_local_endpoints: false,
        }
    }
}
