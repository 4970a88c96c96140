//! Paths that are the kernel's alone.

use std::net::IpAddr;

use switch_core::host::netlink::{InterfaceAddress, LinkSpec};
use switch_core::host::{HostError, NetNs, Netlink};

use super::{Between, MTU, Pod};
use crate::Outcome;

/// One veth pair, an end in each pod: no switch at all.
pub(super) fn veth() -> Outcome<(Pod, Pod, Between)> {
    let [client, server] = Pod::pair(None)?;
    join(&client, &server).map_err(|e| e.to_string())?;
    Ok((client, server, Between::default()))
}

fn join(client: &Pod, server: &Pod) -> Result<(), HostError> {
    let mut netlink = Netlink::open(&client.namespace)?;
    netlink.add_veth(&interface(client), &interface(server), &server.namespace)?;
    address(client)?;
    address(server)
}

/// A veth pair for each pod, and a bridge of the kernel in a namespace of its own between them.
pub(super) fn bridge() -> Outcome<(Pod, Pod, Between)> {
    let [client, server] = Pod::pair(None)?;
    let middle = NetNs::anonymous().map_err(|e| e.to_string())?;
    bridge_in(&middle, [&client, &server]).map_err(|e| e.to_string())?;
    let between = Between { _namespaces: vec![middle], ..Between::default() };
    Ok((client, server, between))
}

fn bridge_in(middle: &NetNs, pods: [&Pod; 2]) -> Result<(), HostError> {
    let mut netlink = Netlink::open(middle)?;
    let bridge = netlink.add_bridge(&LinkSpec::new("br0").mtu(MTU).up())?;
    for (name, pod) in ["pod0", "pod1"].into_iter().zip(pods) {
        let here = LinkSpec::new(name).mtu(MTU).up();
        let member = netlink.add_veth(&here, &interface(pod), &pod.namespace)?;
        netlink.set_master(member, Some(bridge))?;
        address(pod)?;
    }
    Ok(())
}

fn interface(pod: &Pod) -> LinkSpec {
    LinkSpec::new("eth0").mac(pod.mac).mtu(MTU).up()
}

/// Gives a pod's interface the pod's addresses, the other's being on the link.
fn address(pod: &Pod) -> Result<(), HostError> {
    let mut netlink = Netlink::open(&pod.namespace)?;
    let index = netlink.link("eth0")?.index;
    for address in pod.addresses() {
        let prefix = if matches!(address, IpAddr::V4(_)) { 24 } else { 64 };
        let address = InterfaceAddress::new(address, prefix).expect("a prefix of the family");
        netlink.add_address(index, address)?;
    }
    for address in pod.addresses() {
        // Whether it has come about shows when the path is tried.
        let _ = netlink.wait_until_local(address);
    }
    Ok(())
}
