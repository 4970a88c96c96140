//! Nodes: VTEPs, pod ranges, MAC addresses, Flannel's annotations.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{RemoteNode, VtepMac};
use podswitch_core::id::Cookie;
use podswitch_policy::rule::Labels;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;
use serde::Deserialize;

use super::annotations::{MAC, VTEP_MAC};
use super::{Content, Context};
use crate::api::core::Node;
use crate::api::meta::ObjectMeta;
use crate::report::{Field, Findings, Grade, quote};
use crate::validate::address::{cidr, host_ip, ip};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const ANNOTATIONS: Field<'static> = METADATA.child("annotations");
const METADATA: Field<'static> = Field::root("metadata");

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeFacts {
    cookie: Cookie,
    pub(crate) name: Arc<str>,
    labels: Labels,
    /// Its addresses, and the field of each. Flannel's come first: they are the VTEPs.
    pub(crate) addresses: Vec<(IpAddr, String)>,
    /// Its ExternalIPs. Used for host ports only.
    pub(crate) external: Vec<IpAddr>,
    /// Its pod ranges, and the field of each.
    pub(crate) ranges: Vec<(Cidr, String)>,
    vtep_mac: Option<Mac>,
    underlay_mac: Option<Mac>,
    pub(crate) flannel: Flannel,
}

impl NodeFacts {
    /// The node with those of its addresses and ranges that it owns.
    pub(crate) fn build(&self, addresses: Vec<IpAddr>, pod_cidrs: Vec<Cidr>) -> RemoteNode {
        let default = |prefix| first_address(&addresses).map_or(Mac::ZERO, |a| mac_of(prefix, a));
        let vtep = match self.vtep_mac {
            Some(mac) => VtepMac { ipv4: mac, ipv6: None },
            None => {
                let ipv4 = self.flannel.mac.unwrap_or(default([0x0e, 0x58]));
                VtepMac { ipv4, ipv6: self.flannel.mac_v6 }
            }
        };
        RemoteNode {
            name: self.name.clone(),
            cookie: self.cookie.clone(),
            labels: self.labels.clone(),
            vtep,
            underlay_mac: self.underlay_mac.unwrap_or(default([0x0a, 0x58])),
            addresses,
            pod_cidrs,
            // The store decides who owns an address.
            precedence: Default::default(),
        }
    }
}

/// Reads one node. The API server does not validate a node's status and annotations, so an error
/// there leaves out the field, not the node.
pub(super) fn read(
    cx: &mut Context<'_>,
    cookie: &Cookie,
    meta: &ObjectMeta,
    node: &Node,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: false, name: name::dns_subdomain };
    object_meta(meta, naming, faults);
    let internal = internal_addresses(node, faults);
    let ranges = pod_ranges(node, faults);
    let (flannel, vteps) = Flannel::read(meta, faults);
    let mut addresses = vteps;
    for (address, field) in internal {
        if !addresses.iter().any(|(vtep, _)| *vtep == address) {
            addresses.push((address, field));
        }
    }
    let mut mac = |key: &'static str| {
        faults.take_field(&ANNOTATIONS.key(key), mac_annotation(meta, key)).flatten()
    };
    let (vtep_mac, underlay_mac) = (mac(VTEP_MAC), mac(MAC));
    if addresses.is_empty() {
        let reason = "has no InternalIP: nothing can be sent to this node's pods";
        faults.say_of_all(Grade::Note, reason);
    }
    Content::Node(Box::new(NodeFacts {
        cookie: cookie.clone(),
        name: cx.names.get(meta.name.as_deref().unwrap_or_default()),
        labels: cx.names.labels(meta.labels()),
        addresses,
        external: external_addresses(node),
        ranges,
        vtep_mac,
        underlay_mac,
        flannel,
    }))
}

/// `status.addresses` of type InternalIP, in order.
fn internal_addresses(node: &Node, faults: &mut Findings) -> Vec<(IpAddr, String)> {
    let (status, mut internal) = (Field::root("status"), Vec::<(IpAddr, String)>::new());
    let list = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    for (at, entry) in list.enumerate().filter(|(_, e)| e.kind.as_deref() == Some("InternalIP")) {
        let field = status.child("addresses");
        let field = field.index(at);
        let field = field.child("address");
        let text = entry.address.as_deref().unwrap_or_default();
        let Some(address) = faults.take_field(&field, ip(text)) else { continue };
        if let Err(reason) = host_ip(text) {
            faults.say(Grade::FieldLeftOut, &field, reason);
        } else if internal.iter().any(|(other, _)| *other == address) {
            faults.say(Grade::FieldRefused, &field, format!("{address} is listed twice"));
        } else {
            internal.push((address, field.to_string()));
        }
    }
    internal
}

/// `status.addresses` of type ExternalIP. Addresses that are not host addresses are ignored.
fn external_addresses(node: &Node) -> Vec<IpAddr> {
    let list = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let external = list.filter(|entry| entry.kind.as_deref() == Some("ExternalIP"));
    external.filter_map(|entry| host_ip(entry.address.as_deref()?).ok()).collect()
}

/// `spec.podCIDRs`, or `spec.podCIDR` if an old object has only that.
fn pod_ranges(node: &Node, faults: &mut Findings) -> Vec<(Cidr, String)> {
    let (field, mut ranges) = (Field::root("spec"), Vec::<(Cidr, String)>::new());
    let Some(spec) = &node.spec else { return ranges };
    let single = spec.pod_cidr.as_deref().filter(|text| !text.is_empty());
    let many = spec.pod_cidrs.as_deref().unwrap_or_default();
    if let (Some(single), Some(first)) = (single, many.first())
        && single != first
    {
        let reason = "is not the same as the first of podCIDRs";
        faults.say(Grade::FieldRefused, &field.child("podCIDR"), reason);
    }
    let (list, single) = (field.child("podCIDRs"), many.is_empty().then_some(single).flatten());
    for (at, text) in many.iter().map(String::as_str).chain(single).enumerate() {
        let field = if many.is_empty() { field.child("podCIDR") } else { list.index(at) };
        let Some((range, _)) = faults.take_field(&field, cidr(text)) else { continue };
        let is_ipv4 = range.address().is_ipv4();
        if ranges.iter().any(|(other, _)| other.address().is_ipv4() == is_ipv4) {
            faults.say(Grade::FieldRefused, &field, "is a second range of the same family");
            continue;
        }
        ranges.push((range, field.to_string()));
    }
    ranges
}

/// Flannel's annotations (flannel-io/flannel, `pkg/subnet/kube/annotations.go`), except for the
/// VTEPs' addresses.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Flannel {
    /// The node has annotations of Flannel's VXLAN backend.
    pub(crate) found: bool,
    pub(crate) vni: Option<u32>,
    mac: Option<Mac>,
    mac_v6: Option<Mac>,
}

/// The content of `backend-data` of a VXLAN backend.
#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    vtep_mac: Option<String>,
}

impl Flannel {
    const PREFIX: &'static str = "flannel.alpha.coreos.com/";

    fn read(meta: &ObjectMeta, faults: &mut Findings) -> (Self, Vec<(IpAddr, String)>) {
        let (mut flannel, mut vteps) = (Self::default(), Vec::new());
        let get = |name| meta.annotation(&format!("{}{name}", Self::PREFIX));
        // Other backends have no tunnel, or a different one.
        if get("backend-type").is_some_and(|kind| kind != "vxlan") {
            return (flannel, vteps);
        }
        for (at, name) in ["public-ip", "public-ipv6"].into_iter().enumerate() {
            let Some(text) = get(name).filter(|text| !text.is_empty()) else { continue };
            let address = host_ip(text).and_then(|address| match address.is_ipv6() == (at == 1) {
                true => Ok(address),
                false => Err(format!("{address} is not of this family")),
            });
            let field = Self::field(name);
            let address = faults.take_field(&field, address);
            vteps.extend(address.map(|address| (address, field.to_string())));
            flannel.found = true;
        }
        for (at, name) in ["backend-data", "backend-v6-data"].into_iter().enumerate() {
            let Some(text) = get(name).filter(|text| !matches!(*text, "" | "null")) else {
                continue;
            };
            let data = faults.take_field(&Self::field(name), Self::data(text));
            let Some(data) = data else { continue };
            flannel.found = true;
            flannel.vni = flannel.vni.or(data.0);
            *[&mut flannel.mac, &mut flannel.mac_v6][at] = data.1;
        }
        // An IPv6-only cluster has only the second device.
        flannel.mac = flannel.mac.or(flannel.mac_v6);
        (flannel, vteps)
    }

    /// The annotation that holds the VNI.
    pub(crate) const VNI_FIELD: Field<'static> =
        ANNOTATIONS.key("flannel.alpha.coreos.com/backend-data");

    fn field(name: &'static str) -> Field<'static> {
        let key = match name {
            "public-ip" => "flannel.alpha.coreos.com/public-ip",
            "public-ipv6" => "flannel.alpha.coreos.com/public-ipv6",
            "backend-data" => return Self::VNI_FIELD,
            _ => "flannel.alpha.coreos.com/backend-v6-data",
        };
        ANNOTATIONS.key(key)
    }

    fn data(text: &str) -> Result<(Option<u32>, Option<Mac>), String> {
        let data: BackendData = serde_json::from_str(text)
            .map_err(|error| format!("is not what Flannel writes for VXLAN: {error}"))?;
        if data.vni.is_some_and(|vni| vni >= 1 << 24) {
            return Err("the VNI has more than 24 bits".to_owned());
        }
        let mac = data.vtep_mac.as_deref().filter(|text| !text.is_empty());
        let mac = mac.map(unicast_mac).transpose().map_err(|why| format!("VtepMAC: {why}"))?;
        Ok((data.vni, mac))
    }
}

/// A MAC address in an annotation.
pub(super) fn mac_annotation(meta: &ObjectMeta, key: &str) -> Result<Option<Mac>, String> {
    meta.annotation(key).map(unicast_mac).transpose()
}

fn unicast_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse().map_err(|error| format!("{}: {error}", quote(text)))?;
    if mac.is_unicast() { Ok(mac) } else { Err(format!("{mac} is not a unicast address")) }
}

/// The address that MAC addresses are derived from: IPv4 if available.
pub(crate) fn first_address(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).copied()
}

/// A MAC address from two bytes and an address (IPv6: its last four bytes).
pub(crate) fn mac_of([a, b]: [u8; 2], address: IpAddr) -> Mac {
    let [c, d, e, f] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., c, d, e, f] = v6.octets();
            [c, d, e, f]
        }
    };
    Mac([a, b, c, d, e, f])
}
