//! Open vSwitch's user-space datapath (`datapath_type=netdev`). Its ports are veth ends, opened with AF_PACKET.
//!
//! A build with DPDK passes GSO packets unsegmented (`userspace-tso-enable`), except into tunnels. With other builds,
//! pods must compute checksums themselves, which also makes them segment TCP: without a virtio header, the datapath
//! would pass on frames whose checksums nobody completes.

pub(crate) mod daemon;
mod flows;

use std::net::IpAddr;

use podswitch_linux::attach::silence;
use podswitch_linux::netlink::{InterfaceAddress, LinkSpec};
use podswitch_linux::{NetNs, Netlink};

pub(super) use daemon::Daemon;
use daemon::Programs;

use super::nodes::{self, Wire};
use super::pod::{Pod, TUNNEL_MTU};
use super::services::Services;
use super::{Between, Missing, World, namespace, tools};

/// What the switch does with packets.
#[derive(Clone, Copy)]
pub(super) enum Pipeline {
    /// Bridges them and learns addresses.
    Normal,
    /// The same with connection tracking.
    Conntrack,
}

/// The installed version, in one line.
pub(crate) fn version() -> Option<String> {
    Programs::version()
}

/// Two pods on a bridge.
pub(super) fn plain(pipeline: Pipeline) -> Result<World, Missing> {
    let programs = Programs::find()?;
    let pods = Pod::pair(None)?;
    let (pods, between) = one_node(&programs, pods, &[])?;
    if let Pipeline::Conntrack = pipeline {
        between._daemons[0].ofctl("replace-flows", "br0", flows::CONNTRACK)?;
    }
    let [client, server] = pods;
    Ok(World::new(client, server, between))
}

/// Two pods on a bridge that translates cluster IPs, with a flow and a group for each Service.
pub(super) fn services(count: usize) -> Result<World, Missing> {
    let programs = Programs::find()?;
    let services = Services { count };
    let [client, mut server] = Pod::pair(None)?;
    server.more = Services::server_addresses();
    // The switch does not route, so packets to cluster IPs are sent to the server's MAC address.
    let gateways: [IpAddr; 2] = [server.v4.into(), server.v6.into()];
    let (pods, between) = one_node(&programs, [client, server], &gateways)?;
    let (groups, flows) = flows::services(services, &pods[1]);
    between._daemons[0].ofctl("add-groups", "br0", &groups)?;
    between._daemons[0].ofctl("replace-flows", "br0", &flows)?;
    let [client, server] = pods;
    Ok(World { services: Some(services), ..World::new(client, server, between) })
}

/// Pods on a bridge; `gateways`: the gateways of the client.
fn one_node(
    programs: &Programs,
    pods: [Pod; 2],
    gateways: &[IpAddr],
) -> Result<([Pod; 2], Between), Missing> {
    let middle = namespace()?;
    silence(&middle)?;
    let daemon = Daemon::start(&middle, programs, &gso_settings(programs.tso))?;
    daemon.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
    for (number, pod) in pods.iter().enumerate() {
        plug(&middle, &daemon, "br0", &format!("pod{number}"), pod)?;
        if !programs.tso {
            finish_checksums(pod)?;
        }
        pod.configure(if number == 0 { gateways } else { &[] })?;
    }
    let between =
        Between { _daemons: vec![daemon], _namespaces: vec![middle], ..Between::default() };
    Ok((pods, between))
}

/// Two nodes, each with a bridge for the pods and one for the underlay, VXLAN between them.
pub(super) fn vxlan() -> Result<World, Missing> {
    let programs = Programs::find()?;
    let mut client = Pod::new(0, 0, None)?;
    let mut server = Pod::new(0, 1, None)?;
    let nodes = nodes::pair(Wire::Offloads)?;
    let mut daemons = Vec::new();
    for (number, pod) in [&mut client, &mut server].into_iter().enumerate() {
        pod.mtu = TUNNEL_MTU;
        let node = &nodes[number];
        let daemon = Daemon::start(node, &programs, &gso_settings(false))?;
        daemon.vsctl("add-br br-phy -- set bridge br-phy datapath_type=netdev")?;
        daemon.vsctl(&format!("add-port br-phy {}", nodes::INTERFACE))?;
        let mut netlink = Netlink::open(node)?;
        let local = netlink.link("br-phy")?.index;
        netlink.set_up(local)?;
        let address = InterfaceAddress::new(nodes::underlay(number), 24).expect("a prefix");
        netlink.add_address(local, address)?;
        daemon.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
        daemon.vsctl(&format!(
            "add-port br0 vx0 -- set interface vx0 type=vxlan options:key=1 options:remote_ip={}",
            nodes::underlay(1 - number)
        ))?;
        plug(node, &daemon, "br0", "pod", pod)?;
        finish_checksums(pod)?;
        pod.configure(&[])?;
        daemons.push(daemon);
    }
    let between = Between { _daemons: daemons, _namespaces: nodes.into(), ..Between::default() };
    Ok(World::new(client, server, between))
}

/// Whether GSO packets pass unsegmented.
fn gso_settings(whole: bool) -> [String; 1] {
    [format!("other_config:userspace-tso-enable={whole}")]
}

/// A veth pair from a pod to one of the daemon's bridges.
fn plug(ns: &NetNs, daemon: &Daemon, bridge: &str, name: &str, pod: &Pod) -> Result<(), Missing> {
    let here = LinkSpec::new(name).mtu(pod.mtu).up();
    Netlink::open(ns)?.add_veth(&here, &pod.interface(), &pod.namespace)?;
    daemon.vsctl(&format!("add-port {bridge} {name}"))?;
    Ok(())
}

/// Makes a pod's stack compute checksums, and therefore segment its own TCP streams.
fn finish_checksums(pod: &Pod) -> Result<(), Missing> {
    let ethtool = tools::find("ethtool")?;
    tools::run(pod.namespace.command(ethtool).args(["-K", "eth0", "tx", "off"]), "")?;
    Ok(())
}
