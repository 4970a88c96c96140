//! The switches of a path, and a policy of the pods that changes while a load runs.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use podswitch_core::control::{Change, ControlPlane};
use podswitch_policy::rule::{NetworkPolicy, Peer, Peers, Ports, Rule, Selector};
use podswitch_wire::cidr::Cidr;

use super::{Family, Path};
use crate::Outcome;

/// Time between two changes.
const INTERVAL: Duration = Duration::from_millis(50);

/// The control planes of a path's switches. Their workers forward while a thread has the lock.
#[expect(clippy::disallowed_types, reason = "control planes only: no packets pass here")]
pub(super) struct Switches(std::sync::Mutex<Vec<ControlPlane>>);

impl Switches {
    #[expect(clippy::disallowed_types, reason = "as above")]
    pub(super) fn new(switches: Vec<ControlPlane>) -> Self {
        Self(std::sync::Mutex::new(switches))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<ControlPlane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, changes: &[Change]) -> Outcome<()> {
        for control in self.lock().iter_mut() {
            control.update(changes.iter().cloned()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// A policy that changes. Dropping it ends the changes.
pub(crate) struct Changes<'scope> {
    stop: &'scope AtomicBool,
    thread: Option<ScopedJoinHandle<'scope, Outcome<()>>>,
}

impl Changes<'_> {
    /// Ends the changes, and removes the policy.
    ///
    /// # Errors
    /// A change was refused.
    pub(crate) fn end(mut self) -> Outcome<()> {
        self.stop.store(true, Relaxed);
        let panicked = |_| Err("changing a policy panicked".to_owned());
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl Path {
    /// If `wanted`: upserts a policy that selects both pods and allows everything, every 50 ms with another rule, in
    /// every switch of the path. A path without a switch has no policies.
    pub(crate) fn change_policies<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        stop: &'scope AtomicBool,
        wanted: bool,
    ) -> Changes<'scope> {
        let switches = &self.switches;
        let change = move || {
            let mut number = 0;
            while !stop.load(Relaxed) {
                number += 1;
                switches.update(&[Change::Policy(Arc::new(policy(number)))])?;
                thread::sleep(INTERVAL);
            }
            switches.update(&[Change::PolicyDeleted(COOKIE.into())])
        };
        Changes { stop, thread: wanted.then(|| scope.spawn(change)) }
    }
}

const COOKIE: &str = "NetworkPolicy/compare/changing";

fn policy(number: u32) -> NetworkPolicy {
    let block = |cidr| Peer::IpBlock { cidr, except: Vec::new() };
    let everywhere =
        Family::BOTH.map(|family| Cidr::new(family.unspecified(), 0).expect("no bits fit"));
    let other = Cidr::host(Ipv4Addr::from(0xac10_0000 + number).into());
    let peers = everywhere.into_iter().chain([other]).map(block).collect();
    NetworkPolicy {
        cookie: COOKIE.into(),
        namespace: "compare".into(),
        name: "changing".into(),
        pods: Selector::everything(),
        ingress: Some(vec![Rule { peers: Peers::AnyOf(peers), ports: Ports::Any }]),
        egress: None,
    }
}
