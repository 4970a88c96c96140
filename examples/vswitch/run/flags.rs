//! Values of options.

use std::sync::Arc;
use std::time::Duration;

use switch_core::config::{NextHop, Route};
use wire::cidr::Cidr;

/// More workers than this help nobody.
const MOST_WORKERS: usize = 64;

/// `--workers N`.
pub(super) fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MOST_WORKERS) => Ok(count),
        _ => Err(format!("it is not a number from 1 to {MOST_WORKERS}")),
    }
}

/// `--stats SECONDS`.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds
        .filter(|duration| (0.1..1e9).contains(&duration.as_secs_f64()))
        .ok_or_else(|| "it is not a number of seconds, at least 0.1".to_owned())
}

/// `--route CIDR=NEXTHOP`.
#[derive(Clone, Debug)]
pub(super) struct RouteFlag(Route);

impl RouteFlag {
    /// Reads the option's value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (range, hop) = text.split_once('=').ok_or("it is not CIDR=host or CIDR=blackhole")?;
        let destination: Cidr = range.parse().map_err(|error| format!("{range:?}: {error}"))?;
        let hop = match hop {
            "host" => NextHop::Host,
            "blackhole" => NextHop::Blackhole,
            other => return Err(format!("{other:?} is neither host nor blackhole")),
        };
        Ok(Self(Route { destination, next_hops: vec![hop] }))
    }

    /// As the switch is told of it.
    pub(super) fn route(&self) -> Arc<Route> {
        Arc::new(self.0.clone())
    }
}
