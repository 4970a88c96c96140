//! Clients outside the cluster whose translated connections a killed switch has lost.
//!
//! If the server sends first, it sends to an SNAT port that is no longer known and gets a reset.
//! But a client that only listens would wait forever. The node's kernel has seen the client's
//! packets and tracks the connection. So the client is sent a bare acknowledgment from the address
//! that it is connected to, outside every window. It answers with its current sequence numbers (RFC
//! 9293 §3.10.7.4), and the switch, which does not know the connection, resets it.

use std::net::SocketAddr;

use etherparse::PacketBuilder;
use podswitch_core::control::ControlPlane;
use podswitch_core::snapshot::Snapshot;
use podswitch_linux::NetNs;
use podswitch_linux::nft::conntrack;
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::table::FrontendKind;
use podswitch_wire::flow_key::{FlowKey, proto};

/// Maximum number of clients that are probed. Each is one command to a worker.
const CLIENTS: usize = 16_384;

/// Probes the clients of this node's Service addresses that the kernel tracks and the switch does
/// not know. Called once, when the switch has started. Returns the number of probed clients.
pub(super) fn ask(namespace: &NetNs, control: &ControlPlane) -> usize {
    let snapshot = control.snapshot();
    let mut service_addresses: Vec<SocketAddr> = snapshot
        .services
        .frontends()
        .filter(|f| f.protocol == Protocol::Tcp && f.kind != FrontendKind::ClusterIp)
        .map(|front| SocketAddr::new(front.address, front.port))
        .collect();
    if service_addresses.is_empty() {
        return 0;
    }
    service_addresses.sort_unstable();
    // Without connection tracking in the kernel, the clients are unknown.
    let Ok(tracked) = conntrack::established(namespace) else { return 0 };
    let tracker = &control.shared().tracker;
    let lost = tracked.into_iter().filter(|(client, front)| {
        // Connections that were restored are not lost.
        let key = FlowKey::new(client.ip(), front.ip(), proto::TCP, client.port(), front.port());
        service_addresses.binary_search(front).is_ok()
            && !key.is_some_and(|key| tracker.is_taken(&key))
    });
    let mut asked = 0;
    for (client, front) in lost.take(CLIENTS) {
        // At least one of two numbers that are so far apart is outside the client's window (RFC
        // 7323 §2.3).
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

/// A bare acknowledgment from `front` to `client`, sent by the node's stack.
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
    // Writing to a vector cannot fail.
    builder.write(&mut frame, &[]).ok()?;
    Some((host.port, frame))
}
