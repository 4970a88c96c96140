//! What outlives the process, in the run directory on tmpfs: connections in shared memory; what the switch has learnt
//! (`kept-learnt`), written every few seconds; its counters (`kept-counts`), written before a caller gets them, so that no
//! counter that was read falls after a restart.

mod counted;
mod envelope;
mod learnt;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podswitch_core::control::{ControlPlane, Options, Restored, Running, Saved, memory_size};
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::kept_connections::{KeptConnections, Opened, monotonic};

use counted::Counted;
use learnt::Learnt;

use crate::events::{Event, Failure, Reporter};
use crate::totals::Totals;

/// How long connections of earlier runs wait for their pods to be attached again.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(60);
/// Least time between two writings of what was learnt and counted.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Share of the node's time that they may take: one part of so many.
const SAVE_SHARE: u32 = 50;
/// Passes over the connections of a switch that forwards, until fewer than so many changed during one.
const PASSES: usize = 4;
const FEW: usize = 64;
/// If a write takes less, counters are written each time a caller reads them.
const CHEAP: Duration = Duration::from_millis(5);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Kept {
    files: KeptConnections,
    saved: Vec<Saved>,
    /// Those of the switch that is taken over, which still uses them.
    running: Vec<Running>,
    /// When connections that still wait are given up. `None`: none wait.
    until: Option<Instant>,
    /// When counters of pods that were not attached again are given up. `None`: they were.
    pods_until: Option<Instant>,
    restored: Restored,
    /// Memory could not be allocated, and this was reported.
    is_full: bool,
    learnt: PathBuf,
    counts: PathBuf,
    /// When they are to be written. `None`: there is no state of this run yet, and the files are those of earlier ones.
    save_at: Option<Instant>,
    /// Counters are not written on a caller's behalf before then.
    counts_at: Cell<Instant>,
    /// It could not be written, and that was reported: what was learnt, and what was counted.
    learnt_unsaved: Cell<bool>,
    counts_unsaved: Cell<bool>,
    reporter: Reporter,
}

impl Kept {
    /// A control plane with its connections in `folder`. `takes_over`: earlier connections are still in use by a running
    /// switch, and are read later ([`copy_running`](Self::copy_running)). Without a folder, or if it cannot be used,
    /// connections live in this process only; the latter is reported.
    pub(crate) fn open(
        folder: Option<&Path>,
        takes_over: bool,
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
        let saved = if takes_over { Vec::new() } else { saved };
        let read = saved.into_iter().filter_map(|memory| {
            Saved::read(memory).inspect_err(|error| refused(error.to_string())).ok()
        });
        let mut kept = Self {
            files,
            saved: read.collect(),
            running: Vec::new(),
            until: None,
            pods_until: None,
            restored: Restored::default(),
            is_full: false,
            learnt: folder.join("kept-learnt"),
            counts: folder.join("kept-counts"),
            save_at: None,
            counts_at: Cell::new(Instant::default()),
            learnt_unsaved: Cell::new(false),
            counts_unsaved: Cell::new(false),
            reporter: reporter.clone(),
        };
        kept.allocate_for(&control, kept.saved.iter().map(Saved::len).sum());
        (control, Some(kept))
    }

    /// Copies the connections of the switch that is taken over while it forwards.
    pub(crate) fn copy_running(&mut self, control: &ControlPlane) {
        let reporter = &self.reporter;
        let open = |memory| Running::open(memory).inspect_err(|e| reporter.failure(not_kept(e)));
        let read = self.files.read_earlier().into_iter().filter_map(|memory| open(memory).ok());
        self.running = read.collect();
        self.allocate_for(control, self.running.iter().map(Running::most).sum());
        for _ in 0..PASSES {
            let changed = self.running.iter_mut().map(|each| control.copy_running(each));
            if changed.sum::<usize>() < FEW {
                break;
            }
        }
    }

    /// Another process is about to go on with the connections.
    pub(crate) fn prepare_to_retire(&mut self) {
        if let Err(error) = self.files.prepare_to_retire() {
            self.reporter.failure(not_kept(&error));
        }
    }

    /// It does.
    pub(crate) fn retire(&mut self) {
        self.files.retire();
    }

    /// The end, after that.
    pub(crate) fn remove_retired(self) {
        self.files.remove_retired();
    }

    /// That process has ended: goes on with its connections, and with what it has learnt. `totals`: what all runs up to
    /// this one have counted. Returns what it has counted since.
    pub(crate) fn take_back(
        &mut self,
        control: &ControlPlane,
        now: Instant,
        totals: Totals,
    ) -> Totals {
        let reporter = &self.reporter;
        let read = self.files.take_back().and_then(|memory| {
            Saved::read(memory).inspect_err(|error| reporter.failure(not_kept(error))).ok()
        });
        if let Some(mut saved) = read {
            self.allocate_for(control, saved.len());
            self.restored = control.take_connections_back(&mut saved);
            self.saved = vec![saved];
            self.report();
        }
        self.until = Some(now + RESTORE_TIMEOUT);
        if let Ok(Some(learnt)) = envelope::read::<Learnt>(&self.learnt) {
            learnt.restore(control, monotonic());
        }
        match envelope::read::<Counted>(&self.counts) {
            Ok(Some(counted)) => {
                let more = counted.since(&Counted::read(control, totals));
                more.restore(control);
                more.totals
            }
            _ => Totals::default(),
        }
    }

    /// A running switch goes on: removes this run's file of connections, and leaves everything else.
    pub(crate) fn abandon(self) {
        self.files.abandon();
    }

    /// A switch that was to take over does not: removes its file of connections.
    pub(crate) fn forget_successor(&mut self) {
        self.files.keep();
        self.files.remove_later();
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

    /// The first state is in force: opens all connections that can be opened, and says so; takes up what earlier runs have
    /// learnt. Returns what they have counted. `is_known`: false if the earlier run was of another version, so that only
    /// connections are read.
    pub(crate) fn start(&mut self, control: &ControlPlane, now: Instant, is_known: bool) -> Totals {
        // The latest run first, as in `restore`.
        for running in self.running.drain(..) {
            if let Some((saved, Restored { restored, lost, .. })) =
                control.complete_running(running)
            {
                self.restored.restored += restored;
                self.restored.lost += lost;
                self.saved.push(saved);
            }
        }
        self.start_connections(control, now);
        self.save_at = Some(now + SAVE_INTERVAL);
        self.pods_until = Some(now + RESTORE_TIMEOUT);
        if !is_known {
            return Totals::default();
        }
        let refused = |what: &str, error: envelope::Unusable| {
            self.reporter.failure(Failure::NotRestored(format!("{what}: {error}")));
        };
        match envelope::read::<Learnt>(&self.learnt) {
            Ok(Some(learnt)) => learnt.restore(control, monotonic()),
            Ok(None) => {}
            Err(error) => refused("what was learnt", error),
        }
        match envelope::read::<Counted>(&self.counts) {
            Ok(Some(counted)) => {
                counted.restore(control);
                counted.totals
            }
            Ok(None) => Totals::default(),
            Err(error) => {
                refused("what was counted", error);
                Totals::default()
            }
        }
    }

    fn start_connections(&mut self, control: &ControlPlane, now: Instant) {
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

    /// Whether pods that are not attached yet lose the counters of earlier runs now: they were removed meanwhile, and a
    /// later pod of the same name is another one. True once.
    pub(crate) fn gives_up_pods(&mut self, now: Instant) -> bool {
        self.pods_until.take_if(|until| now >= *until).is_some()
    }

    /// Whether what was learnt and counted is to be written now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.save_at.is_some_and(|at| now >= at)
    }

    /// Writes both; `totals` reads those of all runs. `clock` says when it is done, so that it takes a small share of the
    /// time.
    pub(crate) fn save(
        &mut self,
        control: &ControlPlane,
        clock: Clock,
        totals: impl FnOnce() -> Totals,
    ) {
        let began = clock.now();
        self.save_learnt(control);
        self.save_counts(control, clock, totals);
        let done = clock.now();
        self.save_at = Some(done + SAVE_INTERVAL.max(done.since(began) * SAVE_SHARE));
    }

    fn save_learnt(&self, control: &ControlPlane) {
        if self.save_at.is_some() {
            let learnt = Learnt::read(control, monotonic());
            self.saved(&self.learnt_unsaved, envelope::write(&self.learnt, &learnt));
        }
    }

    /// Writes counters before a caller gets them, so that they do not fall after a kill. Omitted while the last write took
    /// so long that another one would take more than a small share of the time: after a kill, counters may then be behind
    /// by that time.
    pub(crate) fn save_read(
        &self,
        control: &ControlPlane,
        clock: Clock,
        totals: impl FnOnce() -> Totals,
    ) {
        if clock.now() >= self.counts_at.get() {
            self.save_counts(control, clock, totals);
        }
    }

    fn save_counts(&self, control: &ControlPlane, clock: Clock, totals: impl FnOnce() -> Totals) {
        if self.save_at.is_none() {
            return;
        }
        let began = clock.now();
        let counted = Counted::read(control, totals());
        self.saved(&self.counts_unsaved, envelope::write(&self.counts, &counted));
        let (done, took) = (clock.now(), clock.now().since(began));
        self.counts_at.set(if took < CHEAP { done } else { done + took * SAVE_SHARE });
    }

    /// Reports that a file could not be written, once.
    fn saved(&self, is_unsaved: &Cell<bool>, result: Result<(), envelope::Unusable>) {
        match result {
            Ok(()) => is_unsaved.set(false),
            Err(error) => {
                if !is_unsaved.replace(true) {
                    self.reporter.failure(Failure::NotKept(error.to_string()));
                }
            }
        }
    }

    /// Removes what is kept: no next run needs it.
    pub(crate) fn remove(self) {
        envelope::remove(&self.learnt);
        envelope::remove(&self.counts);
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
        self.allocate_for(control, 0);
    }

    /// Allocates memory for these connections, and ahead of use.
    fn allocate_for(&mut self, control: &ControlPlane, connections: usize) {
        let Some((bytes, chunks)) = control.wanted_memory(connections) else { return };
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

fn not_kept(error: &impl std::fmt::Display) -> Failure {
    Failure::ConnectionsNotKept(error.to_string())
}
