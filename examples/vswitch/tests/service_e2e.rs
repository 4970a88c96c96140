//! Services that change while real sockets use them: streams that outlive the churn of endpoints,
//! datagrams that move at once, immediate resets and rejections, affinity, hairpin; both
//! families.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, NODE, head, node_namespace, pod};

/// Pods by their place: a client, and two servers.
const X: usize = 0;
const Y: usize = 1;
const Z: usize = 2;
const NAMES: [&str; 3] = ["x", "y", "z"];
const VIPS: [&str; 2] = ["10.96.0.10", "fd96::10"];
const STICKY: [&str; 2] = ["10.96.0.11", "fd96::11"];
const EMPTY: [&str; 2] = ["10.96.0.12", "fd96::12"];
/// Its backend is the node itself.
const OWN: [&str; 2] = ["10.96.0.13", "fd96::13"];

fn pod_ip(pod: usize, family: usize) -> IpAddr {
    let n = pod + 2;
    [format!("10.1.0.{n}"), format!("fd00:1::{n}")][family].parse().expect("an address")
}

/// An endpoint of the Services: a pod, and whether it is ready, serving and terminating.
type End = (usize, [bool; 3]);

const STAY: &str = "sessionAffinity: ClientIP, ";
const READY: [bool; 3] = [true, true, false];
const LEAVING: [bool; 3] = [false, true, true];
const LEFT: [bool; 3] = [false, false, true];

struct World {
    folder: Folder,
    name: String,
    node: NetNs,
    pods: [NetNs; 3],
    switch: Running,
}

impl World {
    fn start(name: &str, ends: &[End]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let node = node_namespace();
        let pods = [(); 3].map(|()| NetNs::anonymous().expect("a namespace"));
        let folder = Folder::new();
        Self::write(&folder, &name, &pods, &[X, Y, Z], ends);
        let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
        let switch = Running::start(&[
            "--node",
            &name,
            "--manifests",
            &manifests,
            "--node-netns",
            &netns,
            "--service-cidr",
            "10.96.0.0/16",
            "--service-cidr",
            "fd96::/112",
            "--workers",
            "2",
        ]);
        switch.says("ready");
        let world = Self { folder, name, node, pods, switch };
        (Y..=Z).for_each(|pod| world.serve(pod));
        world
    }

    /// These pods are there, and these are endpoints.
    fn change(&self, pods: &[usize], ends: &[End]) {
        Self::write(&self.folder, &self.name, &self.pods, pods, ends);
        self.switch.says("applied");
    }

    fn write(folder: &Folder, name: &str, namespaces: &[NetNs; 3], pods: &[usize], ends: &[End]) {
        let mut text = head();
        for &number in pods {
            let annotations =
                format!("podswitch.io/netns: {}", namespaces[number].path().display());
            text += &pod(NAMES[number], number as u8 + 2, &annotations);
        }
        for (at, service, more) in
            [(0, "web", ""), (1, "sticky", STAY), (2, "empty", ""), (3, "own", "")]
        {
            let ips = [VIPS, STICKY, EMPTY, OWN][at];
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: a}}\n\
                 spec: {{{more}clusterIP: {0}, clusterIPs: [{0}, '{1}'], \
                 ports: [{{name: t, port: 80, targetPort: 8080}}, \
                 {{name: u, port: 80, targetPort: 8080, protocol: UDP}}]}}\n",
                ips[0], ips[1]
            );
            for (f, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
                let end = |(pod, [ready, serving, terminating]): &End| {
                    format!(
                        "{{addresses: ['{}'], nodeName: n1, conditions: {{ready: {ready}, \
                         serving: {serving}, terminating: {terminating}}}}}",
                        pod_ip(*pod, f)
                    )
                };
                let list: Vec<String> = match (service, f) {
                    ("empty", _) | ("own", 1) => Vec::new(),
                    ("own", _) => vec![format!("{{addresses: ['{NODE}'], nodeName: n1}}")],
                    _ => ends.iter().map(end).collect(),
                };
                text += &format!(
                    "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                     metadata: {{name: {service}-{f}, namespace: a, labels: \
                     {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\n\
                     ports: [{{name: t, port: 8080}}, {{name: u, port: 8080, protocol: UDP}}]\n\
                     endpoints: [{}]\n",
                    list.join(", ")
                );
            }
        }
        // Atomically, as writers of manifests should.
        fs::write(folder.path("next"), text.replace("n1", name)).expect("written");
        fs::create_dir_all(folder.path("state")).expect("a folder");
        fs::rename(folder.path("next"), folder.path("state/s.yaml")).expect("renamed");
    }

    /// Says who it is and whom it sees, then sends back what it is sent; a datagram is answered
    /// by who it is.
    fn serve(&self, pod: usize) {
        let listen = || (TcpListener::bind("[::]:8080"), UdpSocket::bind("[::]:8080"));
        let (tcp, udp) = self.pods[pod].enter(listen).expect("entered");
        let (tcp, udp) = (tcp.expect("bound"), udp.expect("bound"));
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(stream) = stream else { return };
                thread::spawn(move || echo(pod, stream));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(NAMES[pod].as_bytes(), peer);
            }
        });
    }

    /// A stream to port 80 of an address: who answers, and whom it sees.
    fn connect(&self, from: &NetNs, to: &str) -> std::io::Result<(String, IpAddr, TcpStream)> {
        let address = SocketAddr::new(to.parse().expect("an address"), 80);
        let stream =
            from.enter(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("entered")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line)?;
        let (name, peer) = line.trim().split_once(' ').expect("two words");
        Ok((name.to_owned(), peer.parse().expect("an address"), stream))
    }

    /// Whose answer the socket gets; asked again where a datagram was lost.
    #[track_caller]
    fn ask(&self, socket: &UdpSocket) -> String {
        let mut buffer = [0; 64];
        for _ in 0..50 {
            let _ = socket.send(b"who?");
            if let Ok(len) = socket.recv(&mut buffer) {
                // Answers to earlier questions do not count.
                socket.set_nonblocking(true).expect("set");
                while socket.recv(&mut [0; 64]).is_ok() {}
                socket.set_nonblocking(false).expect("set");
                return String::from_utf8_lossy(&buffer[..len]).into_owned();
            }
        }
        panic!("no answer at {:?}", socket.local_addr());
    }
}

fn echo(pod: usize, mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    let _ = writeln!(stream, "{} {}", NAMES[pod], peer.ip().to_canonical());
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

/// So much there and back.
#[track_caller]
fn goes_on(stream: &mut TcpStream, round: u8) {
    let data: Vec<u8> = (0..20_000u32).map(|n| n as u8 ^ round).collect();
    stream.write_all(&data).expect("written");
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back).expect("all of it comes back");
    assert!(back == data, "what came back is something else");
}

fn datagrams(from: &NetNs, to: &str) -> UdpSocket {
    let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.enter(|| UdpSocket::bind(any)).expect("entered").expect("bound");
    socket.connect(SocketAddr::new(to.parse().expect("an address"), 80)).expect("connected");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    socket
}

#[test]
fn streams_outlive_the_churn_of_endpoints() {
    podswitch_testkit::require_tap!();
    let world = World::start("churn", &[(Y, READY)]);
    let World { pods, node, .. } = &world;
    let mut streams = Vec::new();
    for (from, to) in [(&pods[X], VIPS[0]), (&pods[X], VIPS[1]), (node, VIPS[0])] {
        let (name, _, stream) = world.connect(from, to).expect("connected");
        assert_eq!(name, "y");
        streams.push(stream);
    }
    let states: [&[End]; 6] = [
        &[(Y, READY), (Z, READY)],
        &[(Z, READY), (Y, LEAVING)],
        &[(Z, READY), (Y, LEFT)],
        &[(Z, READY)],
        &[],
        &[(Y, READY)],
    ];
    for round in 0..4 * states.len() {
        world.change(&[X, Y, Z], states[round % states.len()]);
        streams.iter_mut().for_each(|stream| goes_on(stream, round as u8));
    }
    // What is new follows the state.
    world.change(&[X, Y, Z], &[(Z, READY), (Y, LEAVING)]);
    for vip in VIPS {
        assert_eq!(world.connect(&pods[X], vip).expect("connected").0, "z");
    }
    // Their pod is gone: they get a reset and do not hang (S11).
    world.change(&[X, Z], &[(Z, READY)]);
    for mut stream in streams {
        let told = (0..3).find_map(|_| {
            stream.write_all(b"anybody there?").and_then(|()| stream.read(&mut [0; 8])).err()
        });
        let kind = told.expect("an error").kind();
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind:?}");
    }
    assert_eq!(world.switch.stop(), Some(0));
}

#[test]
fn datagrams_move_at_once() {
    podswitch_testkit::require_tap!();
    let world = World::start("datagrams", &[(Y, READY)]);
    let World { pods, node, .. } = &world;
    let all = [X, Y, Z];
    let clients = [(&pods[X], VIPS[0]), (&pods[X], VIPS[1]), (node, VIPS[0])];
    let sockets = clients.map(|(from, to)| datagrams(from, to));
    for _ in 0..3 {
        for (ends, name) in [
            (&[(Y, READY)][..], "y"),
            (&[(Z, READY)], "z"),
            (&[(Z, READY), (Y, LEFT)], "z"),
            // Still serving: what it has stays with it.
            (&[(Y, READY), (Z, LEAVING)], "z"),
            (&[(Y, READY), (Z, LEFT)], "y"),
        ] {
            world.change(&all, ends);
            for socket in &sockets {
                assert_eq!(world.ask(socket), name, "{ends:?}");
            }
        }
    }
    // No endpoint: the sender gets an ICMP error (S5).
    world.change(&all, &[]);
    for socket in &sockets {
        let told = (0..50).find_map(|_| {
            socket.send(b"who?").and_then(|_| socket.recv(&mut [0; 8])).err().filter(|error| {
                !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
            })
        });
        assert_eq!(told.map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
    }
    world.change(&all, &[(Z, READY)]);
    for socket in &sockets {
        assert_eq!(world.ask(socket), "z");
    }
    assert_eq!(world.switch.stop(), Some(0));
}

#[test]
fn affinity_hairpin_and_refusal() {
    podswitch_testkit::require_tap!();
    let world = World::start("sticky", &[(Y, READY), (Z, READY)]);
    let World { pods, node, .. } = &world;
    let all = [X, Y, Z];
    let asks = |from: &NetNs, to: &str| world.connect(from, to).expect("connected").0;
    for f in 0..2 {
        // One client, one backend, for as long as it serves.
        let home = asks(&pods[X], STICKY[f]);
        assert!((0..20).all(|_| asks(&pods[X], STICKY[f]) == home));
        let other = if home == "y" { Z } else { Y };
        world.change(&all, &[(other, READY)]);
        assert_eq!(asks(&pods[X], STICKY[f]), NAMES[other]);
        world.change(&all, &[(Y, READY), (Z, READY)]);
        assert!((0..10).all(|_| asks(&pods[X], STICKY[f]) == NAMES[other]), "pinned to it");
        // Without affinity both get some.
        let seen = (0..40).filter(|_| asks(&pods[X], VIPS[f]) == "y").count();
        assert!((1..40).contains(&seen), "{seen} of 40");
        // No endpoint: rejected for every client.
        let refused = world.connect(&pods[X], EMPTY[f]).expect_err("nobody is there");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // Hairpin: the pod reaches itself, and does not see its own address (S8).
        world.change(&all, &[(Y, READY)]);
        let (name, peer, mut stream) = world.connect(&pods[Y], VIPS[f]).expect("connected");
        assert_eq!(name, "y");
        assert_ne!(peer, pod_ip(Y, f));
        goes_on(&mut stream, 1);
        assert_eq!(world.ask(&datagrams(&pods[Y], VIPS[f])), "y");
        world.change(&all, &[(Y, READY), (Z, READY)]);
    }
    // A server in the node's own network, called by the node and by a pod.
    let listener = node.enter(|| TcpListener::bind("0.0.0.0:8080")).expect("entered");
    let listener = listener.expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(X, stream));
        }
    });
    for from in [node, &pods[X]] {
        let (_, _, mut stream) = world.connect(from, OWN[0]).expect("connected");
        goes_on(&mut stream, 2);
    }
    let refused = world.connect(node, EMPTY[0]).expect_err("nobody is there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.switch.stop(), Some(0));
}
