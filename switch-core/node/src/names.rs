//! Names that people type: resolves them, and suggests the nearest existing names for unknown ones.
//!
//! Commands, the control socket and embedders share [`UnknownName`], so that every mistyped name gets the same help.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use podswitch_core::action::{DropClass, DropReason};
use podswitch_core::snapshot::Snapshot;
use podswitch_kubernetes::distance as edits_between;

/// Maximum number of suggested names.
const SUGGESTED: usize = 3;
/// Up to this many names are all listed if none is near.
const LISTED: usize = 8;

/// No object has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownName {
    /// The kind of object, such as `pod`; may be empty.
    pub kind: &'static str,
    /// The name.
    pub name: String,
    /// The nearest names that exist, the best first; at most three.
    pub nearest: Vec<String>,
    /// All existing names, if none is near and there are at most eight.
    pub known: Vec<String>,
}

impl UnknownName {
    /// The error that `name` is not in `known`.
    pub fn new<T: AsRef<str>>(
        kind: &'static str,
        name: &str,
        known: impl IntoIterator<Item = T>,
    ) -> Self {
        let (mut near, mut all) = (BTreeSet::new(), BTreeSet::new());
        for candidate in known {
            let candidate = candidate.as_ref();
            if all.len() <= LISTED && !all.contains(candidate) {
                all.insert(candidate.to_owned());
            }
            if let Some(distance) = distance(name, candidate) {
                near.insert((distance, candidate.to_owned()));
                if near.len() > SUGGESTED {
                    near.pop_last();
                }
            }
        }
        let is_listed = near.is_empty() && all.len() <= LISTED;
        let nearest = near.into_iter().map(|(_, name)| name).collect();
        let known = all.into_iter().filter(|_| is_listed).collect();
        Self { kind, name: name.to_owned(), nearest, known }
    }

    /// Whether `name` is one of `known`.
    ///
    /// # Errors
    /// It is not.
    pub fn check<T: AsRef<str>, I: IntoIterator<Item = T> + Clone>(
        kind: &'static str,
        name: &str,
        known: I,
    ) -> Result<(), Self> {
        match known.clone().into_iter().any(|known| known.as_ref() == name) {
            true => Ok(()),
            false => Err(Self::new(kind, name, known)),
        }
    }
}

/// Distance of a name from an existing one; `None`: too far to suggest. A few edits come first,
/// then the same name in different case, with a suffix that a controller appended, or in another
/// namespace.
fn distance(name: &str, known: &str) -> Option<usize> {
    /// Greater than any number of edits.
    const OTHER_CASE: usize = 1000;
    const LONGER: usize = 1001;
    const OTHER_NAMESPACE: usize = 1002;
    if name.is_empty() || name == known {
        return None;
    }
    let longest = name.split('/').map(str::len).max().unwrap_or_default();
    let most = (longest / 3).max(1);
    let edits = edits_between(name, known);
    if edits <= most || edits == 2 && is_swapped(name, known) {
        return Some(edits);
    }
    if name.eq_ignore_ascii_case(known) {
        return Some(OTHER_CASE);
    }
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let (own, its) = (last(name), last(known));
    if known.starts_with(name) && (name.contains('/') || name.len() > 2) {
        return Some(LONGER);
    }
    if own.len() < 3 {
        return None;
    }
    its.starts_with(&own).then_some(OTHER_NAMESPACE)
}

/// Whether two neighbouring characters are swapped.
fn is_swapped(one: &str, other: &str) -> bool {
    let mut differ = one.bytes().zip(other.bytes()).filter(|(a, b)| a != b);
    let (first, second) = (differ.next(), differ.next());
    first.zip(second).is_some_and(|((a, b), (c, d))| (a, b) == (d, c)) && differ.next().is_none()
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.kind.is_empty() { "" } else { " " };
        write!(f, "there is no {}{space}{}", self.kind, self.name)?;
        match &*self.nearest {
            [] if self.known.is_empty() => Ok(()),
            [] => write!(f, "; there are {}", self.known.join(", ")),
            [one] => write!(f, "; did you mean {one}?"),
            [first @ .., last] => write!(f, "; did you mean {} or {last}?", first.join(", ")),
        }
    }
}

impl std::error::Error for UnknownName {}

/// Names of protocols, and the number of each.
const PROTOCOLS: [(&str, u8); 5] =
    [("TCP", 6), ("UDP", 17), ("SCTP", 132), ("ICMP", 1), ("ICMPv6", 58)];

/// The IP protocol number of a name in any case, or of a number.
///
/// # Errors
/// It is neither.
pub fn protocol_number(text: &str) -> Result<u8, UnknownName> {
    let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    if let Some(number) = named.map(|(_, number)| *number).or(text.parse().ok()) {
        return Ok(number);
    }
    // Upper case, so that a difference in case does not count as an edit.
    let names = PROTOCOLS.map(|(name, _)| name);
    let mut unknown = UnknownName::new("protocol", &text.to_ascii_uppercase(), names);
    text.clone_into(&mut unknown.name);
    Err(unknown)
}

/// The name of an IP protocol, or its number.
pub fn protocol_name(number: u8) -> String {
    let named = PROTOCOLS.iter().find(|(_, known)| *known == number);
    named.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// Checks that `name` is a drop reason or a class of drop reasons.
///
/// # Errors
/// It is not.
pub fn check_drop_reason(name: &str) -> Result<(), UnknownName> {
    let classes: BTreeSet<DropClass> = DropReason::ALL.iter().map(|r| r.class()).collect();
    let names = DropReason::ALL.iter().map(|reason| reason.name());
    UnknownName::check("drop reason", name, names.chain(classes.iter().map(|c| c.name())))
}

/// `namespace/name` of each pod, with each of its addresses. Includes pods with their node's
/// network.
pub(crate) fn pods(snapshot: &Snapshot) -> impl Iterator<Item = (String, IpAddr)> {
    snapshot.endpoints.iter().map(|(address, facts)| {
        let workload = &facts.endpoint.workload;
        (format!("{}/{}", workload.namespace, workload.name), *address)
    })
}

/// `namespace/name` of each Service with an address, with each of its addresses.
pub(crate) fn services(snapshot: &Snapshot) -> impl Iterator<Item = (String, IpAddr)> {
    snapshot.services.frontends().filter_map(|frontend| {
        let name = frontend.entry.cookie.strip_prefix("Service/")?;
        Some((name.to_owned(), frontend.address))
    })
}

/// The addresses of the object with this name in the state in force. The name is an address,
/// `namespace/pod`, `node/NAME`, or `service/NAMESPACE/NAME` (its cluster IPs and other addresses).
///
/// # Errors
/// No object has this name.
pub(crate) fn addresses(snapshot: &Snapshot, name: &str) -> Result<Vec<IpAddr>, UnknownName> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let mut found: Vec<IpAddr> = Vec::new();
    let mut others = BTreeSet::new();
    let mut consider = |(candidate, address): (String, IpAddr)| match candidate == name {
        true => found.push(address),
        false => drop(others.insert(candidate)),
    };
    if name.starts_with("service/") {
        let named = |(service, address)| (format!("service/{service}"), address);
        services(snapshot).map(named).for_each(consider);
    } else if name.starts_with("node/") {
        let own = format!("node/{}", snapshot.node);
        snapshot.node_addresses.iter().for_each(|address| consider((own.clone(), *address)));
        for (address, facts) in snapshot.endpoints.iter() {
            if facts.endpoint.workload.host_network {
                consider((format!("node/{}", facts.endpoint.node), *address));
            }
        }
    } else {
        pods(snapshot).for_each(consider);
    }
    found.sort();
    found.dedup();
    match found.is_empty() {
        false => Ok(found),
        true => Err(UnknownName::new("", name, others)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(name: &str, known: &[&str]) -> String {
        UnknownName::new("pod", name, known).to_string()
    }

    #[test]
    fn nearest_names() {
        let pods =
            ["shop/web-7d4b9-x2x", "shop/web-7d4b9-k8k", "shop/db-0", "shop/db-1", "lab/web"];
        for (name, nearest) in [
            ("shop/bd-0", "shop/db-0"),
            ("shop/db-2", "shop/db-0 or shop/db-1"),
            ("shop/web", "shop/web-7d4b9-k8k, shop/web-7d4b9-x2x or lab/web"),
            ("shop/db", "shop/db-0 or shop/db-1"),
            ("LAB/WEB", "lab/web"),
            ("web", "lab/web, shop/web-7d4b9-k8k or shop/web-7d4b9-x2x"),
        ] {
            let text = format!("there is no pod {name}; did you mean {nearest}?");
            assert_eq!(says(name, &pods), text);
        }
        assert_eq!(
            says("billing/cron", &pods[3..]),
            "there is no pod billing/cron; there are lab/web, shop/db-1"
        );
        let many: Vec<String> = (0..9).map(|n| format!("shop/db-{n}")).collect();
        assert_eq!(UnknownName::new("pod", "x/y", &many).to_string(), "there is no pod x/y");
        assert_eq!(UnknownName::new("", "x/y", [""; 0]).to_string(), "there is no x/y");
    }

    #[test]
    fn protocols_by_name_and_number() {
        for (text, number) in [("TCP", 6), ("udp", 17), ("icmpv6", 58), ("47", 47)] {
            assert_eq!(protocol_number(text), Ok(number));
        }
        let error = |text| protocol_number(text).expect_err(text).to_string();
        assert_eq!(error("tcpp"), "there is no protocol tcpp; did you mean TCP?");
        assert_eq!(error("stcp"), "there is no protocol stcp; did you mean TCP or SCTP?");
        assert_eq!(
            error("256"),
            "there is no protocol 256; there are ICMP, ICMPv6, SCTP, TCP, UDP"
        );
        assert_eq!((protocol_name(132), protocol_name(47)), ("SCTP".to_owned(), "47".to_owned()));
    }

    #[test]
    fn drop_reasons_and_classes() {
        assert_eq!(check_drop_reason("policy_ingress"), Ok(()));
        assert_eq!(check_drop_reason("policy"), Ok(()));
        let error = check_drop_reason("policy_ingres").expect_err("mistyped").to_string();
        assert_eq!(
            error.split_once(';').expect("a suggestion").0,
            "there is no drop reason policy_ingres"
        );
        assert!(error.contains("did you mean policy_ingress"), "{error}");
    }
}
