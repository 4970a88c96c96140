//! Two nodes, a switch on each, and the tunnel between them: through UDP sockets beside the node's
//! own stack, or as raw frames with AF_PACKET.

use std::sync::Arc;

use podswitch_core::config::{
    Cidr, Gateway, LocalNode, PortConfig, PortRole, RemoteNode, TunnelConfig, VtepMac,
};
use podswitch_core::id::Cookie;
use podswitch_core::port::Device;
use podswitch_linux::NetNs;
use podswitch_linux::attach::silence;
use podswitch_linux::nft::{Ingress, IngressDrop};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::port::udp_tunnel::{UdpTunnelConfig, UdpTunnelDevice};
use podswitch_wire::addr::Mac;

use super::super::nodes::{self, Wire};
use super::super::pod::{MTU, Pod, TUNNEL_MTU};
use super::super::{Between, Missing, World};
use super::{Attach, Node, endpoint};

/// How the tunnel is carried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::paths) enum Underlay {
    /// UDP sockets, and AF_PACKET for packets that UDP sockets would have to segment.
    Udp,
    /// UDP sockets alone, as on kernels before Linux 6.17.
    Sockets,
    /// AF_PACKET on the node's interface; the node's stack does not answer there.
    Packet,
}

/// Two pods on TAP interfaces, one on each node; one worker for each node.
pub(in crate::paths) fn two_nodes(underlay: Underlay, wire: Wire) -> Result<World, Missing> {
    let gateway = Some(Gateway::default().mac);
    let mut pods = [Pod::new(0, 0, gateway)?, Pod::new(1, 1, gateway)?];
    pods.iter_mut().for_each(|pod| pod.mtu = TUNNEL_MTU);
    let machines = nodes::pair(wire)?;
    let mut all = Between { _namespaces: machines.to_vec(), ..Between::default() };
    for (number, machine) in machines.iter().enumerate() {
        let between = node(number, machine, &pods, underlay)?;
        all.switches.extend(between.switches);
        all._namespaces.extend(between._namespaces);
    }
    let [client, server] = pods;
    Ok(World::new(client, server, all))
}

fn node(
    number: usize,
    machine: &NetNs,
    pods: &[Pod; 2],
    underlay: Underlay,
) -> Result<Between, Missing> {
    let (here, there) = (remote(number), remote(1 - number));
    let mut node = Node::new(&here.name, Attach::Tap, 1)?;
    node.attach(&pods[number])?;
    let device: Box<dyn Device> = match underlay {
        Underlay::Udp | Underlay::Sockets => {
            nodes::address(machine, number)?;
            let mut config = UdpTunnelConfig::new(&[nodes::underlay(number)]);
            config.tunnel_gso = underlay == Underlay::Udp;
            Box::new(UdpTunnelDevice::new(machine, config)?)
        }
        Underlay::Packet => {
            silence(machine)?;
            let port = TunnelConfig::default().port;
            // As on a node's uplink: the node's stack does not process the packets of the switch.
            let taken = Ingress { udp_to: vec![port], ..Ingress::default() };
            IngressDrop::install(machine, "podswitch-uplink", nodes::INTERFACE, &taken)
                .map_err(|e| Missing::Unavailable(e.to_string()))?;
            let config = PacketConfig { tunnel: Some(port), ..Default::default() };
            Box::new(PacketDevice::new(machine, nodes::INTERFACE, config)?)
        }
    };
    let port = node.control.attach(device).map_err(|e| e.to_string())?;
    let mac = here.underlay_mac;
    let role = PortRole::Uplink { mac, mtu: MTU as u16, tunnel: true, direct: false };
    let config = &mut node.config;
    config.ports.push(PortConfig { port, role });
    config.node = LocalNode {
        name: here.name,
        addresses: here.addresses,
        pod_cidrs: here.pod_cidrs,
        vtep: here.vtep,
        underlay_mac: mac,
        ..LocalNode::default()
    };
    config.endpoints.push(Arc::new(endpoint(&pods[1 - number], there.name.clone(), None)));
    config.nodes.push(Arc::new(there));
    config.tunnel = Some(TunnelConfig::default());
    Ok(node.start()?)
}

/// A node as the other node sees it.
fn remote(number: usize) -> RemoteNode {
    let range = |text: String| text.parse::<Cidr>().expect("a range");
    RemoteNode {
        cookie: Cookie::new(format!("Node/n{number}")),
        name: format!("n{number}").into(),
        labels: podswitch_policy::rule::Labels::default(),
        addresses: vec![nodes::underlay(number)],
        pod_cidrs: vec![
            range(format!("10.78.{number}.0/24")),
            range(format!("fd78:0:0:{number}::/64")),
        ],
        vtep: VtepMac { ipv4: Mac([0x0e, 0x58, 192, 0, 2, number as u8 + 1]), ipv6: None },
        underlay_mac: nodes::mac(number),
        precedence: Default::default(),
    }
}
