//! ClusterNetworkPolicy: the checks of the resource's definition (network-policy-api,
//! `apis/v1alpha2`), and the model's form. What a later version may add fails closed where the
//! API says so, and refuses the object elsewhere.

use std::sync::Arc;

use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterTier, NamespacedPods, PortRule,
    Ports, Protocol, Selector,
};
use podswitch_wire::cidr::Cidr;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::pod::port_number;
use super::selector::selector;
use super::{Compiler, Loaded};
use crate::api::cluster::{
    ClusterNetworkPolicySpec, DestinationPort, NamespacedPod, OneOf, ProtocolMatch,
};
use crate::api::meta::LabelSelector;
use crate::object::decode;
use crate::refusal::{Faults, Field, quote};
use crate::validate::address::cidr;
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const SPEC: Field<'static> = Field::root("spec");
const MOST_RULES: usize = ClusterNetworkPolicy::MAX_RULES;
const MOST_ITEMS: usize = ClusterNetworkPolicy::MAX_ITEMS;
const LONGEST_NAME: usize = 100;

/// Reads one policy.
pub(super) fn compile(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    policy: &crate::api::cluster::ClusterNetworkPolicy,
) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: false, name: name::dns_subdomain };
    object_meta(&object.meta, naming, &mut faults);
    let empty = ClusterNetworkPolicySpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&empty);
    let mut reader = Reader { compiler, object, faults };
    let tier = reader.tier(spec.tier.as_deref());
    let priority = reader.priority(spec.priority);
    let subject = reader.subject(spec.subject.as_ref());
    let ingress = spec.ingress.iter().flatten().map(|rule| RuleText {
        name: rule.name.as_deref(),
        action: rule.action.as_deref(),
        peers: rule.from.as_deref(),
        protocols: rule.protocols.as_deref(),
    });
    let ingress = reader.rules(ingress, Way::Ingress);
    let egress = spec.egress.iter().flatten().map(|rule| RuleText {
        name: rule.name.as_deref(),
        action: rule.action.as_deref(),
        peers: rule.to.as_deref(),
        protocols: rule.protocols.as_deref(),
    });
    let egress = reader.rules(egress, Way::Egress);
    let faults = reader.faults;
    let (Some(tier), Some(priority), Some(subject), true) =
        (tier, priority, subject, faults.is_empty())
    else {
        return compiler.refuse(object, faults);
    };
    let name = compiler.names.get(object.meta.name.as_deref().unwrap_or_default());
    let cookie = object.cookie.as_str().into();
    let policy = ClusterNetworkPolicy { cookie, name, tier, priority, subject, ingress, egress };
    compiler.cluster_policies.push(Arc::new(policy));
}

/// Direction of a list of rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

/// A rule of either direction.
struct RuleText<'a> {
    name: Option<&'a str>,
    action: Option<&'a str>,
    peers: Option<&'a [OneOf]>,
    protocols: Option<&'a [OneOf]>,
}

/// Reads the parts of one policy. Functions that give `None` have told why.
struct Reader<'c, 'a> {
    compiler: &'c mut Compiler<'a>,
    object: &'c Loaded,
    faults: Faults,
}

impl Reader<'_, '_> {
    fn tier(&mut self, text: Option<&str>) -> Option<ClusterTier> {
        match text.unwrap_or_default() {
            "Admin" => Some(ClusterTier::Admin),
            "Baseline" => Some(ClusterTier::Baseline),
            other => {
                let reason = format!("{} is not one of Admin, Baseline", quote(other));
                self.faults.add(&SPEC.child("tier"), reason);
                None
            }
        }
    }

    fn priority(&mut self, number: Option<i64>) -> Option<u16> {
        let most = ClusterNetworkPolicy::MAX_PRIORITY;
        let found = number.and_then(|n| u16::try_from(n).ok()).filter(|&n| n <= most);
        if found.is_none() {
            let what = number.map_or("nothing".to_owned(), |n| n.to_string());
            let reason = format!("{what} is not a number from 0 to {most}");
            self.faults.add(&SPEC.child("priority"), reason);
        }
        found
    }

    /// The one field that is there.
    fn one_of<'v>(
        &mut self,
        fields: &'v OneOf,
        known: &str,
        field: &Field<'_>,
    ) -> Option<(&'v str, &'v Value)> {
        let mut there = fields.iter().filter(|(_, value)| !value.is_null());
        match (there.next(), there.next()) {
            (Some((name, value)), None) => Some((name, value)),
            (None, _) => {
                self.faults.add(field, format!("says nothing: one of {known} must be there"));
                None
            }
            (Some((one, _)), Some((other, _))) => {
                let (one, other) = (quote(one), quote(other));
                self.faults.add(field, format!("{one} and {other} exclude each other"));
                None
            }
        }
    }

    fn decode<T: DeserializeOwned>(&mut self, value: &Value, field: &Field<'_>) -> Option<T> {
        decode(value.clone())
            .map_err(|fault| {
                let dot =
                    if fault.field.is_empty() || fault.field.starts_with('[') { "" } else { "." };
                self.faults.add_at(format!("{field}{dot}{}", fault.field), fault.reason);
            })
            .ok()
    }

    fn selector(&mut self, value: &Value, field: &Field<'_>) -> Option<Selector> {
        let text: LabelSelector = self.decode(value, field)?;
        Some(selector(&mut self.compiler.names, &text, field, &mut self.faults))
    }

    fn subject(&mut self, fields: Option<&OneOf>) -> Option<NamespacedPods> {
        let (field, known) = (SPEC.child("subject"), "namespaces, pods");
        let empty = OneOf::new();
        let (name, value) = self.one_of(fields.unwrap_or(&empty), known, &field)?;
        match name {
            "namespaces" => self.namespaces(value, &field.child(name)),
            "pods" => self.pods(value, &field.child(name)),
            other => {
                let reason = format!("{} is not one of {known}", quote(other));
                self.faults.add(&field, reason);
                None
            }
        }
    }

    fn namespaces(&mut self, value: &Value, field: &Field<'_>) -> Option<NamespacedPods> {
        let namespaces = self.selector(value, field)?;
        Some(NamespacedPods { namespaces, pods: Selector::everything() })
    }

    fn pods(&mut self, value: &Value, field: &Field<'_>) -> Option<NamespacedPods> {
        let text: NamespacedPod = self.decode(value, field)?;
        let names = &mut self.compiler.names;
        let namespaces = text.namespace_selector.unwrap_or_default();
        let namespaces_field = field.child("namespaceSelector");
        let namespaces = selector(names, &namespaces, &namespaces_field, &mut self.faults);
        let pods_field = field.child("podSelector");
        let Some(pods) = text.pod_selector else {
            self.faults.add(&pods_field, "is missing; empty ({}) selects all pods");
            return None;
        };
        let pods = selector(names, &pods, &pods_field, &mut self.faults);
        Some(NamespacedPods { namespaces, pods })
    }

    fn rules<'t>(
        &mut self,
        rules: impl Iterator<Item = RuleText<'t>>,
        way: Way,
    ) -> Vec<ClusterRule> {
        let field = SPEC.child(if way == Way::Ingress { "ingress" } else { "egress" });
        let mut found = Vec::new();
        for (at, rule) in rules.enumerate() {
            if at == MOST_RULES {
                self.faults.add(&field, format!("more than {MOST_RULES} rules"));
                break;
            }
            found.extend(self.rule(&rule, way, &field.index(at)));
        }
        found
    }

    fn rule(&mut self, rule: &RuleText<'_>, way: Way, field: &Field<'_>) -> Option<ClusterRule> {
        let name = rule.name.unwrap_or_default();
        if name.chars().count() > LONGEST_NAME {
            let reason = format!("longer than {LONGEST_NAME} characters");
            self.faults.add(&field.child("name"), reason);
        }
        let action = self.action(rule.action.unwrap_or_default(), &field.child("action"));
        let peers_field = field.child(if way == Way::Ingress { "from" } else { "to" });
        let mut peers = Vec::new();
        let texts = rule.peers.unwrap_or_default();
        if self.count(texts, &peers_field) {
            for (at, peer) in texts.iter().enumerate() {
                peers.extend(self.peer(peer, way, &peers_field.index(at)));
            }
        }
        let ports = match rule.protocols {
            None => Some(Ports::Any),
            Some(list) => self.protocols(list, &field.child("protocols")),
        };
        if let Some(Ports::AnyOf(entries)) = &ports {
            let named = entries.iter().any(|port| matches!(port, PortRule::Named { .. }));
            let nameless =
                |peer| matches!(peer, &ClusterPeer::Nodes(_) | &ClusterPeer::Networks(_));
            let nameless = peers.iter().any(nameless);
            if way == Way::Egress && named && nameless {
                let reason = "a destinationNamedPort is a pod's; nodes and networks have none";
                self.faults.add(field, reason);
            }
        }
        let ports = ports.unwrap_or_else(|| {
            // An entry that is not understood: the rule must not do more than its author said.
            peers = vec![ClusterPeer::Unknown];
            Ports::Any
        });
        Some(ClusterRule { name: name.into(), action: action?, peers, ports })
    }

    fn action(&mut self, text: &str, field: &Field<'_>) -> Option<Action> {
        match text {
            "Accept" => Some(Action::Accept),
            "Deny" => Some(Action::Deny),
            "Pass" => Some(Action::Pass),
            other => {
                let reason = format!("{} is not one of Accept, Deny, Pass", quote(other));
                self.faults.add(field, reason);
                None
            }
        }
    }

    /// Whether a list has the number of items that it may have.
    fn count<T>(&mut self, list: &[T], field: &Field<'_>) -> bool {
        let right = (1..=MOST_ITEMS).contains(&list.len());
        if !right {
            let reason = format!("has {} items; it must have 1 to {MOST_ITEMS}", list.len());
            self.faults.add(field, reason);
        }
        right
    }

    fn peer(&mut self, fields: &OneOf, way: Way, field: &Field<'_>) -> Option<ClusterPeer> {
        let known = match way {
            Way::Ingress => "namespaces, pods",
            Way::Egress => "namespaces, pods, nodes, networks, domainNames",
        };
        let (name, value) = self.one_of(fields, known, field)?;
        let inner = field.child(name);
        match (name, way) {
            ("namespaces", _) => self.namespaces(value, &inner).map(ClusterPeer::Pods),
            ("pods", _) => self.pods(value, &inner).map(ClusterPeer::Pods),
            ("nodes", Way::Egress) => self.selector(value, &inner).map(ClusterPeer::Nodes),
            ("networks", Way::Egress) => self.networks(value, &inner).map(ClusterPeer::Networks),
            ("domainNames", Way::Egress) => {
                let names: Vec<String> = self.decode(value, &inner)?;
                self.count(&names, &inner);
                self.fails_closed(&inner, "names of domains are not enforced");
                Some(ClusterPeer::Unknown)
            }
            ("nodes" | "networks" | "domainNames", Way::Ingress) => {
                self.faults.add(&inner, "is a peer of egress rules only");
                None
            }
            _ => {
                self.fails_closed(&inner, "a peer of a kind that is not known");
                Some(ClusterPeer::Unknown)
            }
        }
    }

    fn networks(&mut self, value: &Value, field: &Field<'_>) -> Option<Vec<Cidr>> {
        let texts: Vec<String> = self.decode(value, field)?;
        if !self.count(&texts, field) {
            return None;
        }
        let mut ranges = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let item = field.index(at);
            let Some((range, _)) = self.faults.take(&item, cidr(text)) else { continue };
            if texts[..at].contains(text) {
                self.faults.add(&item, format!("{text} stands twice"));
            }
            ranges.push(range);
        }
        Some(ranges)
    }

    fn fails_closed(&mut self, field: &Field<'_>, what: &str) {
        let text = format!(
            "{field}: {what}; the rule fails closed: Accept matches nothing, Deny and Pass deny all"
        );
        self.compiler.note(self.object, text);
    }

    /// `None`: an entry is not understood, or has a fault.
    fn protocols(&mut self, list: &[OneOf], field: &Field<'_>) -> Option<Ports> {
        self.count(list, field);
        let (mut ports, mut understood) = (Vec::new(), true);
        for (at, entry) in list.iter().enumerate().take(MOST_ITEMS) {
            match self.protocol(entry, &field.index(at)) {
                Some(port) => ports.push(port),
                None => understood = false,
            }
        }
        understood.then_some(Ports::AnyOf(ports))
    }

    fn protocol(&mut self, fields: &OneOf, field: &Field<'_>) -> Option<PortRule> {
        let known = "tcp, udp, sctp, destinationNamedPort";
        let (name, value) = self.one_of(fields, known, field)?;
        let inner = field.child(name);
        let protocol = match name {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            "destinationNamedPort" => {
                let text: String = self.decode(value, &inner)?;
                self.faults.take(&inner, name::port_name(&text))?;
                let name = self.compiler.names.get(&text);
                return Some(PortRule::Named { protocol: None, name });
            }
            _ => {
                self.fails_closed(&inner, "a protocol that is not known");
                return None;
            }
        };
        let found: ProtocolMatch = self.decode(value, &inner)?;
        let inner = inner.child("destinationPort");
        let Some(port) = found.destination_port else {
            self.faults.add(&inner, "is missing");
            return None;
        };
        self.ports(protocol, &port, &inner)
    }

    fn ports(
        &mut self,
        protocol: Protocol,
        port: &DestinationPort,
        field: &Field<'_>,
    ) -> Option<PortRule> {
        let faults = &mut self.faults;
        match (port.number, &port.range) {
            (Some(number), None) => {
                let port = faults.take(&field.child("number"), port_number(number))?;
                Some(PortRule::port(protocol, port))
            }
            (None, Some(range)) => {
                let field = field.child("range");
                let (start, end) = (range.start.unwrap_or(0), range.end.unwrap_or(0));
                let first = faults.take(&field.child("start"), port_number(start));
                let last = faults.take(&field.child("end"), port_number(end));
                let (first, last) = (first?, last?);
                if first >= last {
                    faults.add(&field, format!("start {first} is not below end {last}"));
                    return None;
                }
                Some(PortRule::Range { protocol, first, last })
            }
            _ => {
                faults.add(field, "exactly one of number, range must be there");
                None
            }
        }
    }
}
