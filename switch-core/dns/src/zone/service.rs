//! One Service compiled: what its name and the names below it answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::facts::{EndpointFacts, Protocol, ServiceFacts, ServiceKind, SliceFacts};
use crate::name::{Name, NameError, push_label};

/// A compiled Service or ServiceImport. Labels are in lower case and in wire form.
#[derive(Debug)]
pub(crate) struct Service {
    /// `Service/namespace/name` or `ServiceImport/namespace/name`.
    pub(crate) object: Box<str>,
    /// The labels of name and namespace.
    pub(crate) key: Arc<[u8]>,
    pub(crate) target: Target,
    /// Addresses of its name: those of the cluster, or of ready endpoints.
    pub(crate) addresses: Addresses,
    /// Endpoints by the labels in front of the Service's.
    pub(crate) hosts: Box<[Host]>,
    /// SRV records, by host and port number: those that point to the Service itself come first.
    pub(crate) srv: Box<[Srv]>,
    /// The ports that its own SRV records are about, each name and protocol once.
    pub(crate) ports: Box<[PortName]>,
}

/// A port by name and protocol; the name is empty if it has none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PortName {
    pub(crate) name: Arc<str>,
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
    pub(crate) v4: Box<[Ipv4Addr]>,
    pub(crate) v6: Box<[Ipv6Addr]>,
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
    pub(crate) labels: Box<[u8]>,
    pub(crate) addresses: Addresses,
}

/// Who an SRV record points to: the Service itself, or host number.
pub(crate) type HostIndex = Option<u32>;

/// An SRV record. A port without a name is only in the sets of a Service and of an endpoint.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Srv {
    pub(crate) host: HostIndex,
    pub(crate) port: u16,
    /// Name of the port in lower case, without underscore; empty if it has none.
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    /// Addresses that it stands for: the divisor of weights counts them.
    pub(crate) addresses: u32,
}

impl Service {
    /// The SRV records of its own name.
    pub(crate) fn own_srv(&self) -> &[Srv] {
        match self.target {
            Target::Headless => &self.srv,
            _ => &self.srv[..self.srv.partition_point(|srv| srv.host.is_none())],
        }
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
    pub(crate) fn reverse(&self) -> impl Iterator<Item = (IpAddr, bool, Box<[u8]>)> {
        let own = matches!(self.target, Target::ClusterIps);
        let own = self.addresses.iter().filter(move |_| own);
        let own = own.map(|address| (address, true, (*self.key).into()));
        let hosts = self.hosts.iter().flat_map(move |host| {
            let name: Box<[u8]> = [&*host.labels, &*self.key].concat().into();
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
    // Host labels, port name, protocol and number, with the addresses behind them.
    let mut hosts: BTreeMap<Vec<u8>, Vec<IpAddr>> = BTreeMap::new();
    let mut ports: BTreeMap<(Vec<u8>, u16, Arc<str>, Protocol), u32> = BTreeMap::new();
    let slices = slices.filter(|_| !matches!(target, Target::External(_)));
    for slice in slices {
        let is_published = |e: &&EndpointFacts| e.is_ready || service.publish_not_ready;
        for endpoint in slice.endpoints.iter().filter(is_published) {
            for address in &endpoint.addresses {
                let labels = host_labels(endpoint, *address, slice, is_import)?;
                for port in &slice.ports {
                    let Some(number) = port.number else { continue };
                    let name = lower(&port.name);
                    *ports.entry((labels.clone(), number, name, port.protocol)).or_default() += 1;
                }
                hosts.entry(labels).or_default().push(*address);
            }
        }
    }
    let endpoints = Addresses::of(hosts.values().flatten().copied());
    let hosts: Box<[Host]> = hosts
        .into_iter()
        .map(|(labels, addresses)| Host {
            labels: labels.into(),
            addresses: Addresses::of(addresses.into_iter()),
        })
        .collect();
    let mut srv: Vec<Srv> = ports
        .into_iter()
        .map(|((labels, port, name, protocol), addresses)| {
            let host = hosts.binary_search_by(|host| (*host.labels).cmp(&labels)).ok();
            Srv { host: host.map(|host| host as u32), port, name, protocol, addresses }
        })
        .collect();
    let addresses = match &service.kind {
        ServiceKind::ClusterIps(ips) => {
            let addresses = Addresses::of(ips.iter().copied());
            srv.extend(service.ports.iter().filter(|_| addresses.len() > 0).filter_map(|port| {
                let name = lower(&port.name);
                let addresses = addresses.len() as u32;
                let (port, protocol) = (port.number?, port.protocol);
                Some(Srv { host: None, port, name, protocol, addresses })
            }));
            addresses
        }
        ServiceKind::Headless => endpoints,
        ServiceKind::External(_) => Addresses::default(),
    };
    srv.sort_unstable();
    let kind = if is_import { "ServiceImport" } else { "Service" };
    let mut compiled = Service {
        object: format!("{kind}/{}/{}", service.namespace, service.name).into(),
        key: key(&service.namespace, &service.name)?.into(),
        target,
        addresses,
        hosts,
        srv: srv.into(),
        ports: Box::default(),
    };
    let mut names: BTreeMap<(Arc<str>, Protocol), u32> = BTreeMap::new();
    for srv in compiled.own_srv() {
        *names.entry((srv.name.clone(), srv.protocol)).or_default() += srv.addresses;
    }
    let port = |((name, protocol), addresses)| PortName { name, protocol, addresses };
    compiled.ports = names.into_iter().map(port).collect();
    Ok(compiled)
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

/// The text in lower case, itself if it is already.
fn lower(text: &Arc<str>) -> Arc<str> {
    match text.bytes().any(|b| b.is_ascii_uppercase()) {
        true => text.to_ascii_lowercase().into(),
        false => text.clone(),
    }
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
