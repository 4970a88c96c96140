//! Services by real sockets: clients off the cluster behind the node's NIC, the node itself and
//! pods reach every kind of address, and load balancers' health checks are answered.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch_linux::netlink::{LinkSpec, Route, Rule};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, pod, run};
use podswitch_wire::cidr::Cidr;
use serde_json::Value;

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];
const BALANCER: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
const PODS: [[&str; 2]; 2] = [["10.1.0.2", "fd00:1::2"], ["10.1.0.3", "fd00:1::3"]];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of our own")
}

/// A node with a NIC, a client behind it, and two pods.
struct World {
    folder: Folder,
    name: String,
    node: NetNs,
    client: NetNs,
    pods: [NetNs; 2],
}

impl World {
    fn new(name: &str) -> Self {
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
    fn state(&self, ready: [bool; 2]) {
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

    fn start(&self, more: &[&str]) -> Running {
        self.start_with(more, |_| {})
    }

    fn start_with(&self, more: &[&str], change: impl FnOnce(&mut Command)) -> Running {
        let (manifests, netns) =
            (self.folder.text("state"), self.node.path().display().to_string());
        let head = ["--node", &self.name, "--manifests", &manifests, "--node-netns", &netns];
        let ranges = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];
        Running::start_with(&[&head, &ranges[..], more].concat(), change)
    }

    /// Servers in both pods and off the cluster, at port 8080 of both families: each says who it is and whom it sees,
    /// and sends back what it is sent.
    fn serve(&self) {
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
    fn serve_datagrams(&self) {
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
    fn serve_both(&self) -> Receiver<(u16, TcpStream)> {
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

fn connect(from: &NetNs, to: &str, port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::new(ip(to), port);
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let stream = from.enter(connect).expect("entered")?;
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    Ok(stream)
}

/// Which pod answers, and whom it sees; a hundred kilobytes go there and back.
#[track_caller]
fn ask(from: &NetNs, to: &str, port: u16) -> (usize, IpAddr) {
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

fn rules(ns: &NetNs) -> Vec<Rule> {
    Netlink::open(ns).unwrap().rules().unwrap()
}

#[test]
fn every_kind_of_address_from_everywhere() {
    podswitch_testkit::require_privilege!();
    let world = World::new("services");
    let World { node, client, pods, .. } = &world;
    let before = (rules(node), sysctl::get(node, "net/ipv4/ip_local_reserved_ports").unwrap());
    world.state([true, true]);
    let switch = world.start(&["--json", "--stats", "0.2"]);
    switch.event("ready");
    world.serve();
    for f in 0..2 {
        // Outside clients under Cluster policy are masqueraded behind the node (S8)…
        assert_eq!(ask(client, NODE[f], 30_080).1, ip(NODE[f]));
        assert_eq!(ask(client, BALANCER[f], 80).1, ip(NODE[f]));
        // … under Local policy not (S3).
        assert_eq!(ask(client, NODE[f], 30_081).1, ip(CLIENT[f]));
        // The node itself.
        for (to, port) in [(NODE[f], 30_080), (BALANCER[f], 80), (NODE[f], 30_081)] {
            assert_eq!(ask(node, to, port).1, ip(NODE[f]), "{to} {port}");
        }
        let cluster_ip = ["10.96.0.10", "fd96::10"][f];
        assert_eq!(ask(node, cluster_ip, 80).1, ip(NODE[f]));
        // Pods keep their addresses, unless they call themselves.
        for (to, port) in [(NODE[f], 30_080), (BALANCER[f], 80), (cluster_ip, 80)] {
            let (pod, peer) = ask(&pods[0], to, port);
            if pod == 1 {
                assert_eq!(peer, ip(PODS[0][f]), "{to} {port}");
            }
        }
        // An endpoint off the cluster, which only the node's stack reaches.
        let far = ["10.96.0.13", "fd96::13"][f];
        for (from, to, port) in
            [(node, far, 80), (node, NODE[f], 30_083), (client, NODE[f], 30_083)]
        {
            assert_eq!(ask(from, to, port), (2, ip(NODE[f])), "{to} {port}");
        }
        // No endpoint: refused at once (S5).
        for (from, to, port) in [
            (client, NODE[f], 30_082),
            (node, NODE[f], 30_082),
            (node, ["10.96.0.12", "fd96::12"][f], 80),
            (&pods[0], ["10.96.0.12", "fd96::12"][f], 80),
        ] {
            let error = connect(from, to, port).expect_err("nobody is there");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to} {port}");
        }
    }
    let mut seen: Vec<usize> = (0..40).map(|_| ask(client, NODE[0], 30_080).0).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1], "both pods get connections");
    // Counted by Service and backend, by the time that all of it is in the figures.
    switch.event_with("stats", |stats| {
        let count = |name: &str| stats["services"][name].as_u64().unwrap_or(0);
        count("Service/a/web 80/TCP 10.1.0.3:8080") > 0
            && count("Service/a/web 80/TCP [fd00:1::2]:8080") > 0
            && count("Service/a/empty 80/TCP rejected") >= 8
    });
    assert_eq!(switch.stop(), Some(0));
    let after = (rules(node), sysctl::get(node, "net/ipv4/ip_local_reserved_ports").unwrap());
    assert_eq!(after, before, "all is put back");
}

/// What pods send off the cluster leaves with an address of the switch's choice, which is the node's
/// here: the answers find the switch, not the node's own stack.
#[test]
fn the_switch_masquerades() {
    podswitch_testkit::require_privilege!();
    let world = World::new("masquerade");
    let World { client, pods, node, .. } = &world;
    world.state([true, true]);
    let flag = format!("{},{}", NODE[0], NODE[1]);
    let switch = world.start(&["--masquerade", &flag, "--cluster-cidr", "172.16.0.0/12"]);
    switch.says("ready");
    for f in 0..2 {
        let listen = |ns: &NetNs, address: &str| {
            let address = ip(address);
            ns.enter(|| TcpListener::bind((address, 9000))).unwrap().expect("bound")
        };
        let outside = listen(client, CLIENT[f]);
        let mut stream = connect(&pods[0], CLIENT[f], 9000).expect("connected");
        let (mut served, peer) = outside.accept().expect("somebody calls");
        assert_eq!(peer.ip(), ip(NODE[f]));
        assert!(peer.port() >= 44_000, "{peer}");
        served.write_all(b"welcome").expect("written");
        stream.read_exact(&mut [0; 7]).expect("an answer");
        // The node is of the cluster: it sees the pod.
        let inside = listen(node, NODE[f]);
        let _stream = connect(&pods[0], NODE[f], 9000).expect("connected");
        assert_eq!(inside.accept().expect("somebody calls").1.ip(), ip(PODS[0][f]));
    }
    assert_eq!(switch.stop(), Some(0));
}

/// The same by an uplink, to what is behind a router: nobody but the switch takes the answers, and each
/// comes once.
#[test]
fn the_switch_masquerades_by_its_uplink() {
    podswitch_testkit::require_privilege!();
    let world = World::new("behind");
    let World { client, pods, node, .. } = &world;
    let behind = ["203.0.113.1", "2001:db8:ff::1"];
    let mut netlink = Netlink::open(client).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    netlink.set_up(lo).unwrap();
    for address in behind.map(ip) {
        netlink.add_address(lo, address.into()).unwrap();
        netlink.wait_until_local(address).unwrap();
    }
    world.state([true, true]);
    let flag = format!("{},{}", NODE[0], NODE[1]);
    let routes = [("203.0.113.0/24", 0), ("2001:db8:ff::/64", 1)]
        .map(|(range, f)| format!("{range}={}", CLIENT[f]));
    let switch = world.start(
        &[
            ["--masquerade", &flag, "--cluster-cidr", "172.16.0.0/12", "--uplink", "eth0"],
            ["--route", &routes[0], "--route", &routes[1], "--json", "--stats=0.3"],
        ]
        .concat(),
    );
    switch.event("ready");
    for address in behind {
        let listener = client.enter(|| TcpListener::bind((ip(address), 9000))).unwrap().unwrap();
        let echo = client.enter(|| UdpSocket::bind((ip(address), 9000))).unwrap().unwrap();
        for _ in 0..20 {
            let mut stream = connect(&pods[0], address, 9000).expect("connected");
            let (mut served, peer) = listener.accept().expect("somebody calls");
            assert!(NODE.map(ip).contains(&peer.ip()), "{peer}");
            let data = vec![7; 100_000];
            served.write_all(&data).expect("written");
            drop(served);
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("all of it");
            assert!(got == data);

            let any = if ip(address).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = pods[0].enter(|| UdpSocket::bind(any)).unwrap().unwrap();
            socket.send_to(b"?", (ip(address), 9000)).unwrap();
            let (_, peer) = echo.recv_from(&mut [0; 9]).unwrap();
            echo.send_to(b"!", peer).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.recv(&mut [0; 9]).expect("an answer");
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            assert!(socket.recv(&mut [0; 9]).is_err(), "it is answered twice");
        }
    }
    assert_eq!(resets(node), "0", "the node's stack keeps out of it");
    assert_eq!(switch.stop(), Some(0));
}

/// How a run ends that another follows.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Killed,
    /// As planned, with `--keep`.
    Stopped,
}

/// A connection with both ends in hand.
struct Open {
    what: String,
    client: TcpStream,
    server: TcpStream,
}

/// Both ends of a connection to a server of [`World::serve_both`].
fn open(from: &NetNs, (to, port): (&str, u16), servers: &Receiver<(u16, TcpStream)>) -> Open {
    let what = format!("[{to}]:{port}");
    let mut client = connect(from, to, port).unwrap_or_else(|e| panic!("{what}: {e}"));
    // The server sees another port than this one where it is translated: it is told.
    let own = client.local_addr().expect("an address").port();
    client.write_all(&own.to_be_bytes()).expect("written");
    let (told, server) = servers.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(told, own, "{what}");
    server.set_read_timeout(Some(PATIENCE)).expect("set");
    Open { what, client, server }
}

/// Resets that a namespace's stack has sent.
fn resets(ns: &NetNs) -> String {
    let text = ns.enter(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let column = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let tcp: Vec<_> = text.lines().filter(|line| line.starts_with("Tcp: ")).map(column).collect();
    let at = tcp[0].iter().position(|name| name == "OutRsts").expect("a column");
    tcp[1][at].clone()
}

/// A run directory on tmpfs, removed however the test ends.
struct RunDir(String);

impl RunDir {
    fn new(name: &str) -> Self {
        Self(format!("/dev/shm/podswitch-{name}-{}", std::process::id()))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Connections of every kind, both families: the switch ends again and again while they are open, either end or both
/// send while there is none, and other backends are ready when it comes back. Each goes on with its own, whichever end
/// speaks first. Then the last run stops without `--keep`, and nothing is left.
fn connections_outlive(end: End, name: &str) {
    let world = World::new(name);
    let World { client, pods, node, .. } = &world;
    let settings = || {
        ["net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
            .map(|key| sysctl::get(node, key).unwrap())
    };
    let before = (rules(node), settings());
    let folder = RunDir::new(name);
    let run_dir = folder.0.clone();
    let masquerade = format!("{},{}", NODE[0], NODE[1]);
    let flags = ["--run-dir", &run_dir, "--masquerade", &masquerade];
    let flags = [&flags[..], &["--cluster-cidr", "172.16.0.0/12"]].concat();
    let kept = [&flags[..], &["--keep"]].concat();
    world.state([false, true]);
    let mut switch = world.start(&kept);
    switch.says("ready");
    let servers = world.serve_both();
    let mut connections = Vec::new();
    for f in 0..2 {
        let vip = ["10.96.0.10", "fd96::10"][f];
        for (from, to, port) in [
            (&pods[0], vip, 80),
            // Back to itself.
            (&pods[1], vip, 80),
            (node, vip, 80),
            (client, NODE[f], 30_080),
            (client, BALANCER[f], 80),
            (&pods[0], NODE[f], 30_080),
            // Without a Service, and masqueraded.
            (&pods[0], PODS[1][f], 8080),
            (&pods[0], CLIENT[f], 8080),
        ] {
            connections.push(open(from, (to, port), &servers));
        }
    }
    let reset = resets(node);
    for round in 0..3u8 {
        match end {
            End::Killed => drop(switch),
            End::Stopped => assert_eq!(switch.stop(), Some(0)),
        }
        let from_client = [round; 3000];
        let from_server = [round + 100; 3000];
        for Open { what, client, server } in &mut connections {
            let failed = |e| -> () { panic!("{what}: {e}") };
            if round != 1 {
                client.write_all(&from_client).unwrap_or_else(failed);
            }
            if round != 2 {
                server.write_all(&from_server).unwrap_or_else(failed);
            }
        }
        // Time for an answer of a stack that the segments are not for.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(resets(node), reset, "the node's stack keeps out of it");
        // New connections would go to the other pod.
        world.state([round % 2 == 0, round % 2 == 1]);
        let workers = (1 + round % 2).to_string();
        switch = world.start(&[&kept[..], &["--workers", &workers]].concat());
        switch.says("ready");
        for Open { what, client, server } in &mut connections {
            let failed = |e| -> () { panic!("{what}, {round}: {e}") };
            if round == 1 {
                client.write_all(&from_client).unwrap_or_else(failed);
            }
            if round == 2 {
                server.write_all(&from_server).unwrap_or_else(failed);
            }
            for (to, sent) in [(&mut *server, from_client), (client, from_server)] {
                let mut got = [9; 3000];
                to.read_exact(&mut got).unwrap_or_else(failed);
                assert_eq!(got, sent, "{what}, {round}");
            }
        }
    }
    let new = open(&pods[0], ("10.96.0.10", 80), &servers);
    let at = new.server.local_addr().expect("an address").ip().to_canonical();
    assert_eq!(at, ip(PODS[0][0]), "a new one goes to the pod that is ready");
    // A run that leaves everything, and one that does not.
    assert_eq!(switch.stop(), Some(0));
    assert_ne!((rules(node), settings()), before);
    if end == End::Stopped {
        let conf_dir = world.folder.text("net.d");
        let arguments = ["uninstall", "--run-dir", &run_dir, "--cni-conf-dir", &conf_dir];
        let output = node.enter(|| run(&arguments)).unwrap();
        assert!(output.status.success(), "{output:?}");
    } else {
        let switch = world.start(&flags);
        switch.says("ready");
        assert_eq!(switch.stop(), Some(0));
        let left = fs::read_dir(&run_dir).unwrap().map(|e| e.unwrap().file_name());
        let of_runs = |name: &&std::ffi::OsString| {
            let name = name.to_string_lossy();
            name.starts_with("connections") || name.starts_with("kept")
        };
        let left: Vec<_> = left.collect();
        assert_eq!(left.iter().find(of_runs), None, "{left:?}");
        fs::remove_dir_all(&run_dir).expect("removed");
    }
    assert_eq!((rules(node), settings()), before);
    assert!(!fs::exists(&run_dir).unwrap());
    let refused =
        connect(client, NODE[0], 30_080).expect_err("the node's stack has its ports again");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn connections_outlive_a_kill() {
    podswitch_testkit::require_privilege!();
    connections_outlive(End::Killed, "outlive");
}

#[test]
fn connections_outlive_a_planned_stop() {
    podswitch_testkit::require_privilege!();
    connections_outlive(End::Stopped, "planned");
}

/// The pod that answers a datagram from one of the client's addresses to the Service with affinity.
#[track_caller]
fn ask_sticky(client: &NetNs, source: IpAddr) -> u8 {
    let socket = client.enter(|| UdpSocket::bind((source, 0))).unwrap().expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let to = SocketAddr::new(ip(NODE[usize::from(source.is_ipv6())]), 30_090);
    socket.send_to(b"?", to).expect("sent");
    let mut pod = [9];
    socket.recv(&mut pod).expect("an answer");
    pod[0]
}

/// Every count that `before` has is in `after`, and not smaller.
fn assert_monotone(before: &Value, after: &Value, path: &str) {
    const OF_RUN: [&str; 6] =
        ["workers", "epoch", "connections", "busy_percent", "batch_fill", "port"];
    match before {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !OF_RUN.contains(&&***name)) {
                assert_monotone(value, &after[name], &format!("{path}/{name}"));
            }
        }
        Value::Array(entries) => {
            for (n, entry) in entries.iter().enumerate() {
                assert_monotone(entry, &after[n], &format!("{path}/{n}"));
            }
        }
        Value::Number(was) => assert!(after.as_f64() >= was.as_f64(), "{path}: {was}, {after}"),
        _ => {}
    }
}

/// Clients keep their backends, though others are ready and they have no connection; counts go on. The switch ends
/// in either way.
fn affinity_and_counts_outlive(end: End, name: &str) {
    let world = World::new(name);
    let World { client, pods, .. } = &world;
    let sources = |from: u8| {
        (from..from + 8)
            .flat_map(|n| [ip(&format!("192.0.2.{n}")), ip(&format!("2001:db8:1::{n:x}"))])
    };
    let mut netlink = Netlink::open(client).unwrap();
    let link = netlink.link("eth0").unwrap().index;
    for source in sources(20).chain(sources(40)) {
        let length = if source.is_ipv4() { 24 } else { 64 };
        netlink.add_address(link, format!("{source}/{length}").parse().unwrap()).unwrap();
        netlink.wait_until_local(source).unwrap();
    }
    let folder = RunDir::new(name);
    let run_dir = folder.0.clone();
    let flags = ["--run-dir", &run_dir, "--keep", "--json", "--stats", "0.2"];
    let pods_now = || -> Value {
        let output = run(&["pods", "--socket", &format!("{run_dir}/ctl.sock"), "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    world.state([false, true]);
    let mut switch = world.start(&flags);
    switch.event("ready");
    world.serve_datagrams();
    for source in sources(20) {
        assert_eq!(ask_sticky(client, source), 1, "only it is ready");
    }
    // Nobody has this address.
    let lost = pods[0].enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    lost.send_to(b"x", "10.1.0.77:9").unwrap();
    world.state([true, true]);
    switch.event("applied");
    for source in sources(20) {
        assert_eq!(ask_sticky(client, source), 1, "it has affinity");
    }
    for round in 0..2 {
        let before = switch.event_with("stats", |stats| {
            let opened =
                |pod: &str| stats["services"][format!("Service/a/sticky 80/UDP {pod}")].as_u64();
            opened("10.1.0.3:8080") >= Some(16 + round * 8)
                && opened("[fd00:1::3]:8080") >= Some(16 + round * 8)
                && stats["drops"]["unknown_pod"].as_u64() >= Some(1)
        });
        let pods_before = pods_now();
        assert!(pods_before.to_string().contains("sent_packets"), "{pods_before}");
        match end {
            End::Killed => {
                // Written down every few seconds.
                let limit = Limit::new(PATIENCE);
                let kept = || fs::read_to_string(format!("{run_dir}/kept-learnt"));
                while !sources(20).all(|s| kept().is_ok_and(|text| text.contains(&s.to_string()))) {
                    limit.left().expect("it is written down");
                    thread::sleep(Duration::from_millis(50));
                }
                drop(switch);
            }
            End::Stopped => assert_eq!(switch.stop(), Some(0)),
        }
        switch = world.start(&flags);
        switch.event("ready");
        let after = switch.event("stats");
        assert_monotone(&before, &after, "");
        assert_monotone(&pods_before, &pods_now(), "pods");
        // Workers do not wait for who reads: once nothing is on its way.
        switch.event_with("stats", |stats| {
            let total = |name: &str| stats[name].as_u64().expect("a count");
            total("received") == total("forwarded") + total("consumed") + total("dropped")
        });
        for source in sources(20) {
            assert_eq!(ask_sticky(client, source), 1, "{round}: {source}");
        }
    }
    // Those of nobody are divided.
    let mut others: Vec<_> = sources(40).map(|source| ask_sticky(client, source)).collect();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others, [0, 1]);
    assert_eq!(switch.stop(), Some(0));
    // Damage, and another version, are refused with a note, and the switch starts all the same.
    for (file, text) in [("kept-learnt", "podswitch-kept 9 0 0\n"), ("kept-counts", "rubbish")] {
        fs::write(format!("{run_dir}/{file}"), text).expect("written");
    }
    let log = world.folder.path("log");
    let file = fs::File::create(&log).unwrap();
    let switch = world.start_with(&["--run-dir", &run_dir], |command| {
        command.stderr(file);
    });
    switch.says("ready");
    assert_eq!(switch.stop(), Some(0));
    let text = fs::read_to_string(&log).unwrap();
    for note in ["what was learnt: it is of format 9", "what was counted: it is damaged"] {
        assert!(text.contains(note), "{text}");
    }
    fs::remove_dir_all(&run_dir).expect("removed");
}

#[test]
fn affinity_and_counts_outlive_a_kill() {
    podswitch_testkit::require_privilege!();
    affinity_and_counts_outlive(End::Killed, "learnt");
}

#[test]
fn affinity_and_counts_outlive_a_planned_stop() {
    podswitch_testkit::require_privilege!();
    affinity_and_counts_outlive(End::Stopped, "counted");
}

/// The status that a load balancer is answered.
fn health(from: &NetNs, to: &str) -> String {
    let mut stream = connect(from, to, 30_500).expect("somebody listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text.split(' ').nth(1).expect("a status").to_owned()
}

#[test]
fn health_checks_and_a_killed_switch() {
    podswitch_testkit::require_privilege!();
    let world = World::new("health");
    let World { node, client, .. } = &world;
    sysctl::set(node, "net/ipv4/ip_local_reserved_ports", "8080,9000-9010").unwrap();
    let settings = || {
        [
            "net/ipv4/ip_local_reserved_ports",
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
            "net/ipv4/conf/all/rp_filter",
        ]
        .map(|key| sysctl::get(node, key).unwrap())
    };
    let before = (rules(node), settings());
    world.state([false, true]);
    let switch = world.start(&["--masquerade", "off"]);
    switch.says("ready");
    world.serve();
    for address in NODE {
        assert_eq!(health(client, address), "200");
        assert_eq!(ask(client, address, 30_081).0, 1);
    }
    world.state([false, false]);
    switch.says("applied");
    assert_eq!(health(client, NODE[0]), "503");
    drop(switch);
    // The node's kernel is alone now: nobody is at the port.
    assert!(connect(client, NODE[0], 30_080).is_err());
    world.state([true, true]);
    let switch = world.start(&["--masquerade", "off"]);
    switch.says("ready");
    assert_eq!(health(client, NODE[1]), "200");
    ask(client, NODE[0], 30_080);
    ask(node, NODE[0], 30_080);
    assert_eq!(switch.stop(), Some(0));
    // As it was before the run that was killed.
    assert_eq!((rules(node), settings()), before);
}
