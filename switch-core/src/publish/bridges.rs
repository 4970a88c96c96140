//! Bridge domains: one broadcast domain for each VLAN of each configured domain.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashMap;

use super::diff::Desired;
use crate::config::{PortConfig, PortRole};
use crate::id::PortId;
use crate::route::fdb::{self, Bounds};
use crate::snapshot::{BridgePort, Domain, Member, Tagging};

/// What the FDB knows each VLAN of each bridge domain by, kept from publish to publish so that what
/// was learnt stays. Only added to.
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

/// The domains in use, and the ports in them.
pub(super) struct Bridged {
    pub(super) domains: Arc<[Domain]>,
    pub(super) ports: HashMap<PortId, Arc<BridgePort>>,
}

/// All domains that a port in force is a member of.
pub(super) fn compile(desired: &Desired, fdb_ids: &FdbIds) -> Bridged {
    let mut members: Vec<&PortConfig> =
        desired.ports.iter().filter(|port| matches!(port.role, PortRole::Bridge { .. })).collect();
    members.sort_unstable_by_key(|port| port.port);
    let mut index: HashMap<(Arc<str>, u16), u16> = HashMap::new();
    let mut domains: Vec<Domain> = Vec::new();
    let mut ports = HashMap::new();
    for port in members {
        let PortRole::Bridge { domain, vlans } = &port.role else { continue };
        let Some(bridge) = desired.bridges.get(domain) else { continue };
        let bounds = Bounds { ageing_secs: bridge.ageing_secs, limit: bridge.learn_limit };
        let mut enter = |vid: u16, tagging: Tagging| {
            let id = fdb::Domain(fdb_ids.of(domain, vid)?);
            let at = *index.entry((domain.clone(), vid)).or_insert_with(|| {
                domains.push(Domain { id, members: Vec::new(), bounds });
                (domains.len() - 1) as u16
            });
            domains[usize::from(at)].members.push(Member { port: port.port, tagging });
            Some(at)
        };
        let untagged = vlans.untagged.and_then(|vid| enter(vid, Tagging::Untagged));
        let mut vids = vlans.tagged.clone();
        vids.sort_unstable();
        vids.dedup();
        let tagged =
            vids.into_iter().filter_map(|vid| Some((vid, enter(vid, Tagging::Tagged(vid))?)));
        let tagged = tagged.collect();
        ports.insert(port.port, Arc::new(BridgePort { untagged, tagged }));
    }
    Bridged { domains: domains.into(), ports }
}
