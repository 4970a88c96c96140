//! Ports on which the switch listens and that others may use.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use super::check::{Check, Options};
use crate::{NetNs, Netlink};

const VXLAN: u16 = 4789;
/// Flannel's, and the kernel's own default.
const FLANNEL: u16 = 8472;

pub(super) fn checks(options: &Options) -> Vec<Check> {
    let ns = &options.namespace;
    // If a switch is running, it uses them itself.
    let running = Netlink::open(ns)
        .and_then(|mut n| n.find_link("podswitch0"))
        .is_ok_and(|link| link.is_some());
    let mut checks = vec![match options.vxlan_port {
        Some(port) => tunnel(port, udp_port(ns, port), running, true),
        None => tunnel(VXLAN, udp_port(ns, VXLAN), running, true),
    }];
    if options.vxlan_port.is_none() {
        checks.push(tunnel(FLANNEL, udp_port(ns, FLANNEL), running, false));
    }
    checks.extend(options.listen.map(|address| listen(ns, address, running)));
    checks
}

/// Whether the port is free, at all addresses.
fn udp_port(ns: &NetNs, port: u16) -> io::Result<()> {
    ns.enter(|| {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| match error.raw_os_error() {
            // No IPv6 on this machine.
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => UdpSocket::bind(("0.0.0.0", port)),
            _ => Err(error),
        })
    })?
    .map(drop)
}

fn tunnel(port: u16, free: io::Result<()>, running: bool, needed: bool) -> Check {
    let name = if needed { "tunnel port" } else { "Flannel's tunnel port" };
    match free {
        Ok(()) => Check::ok(name, format!("UDP {port} is free")),
        Err(_) if running => {
            Check::ok(name, format!("UDP {port} is taken; a switch is running here"))
        }
        Err(error) => {
            let found = format!(
                "UDP {port}: {error}: a VXLAN interface (`ip -d link show type vxlan`) or a program (`ss -lunp`) has it"
            );
            let mend = format!("remove it, or give all nodes another --vxlan-port than {port}");
            if needed { Check::fail(name, found, mend) } else { Check::warn(name, found, mend) }
        }
    }
}

fn listen(ns: &NetNs, address: SocketAddr, running: bool) -> Check {
    const NAME: &str = "health and metrics port";
    let bound = ns.enter(|| TcpListener::bind(address).map(drop));
    match bound.map_err(io::Error::from).flatten() {
        Ok(()) => Check::ok(NAME, format!("TCP {address} is free")),
        Err(_) if running => {
            Check::ok(NAME, format!("TCP {address} is taken; a switch is running here"))
        }
        Err(error) => {
            let found = format!("TCP {address}: {error}: another program has it (`ss -ltnp`)");
            Check::fail(
                NAME,
                found,
                "give --metrics-address another port (value agent.port of the chart)",
            )
        }
    }
}
