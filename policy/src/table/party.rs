//! One end of a connection, and the owner of its address.

use core::net::IpAddr;

/// One end of a connection as policy sees it: looked up once by address, evaluated often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    pub(super) address: IpAddr,
    pub(super) owner: Owner,
}

impl Party {
    /// The address.
    #[inline]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the address belongs to a pod that policies can select; hostNetwork pods count as
    /// their node (N11).
    #[inline]
    pub fn is_pod(&self) -> bool {
        self.owner.pod != 0
    }

    /// Whether the address belongs to a node.
    #[inline]
    pub fn is_node(&self) -> bool {
        self.owner.pod == 0 && self.owner.node != 0
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// The identity, shared by addresses that no selector can distinguish; 0 if it has none.
    #[inline]
    pub fn identity(&self) -> u32 {
        self.owner.identity
    }
}

/// The owner of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Owner {
    /// Identity, 0 for none.
    pub(crate) identity: u32,
    /// The pod, 0 if none.
    pub(crate) pod: u32,
    /// The node, or the pod's node; 0 if none.
    pub(crate) node: u32,
}
