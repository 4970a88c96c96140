//! Kinds of objects: those that podswitch reads, and probable misspellings of them. If a policy
//! were ignored because its kind or version is mistyped, traffic that it denies would be allowed.

use crate::report::{Fault, quote};
use crate::spelling::{distance, nearest};

/// A kind that podswitch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// core/v1.
    Namespace,
    /// core/v1.
    Node,
    /// core/v1.
    Pod,
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2.
    ClusterNetworkPolicy,
    /// core/v1.
    Service,
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// networking.k8s.io/v1 or v1beta1.
    ServiceCidr,
}

/// Name, plural, API group, versions, and whether its objects are in a namespace.
struct Facts {
    name: &'static str,
    plural: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    namespaced: bool,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceCidr,
    ];

    const fn facts(self) -> Facts {
        let (name, plural, group, versions, namespaced): (_, _, _, &[&str], _) = match self {
            Self::Namespace => ("Namespace", "namespaces", "", &["v1"], false),
            Self::Node => ("Node", "nodes", "", &["v1"], false),
            Self::Pod => ("Pod", "pods", "", &["v1"], true),
            Self::NetworkPolicy => {
                ("NetworkPolicy", "networkpolicies", "networking.k8s.io", &["v1"], true)
            }
            Self::ClusterNetworkPolicy => {
                let group = "policy.networking.k8s.io";
                ("ClusterNetworkPolicy", "clusternetworkpolicies", group, &["v1alpha2"], false)
            }
            Self::Service => ("Service", "services", "", &["v1"], true),
            Self::EndpointSlice => {
                ("EndpointSlice", "endpointslices", "discovery.k8s.io", &["v1"], true)
            }
            Self::ServiceCidr => {
                ("ServiceCIDR", "servicecidrs", "networking.k8s.io", &["v1", "v1beta1"], false)
            }
        };
        Facts { name, plural, group, versions, namespaced }
    }

    /// Name in the API.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Name in the API's paths, such as `networkpolicies`.
    pub const fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        self.facts().group
    }

    /// Versions that are read, the preferred one first.
    pub const fn versions(self) -> &'static [&'static str] {
        self.facts().versions
    }

    /// Whether its objects belong to a namespace.
    pub const fn is_namespaced(self) -> bool {
        self.facts().namespaced
    }

    /// Whether it is a policy.
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::NetworkPolicy | Self::ClusterNetworkPolicy)
    }

    /// The valid values of `apiVersion`.
    fn right_versions(self) -> String {
        let Facts { group, versions, .. } = self.facts();
        let versions = versions.iter().map(|version| match group {
            "" => (*version).to_owned(),
            group => format!("{group}/{version}"),
        });
        versions.collect::<Vec<_>>().join(" or ")
    }
}

/// The kind that kind and version of an object stand for.
pub(crate) enum Named {
    /// A kind that podswitch reads.
    Read(Kind),
    /// A kind that podswitch reads is meant, but kind or version is misspelled.
    Mistaken(Kind, Fault),
    /// Another kind.
    Other,
}

/// Finds the kind for `kind` and `apiVersion`.
pub(crate) fn named(kind: &str, version: &str) -> Named {
    let (group, number) = version.rsplit_once('/').unwrap_or(("", version));
    if let Some(known) = Kind::ALL.into_iter().find(|known| known.name() == kind) {
        let facts = known.facts();
        if facts.group == group && facts.versions.contains(&number) {
            return Named::Read(known);
        }
        if facts.group == group || version.is_empty() || is_meant(known, group) {
            let reason = format!("{} is not {}", quote(version), known.right_versions());
            return Named::Mistaken(known, Fault { field: "apiVersion".to_owned(), reason });
        }
        return Named::Other;
    }
    let Some(known) = meant_kind(kind) else { return Named::Other };
    if known.facts().group != group && !is_meant(known, group) {
        return Named::Other;
    }
    let reason = format!("{} is not a supported kind; did you mean {}?", quote(kind), known.name());
    Named::Mistaken(known, Fault { field: "kind".to_owned(), reason })
}

/// The kind that a misspelling stands for: different case, the plural, or up to two wrong letters.
fn meant_kind(kind: &str) -> Option<Kind> {
    let names = Kind::ALL.map(Kind::name);
    let same = |name: &&&'static str| {
        let plural = match name.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{name}s"),
        };
        name.eq_ignore_ascii_case(kind) || plural.eq_ignore_ascii_case(kind)
    };
    // For a short name, two wrong letters would match other words: Pod, Job.
    let near = || nearest(kind, &names, 2).filter(|name| name.len() > 8 && kind.len() > 8);
    let name = names.iter().find(same).copied().or_else(near)?;
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}

/// Whether a wrong API group is a mistake, or one of the kind's former groups. Other projects'
/// groups (`projectcalico.org`) have different kinds with the same names.
fn is_meant(kind: Kind, group: &str) -> bool {
    let right = kind.facts().group;
    match group {
        "" => !right.is_empty(),
        // "core/v1" is a common mistake, and only Kubernetes' own groups have no dot.
        "core" => true,
        group if !group.contains('.') => kind.is_policy(),
        group => {
            !right.is_empty() && distance(group, right) <= 4
                || kind.is_policy()
                    && (group.ends_with("k8s.io") || group.ends_with("kubernetes.io"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistaken(kind: &str, version: &str) -> Option<(&'static str, String)> {
        match named(kind, version) {
            Named::Mistaken(kind, fault) => Some((kind.name(), fault.field)),
            _ => None,
        }
    }

    #[test]
    fn supported_kinds() {
        for (kind, version) in [
            ("Pod", "v1"),
            ("NetworkPolicy", "networking.k8s.io/v1"),
            ("ServiceCIDR", "networking.k8s.io/v1beta1"),
            ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
        ] {
            assert!(matches!(named(kind, version), Named::Read(it) if it.name() == kind), "{kind}");
        }
    }

    #[test]
    fn mistyped_policies() {
        for version in [
            "networking.k8s.io/v1beta1",
            "networking.k8s.io/V1",
            "extensions/v1beta1",
            "v1",
            "networking/v1",
            "network.k8s.io/v1",
            "networking.k8s.oi/v1",
            "networking.kubernetes.io/v1",
            "",
        ] {
            let expected = Some(("NetworkPolicy", "apiVersion".to_owned()));
            assert_eq!(mistaken("NetworkPolicy", version), expected, "{version}");
        }
        for kind in [
            "NetworkPolicies",
            "Networkpolicy",
            "networkpolicy",
            "networkPolicy",
            "NetworkPolciy",
            "NetworkPolicys",
        ] {
            let expected = Some(("NetworkPolicy", "kind".to_owned()));
            assert_eq!(mistaken(kind, "networking.k8s.io/v1"), expected, "{kind}");
        }
        let found = mistaken("ClusterNetworkPolicies", "policy.networking.k8s.io/v1alpha2");
        assert_eq!(found, Some(("ClusterNetworkPolicy", "kind".to_owned())));
    }

    #[test]
    fn other_kinds_are_other() {
        for (kind, version) in [
            ("NetworkPolicy", "projectcalico.org/v3"),
            ("NetworkPolicy", "crd.projectcalico.org/v1"),
            ("CiliumNetworkPolicy", "cilium.io/v2"),
            ("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
            ("Job", "batch/v1"),
            ("Service", "serving.knative.dev/v1"),
            ("Node", "longhorn.io/v1beta2"),
            ("Pod", "example.com/v1"),
            ("PodList", "metrics.k8s.io/v1beta1"),
            ("Ingress", "networking.k8s.io/v1"),
            ("Endpoints", "v1"),
            ("Lease", "coordination.k8s.io/v1"),
            ("PodMetrics", "metrics.k8s.io/v1beta1"),
        ] {
            assert!(matches!(named(kind, version), Named::Other), "{kind} of {version}");
        }
        assert_eq!(mistaken("pods", "v1"), Some(("Pod", "kind".to_owned())));
        assert_eq!(mistaken("Pod", "core/v1"), Some(("Pod", "apiVersion".to_owned())));
    }
}
