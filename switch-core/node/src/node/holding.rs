//! Devices that outlive the process: another one, the holder, has them open as well.

use std::path::PathBuf;

use podswitch_core::control::ControlPlane;

use crate::events::{Event, Failure, Reporter};
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

    /// With this holder, or the next one that listens in `run_dir`.
    pub(super) fn new(link: Option<HolderLink>, run_dir: PathBuf) -> Self {
        Self { link, is_unknown: false, run_dir: Some(run_dir) }
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

    /// Tells the holder which devices there are. `looks`: for another holder, if there is none.
    pub(super) fn follow(&mut self, control: &ControlPlane, reporter: &Reporter, looks: bool) {
        let Self { link, run_dir, .. } = self;
        if let (None, Some(path), true) = (&link, &run_dir, looks) {
            match HolderLink::connect(path) {
                Ok((found, _)) => {
                    *link = Some(found);
                    reporter.event(Event::Held);
                }
                // None listens.
                Err(HoldError::Io(_)) => {}
                Err(error) => {
                    // It would keep this thread waiting again and again.
                    *run_dir = None;
                    reporter.failure(Failure::NotHeld(error.to_string()));
                }
            }
        }
        let Some(held) = link else { return };
        if let Err(error) = held.follow(control) {
            *link = None;
            if matches!(error, HoldError::Refused(_)) {
                // It would refuse the same again.
                *run_dir = None;
            }
            reporter.failure(Failure::NotHeld(error.to_string()));
        }
    }
}
