//! Namespaces and policies.

use std::borrow::Cow;
use std::sync::Arc;

use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};

use super::shared;
use crate::config::{Config, ConfigError, RefusedPolicy};
use crate::id::Cookie;
use crate::publish::fault::{self, Faults};
use crate::publish::left_out::Effect;
use crate::publish::objects::{Kind, NoClaim, Object};
use crate::publish::{closed, validate};

impl Object for Arc<Namespace> {
    type Key = Arc<str>;
    type Claim = NoClaim;
    type Context<'a> = ();

    shared!(namespaces);

    fn key(&self) -> Self::Key {
        self.name.clone()
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(format!("Namespace/{}", self.name))
    }

    fn check(&self, (): (), _: &mut Faults) {}
}

/// A desired policy: as written, or with its error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wanted<P> {
    pub(crate) policy: Arc<P>,
    pub(crate) refused: Option<Arc<ConfigError>>,
}

impl<P: Clone + PartialEq> Wanted<P> {
    pub(crate) fn new(policy: Arc<P>) -> Self {
        Self { policy, refused: None }
    }

    pub(crate) fn refused(policy: &Arc<P>, error: &ConfigError) -> Self {
        Self { policy: policy.clone(), refused: Some(Arc::new(error.clone())) }
    }

    fn is_shared(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policy, &other.policy) && self.refused == other.refused
    }

    fn is_same(&self, other: &Self) -> bool {
        (Arc::ptr_eq(&self.policy, &other.policy) || self.policy == other.policy)
            && self.refused == other.refused
    }

    /// Two policies with one name: neither is put in force.
    fn ambiguous<O: Object>(policy: P, object: &O) -> Self {
        let refused = fault::same_name(&object.cookie(), O::DUPLICATE);
        Self { policy: Arc::new(policy), refused: Some(Arc::new(refused)) }
    }

    /// The last valid version, otherwise `closed`.
    fn instead(&self, last: Option<&Self>, closed: fn(&P) -> P) -> (Self, Effect) {
        match last {
            Some(last) => (last.clone(), Effect::LastVersion),
            None => (Self::new(Arc::new(closed(&self.policy))), Effect::Isolated),
        }
    }
}

impl Object for Wanted<NetworkPolicy> {
    type Key = Arc<str>;
    type Claim = NoClaim;
    type Context<'a> = ();

    fn wanted(config: &Config) -> Cow<'_, [Self]> {
        let written = config.policies.iter().cloned().map(Self::new);
        let refused = config.refused_policies.iter().filter_map(|refused| match &**refused {
            RefusedPolicy::Network { policy, error } => Some(Self::refused(policy, error)),
            RefusedPolicy::Cluster { .. } => None,
        });
        written.chain(refused).collect()
    }

    fn is_shared(&self, other: &Self) -> bool {
        Self::is_shared(self, other)
    }

    fn is_same(&self, other: &Self) -> bool {
        Self::is_same(self, other)
    }

    fn key(&self) -> Self::Key {
        self.policy.cookie.clone()
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(self.policy.cookie.clone())
    }

    fn check(&self, (): (), faults: &mut Faults) {
        match &self.refused {
            Some(error) => faults.add(&*error.field, &*error.reason),
            None => validate::network_policy(&self.policy, faults),
        }
    }

    fn fallback(&self, last: Option<&Self>) -> Option<(Self, Effect)> {
        Some(self.instead(last, closed::closed_network))
    }

    fn merged(&self, other: &Self) -> Option<Self> {
        let both = || closed::both_networks(&self.policy, &other.policy);
        (!Self::is_same(self, other)).then(|| Self::ambiguous(both(), self))
    }
}

impl Object for Wanted<ClusterNetworkPolicy> {
    type Key = Arc<str>;
    type Claim = NoClaim;
    /// NetworkPolicies: both kinds share one space of names in the policy table.
    type Context<'a> = &'a Kind<Wanted<NetworkPolicy>>;

    fn wanted(config: &Config) -> Cow<'_, [Self]> {
        let written = config.cluster_policies.iter().cloned().map(Self::new);
        let refused = config.refused_policies.iter().filter_map(|refused| match &**refused {
            RefusedPolicy::Cluster { policy, error } => Some(Self::refused(policy, error)),
            RefusedPolicy::Network { .. } => None,
        });
        written.chain(refused).collect()
    }

    fn is_shared(&self, other: &Self) -> bool {
        Self::is_shared(self, other)
    }

    fn is_same(&self, other: &Self) -> bool {
        Self::is_same(self, other)
    }

    fn key(&self) -> Self::Key {
        self.policy.cookie.clone()
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(self.policy.cookie.clone())
    }

    fn check(&self, others: &Kind<Wanted<NetworkPolicy>>, faults: &mut Faults) {
        if others.is_wanted(&self.policy.cookie) {
            let (field, reason) = Self::DUPLICATE;
            faults.add(field, reason);
        }
        match &self.refused {
            Some(error) => faults.add(&*error.field, &*error.reason),
            None => validate::cluster_policy(&self.policy, faults),
        }
    }

    fn fallback(&self, last: Option<&Self>) -> Option<(Self, Effect)> {
        Some(self.instead(last, closed::closed_cluster))
    }

    fn merged(&self, other: &Self) -> Option<Self> {
        let both = || closed::both_clusters(&self.policy, &other.policy);
        (!Self::is_same(self, other)).then(|| Self::ambiguous(both(), self))
    }
}
