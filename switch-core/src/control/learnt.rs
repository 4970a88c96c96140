//! Learned state that the next process can use, with names that stay valid after a restart.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::entry::ServicePortId;
use podswitch_vxlan::pmtu::{FLOOR_IPV4, FLOOR_IPV6};

use super::ControlPlane;

/// A client of a Service port with affinity, and its backend (S9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffinityPin {
    /// The Service's cookie.
    pub service: Arc<str>,
    /// Name of the port; empty where a Service has only one.
    pub port_name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: IpAddr,
    /// Its backend.
    pub backend: SocketAddr,
    /// Seconds until the affinity expires, if the client opens no other connection.
    pub left: u32,
}

/// The path MTU to another node's VTEP, learned from ICMP errors (T-O7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearntMtu {
    /// Address of the VTEP.
    pub vtep: IpAddr,
    /// The path's MTU, in bytes.
    pub mtu: u16,
    /// Seconds until the path MTU expires and a larger one can be found.
    pub left: u64,
}

impl ControlPlane {
    /// Up to `most` clients that have affinity to a backend now.
    pub fn affinity(&self, most: usize) -> Vec<AffinityPin> {
        let snapshot = self.snapshots.load();
        let mut names: HashMap<ServicePortId, (&Arc<str>, &Arc<str>, Protocol)> = HashMap::new();
        for (_, entry) in snapshot.services.iter() {
            names.insert(entry.id, (&entry.cookie, &entry.port_name, entry.protocol));
        }
        let mut pins = Vec::new();
        self.shared.affinity.for_each(self.now(), |service, client, backend, left| {
            if let Some((service, port_name, protocol)) = names.get(&service)
                && pins.len() < most
            {
                let (service, port_name) = (Arc::clone(service), Arc::clone(port_name));
                let protocol = *protocol;
                pins.push(AffinityPin { service, port_name, protocol, client, backend, left });
            }
        });
        pins
    }

    /// Restores the affinity of clients from an earlier process, unless they have a newer one. Service ports that do
    /// not exist in the state in force are left out. If the backend no longer exists, this is noticed when the client
    /// opens a connection.
    pub fn restore_affinity(&self, pins: &[AffinityPin]) {
        let snapshot = self.snapshots.load();
        let mut ids: HashMap<(&str, &str, Protocol), (ServicePortId, u32)> = HashMap::new();
        for (_, entry) in snapshot.services.iter() {
            if let Some(timeout) = entry.affinity {
                let name = (&*entry.cookie, &*entry.port_name, entry.protocol);
                ids.insert(name, (entry.id, timeout));
            }
        }
        for AffinityPin { service, port_name, protocol, client, backend, left } in pins {
            if let Some((id, timeout)) = ids.get(&(&**service, &**port_name, *protocol)) {
                let left = (*left).min(*timeout);
                self.shared.affinity.restore(*id, *client, *backend, self.now(), left);
            }
        }
    }

    /// The learned path MTUs to other nodes that have not expired.
    pub fn path_mtus(&self) -> Vec<LearntMtu> {
        let (snapshot, now) = (self.snapshots.load(), self.clock.now());
        let tunnels = &snapshot.tunnels;
        let learnt = tunnels.ends.iter().filter_map(|(end, remote)| {
            let (mtu, left) = tunnels.to(end)?.path.left(now)?;
            Some(LearntMtu { vtep: remote.outer().destination, mtu, left })
        });
        learnt.collect()
    }

    /// Uses path MTUs that an earlier process learned, unless a newer one is known. VTEPs that do not exist in the
    /// state in force are left out. Values below the minimum are raised to it, as for ICMP errors.
    pub fn restore_path_mtus(&self, learnt: &[LearntMtu]) {
        let (snapshot, now) = (self.snapshots.load(), self.clock.now());
        let by_vtep: HashMap<IpAddr, &LearntMtu> = learnt.iter().map(|l| (l.vtep, l)).collect();
        let tunnels = &snapshot.tunnels;
        for (end, remote) in tunnels.ends.iter() {
            if let Some(LearntMtu { vtep, mtu, left }) = by_vtep.get(&remote.outer().destination)
                && let Some(tunnel) = tunnels.to(end)
                && tunnel.path.get(now).is_none()
            {
                let least = if vtep.is_ipv6() { FLOOR_IPV6 } else { FLOOR_IPV4 };
                tunnel.path.learn_for((*mtu).max(least), now, *left);
            }
        }
    }

    /// The current second of the switch's clock.
    fn now(&self) -> u32 {
        self.clock.now().as_secs() as u32
    }
}
