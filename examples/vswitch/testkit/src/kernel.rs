//! A node without a switch: Linux's own bridge, routes and VXLAN devices.

use std::fs;
use std::net::IpAddr;

use podswitch_linux::netlink::{LinkSpec, Route, Vxlan};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use crate::cluster::{Fabric, ip, namespace, node_address};

/// Node number `n` has the same addresses and ranges as a [`Node`](crate::cluster::Node).
pub struct KernelNode {
    pub name: String,
    pub number: u8,
    pub ns: NetNs,
    pub addresses: Vec<IpAddr>,
    /// One pod.
    pub pod: NetNs,
    pub pod_addresses: [IpAddr; 2],
    /// The pod's MTU.
    mtu: u32,
}

/// A tunnel device of Linux.
pub struct Tunnel<'a> {
    pub name: &'a str,
    pub vni: u32,
    pub port: u16,
    pub v6: bool,
    pub mac: Mac,
    /// Destination of flooded frames. If set, the device learns; otherwise it has static entries.
    pub remote: Option<IpAddr>,
}

impl KernelNode {
    pub fn new(fabric: &Fabric, number: u8, families: &[bool], mtu: u32) -> Self {
        let (ns, pod) = (namespace(), namespace());
        let addresses: Vec<IpAddr> = families.iter().map(|v6| node_address(number, *v6)).collect();
        fabric.plug(&ns, &addresses, None);
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            sysctl::set(&ns, setting, "1").unwrap();
        }
        let (mut here, mut there) = (Netlink::open(&ns).unwrap(), Netlink::open(&pod).unwrap());
        let bridge = here.add_bridge(&LinkSpec::new("cni0").mtu(mtu).up()).unwrap();
        let far = LinkSpec::new("eth0").mtu(mtu).up();
        let port = here.add_veth(&LinkSpec::new("pod").mtu(mtu).up(), &far, &pod).unwrap();
        here.set_master(port, Some(bridge)).unwrap();
        let eth0 = there.link("eth0").unwrap().index;
        let pod_addresses = [ip(&format!("10.{number}.0.2")), ip(&format!("fd00:{number}::2"))];
        let gateways = [format!("10.{number}.0.1"), format!("fd00:{number}::1")];
        for (f, prefix) in [24, 64].into_iter().enumerate() {
            here.add_address(bridge, format!("{}/{prefix}", gateways[f]).parse().unwrap()).unwrap();
            let address = format!("{}/{prefix}", pod_addresses[f]);
            there.add_address(eth0, address.parse().unwrap()).unwrap();
            here.wait_until_local(ip(&gateways[f])).unwrap();
            there.wait_until_local(pod_addresses[f]).unwrap();
            let everywhere: Cidr = ["0.0.0.0/0", "::/0"][f].parse().unwrap();
            there.add_route(&Route::to(everywhere).via(ip(&gateways[f])).link(eth0)).unwrap();
        }
        let name = format!("kernel-{number}");
        Self { name, number, ns, addresses, pod, pod_addresses, mtu }
    }

    /// Creates a tunnel device that has the first address of the node's range, as Flannel does.
    pub fn add_tunnel(&self, tunnel: &Tunnel<'_>) -> u32 {
        let mut netlink = Netlink::open(&self.ns).unwrap();
        let vxlan = Vxlan {
            vni: tunnel.vni,
            local: Some(node_address(self.number, tunnel.v6)),
            remote: tunnel.remote,
            port: tunnel.port,
            learning: tunnel.remote.is_some(),
            link: Some(netlink.link("eth0").unwrap().index),
        };
        let spec = LinkSpec::new(tunnel.name).mac(tunnel.mac).mtu(self.mtu).up();
        let index = netlink.add_vxlan(&spec, &vxlan).unwrap();
        netlink.set_up(index).unwrap();
        index
    }

    /// Gives a tunnel device the first address of the node's range.
    pub fn add_tunnel_address(&self, device: u32, v6: bool) {
        let address = first(self.number, v6);
        Netlink::open(&self.ns).unwrap().add_address(device, address.into()).unwrap();
    }

    /// Adds what Flannel adds for a new node: route, neighbour and forwarding entry.
    pub fn add_peer(&self, device: u32, number: u8, pods_v6: bool, mac: Mac, end: IpAddr) {
        let mut netlink = Netlink::open(&self.ns).unwrap();
        let via = first(number, pods_v6);
        netlink.add_tunnel_entry(device, mac, end).unwrap();
        netlink.add_neighbour(device, via, mac).unwrap();
        self.add_route(device, number, pods_v6);
    }

    /// A route to another node's pods.
    pub fn add_route(&self, device: u32, number: u8, pods_v6: bool) {
        let mut netlink = Netlink::open(&self.ns).unwrap();
        let route = Route::to(range(number, pods_v6)).via(first(number, pods_v6));
        netlink.add_route(&route.link(device).onlink()).unwrap();
    }

    /// The node's object and its pod's.
    pub fn manifest(&self, annotations: &str) -> String {
        let Self { name, number, addresses, pod_addresses: [v4, v6], .. } = self;
        let address = |a: &IpAddr| format!("{{type: InternalIP, address: \"{a}\"}}");
        let addresses: Vec<String> = addresses.iter().map(address).collect();
        format!(
            "---\napiVersion: v1\nkind: Node\n\
             metadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
             spec: {{podCIDRs: [10.{number}.0.0/24, \"fd00:{number}::/64\"]}}\n\
             status: {{addresses: [{}]}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: k{number}, namespace: a}}\n\
             spec: {{nodeName: {name}}}\n\
             status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n",
            addresses.join(", ")
        )
    }
}

/// The first address of a node's range, by which Flannel nodes identify each other.
pub fn first(number: u8, v6: bool) -> IpAddr {
    range(number, v6).address()
}

fn range(number: u8, v6: bool) -> Cidr {
    let text = if v6 { format!("fd00:{number}::/64") } else { format!("10.{number}.0.0/24") };
    text.parse().unwrap()
}

/// Flannel's annotations of a node.
pub fn flannel(number: u8, families: &[bool], macs: [Mac; 2]) -> String {
    let mut text = "flannel.alpha.coreos.com/backend-type: vxlan".to_owned();
    for v6 in families {
        let (ip, data) =
            if *v6 { ("public-ipv6", "backend-v6-data") } else { ("public-ip", "backend-data") };
        let (address, mac) = (node_address(number, *v6), macs[usize::from(*v6)]);
        text += &format!(
            ", flannel.alpha.coreos.com/{ip}: \"{address}\", \
             flannel.alpha.coreos.com/{data}: '{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}'"
        );
    }
    text
}

/// TCP and UDP packets that a namespace dropped because of a bad checksum.
pub fn checksum_errors(ns: &NetNs) -> u64 {
    let files = ns.enter(|| {
        ["snmp", "snmp6"].map(|file| {
            // A namespace without IPv6 has no such file.
            fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
        })
    });
    let [snmp, snmp6] = files.unwrap();
    let mut count = 0;
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.chunks(2).filter(|pair| pair.len() == 2) {
        let values = pair[1].split_whitespace();
        let of_sums = pair[0].split_whitespace().zip(values).filter(|(n, _)| *n == "InCsumErrors");
        count += of_sums.map(|(_, value)| value.parse::<u64>().unwrap()).sum::<u64>();
    }
    for line in snmp6.lines() {
        if let Some((name, value)) = line.split_once(char::is_whitespace)
            && name.ends_with("InCsumErrors")
        {
            count += value.trim().parse::<u64>().unwrap();
        }
    }
    assert!(!lines.is_empty());
    count
}
