//! Pods, other nodes and routes.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::shared;
use crate::config::{Config, Endpoint, Precedence, RemoteNode, Route};
use crate::id::{Cookie, PortId};
use crate::publish::fault::Faults;
use crate::publish::objects::{Claim, Kind, NoClaim, Object};
use crate::publish::settings::Settings;
use crate::publish::validate::{self, EndpointContext};
use crate::publish::vtep_pairs::{vtep_pairs, vteps_of};

/// The claims of a pod.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum EndpointClaim {
    /// An address.
    Address(IpAddr),
    /// The port that it is attached to.
    Port(PortId),
}

impl Claim for EndpointClaim {}

impl Object for Arc<Endpoint> {
    type Key = Cookie;
    type Claim = EndpointClaim;
    type Context<'a> = EndpointContext<'a>;

    shared!(endpoints);

    fn key(&self) -> Cookie {
        self.cookie.clone()
    }

    fn cookie(&self) -> Cookie {
        self.cookie.clone()
    }

    fn precedence(&self) -> Precedence {
        self.precedence
    }

    fn claims(&self, _: &Settings, each: &mut dyn FnMut(EndpointClaim)) {
        // A pod with hostNetwork has its node's addresses.
        if self.workload.host_network {
            return;
        }
        self.workload.addresses.iter().for_each(|a| each(EndpointClaim::Address(*a)));
        self.attachment.iter().for_each(|at| each(EndpointClaim::Port(at.port)));
    }

    fn check(&self, context: EndpointContext<'_>, faults: &mut Faults) {
        validate::endpoint(self, context, faults);
    }

    fn describe(&self, claim: &EndpointClaim) -> (String, String) {
        match claim {
            EndpointClaim::Address(address) => {
                (validate::nth("addresses", &self.workload.addresses, address), address.to_string())
            }
            EndpointClaim::Port(port) => ("attachment.port".into(), format!("port {port}")),
        }
    }
}

/// The claims of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum NodeClaim {
    /// An address of its VTEPs.
    Vtep(IpAddr),
    /// Another address.
    Address(IpAddr),
    /// A range of its pods.
    Range(Cidr),
    /// A MAC address of its VTEPs, and whether the underlay is IPv6.
    Mac(Mac, bool),
}

impl Claim for NodeClaim {
    fn is_exclusive(&self) -> bool {
        !matches!(self, Self::Address(_))
    }
}

impl Kind<Arc<RemoteNode>> {
    /// The node in force that has an address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<&Arc<RemoteNode>> {
        self.holder(&NodeClaim::Vtep(address)).or_else(|| self.holder(&NodeClaim::Address(address)))
    }

    /// The node in force that has a range.
    pub(crate) fn of_range(&self, range: Cidr) -> Option<&Arc<RemoteNode>> {
        self.holder(&NodeClaim::Range(range))
    }
}

impl Object for Arc<RemoteNode> {
    type Key = Arc<str>;
    type Claim = NodeClaim;
    type Context<'a> = &'a Settings;

    shared!(nodes);

    fn key(&self) -> Self::Key {
        self.name.clone()
    }

    fn cookie(&self) -> Cookie {
        self.cookie.clone()
    }

    fn precedence(&self) -> Precedence {
        self.precedence
    }

    fn claims(&self, settings: &Settings, each: &mut dyn FnMut(NodeClaim)) {
        let vteps = vteps_of(&self.addresses);
        for &address in &self.addresses {
            each(match vteps.contains(&Some(address)) {
                true => NodeClaim::Vtep(address),
                false => NodeClaim::Address(address),
            });
        }
        self.pod_cidrs.iter().for_each(|range| each(NodeClaim::Range(*range)));
        if let Some(tunnel) = settings.vxlan() {
            for pair in vtep_pairs(self, tunnel, &settings.node) {
                let v6 = pair.destination.is_ipv6();
                each(NodeClaim::Mac(self.vtep.of(v6), v6));
            }
        }
    }

    fn check(&self, settings: &Settings, faults: &mut Faults) {
        validate::node(self, settings, faults);
    }

    fn describe(&self, claim: &NodeClaim) -> (String, String) {
        match claim {
            NodeClaim::Vtep(address) | NodeClaim::Address(address) => {
                (validate::nth("addresses", &self.addresses, address), address.to_string())
            }
            NodeClaim::Range(range) => {
                (validate::nth("pod_cidrs", &self.pod_cidrs, range), range.to_string())
            }
            NodeClaim::Mac(mac, _) => ("vtep".into(), format!("VTEP MAC address {mac}")),
        }
    }
}

impl Object for Arc<Route> {
    type Key = Cidr;
    type Claim = NoClaim;
    type Context<'a> = &'a Settings;

    const DUPLICATE: (&'static str, &'static str) =
        ("destination", "another route has this destination");

    shared!(routes);

    fn key(&self) -> Cidr {
        self.destination
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(format!("Route/{}", self.destination))
    }

    fn check(&self, settings: &Settings, faults: &mut Faults) {
        validate::route(self, settings, faults);
    }
}
