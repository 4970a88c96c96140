//! The health check of one Service.

use std::sync::Arc;

/// The health check of one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// TCP port of this node that load balancers query.
    pub port: u16,
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// Endpoints on this node that are ready and not terminating, for requests over IPv4 and over IPv6: the answer is
    /// 200 if there are any, otherwise 503.
    pub local_endpoints: [usize; 2],
}
