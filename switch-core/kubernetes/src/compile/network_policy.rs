//! NetworkPolicy: the checks of `pkg/apis/networking/validation` in kubernetes/kubernetes, and
//! the model's form. Empty is not missing (T-L2): what the API gives a meaning to when it is
//! missing is told apart here, once.

use std::sync::Arc;

use podswitch_policy::rule::{Direction, NetworkPolicy, Peer, Peers, PortRule, Ports, Rule};
use podswitch_wire::cidr::Cidr;

use super::pod::{port_number, protocol};
use super::selector::selector;
use super::{Compiler, Loaded, namespace};
use crate::api::IntOrString;
use crate::api::networking as api;
use crate::refusal::{Faults, Field, quote};
use crate::validate::address::{cidr, covers};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const SPEC: Field<'static> = Field::root("spec");

/// Reads one policy.
pub(super) fn compile(compiler: &mut Compiler<'_>, object: &Loaded, policy: &api::NetworkPolicy) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: true, name: name::dns_subdomain };
    object_meta(&object.meta, naming, &mut faults);
    // As the API has it, no spec is an empty one: it isolates every pod of the namespace.
    let empty = api::NetworkPolicySpec::default();
    let spec = policy.spec.as_ref().unwrap_or(&empty);
    let mut reader = Reader { compiler, object, faults };
    let nothing_said = Default::default();
    let pods = spec.pod_selector.as_ref().unwrap_or(&nothing_said);
    let pods = reader.selector(pods, &SPEC.child("podSelector"));
    let ingress = spec.ingress.as_deref().unwrap_or_default();
    let ingress: Vec<Rule> = reader.each(ingress, &SPEC.child("ingress"), |reader, rule, field| {
        reader.rule(rule.from.as_deref(), "from", rule.ports.as_deref(), field)
    });
    let egress = spec.egress.as_deref().unwrap_or_default();
    let egress: Vec<Rule> = reader.each(egress, &SPEC.child("egress"), |reader, rule, field| {
        reader.rule(rule.to.as_deref(), "to", rule.ports.as_deref(), field)
    });
    let types = reader.policy_types(spec.policy_types.as_deref().unwrap_or_default());
    let faults = reader.faults;
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    let isolated = Direction::isolated_by(&types, !egress.is_empty());
    for (isolated, rules, direction) in
        [(isolated.0, &ingress, Direction::Ingress), (isolated.1, &egress, Direction::Egress)]
    {
        if !isolated && !rules.is_empty() {
            let text = format!("its {direction} rules say nothing: policyTypes leaves them out");
            compiler.note(object, text);
        }
    }
    let policy = NetworkPolicy {
        cookie: object.cookie.as_str().into(),
        namespace: namespace::of(compiler, object),
        name: compiler.names.get(object.meta.name.as_deref().unwrap_or_default()),
        pods,
        ingress: isolated.0.then_some(ingress),
        egress: isolated.1.then_some(egress),
    };
    compiler.policies.push(Arc::new(policy));
}

/// Reads the parts of one policy.
struct Reader<'c, 'a> {
    compiler: &'c mut Compiler<'a>,
    object: &'c Loaded,
    faults: Faults,
}

impl Reader<'_, '_> {
    /// Reads every item of a list. Items with faults may be left out: the object is refused.
    fn each<T, U, C: FromIterator<U>>(
        &mut self,
        list: &[T],
        field: &Field<'_>,
        mut read: impl FnMut(&mut Self, &T, &Field<'_>) -> Option<U>,
    ) -> C {
        let items = list.iter().enumerate();
        items.filter_map(|(at, item)| read(self, item, &field.index(at))).collect()
    }

    fn selector(
        &mut self,
        from: &crate::api::meta::LabelSelector,
        field: &Field<'_>,
    ) -> podswitch_policy::rule::Selector {
        selector(&mut self.compiler.names, from, field, &mut self.faults)
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
                let reason = "says no peer: a podSelector, a namespaceSelector or an ipBlock";
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
            // With a bad range there is nothing to compare with.
            let outer = range?;
            if !covers(outer, inner) || outer == inner {
                let reason = format!("{inner} does not lie within {outer} as a part of it");
                reader.faults.add(field, reason);
            }
            Some(inner)
        });
        Some(Peer::IpBlock { cidr: range?, except })
    }

    /// A range. Bits beyond the prefix are what the API server accepts with a warning.
    fn range(&mut self, text: &str, field: &Field<'_>) -> Option<Cidr> {
        let (range, ambiguous) = self.faults.take(field, cidr(text))?;
        if ambiguous {
            let text = format!("{field}: {text} is taken for {range}");
            self.compiler.note(self.object, text);
        }
        Some(range)
    }

    fn port(&mut self, port: &api::Port, field: &Field<'_>) -> Option<PortRule> {
        let faults = &mut self.faults;
        let protocol = protocol(port.protocol.as_deref());
        let protocol = faults.take(&field.child("protocol"), protocol);
        let (port_field, end_field) = (field.child("port"), field.child("endPort"));
        match (&port.port, port.end_port) {
            (None, None) => protocol.map(PortRule::Every),
            (None, Some(_)) => {
                faults.add(&end_field, "an end without a port to begin at");
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
                let name = self.compiler.names.get(name);
                Some(PortRule::Named { protocol: Some(protocol?), name })
            }
        }
    }

    fn policy_types(&mut self, types: &[String]) -> Vec<Direction> {
        let field = SPEC.child("policyTypes");
        if types.len() > 2 {
            self.faults.add(&field, "more than two types");
            return Vec::new();
        }
        self.each(types, &field, |reader, text, field| match text.as_str() {
            "Ingress" => Some(Direction::Ingress),
            "Egress" => Some(Direction::Egress),
            other => {
                let reason = format!("{} is not one of Ingress, Egress", quote(other));
                reader.faults.add(field, reason);
                None
            }
        })
    }
}
