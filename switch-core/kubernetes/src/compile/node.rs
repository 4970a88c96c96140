//! Nodes: tunnel ends, what lies behind them, link-layer addresses, Flannel's annotations.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::config::{Gateway, LocalNode, RemoteNode, VtepMac};
use podswitch_core::id::Cookie;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;
use serde::Deserialize;

use super::{Compiler, Loaded};
use crate::api::core::Node;
use crate::api::meta::ObjectMeta;
use crate::refusal::{Faults, Field, Note, Source};
use crate::validate::address::{cidr, covers, host_ip};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const ANNOTATIONS: Field<'static> = METADATA.child("annotations");
const METADATA: Field<'static> = Field::root("metadata");

/// All nodes, as far as they were read. This node is among them until the end.
#[derive(Default)]
pub(super) struct Nodes {
    pub(super) list: Vec<RemoteNode>,
    by_name: HashMap<Arc<str>, usize>,
    /// ExternalIPs of those nodes that have some.
    external: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Whose an address is.
    pub(super) owners: HashMap<IpAddr, Cookie>,
    /// Every node's ranges and where they were written, for the check of overlaps.
    ranges: Vec<(Cidr, String, Cookie, Source)>,
    /// What Flannel's annotations say of the overlay, and the first that said it.
    flannel: Option<(Overlay, Option<Cookie>)>,
}

/// What Flannel's annotations say of the overlay as a whole. A node can then join a Flannel
/// cluster, whose tunnels use UDP port 8472.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The VXLAN network identifier, the same on all nodes.
    pub vni: Option<u32>,
}

impl Nodes {
    /// The node of that name.
    pub(super) fn get(&self, name: &str) -> Option<&RemoteNode> {
        self.by_name.get(name).map(|&at| &self.list[at])
    }

    /// What Flannel's annotations say, if any node has them.
    pub(super) fn flannel(&self) -> Option<Overlay> {
        self.flannel.as_ref().map(|(overlay, _)| *overlay)
    }

    /// This node and the others.
    pub(super) fn split(
        self,
        node: Option<&str>,
        gateway: Gateway,
        notes: &mut Vec<Note>,
    ) -> (LocalNode, Vec<Arc<RemoteNode>>) {
        let mut local = LocalNode { gateway, ..LocalNode::default() };
        let (mut found, mut remote) = (false, Vec::with_capacity(self.list.len()));
        let mut external = self.external;
        for other in self.list {
            if node != Some(&other.name) {
                remote.push(Arc::new(other));
                continue;
            }
            found = true;
            local = LocalNode {
                local_addresses: external.remove(&other.name).unwrap_or_default(),
                name: other.name,
                labels: other.labels,
                addresses: other.addresses,
                pod_cidrs: other.pod_cidrs,
                vtep: other.vtep,
                underlay_mac: other.underlay_mac,
                gateway,
                ..LocalNode::default()
            };
        }
        if let Some(name) = node.filter(|_| !found) {
            local.name = name.into();
            let text = format!("there is no Node object for this node, {name}");
            notes.push(Note { origin: None, text });
        }
        (local, remote)
    }
}

/// Reads one node.
pub(super) fn compile(compiler: &mut Compiler<'_>, object: &Loaded, node: &Node) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: false, name: name::dns_subdomain };
    object_meta(&object.meta, naming, &mut faults);
    let internal = internal_addresses(compiler, object, node, &mut faults);
    let ranges = pod_ranges(compiler, object, node, &mut faults);
    let flannel = Flannel::read(&object.meta, &mut faults);
    let mut addresses: Vec<IpAddr> = flannel.ends.into_iter().flatten().collect();
    addresses.extend(internal.iter().filter(|address| !flannel.ends.contains(&Some(**address))));
    for end in flannel.ends.into_iter().flatten().filter(|end| !internal.contains(end)) {
        own(compiler, object, end, &ANNOTATIONS, &mut faults);
    }
    let default = |prefix| first_address(&addresses).map_or(Mac::ZERO, |a| mac_of(prefix, a));
    let explicit = |key| mac_annotation(&object.meta, key);
    let vtep_mac =
        faults.take(&ANNOTATIONS.key("podswitch.io/vtep-mac"), explicit("podswitch.io/vtep-mac"));
    let underlay_mac =
        faults.take(&ANNOTATIONS.key("podswitch.io/mac"), explicit("podswitch.io/mac"));
    check_overlay(compiler, object, &flannel, &mut faults);
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    if addresses.is_empty() {
        compiler.note(object, "no InternalIP: nothing can be sent to this node's pods");
    }
    let name = compiler.names.get(object.meta.name.as_deref().unwrap_or_default());
    let vtep = match vtep_mac.flatten() {
        Some(mac) => VtepMac { ipv4: mac, ipv6: None },
        None => {
            VtepMac { ipv4: flannel.mac.unwrap_or(default([0x0e, 0x58])), ipv6: flannel.mac_v6 }
        }
    };
    let external = external_addresses(node);
    let node = RemoteNode {
        name: name.clone(),
        cookie: object.cookie.clone(),
        labels: compiler.names.labels(object.meta.labels()),
        vtep,
        underlay_mac: underlay_mac.flatten().unwrap_or(default([0x0a, 0x58])),
        addresses,
        pod_cidrs: ranges,
        precedence: Default::default(),
    };
    if !external.is_empty() {
        compiler.nodes.external.insert(name.clone(), external);
    }
    compiler.nodes.by_name.insert(name, compiler.nodes.list.len());
    compiler.nodes.list.push(node);
}

/// `status.addresses` of type InternalIP, in their order.
fn internal_addresses(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    node: &Node,
    faults: &mut Faults,
) -> Vec<IpAddr> {
    let (status, mut internal) = (Field::root("status"), Vec::new());
    let list = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    for (at, entry) in list.enumerate().filter(|(_, e)| e.kind.as_deref() == Some("InternalIP")) {
        let field = status.child("addresses");
        let field = field.index(at);
        let field = field.child("address");
        let text = entry.address.as_deref().unwrap_or_default();
        let Some(address) = faults.take(&field, host_ip(text)) else { continue };
        if internal.contains(&address) {
            faults.add(&field, format!("{address} stands twice"));
            continue;
        }
        own(compiler, object, address, &field, faults);
        internal.push(address);
    }
    internal
}

/// `status.addresses` of type ExternalIP; what is no address of a host is passed over, since nothing
/// but host ports is there.
fn external_addresses(node: &Node) -> Vec<IpAddr> {
    let list = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let external = list.filter(|entry| entry.kind.as_deref() == Some("ExternalIP"));
    external.filter_map(|entry| host_ip(entry.address.as_deref()?).ok()).collect()
}

/// Makes `address` this node's, unless another has it.
fn own(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    address: IpAddr,
    field: &Field<'_>,
    faults: &mut Faults,
) {
    let owner = compiler.nodes.owners.entry(address).or_insert_with(|| object.cookie.clone());
    if *owner != object.cookie {
        faults.add(field, format!("{address} is {owner}'s address"));
    }
}

/// `spec.podCIDRs`, or `spec.podCIDR` where an old object has only that.
fn pod_ranges(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    node: &Node,
    faults: &mut Faults,
) -> Vec<Cidr> {
    let (field, mut ranges) = (Field::root("spec"), Vec::new());
    let Some(spec) = &node.spec else { return ranges };
    let single = spec.pod_cidr.as_deref().filter(|text| !text.is_empty());
    let many = spec.pod_cidrs.as_deref().unwrap_or_default();
    if let (Some(single), Some(first)) = (single, many.first())
        && single != first
    {
        faults.add(&field.child("podCIDR"), "not the same as the first of podCIDRs");
    }
    let (list, single) = (field.child("podCIDRs"), many.is_empty().then_some(single).flatten());
    for (at, text) in many.iter().map(String::as_str).chain(single).enumerate() {
        let field = if many.is_empty() { field.child("podCIDR") } else { list.index(at) };
        let Some((range, _)) = faults.take(&field, cidr(text)) else { continue };
        if ranges.iter().any(|r: &Cidr| r.address().is_ipv4() == range.address().is_ipv4()) {
            faults.add(&field, "more than one range of a family");
            continue;
        }
        let entry = (range, field.to_string(), object.cookie.clone(), object.origin.clone());
        compiler.nodes.ranges.push(entry);
        ranges.push(range);
    }
    ranges
}

/// Refuses ranges that overlap those of nodes before.
pub(super) fn check_ranges(compiler: &mut Compiler<'_>) {
    let ranges = std::mem::take(&mut compiler.nodes.ranges);
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&at| (ranges[at].0.address(), ranges[at].0.prefix(), at));
    // Ranges either hold one another or have nothing in common, so that of sorted ones those that
    // hold the one at hand are a stack.
    let mut holders: Vec<usize> = Vec::new();
    let mut first_before: Vec<Option<usize>> = vec![None; ranges.len()];
    for at in order {
        while holders.last().is_some_and(|&last| !covers(ranges[last].0, ranges[at].0)) {
            holders.pop();
        }
        for &holder in &holders {
            let (former, latter) = (at.min(holder), at.max(holder));
            let first = first_before[latter].get_or_insert(former);
            *first = former.min(*first);
        }
        holders.push(at);
    }
    for ((range, field, object, origin), before) in ranges.iter().zip(first_before) {
        let Some((other, _, owner, _)) = before.map(|before| &ranges[before]) else { continue };
        compiler.refusals.push(crate::Refusal {
            origin: origin.clone(),
            object: object.clone(),
            field: field.clone(),
            reason: format!("{range} overlaps {other} of {owner}"),
        });
    }
}

/// Flannel's annotations (flannel-io/flannel, `pkg/subnet/kube/annotations.go`).
#[derive(Default)]
struct Flannel {
    found: bool,
    /// Tunnel ends, IPv4 and IPv6.
    ends: [Option<IpAddr>; 2],
    vni: Option<u32>,
    mac: Option<Mac>,
    mac_v6: Option<Mac>,
}

/// What `backend-data` of a VXLAN backend holds.
#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    vtep_mac: Option<String>,
}

impl Flannel {
    const PREFIX: &'static str = "flannel.alpha.coreos.com/";

    fn read(meta: &ObjectMeta, faults: &mut Faults) -> Self {
        let mut flannel = Self::default();
        let get = |name| meta.annotation(&format!("{}{name}", Self::PREFIX));
        // Other backends have no tunnel, or not ours.
        if get("backend-type").is_some_and(|kind| kind != "vxlan") {
            return flannel;
        }
        for (at, name) in ["public-ip", "public-ipv6"].into_iter().enumerate() {
            let Some(text) = get(name).filter(|text| !text.is_empty()) else { continue };
            let address = host_ip(text).and_then(|address| match address.is_ipv6() == (at == 1) {
                true => Ok(address),
                false => Err(format!("{address} is not of this family")),
            });
            flannel.ends[at] = faults.take(&Self::field(name), address);
            flannel.found = true;
        }
        for (at, name) in ["backend-data", "backend-v6-data"].into_iter().enumerate() {
            let Some(text) = get(name).filter(|text| !matches!(*text, "" | "null")) else {
                continue;
            };
            let Some(data) = faults.take(&Self::field(name), Self::data(text)) else { continue };
            flannel.found = true;
            flannel.vni = flannel.vni.or(data.0);
            *[&mut flannel.mac, &mut flannel.mac_v6][at] = data.1;
        }
        // An IPv6-only cluster has only the second device.
        flannel.mac = flannel.mac.or(flannel.mac_v6);
        flannel
    }

    fn field(name: &'static str) -> Field<'static> {
        let key = match name {
            "public-ip" => "flannel.alpha.coreos.com/public-ip",
            "public-ipv6" => "flannel.alpha.coreos.com/public-ipv6",
            "backend-data" => "flannel.alpha.coreos.com/backend-data",
            _ => "flannel.alpha.coreos.com/backend-v6-data",
        };
        ANNOTATIONS.key(key)
    }

    fn data(text: &str) -> Result<(Option<u32>, Option<Mac>), String> {
        let data: BackendData = serde_json::from_str(text)
            .map_err(|error| format!("not what Flannel writes for VXLAN: {error}"))?;
        if data.vni.is_some_and(|vni| vni >= 1 << 24) {
            return Err("VNI is beyond 24 bits".to_owned());
        }
        let mac = data.vtep_mac.as_deref().filter(|text| !text.is_empty());
        let mac = mac.map(unicast_mac).transpose().map_err(|why| format!("VtepMAC: {why}"))?;
        Ok((data.vni, mac))
    }
}

/// One overlay has one VNI.
fn check_overlay(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    flannel: &Flannel,
    faults: &mut Faults,
) {
    if !flannel.found {
        return;
    }
    let (overlay, owner) = compiler.nodes.flannel.get_or_insert_default();
    let Some(vni) = flannel.vni else { return };
    let first = *overlay.vni.get_or_insert(vni);
    let owner = owner.get_or_insert_with(|| object.cookie.clone());
    if first != vni {
        let reason = format!("VNI {vni}, but {owner} has {first}");
        faults.add(&Flannel::field("backend-data"), reason);
    }
}

/// A MAC address in an annotation.
pub(super) fn mac_annotation(meta: &ObjectMeta, key: &str) -> Result<Option<Mac>, String> {
    meta.annotation(key).map(unicast_mac).transpose()
}

fn unicast_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac =
        text.parse().map_err(|error| format!("{}: {error}", crate::refusal::quote(text)))?;
    if mac.is_unicast() { Ok(mac) } else { Err(format!("{mac} is no address of one interface")) }
}

/// The address that link-layer addresses are made from: IPv4 if there is one.
pub(super) fn first_address(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).copied()
}

/// A link-layer address from two bytes and an address (IPv6: its last four bytes).
pub(super) fn mac_of([a, b]: [u8; 2], address: IpAddr) -> Mac {
    let [c, d, e, f] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., c, d, e, f] = v6.octets();
            [c, d, e, f]
        }
    };
    Mac([a, b, c, d, e, f])
}
