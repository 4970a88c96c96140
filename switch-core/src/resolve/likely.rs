//! What was looked up about a burst's packets before the first was judged: kept, so that judging them
//! need not look it up again.

use std::net::IpAddr;

use podswitch_policy::service::table::Looked;
use podswitch_policy::table::Party;

use crate::snapshot::{EndpointFacts, Snapshot};

/// What a state says of a packet's likely ends. Good for that state and that packet's key; whoever
/// finds that an end is another one looks it up.
#[derive(Clone, Copy, Debug)]
pub struct Likely<'s> {
    /// The Service that the packet is for.
    pub service: Looked<'s>,
    /// Its sender, as policy sees it.
    pub client: Party,
    /// Whom it goes to, as policy sees it.
    pub backend: Party,
    /// Whom it goes to.
    pub to: Option<&'s EndpointFacts>,
}

/// What is known of an address.
#[inline]
pub(super) fn endpoint<'s>(
    snapshot: &'s Snapshot,
    likely: Option<&Likely<'s>>,
    address: IpAddr,
) -> Option<&'s EndpointFacts> {
    match likely {
        Some(likely) if likely.backend.address() == address => likely.to,
        _ => snapshot.endpoints.get(&address),
    }
}
