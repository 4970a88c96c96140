//! A pod cannot use another pod's addresses (P5), and a host on the underlay cannot use a node's
//! (T-O1 to T-O6).

use std::net::UdpSocket;

use podswitch_linux::{NetNs, Netlink};

use super::{gateway, wait_for};
use crate::Done;
use crate::demo::frames::{self, Forgery, Parties, tunnel};
use crate::demo::report::Report;
use crate::demo::sockets::{self, Outcome};
use crate::demo::world::{DemoNode, DemoPod, OUTSIDE, SEGMENT, UPLINK, World};

/// Forged frames of each kind.
const FORGED: usize = 1000;

/// A pod forges the addresses of another.
pub(in crate::demo) fn spoofing(world: &World, report: &mut Report) -> Done {
    let (red, green, blue) = (world.pod("red"), world.pod("green"), world.pod("blue"));
    let parties = Parties {
        forger: (red.mac, red.addresses),
        forged: (green.mac, green.addresses),
        victim: blue.addresses,
        gateway: gateway().mac,
    };
    let victims = listen(&[blue]);
    for forgery in parties.forgeries() {
        let outcome = try_out(&forgery, &red.namespace, "eth0", &world.nodes[0]);
        report.check(format!("spoofing: {} is dropped", forgery.name), outcome)?;
    }
    report.check("spoofing: nothing forged arrives", quiet(victims))
}

/// A pod, and an unknown host on the underlay, forge tunnel packets.
pub(in crate::demo) fn tunnel_spoofing(world: &World, report: &mut Report) -> Done {
    let (red, cyan, white) = (world.pod("red"), world.pod("cyan"), world.pod("white"));
    let [one, two] = &world.nodes;
    let victims = listen(&[cyan, white]);
    let parties = |outer_macs, unknown| tunnel::Parties {
        outer_macs,
        unknown,
        nodes: [one.addresses, two.addresses],
        known: red.addresses,
        victim: cyan.addresses,
        neighbour: white.addresses,
    };
    let from_pod = parties((red.mac, gateway().mac), red.addresses).of_pod();
    for forgery in from_pod {
        let outcome = try_out(&forgery, &red.namespace, "eth0", one);
        report.check(format!("spoofed VXLAN: {} is dropped", forgery.name), outcome)?;
    }
    let macs = mac_of(&world.outside, SEGMENT)
        .and_then(|from| mac_of(&two.namespace, UPLINK).map(|to| (from, to)));
    let macs = match macs {
        Ok(macs) => macs,
        Err(error) => return report.check("spoofed VXLAN: from the underlay", Err(error)),
    };
    for forgery in parties(macs, OUTSIDE).of_underlay() {
        let outcome = try_out(&forgery, &world.outside, SEGMENT, two);
        report.check(format!("spoofed VXLAN: {} is dropped", forgery.name), outcome)?;
    }
    report.check("spoofed VXLAN: nothing forged arrives", quiet(victims))
}

fn mac_of(namespace: &NetNs, interface: &str) -> Outcome<podswitch_wire::addr::Mac> {
    let link = Netlink::open(namespace).and_then(|mut netlink| netlink.link(interface));
    link.map_err(|e| e.to_string())?.mac.ok_or_else(|| format!("{interface} has no MAC address"))
}

/// Sends forged frames through an interface; the receiving switch must drop all of them, for the
/// expected reason.
fn try_out(forgery: &Forgery, from: &NetNs, interface: &str, at: &DemoNode) -> Outcome<()> {
    let before = at.dropped(forgery.reason);
    frames::send(from, interface, &forgery.frame, FORGED)?;
    if wait_for(|| at.dropped(forgery.reason) >= before + FORGED as u64) {
        return Ok(());
    }
    let dropped = at.dropped(forgery.reason) - before;
    Err(format!("{dropped} of {FORGED} were dropped as {}", forgery.reason.name()))
}

/// Sockets that forged datagrams would arrive at.
fn listen(pods: &[&DemoPod]) -> Outcome<Vec<UdpSocket>> {
    let mut victims = Vec::new();
    for pod in pods {
        for (_, address) in pod.addresses.each() {
            let bind = || UdpSocket::bind((address, frames::PORT));
            victims.push(sockets::open(&pod.namespace, bind)?);
        }
    }
    Ok(victims)
}

fn quiet(victims: Outcome<Vec<UdpSocket>>) -> Outcome<()> {
    victims?.iter().try_for_each(|socket| {
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        match socket.recv_from(&mut [0; 64]) {
            Ok((_, from)) => Err(format!("a forged datagram from {from} arrived")),
            Err(_) => Ok(()),
        }
    })
}
