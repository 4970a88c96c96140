//! Validation of a configuration: every error with object, field and reason. Compilation cannot
//! fail afterwards. Conflicts between two objects are found by [`objects`](super::objects).

mod network;
mod policy;
mod service;
mod settings;

use std::net::IpAddr;

pub(super) use network::{EndpointContext, PortContext, bridge, endpoint, node, port, route};
pub(super) use policy::{cluster_policy, network_policy};
pub(super) use service::{host_ports, service, slice};
pub(super) use settings::settings;

/// The path of an element of a list.
pub(super) fn nth<T: PartialEq>(field: &str, list: &[T], element: &T) -> String {
    let at = list.iter().position(|e| e == element).unwrap_or(0);
    format!("{field}[{at}]")
}

/// Neither unspecified, multicast nor broadcast.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_multicast()),
    }
}
