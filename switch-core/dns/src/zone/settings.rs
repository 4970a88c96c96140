//! What an operator says about a zone.

use std::sync::Arc;

use crate::name::Name;

/// How `a-b-c-d.namespace.pod` is answered (CoreDNS: `pods`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PodNames {
    /// Not at all: NXDOMAIN.
    Disabled,
    /// With the address in the name, whether a pod has it or not; its namespace exists.
    Insecure,
    /// Only for the address of a pod of that namespace.
    #[default]
    Verified,
}

/// Settings of a zone.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster domain.
    pub domain: Name,
    /// The domain of the Multi-Cluster Services API; answered for while there are ServiceImports.
    pub clusterset: Name,
    /// Zones of reverse names in which an unknown address does not exist. Elsewhere it is another server's.
    pub reverse_zones: Vec<Name>,
    /// Time to live of records in seconds, and of negative answers (SOA minimum): 0 to 3600.
    pub ttl: u32,
    /// How names of pods are answered.
    pub pods: PodNames,
    /// Namespace and name of the Service that is the zone's name server, `ns.dns.<domain>`.
    pub name_server: (Arc<str>, Arc<str>),
    /// Whether other names are resolved too (the RA flag, RFC 1035 section 4.1.1).
    pub is_recursive: bool,
}

/// Greatest [`Settings::ttl`], in seconds.
pub const MAX_TTL: u32 = 3600;

impl Default for Settings {
    fn default() -> Self {
        let name = |text| Name::parse(text).expect("a name");
        Self {
            domain: name("cluster.local"),
            clusterset: name("clusterset.local"),
            reverse_zones: Vec::new(),
            ttl: 5,
            pods: PodNames::default(),
            name_server: ("kube-system".into(), "kube-dns".into()),
            is_recursive: true,
        }
    }
}
