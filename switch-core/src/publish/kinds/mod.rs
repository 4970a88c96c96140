//! Every kind of object: its key, its claims, and what is in force when it is left out.

mod network;
mod policy;
mod port;
mod service;

pub(super) use network::EndpointClaim;
pub(super) use policy::Wanted;
pub(super) use port::PortClaim;
pub(super) use service::PodPorts;

/// Methods common to all `Arc`s.
macro_rules! shared {
    ($list:ident) => {
        fn wanted(config: &Config) -> Cow<'_, [Self]> {
            Cow::Borrowed(&config.$list)
        }

        fn is_shared(&self, other: &Self) -> bool {
            Arc::ptr_eq(self, other)
        }

        fn is_same(&self, other: &Self) -> bool {
            Arc::ptr_eq(self, other) || self == other
        }
    };
}

use shared;
