//! VTEPs: the remote VTEPs by index, outer address and MAC address; this node's VTEPs by address
//! and VNI; and whether an arriving packet is trusted (RFC 7348 §7, threats T-O2 to T-O4).
//!
//! The control plane builds a table and changes clones of it. The table in force is read by all
//! workers and never changes. A clone shares all VTEPs. The caller's FIB maps prefixes to VTEPs; it
//! holds the [`VtepIndex`].

use core::fmt;
use core::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_wire::addr::Mac;

use crate::decap::Decap;
use crate::header::Vni;
use crate::template::{Outer, Template, TemplateError};

/// A remote VTEP's index in a [`VtepTable`]; stable while the VTEP exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct VtepIndex(pub u32);

impl VtepIndex {
    /// As a table index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for VtepIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Another node's VTEP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteVtep {
    outer: Outer,
    template: Template,
    mac: Mac,
    sources: Vec<IpAddr>,
}

impl RemoteVtep {
    /// A VTEP that is reached by `outer`. `mac` is the inner MAC address of the frames that it
    /// sends itself; zero if it is a bridge and has none.
    ///
    /// # Errors
    /// [`TemplateError`] if the outer headers are invalid.
    pub fn new(outer: Outer, mac: Mac) -> Result<Self, TemplateError> {
        let template = Template::new(&outer)?;
        Ok(Self { template, mac, sources: vec![outer.destination], outer })
    }

    /// The same VTEP, which also sends from `address` (a node with VTEP addresses of both
    /// families).
    pub fn also_from(mut self, address: IpAddr) -> Self {
        if !self.sources.contains(&address) {
            self.sources.push(address);
        }
        self
    }

    /// The outer headers, as configured.
    pub fn outer(&self) -> &Outer {
        &self.outer
    }

    /// The outer headers, ready to be copied.
    #[inline]
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// Inner MAC address of the VTEP: the destination of frames routed to it.
    #[inline]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// VXLAN network of the tunnel.
    #[inline]
    pub fn vni(&self) -> Vni {
        self.outer.vni
    }

    /// The outer source addresses of its packets.
    pub fn sources(&self) -> &[IpAddr] {
        &self.sources
    }
}

/// Why a VTEP cannot be added to the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    /// Another VTEP has that outer address on that network.
    #[error("outer address {0} on VNI {1} belongs to another VTEP")]
    AddressTaken(IpAddr, Vni),
    /// Another VTEP has that MAC address on that network, over an underlay of the same family.
    #[error("MAC address {0} on VNI {1} belongs to another VTEP")]
    MacTaken(Mac, Vni),
    /// The address is this node's own.
    #[error("outer address {0} is this node's own")]
    OwnAddress(IpAddr),
    /// There is no VTEP with that index.
    #[error("there is no VTEP {0}")]
    NoSuchVtep(VtepIndex),
}

/// Why a tunnel packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The outer destination is not a VTEP address of this node.
    #[error("the outer destination is not a VTEP address of this node")]
    NotLocal,
    /// The VNI is not configured.
    #[error("the VNI is not configured")]
    UnknownVni,
    /// The outer source is not a known VTEP of that network (threat T-O2).
    #[error("the outer source is no known VTEP")]
    UnknownVtep,
    /// The inner source does not belong behind that VTEP (threat T-O3).
    #[error("the inner source does not belong behind that VTEP")]
    InnerSource,
}

/// A tunnel packet whose sender is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The VTEP that sent it.
    pub end: VtepIndex,
    /// The caller's number for the network of its VNI (the flow key's zone).
    pub zone: u16,
}

/// All VTEPs that a node knows.
#[derive(Clone, Default, Debug)]
pub struct VtepTable {
    ends: Vec<Option<Arc<RemoteVtep>>>,
    free: Vec<u32>,
    by_source: HashMap<(IpAddr, Vni), VtepIndex>,
    /// The last part: whether the underlay is IPv6.
    by_mac: HashMap<(Mac, Vni, bool), VtepIndex>,
    local: Vec<IpAddr>,
    networks: Vec<(Vni, u16)>,
}

impl VtepTable {
    /// A table without remote VTEPs. `local`: this node's VTEP addresses. `networks`: the VNIs that
    /// it takes part in, each with the zone of its flows.
    pub fn new(
        local: impl IntoIterator<Item = IpAddr>,
        networks: impl IntoIterator<Item = (Vni, u16)>,
    ) -> Self {
        let mut networks: Vec<_> = networks.into_iter().collect();
        networks.sort_unstable();
        networks.dedup_by_key(|(vni, _)| *vni);
        Self { local: local.into_iter().collect(), networks, ..Self::default() }
    }

    /// Adds a VTEP.
    ///
    /// # Errors
    /// [`TableError`] if one of its addresses is in use; the table is unchanged then.
    pub fn insert(&mut self, end: RemoteVtep) -> Result<VtepIndex, TableError> {
        self.check(&end, None)?;
        let index = match self.free.pop() {
            Some(index) => VtepIndex(index),
            None => {
                self.ends.push(None);
                VtepIndex((self.ends.len() - 1) as u32)
            }
        };
        self.put(index, end);
        Ok(index)
    }

    /// Replaces a VTEP when its node's address or MAC address has changed. The index continues to
    /// mean that node.
    ///
    /// # Errors
    /// [`TableError`]; the table is unchanged then.
    pub fn replace(&mut self, index: VtepIndex, end: RemoteVtep) -> Result<(), TableError> {
        self.get(index).ok_or(TableError::NoSuchVtep(index))?;
        self.check(&end, Some(index))?;
        self.forget(index);
        self.put(index, end);
        Ok(())
    }

    /// As [`replace`](Self::replace), for several VTEPs at once, which may exchange addresses.
    ///
    /// # Errors
    /// [`TableError`] with the index that it concerns; the table is unchanged then.
    pub fn replace_all(
        &mut self,
        ends: Vec<(VtepIndex, RemoteVtep)>,
    ) -> Result<(), (VtepIndex, TableError)> {
        if let Some((index, _)) = ends.iter().find(|(index, _)| self.get(*index).is_none()) {
            return Err((*index, TableError::NoSuchVtep(*index)));
        }
        let mut next = self.clone();
        for (index, _) in &ends {
            next.forget(*index);
        }
        for (index, end) in ends {
            next.check(&end, Some(index)).map_err(|error| (index, error))?;
            next.put(index, end);
        }
        *self = next;
        Ok(())
    }

    /// Removes a VTEP. Its index may be reused later.
    ///
    /// # Errors
    /// [`TableError::NoSuchVtep`].
    pub fn remove(&mut self, index: VtepIndex) -> Result<Arc<RemoteVtep>, TableError> {
        let end = self.forget(index).ok_or(TableError::NoSuchVtep(index))?;
        self.free.push(index.0);
        Ok(end)
    }

    /// The VTEP at an index.
    #[inline]
    pub fn get(&self, index: VtepIndex) -> Option<&RemoteVtep> {
        self.ends.get(index.index())?.as_deref()
    }

    /// The VTEP that sends from `source` on `vni`.
    #[inline]
    pub fn by_source(&self, source: IpAddr, vni: Vni) -> Option<VtepIndex> {
        self.by_source.get(&(source, vni)).copied()
    }

    /// The VTEP whose inner MAC address is `mac` on `vni`, over an IPv6 or IPv4 underlay. The
    /// family matters because a node may have a VTEP over each, with one MAC address.
    #[inline]
    pub fn by_mac(&self, mac: Mac, vni: Vni, ipv6: bool) -> Option<VtepIndex> {
        self.by_mac.get(&(mac, vni, ipv6)).copied()
    }

    /// The zone of a VNI that this node takes part in.
    #[inline]
    pub fn zone(&self, vni: Vni) -> Option<u16> {
        let at = self.networks.binary_search_by_key(&vni, |(vni, _)| *vni).ok()?;
        Some(self.networks[at].1)
    }

    /// The VNIs that this node takes part in.
    pub fn vnis(&self) -> impl Iterator<Item = Vni> {
        self.networks.iter().map(|(vni, _)| *vni)
    }

    /// Whether `address` is a VTEP address of this node.
    #[inline]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }

    /// Every VTEP with its index.
    pub fn iter(&self) -> impl Iterator<Item = (VtepIndex, &RemoteVtep)> {
        let place = |(i, end): (usize, _)| Some((VtepIndex(i as u32), Option::as_deref(end)?));
        self.ends.iter().enumerate().filter_map(place)
    }

    /// The number of remote VTEPs.
    pub fn len(&self) -> usize {
        self.ends.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a tunnel packet comes from a known VTEP to this node, on a known network.
    ///
    /// # Errors
    /// [`Refusal`], never [`Refusal::InnerSource`]: call [`trusts`](Self::trusts) next.
    #[inline]
    pub fn admit(&self, packet: &Decap) -> Result<Admitted, Refusal> {
        if !self.is_local(packet.destination) {
            return Err(Refusal::NotLocal);
        }
        let zone = self.zone(packet.vni).ok_or(Refusal::UnknownVni)?;
        let end = self.by_source(packet.source, packet.vni).ok_or(Refusal::UnknownVtep)?;
        Ok(Admitted { end, zone })
    }

    /// Whether the VTEP `end` may send from an inner source that the caller's FIB locates `behind`
    /// a VTEP.
    ///
    /// # Errors
    /// [`Refusal::InnerSource`], also for a source that is behind no VTEP.
    #[inline]
    pub fn trusts(&self, end: VtepIndex, behind: Option<VtepIndex>) -> Result<(), Refusal> {
        if behind == Some(end) { Ok(()) } else { Err(Refusal::InnerSource) }
    }

    fn check(&self, end: &RemoteVtep, place: Option<VtepIndex>) -> Result<(), TableError> {
        let vni = end.vni();
        for address in &end.sources {
            if self.is_local(*address) {
                return Err(TableError::OwnAddress(*address));
            }
            if self.by_source(*address, vni).is_some_and(|i| Some(i) != place) {
                return Err(TableError::AddressTaken(*address, vni));
            }
        }
        // VTEPs without a MAC address of their own all have zero, and are not in the index by MAC
        // address.
        let of_mac = self.by_mac(end.mac, vni, end.template.is_ipv6());
        if of_mac.is_some_and(|i| Some(i) != place) {
            return Err(TableError::MacTaken(end.mac, vni));
        }
        Ok(())
    }

    fn put(&mut self, index: VtepIndex, end: RemoteVtep) {
        for address in &end.sources {
            self.by_source.insert((*address, end.vni()), index);
        }
        if end.mac.is_unicast() {
            self.by_mac.insert((end.mac, end.vni(), end.template.is_ipv6()), index);
        }
        self.ends[index.index()] = Some(Arc::new(end));
    }

    fn forget(&mut self, index: VtepIndex) -> Option<Arc<RemoteVtep>> {
        let end = self.ends.get_mut(index.index())?.take()?;
        for address in &end.sources {
            self.by_source.remove(&(*address, end.vni()));
        }
        self.by_mac.remove(&(end.mac, end.vni(), end.template.is_ipv6()));
        Some(end)
    }
}
