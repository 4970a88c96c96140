//! How often each Service port's connections were opened or refused, by name.

use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::entry::{ServiceEntry, ServicePortId};
use podswitch_policy::service::table::ServiceTable;

/// Connections to one port of a Service (or host port of a pod), by any address, in both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCount {
    /// The Service's cookie, or the pod's.
    pub service: Arc<str>,
    /// Name of the port; empty where a Service has only one.
    pub port_name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number of the port.
    pub port: u16,
    /// Opened to each current backend, without zeros, in the order of addresses.
    pub opened: Vec<(SocketAddr, u64)>,
    /// Opened to former backends.
    pub departed: u64,
    /// Rejected with an answer to the client: there was no endpoint (S5).
    pub rejected: u64,
    /// Dropped: source range, no local endpoint (S3, S4, S7).
    pub dropped: u64,
}

impl ServiceCount {
    /// Whether any connection to it was counted.
    fn is_any(&self) -> bool {
        !self.opened.is_empty() || self.departed + self.rejected + self.dropped > 0
    }

    fn add(&mut self, entry: &ServiceEntry) {
        let backends = entry.backends().iter().enumerate();
        let counts = backends.map(|(index, b)| (b.socket(), entry.opened(index)));
        self.opened.extend(counts.filter(|(_, count)| *count > 0));
        self.departed += entry.departed();
        self.rejected += entry.rejected();
        self.dropped += entry.dropped();
    }
}

/// The counts of a [`ServiceCount`], summed over all backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTotal {
    /// The Service's cookie, or the pod's.
    pub service: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number of the port.
    pub port: u16,
    /// Opened, to current and former backends.
    pub opened: u64,
    /// Rejected with an answer to the client: there was no endpoint (S5).
    pub rejected: u64,
    /// Dropped: source range, no local endpoint (S3, S4, S7).
    pub dropped: u64,
}

/// Adds the counts of an earlier process to those of the existing ports. Connections opened to
/// backends that no longer exist are counted as opened to former backends.
pub(super) fn restore(table: &ServiceTable, counts: &[ServiceCount]) {
    let mut entries: HashMap<Name<'_>, Vec<&Arc<ServiceEntry>>> = HashMap::new();
    for (_, entry) in table.iter() {
        let known = entries.entry(name(entry)).or_default();
        // One entry for each family.
        if !known.iter().any(|other| other.family == entry.family) {
            known.push(entry);
        }
    }
    for count in counts {
        let key = (&*count.service, &*count.port_name, count.protocol, count.port);
        let Some(known) = entries.get(&key) else { continue };
        let Some(first) = known.first() else { continue };
        for (backend, opened) in &count.opened {
            let owner = known.iter().find(|entry| entry.find(*backend).is_some());
            owner.unwrap_or(first).restore_opened(Some(*backend), *opened);
        }
        first.restore_opened(None, count.departed);
        first.restore_refused(count.rejected, count.dropped);
    }
}

/// Identifies a port in every process.
type Name<'a> = (&'a str, &'a str, Protocol, u16);

fn name(entry: &ServiceEntry) -> Name<'_> {
    (&entry.cookie, &entry.port_name, entry.protocol, entry.port)
}

/// The entries of all ports, by port.
fn entries(table: &ServiceTable) -> Vec<((ServicePortId, bool), &Arc<ServiceEntry>)> {
    // One entry in each family, although several addresses lead to it.
    let mut entries: HashMap<(ServicePortId, bool), &Arc<ServiceEntry>> = HashMap::new();
    for (_, entry) in table.iter() {
        let is_v6 = entry.family == podswitch_wire::flow_key::Family::V6;
        entries.insert((entry.id, is_v6), entry);
    }
    let mut sorted: Vec<_> = entries.into_iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    sorted
}

/// The total of every port that has one, by name. Two host ports of a pod with the same number are
/// counted as one.
pub(super) fn totals(table: &ServiceTable) -> Vec<ServiceTotal> {
    let mut list: Vec<ServiceTotal> = Vec::new();
    for (_, entry) in entries(table) {
        let current: u64 = (0..entry.backends().len()).map(|index| entry.opened(index)).sum();
        let total = ServiceTotal {
            service: entry.cookie.clone(),
            protocol: entry.protocol,
            port: entry.port,
            opened: current + entry.departed(),
            rejected: entry.rejected(),
            dropped: entry.dropped(),
        };
        if total.opened + total.rejected + total.dropped > 0 {
            list.push(total);
        }
    }
    list.sort_by(|a, b| {
        (&a.service, a.port, a.protocol.number()).cmp(&(&b.service, b.port, b.protocol.number()))
    });
    list.dedup_by(|next, total| {
        let is_same = (&next.service, next.port, next.protocol)
            == (&total.service, total.port, total.protocol);
        if is_same {
            total.opened += next.opened;
            total.rejected += next.rejected;
            total.dropped += next.dropped;
        }
        is_same
    });
    list
}

/// Every port with a count that is not zero, by name.
pub(super) fn read(table: &ServiceTable) -> Vec<ServiceCount> {
    let sorted = entries(table);
    let mut list: Vec<(ServicePortId, ServiceCount)> = Vec::new();
    for ((id, _), entry) in sorted {
        match list.last_mut().filter(|(last, _)| *last == id) {
            Some((_, count)) => count.add(entry),
            None => {
                let mut count = ServiceCount {
                    service: entry.cookie.clone(),
                    port_name: entry.port_name.clone(),
                    protocol: entry.protocol,
                    port: entry.port,
                    opened: Vec::new(),
                    departed: 0,
                    rejected: 0,
                    dropped: 0,
                };
                count.add(entry);
                list.push((id, count));
            }
        }
    }
    let mut list: Vec<ServiceCount> =
        list.into_iter().map(|(_, count)| count).filter(ServiceCount::is_any).collect();
    list.sort_by(|a, b| (&a.service, a.port).cmp(&(&b.service, b.port)));
    list
}
