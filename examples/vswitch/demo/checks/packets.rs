//! Large packets, TTL and path MTU, on one node and through the tunnel.

use std::io;
use std::net::{IpAddr, UdpSocket};

use podswitch_core::action::DropReason;
use podswitch_linux::attach::switch_interface;
use podswitch_linux::netlink::Route;
use podswitch_linux::{HostError, Netlink};
use podswitch_wire::cidr::Cidr;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover,
};

use crate::Done;
use crate::demo::report::Report;
use crate::demo::sockets::{self, Echo, Outcome, RETRY, TRIES};
use crate::demo::world::{DemoPod, UPLINK, World};

/// Bytes of a datagram of 41 or more fragments.
const JUMBO: usize = 60_000;
/// The MTU that a pod is made to assume, and the size that it then sends.
const WIDE: u32 = 9000;
const TOO_BIG: usize = 3000;
/// Headers before a datagram's data: IP of each family, and UDP.
const HEADERS: [usize; 2] = [28, 48];

/// See the module's description.
pub(in crate::demo) fn packets(world: &World, report: &mut Report) -> Done {
    let pod = |name| world.pod(name);
    let large =
        [("red", "green"), ("red", "blue"), ("blue", "red"), ("red", "cyan"), ("white", "blue")];
    for (from, to) in large.map(|(from, to)| (pod(from), pod(to))) {
        for (family, address) in to.addresses.each() {
            let seen = sockets::udp(&from.namespace, &to.namespace, address, JUMBO);
            let path = format!("{} → {}, {family}", from.name, to.name);
            report.check(format!("fragments: {JUMBO} bytes of UDP {path}"), seen.map(drop))?;
        }
    }
    ttl(world, report)?;
    for (from, to) in [("red", "blue"), ("red", "cyan"), ("white", "green")] {
        for (family, address) in pod(to).addresses.each() {
            let found = path_mtu(world, pod(from), pod(to), address);
            let path = format!("{from} → {to}, {family}");
            report.check(format!("path MTU: found by the switch's ICMP, {path}"), found)?;
        }
    }
    for (family, address) in pod("cyan").addresses.each() {
        let learned = world.mtu().and_then(|mtu| {
            with_large_mtu(world, pod("blue"), || learns_mtu(pod("blue"), address, TOO_BIG, mtu))
        });
        let name = "path MTU: with DF the sender learns it, blue → cyan";
        report.check(format!("{name}, {family}"), learned)?;
    }
    let cut = with_large_mtu(world, pod("cyan"), || {
        send_sized(pod("cyan"), pod("red"), pod("red").addresses.v4.into(), false, TOO_BIG)
    });
    let cut = cut.and_then(|arrives| arrives.then_some(()).ok_or("refused".to_owned()));
    report.check("path MTU: without DF the switch fragments, cyan → red, IPv4", cut)?;
    for (from, to) in [("red", "green"), ("red", "white"), ("white", "red")] {
        for (family, address) in pod(to).addresses.each() {
            let name = format!("sizes around the MTU, with and without DF, {from} → {to}");
            let outcome = sizes(world, pod(from), pod(to), address);
            report.check(format!("{name}, {family}"), outcome)?;
        }
    }
    Ok(())
}

/// Every switch on the way decrements it.
fn ttl(world: &World, report: &mut Report) -> Done {
    let red = world.pod("red");
    for (to, expected, switches) in [("blue", 63, 1), ("cyan", 62, 2)] {
        let addresses = world.pod(to).addresses;
        let lowered = match sockets::ping(&red.namespace, addresses.v4.into(), None) {
            Ok(Echo::Reply(Some(ttl))) if ttl == expected => Ok(()),
            other => Err(format!("{other:?} instead of a reply with TTL {expected}")),
        };
        report.check(format!("TTL: red → {to} decrements by {switches}"), lowered)?;
        for (family, address) in addresses.each() {
            for ttl in 1..=switches {
                let learned = match sockets::ping(&red.namespace, address, Some(ttl)) {
                    Ok(Echo::Expired(_)) => Ok(()),
                    other => Err(format!("{other:?} instead of time exceeded")),
                };
                let name = format!("TTL: exceeded at switch {ttl} of red → {to}, {family}");
                report.check(format!("{name}, the sender gets ICMP"), learned)?;
            }
        }
    }
    Ok(())
}

/// Makes a pod assume a larger MTU than its peer has. Its first datagram is too big, and the pod
/// learns the MTU; after that it fragments by itself.
fn path_mtu(world: &World, from: &DemoPod, to: &DemoPod, address: IpAddr) -> Outcome<()> {
    let switch = world.node_of(from);
    let before = switch.dropped(DropReason::MtuExceeded);
    with_large_mtu(world, from, || {
        sockets::udp(&from.namespace, &to.namespace, address, TOO_BIG).map(drop)
    })?;
    match switch.dropped(DropReason::MtuExceeded) > before {
        true => Ok(()),
        false => Err("nothing was too big".to_owned()),
    }
}

/// A sender that always sets DF learns the path MTU.
fn learns_mtu(from: &DemoPod, address: IpAddr, bytes: usize, mtu: u32) -> Outcome<()> {
    let socket = client(from, address, true)?;
    socket.connect((address, 9)).map_err(|e| e.to_string())?;
    for _ in 0..TRIES {
        // The error of an earlier datagram, or none yet.
        let _ = socket.send(&vec![0; bytes]);
        let _ = socket.recv(&mut [0; 16]);
        let known = if address.is_ipv4() { ip_mtu(&socket) } else { ipv6_mtu(&socket) };
        if known.map_err(|e| e.to_string())? == mtu {
            return Ok(());
        }
    }
    Err(format!("it never learns that the path's MTU is {mtu}"))
}

/// A path through the tunnel with a smaller MTU than the node's own link: what the node's kernel
/// learns about it reaches the pod. Must run last: the switch remembers the MTU for minutes.
pub(in crate::demo) fn narrow_underlay(world: &World, report: &mut Report) -> Done {
    let (white, red) = (world.pod("white"), world.pod("red"));
    let outcome = narrowed(world, white, red);
    report.check("path MTU: the pod learns of a narrower underlay, white → red", outcome)
}

fn narrowed(world: &World, from: &DemoPod, to: &DemoPod) -> Outcome<()> {
    const NARROW: u32 = 1400;
    let text = |e: HostError| e.to_string();
    let node = world.node_of(from);
    let other = world.node_of(to).addresses.v4.into();
    let mut netlink = Netlink::open(&node.namespace).map_err(text)?;
    let index = netlink.link(UPLINK).map_err(text)?.index;
    let route = Route::to(Cidr::host(other)).link(index).mtu(NARROW);
    netlink.add_route(&route).map_err(text)?;
    // Outer IPv4, UDP and VXLAN, inner Ethernet.
    let fits_link = (NARROW - HEADERS[0] as u32) as usize;
    let learned = learns_mtu(from, to.addresses.v4.into(), fits_link, NARROW - 50);
    let passes = learned.and_then(|()| {
        sockets::udp(&from.namespace, &to.namespace, to.addresses.v4.into(), TOO_BIG).map(drop)
    });
    netlink.delete_route(&route).map_err(text)?;
    passes
}

/// Datagrams of every size around the MTU: with DF those that fit arrive and the others are
/// refused; without DF all arrive.
fn sizes(world: &World, from: &DemoPod, to: &DemoPod, address: IpAddr) -> Outcome<()> {
    let mtu = world.mtu()? as usize;
    let headers = HEADERS[usize::from(address.is_ipv6())];
    for size in mtu - 12..=mtu + 12 {
        for dont_fragment in [true, false] {
            let fits = size <= mtu || !dont_fragment;
            let arrives = send_sized(from, to, address, dont_fragment, size - headers)
                .map_err(|e| format!("{size} bytes, DF {dont_fragment}: {e}"))?;
            if arrives != fits {
                return Err(format!("{size} bytes, DF {dont_fragment}: arrives {arrives}"));
            }
        }
    }
    Ok(())
}

/// Sends a datagram with that many bytes of data; without DF it may be fragmented. Either it
/// arrives, or (`false`) the sender's kernel reports that it is too long.
fn send_sized(
    from: &DemoPod,
    to: &DemoPod,
    address: IpAddr,
    dont_fragment: bool,
    bytes: usize,
) -> Outcome<bool> {
    let server = sockets::open(&to.namespace, || UdpSocket::bind((address, 0)))?;
    server.set_read_timeout(Some(RETRY)).map_err(|e| e.to_string())?;
    let target = server.local_addr().map_err(|e| e.to_string())?;
    let socket = client(from, address, dont_fragment)?;
    let (message, mut buffer) = (sockets::pattern(bytes), vec![0; 1 << 16]);
    for _ in 0..TRIES {
        match socket.send_to(&message, target) {
            Err(error) if is_too_long(&error) => return Ok(false),
            sent => sent.map_err(|e| format!("send: {e}"))?,
        };
        match server.recv_from(&mut buffer) {
            Ok((count, _)) if buffer[..count] == message => return Ok(true),
            Ok((count, _)) => return Err(format!("{count} other bytes arrive")),
            Err(_) => {}
        }
    }
    Err("nothing arrives".to_owned())
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

/// A socket that sets DF, or one that allows fragmentation by the sender and by routers.
fn client(from: &DemoPod, to: IpAddr, dont_fragment: bool) -> Outcome<UdpSocket> {
    let socket = sockets::open(&from.namespace, || UdpSocket::bind((sockets::unspecified(to), 0)))?;
    use {Ipv4PathMtuDiscovery as V4, Ipv6PathMtuDiscovery as V6};
    let set = match to {
        IpAddr::V4(_) => {
            set_ip_mtu_discover(&socket, if dont_fragment { V4::DO } else { V4::DONT })
        }
        IpAddr::V6(_) => {
            set_ipv6_mtu_discover(&socket, if dont_fragment { V6::DO } else { V6::DONT })
        }
    };
    set.map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(RETRY / 4)).map_err(|e| e.to_string())?;
    Ok(socket)
}

/// Calls `f` while a pod's interface has a larger MTU than its peers and the tunnel.
fn with_large_mtu<T>(world: &World, pod: &DemoPod, f: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let usual = world.mtu()?;
    set_mtu(world, pod, WIDE).map_err(|e| e.to_string())?;
    let outcome = f();
    set_mtu(world, pod, usual).map_err(|e| e.to_string())?;
    outcome
}

fn set_mtu(world: &World, pod: &DemoPod, mtu: u32) -> Result<(), HostError> {
    let mut ends = vec![(&pod.namespace, "eth0".to_owned())];
    if !pod.tap {
        let ours = switch_interface(&format!("demo/{}", pod.name));
        ends.push((&world.node_of(pod).switch_namespace, ours));
    }
    for (namespace, interface) in ends {
        let mut netlink = Netlink::open(namespace)?;
        let index = netlink.link(&interface)?.index;
        netlink.set_mtu(index, mtu)?;
    }
    Ok(())
}
