//! Numbers of broadcast domains in the FDB.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashMap;

/// The number of each VLAN of each bridge domain, kept from publish to publish so that learned
/// addresses stay. Never reused.
#[derive(Debug, Default)]
pub(crate) struct FdbIds(RefCell<HashMap<(Arc<str>, u16), u16>>);

impl FdbIds {
    /// The number of a VLAN of a domain, a new one if it has none. `None`: all are in use.
    pub(crate) fn of(&self, domain: &Arc<str>, vid: u16) -> Option<u16> {
        let mut ids = self.0.borrow_mut();
        if let Some(id) = ids.get(&(domain.clone(), vid)) {
            return Some(*id);
        }
        let next = u16::try_from(ids.len()).ok()?;
        ids.insert((domain.clone(), vid), next);
        Some(next)
    }
}
