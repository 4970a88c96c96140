//! Connections for display and export, with names instead of numbers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::control::ControlPlane;
use podswitch_core::flow::connection::ConnectionInfo;
use podswitch_core::flow::tcp::TcpState;
use podswitch_core::snapshot::Snapshot;
use podswitch_wire::flow_key::proto;
use serde::Serialize;

/// A connection that the switch tracks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Flow {
    /// Address of the client.
    pub src: IpAddr,
    /// The address that the client connects to, such as a Service's.
    pub dst: IpAddr,
    /// Port of the client; for ICMP the identifier.
    pub sport: u16,
    /// The port that the client connects to.
    pub dport: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The client, `namespace/name`, if it is a pod.
    pub src_pod: Option<String>,
    /// The server, if it is a pod.
    pub dst_pod: Option<String>,
    /// The Service that the client connects to, `Service/namespace/name`.
    pub service: Option<String>,
    /// The backend that serves it, if that is not the address that the client connects to.
    pub backend: Option<SocketAddr>,
    /// State of a TCP connection; `None` for other protocols.
    pub state: Option<&'static str>,
    /// Packets and bytes from the client.
    pub packets: u64,
    /// Bytes from the client.
    pub bytes: u64,
    /// Packets from the server.
    pub reply_packets: u64,
    /// Bytes from the server.
    pub reply_bytes: u64,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { src, dst, sport, dport, .. } = *self;
        match self.protocol {
            proto::TCP => write!(f, "TCP ")?,
            proto::UDP => write!(f, "UDP ")?,
            proto::SCTP => write!(f, "SCTP ")?,
            proto::ICMP | proto::ICMPV6 => write!(f, "ICMP ")?,
            other => write!(f, "protocol {other} ")?,
        }
        write!(f, "{} -> {}", SocketAddr::new(src, sport), SocketAddr::new(dst, dport))?;
        if let Some(backend) = self.backend {
            write!(f, " = {backend}")?;
        }
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        write!(f, " ({} -> {}", name(&self.src_pod), name(&self.dst_pod))?;
        if let Some(service) = &self.service {
            write!(f, " by {service}")?;
        }
        let (packets, bytes) = (self.packets, self.bytes);
        write!(
            f,
            ") {packets}/{} packets, {bytes}/{} bytes",
            self.reply_packets, self.reply_bytes
        )?;
        self.state.map_or(Ok(()), |state| write!(f, ", {state}"))
    }
}

/// Service names by frontend.
pub(crate) type Services = HashMap<(IpAddr, u8, u16), Arc<str>>;

/// The names of the Services of a snapshot.
pub(crate) fn services(snapshot: &Snapshot) -> Services {
    let frontends = snapshot.services.frontends();
    frontends.map(|f| ((f.address, f.protocol.number(), f.port), f.entry.cookie.clone())).collect()
}

/// All live connections.
pub(crate) fn list(control: &ControlPlane) -> Vec<Flow> {
    let snapshot = control.snapshot();
    let services = services(&snapshot);
    control.connections().iter().map(|info| Flow::of(info, &snapshot, &services)).collect()
}

impl Flow {
    /// A connection, with names from `snapshot`.
    pub(crate) fn of(info: &ConnectionInfo, snapshot: &Snapshot, services: &Services) -> Self {
        let (original, reply) = (&info.pinned.original, &info.pinned.reply);
        let pod = |address: IpAddr| {
            let workload = &snapshot.endpoints.get(&address)?.endpoint.workload;
            // Pods with their node's network share the node's address.
            (!workload.host_network).then(|| format!("{}/{}", workload.namespace, workload.name))
        };
        let (src, dst, server) = (original.src_addr(), original.dst_addr(), reply.src_addr());
        let is_service = info.pinned.is_via_service();
        let frontend = (dst, original.proto, original.dst_port);
        Self {
            src,
            dst,
            sport: original.src_port,
            dport: original.dst_port,
            protocol: original.proto,
            src_pod: pod(src),
            dst_pod: pod(server),
            service: services.get(&frontend).filter(|_| is_service).map(ToString::to_string),
            backend: is_service.then(|| SocketAddr::new(server, reply.src_port)),
            state: info.tcp.map(|[client, server]| state(client, server)),
            packets: info.packets[0],
            bytes: info.bytes[0],
            reply_packets: info.packets[1],
            reply_bytes: info.bytes[1],
        }
    }
}

/// All states of a TCP connection.
pub(crate) const STATES: [&str; 5] = ["opening", "established", "closing", "closed", "reset"];

/// The state of a TCP connection, from those of its two sides: one of [`STATES`].
pub(crate) fn state(client: TcpState, server: TcpState) -> &'static str {
    use TcpState::{Closed, Closing, Established, Reset};
    match (client, server) {
        (Reset, _) | (_, Reset) => "reset",
        (Closed, Closed) => "closed",
        (Closing | Closed, _) | (_, Closing | Closed) => "closing",
        (Established, Established) => "established",
        _ => "opening",
    }
}
