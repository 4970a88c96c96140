//! A node as kubeadm sets it up: pods on a Linux bridge that is their gateway, bridged packets passed to the packet
//! filter, and kube-proxy's rules for Services.
//!
//! The rules are those of kube-proxy's two modes, chain by chain, for ClusterIP Services without affinity. Chain names
//! have a number in place of kube-proxy's hash.

mod iptables;
mod nftables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;

use super::pod::{MTU, Pod};
use super::services::Services;
use super::{Between, Family, Missing, World, kernel, namespace, tools};

/// The mark of packets that are to be masqueraded.
const MASQUERADE: u32 = 0x4000;

/// kube-proxy's iptables mode.
pub(super) fn iptables(count: usize) -> Result<World, Missing> {
    let programs = [tools::find("iptables-restore")?, tools::find("ip6tables-restore")?];
    node(count, |node, server, services| {
        for (program, family) in programs.iter().zip(Family::BOTH) {
            let rules = iptables::rules(&services.ports(server, family), family);
            load(node, program, &["-w"], &rules)?;
        }
        Ok(())
    })
}

/// kube-proxy's nftables mode.
pub(super) fn nftables(count: usize) -> Result<World, Missing> {
    let program = tools::find("nft")?;
    node(count, |node, server, services| {
        for family in Family::BOTH {
            let rules = nftables::rules(&services.ports(server, family), family);
            load(node, &program, &["-f", "-"], &rules)?;
        }
        Ok(())
    })
}

fn load(node: &NetNs, program: &Path, arguments: &[&str], rules: &str) -> Result<(), Missing> {
    let mut command = node.command(program);
    // The lock is in the file system, but each path has its own namespace and needs no lock.
    command.args(arguments).env("XTABLES_LOCKFILE", "/dev/null");
    tools::run(&mut command, rules)?;
    Ok(())
}

fn node(
    count: usize,
    rules: impl FnOnce(&NetNs, &Pod, Services) -> Result<(), Missing>,
) -> Result<World, Missing> {
    if count > 1 {
        // The netlink socket of an unprivileged user does not accept so much data at once.
        tools::need_root("so many rules")?;
    }
    let services = Services { count };
    let mac = Mac([0x0a, 0x58, 10, 78, 0, 1]);
    let [client, mut server] = Pod::pair(Some(mac))?;
    server.more = Services::server_addresses();
    let node = namespace()?;
    kernel::forwarding(&node)?;
    let mut netlink = Netlink::open(&node)?;
    let bridge = netlink.add_bridge(&LinkSpec::new("cni0").mac(mac).mtu(MTU).up())?;
    sysctl::set_all(
        &node,
        &[
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ],
    )
    .map_err(|e| Missing::Unavailable(format!("no bridge netfilter: {e}")))?;
    let gateways: [IpAddr; 2] =
        [Ipv4Addr::new(10, 78, 0, 1).into(), Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1).into()];
    for (gateway, prefix) in gateways.into_iter().zip([24, 64]) {
        let address = InterfaceAddress::new(gateway, prefix).expect("a prefix of the family");
        netlink.add_address(bridge, address)?;
    }
    for (name, pod) in ["pod0", "pod1"].into_iter().zip([&client, &server]) {
        kernel::plug(&node, bridge, name, pod)?;
        pod.configure(&gateways)?;
    }
    rules(&node, &server, services)?;
    let between = Between { _namespaces: vec![node], ..Between::default() };
    Ok(World { services: Some(services), ..World::new(client, server, between) })
}

/// The network of all pods of a family.
fn pods(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.78.0.0/16",
        Family::V6 => "fd78::/48",
    }
}
