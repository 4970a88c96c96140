//! Options that are not in any object.

use podswitch_core::config::Gateway;
use podswitch_wire::cidr::Cidr;

/// Options that are not in manifests.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What pods see as their gateway.
    pub gateway: Gateway,
    /// Ranges that the addresses of Services come from, beside those of ServiceCIDR objects.
    pub service_cidrs: Vec<Cidr>,
    /// Ranges in which `externalIPs` of Services are honoured; none by default (CVE-2020-8554).
    pub allowed_external_ips: Vec<Cidr>,
    /// Whether annotations of pods say where and how they are attached.
    pub pod_annotations: PodAnnotations,
}

/// Whether annotations of pods (`podswitch.io/netns`, `port`, `interface`, `mac`) are honoured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodAnnotations {
    /// They are the operator's own, as in manifests that the operator writes.
    #[default]
    Trust,
    /// They may be a tenant's: they are ignored, and pods are attached by the CNI plugin alone.
    Ignore,
}
