//! The choice among equal-cost next hops.

use std::net::{IpAddr, Ipv4Addr};

use podswitch_policy::maglev::{self, Maglev, MaglevError};

use super::settings::Settings;
use crate::config::NextHop;

/// The choice among the next hops that are `known`. The table has the size for `all` of them, so
/// that few flows move when a next hop is added or removed.
pub(super) fn choice(
    known: &[&NextHop],
    all: usize,
    settings: &Settings,
) -> Result<Maglev, MaglevError> {
    let identity = |hop: &NextHop| match hop {
        NextHop::Host => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        NextHop::Blackhole => IpAddr::V4(Ipv4Addr::BROADCAST),
        NextHop::Via(address) => *address,
    };
    let identities: Vec<_> = known.iter().map(|hop| (identity(hop), 1)).collect();
    Maglev::new(&identities, maglev::default_size(all), &settings.cluster_key.0)
}
