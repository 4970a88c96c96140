//! Bridge domains and ports.

use std::borrow::Cow;
use std::sync::Arc;

use super::shared;
use crate::config::{BridgeDomain, Config, PortConfig, PortRole};
use crate::id::{Cookie, PortId};
use crate::publish::fault::Faults;
use crate::publish::objects::{Claim, NoClaim, Object};
use crate::publish::settings::Settings;
use crate::publish::validate::{self, PortContext};

impl Object for Arc<BridgeDomain> {
    type Key = Arc<str>;
    type Claim = NoClaim;
    type Context<'a> = ();

    shared!(bridges);

    fn key(&self) -> Self::Key {
        self.name.clone()
    }

    fn cookie(&self) -> Cookie {
        Cookie::new(format!("BridgeDomain/{}", self.name))
    }

    fn check(&self, (): (), faults: &mut Faults) {
        validate::bridge(self, faults);
    }
}

/// The claims of a port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum PortClaim {
    /// The role of the node's own port.
    Host,
    /// The role of carrying the tunnel.
    Tunnel,
    /// The role of carrying the traffic without a tunnel.
    Direct,
    /// Membership in a bridge domain.
    Domain(Arc<str>),
}

impl Claim for PortClaim {
    fn is_exclusive(&self) -> bool {
        !matches!(self, Self::Domain(_))
    }
}

impl Object for PortConfig {
    type Key = PortId;
    type Claim = PortClaim;
    type Context<'a> = PortContext<'a>;

    const DUPLICATE: (&'static str, &'static str) = ("port", "is configured twice");

    fn wanted(config: &Config) -> Cow<'_, [Self]> {
        Cow::Borrowed(&config.ports)
    }

    fn is_shared(&self, other: &Self) -> bool {
        self == other
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn key(&self) -> PortId {
        self.port
    }

    fn cookie(&self) -> Cookie {
        port_cookie(self.port)
    }

    fn claims(&self, _: &Settings, each: &mut dyn FnMut(PortClaim)) {
        match &self.role {
            PortRole::Pod => {}
            PortRole::Host { .. } => each(PortClaim::Host),
            PortRole::Uplink { tunnel, direct, .. } => {
                if *tunnel {
                    each(PortClaim::Tunnel);
                }
                if *direct {
                    each(PortClaim::Direct);
                }
            }
            PortRole::Bridge { domain, .. } => each(PortClaim::Domain(domain.clone())),
        }
    }

    fn check(&self, context: PortContext<'_>, faults: &mut Faults) {
        validate::port(self, context, faults);
    }

    fn describe(&self, claim: &PortClaim) -> (String, String) {
        let (field, what) = match claim {
            PortClaim::Host => ("role", "the node's own stack"),
            PortClaim::Tunnel => ("tunnel", "the tunnel"),
            PortClaim::Direct => ("direct", "direct traffic"),
            PortClaim::Domain(_) => ("domain", "the bridge domain"),
        };
        (field.into(), what.into())
    }
}

/// The cookie of a port.
pub(super) fn port_cookie(port: PortId) -> Cookie {
    Cookie::new(format!("Port/{port}"))
}
