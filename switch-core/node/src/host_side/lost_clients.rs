//! Clients outside the cluster whose connections a killed switch had translated.
//!
//! A server that speaks first does so to an SNAT port that nobody knows any more: it gets a reset, but its client, which
//! only listens, would wait for ever. The node's kernel has seen the client's packets, and tracks the connection. The
//! client is sent a bare acknowledgment from the address that it is connected to, outside every window. It answers with its
//! real numbers (RFC 9293 §3.10.7.4), and the switch, which knows nothing of the connection, resets it.

use std::net::SocketAddr;

use etherparse::PacketBuilder;
use podswitch_core::control::ControlPlane;
use podswitch_core::snapshot::Snapshot;
use podswitch_linux::NetNs;
use podswitch_linux::nft::conntrack;
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::table::FrontendKind;
use podswitch_wire::flow_key::{FlowKey, proto};

/// Most clients that are asked: each is one command to a worker.
const CLIENTS: usize = 16_384;

/// Asks the clients of this node's Service addresses that the kernel knows of and the switch does not. Once, when
/// the switch has started. Returns how many were asked.
pub(super) fn ask(namespace: &NetNs, control: &ControlPlane) -> usize {
    let snapshot = control.snapshot();
    let mut fronts: Vec<SocketAddr> = snapshot
        .services
        .frontends()
        .filter(|f| f.protocol == Protocol::Tcp && f.kind != FrontendKind::ClusterIp)
        .map(|front| SocketAddr::new(front.address, front.port))
        .collect();
    if fronts.is_empty() {
        return 0;
    }
    fronts.sort_unstable();
    // Without tracking by the kernel nobody knows them.
    let Ok(tracked) = conntrack::established(namespace) else { return 0 };
    let tracker = &control.shared().tracker;
    let lost = tracked.into_iter().filter(|(client, front)| {
        // Connections that were restored are not lost.
        let key = FlowKey::new(client.ip(), front.ip(), proto::TCP, client.port(), front.port());
        fronts.binary_search(front).is_ok() && !key.is_some_and(|key| tracker.is_taken(&key))
    });
    let mut asked = 0;
    for (client, front) in lost.take(CLIENTS) {
        // At least one of two numbers that far apart is outside the client's window (RFC 7323 §2.3).
        for number in [0, 1 << 31] {
            let Some((port, frame)) = question(&snapshot, front, client, number) else {
                return asked;
            };
            control.send(port, &frame);
        }
        asked += 1;
    }
    asked
}

/// A bare acknowledgment from `front` to `client`, by the node's stack.
fn question(
    snapshot: &Snapshot,
    front: SocketAddr,
    client: SocketAddr,
    number: u32,
) -> Option<(podswitch_core::id::PortId, Vec<u8>)> {
    let host = snapshot.host?;
    let builder = PacketBuilder::ethernet2(snapshot.gateway.mac.0, host.mac.0);
    let builder = match (front, client) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            builder.ipv4(from.ip().octets(), to.ip().octets(), 64)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            builder.ipv6(from.ip().octets(), to.ip().octets(), 64)
        }
        _ => return None,
    };
    let builder = builder.tcp(front.port(), client.port(), number, 0).ack(number);
    let mut frame = Vec::with_capacity(builder.size(0));
    // A vector takes everything.
    builder.write(&mut frame, &[]).ok()?;
    Some((host.port, frame))
}
