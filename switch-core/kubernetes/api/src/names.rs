//! Annotations that podswitch writes.

/// MAC address of our VTEP.
pub(crate) const VTEP_MAC: &str = "podswitch.io/vtep-mac";
/// Addresses at which other nodes reach this node. A node with this annotation runs podswitch.
pub(crate) const PUBLIC_ADDRESS: &str = "podswitch.io/public-address";
/// Addresses of a pod.
pub(crate) const ADDRESSES: &str = "podswitch.io/addresses";
/// Flannel's annotations (flannel-io/flannel, `pkg/subnet/kube/annotations.go`). Flannel nodes use
/// our node only if it has them.
pub(crate) const FLANNEL: &str = "flannel.alpha.coreos.com";
