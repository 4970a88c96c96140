//! What the demo checks.

use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use switch_core::action::DropReason;
use switch_core::config::Gateway;
use switch_core::host::pod::{PodInterface, TapOptions, attach_tap, attach_veth, switch_interface};
use switch_core::host::{HostError, NetNs, Netlink};
use switch_core::port::Device;
use switch_core::port::af_packet::PacketConfig;
use switch_core::stats::WorkerCounters;
use wire::addr::Mac;

use super::frames::{self, Parties};
use super::report::Report;
use super::sockets::{self, Echo, Outcome};
use super::world::{DemoPod, FAR_AWAY, Family, NODE_ADDRESSES, World};
use crate::Done;
use crate::state::MTU;

/// Octets sent over TCP each way.
const STREAM: usize = 1 << 20;
/// Octets of a usual datagram, and of one that takes 41 fragments.
const DATAGRAM: usize = 512;
const JUMBO: usize = 60_000;
/// Forged frames of each kind.
const FORGED: usize = 1000;
/// How long counters may take to show what was sent.
const SHOWN: Duration = Duration::from_secs(3);

/// One end of a path.
struct Side<'a> {
    name: String,
    namespace: &'a NetNs,
    addresses: Family,
}

impl<'a> From<&'a DemoPod> for Side<'a> {
    fn from(pod: &'a DemoPod) -> Self {
        let name = format!("{} ({})", pod.name, pod.kind());
        Self { name, namespace: &pod.namespace, addresses: pod.addresses }
    }
}

/// Everybody reaches whom they should, as whom they should (P1, P2, P3).
pub(super) fn connectivity(world: &World, report: &mut Report) -> Done {
    let pod = |name: &str| Side::from(world.pod(name));
    let node = || Side {
        name: "node".to_owned(),
        namespace: &world.node_namespace,
        addresses: NODE_ADDRESSES,
    };
    let outside =
        || Side { name: "outside".to_owned(), namespace: &world.outside, addresses: FAR_AWAY };
    let paths = [
        (pod("red"), pod("green"), None),
        (pod("red"), pod("blue"), None),
        (pod("blue"), pod("green"), None),
        (pod("blue"), pod("black"), None),
        (node(), pod("red"), None),
        (node(), pod("blue"), None),
        (pod("red"), node(), None),
        (pod("blue"), node(), None),
        (pod("red"), outside(), Some(NODE_ADDRESSES)),
        (pod("blue"), outside(), Some(NODE_ADDRESSES)),
    ];
    for (from, to, seen_as) in paths {
        let seen_as = seen_as.unwrap_or(from.addresses);
        let (here, there) = (from.namespace, to.namespace);
        for ((family, address), (_, own)) in to.addresses.each().into_iter().zip(seen_as.each()) {
            let name = |what: &str| format!("{what} {} → {}, {family}", from.name, to.name);
            report.check(name("ping"), ping(here, address))?;
            let seen = sockets::tcp(here, there, address, STREAM);
            report.check(name("TCP"), expect_seen(seen, own))?;
            let seen = sockets::udp(here, there, address, DATAGRAM);
            report.check(name("UDP"), expect_seen(seen, own))?;
        }
    }
    Ok(())
}

fn ping(from: &NetNs, to: IpAddr) -> Outcome<()> {
    match sockets::ping(from, to, None)? {
        Echo::Reply(_) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn expect_seen(seen: Outcome<IpAddr>, own: IpAddr) -> Outcome<()> {
    match seen? {
        seen if seen == own => Ok(()),
        seen => Err(format!("it arrived from {seen}, not from {own}")),
    }
}

/// Large packets, TTL and path MTU.
pub(super) fn packets(world: &World, report: &mut Report) -> Done {
    let (red, green, blue) = (world.pod("red"), world.pod("green"), world.pod("blue"));
    for (from, to) in [(red, green), (red, blue), (blue, red)] {
        for (family, address) in to.addresses.each() {
            let seen = sockets::udp(&from.namespace, &to.namespace, address, JUMBO);
            let path = format!("{} → {}, {family}", from.name, to.name);
            report.check(format!("fragments: {JUMBO} octets of UDP {path}"), seen.map(drop))?;
        }
    }
    let lowered = match sockets::ping(&red.namespace, blue.addresses.v4.into(), None) {
        Ok(Echo::Reply(Some(63))) => Ok(()),
        other => Err(format!("{other:?} instead of a reply with TTL 63")),
    };
    report.check("TTL: a packet arrives with one less", lowered)?;
    for (family, address) in blue.addresses.each() {
        let told = match sockets::ping(&red.namespace, address, Some(1)) {
            Ok(Echo::Expired(_)) => Ok(()),
            other => Err(format!("{other:?} instead of time exceeded")),
        };
        report.check(format!("TTL: the sender is told when it is used up, {family}"), told)?;
    }
    for (family, address) in blue.addresses.each() {
        let found = path_mtu(world, red, blue, address);
        report.check(format!("path MTU: found by the switch's ICMP, {family}"), found)?;
    }
    Ok(())
}

/// Has a pod believe in a larger MTU than its peer has. Its first datagram is too big, of which
/// it is told; then it cuts them itself.
fn path_mtu(world: &World, from: &DemoPod, to: &DemoPod, address: IpAddr) -> Outcome<()> {
    const WIDE: u32 = 9000;
    let before = counted(world, DropReason::MtuExceeded);
    set_mtu(world, from, WIDE).map_err(|e| e.to_string())?;
    let outcome = sockets::udp(&from.namespace, &to.namespace, address, 3000);
    set_mtu(world, from, u32::from(MTU)).map_err(|e| e.to_string())?;
    outcome?;
    match counted(world, DropReason::MtuExceeded) > before {
        true => Ok(()),
        false => Err("nothing was too big".to_owned()),
    }
}

fn set_mtu(world: &World, pod: &DemoPod, mtu: u32) -> Result<(), HostError> {
    let mut ends = vec![(&pod.namespace, "eth0".to_owned())];
    if !pod.tap {
        let ours = switch_interface(&format!("demo/{}", pod.name));
        ends.push((&world.switch_namespace, ours));
    }
    for (namespace, interface) in ends {
        let mut netlink = Netlink::open(namespace)?;
        let index = netlink.link(&interface)?.index;
        netlink.set_mtu(index, mtu)?;
    }
    Ok(())
}

/// Nobody passes for somebody else (P5).
pub(super) fn spoofing(world: &World, report: &mut Report) -> Done {
    let (red, green, blue) = (world.pod("red"), world.pod("green"), world.pod("blue"));
    let parties = Parties {
        forger: (red.mac, red.addresses),
        forged: (green.mac, green.addresses),
        victim: blue.addresses,
        gateway: Gateway::default().mac,
    };
    let victims: Outcome<Vec<UdpSocket>> = blue
        .addresses
        .each()
        .into_iter()
        .map(|(_, a)| sockets::open(&blue.namespace, || UdpSocket::bind((a, frames::PORT))))
        .collect();
    for forgery in parties.forgeries() {
        let before = counted(world, forgery.reason);
        let outcome = frames::send(&red.namespace, &forgery.frame, FORGED).and_then(|()| {
            let all = || counted(world, forgery.reason) >= before + FORGED as u64;
            match wait_for(all) {
                true => Ok(()),
                false => Err(format!("not all were dropped as {}", forgery.reason.name())),
            }
        });
        report.check(format!("spoofing: {} is dropped", forgery.name), outcome)?;
    }
    let quiet = victims.and_then(|sockets| {
        sockets.iter().try_for_each(|socket| {
            socket.set_nonblocking(true).map_err(|e| e.to_string())?;
            match socket.recv_from(&mut [0; 64]) {
                Ok((_, from)) => Err(format!("a forged datagram from {from} arrived")),
                Err(_) => Ok(()),
            }
        })
    });
    report.check("spoofing: nothing forged arrives", quiet)
}

/// Nothing passes a port before a state knows it (N13).
pub(super) fn attachment(world: &mut World, report: &mut Report) -> Done {
    let outcome = stranger(world);
    report.check("fail-closed: a port that no state knows passes nothing", outcome)
}

/// Attaches a pod that no state tells of.
fn stranger(world: &mut World) -> Outcome<()> {
    let text = |e: HostError| e.to_string();
    let namespace = NetNs::anonymous().map_err(text)?;
    let mac = Mac([0x0a, 0x58, 10, 77, 0, 99]);
    let interface = PodInterface::new(mac, [IpAddr::from([10, 77, 0, 99])]);
    let device: Box<dyn Device> = if world.pod("red").tap {
        Box::new(attach_tap(&namespace, &interface, TapOptions::default()).map_err(text)?)
    } else {
        let (ours, name) = (&world.switch_namespace, switch_interface("demo/stranger"));
        let config = PacketConfig::default();
        Box::new(attach_veth(&namespace, &interface, ours, &name, config).map_err(text)?)
    };
    let before = counted(world, DropReason::EndpointNotReady);
    let port = world.node.control_mut().attach(device).map_err(|e| e.to_string())?;
    let answer = sockets::ping(&namespace, world.pod("red").addresses.v4.into(), None);
    let dropped = counted(world, DropReason::EndpointNotReady) - before;
    world.node.control_mut().detach(port).map_err(|e| e.to_string())?;
    match (answer, dropped) {
        (Ok(answer), _) => Err(format!("{answer:?}")),
        (Err(_), 0) => Err("what it sent was not dropped as endpoint_not_ready".to_owned()),
        (Err(_), _) => Ok(()),
    }
}

/// Every frame has gone somewhere.
pub(super) fn sums(world: &World, report: &mut Report) -> Done {
    let sum = |count: &dyn Fn(&WorkerCounters) -> u64| {
        world.node.control().workers().map(|w| count(&w.counters)).fold(0, u64::wrapping_add)
    };
    let add_up = || {
        let ended = sum(&|c| c.forwarded.get())
            .wrapping_add(sum(&|c| c.consumed.get()))
            .wrapping_add(sum(&|c| c.dropped_total()));
        sum(&|c| c.received.get()) == ended
    };
    // Now and then a frame is on its way just then.
    let outcome = if wait_for(add_up) { Ok(()) } else { Err("they do not add up".to_owned()) };
    report.check("counters: received = forwarded + consumed + dropped", outcome)
}

/// Frames that all workers dropped for a reason.
fn counted(world: &World, reason: DropReason) -> u64 {
    world.node.control().workers().map(|w| w.counters.dropped(reason)).sum()
}

fn wait_for(mut done: impl FnMut() -> bool) -> bool {
    let step = Duration::from_millis(5);
    for _ in 0..SHOWN.as_millis() / step.as_millis() {
        if done() {
            return true;
        }
        thread::sleep(step);
    }
    done()
}
