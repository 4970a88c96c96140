//! The desired state, kind by kind, and how a publish changes the state in force. Both a whole
//! configuration and changes of single objects lead to a [`Diff`].

use std::sync::Arc;

use podswitch_dns::Zone;
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};
use podswitch_policy::service::model::{EndpointSlice, Service};

use super::change::Change;
use super::fdb_ids::FdbIds;
use super::kinds::{EndpointClaim, PodPorts, PortClaim, Wanted};
use super::left_out::LeftOut;
use super::objects::{Again, Difference, Kind, Object};
use super::settings::Settings;
use super::validate::{EndpointContext, PortContext};
use crate::config::{BridgeDomain, Config, Endpoint, PortConfig, RefusedPolicy, RemoteNode, Route};
use crate::id::Cookie;

/// Defines [`Desired`] and [`Diff`] with one field for each kind, and the operations on all kinds.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $object:ty,)*) => {
        /// The desired state. Fields are named as in [`Config`].
        #[derive(Debug, Default)]
        pub(crate) struct Desired {
            pub(crate) settings: Settings,
            /// The names that the switch answers for.
            pub(crate) zone: Option<Arc<Zone>>,
            /// The same, before the publish.
            zone_before: Option<Arc<Zone>>,
            $($(#[$doc])* pub(crate) $kind: Kind<$object>,)*
        }

        /// How a publish changes the state in force.
        #[derive(Debug)]
        pub(crate) struct Diff {
            $($(#[$doc])* pub(crate) $kind: Difference<$object>,)*
        }

        impl Desired {
            fn stage_objects(&mut self, config: &Config) {
                $(self.$kind.stage_all(&<$object>::wanted(config));)*
            }

            /// The difference between the state in force before and after the publish.
            pub(crate) fn diff(&self) -> Diff {
                Diff { $($kind: self.$kind.difference(),)* }
            }

            /// All objects that are left out.
            pub(crate) fn left_out(&self) -> Vec<LeftOut> {
                let mut list = Vec::new();
                $(self.$kind.left_out(&mut list);)*
                list
            }

            /// The objects that this publish left out, and those that it put in force after they
            /// had been left out.
            pub(crate) fn news(&self) -> (Vec<LeftOut>, Vec<Cookie>) {
                let (mut left_out, mut taken) = (Vec::new(), Vec::new());
                $(self.$kind.newly_left_out(&mut left_out);)*
                $(self.$kind.newly_taken(&mut taken);)*
                (left_out, taken)
            }

            /// Keeps the settled state.
            pub(crate) fn commit(&mut self) {
                $(self.$kind.commit();)*
                self.zone_before.clone_from(&self.zone);
            }

            /// Undoes the publish, given the previous settings.
            pub(crate) fn undo(&mut self, settings: Settings) {
                $(self.$kind.undo(&settings);)*
                self.settings = settings;
                self.zone.clone_from(&self.zone_before);
            }
        }
    };
}

kinds! {
    /// Bridge domains.
    bridges: Arc<BridgeDomain>,
    /// Roles of ports.
    ports: PortConfig,
    /// Pods.
    endpoints: Arc<Endpoint>,
    /// Host ports of pods.
    host_ports: PodPorts,
    /// Other nodes.
    nodes: Arc<RemoteNode>,
    /// Routes.
    routes: Arc<Route>,
    /// Namespaces.
    namespaces: Arc<Namespace>,
    /// NetworkPolicies.
    policies: Wanted<NetworkPolicy>,
    /// ClusterNetworkPolicies.
    cluster_policies: Wanted<ClusterNetworkPolicy>,
    /// Services.
    services: Arc<Service>,
    /// Endpoint slices.
    slices: Arc<EndpointSlice>,
}

impl Desired {
    /// Stages a whole configuration. Returns the previous settings.
    pub(crate) fn stage_config(&mut self, config: &Config) -> Settings {
        self.stage_objects(config);
        self.zone.clone_from(&config.zone);
        std::mem::replace(&mut self.settings, Settings::of(config))
    }

    /// Stages the change of one object.
    pub(crate) fn stage(&mut self, change: Change) {
        match change {
            Change::Pod(object) => self.endpoints.stage(object.key(), Some(object)),
            Change::PodDeleted(name) => self.endpoints.stage(name, None),
            Change::Namespace(object) => self.namespaces.stage(object.key(), Some(object)),
            Change::NamespaceDeleted(name) => self.namespaces.stage(name, None),
            Change::Node(object) => self.nodes.stage(object.key(), Some(object)),
            Change::NodeDeleted(name) => self.nodes.stage(name, None),
            Change::Policy(policy) => self.stage_policy(Wanted::new(policy)),
            Change::PolicyDeleted(name) => self.policies.stage(name, None),
            Change::ClusterPolicy(policy) => self.stage_cluster_policy(Wanted::new(policy)),
            Change::ClusterPolicyDeleted(name) => self.cluster_policies.stage(name, None),
            Change::RefusedPolicy(refused) => match &*refused {
                RefusedPolicy::Network { policy, error } => {
                    self.stage_policy(Wanted::refused(policy, error));
                }
                RefusedPolicy::Cluster { policy, error } => {
                    self.stage_cluster_policy(Wanted::refused(policy, error));
                }
            },
            Change::Service(object) => self.services.stage(object.key(), Some(object)),
            Change::ServiceDeleted(name) => self.services.stage(name, None),
            Change::Slice(object) => self.slices.stage(object.key(), Some(object)),
            Change::SliceDeleted(namespace, name) => self.slices.stage((namespace, name), None),
            Change::HostPorts(pod, ports) => {
                let object = (!ports.is_empty()).then(|| (pod.clone(), ports));
                self.host_ports.stage(pod, object);
            }
            Change::Port(port) => self.ports.stage(port.key(), Some(port)),
            Change::PortDeleted(port) => self.ports.stage(port, None),
            Change::Route(object) => self.routes.stage(object.key(), Some(object)),
            Change::RouteDeleted(destination) => self.routes.stage(destination, None),
            Change::Bridge(object) => self.bridges.stage(object.key(), Some(object)),
            Change::BridgeDeleted(name) => self.bridges.stage(name, None),
            Change::Zone(zone) => self.zone = zone,
            Change::Settings(config) => self.settings = Settings::of(&config),
        }
    }

    fn stage_policy(&mut self, policy: Wanted<NetworkPolicy>) {
        self.policies.stage(policy.key(), Some(policy));
    }

    fn stage_cluster_policy(&mut self, policy: Wanted<ClusterNetworkPolicy>) {
        self.cluster_policies.stage(policy.key(), Some(policy));
    }

    /// Decides which staged objects are in force. Kinds that others depend on come first.
    pub(crate) fn settle(&mut self, was: &Settings, fdb_ids: &FdbIds) {
        let settings = &self.settings;
        let (old, new) = (&was.node, &settings.node);
        let moved = old.addresses != new.addresses;
        let when = |changed: bool| if changed { Again::Check } else { Again::No };

        self.bridges.settle(settings, (), Again::No);
        for bridge in self.bridges.changed() {
            let domain = PortClaim::Domain(bridge.clone());
            let members: Vec<_> = self.ports.claimants(&domain).copied().collect();
            members.into_iter().for_each(|port| self.ports.stage_again(port));
        }
        let ports = PortContext { settings, bridges: &self.bridges, fdb_ids };
        self.ports.settle(settings, ports, when(moved || was.tunnel != settings.tunnel));

        for port in self.ports.changed() {
            let attached = EndpointClaim::Port(*port);
            let pods: Vec<_> = self.endpoints.claimants(&attached).cloned().collect();
            pods.into_iter().for_each(|pod| self.endpoints.stage_again(pod));
        }
        let endpoints = EndpointContext { settings, ports: &self.ports };
        self.endpoints.settle(settings, endpoints, when(moved || old.gateway != new.gateway));
        self.endpoints.changed().for_each(|pod| self.host_ports.stage_again(pod.clone()));
        self.host_ports.settle(settings, &self.endpoints, Again::No);

        let other_node = moved
            || old.name != new.name
            || old.pod_cidrs != new.pod_cidrs
            || old.vtep != new.vtep
            || was.tunnel != settings.tunnel;
        let again = if other_node { Again::Claims } else { Again::No };
        self.nodes.settle(settings, settings, again);
        self.routes.settle(settings, settings, Again::No);

        self.namespaces.settle(settings, (), Again::No);
        self.policies.settle(settings, (), Again::No);
        let policies = self.policies.changed();
        policies.for_each(|policy| self.cluster_policies.stage_again(policy.clone()));
        self.cluster_policies.settle(settings, &self.policies, Again::No);
        self.services.settle(settings, (), Again::No);
        self.slices.settle(settings, (), Again::No);
    }
}
