//! The features of the kernel, tried in a namespace of its own and not derived from its version.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;

use super::check::Check;
use crate::nft::{Ingress, IngressDrop, Masquerade, MasqueradeConfig};
use crate::port::tap::{TapConfig, TapDevice, open_tun_file};
use crate::sys::{tun, udp};
use crate::{HostError, NetNs};
use podswitch_core::port::Device;

/// The oldest kernel with which the project is tested has all features; older ones may lack some of those tried here.
const TESTED_SINCE: (u32, u32) = (5, 10);

pub(super) fn checks() -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut checks = vec![version(release.trim())];
    checks.push(udp_offloads());
    let Ok(scratch) = NetNs::anonymous() else {
        // Reported by the check of namespaces; without a namespace nothing else can be tried.
        return checks;
    };
    checks.extend(tap_offloads(&scratch));
    checks.push(packet_sockets());
    checks.extend(nftables(&scratch));
    checks
}

fn version(release: &str) -> Check {
    const NAME: &str = "kernel";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    match version {
        Some(version) if version < TESTED_SINCE => {
            let (major, minor) = TESTED_SINCE;
            let found = format!(
                "Linux {release} is older than {major}.{minor}, the oldest that is supported"
            );
            Check::warn(NAME, found, "upgrade the kernel, or see that all other checks are good")
        }
        _ => Check::ok(NAME, format!("Linux {release}")),
    }
}

fn udp_offloads() -> Check {
    const NAME: &str = "UDP GSO and GRO";
    let tried = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| {
        udp::set_segment(socket.as_fd(), 1400)?;
        udp::set_gro(socket.as_fd())
    });
    match tried {
        Ok(()) => Check::ok(NAME, "the tunnel sends and receives many segments at a time"),
        Err(error) => {
            let found = format!(
                "missing ({error}): the tunnel sends packets one by one, at a third of the rate"
            );
            Check::warn(NAME, found, "Linux 5.0 has both")
        }
    }
}

fn tap_offloads(scratch: &NetNs) -> Vec<Check> {
    const USO: &str = "TUN USO";
    const TUNNEL: &str = "VXLAN tunnel GSO";
    // Another check reports whether the device can be opened.
    let Ok(tap) = TapDevice::open(scratch, &TapConfig::new("preflight0")) else {
        return Vec::new();
    };
    let uso = match tap.info().offloads.uso {
        true => Check::ok(USO, "pods' UDP bursts (UDP_SEGMENT) pass whole"),
        false => Check::ok(USO, "missing: the kernel cuts pods' UDP bursts; Linux 6.2 has it"),
    };
    let tunnel = match tunnel_offloads(scratch) {
        Ok(()) => {
            Check::ok(TUNNEL, "GSO packets enter the tunnel whole where the NIC can cut them")
        }
        Err(_) => {
            Check::ok(TUNNEL, "missing: GSO packets are cut before the tunnel; Linux 6.17 has it")
        }
    };
    vec![uso, tunnel]
}

/// A TAP interface that accepts GSO packets inside UDP tunnels.
fn tunnel_offloads(scratch: &NetNs) -> Result<(), HostError> {
    scratch.enter(|| {
        let fd = open_tun_file()?;
        let set_up = || {
            tun::set_interface(
                fd.as_fd(),
                "preflight1",
                tun::IFF_TAP | tun::IFF_NO_PI | tun::IFF_VNET_HDR,
            )?;
            let tcp = tun::TUN_F_CSUM
                | tun::TUN_F_TSO4
                | tun::TUN_F_TSO6
                | tun::TUN_F_USO4
                | tun::TUN_F_USO6;
            tun::set_offloads(
                fd.as_fd(),
                tcp | tun::TUN_F_UDP_TUNNEL_GSO | tun::TUN_F_UDP_TUNNEL_GSO_CSUM,
            )
        };
        set_up().map_err(|error| HostError::new("offload GSO packets inside UDP tunnels", error))
    })?
}

fn packet_sockets() -> Check {
    const NAME: &str = "packet sockets";
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    match socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None) {
        Ok(_) => Check::ok(NAME, "there are"),
        Err(error) => {
            let found = format!("{error}: no veth ports, no --uplink");
            Check::warn(NAME, found, "CAP_NET_RAW, and the module af_packet")
        }
    }
}

/// The tables that the switch uses, created in the scratch namespace.
fn nftables(scratch: &NetNs) -> Vec<Check> {
    let pods = vec!["10.0.0.0/24".parse().expect("a range"), "fd00::/64".parse().expect("a range")];
    let config =
        MasqueradeConfig { pods: pods.clone(), cluster: pods, ..MasqueradeConfig::default() };
    let nat = match Masquerade::install(scratch, &config) {
        Ok(_) => Check::ok("nftables NAT", "pods' off-cluster traffic can be masqueraded"),
        Err(error) => {
            let mend = "load nf_tables, nft_chain_nat, nft_masq and nf_conntrack, or run with --masquerade off";
            Check::fail("nftables NAT", error.to_string(), mend)
        }
    };
    let hook = IngressDrop::install(scratch, "preflight", "lo", &Ingress::default());
    let hook = match hook {
        Ok(_) => {
            Check::ok("nftables netdev hook", "an uplink can be kept from the node's own stack")
        }
        Err(error) => {
            let found = format!("{error}: --uplink does not work");
            let mend = "load nf_tables; the kernel needs CONFIG_NETFILTER_INGRESS and CONFIG_NF_TABLES_NETDEV";
            Check::warn("nftables netdev hook", found, mend)
        }
    };
    vec![nat, hook]
}

#[cfg(test)]
mod tests {
    use super::super::check::Level;
    use super::*;

    #[test]
    fn old_kernels_are_reported() {
        for (release, level) in [
            ("5.9.16", Level::Warn),
            ("4.19.0-27-amd64", Level::Warn),
            ("5.10.0", Level::Ok),
            ("6.17.1-arch1", Level::Ok),
            ("10.0", Level::Ok),
            ("unknown", Level::Ok),
        ] {
            assert_eq!(version(release).level, level, "{release}");
        }
    }
}
