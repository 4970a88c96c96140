//! Connections that survive the process: their memory on tmpfs, and those of earlier runs.

use std::path::Path;
use std::time::Duration;

use podswitch_core::control::{ControlPlane, Options, Restored, Saved, memory_size};
use podswitch_core::time::Instant;
use podswitch_linux::kept_connections::{KeptConnections, Opened};

use crate::events::{Event, Failure, Reporter};

/// How long connections of earlier runs wait until their pods are attached again.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Kept {
    files: KeptConnections,
    saved: Vec<Saved>,
    /// When connections that still wait are given up. `None`: none wait.
    until: Option<Instant>,
    restored: Restored,
    /// Memory could not be allocated, and this was reported.
    is_full: bool,
    reporter: Reporter,
}

impl Kept {
    /// A control plane with its connections in `folder`. Without a folder, or if it cannot be used,
    /// connections live in this process only; the latter is reported.
    pub(crate) fn open(
        folder: Option<&Path>,
        options: Options,
        reporter: &Reporter,
    ) -> (ControlPlane, Option<Self>) {
        let Some(folder) = folder else { return (ControlPlane::new(options), None) };
        let refused = |reason: String| reporter.failure(Failure::ConnectionsNotKept(reason));
        let size = memory_size(options.limits.connections);
        let Opened { files, memory, saved } = match KeptConnections::open(folder, size) {
            Ok(opened) => opened,
            Err(error) => {
                refused(error.to_string());
                return (ControlPlane::new(options), None);
            }
        };
        let control = match ControlPlane::with_memory(options.clone(), memory) {
            Ok(control) => control,
            Err(error) => {
                refused(error.to_string());
                files.remove();
                return (ControlPlane::new(options), None);
            }
        };
        let read = saved.into_iter().filter_map(|memory| {
            Saved::read(memory).inspect_err(|error| refused(error.to_string())).ok()
        });
        let mut kept = Self {
            files,
            saved: read.collect(),
            until: None,
            restored: Restored::default(),
            is_full: false,
            reporter: reporter.clone(),
        };
        kept.allocate(&control);
        (control, Some(kept))
    }

    /// Whether connections of earlier runs wait to be restored.
    pub(crate) fn has_saved(&self) -> bool {
        !self.saved.is_empty()
    }

    /// Restores connections whose clients' ports are attached, and if `tunnel` is true those of
    /// clients behind the tunnel. Call it after a port was attached, before a state names it.
    pub(crate) fn restore(&mut self, control: &ControlPlane, tunnel: bool) {
        // The latest run first: its connections include those that it restored from earlier runs.
        for saved in &mut self.saved {
            let Restored { restored, lost, .. } = control.restore_connections(saved, tunnel);
            self.restored.restored += restored;
            self.restored.lost += lost;
        }
    }

    /// The first state is in force: restores all connections that can be restored, and reports the
    /// result.
    pub(crate) fn start(&mut self, control: &ControlPlane, now: Instant) {
        if !self.has_saved() {
            // Connections of an incompatible version cannot be used.
            self.files.settle();
            return;
        }
        self.restore(control, true);
        self.until = Some(now + RESTORE_TIMEOUT);
        self.report();
    }

    /// Allocates memory ahead of its use, and gives up connections whose pods were not attached
    /// again.
    pub(crate) fn poll(&mut self, control: &ControlPlane, now: Instant) {
        self.allocate(control);
        let waiting = self.saved.iter().map(Saved::len).sum::<usize>();
        if self.until.is_some_and(|until| waiting == 0 || now >= until) {
            self.until = None;
            self.saved.clear();
            self.files.settle();
            self.restored.lost += waiting;
            if waiting > 0 {
                self.report();
            }
        }
    }

    /// Removes the files: the next run does not need them.
    pub(crate) fn remove(self) {
        self.files.remove();
    }

    fn report(&self) {
        let waiting = self.saved.iter().map(Saved::len).sum();
        let Restored { restored, lost, .. } = self.restored;
        if restored + lost + waiting > 0 {
            self.reporter.event(Event::Restored { restored, lost, waiting });
        }
    }

    fn allocate(&mut self, control: &ControlPlane) {
        let Some((bytes, chunks)) = control.wanted_memory() else { return };
        match self.files.allocate(bytes) {
            Ok(()) => {
                control.allow_memory(chunks);
                self.is_full = false;
            }
            Err(error) if !self.is_full => {
                self.is_full = true;
                self.reporter.failure(Failure::ConnectionsNotKept(error.to_string()));
            }
            Err(_) => {}
        }
    }
}
