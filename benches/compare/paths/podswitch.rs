//! The switch: two pods of a node, routed, with anti-spoofing, connection tracking and counters on, as
//! they always are. No policy and no Service selects the pods.

use std::sync::Arc;
use std::time::Duration;

use policy::rule::{Labels, Workload};
use switch_core::config::{Attachment, Config, Endpoint, Gateway, LocalNode, PortConfig, PortRole};
use switch_core::control::{ControlPlane, Options};
use switch_core::engine::Limits;
use switch_core::host::pod::{
    PodInterface, TapOptions, attach_tap, attach_veth, silence, switch_interface,
};
use switch_core::host::{HostError, NetNs};
use switch_core::id::{Cookie, PortId};
use switch_core::port::Device;
use switch_core::port::af_packet::PacketConfig;
use switch_core::port::tap as tap_port;

use super::pod::{MTU, Pod};
use super::{Between, Missing, World, namespace};

/// Bounds that the many connections of a long run do not meet.
const LIMITS: Limits =
    Limits { connections: 1 << 20, connections_per_port: 1 << 20, flows: 1 << 21, fdb: 1 << 10 };

/// Each pod on a TAP.
pub(super) fn tap(workers: usize) -> Result<World, Missing> {
    tap_port::is_available().map_err(|e| Missing::Unavailable(e.to_string()))?;
    join(workers, Vec::new(), |_, pod, interface| {
        let options = TapOptions { multi_queue: workers > 1, ..TapOptions::default() };
        Ok(Box::new(attach_tap(&pod.namespace, interface, options)?))
    })
}

/// Each pod on a veth pair, whose other end the switch has by AF_PACKET.
pub(super) fn af_packet(workers: usize) -> Result<World, Missing> {
    let ours = namespace()?;
    silence(&ours)?;
    join(workers, vec![ours.clone()], |number, pod, interface| {
        let name = switch_interface(&format!("compare/{number}"));
        let config = PacketConfig::default();
        Ok(Box::new(attach_veth(&pod.namespace, interface, &ours, &name, config)?))
    })
}

fn join(
    workers: usize,
    namespaces: Vec<NetNs>,
    attach: impl Fn(usize, &Pod, &PodInterface) -> Result<Box<dyn Device>, HostError>,
) -> Result<World, Missing> {
    let [client, server] = Pod::pair(Some(Gateway::default().mac))?;
    let mut control = ControlPlane::new(Options { limits: LIMITS, ..Options::default() });
    control.set_workers(workers).map_err(|e| e.to_string())?;
    let mut config = Config {
        node: LocalNode { name: "n".into(), ..LocalNode::default() },
        ..Config::default()
    };
    for (number, pod) in [&client, &server].into_iter().enumerate() {
        let interface = PodInterface { mtu: MTU, ..PodInterface::new(pod.mac, pod.addresses()) };
        let device = attach(number, pod, &interface).map_err(|e| e.to_string())?;
        let port = control.attach(device).map_err(|e| e.to_string())?;
        config.ports.push(PortConfig { port, role: PortRole::Pod });
        config.endpoints.push(Arc::new(endpoint(number, pod, port)));
    }
    let epoch = control.apply(&config).map_err(|e| e.to_string())?;
    control.wait(epoch, Duration::from_secs(10)).map_err(|e| e.to_string())?;
    let between =
        Between { switches: vec![control], _namespaces: namespaces, ..Between::default() };
    Ok(World::new(client, server, between))
}

fn endpoint(number: usize, pod: &Pod, port: PortId) -> Endpoint {
    Endpoint {
        cookie: Cookie::new(format!("Pod/compare/p{number}")),
        workload: Workload {
            namespace: "compare".into(),
            name: format!("p{number}").into(),
            labels: Labels::default(),
            addresses: pod.addresses(),
            ports: Vec::new(),
            host_network: false,
        },
        node: "n".into(),
        attachment: Some(Attachment { port, mac: pod.mac, mtu: MTU as u16 }),
    }
}
