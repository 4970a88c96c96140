//! ClusterNetworkPolicy: the validation rules of the resource definition (network-policy-api,
//! `apis/v1alpha2`), and conversion to the model. Fields of later versions fail closed: within a
//! rule where the API says so, otherwise the policy denies all traffic of its subject, as far as
//! the subject can be read.

use std::sync::Arc;

use podswitch_core::id::Cookie;
use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterTier, NamespacedPods, PortRule,
    Ports, Protocol, Selector,
};
use podswitch_wire::cidr::Cidr;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::pod::port_number;
use super::selector::selector;
use super::{Content, Context, text_of};
use crate::api::cluster::{
    ClusterNetworkPolicySpec, DestinationPort, NamespacedPod, OneOf, ProtocolMatch,
};
use crate::api::meta::{LabelSelector, ObjectMeta};
use crate::object::{Loaded, decode};
use crate::report::{Field, Findings, Grade, quote};
use crate::validate::address::cidr;
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const SPEC: Field<'static> = Field::root("spec");
const MOST_RULES: usize = ClusterNetworkPolicy::MAX_RULES;
const MOST_ITEMS: usize = ClusterNetworkPolicy::MAX_ITEMS;
const LONGEST_NAME: usize = 100;

/// Reads one policy.
pub(super) fn read(
    cx: &mut Context<'_>,
    cookie: &Cookie,
    meta: &ObjectMeta,
    policy: &crate::api::cluster::ClusterNetworkPolicy,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: false, name: name::dns_subdomain };
    object_meta(meta, naming, faults);
    let name = cx.names.get(meta.name.as_deref().unwrap_or_default());
    let empty = ClusterNetworkPolicySpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&empty);
    let head = read_head(cx, spec.tier.as_deref(), spec.priority, spec.subject.as_ref(), faults);
    let mut reader = Reader { cx, faults };
    let ingress = spec.ingress.iter().flatten().map(|rule| RuleText {
        name: rule.name.as_deref(),
        action: rule.action.as_deref(),
        peers: rule.from.as_deref(),
        protocols: rule.protocols.as_deref(),
    });
    let ingress = reader.rules(ingress, Direction::Ingress);
    let egress = spec.egress.iter().flatten().map(|rule| RuleText {
        name: rule.name.as_deref(),
        action: rule.action.as_deref(),
        peers: rule.to.as_deref(),
        protocols: rule.protocols.as_deref(),
    });
    let egress = reader.rules(egress, Direction::Egress);
    if faults.is_refused() {
        let names = |rules: bool, other: bool| rules || !other;
        let (ingress, egress) = (
            spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty()),
            spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        );
        let isolated = (names(ingress, egress), names(egress, ingress));
        return close(cookie, name, head, isolated);
    }
    let (Some(tier), Some(priority), Some(subject)) = (head.tier, head.priority, head.subject)
    else {
        // Each missing field is reported.
        return Content::Nothing;
    };
    let cookie = text_of(cookie);
    let policy = ClusterNetworkPolicy { cookie, name, tier, priority, subject, ingress, egress };
    Content::ClusterPolicy(Arc::new(policy))
}

/// The isolation by a policy with wrong field types, or of unknown version or kind.
pub(super) fn close_unreadable(cx: &mut Context<'_>, object: &Loaded, value: &Value) -> Content {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let name = cx.names.get(name);
    let field = |name: &str| value.get("spec").and_then(|spec| spec.get(name));
    let subject = field("subject").and_then(Value::as_object);
    let (tier, priority) = (field("tier").and_then(Value::as_str), field("priority"));
    // The errors have been reported already.
    let mut said = Findings::default();
    let head = read_head(cx, tier, priority.and_then(Value::as_i64), subject, &mut said);
    let named = |name: &str| match field(name) {
        None | Some(Value::Null) => false,
        Some(Value::Array(rules)) => !rules.is_empty(),
        Some(_) => true,
    };
    let (ingress, egress) = (named("ingress"), named("egress"));
    close(&object.cookie, name, head, (ingress || !egress, egress || !ingress))
}

/// Subject, tier and priority of a policy, as far as they could be read.
struct Head {
    tier: Option<ClusterTier>,
    priority: Option<u16>,
    subject: Option<NamespacedPods>,
}

fn read_head(
    cx: &mut Context<'_>,
    tier: Option<&str>,
    priority: Option<i64>,
    subject: Option<&OneOf>,
    faults: &mut Findings,
) -> Head {
    let mut own = Findings::default();
    let mut reader = Reader { cx, faults };
    let (tier, priority) = (reader.tier(tier), reader.priority(priority));
    let subject = Reader { cx, faults: &mut own }.subject(subject);
    let subject = subject.filter(|_| !own.is_refused());
    faults.append(own);
    Head { tier, priority, subject }
}

/// A policy that denies all traffic of its subject in these directions. If the subject cannot be
/// read, it applies to every pod; if the priority cannot be read, it precedes every other policy of
/// its tier; if the tier cannot be read, it precedes all others.
fn close(cookie: &Cookie, name: Arc<str>, head: Head, (ingress, egress): (bool, bool)) -> Content {
    // A denying rule with a peer of an unknown kind denies everything.
    let deny = || ClusterRule {
        name: "".into(),
        action: Action::Deny,
        peers: vec![ClusterPeer::Unknown],
        ports: Ports::Any,
    };
    let everything =
        NamespacedPods { namespaces: Selector::everything(), pods: Selector::everything() };
    Content::ClusterPolicy(Arc::new(ClusterNetworkPolicy {
        cookie: text_of(cookie),
        name,
        tier: head.tier.unwrap_or(ClusterTier::Admin),
        priority: head.priority.unwrap_or(0),
        subject: head.subject.unwrap_or(everything),
        ingress: ingress.then(deny).into_iter().collect(),
        egress: egress.then(deny).into_iter().collect(),
    }))
}

/// Direction of a list of rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
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

/// Reads the parts of one policy. Functions that return `None` have reported the error.
struct Reader<'c, 'a> {
    cx: &'c mut Context<'a>,
    faults: &'c mut Findings,
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

    /// The single field that is present.
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
                self.faults.add(field, format!("is empty; it needs one of {known}"));
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
        Some(selector(self.cx.names, &text, field, self.faults))
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
        let names = &mut *self.cx.names;
        let namespaces = text.namespace_selector.unwrap_or_default();
        let namespaces_field = field.child("namespaceSelector");
        let namespaces = selector(names, &namespaces, &namespaces_field, self.faults);
        let pods_field = field.child("podSelector");
        let Some(pods) = text.pod_selector else {
            self.faults.add(&pods_field, "is missing; empty ({}) selects all pods");
            return None;
        };
        let pods = selector(names, &pods, &pods_field, self.faults);
        Some(NamespacedPods { namespaces, pods })
    }

    fn rules<'t>(
        &mut self,
        rules: impl Iterator<Item = RuleText<'t>>,
        direction: Direction,
    ) -> Vec<ClusterRule> {
        let field = SPEC.child(if direction == Direction::Ingress { "ingress" } else { "egress" });
        let mut found = Vec::new();
        for (at, rule) in rules.enumerate() {
            if at == MOST_RULES {
                self.faults.add(&field, format!("more than {MOST_RULES} rules"));
                break;
            }
            found.extend(self.rule(&rule, direction, &field.index(at)));
        }
        found
    }

    fn rule(
        &mut self,
        rule: &RuleText<'_>,
        direction: Direction,
        field: &Field<'_>,
    ) -> Option<ClusterRule> {
        let name = rule.name.unwrap_or_default();
        if name.chars().count() > LONGEST_NAME {
            let reason = format!("longer than {LONGEST_NAME} characters");
            self.faults.add(&field.child("name"), reason);
        }
        let action = self.action(rule.action.unwrap_or_default(), &field.child("action"));
        let peers_field = field.child(if direction == Direction::Ingress { "from" } else { "to" });
        let mut peers = Vec::new();
        let texts = rule.peers.unwrap_or_default();
        if self.count(texts, &peers_field) {
            for (at, peer) in texts.iter().enumerate() {
                peers.extend(self.peer(peer, direction, &peers_field.index(at)));
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
            if direction == Direction::Egress && named && nameless {
                let reason =
                    "has a destinationNamedPort, which only pods have; nodes and networks do not";
                self.faults.add(field, reason);
            }
        }
        let ports = ports.unwrap_or_else(|| {
            // An unknown entry: the rule must not match more than its author wrote.
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

    /// Whether the number of items in a list is allowed.
    fn count<T>(&mut self, list: &[T], field: &Field<'_>) -> bool {
        let right = (1..=MOST_ITEMS).contains(&list.len());
        if !right {
            let reason = format!("has {} items; 1 to {MOST_ITEMS} are allowed", list.len());
            self.faults.add(field, reason);
        }
        right
    }

    fn peer(
        &mut self,
        fields: &OneOf,
        direction: Direction,
        field: &Field<'_>,
    ) -> Option<ClusterPeer> {
        let known = match direction {
            Direction::Ingress => "namespaces, pods",
            Direction::Egress => "namespaces, pods, nodes, networks, domainNames",
        };
        let (name, value) = self.one_of(fields, known, field)?;
        let inner = field.child(name);
        match (name, direction) {
            ("namespaces", _) => self.namespaces(value, &inner).map(ClusterPeer::Pods),
            ("pods", _) => self.pods(value, &inner).map(ClusterPeer::Pods),
            ("nodes", Direction::Egress) => self.selector(value, &inner).map(ClusterPeer::Nodes),
            ("networks", Direction::Egress) => {
                self.networks(value, &inner).map(ClusterPeer::Networks)
            }
            ("domainNames", Direction::Egress) => {
                let names: Vec<String> = self.decode(value, &inner)?;
                self.count(&names, &inner);
                self.fails_closed(&inner, "domain names are not enforced");
                Some(ClusterPeer::Unknown)
            }
            ("nodes" | "networks" | "domainNames", Direction::Ingress) => {
                self.faults.add(&inner, "is a peer of egress rules only");
                None
            }
            _ => {
                self.fails_closed(&inner, "an unknown kind of peer");
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
                self.faults.add(&item, format!("{text} is listed twice"));
            }
            ranges.push(range);
        }
        Some(ranges)
    }

    fn fails_closed(&mut self, field: &Field<'_>, what: &str) {
        let reason = format!(
            "{what}; the rule fails closed: Accept matches nothing, Deny and Pass deny all"
        );
        self.faults.say(Grade::Note, field, reason);
    }

    /// `None`: an entry is unknown or invalid.
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
                let name = self.cx.names.get(&text);
                return Some(PortRule::Named { protocol: None, name });
            }
            _ => {
                self.fails_closed(&inner, "an unknown protocol");
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
        let faults = &mut *self.faults;
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
                faults.add(field, "needs exactly one of number, range");
                None
            }
        }
    }
}
