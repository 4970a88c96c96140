//! NetworkPolicy: the checks of `pkg/apis/networking/validation` in kubernetes/kubernetes, and
//! conversion to the model. Empty differs from missing (T-L2) where the API distinguishes them.
//!
//! An unusable policy must not allow what its author denied: it isolates the pods that it selects,
//! as far as the selector can be read.

use std::sync::Arc;

use podswitch_core::id::Cookie;
use podswitch_policy::rule::{
    Direction, NetworkPolicy, Peer, Peers, PortRule, Ports, Rule, Selector,
};
use podswitch_wire::cidr::Cidr;
use serde_json::Value;

use super::pod::{port_number, protocol};
use super::selector::selector;
use super::{Content, Context, names_of, text_of};
use crate::api::IntOrString;
use crate::api::meta::{LabelSelector, ObjectMeta};
use crate::api::networking as api;
use crate::object::{Loaded, decode};
use crate::report::{Field, Findings, Grade, quote};
use crate::validate::address::{cidr, covers};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const SPEC: Field<'static> = Field::root("spec");

/// Reads one policy.
pub(super) fn read(
    cx: &mut Context<'_>,
    cookie: &Cookie,
    meta: &ObjectMeta,
    policy: &api::NetworkPolicy,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: true, name: name::dns_subdomain };
    object_meta(meta, naming, faults);
    // In the API, a missing spec is an empty one: it isolates every pod of the namespace.
    let empty = api::NetworkPolicySpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&empty);
    let pods = read_selector(cx, spec.pod_selector.as_ref(), faults);
    let has_egress_rules = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    let isolated = directions(spec.policy_types.as_deref(), has_egress_rules, faults);
    let mut reader = Reader { cx, faults };
    let ingress = spec.ingress.as_deref().unwrap_or_default();
    let ingress: Vec<Rule> = reader.each(ingress, &SPEC.child("ingress"), |reader, rule, field| {
        reader.rule(rule.from.as_deref(), "from", rule.ports.as_deref(), field)
    });
    let egress = spec.egress.as_deref().unwrap_or_default();
    let egress: Vec<Rule> = reader.each(egress, &SPEC.child("egress"), |reader, rule, field| {
        reader.rule(rule.to.as_deref(), "to", rule.ports.as_deref(), field)
    });
    let (namespace, name) = names_of(cx, meta);
    if faults.is_refused() {
        return close(cookie, namespace, name, pods, isolated);
    }
    let (pods, isolated) = (pods.unwrap_or_default(), isolated.unwrap_or_default());
    for (isolated, rules, direction) in
        [(isolated.0, &ingress, Direction::Ingress), (isolated.1, &egress, Direction::Egress)]
    {
        if !isolated && !rules.is_empty() {
            let reason = format!("has no effect: policyTypes does not name {direction}");
            faults.say(Grade::Note, &SPEC.child(direction.name()), reason);
        }
    }
    Content::Policy(Arc::new(NetworkPolicy {
        cookie: text_of(cookie),
        namespace,
        name,
        pods,
        ingress: isolated.0.then_some(ingress),
        egress: isolated.1.then_some(egress),
    }))
}

/// The isolation by a policy with wrong field types, or of unknown version or kind.
pub(super) fn close_unreadable(cx: &mut Context<'_>, object: &Loaded, value: &Value) -> Content {
    let meta = value.get("metadata").unwrap_or(&Value::Null);
    let text = |field: &str| match meta.get(field) {
        None | Some(Value::Null) => Some(""),
        Some(value) => value.as_str(),
    };
    let Some(namespace) = text("namespace") else { return Content::Nothing };
    let namespace = cx.names.get(if namespace.is_empty() { "default" } else { namespace });
    let name = cx.names.get(text("name").unwrap_or_default());
    // The errors have been reported already.
    let mut said = Findings::default();
    let (pods, isolated) = match value.get("spec") {
        None | Some(Value::Null) => (Some(Selector::everything()), Some((true, false))),
        Some(Value::Object(spec)) => {
            let field = |name: &str| spec.get(name).cloned().unwrap_or(Value::Null);
            let pods: Option<Option<LabelSelector>> = decode(field("podSelector")).ok();
            let pods = pods.and_then(|pods| read_selector(cx, pods.as_ref(), &mut said));
            let types: Option<Option<Vec<String>>> = decode(field("policyTypes")).ok();
            let egress = match field("egress") {
                Value::Null => false,
                Value::Array(rules) => !rules.is_empty(),
                _ => true,
            };
            (pods, types.and_then(|types| directions(types.as_deref(), egress, &mut said)))
        }
        Some(_) => (None, None),
    };
    close(&object.cookie, namespace, name, pods, isolated)
}

/// A policy that allows nothing to and from the pods that it selects, in the directions (ingress,
/// egress) that it names. If its selector cannot be read, it selects all pods of its namespace; if
/// the directions cannot be read, both apply. It selects nothing if its namespace's name is
/// invalid.
fn close(
    cookie: &Cookie,
    namespace: Arc<str>,
    name: Arc<str>,
    pods: Option<Selector>,
    isolated: Option<(bool, bool)>,
) -> Content {
    if name::dns_label(&namespace).is_err() {
        return Content::Nothing;
    }
    let (ingress, egress) = isolated.unwrap_or((true, true));
    Content::Policy(Arc::new(NetworkPolicy {
        cookie: text_of(cookie),
        namespace,
        name,
        pods: pods.unwrap_or_else(Selector::everything),
        ingress: ingress.then(Vec::new),
        egress: egress.then(Vec::new),
    }))
}

/// `spec.podSelector`; `None` if it has faults.
fn read_selector(
    cx: &mut Context<'_>,
    from: Option<&LabelSelector>,
    faults: &mut Findings,
) -> Option<Selector> {
    let (empty, mut own) = (LabelSelector::default(), Findings::default());
    let from = from.unwrap_or(&empty);
    let pods = selector(cx.names, from, &SPEC.child("podSelector"), &mut own);
    faults.append(own).then_some(pods)
}

/// The directions that a policy isolates, ingress and egress (N2); `None` if `policyTypes` has
/// faults.
fn directions(
    types: Option<&[String]>,
    has_egress_rules: bool,
    faults: &mut Findings,
) -> Option<(bool, bool)> {
    let (types, field) = (types.unwrap_or_default(), SPEC.child("policyTypes"));
    if types.len() > 2 {
        faults.add(&field, "has more than two types");
        return None;
    }
    let mut found = Vec::new();
    for (at, text) in types.iter().enumerate() {
        match text.as_str() {
            "Ingress" => found.push(Direction::Ingress),
            "Egress" => found.push(Direction::Egress),
            other => {
                let reason = format!("{} is not one of Ingress, Egress", quote(other));
                faults.add(&field.index(at), reason);
            }
        }
    }
    (found.len() == types.len()).then(|| Direction::isolated_by(&found, has_egress_rules))
}

/// Reads the parts of one policy.
struct Reader<'c, 'a> {
    cx: &'c mut Context<'a>,
    faults: &'c mut Findings,
}

impl Reader<'_, '_> {
    /// Reads every item of a list. Items with errors may be omitted, since the object cannot be
    /// used then.
    fn each<T, U, C: FromIterator<U>>(
        &mut self,
        list: &[T],
        field: &Field<'_>,
        mut read: impl FnMut(&mut Self, &T, &Field<'_>) -> Option<U>,
    ) -> C {
        let items = list.iter().enumerate();
        items.filter_map(|(at, item)| read(self, item, &field.index(at))).collect()
    }

    fn selector(&mut self, from: &LabelSelector, field: &Field<'_>) -> Selector {
        selector(self.cx.names, from, field, self.faults)
    }

    fn rule(
        &mut self,
        peers: Option<&[api::Peer]>,
        peers_name: &'static str,
        ports: Option<&[api::Port]>,
        field: &Field<'_>,
    ) -> Option<Rule> {
        let ports = ports.unwrap_or_default();
        let ports = self.each(ports, &field.child("ports"), Self::port);
        let peers = peers.unwrap_or_default();
        let peers = self.each(peers, &field.child(peers_name), Self::peer);
        Some(Rule { peers: Peers::from_list(peers), ports: Ports::from_list(ports) })
    }

    fn peer(&mut self, peer: &api::Peer, field: &Field<'_>) -> Option<Peer> {
        let pods = peer.pod_selector.as_ref();
        let pods = pods.map(|from| self.selector(from, &field.child("podSelector")));
        let namespaces = peer.namespace_selector.as_ref();
        let namespaces =
            namespaces.map(|from| self.selector(from, &field.child("namespaceSelector")));
        let Some(block) = &peer.ip_block else {
            if pods.is_none() && namespaces.is_none() {
                let reason =
                    "names no peer: it needs a podSelector, a namespaceSelector or an ipBlock";
                self.faults.add(field, reason);
                return None;
            }
            return Some(Peer::Selectors { pods, namespaces });
        };
        if pods.is_some() || namespaces.is_some() {
            self.faults.add(field, "an ipBlock and a selector exclude each other in one peer");
        }
        self.ip_block(block, &field.child("ipBlock"))
    }

    fn ip_block(&mut self, block: &api::IpBlock, field: &Field<'_>) -> Option<Peer> {
        let text = block.cidr.as_deref().unwrap_or_default();
        let range = self.range(text, &field.child("cidr"));
        let except = block.except.as_deref().unwrap_or_default();
        let except = self.each(except, &field.child("except"), |reader, text, field| {
            let inner = reader.range(text, field)?;
            // If the range is invalid, there is nothing to compare with.
            let outer = range?;
            if !covers(outer, inner) || outer == inner {
                let reason = format!("{inner} is not a part of {outer}");
                reader.faults.add(field, reason);
            }
            Some(inner)
        });
        Some(Peer::IpBlock { cidr: range?, except })
    }

    /// A range. The API server accepts bits beyond the prefix, with a warning.
    fn range(&mut self, text: &str, field: &Field<'_>) -> Option<Cidr> {
        let (range, ambiguous) = self.faults.take(field, cidr(text))?;
        if ambiguous {
            let reason = format!("{text} has bits beyond its prefix, and is taken as {range}");
            self.faults.say(Grade::Note, field, reason);
        }
        Some(range)
    }

    fn port(&mut self, port: &api::Port, field: &Field<'_>) -> Option<PortRule> {
        let faults = &mut *self.faults;
        let protocol = protocol(port.protocol.as_deref());
        let protocol = faults.take(&field.child("protocol"), protocol);
        let (port_field, end_field) = (field.child("port"), field.child("endPort"));
        match (&port.port, port.end_port) {
            (None, None) => protocol.map(PortRule::Every),
            (None, Some(_)) => {
                faults.add(&end_field, "there is no port for the range to begin at");
                None
            }
            (Some(IntOrString::Int(first)), end) => {
                let first_port = faults.take(&port_field, port_number(*first));
                let last_port = match end {
                    None => first_port,
                    Some(end) => {
                        if end < *first {
                            faults.add(&end_field, format!("{end} is below the port, {first}"));
                        }
                        faults.take(&end_field, port_number(end))
                    }
                };
                let (first, last) = (first_port?, last_port?);
                Some(PortRule::Range { protocol: protocol?, first, last })
            }
            (Some(IntOrString::String(name)), end) => {
                if end.is_some() {
                    faults.add(&end_field, "a range of ports begins at a number, not at a name");
                }
                faults.take(&port_field, name::port_name(name))?;
                let name = self.cx.names.get(name);
                Some(PortRule::Named { protocol: Some(protocol?), name })
            }
        }
    }
}
