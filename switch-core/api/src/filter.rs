//! Which flows and drops are asked for.

use std::net::IpAddr;

use podswitch_node::{DroppedFrames, Flow};
use podswitch_wire::flow_key::proto;

/// Conditions that must all hold. Those on ends hold if they hold for one of the ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// `namespace/name`.
    pub(crate) pod: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    /// IP protocol number.
    pub(crate) protocol: Option<u8>,
    /// `namespace/name`.
    pub(crate) service: Option<String>,
    /// State of a TCP connection.
    pub(crate) state: Option<String>,
    /// Reason of a drop, or its class.
    pub(crate) reason: Option<String>,
}

/// The number of a protocol's name, or the number itself.
pub(crate) fn protocol(text: &str) -> Option<u8> {
    Some(match text.to_ascii_lowercase().as_str() {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "sctp" => proto::SCTP,
        "icmp" => proto::ICMP,
        "icmpv6" => proto::ICMPV6,
        other => other.parse().ok()?,
    })
}

fn is_in(namespace: &str, pod: Option<&str>) -> bool {
    pod.and_then(|pod| pod.split_once('/')).is_some_and(|(its, _)| its == namespace)
}

fn holds<T>(wanted: Option<&T>, is: impl FnOnce(&T) -> bool) -> bool {
    wanted.is_none_or(is)
}

impl Filter {
    pub(crate) fn takes_flow(&self, flow: &Flow) -> bool {
        let pods = [flow.src_pod.as_deref(), flow.dst_pod.as_deref()];
        let backend = flow.backend;
        holds(self.pod.as_ref(), |pod| pods.contains(&Some(pod)))
            && holds(self.namespace.as_ref(), |ns| pods.iter().any(|pod| is_in(ns, *pod)))
            && holds(self.address.as_ref(), |a| {
                *a == flow.src || *a == flow.dst || backend.is_some_and(|b| b.ip() == *a)
            })
            && holds(self.port.as_ref(), |port| {
                [flow.sport, flow.dport].contains(port)
                    || backend.is_some_and(|b| b.port() == *port)
            })
            && holds(self.protocol.as_ref(), |protocol| *protocol == flow.protocol)
            && holds(self.service.as_ref(), |service| {
                flow.service.as_ref().is_some_and(|s| s.strip_prefix("Service/") == Some(service))
            })
            && holds(self.state.as_ref(), |state| flow.state == Some(state))
    }

    pub(crate) fn takes_drop(&self, frames: &DroppedFrames) -> bool {
        let record = &frames.record;
        let ends = [record.src.as_ref(), record.dst.as_ref()];
        let mut ends = ends.into_iter().flatten();
        let name = |end: &podswitch_node::End| {
            Some(format!("{}/{}", end.namespace.as_ref()?, end.pod.as_ref()?))
        };
        let at_port = frames.pod.as_ref().map(ToString::to_string);
        holds(self.pod.as_ref(), |pod| {
            at_port.as_ref() == Some(pod) || ends.clone().any(|end| name(end).as_ref() == Some(pod))
        }) && holds(self.namespace.as_ref(), |namespace| {
            is_in(namespace, at_port.as_deref())
                || ends.clone().any(|end| end.namespace.as_deref() == Some(namespace))
        }) && holds(self.address.as_ref(), |address| {
            ends.clone().any(|end| end.address == *address)
                || record.backend.is_some_and(|backend| backend.ip() == *address)
        }) && holds(self.port.as_ref(), |port| {
            ends.any(|end| end.port == *port)
                || record.backend.is_some_and(|backend| backend.port() == *port)
        }) && holds(self.protocol.as_ref(), |protocol| record.protocol == Some(*protocol))
            && holds(self.service.as_ref(), |service| {
                record.service.as_ref().is_some_and(|s| s.strip_prefix("Service/") == Some(service))
            })
            && holds(self.reason.as_ref(), |reason| {
                [record.reason.name(), record.reason.class().name()].contains(&reason.as_str())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_by_name_and_number() {
        assert_eq!(protocol("TCP"), Some(6));
        assert_eq!(protocol("icmpv6"), Some(58));
        assert_eq!(protocol("47"), Some(47));
        assert_eq!(protocol("256"), None);
        assert_eq!(protocol("tcpp"), None);
    }

    #[test]
    fn a_namespace_is_the_part_before_the_slash() {
        assert!(is_in("shop", Some("shop/web")));
        assert!(!is_in("shop", Some("shopping/web")));
        assert!(!is_in("shop", None));
    }
}
