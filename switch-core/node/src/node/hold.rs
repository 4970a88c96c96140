//! Having another process keep the devices.

use std::path::PathBuf;

use super::Node;
use super::holding::Holding;
use super::ownership::Ownership;
use crate::hold::HolderLink;

impl Node {
    /// Has a holder keep the devices from now on. Files of an earlier run that no device has taken are closed, here and
    /// there: pods have been attached again. Frames that waited in the devices are received now. If the holder ends, the
    /// next one that listens in `run_dir` is used.
    pub fn hold(&mut self, link: Option<HolderLink>, run_dir: impl Into<PathBuf>) {
        self.close_inherited();
        self.control.hold_workers(false);
        self.holding = Holding::new(link, run_dir.into());
        self.follow_holder(true);
        self.deliver_events();
    }

    /// Tells the holder which devices there are, if this process forwards: the holder serves one switch. `looks`: for
    /// another holder, if there is none.
    pub(super) fn follow_holder(&mut self, looks: bool) {
        if self.ownership == Ownership::Own {
            self.holding.follow(&self.control, &self.reporter, looks);
        }
    }
}
