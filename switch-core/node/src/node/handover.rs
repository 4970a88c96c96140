//! Taking a node over from a running switch, and handing it over.

use std::time::Duration;

use podswitch_core::port::DeviceFiles;
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::handover::Inherited;

use super::Node;
use super::ownership::Ownership;
use crate::error::NodeError;
use crate::events::Failure;
use crate::handover::{HandoverError, PER_CONNECTION, Predecessor, SILENCE, Successor, is_shared};
use crate::host_side::Behind;
use crate::pod_name::PodName;

/// Time between two looks at whether the workers have finished their packets.
const LOOK: Duration = Duration::from_micros(50);

impl Node {
    /// Goes on in place of the predecessor, whose devices were given to [`Node::start`]. Returns when this process
    /// forwards; call [`adopt`](Self::adopt) when the predecessor has gone.
    ///
    /// # Errors
    /// The predecessor goes on, and this node must be dropped.
    pub fn take_over(&mut self, predecessor: &Predecessor) -> Result<(), HandoverError> {
        if let Some(kept) = &mut self.kept {
            kept.copy_running(&self.control);
        }
        let token = predecessor.freeze()?;
        let is_known = predecessor.other_format().is_none();
        if let Some(kept) = &mut self.kept {
            self.earlier = kept.start(&self.control, self.clock.now(), is_known);
            self.pods.restore_counts(self.earlier.take_pods());
        }
        token.take()?;
        self.control.hold_workers(false);
        self.ownership = Ownership::Forwarding;
        predecessor.forwarding();
        self.deliver_events();
        Ok(())
    }

    /// The predecessor has let go of the node's kernel: puts steering, masquerading and settings in force in its place.
    /// There is no moment without them.
    ///
    /// # Errors
    /// The kernel's settings cannot be written.
    pub fn adopt(&mut self) -> Result<(), NodeError> {
        self.ownership = Ownership::Own;
        self.pods.forget_inherited();
        self.underlay.forget_inherited();
        self.control.leave_devices_in_force(false);
        let adopted = self.host.adopt(&self.settings, &self.desired.settings);
        self.behind = Behind::all();
        self.follow();
        self.host.reconcile(&self.control);
        self.close_inherited();
        self.deliver_events();
        Ok(adopted?)
    }

    /// Closes files of devices that nobody here has taken.
    pub(super) fn close_inherited(&mut self) {
        // Without a predecessor they are those of pods that were deleted meanwhile.
        let is_news = self.settings.inherited.has_predecessor();
        for key in self.settings.inherited.close_rest() {
            // A socket is not needed any more if the flags or the Services are others.
            if is_news && !is_shared(&key) {
                self.reporter.failure(Failure::NotInherited(key));
            }
        }
        self.settings.inherited = Inherited::default();
        self.pods.forget_inherited();
        self.underlay.forget_inherited();
    }

    /// The files of the devices, and sockets for health checks, for a [successor](Successor::prepare).
    ///
    /// # Errors
    /// The node's own port is not a TAP.
    pub fn device_files(&self) -> Result<Vec<DeviceFiles>, HandoverError> {
        if !self.host.can_be_handed_over() {
            let reason = "the node's own interface is not a TAP".to_owned();
            return Err(HandoverError::Refused(reason));
        }
        let mut files = self.control.device_files();
        // The successor's own resolver has a namespace of its own.
        let resolver = self.pods.port(&PodName::resolver());
        for own in resolver.map(|port| self.control.device_files_of(port)).unwrap_or_default() {
            files.retain(|file| file.key != own.key);
        }
        files.extend(self.host.socket_files());
        Ok(files)
    }

    /// Hands the node over to a successor that is [ready](Successor::prepare) for it: from now on this node forwards
    /// nothing, and must be [stopped](Self::stop), which removes nothing.
    ///
    /// # Errors
    /// The successor does not forward. This node has gone on with its own descriptors; nothing is lost but the time.
    pub fn hand_over(&mut self, successor: &Successor) -> Result<(), HandoverError> {
        self.control.hold_workers(true);
        let handed = self.wait_until_held().and_then(|()| {
            let connections = self.control.shared().tracker.len() as u32;
            if let Some(mut kept) = self.kept.take() {
                kept.save(&self.control, self.clock, || self.totals());
                self.kept = Some(kept);
            }
            if let Some(kept) = &mut self.kept {
                kept.prepare_to_retire();
            }
            successor.commit(SILENCE + PER_CONNECTION * connections)
        });
        match &handed {
            Ok(()) => {
                self.ownership = Ownership::Successor;
                self.holding.release();
                self.control.leave_devices_in_force(true);
            }
            Err(_) => {
                self.control.hold_workers(false);
                self.forget_successor();
            }
        }
        handed
    }

    /// A successor that was [prepared](Successor::prepare) does not go on: removes what it has kept.
    pub fn forget_successor(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.forget_successor();
        }
    }

    /// Lets go of the node's kernel after the node was [handed over](Self::hand_over), as an end does, and goes on with
    /// nothing else: the node can be [taken back](Self::take_back).
    pub fn stand_by(&mut self) {
        self.host.let_go(&self.settings);
        if let Some(kept) = &mut self.kept {
            kept.retire();
        }
        self.deliver_events();
    }

    /// Goes on with the node after the successor has ended: with its connections and counts, and the devices as they are.
    /// The caller puts the present state in force before, and waits until the process has ended.
    ///
    /// # Errors
    /// As [`adopt`](Self::adopt).
    pub fn take_back(&mut self) -> Result<(), NodeError> {
        let totals = self.totals();
        if let Some(kept) = &mut self.kept {
            let mut more = kept.take_back(&self.control, self.clock.now(), totals);
            self.pods.add_counts(more.take_pods());
            self.earlier.add(&more);
        }
        self.control.hold_workers(false);
        let adopted = self.adopt();
        self.follow_holder(true);
        adopted
    }

    fn wait_until_held(&self) -> Result<(), HandoverError> {
        let clock = Clock::start();
        while !self.control.are_workers_held() {
            if clock.now().since(Instant::ZERO) > SILENCE {
                return Err(HandoverError::Refused("a worker does not stop".to_owned()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}
