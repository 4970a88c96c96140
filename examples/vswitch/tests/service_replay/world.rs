//! The cluster that all tests play in: its nodes, pods and whoever is outside, and manifests of
//! Services and slices.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use podswitch_wire::addr::Mac;

use podswitch_testkit::rig::frames as bytes;
use podswitch_vswitch_testkit::mac;

pub(crate) const FAMILIES: [bool; 2] = [false, true];

/// Ranges that cluster IPs are of.
pub(crate) const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// Somebody who sends frames to the switch of node n1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Host {
    /// Pod `a/x` and so on, by the last byte of its addresses.
    Pod(&'static str, u8),
    /// The node itself.
    Node,
    /// A router beside the node's NIC, behind which clients off the cluster are.
    Outside,
}

/// Pods of node n1: a client, and backends.
pub(crate) const X: Host = Host::Pod("x", 2);
pub(crate) const Y: Host = Host::Pod("y", 3);
pub(crate) const Z: Host = Host::Pod("z", 4);
pub(crate) const NODE: Host = Host::Node;
pub(crate) const OUTSIDE: Host = Host::Outside;
const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 9]);
const GATEWAY: Mac = Mac([0xee; 6]);

impl Host {
    /// Its address; for [`Host::Outside`] that of a client there.
    pub(crate) fn ip(self, v6: bool) -> IpAddr {
        match self {
            Self::Pod(_, n) => pod_ip(n, v6),
            Self::Node => node_ip(v6),
            Self::Outside => address(v6, "203.0.113.7", "2001:db8::7"),
        }
    }

    /// Its address and a port.
    pub(crate) fn at(self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(v6), port)
    }

    /// The switch's port that it is at.
    pub(crate) fn port(self) -> String {
        match self {
            Self::Pod(name, _) => format!("a/{name}"),
            Self::Node => "host".to_owned(),
            Self::Outside => "uplink".to_owned(),
        }
    }

    /// That port's capture.
    pub(crate) fn file(self) -> String {
        self.port().replace('/', "_")
    }

    /// A packet as it sends it: to the gateway, or from outside to the node.
    pub(crate) fn frame(self, packet: &[u8]) -> Vec<u8> {
        let (to, from) = match self {
            Self::Pod(_, n) => (GATEWAY, Mac(mac([10, 1, 0, n].into()))),
            Self::Node => (GATEWAY, Mac(mac([192, 0, 2, 1].into()))),
            Self::Outside => (Mac(mac([192, 0, 2, 1].into())), ROUTER),
        };
        let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        bytes::ethernet(to, from, ethertype, packet)
    }
}

fn address(v6: bool, four: &str, six: &str) -> IpAddr {
    if v6 { six } else { four }.parse().expect("an address")
}

/// The address of a pod of n1 by number.
pub(crate) fn pod_ip(number: u8, v6: bool) -> IpAddr {
    address(v6, &format!("10.1.0.{number}"), &format!("fd00:1::{number}"))
}

/// The address of a pod of n2 by number.
pub(crate) fn remote_ip(number: u8, v6: bool) -> IpAddr {
    address(v6, &format!("10.2.0.{number}"), &format!("fd00:2::{number}"))
}

/// n1's address.
pub(crate) fn node_ip(v6: bool) -> IpAddr {
    address(v6, "192.0.2.1", "fd01::1")
}

/// n2's address.
pub(crate) fn other_node_ip(v6: bool) -> IpAddr {
    address(v6, "192.0.2.2", "fd01::2")
}

/// The gateway as pods see it.
pub(crate) fn gateway_ip(v6: bool) -> IpAddr {
    address(v6, "169.254.1.1", "fe80::1")
}

/// The cluster IP `10.96.0.N`, `fd00:96::N`.
pub(crate) fn vip(number: u8, v6: bool, port: u16) -> SocketAddr {
    let ip = address(v6, &format!("10.96.0.{number}"), &format!("fd00:96::{number}"));
    SocketAddr::new(ip, port)
}

/// Two nodes in two zones, pods x, y and z on n1, r on n2.
pub(crate) fn cluster() -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n".to_owned();
    for n in [1, 2] {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\n\
             metadata: {{name: n{n}, labels: {{topology.kubernetes.io/zone: z{n}}}}}\n\
             spec: {{podCIDRs: [10.{n}.0.0/24, 'fd00:{n}::/64']}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.0.2.{n}}}, \
             {{type: InternalIP, address: 'fd01::{n}'}}]}}\n"
        );
    }
    for Named(name, number) in [Named("x", 2), Named("y", 3), Named("z", 4)] {
        text += &pod(name, 1, number, "");
    }
    text + &pod("r", 2, 5, "")
}

struct Named(&'static str, u8);

/// A pod of namespace `a`; `spec` is YAML for its `spec` beside the node's name.
pub(crate) fn pod(name: &str, node: u8, number: u8, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: a, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: n{node}, {spec}}}\n\
         status: {{phase: Running, podIPs: [{{ip: 10.{node}.0.{number}}}, \
         {{ip: 'fd00:{node}::{number}'}}]}}\n"
    )
}

/// The cluster without one of its pods.
pub(crate) fn cluster_without(name: &str) -> String {
    let cluster = cluster();
    let keep = |part: &&str| !part.contains(&format!("metadata: {{name: {name}, namespace"));
    cluster.split("---\n").filter(keep).collect::<Vec<_>>().join("---\n")
}

/// Service `a/NAME` at `10.96.0.N`, with the rest of its `spec` (ports too).
pub(crate) fn service(name: &str, number: u8, spec: &str) -> String {
    service_of(name, number, "", spec, "")
}

/// The same with metadata and status.
pub(crate) fn service_of(
    name: &str,
    number: u8,
    metadata: &str,
    spec: &str,
    status: &str,
) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a, {metadata}}}\n\
         spec: {{clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}, 'fd00:96::{number}'], \
         ipFamilies: [IPv4, IPv6], {spec}}}\nstatus: {{{status}}}\n"
    )
}

/// Ports `t` (TCP), `u` (UDP) and `s` (SCTP), each 80, for a Service.
pub(crate) const PORTS: &str = "ports: [{name: t, port: 80, targetPort: 8080}, \
    {name: u, port: 80, targetPort: 8080, protocol: UDP}, \
    {name: s, port: 80, targetPort: 8080, protocol: SCTP}]";

/// The same with node ports 30080.
pub(crate) const NODE_PORTS: &str = "ports: [{name: t, port: 80, nodePort: 30080}, \
    {name: u, port: 80, nodePort: 30080, protocol: UDP}, \
    {name: s, port: 80, nodePort: 30080, protocol: SCTP}]";

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub(crate) struct End {
    four: String,
    six: String,
    node: String,
    more: String,
}

impl End {
    /// A pod of n1, ready.
    pub(crate) fn pod(host: Host) -> Self {
        let Host::Pod(_, number) = host else { panic!("{host:?} is no pod") };
        Self::new([pod_ip(number, false), pod_ip(number, true)], "n1")
    }

    /// Pod r of n2, or another number there.
    pub(crate) fn remote(number: u8) -> Self {
        Self::new([remote_ip(number, false), remote_ip(number, true)], "n2")
    }

    /// A pod in n1's own network.
    pub(crate) fn node() -> Self {
        Self::new([node_ip(false), node_ip(true)], "n1")
    }

    /// A server off the cluster, as a Service without a selector may have.
    pub(crate) fn outside() -> Self {
        Self::new([OUTSIDE.ip(false), OUTSIDE.ip(true)], "null")
    }

    fn new(ips: [IpAddr; 2], node: &str) -> Self {
        let [four, six] = ips.map(|ip| ip.to_string());
        Self { four, six, node: node.to_owned(), more: String::new() }
    }

    /// With these conditions: ready, serving, terminating.
    pub(crate) fn state(self, ready: bool, serving: bool, terminating: bool) -> Self {
        self.with(&format!(
            "conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}"
        ))
    }

    /// With hints for these zones and nodes.
    pub(crate) fn hints(self, zone: &str, node: &str) -> Self {
        let list = |name: &str, of: &str| match of {
            "" => String::new(),
            of => format!("{name}: [{{name: {of}}}], "),
        };
        let hints = list("forZones", zone) + &list("forNodes", node);
        self.with(&format!("hints: {{{hints}}}"))
    }

    /// With more fields, as YAML.
    pub(crate) fn with(mut self, more: &str) -> Self {
        self.more = format!("{}, {more}", self.more);
        self
    }
}

/// Slices of Service `a/SERVICE`, one a family; every port of [`PORTS`] leads to 8080.
pub(crate) fn slices(service: &str, ends: &[End]) -> String {
    slices_of(service, service, 8080, ends)
}

/// Slices with names of their own and a target port of their own.
pub(crate) fn slices_of(name: &str, service: &str, target: u16, ends: &[End]) -> String {
    let ports = [("t", "TCP"), ("u", "UDP"), ("s", "SCTP")];
    let port = |(name, protocol)| format!("{{name: {name}, port: {target}, protocol: {protocol}}}");
    let ports = ports.map(port).join(", ");
    let mut text = String::new();
    for family in ["IPv4", "IPv6"] {
        let end = |end: &End| {
            let address = if family == "IPv4" { &end.four } else { &end.six };
            format!("{{addresses: ['{address}'], nodeName: {}{}}}", end.node, end.more)
        };
        let list = ends.iter().map(end).collect::<Vec<_>>().join(", ");
        let lower = family.to_lowercase();
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-{lower}, namespace: a, \
             labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: {family}\nports: [{ports}]\nendpoints: [{list}]\n"
        );
    }
    text
}

/// The cluster with Service `a/web` at number 10, of this `spec`, and these endpoints.
pub(crate) fn web(spec: &str, ends: &[End]) -> String {
    [cluster(), service("web", 10, spec), slices("web", ends)].concat()
}
