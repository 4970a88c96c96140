//! Ranks claimants of the same thing: the live one wins, then the newer one. Kubernetes keeps an
//! object for a while after what it describes is gone: a terminating pod on a lost node, or the
//! Node object of a machine that was reinstalled under another name. Its addresses may be in use
//! again by then.

use std::cmp::Reverse;

use super::pod::has_reported_address;
use crate::api::meta::ObjectMeta;
use crate::object::Typed;

/// Rank of claims; the greatest wins. Between equals the name decides, which gives the same result
/// on every node; between objects without creationTimestamp (written by hand) the first to arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Nodes before pods before Services: a node's address is a fact, a Service's only a request.
    kind: u8,
    /// This node is live: its switch runs.
    pub(crate) this_node: bool,
    /// Not marked for deletion.
    stays: bool,
    /// Pod: its status has an address. An address that is only in an annotation may be a tenant's
    /// claim, and does not take an address away from a live pod.
    reported: bool,
    /// Pod: not in phase Unknown. Node: its condition Ready is not False or Unknown.
    healthy: bool,
    age: Age,
    /// Sequence number of the claims of an object without creationTimestamp. 0 for others.
    arrival: Reverse<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Age {
    /// Pods and nodes: the newer wins. An object without a time was written by hand, and counts as
    /// created now.
    Newer(i64),
    /// Services: the older wins, which had the address or port first.
    Older(Reverse<i64>),
}

impl Default for Age {
    fn default() -> Self {
        Self::Newer(i64::MIN)
    }
}

impl Rank {
    /// Whether the object has no creationTimestamp.
    pub(crate) fn is_undated(self) -> bool {
        matches!(self.age, Age::Newer(i64::MAX) | Age::Older(Reverse(i64::MAX)))
    }

    /// Sequence number of its claims, for an object without creationTimestamp.
    pub(crate) fn arrival(self) -> u64 {
        self.arrival.0
    }

    /// Sets the sequence number of its claims.
    pub(crate) fn set_arrival(&mut self, arrival: u64) {
        self.arrival = Reverse(arrival);
    }

    /// Why an object of this rank wins over one of rank `other`.
    pub(crate) fn why_before(self, other: Self) -> &'static str {
        if self.kind != other.kind {
            "which takes precedence"
        } else if self.this_node != other.this_node {
            "which is this node"
        } else if self.stays != other.stays {
            "which is not marked for deletion"
        } else if self.reported != other.reported {
            "whose status reports it"
        } else if self.healthy != other.healthy {
            "which is known to be live"
        } else {
            match (self.age, other.age) {
                (Age::Newer(a), Age::Newer(b)) if a > b => "which is newer",
                (Age::Older(a), Age::Older(b)) if a > b => "which is older",
                _ if self.is_undated() && other.is_undated() => "which came first",
                _ => "which comes first by name",
            }
        }
    }

    /// The rank of an object.
    pub(crate) fn of(meta: &ObjectMeta, object: &Typed) -> Self {
        let created = meta.creation_timestamp.as_deref().and_then(seconds).unwrap_or(i64::MAX);
        let rank = Self {
            kind: 0,
            this_node: false,
            stays: meta.deletion_timestamp.as_deref().is_none_or(str::is_empty),
            reported: true,
            healthy: true,
            age: Age::Newer(created),
            arrival: Reverse(0),
        };
        match object {
            Typed::Node(node) => {
                let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
                let mut ready = conditions.filter(|c| c.kind.as_deref() == Some("Ready"));
                let healthy =
                    ready.all(|c| !matches!(c.status.as_deref(), Some("False" | "Unknown")));
                Self { kind: 3, healthy, ..rank }
            }
            Typed::Pod(pod) => {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                let reported = pod.status.as_ref().is_some_and(has_reported_address);
                Self { kind: 2, reported, healthy: phase != Some("Unknown"), ..rank }
            }
            Typed::Service(_) => Self { kind: 1, age: Age::Older(Reverse(created)), ..rank },
            _ => rank,
        }
    }
}

/// Seconds since 1970 of an RFC 3339 time, such as `2026-11-30T05:00:00Z`.
fn seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), ..] if zone.len() == 6 => {
            let minutes =
                zone.get(1..3)?.parse::<i64>().ok()? * 60 + zone.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'+' { minutes * 60 } else { -minutes * 60 }
        }
        _ => return None,
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 0 {
        return None;
    }
    // Days since 1970-03-01. Years begin in March, so that leap days come last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
            - 1
            - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2026-11-30T05:05:29Z"), Some(1_796_015_129));
        assert_eq!(seconds("2024-02-29T23:59:60.123456Z"), Some(1_709_251_200));
        assert_eq!(seconds("2024-03-01T02:00:00+02:00"), Some(1_709_251_200));
        for bad in [
            "",
            "2026",
            "2026-13-01T00:00:00Z",
            "2026-11-30 05:05:29",
            "2026-11-30T05:05:29",
            "é026-11-30T05:05:29Z",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
