//! The switch: pods routed, with anti-spoofing, connection tracking and counters enabled as always.
//! No policy selects the pods; Services are in force on paths that have them.

mod services;
pub(super) mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use podswitch_core::config::{
    Attachment, Config, Endpoint, Gateway, LocalNode, PortConfig, PortRole,
};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::engine::Limits;
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::port::Device;
use podswitch_linux::NetNs;
use podswitch_linux::attach::{
    PodInterface, TapOptions, attach_tap, attach_veth, silence, switch_interface,
};
use podswitch_linux::port::af_packet::PacketConfig;
use podswitch_linux::port::tap as tap_port;
use podswitch_policy::rule::{Labels, Workload};

use super::pod::Pod;
use super::services::Services;
use super::{Between, Missing, World, namespace};
use crate::Outcome;

/// Limits that the many connections of a long run do not reach.
const LIMITS: Limits =
    Limits { connections: 1 << 20, connections_per_port: 1 << 20, flows: 1 << 21, fdb: 1 << 10 };

/// How a pod is attached.
#[derive(Clone, Copy)]
pub(super) enum Attach {
    /// A TAP interface in its namespace.
    Tap,
    /// A veth pair whose other end the switch opens with AF_PACKET.
    Packet,
}

/// Two pods of a node.
pub(super) fn one_node(attach: Attach, workers: usize) -> Result<World, Missing> {
    join(attach, workers, None)
}

/// Two pods of a node, one reached through the cluster IPs of this number of Services; one worker.
pub(super) fn services(attach: Attach, count: usize) -> Result<World, Missing> {
    join(attach, 1, Some(Services { count }))
}

fn join(attach: Attach, workers: usize, services: Option<Services>) -> Result<World, Missing> {
    let [client, mut server] = Pod::pair(Some(Gateway::default().mac))?;
    let mut node = Node::new("n", attach, workers)?;
    if let Some(services) = services {
        server.more = Services::server_addresses();
        (node.config.services, node.config.slices) = services::objects(services, &server);
    }
    for pod in [&client, &server] {
        node.attach(pod)?;
    }
    let between = node.start()?;
    Ok(World { services, ..World::new(client, server, between) })
}

/// A node's switch while it is being built.
struct Node {
    attach: Attach,
    /// The namespace in which the switch has its ends of veth pairs.
    ours: NetNs,
    workers: usize,
    control: ControlPlane,
    config: Config,
}

impl Node {
    fn new(name: &str, attach: Attach, workers: usize) -> Result<Self, Missing> {
        if let Attach::Tap = attach {
            tap_port::is_available().map_err(|e| Missing::Unavailable(e.to_string()))?;
        }
        let ours = namespace()?;
        silence(&ours)?;
        let mut control = ControlPlane::new(Options { limits: LIMITS, ..Options::default() });
        control.set_workers(workers).map_err(|e| e.to_string())?;
        let node = LocalNode { name: name.into(), ..LocalNode::default() };
        let config = Config { node, ..Config::default() };
        Ok(Self { attach, ours, workers, control, config })
    }

    /// Attaches a pod.
    fn attach(&mut self, pod: &Pod) -> Result<(), Missing> {
        let interface =
            PodInterface { mtu: pod.mtu, ..PodInterface::new(pod.mac, pod.addresses()) };
        let device: Box<dyn Device> = match self.attach {
            Attach::Tap => {
                let multi_queue = self.workers > 1;
                let options = TapOptions { multi_queue, ..TapOptions::default() };
                Box::new(attach_tap(&pod.namespace, &interface, options)?)
            }
            Attach::Packet => {
                let name = switch_interface(&pod.mac.to_string());
                let config = PacketConfig::default();
                Box::new(attach_veth(&pod.namespace, &interface, &self.ours, &name, config)?)
            }
        };
        let port = self.control.attach(device).map_err(|e| e.to_string())?;
        self.config.ports.push(PortConfig { port, role: PortRole::Pod });
        let node = self.config.node.name.clone();
        self.config.endpoints.push(Arc::new(endpoint(pod, node, Some(port))));
        Ok(())
    }

    /// Applies the configuration.
    fn start(mut self) -> Outcome<Between> {
        let epoch = self.control.apply(&self.config).map_err(|e| e.to_string())?;
        self.control.wait(epoch, Duration::from_secs(30)).map_err(|e| e.to_string())?;
        Ok(Between {
            switches: vec![self.control],
            _namespaces: vec![self.ours],
            ..Between::default()
        })
    }
}

/// A pod as the switch of any node sees it. `port`: its port, on its own node.
fn endpoint(pod: &Pod, node: Arc<str>, port: Option<PortId>) -> Endpoint {
    let name = pod.v4.to_string();
    Endpoint {
        cookie: Cookie::new(format!("Pod/compare/{name}")),
        workload: Workload {
            namespace: "compare".into(),
            name: name.into(),
            labels: Labels::default(),
            addresses: pod.addresses(),
            ports: Vec::new(),
            host_network: false,
        },
        node,
        attachment: port.map(|port| Attachment { port, mac: pod.mac, mtu: pod.mtu as u16 }),
        precedence: Default::default(),
    }
}
