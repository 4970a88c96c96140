//! Pods: addresses, named ports, host ports, and attachment of this node's pods.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podswitch_core::config::Endpoint;
use podswitch_core::id::Cookie;
use podswitch_policy::rule::{NamedPort, Protocol, Workload};
use podswitch_policy::service::model::HostPort;
use podswitch_wire::addr::Mac;

use super::annotations::{ADDRESSES, INTERFACE, MAC, NETNS, PORT};
use super::node::mac_annotation;
use super::{Content, Context, namespace_name};
use crate::api::core::{Container, ContainerPort, Pod, PodStatus};
use crate::api::meta::ObjectMeta;
use crate::options::PodAnnotations;
use crate::report::{Field, Findings, Grade, quote};
use crate::state::{InterfaceKind, PodInterface};
use crate::validate::address::{host_ip, ip};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const METADATA: Field<'static> = Field::root("metadata");
const ANNOTATIONS: Field<'static> = METADATA.child("annotations");
const SPEC: Field<'static> = Field::root("spec");
const STATUS: Field<'static> = Field::root("status");

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodFacts {
    /// The pod with all its addresses.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The field that contains its addresses.
    pub(crate) address_source: AddressSource,
    /// Fields that few pods have.
    pub(crate) more: Option<Box<More>>,
}

/// The field that contains a pod's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressSource {
    /// `status.podIPs`.
    PodIps,
    /// `status.podIP` alone.
    PodIp,
    /// The annotation of its node's agent: the status has no addresses yet.
    Annotation,
}

/// Fields that few pods have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct More {
    /// Container ports that are also opened on the pod's node.
    opened: Vec<Opened>,
    /// MAC address by annotation.
    pub(crate) mac: Option<Mac>,
    /// How it is attached, by annotations.
    pub(crate) interface: Option<PodInterface>,
    /// Addresses of its node according to its status, if the pod uses its node's network and has no
    /// address of its own.
    pub(crate) host_ips: Vec<IpAddr>,
}

/// A container port that is also opened on its node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Opened {
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
    target: u16,
}

impl PodFacts {
    /// The field of the address with index `at`.
    pub(crate) fn address_field(&self, at: usize) -> String {
        match self.address_source {
            AddressSource::PodIps => format!("status.podIPs[{at}].ip"),
            AddressSource::PodIp => "status.podIP".to_owned(),
            AddressSource::Annotation => ANNOTATIONS.key(ADDRESSES).to_string(),
        }
    }

    /// How it is attached, by annotations.
    pub(crate) fn interface(&self) -> Option<&PodInterface> {
        self.more.as_ref()?.interface.as_ref()
    }

    /// Ports of its node that are forwarded to it (P4), for each of `addresses` of the right
    /// family.
    pub(crate) fn host_ports(&self, addresses: &[IpAddr]) -> Vec<HostPort> {
        let mut ports = Vec::new();
        for open in self.more.iter().flat_map(|more| &more.opened) {
            for &target in addresses {
                if open.address.is_some_and(|address| address.is_ipv4() != target.is_ipv4()) {
                    continue;
                }
                ports.push(HostPort {
                    // The unspecified address means all addresses of its family.
                    address: open.address.filter(|address| !address.is_unspecified()),
                    protocol: open.protocol,
                    port: open.port,
                    target: SocketAddr::new(target, open.target),
                });
            }
        }
        ports
    }
}

/// Reads one pod.
pub(super) fn read(
    cx: &mut Context<'_>,
    cookie: &Cookie,
    meta: &ObjectMeta,
    pod: &Pod,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: true, name: name::dns_subdomain };
    object_meta(meta, naming, faults);
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        // It is no longer a peer, and its address may belong to another pod by now.
        let texts = status.pod_ips.iter().flatten().map(|entry| &entry.ip).chain([&status.pod_ip]);
        return Content::EndedPod(texts.filter_map(|text| ip(text.as_deref()?).ok()).collect());
    }
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if !node.is_empty() {
        faults.take(&SPEC.child("nodeName"), name::dns_subdomain(node));
    }
    let (ports, opened) = container_ports(cx, pod, host_network, faults);
    let mut addresses = addresses(cx, status, host_network, faults);
    let mut address_source = match status.pod_ips.as_deref() {
        None | Some([]) => AddressSource::PodIp,
        Some(_) => AddressSource::PodIps,
    };
    if !has_reported_address(status) && !host_network {
        addresses = annotated_addresses(cx, meta, faults);
        address_source = AddressSource::Annotation;
    }
    let mut more = More { opened, ..More::default() };
    if cx.options.pod_annotations == PodAnnotations::Trust {
        attachment(cx, meta, host_network, &mut more, faults);
    }
    if host_network && addresses.is_empty() {
        let many = status.host_ips.iter().flatten().filter_map(|entry| entry.ip.as_deref());
        let texts = many.chain(status.host_ip.as_deref());
        more.host_ips = texts.filter_map(|text| ip(text).ok()).collect();
    }
    if addresses.is_empty() && !host_network {
        // Every new pod starts like this; it needs no attention.
        faults.say_of_all(Grade::Note, "has no address yet");
        return Content::Nothing;
    }
    if node.is_empty() {
        let reason = "is missing: the pod is on no node, and nothing can be sent to it";
        faults.say(Grade::Note, &SPEC.child("nodeName"), reason);
    }
    let namespace = cx.names.get(namespace_name(meta.namespace.as_deref()));
    // No other object contains this string.
    let name = meta.name.as_deref().unwrap_or_default().into();
    let labels = cx.names.labels(meta.labels());
    // There are 150,000 pods, each with one or two addresses.
    let (mut addresses, mut ports) = (addresses, ports);
    addresses.shrink_to_fit();
    ports.shrink_to_fit();
    let endpoint = Endpoint {
        cookie: cookie.clone(),
        workload: Workload { namespace, name, labels, addresses, ports, host_network },
        node: cx.names.get(node),
        attachment: None,
        // The store decides who owns an address.
        precedence: Default::default(),
    };
    Content::Pod(PodFacts {
        endpoint: Arc::new(endpoint),
        address_source,
        more: (more != More::default()).then(|| Box::new(more)),
    })
}

/// Named container ports and those opened on the node, including the ports of sidecars. If several
/// containers have a port with the same name, the first counts, as in the API's own controllers.
pub(crate) fn container_ports(
    cx: &mut Context<'_>,
    pod: &Pod,
    host_network: bool,
    faults: &mut Findings,
) -> (Vec<NamedPort>, Vec<Opened>) {
    let (mut ports, mut opened): (Vec<NamedPort>, Vec<Opened>) = Default::default();
    let Some(spec) = &pod.spec else { return (ports, opened) };
    let mut read = |containers: &[Container], list: &Field<'_>, sidecars_only: bool| {
        for (at, container) in containers.iter().enumerate() {
            let container_field = list.index(at);
            let field = container_field.child("ports");
            let counts = !sidecars_only || container.restart_policy.as_deref() == Some("Always");
            for (at, port) in container.ports.iter().flatten().enumerate() {
                let (named, open) =
                    container_port(cx, port, host_network, &field.index(at), faults);
                if !counts {
                    continue;
                }
                opened.extend(open);
                let Some(named) = named else { continue };
                if !ports.iter().any(|p| p.name == named.name && p.protocol == named.protocol) {
                    ports.push(named);
                }
            }
        }
    };
    let containers = spec.containers.as_deref().unwrap_or_default();
    read(containers, &SPEC.child("containers"), false);
    let containers = spec.init_containers.as_deref().unwrap_or_default();
    read(containers, &SPEC.child("initContainers"), true);
    (ports, opened)
}

/// Validates a container port. Returns it if it has a name, and if it is opened on the node.
fn container_port(
    cx: &mut Context<'_>,
    port: &ContainerPort,
    host_network: bool,
    field: &Field<'_>,
    faults: &mut Findings,
) -> (Option<NamedPort>, Option<Opened>) {
    let number = port_number(port.container_port.unwrap_or(0));
    let number = faults.take(&field.child("containerPort"), number);
    let opened = host_port(port, host_network, field, faults);
    let name = port.name.as_deref().filter(|text| !text.is_empty());
    let name = name.and_then(|text| {
        faults.take(&field.child("name"), name::port_name(text))?;
        Some(cx.names.get(text))
    });
    let protocol = match protocol(port.protocol.as_deref()) {
        Ok(protocol) => Some(protocol),
        Err(reason) => {
            faults.say(Grade::FieldLeftOut, &field.child("protocol"), reason);
            None
        }
    };
    let (Some(number), Some(protocol)) = (number, protocol) else { return (None, None) };
    let opened = opened.filter(|_| !host_network);
    (
        name.map(|name| NamedPort { name, protocol, port: number }),
        opened.map(|(address, port)| Opened { address, protocol, port, target: number }),
    )
}

/// The node's address and port, if the port is opened on the node.
fn host_port(
    port: &ContainerPort,
    host_network: bool,
    field: &Field<'_>,
    faults: &mut Findings,
) -> Option<(Option<IpAddr>, u16)> {
    let address = port.host_ip.as_deref().filter(|text| !text.is_empty());
    let address = address.map(ip).transpose();
    // The API server accepts any text here, so only the host port is left out.
    let address = faults.take_field(&field.child("hostIP"), address);
    // 0 means none in the API server.
    let number = port.host_port.filter(|&number| number != 0)?;
    let note = match address.flatten() {
        Some(address) if address.is_loopback() => {
            Some("is reached by the node's own processes only")
        }
        _ => None,
    };
    if let Some(note) = note {
        let note = format!("hostPort {number} {note}");
        faults.say(Grade::Note, &field.child("hostIP"), note);
    }
    let field = field.child("hostPort");
    if host_network && port.container_port != Some(number) {
        faults.add(&field, "is not the containerPort, as it must be in the node's network");
    }
    let number = faults.take(&field, port_number(number))?;
    Some((address?, number))
}

/// A port number.
pub(super) fn port_number(number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is not a port number, 1 to 65535")),
    }
}

/// A protocol by its name; TCP if there is none.
pub(crate) fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{} is not one of TCP, UDP, SCTP", quote(other))),
    }
}

/// The pod's addresses: one of each family at most.
fn addresses(
    cx: &Context<'_>,
    status: &PodStatus,
    host_network: bool,
    faults: &mut Findings,
) -> Vec<IpAddr> {
    let single = status.pod_ip.as_deref().filter(|text| !text.is_empty());
    let mut many = status.pod_ips.iter().flatten().map(|e| e.ip.as_deref().unwrap_or_default());
    if let (Some(single), Some(first)) = (single, many.clone().next())
        && single != first
    {
        faults.add(&STATUS.child("podIP"), "is not the same as the first of podIPs");
    }
    let list = STATUS.child("podIPs");
    let gateway = cx.options.gateway;
    let mut found: Vec<IpAddr> = Vec::new();
    let alone = status.pod_ips.as_ref().is_none_or(Vec::is_empty);
    for (at, text) in many.by_ref().chain(single.filter(|_| alone)).enumerate() {
        let item = list.index(at);
        let field = if alone { STATUS.child("podIP") } else { item.child("ip") };
        let Some(address) = faults.take(&field, ip(text)) else { continue };
        if !host_network && let Err(reason) = host_ip(text) {
            // The address is valid, so the API server accepts it, but a pod cannot use it.
            faults.say(Grade::FieldLeftOut, &field, reason);
        } else if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            faults.add(&field, "is a second address of the same family");
        } else if !host_network && (address == gateway.ipv4 || address == gateway.ipv6) {
            faults.add(&field, format!("{address} is the gateway's address"));
        } else {
            found.push(address);
        }
    }
    found
}

/// Whether kubelet has reported an address.
pub(crate) fn has_reported_address(status: &PodStatus) -> bool {
    status.pod_ip.as_deref().is_some_and(|text| !text.is_empty())
        || status.pod_ips.as_ref().is_some_and(|list| !list.is_empty())
}

/// The addresses that the pod's node has assigned, for a pod whose status has none yet. An unusable
/// address is left out: the status will correct it soon.
fn annotated_addresses(cx: &Context<'_>, meta: &ObjectMeta, faults: &mut Findings) -> Vec<IpAddr> {
    let (field, gateway) = (ANNOTATIONS.key(ADDRESSES), cx.options.gateway);
    let mut found: Vec<IpAddr> = Vec::new();
    let texts = meta.annotation(ADDRESSES).into_iter().flat_map(|list| list.split(','));
    for text in texts.map(str::trim) {
        let address = match host_ip(text) {
            Err(reason) => Err(reason),
            Ok(address) if address == gateway.ipv4 || address == gateway.ipv6 => {
                Err(format!("{address} is the gateway's address"))
            }
            Ok(address) if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) => {
                Err(format!("{address} is a second address of the same family"))
            }
            Ok(address) => Ok(address),
        };
        match address {
            Ok(address) => found.push(address),
            Err(reason) => faults.say(Grade::FieldLeftOut, &field, reason),
        }
    }
    found
}

/// Reads where and how a pod is attached.
fn attachment(
    cx: &Context<'_>,
    meta: &ObjectMeta,
    host_network: bool,
    more: &mut More,
    faults: &mut Findings,
) {
    let kind = match meta.annotation(PORT) {
        None | Some("tap") => InterfaceKind::Tap,
        Some("veth") => InterfaceKind::Veth,
        Some(other) => {
            let reason = format!("{} is not one of tap, veth", quote(other));
            faults.add(&ANNOTATIONS.key(PORT), reason);
            InterfaceKind::Tap
        }
    };
    let name = meta.annotation(INTERFACE).unwrap_or("eth0");
    faults.take(&ANNOTATIONS.key(INTERFACE), interface_name(name));
    let netns = meta.annotation(NETNS).map(|text| match Path::new(text).is_absolute() {
        true if !text.contains('\0') => Ok(PathBuf::from(text)),
        _ => Err(format!("{} is not an absolute path", quote(text))),
    });
    let netns = netns.and_then(|netns| faults.take(&ANNOTATIONS.key(NETNS), netns));
    let mac = faults.take(&ANNOTATIONS.key(MAC), mac_annotation(meta, MAC)).flatten();
    if host_network {
        if netns.is_some() {
            let reason = "the pod has its node's network, and is not attached";
            faults.say(Grade::FieldLeftOut, &ANNOTATIONS.key(NETNS), reason);
        }
        return;
    }
    let gateway = cx.options.gateway.mac;
    if mac == Some(gateway) {
        faults.add(&ANNOTATIONS.key(MAC), format!("{gateway} is the gateway's address"));
    }
    more.mac = mac;
    more.interface = netns.map(|netns| PodInterface { netns, kind, name: name.to_owned() });
}

/// Name of a network device (Linux `dev_valid_name`).
fn interface_name(text: &str) -> Result<(), String> {
    let why = if text.is_empty() || text.len() > 15 {
        "it must have 1 to 15 bytes"
    } else if matches!(text, "." | "..") || text.contains(['/', ':', '\0']) {
        "it is '.' or '..', or contains '/' or ':'"
    } else if text.contains(char::is_whitespace) {
        "it contains white space"
    } else if text == "lo" {
        "it is the loopback device"
    } else {
        return Ok(());
    };
    Err(format!("{} is not an interface name: {why}", quote(text)))
}
