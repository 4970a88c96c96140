//! Options of the whole cluster that are in no Kubernetes object: equal on all nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use podswitch_core::config::{ClusterKey, Config, Masquerade};
use podswitch_core::control::Change;
use podswitch_kubernetes::{Base, Changes, NameOptions, Overlay, PodAnnotations, PodChange};
use podswitch_wire::cidr::Cidr;

use crate::attachment::PodAttachment;
use crate::overlay::OverlayOptions;
use crate::pod_name::PodName;
use crate::state::StateChanges;

/// See the module's description.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// Ranges that the addresses of Services come from, in addition to those of ServiceCIDR
    /// objects. Packets to unassigned addresses in them are dropped.
    pub service_cidrs: Vec<Cidr>,
    /// Ranges in which externalIPs of Services are honoured; none by default, since every author of
    /// a Service could capture any address (CVE-2020-8554).
    pub allowed_external_ips: Vec<Cidr>,
    /// Ranges that belong to the cluster, in addition to those of nodes and pods: packets of pods
    /// to them keep their source address.
    pub cluster_cidrs: Vec<Cidr>,
    /// What happens to the source address of packets that leave the cluster.
    pub masquerade: Masquerading,
    /// The cluster's key, with which all nodes choose the same backends and next hops. `None`: a
    /// public default.
    pub hash_key: Option<ClusterKey>,
    /// How nodes reach each other's pods.
    pub overlay: OverlayOptions,
    /// Whether annotations of pods determine where and how they are attached.
    pub pod_annotations: PodAnnotations,
    /// The names that the switch answers for. `None`: none.
    pub names: Option<NameOptions>,
}

impl ClusterOptions {
    /// Options for reading Kubernetes objects.
    pub fn kubernetes(&self) -> podswitch_kubernetes::Options {
        podswitch_kubernetes::Options {
            service_cidrs: self.service_cidrs.clone(),
            allowed_external_ips: self.allowed_external_ips.clone(),
            pod_annotations: self.pod_annotations,
            names: self.names.clone(),
            ..podswitch_kubernetes::Options::default()
        }
    }

    /// Changes of Kubernetes objects as changes of a node's state.
    pub fn changes(&self, changes: Changes) -> StateChanges {
        let Changes { mut objects, pods, base } = changes;
        if let Some(Base { node, service_cidrs, flannel }) = base {
            let allowed_external_ips = self.allowed_external_ips.clone();
            let mut settings =
                Config { node, service_cidrs, allowed_external_ips, ..Config::default() };
            self.complete(&mut settings, flannel);
            objects.push(Change::Settings(Arc::new(settings)));
        }
        let pods = pods.into_iter().filter_map(|change| match change {
            PodChange::Upsert(pod) => {
                Some((PodName::unchecked(&pod.name), PodAttachment::annotated(&pod)))
            }
            PodChange::Delete(cookie) => {
                let name = cookie.as_str().strip_prefix("Pod/")?;
                Some((PodName::unchecked(name), None))
            }
        });
        StateChanges { objects, pods: pods.collect() }
    }

    /// Adds these options to a configuration. `flannel`: the overlay in Flannel's annotations,
    /// which overrides the defaults.
    pub fn complete(&self, config: &mut Config, flannel: Option<Overlay>) {
        config.cluster_key = self.hash_key.unwrap_or_default();
        config.masquerade = self.masquerade.by_switch(&self.cluster_cidrs);
        self.overlay.complete(config, flannel);
    }
}

/// What happens to the source address of packets that leave the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Masquerading {
    /// The node's kernel replaces it with the node's address.
    #[default]
    Kernel,
    /// The switch replaces it with one of these; a family without one is left unchanged.
    Switch {
        /// For IPv4.
        ipv4: Option<Ipv4Addr>,
        /// For IPv6.
        ipv6: Option<Ipv6Addr>,
    },
    /// Nothing: pods' addresses are routed outside.
    Off,
}

impl Masquerading {
    /// The engine's configuration. `cluster`: ranges that count as the cluster.
    pub(crate) fn by_switch(self, cluster: &[Cidr]) -> Option<Masquerade> {
        match self {
            Self::Switch { ipv4, ipv6 } => {
                Some(Masquerade { ipv4, ipv6, cluster: cluster.to_vec() })
            }
            Self::Kernel | Self::Off => None,
        }
    }
}

/// A text that is not a [`Masquerading`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseMasqueradingError {
    /// A part of it is unknown.
    #[error("{0:?} is neither kernel, off nor an address")]
    Unknown(String),
    /// There are two addresses of one family.
    #[error("two addresses of one family")]
    SameFamily,
}

impl FromStr for Masquerading {
    type Err = ParseMasqueradingError;

    /// `kernel`, `off`, an address, or one of each family with a comma between.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "kernel" => return Ok(Self::Kernel),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let (mut ipv4, mut ipv6) = (None, None);
        for part in text.split(',') {
            let address =
                part.parse().map_err(|_| ParseMasqueradingError::Unknown(part.to_owned()))?;
            let twice = match address {
                IpAddr::V4(a) => ipv4.replace(a).is_some(),
                IpAddr::V6(a) => ipv6.replace(a).is_some(),
            };
            if twice {
                return Err(ParseMasqueradingError::SameFamily);
            }
        }
        Ok(Self::Switch { ipv4, ipv6 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masquerading_is_read() {
        let read = |text: &str| text.parse::<Masquerading>();
        assert_eq!(read("kernel"), Ok(Masquerading::Kernel));
        assert_eq!(read("off"), Ok(Masquerading::Off));
        let (ipv4, ipv6) = (Some([192, 0, 2, 1].into()), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(read("192.0.2.1"), Ok(Masquerading::Switch { ipv4, ipv6: None }));
        assert_eq!(read("2001:db8::1,192.0.2.1"), Ok(Masquerading::Switch { ipv4, ipv6 }));
        assert_eq!(read("192.0.2.1,192.0.2.2"), Err(ParseMasqueradingError::SameFamily));
        for wrong in ["", "on", "192.0.2.1,", "192.0.2.1/32"] {
            assert!(matches!(read(wrong), Err(ParseMasqueradingError::Unknown(_))), "{wrong:?}");
        }
    }
}
