//! Every endpoint reaches the endpoints that it should, with the correct source address.

use std::net::SocketAddr;

use podswitch_linux::NetNs;

use super::{expect_seen, ping, refused_by_tcp, refused_by_udp};
use crate::Done;
use crate::demo::report::Report;
use crate::demo::sockets;
use crate::demo::world::{DemoPod, FAR_AWAY, Family, World};

/// Bytes sent over TCP in each direction, and in a datagram.
const STREAM: usize = 1 << 20;
const DATAGRAM: usize = 512;
/// A port without a listener.
const CLOSED: u16 = 9;

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

/// Ping, TCP and UDP over every kind of path. The callee sees the caller's own address; outside the
/// cluster it sees the caller's node (P1, P2, P3).
pub(in crate::demo) fn connectivity(world: &World, report: &mut Report) -> Done {
    let pod = |name: &str| Side::from(world.pod(name));
    let node = |number: usize| Side {
        name: ["node one", "node two"][number].to_owned(),
        namespace: &world.nodes[number].namespace,
        addresses: world.nodes[number].addresses,
    };
    let outside =
        || Side { name: "outside".to_owned(), namespace: &world.outside, addresses: FAR_AWAY };
    let masqueraded_by = |number: usize| Some(world.nodes[number].addresses);
    let paths = [
        // Within node one.
        (pod("red"), pod("green"), None),
        (pod("red"), pod("blue"), None),
        (pod("blue"), pod("green"), None),
        (pod("blue"), pod("black"), None),
        (node(0), pod("red"), None),
        (node(0), pod("blue"), None),
        (pod("red"), node(0), None),
        (pod("blue"), node(0), None),
        (pod("red"), outside(), masqueraded_by(0)),
        (pod("blue"), outside(), masqueraded_by(0)),
        // Through the tunnel.
        (pod("red"), pod("cyan"), None),
        (pod("red"), pod("white"), None),
        (pod("blue"), pod("cyan"), None),
        (pod("blue"), pod("white"), None),
        (pod("cyan"), pod("green"), None),
        (pod("white"), pod("black"), None),
        (node(0), pod("cyan"), None),
        (node(1), pod("blue"), None),
        (pod("red"), node(1), None),
        (pod("white"), node(0), None),
        // And out of node two.
        (pod("cyan"), outside(), masqueraded_by(1)),
    ];
    for (from, to, seen_as) in paths {
        let seen_as = seen_as.unwrap_or(from.addresses);
        let (here, there) = (from.namespace, to.namespace);
        for (family, address) in to.addresses.each() {
            let own = seen_as.like(address);
            let name = |what: &str| format!("{what} {} → {}, {family}", from.name, to.name);
            report.check(name("ping"), ping(here, address))?;
            let seen = sockets::tcp(here, there, address, STREAM);
            report.check(name("TCP"), expect_seen(seen, own))?;
            let seen = sockets::udp(here, there, address, DATAGRAM);
            report.check(name("UDP"), expect_seen(seen, own))?;
        }
    }
    // There is no listener: the pod's own refusal comes back through the tunnel.
    let (red, cyan) = (world.pod("red"), world.pod("cyan"));
    for (family, address) in cyan.addresses.each() {
        let target = SocketAddr::new(address, CLOSED);
        let refused = refused_by_tcp(&red.namespace, target);
        report.check(format!("closed port: TCP red → cyan is refused, {family}"), refused)?;
        let refused = refused_by_udp(&red.namespace, target);
        report.check(format!("closed port: UDP red → cyan is refused, {family}"), refused)?;
    }
    Ok(())
}
