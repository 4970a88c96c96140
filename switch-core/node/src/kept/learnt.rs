//! What the switch has learnt, as a file for the next run: affinity of clients, path MTUs.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::control::{AffinityPin, ControlPlane, LearntMtu};
use podswitch_policy::rule::Protocol;
use serde::{Deserialize, Serialize};

/// Most clients with affinity that are kept: as many as the switch has.
const MOST_CLIENTS: usize = 1 << 18;

/// See the module's description.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Learnt {
    /// Seconds of the system's monotonic clock when this was written.
    at: u64,
    /// Service ports: cookie, name, protocol.
    ports: Vec<(String, String, u8)>,
    /// Clients with affinity: index of the Service port, client, backend, seconds left.
    clients: Vec<(usize, IpAddr, SocketAddr, u32)>,
    /// Address of a VTEP, MTU, seconds left.
    path_mtus: Vec<(IpAddr, u16, u64)>,
}

impl Learnt {
    /// What the switch knows. `now`: the system's monotonic clock.
    pub(super) fn read(control: &ControlPlane, now: Duration) -> Self {
        let mut learnt = Self { at: now.as_secs(), ..Self::default() };
        let mut known: HashMap<(Arc<str>, Arc<str>, u8), usize> = HashMap::new();
        for pin in control.affinity(MOST_CLIENTS) {
            let port = (pin.service, pin.port_name, pin.protocol.number());
            let index = *known.entry(port).or_insert_with_key(|port| {
                let (service, name, protocol) = port;
                learnt.ports.push((service.to_string(), name.to_string(), *protocol));
                learnt.ports.len() - 1
            });
            learnt.clients.push((index, pin.client, pin.backend, pin.left));
        }
        let mtus = control.path_mtus().into_iter();
        learnt.path_mtus = mtus.map(|LearntMtu { vtep, mtu, left }| (vtep, mtu, left)).collect();
        learnt
    }

    /// Gives the switch what is still valid, for what the state in force has. `now` as above.
    pub(super) fn restore(&self, control: &ControlPlane, now: Duration) {
        let passed = now.as_secs().saturating_sub(self.at);
        let ports: Vec<(Arc<str>, Arc<str>, Option<Protocol>)> = self
            .ports
            .iter()
            .map(|(service, name, number)| {
                (service.as_str().into(), name.as_str().into(), Protocol::from_number(*number))
            })
            .collect();
        let pins = self.clients.iter().filter_map(|(index, client, backend, left)| {
            let (service, port_name, protocol) = ports.get(*index)?;
            let left = u64::from(*left).checked_sub(passed).filter(|left| *left > 0)?;
            Some(AffinityPin {
                service: service.clone(),
                port_name: port_name.clone(),
                protocol: (*protocol)?,
                client: *client,
                backend: *backend,
                left: u32::try_from(left).ok()?,
            })
        });
        control.restore_affinity(&pins.collect::<Vec<_>>());
        let mtus = self.path_mtus.iter().filter_map(|(vtep, mtu, left)| {
            let left = left.checked_sub(passed).filter(|left| *left > 0)?;
            Some(LearntMtu { vtep: *vtep, mtu: *mtu, left })
        });
        control.restore_path_mtus(&mtus.collect::<Vec<_>>());
    }
}
