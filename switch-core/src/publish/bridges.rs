//! Bridge domains: one broadcast domain for each VLAN of each configured domain.

use std::sync::Arc;

use hashbrown::HashMap;

use super::diff::Desired;
use super::fdb_ids::FdbIds;
use crate::config::{PortConfig, PortRole};
use crate::id::PortId;
use crate::route::fdb::{self, Bounds};
use crate::snapshot::{BridgePort, Domain, Member, Tagging};

/// The domains in use, and the ports in them.
pub(super) struct Bridged {
    pub(super) domains: Arc<[Domain]>,
    pub(super) ports: HashMap<PortId, Arc<BridgePort>>,
}

/// All domains with a member port in force.
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
