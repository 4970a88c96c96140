//! Results of lookups that were made for a whole burst before its first packet was evaluated.

use std::net::IpAddr;

use podswitch_policy::service::table::Prefetched;
use podswitch_policy::table::Party;

use crate::snapshot::{EndpointFacts, Snapshot};

/// Lookup results for the likely ends of a packet's connection. Valid for that snapshot and that
/// packet's key. If an end turns out to be another address, it is looked up again.
#[derive(Clone, Copy, Debug)]
pub struct Hints<'s> {
    /// The Service frontend that the packet is addressed to.
    pub frontend: Prefetched<'s>,
    /// The sender, for policy.
    pub client: Party,
    /// The likely receiver, for policy.
    pub backend: Party,
    /// The likely receiver.
    pub to: Option<&'s EndpointFacts>,
}

/// The endpoint with this address.
#[inline]
pub(super) fn endpoint<'s>(
    snapshot: &'s Snapshot,
    hints: Option<&Hints<'s>>,
    address: IpAddr,
) -> Option<&'s EndpointFacts> {
    match hints {
        Some(hints) if hints.backend.address() == address => hints.to,
        _ => snapshot.endpoints.get(&address),
    }
}
