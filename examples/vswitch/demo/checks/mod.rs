//! What the demo checks. The pods' names tell whether a path crosses the tunnel: red, green, blue
//! and black are on node one, cyan and white on node two.

mod connectivity;
#[cfg(feature = "ingress")]
mod https;
mod names;
mod objects;
mod packets;
mod policy;
mod services;
mod spoofing;
mod wire_format;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::config::Gateway;
use podswitch_core::port::Device;
use podswitch_linux::attach::{
    PodInterface, TapOptions, attach_tap, attach_veth, switch_interface,
};
use podswitch_linux::port::af_packet::PacketConfig;
use podswitch_linux::{HostError, NetNs};
use podswitch_wire::addr::Mac;

use super::report::Report;
use super::servers;
use super::sockets::{self, Echo, Outcome, PATIENCE, TRIES};
use super::world::World;
use crate::Done;
pub(super) use connectivity::connectivity;
#[cfg(feature = "ingress")]
pub(super) use https::https;
pub(super) use names::names;
pub(super) use packets::{narrow_underlay, packets};
pub(super) use policy::policy;
pub(super) use services::services;
pub(super) use spoofing::{spoofing, tunnel_spoofing};
pub(super) use wire_format::wire_format;

/// How long until counters must show what was sent.
const SHOWN: Duration = Duration::from_secs(3);

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

/// A connection is rejected at once.
fn refused_by_tcp(from: &NetNs, to: SocketAddr) -> Outcome<()> {
    let connect = || Ok(TcpStream::connect_timeout(&to, PATIENCE));
    match sockets::open(from, connect)? {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(_) => Err("the connection is accepted".to_owned()),
    }
}

/// A datagram is answered with ICMP port unreachable.
fn refused_by_udp(from: &NetNs, to: SocketAddr) -> Outcome<()> {
    let socket = servers::udp_client(from, to)?;
    let mut last = "no response".to_owned();
    for _ in 0..TRIES {
        match servers::ask_once(&socket) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
            Err(error) => last = error.to_string(),
            Ok(answer) => return Err(format!("{answer:?}")),
        }
    }
    Err(last)
}

/// Nothing passes a port that no snapshot knows (N13).
pub(super) fn attachment(world: &mut World, report: &mut Report) -> Done {
    let outcome = unknown_port(world);
    report.check("fail-closed: a port that no snapshot knows passes nothing", outcome)
}

/// Attaches a pod that no snapshot knows.
fn unknown_port(world: &mut World) -> Outcome<()> {
    let text = |e: HostError| e.to_string();
    let namespace = NetNs::anonymous().map_err(text)?;
    let mac = Mac([0x0a, 0x58, 10, 77, 0, 99]);
    let interface = PodInterface::new(mac, [IpAddr::from([10, 77, 0, 99])]);
    let (tap, known) = (world.pod("red").tap, world.pod("red").addresses.v4.into());
    let node = &mut world.nodes[0];
    let device: Box<dyn Device> = if tap {
        Box::new(attach_tap(&namespace, &interface, TapOptions::default()).map_err(text)?)
    } else {
        let (ours, name) = (&node.switch_namespace, switch_interface("demo/unknown"));
        let config = PacketConfig::default();
        Box::new(attach_veth(&namespace, &interface, ours, &name, config).map_err(text)?)
    };
    let before = node.dropped(DropReason::EndpointNotReady);
    let port = node.node.control_mut().attach(device).map_err(|e| e.to_string())?;
    let answer = sockets::ping(&namespace, known, None);
    let dropped = node.dropped(DropReason::EndpointNotReady) - before;
    node.node.control_mut().detach(port).map_err(|e| e.to_string())?;
    match (answer, dropped) {
        (Ok(answer), _) => Err(format!("{answer:?}")),
        (Err(_), 0) => Err("what it sent was not dropped as endpoint_not_ready".to_owned()),
        (Err(_), _) => Ok(()),
    }
}

/// On both nodes every frame is accounted for.
pub(super) fn sums(world: &World, report: &mut Report) -> Done {
    for (node, title) in world.nodes.iter().zip(["one", "two"]) {
        let add_up = || {
            let ended = node.sum(|c| {
                let passed = c.forwarded.get().wrapping_add(c.consumed.get());
                passed.wrapping_add(c.dropped_total())
            });
            node.sum(|c| c.received.get()) == ended
        };
        // A frame may be in transit at that moment.
        let outcome = if wait_for(add_up) { Ok(()) } else { Err("they do not add up".to_owned()) };
        let name = format!("counters of node {title}: received = forwarded + consumed + dropped");
        report.check(name, outcome)?;
    }
    Ok(())
}

/// The gateway as pods see it.
fn gateway() -> Gateway {
    Gateway::default()
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
