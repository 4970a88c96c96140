//! What the switch has counted, as a file for the next run: totals of frames, drops and ports, and the counts of policies and
//! Services.

use std::net::SocketAddr;

use hashbrown::HashMap;
use podswitch_core::control::{ControlPlane, PolicyCount, ServiceCount};
use podswitch_policy::rule::{Direction, Protocol};
use serde::{Deserialize, Serialize};

use crate::totals::Totals;

/// See the module's description.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    /// Those of all runs.
    pub(super) totals: Totals,
    policies: Vec<Policy>,
    services: Vec<Service>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Policy {
    cookie: String,
    is_ingress: bool,
    rule: Option<usize>,
    decided: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Service {
    cookie: String,
    port_name: String,
    protocol: u8,
    port: u16,
    opened: Vec<(SocketAddr, u64)>,
    departed: u64,
    rejected: u64,
    dropped: u64,
}

impl Counted {
    /// The counts of objects now, and these totals.
    pub(super) fn read(control: &ControlPlane, totals: Totals) -> Self {
        let policies = control.policy_counts().into_iter().map(|count| Policy {
            cookie: count.policy.to_string(),
            is_ingress: count.direction == Direction::Ingress,
            rule: count.rule,
            decided: count.decided,
        });
        let services = control.service_counts().into_iter().map(|count| Service {
            cookie: count.service.to_string(),
            port_name: count.port_name.to_string(),
            protocol: count.protocol.number(),
            port: count.port,
            opened: count.opened,
            departed: count.departed,
            rejected: count.rejected,
            dropped: count.dropped,
        });
        Self { totals, policies: policies.collect(), services: services.collect() }
    }

    /// What was counted since these were read as `before`.
    pub(super) fn since(self, before: &Self) -> Self {
        let key = |p: &Policy| (p.cookie.clone(), p.is_ingress, p.rule);
        let decided: HashMap<_, u64> =
            before.policies.iter().map(|p| (key(p), p.decided)).collect();
        let policies = self.policies.into_iter().map(|policy| {
            let before = decided.get(&key(&policy)).copied().unwrap_or(0);
            Policy { decided: policy.decided.saturating_sub(before), ..policy }
        });
        let key = |s: &Service| (s.cookie.clone(), s.port_name.clone(), s.protocol, s.port);
        let known: HashMap<_, &Service> = before.services.iter().map(|s| (key(s), s)).collect();
        let services = self.services.into_iter().map(|mut service| {
            let Some(before) = known.get(&key(&service)) else { return service };
            for (backend, count) in &mut service.opened {
                let of = before.opened.iter().find(|(known, _)| known == backend);
                *count = count.saturating_sub(of.map_or(0, |(_, count)| *count));
            }
            service.departed = service.departed.saturating_sub(before.departed);
            service.rejected = service.rejected.saturating_sub(before.rejected);
            service.dropped = service.dropped.saturating_sub(before.dropped);
            service
        });
        Self {
            policies: policies.collect(),
            services: services.collect(),
            totals: self.totals.since(&before.totals),
        }
    }

    /// Adds the counts of objects to those of the state in force.
    pub(super) fn restore(&self, control: &ControlPlane) {
        let policies = self.policies.iter().map(|count| PolicyCount {
            policy: count.cookie.as_str().into(),
            direction: if count.is_ingress { Direction::Ingress } else { Direction::Egress },
            rule: count.rule,
            decided: count.decided,
        });
        let services = self.services.iter().filter_map(|count| {
            Some(ServiceCount {
                service: count.cookie.as_str().into(),
                port_name: count.port_name.as_str().into(),
                protocol: Protocol::from_number(count.protocol)?,
                port: count.port,
                opened: count.opened.clone(),
                departed: count.departed,
                rejected: count.rejected,
                dropped: count.dropped,
            })
        });
        control.restore_counts(&policies.collect::<Vec<_>>(), &services.collect::<Vec<_>>());
    }
}
