//! Compiles the desired state to a [`Snapshot`]; the cost depends on the changes only.
//!
//! Called by the control plane on its own thread, never on a packet core. A publish goes through
//! these stages:
//!
//! 1. *Stage*: a whole configuration or changes of single objects become the desired state, kind by
//!    kind ([`diff`], [`objects`]).
//! 2. *Settle*: each object is validated ([`validate`]), and where several claim the same address,
//!    port or range, one of them gets it ([`objects`]).
//! 3. *Decide*: a strict publish that leaves anything out is undone; so is any publish whose
//!    [`settings`] are invalid.
//! 4. *Compile*: each part of the snapshot is made from the previous one and the [`diff::Diff`],
//!    and shared if unchanged ([`bridges`], [`ports`], [`endpoints`], [`tunnels`], [`routes`],
//!    [`policies`], [`services`], [`names`]). This cannot fail.
//!
//! A new kind of object is a field of [`Config`], an implementation of [`objects::Object`] in
//! [`kinds`], a line in [`diff`], and its compilation.

mod bridges;
mod change;
mod closed;
mod diff;
mod ecmp;
mod endpoints;
mod fault;
mod fdb_ids;
mod kinds;
mod left_out;
mod names;
mod objects;
mod policies;
mod ports;
mod routes;
mod services;
mod settings;
mod tunnels;
mod validate;
mod view;
mod vtep_pairs;

use std::sync::Arc;

use podswitch_policy::affected::AffectedAddresses;
use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::Direction;
use podswitch_policy::service::compile::{Clash, Compiler as ServiceCompiler, HealthCheck};
use podswitch_policy::table::{PolicyInfo, PolicyTable};

pub use change::Change;
pub use left_out::{Cause, Effect, LeftOut, Published, Refused};
pub use view::Objects;

use diff::{Desired, Diff};
use fdb_ids::FdbIds;
use settings::Settings;

use crate::config::{Config, ConfigError, PortRole};
use crate::id::Epoch;
use crate::snapshot::{PolicyCounters, Snapshot};

/// The input of a publish.
pub(crate) enum Request<'a> {
    /// This state.
    Whole(&'a Config),
    /// These changes of the desired state.
    Changes(Vec<Change>),
}

/// How a publish handles invalid objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// One of them refuses the publish.
    Strict,
    /// They are left out.
    Lenient,
}

/// The desired state, the state in force, and the compilers between them.
#[derive(Debug)]
pub(crate) struct Publisher {
    desired: Desired,
    fdb_ids: FdbIds,
    policies: PolicyCompiler,
    services: ServiceCompiler,
    /// Frontends that two Services or host ports claim, as of the last publish.
    clashes: Vec<Clash>,
}

impl Publisher {
    /// An empty desired state.
    pub(crate) fn new() -> Self {
        Self {
            desired: Desired::default(),
            fdb_ids: FdbIds::default(),
            policies: PolicyCompiler::new(),
            services: services::compiler(),
            clashes: Vec::new(),
        }
    }

    /// The snapshot of `epoch`, which follows `before`.
    ///
    /// # Errors
    /// The errors for which the publish is refused. The desired state stays as it was.
    pub(crate) fn publish(
        &mut self,
        request: Request<'_>,
        mode: Mode,
        epoch: Epoch,
        before: &Snapshot,
    ) -> Result<(Snapshot, Published), Refused> {
        let is_whole = matches!(request, Request::Whole(_));
        let was = self.settle(request);
        let mut errors = validate::settings(&self.desired.settings, self.desired.nodes.len());
        let (left_out, taken) = self.desired.news();
        match (mode, is_whole) {
            (Mode::Lenient, _) => {}
            (Mode::Strict, true) => errors.extend(errors_of(self.desired.left_out())),
            (Mode::Strict, false) => errors.extend(errors_of(left_out.clone())),
        }
        if !errors.is_empty() {
            self.desired.undo(was);
            return Err(Refused(errors));
        }
        let diff = self.desired.diff();
        let snapshot = self.compile(&diff, &was, epoch, before);
        self.desired.commit();
        let mut published = Published { epoch, left_out, taken };
        let clashes = self.services.clashes();
        services::news(&self.clashes, &clashes, &mut published);
        self.clashes = clashes;
        Ok((snapshot, published))
    }

    /// All errors of a configuration.
    pub(crate) fn check(config: &Config) -> Vec<ConfigError> {
        let mut fresh = Self::new();
        fresh.settle(Request::Whole(config));
        let desired = &fresh.desired;
        let mut errors = validate::settings(&desired.settings, desired.nodes.len());
        errors.extend(errors_of(desired.left_out()));
        errors
    }

    /// The desired objects.
    pub(crate) fn objects(&self) -> Objects<'_> {
        Objects(&self.desired)
    }

    /// Everything that is left out, including frontends of Services.
    pub(crate) fn left_out(&self) -> Vec<LeftOut> {
        let mut list = self.desired.left_out();
        list.extend(self.clashes.iter().map(fault::clash));
        list
    }

    /// The answers of the health check responder (S12), as of the last publish.
    pub(crate) fn health_checks(&self) -> Vec<HealthCheck> {
        let mut list: Vec<HealthCheck> = self.services.health_checks().cloned().collect();
        list.sort_by(|a, b| a.port.cmp(&b.port).then_with(|| a.service.cmp(&b.service)));
        list
    }

    /// Stages and settles. Returns the previous settings.
    fn settle(&mut self, request: Request<'_>) -> Settings {
        let was = match request {
            Request::Whole(config) => self.desired.stage_config(config),
            Request::Changes(changes) => {
                let was = self.desired.settings.clone();
                changes.into_iter().for_each(|change| self.desired.stage(change));
                was
            }
        };
        self.desired.settle(&was, &self.fdb_ids);
        was
    }

    fn compile(
        &mut self,
        diff: &Diff,
        was: &Settings,
        epoch: Epoch,
        before: &Snapshot,
    ) -> Snapshot {
        let (desired, now) = (&self.desired, &self.desired.settings);
        let bridged = (!diff.bridges.is_empty() || !diff.ports.is_empty())
            .then(|| bridges::compile(desired, &self.fdb_ids));
        let ports = ports::compile(desired, diff, bridged.as_ref().map(|b| &b.ports), before);
        let uplinks = ports::uplinks(desired);
        let tunnels = tunnels::compile(desired, diff, was, before, &uplinks);
        let fib = routes::compile(desired, diff, was, before, &uplinks, &tunnels);
        let policy = policies::compile(&mut self.policies, diff, was, desired);
        let services = services::compile(&mut self.services, diff, now);
        let mut invalidation = before.invalidation.clone();
        let concerns = self.policies.take_affected().and(self.services.take_affected());
        invalidation.invalidate(epoch, concerns.and(affected(diff, was, now)));
        Snapshot {
            epoch,
            invalidation,
            gateway: now.node.gateway,
            node_addresses: shared(&before.node_addresses, &now.node.addresses),
            nat_ports: now.node.nat_ports.clone(),
            ports,
            host: ports::host(desired),
            uplinks,
            tunnels,
            node: now.node.name.clone(),
            endpoints: endpoints::compile(desired, diff, was, before),
            fib,
            policy_counters: counters(&before.policy_counters, &before.policy, &policy),
            policy,
            services,
            masquerade: match was.masquerade == now.masquerade {
                true => before.masquerade.clone(),
                false => now.masquerade.clone().map(Arc::new),
            },
            cluster_key: now.cluster_key.0,
            domains: bridged.map_or_else(|| before.domains.clone(), |bridged| bridged.domains),
            names: names::compile(desired, diff, before),
        }
    }
}

fn errors_of(left_out: Vec<LeftOut>) -> impl Iterator<Item = ConfigError> {
    left_out.into_iter().map(|left_out| left_out.error)
}

fn shared<T: Clone + PartialEq>(before: &Arc<[T]>, now: &[T]) -> Arc<[T]> {
    if **before == *now { before.clone() } else { now.into() }
}

/// The addresses that a publish affects, except through policies and Services. Their compilers
/// report those addresses themselves.
fn affected(diff: &Diff, was: &Settings, now: &Settings) -> AffectedAddresses {
    // A pod's port affects only the addresses of that pod.
    let other_ports = diff.ports.all().any(|port| port.role != PortRole::Pod);
    let for_all = was != now
        || other_ports
        || !diff.nodes.is_empty()
        || !diff.routes.is_empty()
        || !diff.bridges.is_empty();
    if for_all { AffectedAddresses::All } else { endpoints::affected(diff) }
}

/// The counters for the table `new`, which follows `old`. Numbers with a new meaning start at zero.
fn counters(counters: &PolicyCounters, old: &PolicyTable, new: &PolicyTable) -> PolicyCounters {
    let counters = counters.grown_to(new.counters());
    for (id, info) in new.policies() {
        let is_known = old.policy(id).is_some_and(|before| {
            Arc::ptr_eq(before, info)
                || before.first_counter == info.first_counter
                    && before.object.cookie() == info.object.cookie()
                    && Direction::BOTH
                        .iter()
                        .all(|&d| before.object.rule_count(d) == info.object.rule_count(d))
        });
        if !is_known {
            numbers(info).for_each(|number| counters.reset(number));
        }
    }
    counters
}

/// The numbers of a policy's counters.
fn numbers(info: &PolicyInfo) -> impl Iterator<Item = u32> {
    Direction::BOTH.into_iter().flat_map(move |direction| {
        let rules = (0..info.object.rule_count(direction)).map(Some);
        std::iter::once(None).chain(rules).map(move |rule| info.counter(direction, rule))
    })
}
