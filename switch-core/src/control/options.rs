//! Options of a switch, set before it has any state.

use core_affinity::CoreId;
use podswitch_wire::flow_key::HashKey;

use crate::engine::Limits;
use crate::packet::PoolConfig;

/// Limits and placement.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Limits of the tables.
    pub limits: Limits,
    /// Buffers of each worker.
    pub pool: PoolConfig,
    /// Where workers run.
    pub pinning: Pinning,
    /// The secret hash key of the tables; random if `None`. Fixed in `replay`, whose output must be
    /// reproducible.
    pub hash_key: Option<HashKey>,
    /// Called by each worker's thread before it forwards, for example to drop privileges. For
    /// threads that [`set_workers`](super::ControlPlane::set_workers) starts.
    pub on_worker_start: Option<fn()>,
}

/// Which processor cores workers are pinned to.
#[derive(Clone, Debug, Default)]
pub enum Pinning {
    /// Not pinned. Use this if pods share the cores with the switch.
    #[default]
    None,
    /// Worker `i` on the `i`-th of these cores, by number; later workers are not pinned.
    Cores(Vec<usize>),
}

impl Pinning {
    pub(super) fn core(&self, worker: usize) -> Option<CoreId> {
        match self {
            Self::None => None,
            Self::Cores(cores) => cores.get(worker).map(|&id| CoreId { id }),
        }
    }
}

/// A secret from the operating system, through the standard library's randomly keyed hasher.
pub(super) fn random_hash_key() -> HashKey {
    use std::hash::{BuildHasher, RandomState};
    let half = |n: u8| u128::from(RandomState::new().hash_one(n));
    HashKey::new(half(0) << 64 | half(1))
}
