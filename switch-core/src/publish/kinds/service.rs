//! Services, endpoint slices and host ports.

use std::borrow::Cow;
use std::sync::Arc;

use podswitch_policy::service::model::{EndpointSlice, HostPort, Service, ServiceName};

use super::shared;
use crate::config::{Config, Endpoint};
use crate::id::Cookie;
use crate::publish::objects::{Faults, Kind, NoClaim, Object};
use crate::publish::validate;

/// Namespace and name of a slice.
type SliceName = (Arc<str>, Arc<str>);

/// The host ports of one pod.
pub(crate) type PodPorts = (Cookie, Arc<[HostPort]>);

impl Object for Arc<Service> {
    type Key = ServiceName;
    type Claim = NoClaim;
    type Context<'a> = ();

    shared!(services);

    fn key(&self) -> ServiceName {
        self.name.clone()
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(self.cookie.clone())
    }

    fn check(&self, (): (), faults: &mut Faults) {
        validate::service(self, faults);
    }
}

impl Object for Arc<EndpointSlice> {
    type Key = SliceName;
    type Claim = NoClaim;
    type Context<'a> = ();

    shared!(slices);

    fn key(&self) -> SliceName {
        (self.namespace.clone(), self.name.clone())
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(format!("EndpointSlice/{}/{}", self.namespace, self.name))
    }

    fn check(&self, (): (), faults: &mut Faults) {
        validate::slice(self, faults);
    }
}

impl Object for PodPorts {
    type Key = Cookie;
    type Claim = NoClaim;
    type Context<'a> = &'a Kind<Arc<Endpoint>>;

    const DUPLICATE: (&'static str, &'static str) = ("host_ports", "are listed twice");

    fn wanted(config: &Config) -> Cow<'_, [Self]> {
        Cow::Borrowed(&config.host_ports)
    }

    fn is_shared(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.1, &other.1) && self.0 == other.0
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn key(&self) -> Cookie {
        self.0.clone()
    }

    fn cookie(&self) -> Cookie {
        self.0.clone()
    }

    fn check(&self, pods: &Kind<Arc<Endpoint>>, faults: &mut Faults) {
        validate::host_ports(self, pods, faults);
    }
}
