//! Options that no object contains.

use std::net::IpAddr;

use podswitch_core::config::Gateway;
use podswitch_wire::cidr::Cidr;

/// Options that no manifest contains.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The gateway as seen by pods.
    pub gateway: Gateway,
    /// Ranges for the addresses of Services, in addition to those of ServiceCIDR objects.
    pub service_cidrs: Vec<Cidr>,
    /// Ranges in which `externalIPs` of Services are honoured. Default: none (CVE-2020-8554).
    pub allowed_external_ips: Vec<Cidr>,
    /// Whether pod annotations define where and how pods are attached.
    pub pod_annotations: PodAnnotations,
    /// The names that the switch answers for. `None`: none.
    pub names: Option<NameOptions>,
}

/// Cluster DNS.
#[derive(Clone, Debug, Default)]
pub struct NameOptions {
    /// Settings of the zone.
    pub zone: podswitch_dns::Settings,
    /// Addresses of this node's own resolver, at most one of each family: the last backend of the name server's Service,
    /// used where no pod serves it.
    pub resolver: Vec<IpAddr>,
}

/// Whether annotations of pods (`podswitch.io/netns`, `port`, `interface`, `mac`) are honoured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodAnnotations {
    /// The operator writes them, as in the operator's own manifests.
    #[default]
    Trust,
    /// Tenants may write them. They are ignored, and only the CNI plugin attaches pods.
    Ignore,
}
