//! Annotations that podswitch uses. A misspelled key would silently have no effect, so it is
//! reported with the nearest known key.

use crate::api::meta::ObjectMeta;
use crate::object::Kind;
use crate::options::{Options, PodAnnotations};
use crate::report::{Field, Findings, Grade};
use crate::spelling::distance;

/// Network namespace of a pod, a path.
pub(crate) const NETNS: &str = "podswitch.io/netns";
/// How a pod is attached: `tap` or `veth`.
pub(crate) const PORT: &str = "podswitch.io/port";
/// Name of the pod's interface.
pub(crate) const INTERFACE: &str = "podswitch.io/interface";
/// MAC address of a pod, or of a node on the underlay.
pub(crate) const MAC: &str = "podswitch.io/mac";
/// MAC address of a node's VTEP.
pub(crate) const VTEP_MAC: &str = "podswitch.io/vtep-mac";
/// Addresses of a pod, at most one of each family, separated by a comma. Written by its node's
/// agent when it attaches the pod (CNI ADD), long before kubelet writes `status.podIPs`.
pub(crate) const ADDRESSES: &str = "podswitch.io/addresses";
/// Addresses at which other nodes reach a node, separated by commas. Written by its agent for
/// information; peers read `status.addresses`.
pub(crate) const PUBLIC_ADDRESS: &str = "podswitch.io/public-address";
/// Size of a Service's Maglev tables.
pub(crate) const MAGLEV_SIZE: &str = "podswitch.io/maglev-size";

/// When the Service or pod changed that an EndpointSlice reflects, to measure how long the change
/// takes to be in force.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The prefix of all podswitch keys.
const PREFIX: &str = "podswitch.io/";

const KEYS: &[(&str, &[Kind])] = &[
    (NETNS, &[Kind::Pod]),
    (PORT, &[Kind::Pod]),
    (INTERFACE, &[Kind::Pod]),
    (MAC, &[Kind::Pod, Kind::Node]),
    (ADDRESSES, &[Kind::Pod]),
    (VTEP_MAC, &[Kind::Node]),
    (PUBLIC_ADDRESS, &[Kind::Node]),
    (MAGLEV_SIZE, &[Kind::Service]),
];

/// Whether podswitch uses a key, or it looks like a misspelling of one.
pub(crate) fn has_meaning(key: &str) -> bool {
    key.starts_with(PREFIX)
        || key == TRIGGER_TIME
        || key.starts_with("flannel.alpha.coreos.com/")
        || key.starts_with("pod") && key.len() <= LONGEST + 2
}

/// Length of the longest podswitch key, in bytes.
const LONGEST: usize = PUBLIC_ADDRESS.len();

/// Reports keys that look like podswitch's and have no effect on an object of this kind.
pub(crate) fn check(kind: Kind, meta: &ObjectMeta, options: &Options, faults: &mut Findings) {
    let metadata = Field::root("metadata");
    let annotations = metadata.child("annotations");
    // A tenant's annotations must not make the operator's checks fail.
    let trusted = kind != Kind::Pod || options.pod_annotations == PodAnnotations::Trust;
    let grade = if trusted { Grade::Alarm } else { Grade::Note };
    for key in meta.annotations.iter().flatten().map(|(key, _)| key) {
        let known = KEYS.iter().find(|(known, _)| known == key);
        let reason = match known {
            Some((_, kinds)) if kinds.contains(&kind) => continue,
            Some((_, kinds)) => {
                let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                format!("has no effect on a {}: it is for {}", kind.name(), names.join(" and "))
            }
            None => match unknown(key, kind) {
                Some(reason) => reason,
                None => continue,
            },
        };
        faults.say(grade, &annotations.key(key), reason);
    }
}

/// The error of an unknown key: none, unless it resembles a podswitch key.
fn unknown(key: &str, kind: Kind) -> Option<String> {
    // Do not compare other keys: a cluster has a million of them.
    let ours = key.starts_with(PREFIX);
    let near = key.starts_with("pod") && key.len() <= LONGEST + 2;
    if !ours && !near {
        return None;
    }
    let of_kind = |kinds: &&(&str, &[Kind])| kinds.1.contains(&kind);
    let nearest = KEYS
        .iter()
        .filter(of_kind)
        .chain(KEYS)
        .map(|(known, _)| (distance(key, known), *known))
        .min_by_key(|(distance, _)| *distance)?;
    match nearest {
        (..=3, known) => Some(format!("is not a known key; did you mean {known}?")),
        _ if ours => {
            let known: Vec<_> = KEYS.iter().filter(of_kind).map(|(known, _)| *known).collect();
            Some(match &known[..] {
                [] => format!("is not a known key; a {} has none", kind.name()),
                known => format!("is not a known key; a {} has {}", kind.name(), known.join(", ")),
            })
        }
        _ => None,
    }
}
