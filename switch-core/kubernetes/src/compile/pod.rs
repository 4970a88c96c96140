//! Pods: addresses, named ports, and how this node's are attached.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::LocalNode;
use podswitch_core::id::Cookie;
use podswitch_policy::rule::{NamedPort, Protocol, Workload};
use podswitch_policy::service::model::HostPort;
use podswitch_wire::addr::Mac;

use super::node::{first_address, mac_annotation, mac_of};
use super::{Compiler, Endpoint, InterfaceKind, Loaded, LocalPod, PodInterface, namespace};
use crate::api::core::{Container, ContainerPort, Pod, PodStatus};
use crate::api::meta::ObjectMeta;
use crate::refusal::{Faults, Field, Note, quote};
use crate::validate::address::{host_ip, ip};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const METADATA: Field<'static> = Field::root("metadata");
const ANNOTATIONS: Field<'static> = METADATA.child("annotations");
const SPEC: Field<'static> = Field::root("spec");
const STATUS: Field<'static> = Field::root("status");

/// Annotations of a pod.
const NETNS: &str = "podswitch.io/netns";
const PORT: &str = "podswitch.io/port";
const INTERFACE: &str = "podswitch.io/interface";
const MAC: &str = "podswitch.io/mac";

/// All pods, as far as they were read.
#[derive(Default)]
pub(super) struct Pods {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) local: Vec<LocalPod>,
    /// Whose an address is.
    pub(super) owners: HashMap<IpAddr, Cookie>,
    /// Pods that have ended, by cookie, and the addresses that they had.
    pub(super) ended: HashSet<String>,
    pub(super) ended_addresses: HashSet<IpAddr>,
    /// Ports of this node that lead to its pods.
    pub(super) host_ports: Vec<(Cookie, Arc<[HostPort]>)>,
    /// Whose an interface in a network namespace is.
    interfaces: HashMap<(String, PathBuf, String), Cookie>,
}

/// Reads one pod.
pub(super) fn compile(compiler: &mut Compiler<'_>, object: &Loaded, pod: &Pod) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: true, name: name::dns_subdomain };
    object_meta(&object.meta, naming, &mut faults);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        // It is nobody's peer, and its address may be another's by now.
        compiler.pods.ended.insert(object.cookie.as_str().to_owned());
        let status = pod.status.iter();
        let texts =
            status.flat_map(|s| s.pod_ips.iter().flatten().map(|e| &e.ip).chain([&s.pod_ip]));
        let addresses = texts.filter_map(|text| ip(text.as_deref()?).ok());
        compiler.pods.ended_addresses.extend(addresses);
        return compiler.refuse(object, faults);
    }
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if !node.is_empty() {
        faults.take(&SPEC.child("nodeName"), name::dns_subdomain(node));
    }
    let (ports, host_ports) = container_ports(compiler, pod, host_network, &mut faults);
    let addresses = addresses(compiler, object, pod, host_network, &mut faults);
    let attachment = attachment(&object.meta, &mut faults);
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    let namespace = namespace::of(compiler, object);
    if addresses.is_empty() {
        return compiler.note(object, "has no address yet, and is left out");
    }
    if node.is_empty() {
        compiler.note(object, "is on no node (spec.nodeName): nothing can be sent to it");
    }
    let name = compiler.names.get(object.meta.name.as_deref().unwrap_or_default());
    let labels = compiler.names.labels(object.meta.labels());
    let endpoint = Endpoint {
        cookie: object.cookie.clone(),
        workload: Workload { namespace, name, labels, addresses, ports, host_network },
        node: compiler.names.get(node),
        attachment: None,
        precedence: Default::default(),
    };
    if !host_network {
        check_attachment(compiler, object, node, &attachment);
    }
    if compiler.node == Some(node) && !host_network {
        attach(compiler, object, &endpoint, attachment);
        open_host_ports(compiler, &endpoint, &host_ports);
    } else if host_network && object.meta.annotation(NETNS).is_some() {
        compiler.note(object, "has its node's network and is not attached");
    }
    compiler.pods.endpoints.push(Arc::new(endpoint));
}

/// A container port that its node opens, too.
struct Opened {
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
    target: u16,
}

/// Named container ports and those that the node opens; the ports of sidecars among them. Of
/// containers that name a port alike the first one counts, as for the API's own controllers.
fn container_ports(
    compiler: &mut Compiler<'_>,
    pod: &Pod,
    host_network: bool,
    faults: &mut Faults,
) -> (Vec<NamedPort>, Vec<Opened>) {
    let (mut ports, mut opened): (Vec<NamedPort>, Vec<Opened>) = Default::default();
    let Some(spec) = &pod.spec else { return (ports, opened) };
    let mut read = |containers: &[Container], list: &Field<'_>, sidecars_only: bool| {
        for (at, container) in containers.iter().enumerate() {
            let container_field = list.index(at);
            let field = container_field.child("ports");
            let counts = !sidecars_only || container.restart_policy.as_deref() == Some("Always");
            for (at, port) in container.ports.iter().flatten().enumerate() {
                let field = field.index(at);
                let (named, open) = container_port(compiler, port, host_network, &field, faults);
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

/// Checks a container port. Gives it if it has a name, and if the node opens it.
fn container_port(
    compiler: &mut Compiler<'_>,
    port: &ContainerPort,
    host_network: bool,
    field: &Field<'_>,
    faults: &mut Faults,
) -> (Option<NamedPort>, Option<Opened>) {
    let number = port_number(port.container_port.unwrap_or(0));
    let number = faults.take(&field.child("containerPort"), number);
    let protocol = protocol(port.protocol.as_deref());
    let protocol = faults.take(&field.child("protocol"), protocol);
    let opened = host_port(port, host_network, field, faults);
    let name = port.name.as_deref().filter(|text| !text.is_empty());
    let name = name.and_then(|text| {
        faults.take(&field.child("name"), name::port_name(text))?;
        Some(compiler.names.get(text))
    });
    let (Some(number), Some(protocol)) = (number, protocol) else { return (None, None) };
    let opened = opened.filter(|_| !host_network);
    (
        name.map(|name| NamedPort { name, protocol, port: number }),
        opened.map(|(address, port)| Opened { address, protocol, port, target: number }),
    )
}

/// The node's address and port, if the node opens the port.
fn host_port(
    port: &ContainerPort,
    host_network: bool,
    field: &Field<'_>,
    faults: &mut Faults,
) -> Option<(Option<IpAddr>, u16)> {
    let address = port.host_ip.as_deref().filter(|text| !text.is_empty());
    let address = address.map(ip).transpose();
    let address = faults.take(&field.child("hostIP"), address).flatten();
    // 0 is what the API server sees where there is none.
    let number = port.host_port.filter(|&number| number != 0)?;
    let field = field.child("hostPort");
    if host_network && port.container_port != Some(number) {
        faults.add(&field, "not the containerPort, which it is in the node's network");
    }
    Some((address, faults.take(&field, port_number(number))?))
}

/// Opens ports of this node (P4): for each of the pod's addresses of the right family.
fn open_host_ports(compiler: &mut Compiler<'_>, endpoint: &Endpoint, opened: &[Opened]) {
    let mut ports = Vec::new();
    for open in opened {
        for &target in &endpoint.workload.addresses {
            if open.address.is_some_and(|address| address.is_ipv4() != target.is_ipv4()) {
                continue;
            }
            ports.push(HostPort {
                // The unspecified address means all of its family.
                address: open.address.filter(|address| !address.is_unspecified()),
                protocol: open.protocol,
                port: open.port,
                target: SocketAddr::new(target, open.target),
            });
        }
    }
    if !ports.is_empty() {
        compiler.pods.host_ports.push((endpoint.cookie.clone(), ports.into()));
    }
}

/// What is to be known of host ports that are not at the node's first addresses.
pub(super) fn notes_on_host_ports(
    pods: &[(Cookie, Arc<[HostPort]>)],
    node: &LocalNode,
) -> Vec<Note> {
    let mut notes = Vec::new();
    for (pod, ports) in pods {
        for (HostPort { port, .. }, address) in
            ports.iter().filter_map(|port| Some((port, port.address?)))
        {
            let what = match address {
                IpAddr::V4(v4) if v4.is_loopback() => "is for the node's own processes only",
                IpAddr::V6(v6) if v6.is_loopback() => {
                    "is not opened: the kernel keeps IPv6 loopback to itself"
                }
                _ if node.addresses.contains(&address) => continue,
                _ if node.local_addresses.contains(&address) => continue,
                _ => "is opened while the node has that address",
            };
            let text = format!("{pod}: hostPort {port} at {address} {what}");
            notes.push(Note { origin: None, text });
        }
    }
    notes
}

/// A port number.
pub(super) fn port_number(number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is not a port number, 1 to 65535")),
    }
}

/// A protocol by its name; TCP if there is none.
pub(super) fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{} is not one of TCP, UDP, SCTP", quote(other))),
    }
}

/// The pod's addresses: one of each family at most. A pod with its node's network has its node's.
fn addresses(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    pod: &Pod,
    host_network: bool,
    faults: &mut Faults,
) -> Vec<IpAddr> {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let single = status.pod_ip.as_deref().filter(|text| !text.is_empty());
    let mut many = status.pod_ips.iter().flatten().map(|e| e.ip.as_deref().unwrap_or_default());
    if let (Some(single), Some(first)) = (single, many.clone().next())
        && single != first
    {
        faults.add(&STATUS.child("podIP"), "not the same as the first of podIPs");
    }
    let list = STATUS.child("podIPs");
    let check = if host_network { ip } else { host_ip };
    let mut found: Vec<IpAddr> = Vec::new();
    let alone = status.pod_ips.as_ref().is_none_or(Vec::is_empty);
    for (at, text) in many.by_ref().chain(single.filter(|_| alone)).enumerate() {
        let item = list.index(at);
        let field = if alone { STATUS.child("podIP") } else { item.child("ip") };
        let Some(address) = faults.take(&field, check(text)) else { continue };
        if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            faults.add(&field, "more than one address of a family");
            continue;
        }
        if !host_network {
            own(compiler, object, address, &field, faults);
        }
        found.push(address);
    }
    if found.is_empty() && host_network {
        return host_addresses(compiler, pod, status);
    }
    found
}

/// Makes `address` this pod's, unless another or a node has it.
fn own(
    compiler: &mut Compiler<'_>,
    object: &Loaded,
    address: IpAddr,
    field: &Field<'_>,
    faults: &mut Faults,
) {
    let gateway = compiler.options.gateway;
    if address == gateway.ipv4 || address == gateway.ipv6 {
        return faults.add(field, format!("{address} is the gateway's address"));
    }
    if let Some(node) = compiler.nodes.owners.get(&address) {
        return faults.add(field, format!("{address} is {node}'s address"));
    }
    let owner = compiler.pods.owners.entry(address).or_insert_with(|| object.cookie.clone());
    if *owner != object.cookie {
        faults.add(field, format!("{address} is also {owner}'s address"));
    }
}

/// The addresses of a pod with its node's network that does not say them itself.
fn host_addresses(compiler: &Compiler<'_>, pod: &Pod, status: &PodStatus) -> Vec<IpAddr> {
    let many = status.host_ips.iter().flatten().filter_map(|entry| entry.ip.as_deref());
    let texts = many.chain(status.host_ip.as_deref());
    let mut candidates: Vec<IpAddr> = texts.filter_map(|text| ip(text).ok()).collect();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if let Some(node) = node.and_then(|name| compiler.nodes.get(name)) {
        candidates.extend(&node.addresses);
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for address in candidates {
        if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    found
}

/// What a pod's annotations say.
struct Annotated {
    mac: Option<Mac>,
    interface: Option<PodInterface>,
}

fn attachment(meta: &ObjectMeta, faults: &mut Faults) -> Annotated {
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
        _ => Err(format!("{} is no absolute path", quote(text))),
    });
    let netns = netns.and_then(|netns| faults.take(&ANNOTATIONS.key(NETNS), netns));
    let mac = faults.take(&ANNOTATIONS.key(MAC), mac_annotation(meta, MAC)).flatten();
    let interface = netns.map(|netns| PodInterface { netns, kind, name: name.to_owned() });
    Annotated { mac, interface }
}

/// Name of a network device (Linux `dev_valid_name`).
fn interface_name(text: &str) -> Result<(), String> {
    let why = if text.is_empty() || text.len() > 15 {
        "it has not 1 to 15 bytes"
    } else if matches!(text, "." | "..") || text.contains(['/', ':', '\0']) {
        "it has one of '/', ':' in it or is a folder's"
    } else if text.contains(char::is_whitespace) {
        "it has white space in it"
    } else {
        return Ok(());
    };
    Err(format!("{} is no interface name: {why}", quote(text)))
}

/// What is wrong with a pod's attachment whatever node looks at it.
fn check_attachment(compiler: &mut Compiler<'_>, object: &Loaded, node: &str, found: &Annotated) {
    let mut faults = Faults::default();
    let gateway = compiler.options.gateway.mac;
    if found.mac == Some(gateway) {
        faults.add(&ANNOTATIONS.key(MAC), format!("{gateway} is the gateway's address"));
    }
    if let Some(interface) = &found.interface {
        let key = (node.to_owned(), interface.netns.clone(), interface.name.clone());
        let owners = &mut compiler.pods.interfaces;
        let owner = owners.entry(key).or_insert_with(|| object.cookie.clone());
        if *owner != object.cookie {
            let (name, netns) = (&interface.name, interface.netns.display());
            let reason = format!("{name} of {netns} is also {owner}'s");
            faults.add(&ANNOTATIONS.key(NETNS), reason);
        }
    }
    compiler.refuse(object, faults);
}

/// Adds a pod to those of this node.
fn attach(compiler: &mut Compiler<'_>, object: &Loaded, endpoint: &Endpoint, found: Annotated) {
    let addresses = endpoint.workload.addresses.clone();
    let default = || first_address(&addresses).map_or(Mac::ZERO, |a| mac_of([0x0a, 0x58], a));
    compiler.pods.local.push(LocalPod {
        name: format!("{}/{}", endpoint.workload.namespace, endpoint.workload.name),
        cookie: object.cookie.clone(),
        endpoint: compiler.pods.endpoints.len(),
        mac: found.mac.unwrap_or_else(default),
        addresses,
        interface: found.interface,
    });
}
