//! This node's own resolver: the backend of the name server's Service where no pod serves it.
//!
//! A workload of the switch with a network namespace of its own. To policies it is a pod of the namespace `kube-system`
//! with the label `k8s-app: kube-dns`, so policies for the cluster's DNS apply to it unchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_linux::NetNs;
use podswitch_policy::rule::Labels;

use crate::attachment::PodAttachment;
use crate::error::NodeError;
use crate::handle::NodeCaller;
use crate::pod_name::PodName;

/// Its addresses: the same on every node, and known to the node alone. Link-local for IPv4, as NodeLocal DNSCache's;
/// unique local for IPv6, because link-local addresses are not routed there.
pub const RESOLVER_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 53, 53)),
    IpAddr::V6(Ipv6Addr::new(0xfd70, 0x6f64, 0x7377, 0, 0, 0, 0, 0x53)),
];

/// Namespace and name of the pod that it is to the switch.
const NAME: (&str, &str) = ("kube-system", "podswitch-resolver");

/// See the module's description. It ends when dropped.
#[derive(Debug)]
pub struct Resolver {
    node: NodeCaller,
    pod: PodName,
}

impl Resolver {
    /// Attaches the resolver to the switch.
    ///
    /// # Errors
    /// Its namespace cannot be made, or cannot be attached.
    pub fn start(node: NodeCaller) -> Result<Self, NodeError> {
        let (namespace, name) = NAME;
        let pod = PodName::new(namespace, name)
            .map_err(|error| NodeError::Option { option: "resolver", reason: error.to_string() })?;
        let place = NetNs::anonymous()?;
        let labels: Labels = [("k8s-app", "kube-dns")].into_iter().collect();
        let attachment = PodAttachment::new(pod.clone(), place, RESOLVER_ADDRESSES).labels(labels);
        node.with(move |node| node.add_pod(attachment))??;
        Ok(Self { node, pod })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let pod = self.pod.clone();
        // The node may have ended before.
        let _ = self.node.with(move |node| node.remove_pod(&pod));
    }
}
