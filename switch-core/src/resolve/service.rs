//! Services: which backend a new connection takes, and what becomes of its source (S1–S9, P3).

use std::net::IpAddr;

use podswitch_policy::service::entry::Scope;
use podswitch_policy::service::table::{
    Chosen, DropReason as ServiceDrop, Found, Origin, RejectReason, Standing, Subject,
};
use podswitch_wire::flow_key::{FlowKey, proto, to_bytes};

use super::source::is_loopback_v4;
use super::{Answer, Denial, Likely, Query, route};
use crate::action::DropReason;
use crate::flow::connection::{Pinned, SourceNat};
use crate::id::Cookie;
use crate::snapshot::{EndpointFacts, FibEntry, PortFacts, Snapshot};

/// The Service that a new connection was given a backend by.
#[derive(Clone, Copy, Debug)]
pub struct Served<'s> {
    /// Service port and backend.
    pub chosen: Chosen<'s>,
    /// Seconds that the client is to be pinned to the backend (S9).
    pub affinity: Option<u32>,
}

/// Finds the backend of a new connection and writes it into `pinned`: the answers' source, and
/// their destination where the client's own address would not bring them back here (S8).
///
/// # Errors
/// The Service refuses or drops the connection.
pub(super) fn translate<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    pinned: &mut Pinned,
    likely: Option<&Likely<'s>>,
) -> Result<Option<Served<'s>>, Denial> {
    let key = query.key;
    let client = key.src_addr();
    let is_pod = matches!(snapshot.port(query.ingress), PortFacts::Pod(_));
    if is_loopback_v4(key.dst_addr()) && !is_from_node(snapshot, query) {
        // Host ports at 127.0.0.1 are for the node's own processes (T-S4).
        return Ok(None);
    }
    let table = &snapshot.services;
    let in_cluster = is_pod || snapshot.is_cluster_address(client);
    let origin = if in_cluster { Origin::InCluster } else { Origin::OffCluster };
    let found = match likely {
        Some(likely) => table.find_looked(&likely.service, key, origin),
        None => table.find(key, origin),
    };
    let found = match found {
        Found::NotAService => return Ok(None),
        Found::Service(found) => found,
        Found::Reject(reason, subject) => return Err(rejected(reason, &subject)),
        Found::Drop(reason, subject) => return Err(dropped(reason, &subject)),
    };
    let affinity = found.affinity();
    let pin = match (affinity, query.pins) {
        (Some(_), Some((pins, now))) => pins.get(found.entry.id, client, now),
        _ => None,
    };
    let chosen = match query.backend {
        Some(backend) => found.kept(backend, key),
        None => {
            pin.and_then(|backend| found.pinned(backend, key)).or_else(|| table.choose(&found, key))
        }
    };
    let chosen = chosen
        .ok_or_else(|| rejected(RejectReason::NoEndpoints, &subject_of(&found.entry.cookie)))?;
    let backend = chosen.backend();
    pinned.reply.src = to_bytes(backend.address).0;
    pinned.reply.src_port = backend.port;
    let is_hairpin = backend.address == client;
    // Answers of a backend elsewhere to a client elsewhere would not come by here.
    let is_transit = in_cluster
        && !is_pod
        && !snapshot.node_addresses.contains(&client)
        && !snapshot.is_local_pod(backend.address);
    // The node's stack hands the answers of its own server back where it is told to keep the client's
    // address (S3).
    let is_on_node = snapshot.node_addresses.contains(&backend.address);
    let keeps_client = is_on_node && !in_cluster && chosen.scope == Scope::Local;
    let is_back_to_host = is_from_node(snapshot, query)
        && !keeps_client
        && (is_on_node || route::is_back_to_host(snapshot, query, pinned));
    if chosen.needs_snat || is_hairpin || is_transit || is_back_to_host || is_loopback_v4(client) {
        // A stack takes nothing from an address of its own off a wire, be it a pod's or the node's.
        let is_its_own = is_hairpin && snapshot.is_local_pod(client) || is_on_node;
        let address = if is_its_own {
            snapshot.gateway_address(client)
        } else {
            snapshot.own_address(client)
        };
        hide(pinned, address, SourceNat::Connection);
    }
    Ok(Some(Served { chosen, affinity }))
}

/// Whether a packet came by the node's own port.
fn is_from_node(snapshot: &Snapshot, query: &Query<'_>) -> bool {
    snapshot.host.is_some_and(|host| host.port == query.ingress)
}

/// Puts the egress address in the place of a pod's where it leaves the cluster (P3).
pub(super) fn masquerade(snapshot: &Snapshot, query: &Query<'_>, pinned: &mut Pinned) {
    if pinned.source_nat != SourceNat::Kept {
        return;
    }
    let Some(masquerade) = &snapshot.masquerade else { return };
    let destination = pinned.reply.src_addr();
    if !matches!(snapshot.port(query.ingress), PortFacts::Pod(_)) {
        return;
    }
    if let Some(egress) = masquerade.source(destination)
        && !snapshot.is_cluster_address(destination)
    {
        hide(pinned, egress, SourceNat::Endpoint);
    }
}

/// The client's port stays for now: whoever opens the connection puts one of the address's own
/// in its place.
fn hide(pinned: &mut Pinned, address: IpAddr, how: SourceNat) {
    pinned.reply.dst = to_bytes(address).0;
    pinned.source_nat = how;
}

/// What is to be done with a known connection to a Service whose state may have changed (S10,
/// S11). Asked for packets of the original direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It goes on.
    Stays,
    /// It ends, and its packet is judged as a new connection's.
    Anew,
    /// It ends, and the client is told.
    Reset,
}

/// See [`Fate`]. `begins`: the packet opens the connection, which nobody has answered yet.
pub fn fate(snapshot: &Snapshot, pinned: &Pinned, begins: bool) -> Fate {
    let protocol = pinned.original.proto;
    if !pinned.is_via_service() {
        // What was sent there before it was a Service's is not kept from it (S10): its sender may
        // go on from the same port for ever. Retries of what nobody answered are first packets.
        let late =
            (protocol == proto::UDP || begins) && snapshot.services.is_frontend(&pinned.original);
        return if late { Fate::Anew } else { Fate::Stays };
    }
    let backend = pinned.reply.src_addr();
    let standing =
        snapshot.services.standing(&pinned.original, (backend, pinned.reply.src_port).into());
    match standing {
        Standing::Serving => Fate::Stays,
        _ if protocol == proto::UDP || begins => Fate::Anew,
        Standing::NotServing => Fate::Stays,
        // The address may be another's by now, but a pod's it is: TCP and SCTP will tell.
        Standing::Gone | Standing::NoService if !snapshot.is_gone(backend) => Fate::Stays,
        Standing::Gone | Standing::NoService if protocol == proto::TCP => Fate::Reset,
        // Whoever gets it next knows no such association, and says so (RFC 9260 §8.4).
        Standing::Gone | Standing::NoService => Fate::Anew,
    }
}

impl Snapshot {
    /// Whether `address` is one of the cluster's: a pod's, a node's, of the pods' or Services'
    /// ranges, or of those that were said to belong to it.
    pub fn is_cluster_address(&self, address: IpAddr) -> bool {
        self.endpoints.contains_key(&address)
            || matches!(
                self.fib.get(address),
                Some(FibEntry::LocalPods | FibEntry::Local | FibEntry::Node(_))
            )
            || self.tunnels.is_node_address(address)
            || self.is_gateway(address)
            || self.services.is_service_address(address)
    }

    /// Whether nobody has an address of the pods' ranges.
    fn is_gone(&self, address: IpAddr) -> bool {
        !self.endpoints.contains_key(&address)
            && !self.tunnels.is_node_address(address)
            && matches!(self.fib.get(address), Some(FibEntry::LocalPods | FibEntry::Node(_)))
    }

    /// Whether `address` is a pod's of this node.
    pub fn is_local_pod(&self, address: IpAddr) -> bool {
        self.endpoints.get(&address).is_some_and(EndpointFacts::is_local)
    }

    /// The gateway's address of the family of `towards`.
    fn gateway_address(&self, towards: IpAddr) -> IpAddr {
        match towards {
            IpAddr::V4(_) => self.gateway.ipv4.into(),
            IpAddr::V6(_) => self.gateway.ipv6.into(),
        }
    }
}

fn subject_of(cookie: &std::sync::Arc<str>) -> Subject<'_> {
    Subject { cookie: Some(cookie), entry: None }
}

fn rejected(reason: RejectReason, subject: &Subject<'_>) -> Denial {
    if let Some(entry) = subject.entry {
        entry.count_rejected();
    }
    let reason = match reason {
        RejectReason::NoEndpoints => DropReason::ServiceNoEndpoints,
        RejectReason::UndefinedPort => DropReason::ServiceUndefinedPort,
    };
    Denial { reason, object: cookie(subject), answer: Answer::PortUnreachable }
}

fn dropped(reason: ServiceDrop, subject: &Subject<'_>) -> Denial {
    if let Some(entry) = subject.entry {
        entry.count_dropped();
    }
    let reason = match reason {
        ServiceDrop::NoLocalEndpoints => DropReason::ServiceNoLocalEndpoints,
        ServiceDrop::SourceRange => DropReason::ServiceSourceRange,
        ServiceDrop::Unallocated => DropReason::ServiceUnallocated,
    };
    Denial { reason, object: cookie(subject), answer: Answer::Silent }
}

fn cookie(subject: &Subject<'_>) -> Option<Cookie> {
    subject.cookie.map(|cookie| Cookie::new(cookie.clone()))
}

/// Whether a packet that opens no connection may be given a backend: only the first segment of a
/// TCP connection may (S15).
pub fn may_open(key: &FlowKey, tcp_flags: u8) -> bool {
    use podswitch_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};
    key.proto != proto::TCP || tcp_flags & (SYN | ACK | FIN | RST) == SYN
}
