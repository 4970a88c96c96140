//! What the zone has for a name and a type, and by which rule: a pure function, of which answers and explanations are
//! made.

use std::net::IpAddr;

use crate::name::{Labelled, Name, Reverse};
use crate::record_type as rt;
use crate::rule::Rule;
use crate::zone::{Addresses, Host, PodNames, Pointers, PortName, Service, Srv, Target, Zone};

/// What a name has of the type that was asked for.
pub(crate) enum Records<'z> {
    /// Nothing of that type; the name exists.
    NoData,
    /// The name does not exist.
    Absent,
    /// Addresses of one family.
    Addresses {
        of: &'z Addresses,
        v4: bool,
    },
    /// The address in a pod's name.
    Address(IpAddr),
    Srv(SrvSet<'z>),
    Alias(&'z Name),
    Pointers(&'z Pointers),
    Version,
    Authority,
    NameServers,
}

/// The SRV records of one name.
#[derive(Clone, Copy)]
pub(crate) struct SrvSet<'z> {
    pub(crate) service: &'z Service,
    list: &'z [Srv],
    /// Only those of this port of the Service.
    port: Option<u32>,
    /// Addresses of all of them together.
    addresses: u32,
}

impl<'z> SrvSet<'z> {
    /// All of a Service's own.
    fn all(service: &'z Service) -> Self {
        let addresses = service.ports.iter().map(|port| port.addresses).sum();
        Self { service, list: service.own_srv(), port: None, addresses }
    }

    /// Those of a port.
    fn port(service: &'z Service, port: usize) -> Self {
        let addresses = service.ports[port].addresses;
        Self { service, list: service.own_srv(), port: Some(port as u32), addresses }
    }

    /// Those of an endpoint.
    fn host(service: &'z Service, host: u32) -> Self {
        let list = service.host_srv(host);
        Self { service, list, port: None, addresses: list.iter().map(|srv| srv.addresses).sum() }
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The records, each once, from some place on and around: ports of one number and host are one record.
    pub(crate) fn iter(self, rotation: u32) -> impl Iterator<Item = &'z Srv> {
        let (list, port) = (self.list, self.port);
        let start = (rotation as usize).checked_rem(list.len()).unwrap_or(0);
        (start..list.len()).chain(0..start).filter_map(move |at| {
            let srv = &list[at];
            let is_had = match port {
                Some(_) => srv.name != port,
                None => {
                    let before = at.checked_sub(1).map(|at| &list[at]);
                    before.is_some_and(|it| (it.host, it.port) == (srv.host, srv.port))
                }
            };
            (!is_had).then_some(srv)
        })
    }

    /// Weight of each (RFC 2782), as CoreDNS has it: 100 in equal parts, at least 1.
    pub(crate) fn weight(self) -> u16 {
        (100 / self.addresses.max(1)).max(1) as u16
    }
}

/// The result of a look-up.
pub(crate) struct Found<'z> {
    pub(crate) rule: Rule,
    /// The Service or ServiceImport that decided, if it is one.
    pub(crate) service: Option<&'z Service>,
    pub(crate) records: Records<'z>,
    /// Labels of the name in front of the zone that it is in.
    pub(crate) front: usize,
}

/// Whether a name is the zone's to answer.
enum Place<'z> {
    /// In the cluster domain.
    Cluster(usize),
    /// In the domain of ServiceImports.
    ClusterSet(usize),
    /// In a reverse zone of ours, or the name of a known address: the labels in front of the zone, what the name is, and
    /// the names of the address.
    Reverse(usize, Reverse, Option<&'z Pointers>),
    /// Another zone's.
    Elsewhere,
}

/// Which zone a name is in.
fn place<'z>(zone: &'z Zone, name: &Labelled) -> Place<'z> {
    let settings = zone.settings();
    let before = |zone: &Name| name.labels_before(zone.wire(), zone.labels());
    if let Some(front) = before(&settings.domain) {
        return Place::Cluster(front);
    }
    if let Some(front) = before(&settings.clusterset).filter(|_| zone.has_imports()) {
        return Place::ClusterSet(front);
    }
    let Some(reverse) = name.reverse() else { return Place::Elsewhere };
    let pointers = match reverse {
        Reverse::Of(address) => zone.pointers(address),
        _ => None,
    };
    // The nearest of them: the longest.
    match settings.reverse_zones.iter().filter_map(before).min() {
        Some(front) => Place::Reverse(front, reverse, pointers),
        None if pointers.is_some() => Place::Reverse(name.count() - 2, reverse, pointers),
        None => Place::Elsewhere,
    }
}

/// Whether a name is the zone's, as far as that can be said before all objects are known.
pub(crate) fn is_in_zone(zone: &Zone, name: &Labelled) -> bool {
    let settings = zone.settings();
    let zones = [&settings.domain, &settings.clusterset].into_iter().chain(&settings.reverse_zones);
    zones.into_iter().any(|zone| name.labels_before(zone.wire(), zone.labels()).is_some())
}

/// What the zone has for a name. `None`: it is another zone's.
pub(crate) fn look_up<'z>(zone: &'z Zone, name: &Labelled, qtype: u16) -> Option<Found<'z>> {
    match place(zone, name) {
        Place::Cluster(front) => {
            Some(Look { zone, name, qtype, front, is_import: false }.forward())
        }
        Place::ClusterSet(front) => {
            Some(Look { zone, name, qtype, front, is_import: true }.forward())
        }
        Place::Reverse(front, what, pointers) => {
            Some(Look { zone, name, qtype, front, is_import: false }.reverse(what, pointers))
        }
        Place::Elsewhere => None,
    }
}

struct Look<'z, 'n> {
    zone: &'z Zone,
    name: &'n Labelled,
    qtype: u16,
    /// Labels in front of the zone.
    front: usize,
    is_import: bool,
}

impl<'z> Look<'z, '_> {
    fn found(&self, rule: Rule, records: Records<'z>) -> Found<'z> {
        Found { rule, service: None, records, front: self.front }
    }

    fn of(&self, service: &'z Service, rule: Rule, records: Records<'z>) -> Found<'z> {
        Found { rule, service: Some(service), records, front: self.front }
    }

    fn forward(&self) -> Found<'z> {
        let front = self.front;
        if front == 0 {
            return self.apex();
        }
        match self.name.label(front - 1) {
            b"svc" => self.services(),
            b"pod" if !self.is_import => self.pods(),
            b"dns-version" if front == 1 => {
                let is_asked = matches!(self.qtype, rt::TXT | rt::ANY);
                let records = if is_asked { Records::Version } else { Records::NoData };
                self.found(Rule::SchemaVersion, records)
            }
            b"dns" if front == 1 => self.found(Rule::EmptyNonTerminal, Records::NoData),
            b"dns" if front == 2 && self.name.label(0) == b"ns" => match self.zone.name_server() {
                Some(service) => {
                    self.of(service, Rule::NameServer, self.addresses(&service.addresses))
                }
                None => self.found(Rule::NameServer, Records::NoData),
            },
            _ => self.found(Rule::NotInSchema, Records::Absent),
        }
    }

    fn apex(&self) -> Found<'z> {
        self.found(
            Rule::Apex,
            match self.qtype {
                rt::SOA | rt::ANY => Records::Authority,
                rt::NS => Records::NameServers,
                _ => Records::NoData,
            },
        )
    }

    /// Addresses of the family that was asked for. ANY gets one set of records (RFC 8482 section 4.1).
    fn addresses(&self, of: &'z Addresses) -> Records<'z> {
        let v4 = match self.qtype {
            rt::A => true,
            rt::AAAA => false,
            rt::ANY => !of.v4.is_empty(),
            _ => return Records::NoData,
        };
        let is_empty = if v4 { of.v4.is_empty() } else { of.v6.is_empty() };
        if is_empty { Records::NoData } else { Records::Addresses { of, v4 } }
    }

    fn srv(&self, set: SrvSet<'z>) -> Records<'z> {
        if set.is_empty() { Records::NoData } else { Records::Srv(set) }
    }

    fn services(&self) -> Found<'z> {
        let front = self.front;
        let rest = match front {
            1 => return self.found(Rule::EmptyNonTerminal, Records::NoData),
            2 => return self.namespace(),
            _ => front - 3,
        };
        let Some(service) = self.zone.service(self.name.part(rest, front - 1), self.is_import)
        else {
            let has_namespace = self.zone.has_namespace(self.name.part(front - 2, front - 1));
            let rule = if has_namespace { Rule::NoSuchService } else { Rule::NoSuchNamespace };
            return self.found(rule, Records::Absent);
        };
        match (&service.target, rest) {
            (Target::External(Some(name)), 0) => {
                self.of(service, Rule::ExternalName, Records::Alias(name))
            }
            (Target::External(None), 0) => self.of(service, Rule::ExternalAddress, Records::Absent),
            _ if service.is_empty() && rest == 0 => {
                self.of(service, Rule::HeadlessNotReady, Records::Absent)
            }
            (target, 0) => {
                let rule = match target {
                    Target::Headless => Rule::Headless,
                    _ => Rule::ClusterIps,
                };
                let records = match self.qtype {
                    rt::SRV => self.srv(SrvSet::all(service)),
                    _ => self.addresses(&service.addresses),
                };
                self.of(service, rule, records)
            }
            (_, rest) => self.below(service, rest),
        }
    }

    /// A name below a Service's: an endpoint, or a port.
    fn below(&self, service: &'z Service, rest: usize) -> Found<'z> {
        if let Some(host) = service.host(self.name.part(0, rest)) {
            let records = match self.qtype {
                rt::SRV => self.srv(SrvSet::host(service, host)),
                _ => self.addresses(service.addresses_of(Some(host))),
            };
            return self.of(service, Rule::Endpoint, records);
        }
        let mut ports = service.ports.iter();
        let label = self.name.label(0);
        if rest == 2 {
            let protocol = self.name.label(1);
            let name = label.strip_prefix(b"_").filter(|name| !name.is_empty());
            let is_meant = |port: &PortName| {
                name == Some(&*port.name) && protocol == port.protocol.label().as_bytes()
            };
            if let Some(port) = ports.position(is_meant) {
                let is_asked = matches!(self.qtype, rt::SRV | rt::ANY);
                let set = SrvSet::port(service, port);
                let records = if is_asked { Records::Srv(set) } else { Records::NoData };
                return self.of(service, Rule::NamedPort, records);
            }
        } else if rest == 1 {
            // A resolver that asks label by label (RFC 9156) must not take it for the end.
            let is_protocol = |port: &PortName| {
                !port.name.is_empty() && label == port.protocol.label().as_bytes()
            };
            let cluster = self.name.part(0, 1);
            let is_cluster =
                |host: &Host| host.labels[1 + usize::from(host.labels[0])..] == *cluster;
            let clusters = service.hosts.iter().filter(|_| self.is_import);
            if ports.any(is_protocol) || clusters.into_iter().any(is_cluster) {
                return self.of(service, Rule::EmptyNonTerminal, Records::NoData);
            }
        }
        self.of(service, Rule::NoSuchEndpoint, Records::Absent)
    }

    /// `<namespace>.svc` or `<namespace>.pod`.
    fn namespace(&self) -> Found<'z> {
        if self.zone.has_namespace(self.name.part(0, 1)) {
            self.found(Rule::EmptyNonTerminal, Records::NoData)
        } else {
            self.found(Rule::NoSuchNamespace, Records::Absent)
        }
    }

    fn pods(&self) -> Found<'z> {
        let mode = self.zone.settings().pods;
        match self.front {
            1 => return self.found(Rule::EmptyNonTerminal, Records::NoData),
            _ if mode == PodNames::Disabled => {
                return self.found(Rule::PodsDisabled, Records::Absent);
            }
            2 => return self.namespace(),
            3 => {}
            _ => return self.found(Rule::NotInSchema, Records::Absent),
        }
        let namespace = self.name.part(1, 2);
        if !self.zone.has_namespace(namespace) {
            return self.found(Rule::NoSuchNamespace, Records::Absent);
        }
        let is_there =
            |address: &IpAddr| mode == PodNames::Insecure || self.zone.has_pod(namespace, *address);
        let Some(address) = dashed_address(self.name.label(0)).filter(is_there) else {
            return self.found(Rule::NoSuchPod, Records::Absent);
        };
        let is_asked = match self.qtype {
            rt::ANY => true,
            rt::A => address.is_ipv4(),
            rt::AAAA => address.is_ipv6(),
            _ => false,
        };
        let records = if is_asked { Records::Address(address) } else { Records::NoData };
        self.found(Rule::PodAddress, records)
    }

    fn reverse(&self, what: Reverse, pointers: Option<&'z Pointers>) -> Found<'z> {
        if self.front == 0 {
            return self.apex();
        }
        match (what, pointers) {
            (_, Some(pointers)) => {
                let rule = match pointers.services.is_empty() {
                    true => Rule::EndpointAddress,
                    false => Rule::ServiceAddress,
                };
                let is_asked = matches!(self.qtype, rt::PTR | rt::ANY);
                let records = if is_asked { Records::Pointers(pointers) } else { Records::NoData };
                self.found(rule, records)
            }
            (Reverse::Of(_), None) => self.found(Rule::NoSuchAddress, Records::Absent),
            (Reverse::Above, None) => self.found(Rule::EmptyNonTerminal, Records::NoData),
            (Reverse::Malformed, None) => self.found(Rule::NotInSchema, Records::Absent),
        }
    }
}

/// The address that a pod's name is: dashes in place of dots or colons.
fn dashed_address(label: &[u8]) -> Option<IpAddr> {
    // No address has more characters.
    let mut text = [0; 45];
    let text = text.get_mut(..label.len())?;
    text.copy_from_slice(label);
    let dashes = label.iter().filter(|b| **b == b'-').count();
    let v4 = dashes == 3 && !label.windows(2).any(|two| two == b"--");
    let separator = if v4 { b'.' } else { b':' };
    text.iter_mut().filter(|b| **b == b'-').for_each(|b| *b = separator);
    let text = std::str::from_utf8(text).ok()?;
    // What is written with dots cannot be meant.
    if label.contains(&b'.') { None } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_names_of_pods() {
        for (label, expected) in [
            ("10-240-0-1", Some("10.240.0.1")),
            ("5678-abcd--2", Some("5678:abcd::2")),
            ("--1", Some("::1")),
            ("fd00-10-244--0", Some("fd00:10:244::")),
            ("1-2-3-4-5-6-7-8", Some("1:2:3:4:5:6:7:8")),
            ("blah", None),
            ("10-240-0", None),
            ("10-240-0-256", None),
            ("10-240-0-01", None),
            ("10.240.0.1", None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse().expect("an address"));
            assert_eq!(dashed_address(label.as_bytes()), expected, "{label}");
        }
        assert_eq!(dashed_address(&[b'1'; 63]), None);
    }
}
