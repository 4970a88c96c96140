//! Neighbours on the uplink: the kernel resolves other nodes and next hops, and answers for this
//! node itself.

use std::net::IpAddr;

use hashbrown::HashMap;
use podswitch_linux::netlink::{Changes, Neighbour};
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::addr::Mac;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Neighbours {
    netlink: Netlink,
    changes: Changes,
    /// MAC addresses, sorted by IP address.
    known: Vec<(IpAddr, Mac)>,
    /// Incremented whenever they change.
    version: u64,
}

impl Neighbours {
    pub(super) fn open(namespace: &NetNs) -> Result<Self, HostError> {
        let netlink = Netlink::open(namespace)?;
        Ok(Self { netlink, changes: Changes::listen(namespace)?, known: Vec::new(), version: 0 })
    }

    /// Whether the kernel's interfaces, routes or neighbours changed since the last call.
    pub(super) fn has_changed(&mut self) -> bool {
        self.changes.happened()
    }

    /// The MAC address of each wanted address: its own or its router's.
    pub(super) fn known(&self) -> impl Iterator<Item = (IpAddr, Mac)> {
        self.known.iter().copied()
    }

    /// A number that differs after each change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether the MAC address of `address` is known.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.known.binary_search_by_key(&address, |(known, _)| *known).is_ok()
    }

    /// Clears the list. Returns whether that changed it.
    pub(super) fn forget(&mut self) -> bool {
        let changed = !std::mem::take(&mut self.known).is_empty();
        self.version += u64::from(changed);
        changed
    }

    /// Looks up these addresses on the interface, and starts resolution of unknown and stale ones.
    /// Returns whether anything changed.
    pub(super) fn follow(&mut self, link: u32, wanted: impl Iterator<Item = IpAddr>) -> bool {
        let Ok(there) = self.netlink.neighbours() else { return false };
        let there: HashMap<IpAddr, Neighbour> =
            there.into_iter().filter(|n| n.link == link).map(|n| (n.address, n)).collect();
        let mut known = Vec::new();
        for address in wanted {
            // Without a route there is no neighbour to resolve.
            let Ok(Some(way)) = self.netlink.route_to(address) else { continue };
            if way.link != Some(link) {
                continue;
            }
            let hop = way.gateway.unwrap_or(address);
            let neighbour = there.get(&hop);
            if !neighbour.is_some_and(|n| n.is_confirmed) {
                // The next call tries again.
                let _ = self.netlink.resolve_neighbour(link, hop);
            }
            known.extend(neighbour.and_then(|n| n.mac).map(|mac| (address, mac)));
        }
        known.sort_unstable();
        known.dedup();
        let changed = known != self.known;
        self.known = known;
        self.version += u64::from(changed);
        changed
    }
}
