//! Devices that outlive the process: another one, the holder, has them open as well.

use std::path::PathBuf;

use super::Node;
use super::ownership::Ownership;
use crate::events::{Event, Failure};
use crate::hold::{HoldError, HolderLink};

/// The node's side of it.
#[derive(Debug, Default)]
pub(super) struct Holding {
    link: Option<HolderLink>,
    /// Devices are a holder's that this node does not know yet.
    is_unknown: bool,
    /// Where a holder that starts later listens. `None`: the devices are not to be held.
    run_dir: Option<PathBuf>,
}

impl Holding {
    /// For a node that starts. `has_held`: with devices that a holder kept.
    pub(super) fn of_start(has_held: bool) -> Self {
        Self { is_unknown: has_held, ..Self::default() }
    }

    /// Whether devices outlive this process.
    pub(super) fn is_held(&self) -> bool {
        self.link.is_some() || self.is_unknown
    }

    /// Another process has the devices, and is the holder's switch.
    pub(super) fn release(&mut self) {
        self.link = None;
    }

    /// Nothing is to be held any more.
    pub(super) fn end(self) {
        if let Some(link) = self.link {
            link.end();
        }
    }
}

impl Node {
    /// Has a holder keep the devices from now on. Files of an earlier run that no device has taken are closed, here and
    /// there: pods have been attached again. Frames that waited in the devices are received now. If the holder ends, the next one that listens in `run_dir` is used.
    pub fn hold(&mut self, link: Option<HolderLink>, run_dir: impl Into<PathBuf>) {
        self.close_inherited();
        self.control.hold_workers(false);
        self.holding = Holding { link, run_dir: Some(run_dir.into()), is_unknown: false };
        self.hold_devices(true);
        self.deliver_events();
    }

    /// Tells the holder which devices there are. `looks`: for another holder, if there is none.
    pub(super) fn hold_devices(&mut self, looks: bool) {
        // The holder serves one switch: the one that forwards.
        if self.ownership != Ownership::Own {
            return;
        }
        let Holding { link, run_dir, .. } = &mut self.holding;
        if let (None, Some(path), true) = (&link, &run_dir, looks) {
            match HolderLink::connect(path) {
                Ok((found, _)) => {
                    *link = Some(found);
                    self.reporter.event(Event::Held);
                }
                // None listens.
                Err(HoldError::Io(_)) => {}
                Err(error) => {
                    // It would keep this thread waiting again and again.
                    *run_dir = None;
                    self.reporter.failure(Failure::NotHeld(error.to_string()));
                }
            }
        }
        let Some(held) = link else { return };
        if let Err(error) = held.follow(&self.control) {
            *link = None;
            self.reporter.failure(match error {
                HoldError::Ended => Failure::NotHeld("the holder has ended".to_owned()),
                error => Failure::NotHeld(error.to_string()),
            });
        }
    }
}
