//! Address selection for a new connection: its backend if it goes to a Service (DNAT), and the
//! address that replaces its source (SNAT, masquerade). Rules S1 to S9, S16 and P3.
//!
//! Called by `resolve` for the first packet of a connection. Counts nothing and keeps no state: the
//! result is written into the connection's [`Pinned`] facts.

use std::net::{IpAddr, SocketAddr};

use podswitch_policy::service::entry::Scope;
use podswitch_policy::service::table::{
    Chosen, DropReason as ServiceDrop, Found, Origin, Prefetched, RejectReason, Subject,
};
use podswitch_wire::flow_key::{FlowKey, to_bytes};

use super::affinity::Affinity;
use crate::id::PortId;
use crate::pinned::{Pinned, SourceNat};
use crate::snapshot::{PortFacts, Snapshot};

/// The Service port and backend of a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Served<'s> {
    /// Service port and backend.
    pub chosen: Chosen<'s>,
    /// For how many seconds the client stays with this backend (S9).
    pub affinity: Option<u32>,
}

/// Why a connection to a Service gets no backend.
#[derive(Clone, Copy, Debug)]
pub enum Refusal<'s> {
    /// The client gets an error (S5, S6).
    Reject(RejectReason, Subject<'s>),
    /// The packet is dropped without an answer (S3, S4, S6, S7).
    Drop(ServiceDrop, Subject<'s>),
}

/// The fields of a connection's first packet that address selection needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstPacket<'a, 's> {
    /// Its key.
    pub(crate) key: &'a FlowKey,
    /// The port that it was received on.
    pub(crate) ingress: PortId,
    /// Session affinity and the current second. `None`: no client has affinity.
    pub(crate) affinity: Option<(&'a Affinity, u32)>,
    /// The backend that the connection is known to have.
    pub(crate) backend: Option<SocketAddr>,
    /// The frontend, if it was looked up in advance.
    pub(crate) frontend: Option<&'a Prefetched<'s>>,
}

/// Selects the backend of a new connection to a Service and writes it into `pinned`: the source of
/// the replies, and also their destination if replies to the client's own address would not return
/// to this node (S8). `None`: the destination is not a Service.
///
/// `returns_to_host`: whether the packet of a connection with these facts would go back to the
/// node's own stack, from which it came.
///
/// # Errors
/// The Service rejects or drops the connection.
pub(crate) fn backend<'s>(
    snapshot: &'s Snapshot,
    packet: &FirstPacket<'_, 's>,
    pinned: &mut Pinned,
    returns_to_host: impl FnOnce(&Pinned) -> bool,
) -> Result<Option<Served<'s>>, Refusal<'s>> {
    let key = packet.key;
    let client = key.src_addr();
    let is_pod = matches!(snapshot.port(packet.ingress), PortFacts::Pod(_));
    let is_from_node = snapshot.host.is_some_and(|host| host.port == packet.ingress);
    if is_loopback(key.dst_addr()) && !is_from_node {
        // A host port at 127.0.0.1 or ::1 is for the node's own processes (T-S4).
        return Ok(None);
    }
    let table = &snapshot.services;
    let in_cluster = is_pod || snapshot.is_cluster_address(client);
    let origin = if in_cluster { Origin::InCluster } else { Origin::OffCluster };
    let found = match packet.frontend {
        Some(frontend) => table.find_prefetched(frontend, key, origin),
        None => table.find(key, origin),
    };
    let found = match found {
        Found::NotAService => return Ok(None),
        Found::Service(found) => found,
        Found::Reject(reason, subject) => return Err(Refusal::Reject(reason, subject)),
        Found::Drop(reason, subject) => return Err(Refusal::Drop(reason, subject)),
    };
    let affinity = found.affinity();
    let sticky = match (affinity, packet.affinity) {
        (Some(_), Some((clients, now))) => clients.get(found.entry.id, client, now),
        _ => None,
    };
    let chosen = match packet.backend {
        Some(backend) => found.kept(backend, key),
        None => sticky
            .and_then(|backend| found.pinned(backend, key))
            .or_else(|| table.choose(&found, key)),
    };
    let chosen = chosen.ok_or_else(|| {
        let subject = Subject { cookie: Some(&found.entry.cookie), entry: None };
        Refusal::Reject(RejectReason::NoEndpoints, subject)
    })?;
    let backend = chosen.backend();
    pinned.reply.src = to_bytes(backend.address).0;
    pinned.reply.src_port = backend.port;
    let is_hairpin = backend.address == client;
    // Client and backend are both elsewhere: replies would not pass through this node.
    let is_transit = in_cluster
        && !is_pod
        && !snapshot.node_addresses.contains(&client)
        && !snapshot.is_local_pod(backend.address);
    // With policy Local a server of the node sees the client's address (S3). The node's stack sends
    // its replies to the switch, see `podswitch_linux::nft`.
    let is_on_node = snapshot.node_addresses.contains(&backend.address);
    let keeps_client = is_on_node && !in_cluster && chosen.scope == Scope::Local;
    let returns_to_host = is_from_node && !keeps_client && (is_on_node || returns_to_host(pinned));
    if chosen.needs_snat || is_hairpin || is_transit || returns_to_host || is_loopback(client) {
        // A network stack accepts no packet from the wire that has one of its own addresses as
        // source. This holds for a pod's stack and for the node's.
        let is_own_address = is_hairpin && snapshot.is_local_pod(client) || is_on_node;
        let address = if is_own_address {
            snapshot.gateway_address(client)
        } else {
            snapshot.own_address(client)
        };
        set_source(pinned, address, SourceNat::Connection);
    }
    Ok(Some(Served { chosen, affinity }))
}

/// Whether an address is one of 127.0.0.0/8 or ::1.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

/// Replaces the source of a connection from a pod to a destination outside the cluster with the
/// egress address (P3).
pub(crate) fn masquerade(snapshot: &Snapshot, ingress: PortId, pinned: &mut Pinned) {
    if pinned.source_nat != SourceNat::Kept {
        return;
    }
    let Some(masquerade) = &snapshot.masquerade else { return };
    let destination = pinned.reply.src_addr();
    if !matches!(snapshot.port(ingress), PortFacts::Pod(_)) {
        return;
    }
    if let Some(egress) = masquerade.source(destination)
        && !snapshot.is_cluster_address(destination)
    {
        set_source(pinned, egress, SourceNat::Endpoint);
    }
}

/// Sets the SNAT address. The port remains the client's until the connection is opened, which
/// leases one (see [`ports`](super::ports)).
fn set_source(pinned: &mut Pinned, address: IpAddr, how: SourceNat) {
    pinned.reply.dst = to_bytes(address).0;
    pinned.source_nat = how;
}
