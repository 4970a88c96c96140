//! Allocates addresses and knows their holders. Pure: no files, no clock.
//!
//! An address has one holder, the [`Key`] of an attachment, from [`Pool::allocate`] or
//! [`Pool::hold`] until [`Pool::release`]. Addresses that were never allocated go first, then those
//! released longest ago. An address is not allocated before its cool-down is over, because
//! connections and caches elsewhere may still refer to the former holder.

mod range;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

pub use range::AddressRange;

use super::key::Key;

/// Ranges of one family, from which one address is allocated.
pub type RangeSet = Vec<AddressRange>;

/// Maximum number of released addresses that are remembered. The oldest is forgotten once its
/// cool-down is over.
const MAX_RELEASED: usize = 1 << 16;
/// Addresses of a range that are tried before it counts as exhausted.
const MAX_TRIES: u128 = 1 << 17;

/// Why no address was allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpamError {
    /// All addresses of the ranges are held, in use or cooling down.
    Exhausted {
        /// The ranges.
        ranges: String,
        /// How many of their addresses are held.
        held: usize,
        /// How many were released a short time ago.
        cooling: usize,
    },
    /// A requested address is held by another attachment.
    Held {
        /// The address.
        address: IpAddr,
        /// The holder.
        holder: Key,
    },
    /// A requested address belongs to something else: a pod of the state, or the node itself.
    Taken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        by: String,
    },
}

impl fmt::Display for IpamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted { ranges, held, cooling } => write!(
                f,
                "no address is free in {ranges}: {held} are held, {cooling} were released a short time ago"
            ),
            Self::Held { address, holder } => write!(f, "{address} is held by {holder}"),
            Self::Taken { address, by } => write!(f, "{address} belongs to {by}"),
        }
    }
}

impl std::error::Error for IpamError {}

/// See the module's description.
#[derive(Debug)]
pub struct Pool {
    cool_down: Duration,
    held: HashMap<IpAddr, Key>,
    /// Addresses of each holder.
    holders: HashMap<Key, Vec<IpAddr>>,
    /// When each unheld address was released.
    released: HashMap<IpAddr, Duration>,
    /// Released addresses, in order. An entry is valid if `released` has its time.
    order: VecDeque<(Duration, IpAddr)>,
    /// Offset of the first address of each range that was never allocated.
    next: HashMap<AddressRange, u128>,
}

impl Pool {
    /// An empty pool. `cool_down`: how long a released address is not allocated again.
    pub fn new(cool_down: Duration) -> Self {
        Self {
            cool_down,
            held: HashMap::new(),
            holders: HashMap::new(),
            released: HashMap::new(),
            order: VecDeque::new(),
            next: HashMap::new(),
        }
    }

    /// Allocates an address of `ranges` for `key`. `now`: time since a fixed point. `taken_by`
    /// returns who else uses an address.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`].
    pub fn allocate(
        &mut self,
        key: &Key,
        ranges: &[AddressRange],
        now: Duration,
        mut taken_by: impl FnMut(IpAddr) -> Option<String>,
    ) -> Result<IpAddr, IpamError> {
        let found = self
            .never_used(ranges, &mut taken_by)
            .or_else(|| self.longest_released(ranges, now, &mut taken_by))
            .or_else(|| {
                // Some addresses were skipped because something else used them then.
                self.next.retain(|range, _| !ranges.contains(range));
                self.never_used(ranges, &mut taken_by)
            });
        let Some(address) = found else { return Err(self.exhausted(ranges, now)) };
        self.enter(key, address);
        Ok(address)
    }

    /// Assigns this address to `key`: it was requested, or was assigned before. Ignores the
    /// cool-down.
    ///
    /// # Errors
    /// Another attachment holds it.
    pub fn hold(&mut self, key: &Key, address: IpAddr) -> Result<(), IpamError> {
        match self.held.get(&address) {
            Some(holder) if holder == key => Ok(()),
            Some(holder) => Err(IpamError::Held { address, holder: holder.clone() }),
            None => {
                self.enter(key, address);
                Ok(())
            }
        }
    }

    /// Releases all addresses of `key`. Returns them.
    pub fn release(&mut self, key: &Key, now: Duration) -> Vec<IpAddr> {
        let addresses = self.holders.remove(key).unwrap_or_default();
        for address in &addresses {
            self.held.remove(address);
            self.note_released(*address, now);
        }
        addresses
    }

    /// Records an address that an earlier run released at `at`.
    pub fn note_released(&mut self, address: IpAddr, at: Duration) {
        if self.held.contains_key(&address) {
            return;
        }
        self.released.insert(address, at);
        self.order.push_back((at, address));
        let is_over = |at: Duration, now: Duration| now.saturating_sub(at) >= self.cool_down;
        while self.order.len() > MAX_RELEASED
            && let Some((old, address)) = self.order.front().copied()
            && (is_over(old, at) || self.released.get(&address) != Some(&old))
        {
            self.order.pop_front();
            if self.released.get(&address) == Some(&old) {
                self.released.remove(&address);
            }
        }
    }

    /// The holder of an address.
    pub fn holder(&self, address: IpAddr) -> Option<&Key> {
        self.held.get(&address)
    }

    /// The addresses that `key` holds.
    pub fn of(&self, key: &Key) -> &[IpAddr] {
        self.holders.get(key).map_or(&[], Vec::as_slice)
    }

    /// Number of held addresses.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether no address is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether an address of `ranges` could be allocated now.
    pub fn has_free(
        &self,
        ranges: &[AddressRange],
        now: Duration,
        mut taken_by: impl FnMut(IpAddr) -> Option<String>,
    ) -> bool {
        let is_cool = |address: &IpAddr| {
            self.released.get(address).is_none_or(|at| now.saturating_sub(*at) >= self.cool_down)
        };
        ranges.iter().any(|range| {
            range.from(0).take(MAX_TRIES as usize).any(|(_, address)| {
                !self.held.contains_key(&address)
                    && is_cool(&address)
                    && taken_by(address).is_none()
            })
        })
    }

    /// Number of addresses of `ranges`, which must not overlap, that are neither held nor cooling
    /// down. Addresses that something else uses count as free.
    pub fn free(&self, ranges: &[AddressRange], now: Duration) -> u128 {
        let is_inside = |address: &&IpAddr| ranges.iter().any(|range| range.contains(**address));
        let is_cooling = |at: &Duration| now.saturating_sub(*at) < self.cool_down;
        let cooling = self.released.iter().filter(|(_, at)| is_cooling(at)).map(|(a, _)| a);
        let used = self.held.keys().chain(cooling).filter(is_inside).count();
        let size = ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(range.size()));
        size.saturating_sub(used as u128)
    }

    fn enter(&mut self, key: &Key, address: IpAddr) {
        self.released.remove(&address);
        self.held.insert(address, key.clone());
        self.holders.entry(key.clone()).or_default().push(address);
    }

    fn never_used(
        &mut self,
        ranges: &[AddressRange],
        taken_by: &mut impl FnMut(IpAddr) -> Option<String>,
    ) -> Option<IpAddr> {
        for range in ranges {
            let next = self.next.get(range).copied().unwrap_or(0);
            for (offset, address) in range.from(next).take(MAX_TRIES as usize) {
                self.next.insert(*range, offset + 1);
                let is_free =
                    !self.held.contains_key(&address) && !self.released.contains_key(&address);
                if is_free && taken_by(address).is_none() {
                    return Some(address);
                }
            }
        }
        None
    }

    fn longest_released(
        &mut self,
        ranges: &[AddressRange],
        now: Duration,
        taken_by: &mut impl FnMut(IpAddr) -> Option<String>,
    ) -> Option<IpAddr> {
        let released = &self.released;
        self.order.retain(|(at, address)| released.get(address) == Some(at));
        let is_over = |at: Duration| now.saturating_sub(at) >= self.cool_down;
        let mut over = self.order.iter().take_while(|(at, _)| is_over(*at));
        let found = over.find(|(_, address)| {
            ranges.iter().any(|range| range.contains(*address)) && taken_by(*address).is_none()
        });
        found.map(|(_, address)| *address)
    }

    fn exhausted(&self, ranges: &[AddressRange], now: Duration) -> IpamError {
        let inside = |address: &&IpAddr| ranges.iter().any(|range| range.contains(**address));
        let is_cooling = |at: &Duration| now.saturating_sub(*at) < self.cool_down;
        let cooling: HashSet<&IpAddr> =
            self.released.iter().filter(|(_, at)| is_cooling(at)).map(|(a, _)| a).collect();
        IpamError::Exhausted {
            ranges: ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            held: self.held.keys().filter(inside).count(),
            cooling: cooling.into_iter().filter(inside).count(),
        }
    }
}
