//! Pods attached by a veth pair: one end is in the pod, the other in a namespace that belongs to
//! the switch, where only the switch sees the frames.
//!
//! An AF_PACKET socket gets copies. In the node's own namespace, the kernel's stack would also
//! receive every frame of every pod, answer it and forward it without policy, and continue after
//! the switch was killed. In the switch's namespace the stack has no address and no route and does
//! not forward: if the switch is killed, pods are disconnected, which is safe.
//!
//! The namespace has a name, `podswitch-NODE`: a mount that outlives the switch. A new run finds
//! it, and in it the veth ends of an earlier run by their names, each still connected to its pod.

use super::PodInterface;
use crate::netlink::{Link, LinkSpec};
use crate::port::af_packet::{PacketConfig, PacketDevice};
use crate::{HostError, NetNs, Netlink, sysctl};

/// Settings that make a namespace's stack neither answer nor forward.
const DEAD_STACK: [(&str, &str); 7] = [
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    // Answers no ARP request at all.
    ("net/ipv4/conf/all/arp_ignore", "8"),
    ("net/ipv4/icmp_echo_ignore_all", "1"),
    ("net/ipv4/conf/all/rp_filter", "1"),
];

/// The namespace in which the switch of `node` keeps its ends of veth pairs; created if it does not
/// exist. It is kept when the switch ends, because pods would otherwise lose their interfaces.
/// Remove it with [`NetNs::remove_on_drop`].
///
/// # Errors
/// Missing privilege; `/proc/sys` cannot be written and the stack is not inactive already.
pub fn switch_namespace(node: &str) -> Result<NetNs, HostError> {
    let ns = NetNs::find_or_create(&format!("podswitch-{node}"))?;
    ns.keep();
    silence(&ns)?;
    Ok(ns)
}

/// Makes the stack of a namespace neither answer nor forward, whatever its interfaces receive.
/// [`switch_namespace`] calls this; it is also for switches that keep their ends elsewhere, such as
/// in an anonymous namespace that disappears with them.
///
/// # Errors
/// `/proc/sys` cannot be written and the stack is not inactive already.
pub fn silence(ns: &NetNs) -> Result<(), HostError> {
    for (key, value) in DEAD_STACK {
        match sysctl::set(ns, key, value) {
            // A kernel without IPv6 does not have this setting.
            Err(error) if key.starts_with("net/ipv6") && error.is_not_found() => {}
            result => result?,
        }
    }
    Ok(())
}

/// A name of 15 bytes for the switch's end of a pod's interface, derived from the name of the pod
/// (`namespace/pod`): the same on every run, and in practice unique.
pub fn switch_interface(pod: &str) -> String {
    // FNV-1a, of which 52 bits are used.
    let hash = pod.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("ps{:013x}", hash >> 12)
}

/// Attaches a pod by a veth pair whose other end is `name` in `switch_ns` ([`switch_interface`]),
/// and sets the pod's interface up. A pair that an earlier run left is used unchanged.
///
/// # Errors
/// The pod has another interface of that name; an address or route is refused; missing
/// privilege. A new pair is removed again then.
pub fn attach_veth(
    pod_ns: &NetNs,
    pod: &PodInterface,
    switch_ns: &NetNs,
    name: &str,
    config: PacketConfig,
) -> Result<PacketDevice, HostError> {
    let mut pod_side = Netlink::open(pod_ns)?;
    let mut switch_side = Netlink::open(switch_ns)?;
    let in_pod = pod_side.find_link(&pod.name)?;
    let ours = switch_side.find_link(name)?;
    let is_there = matches!((&in_pod, &ours), (Some(a), Some(b)) if are_peers(a, b));
    if !is_there {
        // The pod of this end does not exist any more, or another interface has the name of its
        // peer.
        if let Some(stale) = ours {
            switch_side.delete_link(stale.index)?;
        }
        let ours = LinkSpec::new(name).mtu(pod.mtu).up();
        let theirs = LinkSpec::new(&pod.name).mtu(pod.mtu).mac(pod.mac);
        switch_side.add_veth(&ours, &theirs, pod_ns)?;
    }
    let result = finish(&mut pod_side, pod_ns, pod, &mut switch_side, name)
        .and_then(|()| PacketDevice::new(switch_ns, name, config));
    if result.is_err() && !is_there {
        // The first error is returned.
        let _ = detach_veth(switch_ns, name);
    }
    result
}

fn finish(
    pod_side: &mut Netlink,
    pod_ns: &NetNs,
    pod: &PodInterface,
    switch_side: &mut Netlink,
    name: &str,
) -> Result<(), HostError> {
    let (theirs, ours) = (pod_side.link(&pod.name)?, switch_side.link(name)?);
    for (netlink, link) in [(&mut *pod_side, &theirs), (&mut *switch_side, &ours)] {
        if link.mtu != pod.mtu {
            netlink.set_mtu(link.index, pod.mtu)?;
        }
    }
    if theirs.mac != Some(pod.mac) {
        pod_side.set_mac(theirs.index, pod.mac)?;
    }
    switch_side.set_up(ours.index)?;
    super::configure(pod_ns, pod).map(drop)
}

/// Removes a pair by its switch end; a no-op if it does not exist.
///
/// # Errors
/// Missing privilege.
pub fn detach_veth(switch_ns: &NetNs, name: &str) -> Result<(), HostError> {
    let mut netlink = Netlink::open(switch_ns)?;
    match netlink.find_link(name)? {
        Some(link) => netlink.delete_link(link.index),
        None => Ok(()),
    }
}

/// Whether two interfaces of different namespaces are the ends of one veth pair. Indices can be
/// equal by chance, so both must match.
fn are_peers(a: &Link, b: &Link) -> bool {
    let is_veth = |link: &Link| link.kind.as_deref() == Some("veth");
    is_veth(a) && is_veth(b) && a.peer == Some(b.index) && b.peer == Some(a.index)
}
