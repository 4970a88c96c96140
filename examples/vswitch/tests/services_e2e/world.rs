//! A node with a NIC, a client behind it and two pods; what they ask each other.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch_linux::netlink::{LinkSpec, Route, Rule};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_vswitch_testkit::running::{PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, pod};
use podswitch_wire::cidr::Cidr;
pub(crate) const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
pub(crate) const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];
pub(crate) const BALANCER: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
pub(crate) const PODS: [[&str; 2]; 2] = [["10.1.0.2", "fd00:1::2"], ["10.1.0.3", "fd00:1::3"]];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of our own")
}

/// A node with a NIC, a client behind it, and two pods.
pub(crate) struct World {
    pub(crate) folder: Folder,
    pub(crate) name: String,
    pub(crate) node: NetNs,
    pub(crate) client: NetNs,
    pub(crate) pods: [NetNs; 2],
}

impl World {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let make = || NetNs::anonymous().expect("a namespace");
        let (node, client, pods) = (make(), make(), [make(), make()]);
        let (mut near, mut far) = (Netlink::open(&node).unwrap(), Netlink::open(&client).unwrap());
        for ns in [&node, &client] {
            sysctl::set(ns, "net/ipv6/conf/default/dad_transmits", "0").expect("set");
        }
        near.add_veth(&LinkSpec::new("eth0").up(), &LinkSpec::new("eth0").up(), &client).unwrap();
        let (here, there) = (near.link("eth0").unwrap().index, far.link("eth0").unwrap().index);
        let lo = near.link("lo").unwrap().index;
        near.set_up(lo).unwrap();
        for (n, prefix) in [24, 64].into_iter().enumerate() {
            near.add_address(here, format!("{}/{prefix}", NODE[n]).parse().unwrap()).unwrap();
            far.add_address(there, format!("{}/{prefix}", CLIENT[n]).parse().unwrap()).unwrap();
            near.wait_until_local(ip(NODE[n])).unwrap();
            far.wait_until_local(ip(CLIENT[n])).unwrap();
            let to_balancer = Route::to(Cidr::host(ip(BALANCER[n]))).via(ip(NODE[n])).link(there);
            far.add_route(&to_balancer).unwrap();
        }
        Self { folder: Folder::new(), name, node, client, pods }
    }

    /// Puts a state in place at one stroke. `ready`: whether the pods are.
    pub(crate) fn state(&self, ready: [bool; 2]) {
        let mut text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n\
             spec: {{podCIDRs: [10.1.0.0/24, \"fd00:1::/64\"]}}\nstatus: {{addresses: [\
             {{type: InternalIP, address: {}}}, {{type: InternalIP, address: \"{}\"}}]}}\n",
            self.name, NODE[0], NODE[1]
        );
        for (n, ns) in self.pods.iter().enumerate() {
            let annotations = format!("podswitch.io/netns: {}", ns.path().display());
            let pod = pod(["x", "y"][n], n as u8 + 2, &annotations);
            text += &pod.replace("nodeName: n1", &format!("nodeName: {}", self.name));
        }
        let more = "externalTrafficPolicy: Local, healthCheckNodePort: 30500,";
        let balancer = format!(
            "status: {{loadBalancer: {{ingress: [{{ip: {}}}, {{ip: \"{}\"}}]}}}}\n",
            BALANCER[0], BALANCER[1]
        );
        for (n, name, more, status) in [
            (0, "web", "", &*balancer),
            (1, "local", more, ""),
            (2, "empty", "", ""),
            (3, "far", "", ""),
        ] {
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{type: LoadBalancer, ipFamilyPolicy: RequireDualStack, {more}\
                 clusterIPs: [10.96.0.1{n}, \"fd96::1{n}\"], clusterIP: 10.96.0.1{n}, \
                 ipFamilies: [IPv4, IPv6], \
                 ports: [{{port: 80, targetPort: 8080, nodePort: 3008{n}}}]}}\n{status}"
            );
            if name == "empty" {
                continue;
            }
            for (f, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
                text += &format!(
                    "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {{name: {name}-{f}, namespace: a, labels: \
                     {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
                     ports: [{{name: \"\", port: 8080, protocol: TCP}}]\nendpoints:\n"
                );
                if name == "far" {
                    text += &format!("- {{addresses: [\"{}\"]}}\n", CLIENT[f]);
                    continue;
                }
                for (n, ready) in ready.into_iter().enumerate() {
                    text += &format!(
                        "- {{addresses: [\"{}\"], nodeName: {}, conditions: {{ready: {ready}}}}}\n",
                        PODS[n][f], self.name
                    );
                }
            }
        }
        // By UDP, with affinity.
        text += "---\napiVersion: v1\nkind: Service\nmetadata: {name: sticky, namespace: a}\n\
                 spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, \
                 sessionAffinity: ClientIP, clusterIPs: [10.96.0.20, \"fd96::20\"], \
                 clusterIP: 10.96.0.20, ipFamilies: [IPv4, IPv6], \
                 ports: [{port: 80, targetPort: 8080, nodePort: 30090, protocol: UDP}]}\n";
        for (f, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            text += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: sticky-{f}, namespace: a, labels: \
                 {{kubernetes.io/service-name: sticky}}}}\naddressType: {family}\n\
                 ports: [{{name: \"\", port: 8080, protocol: UDP}}]\nendpoints:\n"
            );
            for (n, ready) in ready.into_iter().enumerate() {
                text += &format!(
                    "- {{addresses: [\"{}\"], nodeName: {}, conditions: {{ready: {ready}}}}}\n",
                    PODS[n][f], self.name
                );
            }
        }
        fs::write(self.folder.path("next"), text).expect("written");
        fs::create_dir_all(self.folder.path("state")).expect("a folder");
        fs::rename(self.folder.path("next"), self.folder.path("state/s.yaml")).expect("renamed");
    }

    pub(crate) fn start(&self, more: &[&str]) -> Running {
        self.start_with(more, |_| {})
    }

    pub(crate) fn start_with(&self, more: &[&str], change: impl FnOnce(&mut Command)) -> Running {
        let (manifests, netns) =
            (self.folder.text("state"), self.node.path().display().to_string());
        let head = ["--node", &self.name, "--manifests", &manifests, "--node-netns", &netns];
        let ranges = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];
        Running::start_with(&[&head, &ranges[..], more].concat(), change)
    }

    /// Servers in both pods and off the cluster, at port 8080 of both families: each says who it is and whom it sees,
    /// and sends back what it is sent.
    pub(crate) fn serve(&self) {
        for (n, ns) in self.pods.iter().chain([&self.client]).enumerate() {
            let listener = ns.enter(|| TcpListener::bind("[::]:8080")).unwrap().expect("bound");
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    thread::spawn(move || {
                        let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
                        let Ok(peer) = peer else { return };
                        let _ = writeln!(stream, "{n} {peer}");
                        let mut buffer = [0; 4096];
                        while let Ok(len @ 1..) = stream.read(&mut buffer) {
                            if stream.write_all(&buffer[..len]).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        }
    }

    /// Servers in both pods, by UDP, that say who they are.
    pub(crate) fn serve_datagrams(&self) {
        for (n, ns) in self.pods.iter().enumerate() {
            let socket = ns.enter(|| UdpSocket::bind("[::]:8080")).unwrap().expect("bound");
            thread::spawn(move || {
                while let Ok((_, peer)) = socket.recv_from(&mut [0; 9]) {
                    let _ = socket.send_to(&[n as u8], peer);
                }
            });
        }
    }

    /// Servers at the same places that give out their ends of connections, each with what the client first says.
    pub(crate) fn serve_both(&self) -> Receiver<(u16, TcpStream)> {
        let (sender, receiver) = channel();
        for ns in self.pods.iter().chain([&self.client]) {
            let listener = ns.enter(|| TcpListener::bind("[::]:8080")).unwrap().expect("bound");
            let sender = sender.clone();
            thread::spawn(move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    let mut told = [0; 2];
                    stream.read_exact(&mut told).expect("it says who it is");
                    if sender.send((u16::from_be_bytes(told), stream)).is_err() {
                        return;
                    }
                }
            });
        }
        receiver
    }
}

pub(crate) fn connect(from: &NetNs, to: &str, port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::new(ip(to), port);
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let stream = from.enter(connect).expect("entered")?;
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    Ok(stream)
}

/// Which pod answers, and whom it sees; a hundred kilobytes go there and back.
#[track_caller]
pub(crate) fn ask(from: &NetNs, to: &str, port: u16) -> (usize, IpAddr) {
    let stream = connect(from, to, port).unwrap_or_else(|e| panic!("[{to}]:{port}: {e}"));
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    let (pod, peer) = line.trim().split_once(' ').expect("two words");
    let data: Vec<u8> = (0..100_000u32).map(|n| (n * 7) as u8).collect();
    let mut writer = reader.get_ref().try_clone().expect("cloned");
    let sent = data.clone();
    let writing = thread::spawn(move || writer.write_all(&sent).expect("written"));
    let mut back = vec![0; data.len()];
    reader.read_exact(&mut back).expect("all of it");
    writing.join().expect("written");
    assert!(back == data, "what came back is something else");
    (pod.parse().expect("a number"), ip(peer))
}

pub(crate) fn rules(ns: &NetNs) -> Vec<Rule> {
    Netlink::open(ns).unwrap().rules().unwrap()
}

/// Resets that a namespace's stack has sent.
pub(crate) fn resets(ns: &NetNs) -> String {
    let text = ns.enter(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let column = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let tcp: Vec<_> = text.lines().filter(|line| line.starts_with("Tcp: ")).map(column).collect();
    let at = tcp[0].iter().position(|name| name == "OutRsts").expect("a column");
    tcp[1][at].clone()
}
