//! Captures of every kind of port between two nodes: TAP, the tunnel's UDP sockets, frames of the uplink (AF_PACKET); whole
//! GSO packets; a Service's packets before and after translation.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use podswitch_core::port::pcap::{ETHERNET, Record, read_capture};
use podswitch_linux::port::tap;
use podswitch_vswitch_testkit::cluster::{self, Fabric, Node, put, serve, tcp};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

use super::*;

const VXLAN_PORT: u16 = 4789;
/// The longest frame that is no GSO packet: 1,500 bytes behind the Ethernet header.
const LONGEST: u32 = 1514;
/// The last datagram of what is captured.
const LAST: &[u8] = b"the last one of this capture";
const VIPS: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// Two nodes with a TAP and a veth pod each; a Service whose backend is the TAP pod of the second.
struct World {
    nodes: [Node; 2],
    switches: [cluster::Running; 2],
    folder: Folder,
    _fabric: Fabric,
}

/// A capture that runs.
struct Running {
    child: Child,
    file: PathBuf,
}

impl World {
    fn start(v6: bool, more: &[&str]) -> Self {
        let fabric = Fabric::new(1500);
        let nodes = [1, 2].map(|n| Node::new(&fabric, n, &[v6], &["tap", "veth"]));
        let folder = Folder::new();
        put(&folder, &[nodes[0].manifest(), nodes[1].manifest(), service(&nodes[1])]);
        let switches = [0, 1].map(|n| {
            let run_dir = folder.text(&format!("run{n}"));
            let ranges = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];
            nodes[n].start(&folder, &[&ranges, &["--run-dir", &run_dir][..], more].concat())
        });
        for switch in &switches {
            switch.event("ready");
        }
        serve(&nodes[1].pods[0].ns, PORT);
        Self { nodes, switches, folder, _fabric: fabric }
    }

    /// Begins a capture on a node.
    fn begin(&self, node: usize, arguments: &[&str]) -> Running {
        let file = self.folder.path(&format!("frames{node}"));
        let _ = std::fs::remove_file(&file);
        let mut child = Command::new(program())
            .args(["capture", "--socket", &self.folder.text(&format!("run{node}/ctl.sock")), "-w"])
            .arg(&file)
            .args(["--seconds", "600", "--count", "100000"])
            .args(arguments)
            .spawn()
            .expect("runs");
        let patience = Limit::new(PATIENCE);
        while std::fs::metadata(&file).map_or(0, |found| found.len()) == 0 {
            assert!(child.try_wait().expect("its state").is_none(), "it has ended");
            assert!(patience.left().is_some(), "no capture begins");
            thread::sleep(Duration::from_millis(10));
        }
        Running { child, file }
    }
}

impl Running {
    /// The frames until the last datagram, as both readers see them.
    fn end(mut self) -> Vec<Frame> {
        let patience = Limit::new(PATIENCE);
        // Both directions of it, each received and sent.
        while self.records().iter().filter(|r| is_last(&r.frame)).count() < 4 {
            assert!(patience.left().is_some(), "the last datagram is not captured");
            thread::sleep(Duration::from_millis(50));
        }
        self.child.kill().expect("ends");
        self.child.wait().expect("ends");
        let (records, frames) = (self.records(), frames(&self.file));
        let own = records.iter().map(|r| (&r.frame, r.original_len));
        assert!(own.eq(frames.iter().map(|f| (&f.bytes, f.original_len))), "both readers agree");
        assert!(records.iter().all(|record| record.link_type == ETHERNET));
        read_by_tshark(&self.file, &frames);
        frames
    }

    /// What the repository's own reader reads of the file as it is now.
    fn records(&self) -> Vec<Record> {
        let records = read_capture(&self.file).expect("a capture");
        records.map(|record| record.expect("a frame")).collect()
    }
}

fn is_last(frame: &[u8]) -> bool {
    frame.windows(LAST.len()).any(|bytes| bytes == LAST)
}

/// `s10` with these addresses, port 80 of TCP and UDP, and the first pod of `node` behind them.
fn service(node: &Node) -> String {
    let ports = |target: bool| {
        let number = if target { PORT } else { 80 };
        let ports = ["TCP", "UDP"].map(|protocol| {
            let name = protocol.to_lowercase();
            let target = if target { String::new() } else { format!(", targetPort: {PORT}") };
            format!("{{name: {name}, port: {number}, protocol: {protocol}{target}}}")
        });
        ports.join(", ")
    };
    let [v4, v6] = VIPS;
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s10, namespace: a}}\n\
         spec: {{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], clusterIP: {v4}, \
         clusterIPs: [{v4}, \"{v6}\"], ports: [{}]}}\n",
        ports(false)
    );
    for address in node.pods[0].addresses {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s10-{}, namespace: a, labels: {{kubernetes.io/service-name: s10}}}}\n\
             addressType: {family}\nports: [{}]\nendpoints: [{{addresses: [\"{address}\"], \
             nodeName: {}, conditions: {{ready: true}}}}]\n",
            family.to_lowercase(),
            ports(true),
            node.name
        );
    }
    text
}

/// A TCP connection with much data in both directions, and then the last datagram.
fn talk(from: &NetNs, vip: IpAddr) {
    tcp(from, vip, 80, 1_000_000);
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.enter(|| UdpSocket::bind(any)).expect("entered").expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.send_to(LAST, SocketAddr::from((vip, 80))).expect("sent");
    assert_eq!(socket.recv(&mut [0; 64]).expect("an answer"), LAST.len());
}

/// The frames with these words in their comment that passed an interface in a direction. There are some.
#[track_caller]
fn at<'a>(frames: &'a [Frame], inbound: bool, interface: &str, words: &[&str]) -> Vec<&'a Frame> {
    let is_it = |frame: &&Frame| {
        frame.inbound == inbound
            && frame.interface == interface
            && words.iter().all(|word| frame.comment.contains(word))
    };
    let found: Vec<&Frame> = frames.iter().filter(is_it).collect();
    let seen: std::collections::BTreeSet<_> =
        frames.iter().map(|f| (&f.interface, f.inbound, f.comment.split(':').next())).collect();
    assert!(!found.is_empty(), "inbound {inbound} at {interface}: {words:?} of {seen:#?}");
    found
}

/// Destination port of the outermost headers, and whether the lengths in them are those of the frame.
fn outer(frame: &Frame) -> (u16, bool) {
    let parsed = parse(&frame.bytes, &HashKey::new(1)).expect("a good frame");
    (parsed.key.dst_port, parsed.end as usize == frame.bytes.len())
}

fn through(v6: bool, more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let world = World::start(v6, more);
    let [one, two] = &world.nodes;
    let (client, server) = (format!("a/{}", one.pods[0].name), format!("a/{}", two.pods[0].name));
    for vip in VIPS.map(cluster::ip) {
        let captures =
            [world.begin(0, &["--host", &vip.to_string()]), world.begin(1, &["--pod", &server])];
        talk(&one.pods[0].ns, vip);
        let [at_client, at_server] = captures.map(Running::end);

        // The client's node: to the Service's address, and by the uplink to the backend.
        let syn = ["forwarded to uplink: ", "TCP [S] ", &client, "a/s10"];
        let sent = at(&at_client, true, &client, &syn);
        assert!(sent.iter().all(|frame| outer(frame).0 == 80), "{sent:#?}");
        let received_by = format!("sent, received by {client}, in the tunnel: ");
        let sent = at(&at_client, false, "uplink", &[&received_by, "TCP [S] "]);
        assert!(sent.iter().all(|frame| outer(frame) == (VXLAN_PORT, true)), "{sent:#?}");
        // What the backend answers is found by the Service's address where it is received.
        let forwarded = format!("forwarded to {client}, in the tunnel: ");
        let replies = at(&at_client, true, "uplink", &[&forwarded, "TCP [S.] ", ", reply"]);
        assert!(replies.iter().all(|frame| outer(frame).0 == VXLAN_PORT), "{replies:#?}");
        at(&at_client, false, &client, &["sent, received by uplink: ", "TCP [S.] "]);

        // The server's node.
        let forwarded = format!("forwarded to {server}, in the tunnel: ");
        let arrived = at(&at_server, true, "uplink", &[&forwarded, "TCP [S] "]);
        assert!(arrived.iter().all(|frame| outer(frame) == (VXLAN_PORT, true)), "{arrived:#?}");
        let delivered = at(&at_server, false, &server, &["sent, received by uplink: ", "TCP [S] "]);
        assert!(delivered.iter().all(|frame| outer(frame) == (PORT, true)), "{delivered:#?}");

        // GSO packets, whole, as they passed the port: from the pod, and through the tunnel.
        if tap::is_available().is_ok() {
            for (frames, pod) in [(&at_client, &client), (&at_server, &server)] {
                let large: Vec<_> = at(frames, true, pod, &["forwarded to uplink: "])
                    .into_iter()
                    .filter(|frame| frame.original_len > LONGEST)
                    .collect();
                assert!(!large.is_empty(), "{pod} sends GSO packets");
                for frame in large {
                    assert_eq!(frame.bytes.len(), frame.original_len as usize);
                    assert!(outer(frame).1, "its length is in its header");
                }
            }
        }
    }
    for switch in world.switches {
        assert_eq!(switch.stop(), Some(0));
    }
}

#[test]
fn through_udp_sockets() {
    through(false, &["--underlay", "udp"]);
}

#[test]
fn through_udp_sockets_over_ipv6() {
    through(true, &["--underlay", "udp"]);
}

#[test]
fn by_frames_of_the_uplink() {
    through(false, &["--underlay", "packet", "--uplink", "eth0"]);
}

#[test]
fn by_frames_of_the_uplink_over_ipv6() {
    through(true, &["--underlay", "packet", "--uplink", "eth0"]);
}
