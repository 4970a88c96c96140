//! The two ends of a connection: references looked up among the objects of the manifests.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{Config, Endpoint};
use podswitch_core::id::Cookie;
use podswitch_node::UnknownName;
use podswitch_policy::service::model::Service;

use super::family::Family;
use super::reference::{Reference, Target, Wanted};
use crate::failure::Failure;

/// A pod, node, Service or address that can be an end.
#[derive(Clone, Debug)]
pub(super) struct Party {
    /// `Kind/namespace/name`, or the address of an end that no object describes.
    pub(super) name: String,
    /// The pod, if it has a network of its own.
    pub(super) pod: Option<Cookie>,
    /// The node that it is, or that it runs on.
    pub(super) node: Option<Arc<str>>,
    addresses: Vec<IpAddr>,
}

/// An end: one address of a party.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) party: Party,
    pub(super) address: IpAddr,
}

/// Both ends, and the port or echo request at the destination.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) wanted: Wanted,
}

impl Ends {
    /// Looks up both ends, and selects addresses of one family: IPv4 if both ends have it, unless
    /// another family is requested.
    pub(super) fn find(
        config: &Config,
        from: &Reference,
        to: &Target,
        family: Option<Family>,
    ) -> Result<Self, Failure> {
        let (source, destination) = (party(config, from)?, party(config, &to.reference)?);
        let families = family.as_ref().map_or(&Family::BOTH[..], std::slice::from_ref);
        let pair = families.iter().find_map(|f| Some((source.of(*f)?, destination.of(*f)?)));
        let Some((source_address, destination_address)) = pair else {
            let text = |p: &Party| format!("{} ({})", p.name, list(&p.addresses));
            let (source, destination) = (text(&source), text(&destination));
            return Err(Failure::Input(match family {
                Some(family) => {
                    let family = family.name();
                    format!("{source} and {destination} do not both have an {family} address")
                }
                None => format!("{source} and {destination} have no family in common"),
            }));
        };
        Ok(Self {
            from: End { party: source, address: source_address },
            to: End { party: destination, address: destination_address },
            wanted: to.wanted,
        })
    }
}

impl Party {
    fn of(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }

    fn from_endpoint(endpoint: &Endpoint) -> Self {
        Self {
            name: endpoint.cookie.to_string(),
            pod: (!endpoint.workload.host_network).then(|| endpoint.cookie.clone()),
            node: Some(Arc::clone(&endpoint.node)).filter(|name| !name.is_empty()),
            addresses: endpoint.workload.addresses.clone(),
        }
    }

    fn from_service(service: &Service) -> Self {
        Self {
            name: service.cookie.to_string(),
            pod: None,
            node: None,
            addresses: service.cluster_ips.clone(),
        }
    }

    fn from_node(name: &Arc<str>, addresses: &[IpAddr]) -> Self {
        Self {
            name: format!("Node/{name}"),
            pod: None,
            node: Some(Arc::clone(name)),
            addresses: addresses.to_vec(),
        }
    }
}

fn party(config: &Config, reference: &Reference) -> Result<Party, Failure> {
    let found = match reference {
        Reference::Pod(namespace, name) => pod(config, namespace, name),
        Reference::Service(namespace, name) => match service(config, namespace, name) {
            Some(found) => Some(addressed(found)?),
            None => None,
        },
        Reference::PodOrService(namespace, name) => {
            match (pod(config, namespace, name), service(config, namespace, name)) {
                (Some(pod), _) => Some(pod),
                (None, Some(found)) => Some(addressed(found)?),
                (None, None) => None,
            }
        }
        Reference::Node(name) => node(config, name),
        Reference::Address(address) => Some(owner(config, *address)),
    };
    found.ok_or_else(|| {
        let hint = match reference {
            Reference::Node(_) => "no such node",
            Reference::Service(..) => "no such Service",
            Reference::PodOrService(..) => "no such pod or Service",
            _ => "no such pod (pods that have ended or have no address are not found)",
        };
        Failure::Input(format!("{reference}: {hint}{}", nearest(config, reference)))
    })
}

/// The existing names nearest to an unknown name.
fn nearest(config: &Config, reference: &Reference) -> String {
    let pods = || {
        let names = config.endpoints.iter().map(|endpoint| &endpoint.workload);
        names.map(|workload| format!("{}/{}", workload.namespace, workload.name))
    };
    let services = || {
        let names = config.services.iter().map(|service| &service.name);
        names.map(|name| format!("{}/{}", name.namespace, name.name))
    };
    let unknown = match reference {
        Reference::Node(name) => {
            UnknownName::new("", name, config.nodes.iter().map(|node| &*node.name))
        }
        Reference::Pod(namespace, name) => {
            UnknownName::new("", &format!("{namespace}/{name}"), pods())
        }
        Reference::Service(namespace, name) => {
            UnknownName::new("", &format!("{namespace}/{name}"), services())
        }
        Reference::PodOrService(namespace, name) => {
            UnknownName::new("", &format!("{namespace}/{name}"), pods().chain(services()))
        }
        Reference::Address(_) => return String::new(),
    };
    match unknown.nearest.is_empty() {
        true => String::new(),
        false => format!("; did you mean {}?", unknown.nearest.join(" or ")),
    }
}

fn pod(config: &Config, namespace: &str, name: &str) -> Option<Party> {
    let is_it =
        |e: &&Arc<Endpoint>| *e.workload.namespace == *namespace && *e.workload.name == *name;
    config.endpoints.iter().find(is_it).map(|endpoint| Party::from_endpoint(endpoint))
}

fn node(config: &Config, name: &str) -> Option<Party> {
    let node = config.nodes.iter().find(|node| *node.name == *name)?;
    Some(Party::from_node(&node.name, &node.addresses))
}

fn service<'a>(config: &'a Config, namespace: &str, name: &str) -> Option<&'a Service> {
    let is_it = |s: &&Arc<Service>| *s.name.namespace == *namespace && *s.name.name == *name;
    config.services.iter().find(is_it).map(|service| &**service)
}

/// A Service by its cluster IPs, if it has any.
fn addressed(service: &Service) -> Result<Party, Failure> {
    if service.cluster_ips.is_empty() {
        return Err(Failure::Input(format!(
            "{}: it has no cluster IP. Such a Service is not load-balanced: clients connect to its pods directly",
            service.cookie
        )));
    }
    Ok(Party::from_service(service))
}

/// The owner of an address; the address itself, if no object has it.
pub(super) fn owner(config: &Config, address: IpAddr) -> Party {
    let endpoint = config.endpoints.iter().find(|endpoint| {
        !endpoint.workload.host_network && endpoint.workload.addresses.contains(&address)
    });
    let node = config.nodes.iter().find(|node| node.addresses.contains(&address));
    let has_it = |service: &&Arc<Service>| {
        let balancers = service.ingress.iter().map(|ingress| &ingress.address);
        let mut all = service.cluster_ips.iter().chain(&service.external_ips).chain(balancers);
        all.any(|own| *own == address)
    };
    let service = config.services.iter().find(has_it);
    let found = match (endpoint, node, service) {
        (Some(endpoint), ..) => Party::from_endpoint(endpoint),
        (None, Some(node), _) => Party::from_node(&node.name, &node.addresses),
        (None, None, Some(service)) => Party::from_service(service),
        (None, None, None) => {
            Party { name: address.to_string(), pod: None, node: None, addresses: Vec::new() }
        }
    };
    // Of several addresses, report this one.
    Party { addresses: vec![address], ..found }
}

fn list(addresses: &[IpAddr]) -> String {
    match addresses {
        [] => "no address".to_owned(),
        _ => addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
    }
}
