//! The filter of queries for drops.

use std::time::{Duration, SystemTime};

use podswitch_node::{DroppedFrames, FlowFilter};

/// Resolution of the times in records: a time that was read there holds for its record.
const WRITTEN: Duration = Duration::from_micros(1);

/// Conditions on dropped frames, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DropFilter {
    /// Conditions on the ends and the Service; a condition holds if it holds for one end.
    pub(crate) ends: FlowFilter,
    /// Reason of a drop, or its class.
    pub(crate) reason: Option<String>,
    /// Only those that were dropped at this time or later.
    pub(crate) since: Option<SystemTime>,
    /// Only those that were dropped at this time or before.
    pub(crate) until: Option<SystemTime>,
}

fn is_in(namespace: &str, pod: Option<&str>) -> bool {
    pod.and_then(|pod| pod.split_once('/')).is_some_and(|(its, _)| its == namespace)
}

fn holds<T>(wanted: Option<&T>, is: impl FnOnce(&T) -> bool) -> bool {
    wanted.is_none_or(is)
}

impl DropFilter {
    pub(crate) fn takes(&self, frames: &DroppedFrames) -> bool {
        let wanted = &self.ends;
        let record = &frames.record;
        let ends = [record.src.as_ref(), record.dst.as_ref()];
        let mut ends = ends.into_iter().flatten();
        let name = |end: &podswitch_node::End| {
            Some(format!("{}/{}", end.namespace.as_ref()?, end.pod.as_ref()?))
        };
        let at_port = frames.pod.as_ref().map(ToString::to_string);
        holds(wanted.pod.as_ref(), |pod| {
            at_port.as_ref() == Some(pod) || ends.clone().any(|end| name(end).as_ref() == Some(pod))
        }) && holds(wanted.namespace.as_ref(), |namespace| {
            is_in(namespace, at_port.as_deref())
                || ends.clone().any(|end| end.namespace.as_deref() == Some(namespace))
        }) && holds(wanted.addresses.as_ref(), |range| {
            ends.clone().any(|end| range.contains(end.address))
                || record.backend.is_some_and(|backend| range.contains(backend.ip()))
        }) && holds(wanted.port.as_ref(), |port| {
            ends.any(|end| end.port == *port)
                || record.backend.is_some_and(|backend| backend.port() == *port)
        }) && holds(wanted.protocol.as_ref(), |protocol| record.protocol == Some(*protocol))
            && holds(wanted.service.as_ref(), |service| {
                record.service.as_ref().is_some_and(|s| s.strip_prefix("Service/") == Some(service))
            })
            && holds(self.reason.as_ref(), |reason| {
                [record.reason.name(), record.reason.class().name()].contains(&reason.as_str())
            })
            // A record of several frames covers a time.
            && holds(self.since.as_ref(), |since| frames.last >= *since)
            && holds(self.until.as_ref(), |until| frames.first < *until + WRITTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_the_part_before_the_slash() {
        assert!(is_in("shop", Some("shop/web")));
        assert!(!is_in("shop", Some("shopping/web")));
        assert!(!is_in("shop", None));
    }
}
