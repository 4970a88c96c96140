//! One Service compiled: what its name and the names below it answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bytes::Bytes;
use crate::facts::{EndpointFacts, PortFacts, Protocol, ServiceFacts, ServiceKind, SliceFacts};
use crate::list::List;
use crate::name::{Name, NameError, push_label};

/// A compiled Service or ServiceImport. Labels are in lower case and in wire form. What most answers need is in its first
/// 64 bytes.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Service {
    /// Addresses of its name: those of the cluster, or of ready endpoints.
    pub(crate) addresses: Addresses,
    pub(crate) target: Target,
    /// SRV records, by host and port number: those that point to the Service itself come first.
    pub(crate) srv: Box<[Srv]>,
    /// How many of them are of its own name: the first.
    pub(crate) own: usize,
    /// The ports that its own SRV records are about, each name and protocol once.
    pub(crate) ports: Box<[PortName]>,
    /// The labels of name and namespace.
    pub(crate) key: Bytes,
    /// Endpoints by the labels in front of the Service's.
    pub(crate) hosts: Box<[Host]>,
    /// `Service/namespace/name` or `ServiceImport/namespace/name`.
    pub(crate) object: Box<str>,
}

/// A port by name and protocol; the name is empty if it has none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PortName {
    pub(crate) name: Bytes,
    pub(crate) protocol: Protocol,
    /// Addresses of all its records together.
    pub(crate) addresses: u32,
}

/// What a Service's name stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    ClusterIps,
    Headless,
    /// `None`: the `externalName` is an address, which no CNAME can point to.
    External(Option<Name>),
}

/// Addresses of one owner.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: List<Ipv4Addr>,
    pub(crate) v6: List<Ipv6Addr>,
}

impl Addresses {
    /// Sorted, each once.
    fn of(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        Self { v4: v4.into(), v6: v6.into() }
    }

    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().map(|address| IpAddr::V4(*address));
        v4.chain(self.v6.iter().map(|address| IpAddr::V6(*address)))
    }
}

/// Ready endpoints of one hostname.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its label; for imports followed by that of the cluster.
    pub(crate) labels: Bytes,
    pub(crate) addresses: Addresses,
}

/// Who an SRV record points to: the Service itself, or host number.
pub(crate) type HostIndex = Option<u32>;

/// An SRV record. A port without a name is only in the sets of a Service and of an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Srv {
    pub(crate) host: HostIndex,
    pub(crate) port: u16,
    /// Its place among the Service's ports, if the record is one of its own name.
    pub(crate) name: Option<u32>,
    /// Addresses that it stands for: the divisor of weights counts them.
    pub(crate) addresses: u32,
}

impl Service {
    /// The SRV records of its own name.
    pub(crate) fn own_srv(&self) -> &[Srv] {
        &self.srv[..self.own]
    }

    /// The SRV records of a host.
    pub(crate) fn host_srv(&self, host: u32) -> &[Srv] {
        let from = self.srv.partition_point(|srv| srv.host < Some(host));
        let to = self.srv.partition_point(|srv| srv.host <= Some(host));
        &self.srv[from..to]
    }

    /// Whether nothing answers at its name: headless, and no endpoint is ready (specification 2.4.1).
    pub(crate) fn is_empty(&self) -> bool {
        match &self.target {
            Target::ClusterIps => false,
            Target::Headless => self.hosts.is_empty(),
            Target::External(target) => target.is_none(),
        }
    }

    /// Host number of these labels.
    pub(crate) fn host(&self, labels: &[u8]) -> Option<u32> {
        let at = self.hosts.binary_search_by(|host| (*host.labels).cmp(labels)).ok()?;
        Some(at as u32)
    }

    /// Addresses that an SRV record's target has.
    pub(crate) fn addresses_of(&self, host: HostIndex) -> &Addresses {
        host.map_or(&self.addresses, |host| &self.hosts[host as usize].addresses)
    }

    /// The labels of an SRV record's target in front of the Service's.
    pub(crate) fn labels_of(&self, host: HostIndex) -> &[u8] {
        host.map_or(&[], |host| &self.hosts[host as usize].labels)
    }

    /// Addresses with the labels that their PTR records have in front of `svc`.
    pub(crate) fn reverse(&self) -> impl Iterator<Item = (IpAddr, bool, Bytes)> {
        let own = matches!(self.target, Target::ClusterIps);
        let own = self.addresses.iter().filter(move |_| own);
        let own = own.map(|address| (address, true, self.key.clone()));
        let hosts = self.hosts.iter().flat_map(move |host| {
            let name = Bytes::from([&*host.labels, &*self.key].concat());
            host.addresses.iter().map(move |address| (address, false, name.clone()))
        });
        own.chain(hosts)
    }
}

/// The labels of a namespaced name.
///
/// # Errors
/// One of them is not a label.
pub(crate) fn key(namespace: &str, name: &str) -> Result<Vec<u8>, NameError> {
    let mut key = Vec::with_capacity(namespace.len() + name.len() + 2);
    push_label(&mut key, name)?;
    push_label(&mut key, namespace)?;
    Ok(key)
}

/// The hostname of an endpoint (specification 2.1): its `hostname`, else its address with dashes.
pub(crate) fn dashed(address: IpAddr) -> String {
    let mut text = address.to_string().replace(['.', ':'], "-");
    // A label must not end with a dash: fd00:: is fd00--0.
    if text.ends_with('-') {
        text.push('0');
    }
    text
}

/// Compiles a Service with its slices, sorted by name. `is_import`: a ServiceImport, whose endpoints have the label of
/// their cluster.
///
/// # Errors
/// A name in it is not a label.
pub(crate) fn compile<'a>(
    service: &ServiceFacts,
    slices: impl Iterator<Item = &'a SliceFacts>,
    is_import: bool,
) -> Result<Service, NameError> {
    let target = match &service.kind {
        ServiceKind::ClusterIps(_) => Target::ClusterIps,
        ServiceKind::Headless => Target::Headless,
        ServiceKind::External(name) if name.parse::<IpAddr>().is_ok() => Target::External(None),
        ServiceKind::External(name) => Target::External(Some(Name::parse(name)?)),
    };
    let mut hosts: BTreeMap<Vec<u8>, Vec<IpAddr>> = BTreeMap::new();
    let mut records: BTreeMap<Record, u32> = BTreeMap::new();
    let slices = slices.filter(|_| !matches!(target, Target::External(_)));
    for slice in slices {
        let is_published = |e: &&EndpointFacts| e.is_ready || service.publish_not_ready;
        for endpoint in slice.endpoints.iter().filter(is_published) {
            for address in &endpoint.addresses {
                let labels = host_labels(endpoint, *address, slice, is_import)?;
                for port in &slice.ports {
                    if let Some(record) = Record::of(port, Some(labels.clone())) {
                        *records.entry(record).or_default() += 1;
                    }
                }
                hosts.entry(labels).or_default().push(*address);
            }
        }
    }
    let endpoints = Addresses::of(hosts.values().flatten().copied());
    let host = |(labels, addresses): (Vec<u8>, Vec<IpAddr>)| Host {
        labels: labels.into(),
        addresses: Addresses::of(addresses.into_iter()),
    };
    let hosts: Box<[Host]> = hosts.into_iter().map(host).collect();
    let addresses = match &service.kind {
        ServiceKind::ClusterIps(ips) => {
            let addresses = Addresses::of(ips.iter().copied());
            let ports = service.ports.iter().filter(|_| addresses.len() > 0);
            for record in ports.filter_map(|port| Record::of(port, None)) {
                *records.entry(record).or_default() += addresses.len() as u32;
            }
            addresses
        }
        ServiceKind::Headless => endpoints,
        ServiceKind::External(_) => Addresses::default(),
    };
    let is_own = |record: &Record| record.host.is_some() == (target == Target::Headless);
    let mut names: BTreeMap<(Bytes, Protocol), u32> = BTreeMap::new();
    for (record, addresses) in records.iter().filter(|(record, _)| is_own(record)) {
        *names.entry((record.name.clone(), record.protocol)).or_default() += addresses;
    }
    let port = |((name, protocol), addresses)| PortName { name, protocol, addresses };
    let ports: Box<[PortName]> = names.into_iter().map(port).collect();
    let own = records.keys().filter(|record| is_own(record)).count();
    let srv = records.into_iter().map(|(record, addresses)| {
        let is_named = |port: &PortName| {
            is_own(&record) && (&port.name, port.protocol) == (&record.name, record.protocol)
        };
        let place = |host: &Vec<u8>| hosts.binary_search_by(|it| (*it.labels).cmp(host)).ok();
        Srv {
            host: record.host.as_ref().and_then(place).map(|at| at as u32),
            port: record.number,
            name: ports.iter().position(is_named).map(|at| at as u32),
            addresses,
        }
    });
    let kind = if is_import { "ServiceImport" } else { "Service" };
    Ok(Service {
        addresses,
        srv: srv.collect(),
        own,
        ports,
        key: key(&service.namespace, &service.name)?.into(),
        hosts,
        object: format!("{kind}/{}/{}", service.namespace, service.name).into(),
        target,
    })
}

/// What SRV records are made of, in their order: those of the Service itself come first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    host: Option<Vec<u8>>,
    number: u16,
    name: Bytes,
    protocol: Protocol,
}

impl Record {
    /// `None`: the port has no number.
    fn of(port: &PortFacts, host: Option<Vec<u8>>) -> Option<Self> {
        let name = port.name.to_ascii_lowercase().into_bytes().into();
        Some(Self { host, number: port.number?, name, protocol: port.protocol })
    }
}

fn host_labels(
    endpoint: &EndpointFacts,
    address: IpAddr,
    slice: &SliceFacts,
    is_import: bool,
) -> Result<Vec<u8>, NameError> {
    let mut labels = Vec::with_capacity(48);
    match endpoint.hostname.as_deref().filter(|name| !name.is_empty()) {
        Some(hostname) => push_label(&mut labels, hostname)?,
        None => push_label(&mut labels, &dashed(address))?,
    }
    if is_import {
        push_label(&mut labels, slice.cluster.as_deref().unwrap_or_default())?;
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_dashes_are_labels() {
        for (address, expected) in [
            ("172.0.0.2", "172-0-0-2"),
            ("5678:abcd::1", "5678-abcd--1"),
            ("fd00:10:244::", "fd00-10-244--0"),
        ] {
            assert_eq!(dashed(address.parse().expect("an address")), expected);
        }
    }
}
