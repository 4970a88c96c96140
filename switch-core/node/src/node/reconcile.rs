//! Reconciliation of ports, the node's kernel and the underlay.
//!
//! [`Node::reconcile_ports`] and [`Node::follow`] are the two steps: first the switch's ports and
//! the state that names them, then the settings of the node's kernel.

use std::time::Duration;

use podswitch_core::id::Epoch;

use super::ownership::Ownership;
use super::request::Request;
use super::{Node, POLL_INTERVAL, RECONCILE_INTERVAL};
use crate::error::NodeError;
use crate::events::{Event, Failure};
use crate::host_side::{Behind, HostInterface};
use crate::pod_name::PodName;
use crate::underlay::Underlay;
use crate::view::View;

impl Node {
    pub(super) fn poll_parts(&mut self) -> Result<Duration, NodeError> {
        if self.ownership == Ownership::Successor {
            return Ok(RECONCILE_INTERVAL);
        }
        let has_changed = self.underlay.has_changed();
        if has_changed {
            let changed = self.reconcile_ports(Vec::new(), &mut Request::none());
            self.unless_refused(changed)?;
        }
        let now = self.clock.now();
        let sweep = now >= self.reconcile_at;
        if sweep {
            self.reconcile_at = now + RECONCILE_INTERVAL;
            let reconciled = self.reconcile(Vec::new());
            self.unless_refused(reconciled)?;
        }
        if has_changed || sweep {
            self.repair_host()?;
        }
        self.follow_holder(sweep);
        if let Some(kept) = &mut self.kept {
            kept.poll(&self.control, now);
            if kept.gives_up_pods(now) {
                self.pods.forget_waiting_counts();
            }
        }
        if let Some(mut kept) = self.kept.take_if(|kept| kept.is_due(now)) {
            kept.save(&self.control, self.clock, || self.totals());
            self.kept = Some(kept);
        }
        for (device, done) in self.control.maintain_devices() {
            self.reporter.repaired(&device, done);
        }
        let lost = self.pods.repair(now, sweep);
        if !lost.is_empty() {
            let reconciled = self.reconcile(lost);
            self.unless_refused(reconciled)?;
        }
        if let Some(drops) = &mut self.drops {
            drops.report(&self.control, &self.reporter, &self.meters, |port| self.pods.at(port));
        }
        let flows = self.flows.as_mut();
        let soon = flows.and_then(|flows| flows.report(&self.control, &self.reporter));
        Ok(self.reconcile_at.since(now).min(soon.unwrap_or(POLL_INTERVAL)))
    }

    /// A state may be refused because of the node's present interfaces (such as an MTU too small
    /// for the tunnel): that is reported, and the state in force stays.
    fn unless_refused(
        &mut self,
        result: Result<Option<Epoch>, NodeError>,
    ) -> Result<(), NodeError> {
        match result {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.reported = None;
                // Ports and their interfaces may have changed.
                self.behind = Behind::all();
                self.follow();
                Ok(())
            }
            Err(NodeError::Refused(errors)) => {
                if self.is_news(&format!("{errors:?}")) {
                    self.reporter.event(Event::Refused(errors));
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this differs from the last report.
    fn is_news(&mut self, text: &str) -> bool {
        let is_news = self.reported.as_deref() != Some(text);
        self.reported = Some(text.to_owned());
        is_news
    }

    /// Puts back what somebody took from the node's kernel, the node's own interface too.
    fn repair_host(&mut self) -> Result<(), NodeError> {
        let found = self.host.repair(&self.settings, &self.desired.settings);
        match self.underlay.repair().and(found) {
            Ok(HostInterface::There) => {
                if self.host.is_behind() {
                    self.behind = Behind::all();
                    self.follow();
                }
                Ok(())
            }
            Ok(HostInterface::Gone) => {
                if let Err(error) = self.host.reopen(&mut self.control) {
                    if self.is_news(&error.to_string()) {
                        let failure = Failure::HostInterface(error.to_string());
                        self.reporter.failure(failure);
                    }
                    return Ok(());
                }
                self.is_unpublished = true;
                let published = self.reconcile_ports(Vec::new(), &mut Request::none());
                self.unless_refused(published)
            }
            Err(error) => {
                if self.is_news(&error.to_string()) {
                    let object = "node".to_owned();
                    self.reporter.failure(Failure::NotRepaired { object, error });
                }
                Ok(())
            }
        }
    }

    /// Replaces devices that failed, interfaces of `lost` pods, and pods that are not attached as wanted.
    fn reconcile(&mut self, lost: Vec<PodName>) -> Result<Option<Epoch>, NodeError> {
        let mut failed = Vec::new();
        for worker in self.control.workers() {
            failed.extend(std::iter::from_fn(|| worker.next_failure()));
        }
        let mut gone = self.pods.outdated(&self.wanted(), |_| true);
        for (port, error) in failed {
            if port == self.host.port() {
                // Its interface is gone, which is repaired with the node's kernel.
                continue;
            }
            if self.underlay.has_failed(port, &error) {
                continue;
            }
            if let Some(pod) = self.pods.at(port).filter(|pod| !gone.contains(pod)) {
                self.reporter.failure(Failure::PodInterfaceLost { pod: pod.clone(), error });
                gone.push(pod);
            }
        }
        for pod in lost.into_iter().filter(|pod| self.pods.port(pod).is_some()) {
            if !gone.contains(&pod) {
                let error = std::io::ErrorKind::NotFound.into();
                self.reporter.failure(Failure::PodInterfaceLost { pod: pod.clone(), error });
                gone.push(pod);
            }
        }
        self.host.reconcile(&self.control);
        self.reconcile_ports(gone, &mut Request::none())
    }

    /// Reconciles the ports: detaches `gone` pods and outdated underlay ports, attaches what is
    /// missing. Publishes `request`, or only the ports if they changed. Afterwards the request is
    /// empty; it is unchanged if it was refused.
    pub(super) fn reconcile_ports(
        &mut self,
        gone: Vec<PodName>,
        request: &mut Request,
    ) -> Result<Option<Epoch>, NodeError> {
        let outdated = self.with_underlay(request, |underlay, view| underlay.plan(view));
        let mut epoch = self.release(gone, outdated, request)?;
        let mut changed = self.underlay.attach(&mut self.control);
        let wanted = self.wanted();
        // An underlay with a smaller MTU carries what fits, and the switch answers packets that are
        // too long.
        let mtu = self.underlay.mtu(self.view(request)).max(wanted.least_mtu());
        changed |= self.pods.set_mtu(mtu) | self.host.set_mtu(mtu);
        self.behind.pods |= outdated || changed;
        changed |= self.pods.attach(&mut self.control, &wanted);
        changed |= self.with_underlay(request, |underlay, view| underlay.find_neighbours(view));
        let has_host_ports = self.view(request).has_host_ports();
        let other_addresses = self.host.find_addresses(&self.settings, has_host_ports);
        self.behind.services |= other_addresses;
        changed |= other_addresses;
        self.is_unpublished |= changed;
        if self.is_unpublished || !request.is_none() {
            epoch = Some(self.publish(request)?);
        }
        Ok(epoch)
    }

    /// Calls `f` with the underlay and the configuration that `request` leads to.
    fn with_underlay<T>(
        &mut self,
        request: &Request,
        f: impl FnOnce(&mut Underlay, View<'_>) -> T,
    ) -> T {
        let Self { underlay, control, desired, .. } = self;
        f(underlay, request.view(&desired.settings, control.objects()))
    }

    /// Detaches pods and, if `outdated`, ports of the underlay. A state without these ports is put
    /// in force before their numbers are reused.
    fn release(
        &mut self,
        gone: Vec<PodName>,
        outdated: bool,
        request: &mut Request,
    ) -> Result<Option<Epoch>, NodeError> {
        if gone.is_empty() && !outdated {
            return Ok(None);
        }
        self.pods.withdraw(&gone);
        self.is_unpublished = true;
        match self.publish(request) {
            Ok(epoch) => {
                self.pods.detach(&mut self.control, gone);
                self.underlay.detach(&mut self.control);
                Ok(Some(epoch))
            }
            Err(error) => {
                self.pods.restore(gone);
                Err(error)
            }
        }
    }

    /// Updates the node's kernel to the state in force. Failures are reported, and retried
    /// ([`repair_host`](Self::repair_host)).
    pub(super) fn follow(&mut self) {
        let behind = std::mem::take(&mut self.behind);
        let snapshot = self.control.snapshot();
        let remote = self.underlay.remote_pods();
        let request = Request::none();
        let view = request.view(&self.desired.settings, self.control.objects());
        let ranges = &self.ranges;
        let result = self.host.follow(&self.settings, view, ranges, &snapshot, remote, behind);
        if let Err(error) = result {
            self.reporter.failure(Failure::HostSide(error));
        }
        self.host.reconcile(&self.control);
        self.underlay.claim(view, ranges, &snapshot);
    }
}
