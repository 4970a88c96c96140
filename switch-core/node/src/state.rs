//! The desired state of a node.

use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::config::{Config, Endpoint};
use podswitch_core::control::Change;
use podswitch_core::id::Cookie;
use podswitch_kubernetes::Compiled;

use crate::attachment::PodAttachment;

/// What a node is to be: the configuration of its switch, and pods that it is to attach. Pods may
/// also come and go one by one ([`Node::add_pod`](crate::Node::add_pod)).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct State {
    /// The configuration. Its `ports`, its `neighbours` and the `attachment` of this node's endpoints
    /// are the node's to fill in, and are ignored.
    pub config: Config,
    /// Pods of this node to attach, and where.
    pub pods: Vec<PodAttachment>,
}

impl State {
    /// A state whose pods come by [`Node::add_pod`](crate::Node::add_pod) only.
    pub fn new(config: Config) -> Self {
        Self { config, pods: Vec::new() }
    }
}

impl From<Config> for State {
    fn from(config: Config) -> Self {
        Self::new(config)
    }
}

impl From<Compiled> for State {
    /// Kubernetes objects; pods whose annotations say where their interface is are attached there.
    fn from(compiled: Compiled) -> Self {
        let pods = compiled.pods.iter().filter_map(PodAttachment::annotated).collect();
        Self { config: compiled.config, pods }
    }
}

/// A state to which changes are made object by object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    state: State,
    /// Where each endpoint stands, once changes have come; there are too many to look at them all.
    endpoints: Option<HashMap<Cookie, usize>>,
}

impl From<State> for Desired {
    fn from(state: State) -> Self {
        Self { state, endpoints: None }
    }
}

impl Desired {
    /// The state.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &Config {
        &self.state.config
    }

    /// A pod, by its name in drops and flows.
    pub(crate) fn endpoint(&mut self, cookie: &Cookie) -> Option<&Arc<Endpoint>> {
        let at = *self.index().get(cookie)?;
        self.state.config.endpoints.get(at)
    }

    fn index(&mut self) -> &mut HashMap<Cookie, usize> {
        let endpoints = &self.state.config.endpoints;
        self.endpoints.get_or_insert_with(|| {
            endpoints.iter().enumerate().map(|(at, e)| (e.cookie.clone(), at)).collect()
        })
    }

    /// Makes a change.
    pub(crate) fn change(&mut self, change: Change) {
        let config = &mut self.state.config;
        match change {
            Change::Pod(pod) => {
                let at = self.index().get(&pod.cookie).copied();
                let endpoints = &mut self.state.config.endpoints;
                match at {
                    Some(at) => endpoints[at] = pod,
                    None => {
                        let (cookie, at) = (pod.cookie.clone(), endpoints.len());
                        endpoints.push(pod);
                        self.index().insert(cookie, at);
                    }
                }
            }
            Change::PodGone(cookie) => {
                let Some(at) = self.index().remove(&cookie) else { return };
                let endpoints = &mut self.state.config.endpoints;
                endpoints.swap_remove(at);
                if let Some(moved) = endpoints.get(at).map(|endpoint| endpoint.cookie.clone()) {
                    self.index().insert(moved, at);
                }
            }
            Change::Namespace(o) => upsert(&mut config.namespaces, |n| n.name == o.name, &o),
            Change::NamespaceGone(name) => config.namespaces.retain(|n| n.name != name),
            Change::Node(o) => upsert(&mut config.nodes, |n| n.name == o.name, &o),
            Change::NodeGone(name) => config.nodes.retain(|n| n.name != name),
            Change::Policy(o) => {
                config.refused_policies.retain(|p| *p.cookie() != o.cookie);
                upsert(&mut config.policies, |p| p.cookie == o.cookie, &o);
            }
            Change::ClusterPolicy(o) => {
                config.refused_policies.retain(|p| *p.cookie() != o.cookie);
                upsert(&mut config.cluster_policies, |p| p.cookie == o.cookie, &o);
            }
            Change::PolicyGone(cookie) | Change::ClusterPolicyGone(cookie) => {
                forget_policy(config, &cookie);
            }
            Change::Service(o) => upsert(&mut config.services, |s| s.name == o.name, &o),
            Change::ServiceGone(name) => config.services.retain(|s| s.name != name),
            Change::Slice(o) => {
                let is_same = |s: &podswitch_policy::service::model::EndpointSlice| {
                    (&s.namespace, &s.name) == (&o.namespace, &o.name)
                };
                upsert(&mut config.slices, is_same, &o);
            }
            Change::SliceGone(namespace, name) => {
                config.slices.retain(|s| (&s.namespace, &s.name) != (&namespace, &name));
            }
            Change::RefusedPolicy(o) => {
                forget_policy(config, o.cookie());
                config.refused_policies.push(o);
            }
            Change::HostPorts(pod, ports) => {
                config.host_ports.retain(|(other, _)| *other != pod);
                if !ports.is_empty() {
                    config.host_ports.push((pod, ports));
                }
            }
            Change::Route(o) => {
                upsert(&mut config.routes, |r| r.destination == o.destination, &o);
            }
            Change::RouteGone(destination) => {
                config.routes.retain(|r| r.destination != destination);
            }
            Change::Bridge(o) => upsert(&mut config.bridges, |b| b.name == o.name, &o),
            Change::BridgeGone(name) => config.bridges.retain(|b| b.name != name),
            // What ports are for is the node's to say.
            Change::Port(_) | Change::PortGone(_) => {}
        }
    }
}

/// Removes the policy of this name, of whatever kind and whether it could be taken.
fn forget_policy(config: &mut Config, cookie: &str) {
    config.policies.retain(|p| *p.cookie != *cookie);
    config.cluster_policies.retain(|p| *p.cookie != *cookie);
    config.refused_policies.retain(|p| **p.cookie() != *cookie);
}

/// Puts `object` in place of the one that `is_same` finds, or at the end.
fn upsert<T>(list: &mut Vec<Arc<T>>, is_same: impl Fn(&T) -> bool, object: &Arc<T>) {
    match list.iter_mut().find(|there| is_same(there)) {
        Some(there) => there.clone_from(object),
        None => list.push(object.clone()),
    }
}

#[cfg(test)]
mod tests {
    use podswitch_policy::rule::{Labels, Namespace, Workload};

    use super::*;

    fn pod(name: &str, last: u8) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            cookie: Cookie::new(format!("Pod/a/{name}")),
            workload: Workload {
                namespace: "a".into(),
                name: name.into(),
                labels: Labels::default(),
                addresses: vec![[10, 0, 0, last].into()],
                ports: Vec::new(),
                host_network: false,
            },
            node: "n".into(),
            attachment: None,
            precedence: Default::default(),
        })
    }

    #[test]
    fn changes_lead_to_the_state_that_they_describe() {
        let mut desired = Desired::from(State::default());
        for (name, last) in [("x", 1), ("y", 2), ("z", 3), ("y", 4)] {
            desired.change(Change::Pod(pod(name, last)));
        }
        desired.change(Change::PodGone(Cookie::new("Pod/a/x")));
        desired.change(Change::PodGone(Cookie::new("Pod/a/unknown")));
        let names = |desired: &Desired| {
            let mut list: Vec<_> =
                desired.config().endpoints.iter().map(|e| e.cookie.to_string()).collect();
            list.sort();
            list
        };
        assert_eq!(names(&desired), ["Pod/a/y", "Pod/a/z"]);
        let address = |desired: &mut Desired, name: &str| {
            desired.endpoint(&Cookie::new(name)).map(|e| e.workload.addresses[0].to_string())
        };
        assert_eq!(address(&mut desired, "Pod/a/y").as_deref(), Some("10.0.0.4"));
        assert_eq!(address(&mut desired, "Pod/a/z").as_deref(), Some("10.0.0.3"));
        assert_eq!(address(&mut desired, "Pod/a/x"), None);

        let namespace = |n: usize| {
            let labels = [("n", n.to_string())].into_iter().collect();
            Arc::new(Namespace { name: "a".into(), labels })
        };
        desired.change(Change::Namespace(namespace(1)));
        desired.change(Change::Namespace(namespace(2)));
        assert_eq!(desired.config().namespaces, [namespace(2)]);
        desired.change(Change::NamespaceGone("a".into()));
        assert!(desired.config().namespaces.is_empty());
    }
}
