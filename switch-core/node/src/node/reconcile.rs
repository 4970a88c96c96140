//! What should be against what is: ports, the node's kernel, the underlay.
//!
//! [`Node::reconcile_ports`] and [`Node::follow`] are the two steps: first the switch's ports and the state that names
//! them, then the settings of the node's kernel.

use std::time::Duration;

use podswitch_core::config::Config;
use podswitch_core::id::Epoch;

use super::{Node, POLL_INTERVAL, PUBLISH_TIMEOUT, RECONCILE_INTERVAL};
use crate::error::NodeError;
use crate::events::{Event, Failure};
use crate::host_side::HostInterface;
use crate::pod_name::PodName;
use crate::pods::Wanted;

impl Node {
    pub(super) fn poll_parts(&mut self) -> Result<Duration, NodeError> {
        let has_changed = self.underlay.has_changed();
        if has_changed {
            let changed = self.reconcile_ports(Vec::new(), false);
            self.unless_refused(changed)?;
        }
        let now = self.clock.now();
        let sweep = now >= self.reconcile_at;
        if sweep {
            self.reconcile_at = now + RECONCILE_INTERVAL;
            let reconciled = self.reconcile();
            self.unless_refused(reconciled)?;
        }
        if has_changed || sweep {
            self.put_back_host()?;
        }
        self.control.maintain_devices();
        self.pods.put_back(now, sweep);
        if let Some(drops) = &mut self.drops {
            drops.report(&self.control, &self.reporter, |port| self.pods.at(port));
        }
        let mut due = self.reconcile_at;
        if let Some((every, flows)) = &mut self.flows {
            if now >= self.flows_at {
                self.flows_at = now + *every;
                flows.report(&self.control, &self.reporter);
            }
            due = due.min(self.flows_at);
        }
        Ok(due.since(now).min(POLL_INTERVAL))
    }

    /// What the node's interfaces became may be refused (an MTU that leaves nothing for the tunnel): that is
    /// reported, and the state in force stays.
    fn unless_refused(
        &mut self,
        result: Result<Option<Epoch>, NodeError>,
    ) -> Result<(), NodeError> {
        match result {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.reported = None;
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

    /// Whether this was not the last that was reported.
    fn is_news(&mut self, text: &str) -> bool {
        let is_news = self.reported.as_deref() != Some(text);
        self.reported = Some(text.to_owned());
        is_news
    }

    /// Puts back what somebody took from the node's kernel, the node's own interface too.
    fn put_back_host(&mut self) -> Result<(), NodeError> {
        let found = self.host.put_back(&self.settings, self.desired.config());
        match found {
            Ok(HostInterface::There) => Ok(()),
            Ok(HostInterface::Gone) => {
                if let Err(error) = self.host.reopen(&mut self.control) {
                    if self.is_news(&error.to_string()) {
                        let failure = Failure::HostInterface(error.to_string());
                        self.reporter.failure(failure);
                    }
                    return Ok(());
                }
                self.is_unpublished = true;
                let published = self.reconcile_ports(Vec::new(), false);
                self.unless_refused(published)
            }
            Err(error) => {
                if self.is_news(&error.to_string()) {
                    let object = "node".to_owned();
                    self.reporter.failure(Failure::NotPutBack { object, error });
                }
                Ok(())
            }
        }
    }

    /// Replaces devices that failed and pods that are not attached as wanted.
    fn reconcile(&mut self) -> Result<Option<Epoch>, NodeError> {
        let mut failed = Vec::new();
        for worker in self.control.workers() {
            failed.extend(std::iter::from_fn(|| worker.next_failure()));
        }
        let mut gone = self.pods.outdated(&Wanted::of(self.desired.state(), &self.added));
        for (port, error) in failed {
            if port == self.host.port() {
                // Its interface is gone, which is seen and mended where the node's kernel is.
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
        self.host.reconcile(&self.control);
        self.reconcile_ports(gone, false)
    }

    /// Reconciles the ports: detaches `gone` pods and outdated underlay ports, attaches what is missing. Publishes
    /// the state if a port changed, or in any case if `always`.
    pub(super) fn reconcile_ports(
        &mut self,
        gone: Vec<PodName>,
        always: bool,
    ) -> Result<Option<Epoch>, NodeError> {
        let outdated = self.underlay.plan(self.desired.config());
        let epoch = self.release(gone, outdated)?;
        let mut changed = self.underlay.attach(&mut self.control);
        let wanted = Wanted::of(self.desired.state(), &self.added);
        // An underlay that leaves less carries what fits, and the switch answers what is too long.
        let mtu = self.underlay.mtu(self.desired.config()).max(wanted.least_mtu());
        changed |= self.pods.set_mtu(mtu) | self.host.set_mtu(mtu);
        changed |= self.pods.attach(&mut self.control, &wanted);
        changed |= self.underlay.find_neighbours(self.desired.config());
        changed |= self.host.find_addresses(&self.settings, self.desired.config());
        self.is_unpublished |= changed;
        let is_needed = self.is_unpublished || always && epoch.is_none();
        let epoch = if is_needed { Some(self.publish()?) } else { epoch };
        Ok(epoch)
    }

    /// Detaches pods and, if `outdated`, ports of the underlay. A configuration without these ports is in force
    /// before their numbers are free for others.
    fn release(&mut self, gone: Vec<PodName>, outdated: bool) -> Result<Option<Epoch>, NodeError> {
        if gone.is_empty() && !outdated {
            return Ok(None);
        }
        self.pods.withdraw(&gone);
        match self.publish() {
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

    /// Publishes the state with the ports that there are, and waits for the workers.
    pub(super) fn publish(&mut self) -> Result<Epoch, NodeError> {
        let config = self.config();
        let epoch = match self.settings.lenient {
            true => {
                let published = self.control.apply_lenient(&config)?;
                self.reported(published)
            }
            false => self.control.apply(&config)?,
        };
        self.acknowledged(epoch)?;
        self.is_unpublished = false;
        self.host.detach(&mut self.control);
        Ok(epoch)
    }

    pub(super) fn acknowledged(&mut self, epoch: Epoch) -> Result<(), NodeError> {
        if let Some(drops) = &mut self.drops {
            drops.published(&self.control);
        }
        self.control.wait(epoch, PUBLISH_TIMEOUT)?;
        self.reporter.event(Event::Applied { epoch });
        Ok(())
    }

    /// Updates the node's kernel to the state in force. What does not work is reported, and tried again
    /// ([`put_back_host`](Self::put_back_host)).
    pub(super) fn follow(&mut self) {
        let (config, snapshot) = (self.config(), self.control.snapshot());
        let remote = self.underlay.remote_pods();
        if let Err(error) = self.host.follow(&self.settings, &config, &snapshot, remote) {
            self.reporter.failure(Failure::HostSide(error));
        }
        self.host.reconcile(&self.control);
        self.underlay.claim(&config, &snapshot);
    }

    /// The desired configuration with the ports that there are.
    fn config(&self) -> Config {
        let mut config = self.desired.config().clone();
        config.ports.clear();
        config.neighbours.clear();
        self.pods.complete(&mut config);
        config.ports.push(self.host.port_config());
        config.node.local_addresses.extend(self.host.local_addresses());
        if let Some(masquerade) = self.settings.masquerade.by_switch(&self.settings.cluster_cidrs) {
            config.masquerade = Some(masquerade);
        }
        self.underlay.complete(&mut config);
        config
    }
}
