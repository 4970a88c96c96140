//! Annotations that are written.

/// MAC address of our VTEP.
pub(crate) const VTEP_MAC: &str = "podswitch.io/vtep-mac";
/// Addresses by which other nodes reach us; a node that has it runs this switch.
pub(crate) const PUBLIC_ADDRESS: &str = "podswitch.io/public-address";
/// Addresses of a pod.
pub(crate) const ADDRESSES: &str = "podswitch.io/addresses";
/// Flannel's annotations (flannel-io/flannel, `pkg/subnet/kube/annotations.go`): its nodes follow ours only with them.
pub(crate) const FLANNEL: &str = "flannel.alpha.coreos.com";
