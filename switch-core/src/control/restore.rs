//! Connections that survive a restart of the process.

use hashbrown::HashMap;
use podswitch_vxlan::vtep::VtepIndex;

use super::{ControlPlane, Options};
use crate::engine::Shared;
use crate::flow::connection::{Kept, Places};
use crate::id::PortId;
use crate::snapshot::Reach;
use crate::worker::Command;

pub use crate::flow::connection::{
    MemoryError, Restored, Running, Saved, SavedMemory, SlotMemory, memory_size,
};

/// Chunks of connections whose memory is allocated ahead of use: 32,768 connections, 8 MiB.
const SPARE_CHUNKS: u32 = 128;

/// The state that is kept for the next process.
#[derive(Debug)]
pub(super) struct Memory {
    kept: Kept,
    /// Start of this process's clock, in nanoseconds of the system's monotonic clock.
    clock: u64,
    /// Ports by the name given with [`name_port`](ControlPlane::name_port).
    ports: HashMap<String, PortId>,
}

impl ControlPlane {
    /// As [`new`](Self::new), with memory for connections that survives a restart: the next process
    /// [restores](Self::restore_connections) them from it. [`memory_size`] returns the required size. No connection is
    /// kept before [`allow_memory`](Self::allow_memory) is called.
    ///
    /// # Errors
    /// The memory cannot be used.
    pub fn with_memory(options: Options, memory: SlotMemory) -> Result<Self, MemoryError> {
        let mut control = Self::new(options);
        let clock = u64::try_from(memory.monotonic.as_nanos()).unwrap_or(u64::MAX);
        // This process's clock has run for a moment already.
        let clock = clock.saturating_sub(control.clock.now().as_nanos());
        let hash_key = control.shared.hash_key;
        let (shared, kept) = Shared::in_memory(&control.options.limits, hash_key, memory)?;
        control.shared = shared.into();
        control.memory = Some(Memory { kept, clock, ports: HashMap::new() });
        Ok(control)
    }

    /// The number of bytes at the beginning of the memory that must be allocated now, and the argument for
    /// [`allow_memory`](Self::allow_memory) after that. If shared memory is used before it is allocated and the system
    /// has no memory left, the process is killed. Call it a few times a second, and before so many `connections` are
    /// opened at once.
    pub fn wanted_memory(&self, connections: usize) -> Option<(usize, u32)> {
        self.memory.as_ref().map(|memory| memory.kept.wanted(connections, SPARE_CHUNKS))
    }

    /// Allows the use of memory that was allocated according to [`wanted_memory`](Self::wanted_memory). Connections
    /// that are opened while it is full are not kept.
    pub fn allow_memory(&self, chunks: u32) {
        self.shared.tracker.allow(chunks);
    }

    /// Names a port, so that the next process finds its connections. The name must identify what the port leads to, and
    /// be the same in each process.
    pub fn name_port(&mut self, port: PortId, name: &str) {
        if let Some(memory) = &mut self.memory {
            memory.kept.set_name(port, name);
            memory.ports.retain(|_, named| *named != port);
            memory.ports.insert(name.to_owned(), port);
        }
    }

    /// Restores connections of an earlier process with their state, if their clients' ports are attached and
    /// [named](Self::name_port). `tunnel`: also the connections of clients behind the tunnel; the state in force must
    /// contain their nodes. Policy is evaluated again at the next packet of each connection. Connections that have
    /// ended or timed out are left out.
    pub fn restore_connections(&self, saved: &mut Saved, tunnel: bool) -> Restored {
        let Some(memory) = &self.memory else {
            return Restored { waiting: saved.len(), ..Restored::default() };
        };
        self.with_places(memory, |places| {
            let clock = (places.clock, places.now_secs);
            let reach = tunnel.then_some(places.reach);
            saved.restore(&self.shared.tracker, places.ports, reach, clock)
        })
    }

    /// Copies the connections of a switch that forwards, whose place this one takes: those that are new since the last
    /// call, and ends those that have ended there. The workers must be [held](Self::hold_workers), and the state in force
    /// must name the ports and nodes. Returns how many had changed; call it until there are few.
    pub fn copy_running(&self, running: &mut Running) -> usize {
        let Some(memory) = &self.memory else { return 0 };
        self.with_places(memory, |places| running.copy(&self.shared.tracker, places))
    }

    /// Copies the rest, and the state of all. The other switch does not forward any more. The result holds the connections
    /// of clients whose ports are not attached here yet.
    pub fn complete_running(&self, running: Running) -> Option<(Saved, Restored)> {
        let memory = self.memory.as_ref()?;
        Some(self.with_places(memory, |places| running.complete(&self.shared.tracker, places)))
    }

    /// Goes on with the connections of a switch that had taken this one's place and has ended, instead of those that this
    /// one had. The workers must be held.
    pub fn take_connections_back(&self, saved: &mut Saved) -> Restored {
        self.shared.tracker.end_all();
        self.restore_connections(saved, true)
    }

    fn with_places<T>(&self, memory: &Memory, f: impl FnOnce(Places<'_>) -> T) -> T {
        let snapshot = self.snapshots.load();
        let reach = |client| -> Option<VtepIndex> {
            match snapshot.reach(client)? {
                Reach::Tunnel(end) => Some(end),
                _ => None,
            }
        };
        let now_secs = self.clock.now().as_secs() as u32;
        f(Places { ports: &memory.ports, reach: &reach, clock: memory.clock, now_secs })
    }

    /// Makes the workers stop or resume receiving from their ports. Applies to workers that already run or are polled.
    /// [`are_workers_held`](Self::are_workers_held) says when no frame is in process any more.
    pub fn hold_workers(&self, hold: bool) {
        for worker in &self.workers {
            worker.handle.send(Command::Hold(hold));
        }
    }

    /// Whether all workers leave frames in their ports, have none of them, and have handed over all counts.
    pub fn are_workers_held(&self) -> bool {
        self.workers.iter().all(|worker| worker.handle.is_held())
    }
}
