//! How requests of Gateway API's listeners are matched: hosts, then rules, in the order of precedence
//! that HTTPRoute defines. What a rule leads to, and what a certificate is, is not known here.

mod hosts;
mod matching;

use std::net::IpAddr;

use hashbrown::HashMap;

pub(crate) use hosts::{HostMap, Rank, intersection};
pub use matching::Ask;
pub(crate) use matching::{Conditions, PathMatch, Rules, Text};

/// The listeners of all Gateways. `T`: what a rule leads to. `C`: a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Gateways<T, C> {
    /// Listeners of Gateways without addresses.
    shared: Doors<T, C>,
    /// By local address of a connection: listeners of Gateways that ask for it.
    by_address: HashMap<IpAddr, Doors<T, C>>,
}

/// Listeners that share addresses.
#[derive(Clone, Debug)]
pub(crate) struct Doors<T, C> {
    pub(crate) http: HostMap<Listener<T>>,
    pub(crate) https: HostMap<Listener<T>>,
    /// Of the HTTPS listeners. None: it cannot be used.
    pub(crate) certificates: HostMap<Option<C>>,
}

/// The rules of one listener, by the hosts that listener and route have in common. For each, rules
/// of the more specific host of a route come first.
#[derive(Clone, Debug)]
pub(crate) struct Listener<T>(HostMap<Vec<(Rank, Rules<T>)>>);

impl<T, C> Default for Gateways<T, C> {
    fn default() -> Self {
        Self { shared: Doors::default(), by_address: HashMap::new() }
    }
}

impl<T, C> Default for Doors<T, C> {
    fn default() -> Self {
        let (http, https) = Default::default();
        Self { http, https, certificates: HostMap::default() }
    }
}

impl<T> Default for Listener<T> {
    fn default() -> Self {
        Self(HostMap::default())
    }
}

impl<T> Listener<T> {
    /// The rules for a host. `rank`: of the route's own host.
    pub(crate) fn rules(&mut self, host: &str, rank: Rank) -> &mut Rules<T> {
        let tables = self.0.entry(host);
        let at = match tables.iter().position(|(other, _)| *other <= rank) {
            Some(at) if tables[at].0 == rank => at,
            at => {
                let at = at.unwrap_or(tables.len());
                tables.insert(at, (rank, Rules::default()));
                at
            }
        };
        &mut tables[at].1
    }

    fn all(&self) -> impl Iterator<Item = &Rules<T>> {
        self.0.values().flatten().map(|(_, rules)| rules)
    }

    fn sort(&mut self) {
        self.0.values_mut().flatten().for_each(|(_, rules)| rules.sort());
    }
}

impl<T, C> Gateways<T, C> {
    /// The listeners of an address; None: of Gateways without addresses.
    pub(crate) fn doors(&mut self, address: Option<IpAddr>) -> &mut Doors<T, C> {
        match address {
            Some(address) => self.by_address.entry(address).or_default(),
            None => &mut self.shared,
        }
    }

    /// Whether Gateways ask for addresses.
    pub(crate) fn has_addresses(&self) -> bool {
        !self.by_address.is_empty()
    }

    /// Brings the rules into the order of precedence.
    pub(crate) fn sort(&mut self) {
        for doors in self.by_address.values_mut().chain([&mut self.shared]) {
            doors.http.values_mut().chain(doors.https.values_mut()).for_each(Listener::sort);
        }
    }

    fn at(&self, address: IpAddr) -> &Doors<T, C> {
        self.by_address.get(&address).unwrap_or(&self.shared)
    }

    fn all_doors(&self) -> impl Iterator<Item = &Doors<T, C>> {
        self.by_address.values().chain([&self.shared])
    }

    /// What every rule leads to.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &T> {
        let listeners = |doors| {
            let Doors { http, https, .. }: &Doors<T, C> = doors;
            http.values().chain(https.values())
        };
        self.all_doors().flat_map(listeners).flat_map(Listener::all).flat_map(Rules::all)
    }

    /// Every certificate.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = &C> {
        self.all_doors().flat_map(|doors| doors.certificates.values()).flatten()
    }

    /// How specific the host of the listener is that a request belongs to, or of its routes; None if no
    /// listener has it. And what the first rule leads to that matches. The listener with the most
    /// specific host has the request alone.
    pub(crate) fn find(&self, ask: &Ask<'_>) -> (Option<Rank>, Option<&T>) {
        let doors = self.at(ask.address);
        let listeners = if ask.is_tls { &doors.https } else { &doors.http };
        let Some((rank, listener)) = listeners.matching(ask.host).next() else {
            return (None, None);
        };
        let routed = listener.0.matching(ask.host).next().map(|(rank, _)| rank);
        let rank = Some(rank).filter(|rank| *rank > Rank::Any).max(routed);
        let rules = listener.0.matching(ask.host).flat_map(|(_, tables)| tables);
        (rank, rules.filter_map(|(_, rules)| rules.find(ask)).next())
    }

    /// The certificate for a server name at an address, and how specific its listener's host is.
    pub(crate) fn certificate(
        &self,
        address: IpAddr,
        name: Option<&str>,
    ) -> Option<(Rank, Option<&C>)> {
        let map = &self.at(address).certificates;
        let (rank, found) = map.matching(name.unwrap_or_default()).next()?;
        Some((rank, found.as_ref()))
    }
}
