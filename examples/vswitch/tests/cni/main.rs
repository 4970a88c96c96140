//! Pods attached by the CNI plugin: the real program podswitch-cni against a running switch, in namespaces.

mod delegated;
mod lifecycle;
mod log;
mod policies;
mod ports;
mod restarts;
mod speed;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::{NetNs, Netlink};
use podswitch_vswitch_testkit::running::Running;
use podswitch_vswitch_testkit::{Folder, head, plugin};
use serde_json::{Value, json};

/// A node with a switch, and a runtime that calls the plugin.
struct World {
    folder: Folder,
    /// Name of the node.
    name: String,
    node: NetNs,
    /// Where the other end of the node's only interface is.
    outside: NetNs,
}

/// Interfaces that others made.
static OTHERS: AtomicUsize = AtomicUsize::new(0);

/// What the plugin printed.
#[derive(Debug)]
struct Answer {
    ok: bool,
    value: Value,
}

/// A container with a namespace of its own.
struct Container {
    id: String,
    netns: NetNs,
}

impl World {
    /// A node with podCIDRs of both families, and more objects in its manifests.
    fn new(more: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cni-{}-{number}", std::process::id());
        let [node, outside] = [(); 2].map(|()| NetNs::anonymous().expect("a namespace"));
        let world = Self { folder: Folder::new(), name, node, outside };
        world.manifest(more);
        world
    }

    /// Gives the node its InternalIP.
    fn give_address(&self) {
        let mut netlink = Netlink::open(&self.node).expect("netlink");
        let (here, there) = (LinkSpec::new("up0").up(), LinkSpec::new("up0").up());
        let index = netlink.add_veth(&here, &there, &self.outside).expect("a pair");
        netlink.add_address(index, "192.0.2.1/24".parse().expect("an address")).expect("added");
    }

    /// Puts an interface of another's into a namespace.
    fn put_interface(&self, name: &str, netns: &NetNs) {
        let mut netlink = Netlink::open(netns).expect("netlink");
        let there = LinkSpec::new(format!("t{}", OTHERS.fetch_add(1, Ordering::Relaxed)));
        netlink.add_veth(&LinkSpec::new(name), &there, &self.outside).expect("a pair");
    }

    /// Puts a manifest in place at once.
    fn manifest(&self, more: &str) {
        let text = (head() + more).replace("n1", &self.name);
        fs::create_dir_all(self.folder.path("state")).expect("a folder");
        let temporary = self.folder.path("state.new");
        fs::write(&temporary, text).expect("written");
        fs::rename(temporary, self.folder.path("state").join("state.yaml")).expect("renamed");
    }

    /// Starts the switch, and waits until it is ready.
    fn start(&self, more: &[&str]) -> Running {
        let (manifests, run_dir) = (self.folder.text("state"), self.folder.text("run"));
        let netns = self.node.path().display().to_string();
        let head = ["--node", &self.name, "--manifests", &manifests, "--node-netns", &netns];
        let switch = Running::start(&[&head[..], &["--run-dir", &run_dir], more].concat());
        switch.says("ready");
        switch
    }

    fn socket(&self) -> PathBuf {
        self.folder.path("run").join("cni.sock")
    }

    /// Calls the plugin.
    fn call(&self, verb: &str, variables: &[(&str, &str)], config: &Value) -> Answer {
        let mut base = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "podswitch-cni", "socket": self.socket(),
        });
        let more = config.as_object().expect("an object").clone();
        base.as_object_mut().expect("an object").extend(more);
        let mut child = Command::new(plugin())
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", self.folder.path("plugins"))
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin starts");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(base.to_string().as_bytes()).expect("written");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8(output.stdout).expect("text");
        let value = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")),
        };
        Answer { ok: output.status.success(), value }
    }

    /// Calls the plugin for a container's eth0. `pod`: what it is called in Kubernetes.
    fn of(&self, verb: &str, container: &Container, pod: Option<&str>, config: &Value) -> Answer {
        let netns = container.netns.path().display().to_string();
        let arguments = pod.map(|pod| {
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}")
        });
        let arguments = arguments.unwrap_or_default();
        let variables = [
            ("CNI_CONTAINERID", &*container.id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &arguments),
        ];
        self.call(verb, &variables, config)
    }

    #[track_caller]
    fn add(&self, container: &Container, pod: Option<&str>) -> Vec<IpAddr> {
        self.of("ADD", container, pod, &json!({})).addresses()
    }

    #[track_caller]
    fn del(&self, container: &Container) {
        let answer = self.of("DEL", container, None, &json!({}));
        assert!(answer.ok, "{answer:?}");
    }

    /// Files of leases in force.
    fn leases(&self) -> HashSet<String> {
        self.files("leases")
    }

    fn files(&self, folder: &str) -> HashSet<String> {
        let entries = fs::read_dir(self.folder.path("run").join(folder)).expect("a folder");
        let files = entries.map(|entry| entry.expect("an entry"));
        let files = files.filter(|entry| entry.file_type().expect("a type").is_file());
        files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Answer {
    /// The addresses of a result.
    #[track_caller]
    fn addresses(&self) -> Vec<IpAddr> {
        assert!(self.ok, "{self:?}");
        let ips = self.value["ips"].as_array().expect("ips");
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        ips.iter().map(|ip| address(ip).expect("an address")).collect()
    }

    /// Code and text of an error.
    #[track_caller]
    fn error(&self) -> (u64, &str) {
        assert!(!self.ok, "{self:?}");
        (self.value["code"].as_u64().expect("a code"), self.value["msg"].as_str().expect("a text"))
    }
}

impl Container {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { id, netns: NetNs::anonymous().expect("a namespace") }
    }

    /// A socket at one of its addresses.
    fn socket(&self, address: IpAddr, port: u16) -> UdpSocket {
        let address = SocketAddr::new(address, port);
        let socket = self.netns.enter(|| UdpSocket::bind(address)).expect("entered");
        let socket = socket.unwrap_or_else(|error| panic!("{address}: {error}"));
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
        socket
    }

    fn has_interface(&self, name: &str) -> bool {
        let mut netlink = Netlink::open(&self.netns).expect("netlink");
        netlink.find_link(name).expect("asked").is_some()
    }
}

/// Whether a datagram arrives, sent up to `tries` times.
fn arrives(from: &UdpSocket, to: &UdpSocket, tries: usize) -> bool {
    let target = to.local_addr().expect("bound");
    (0..tries).any(|_| {
        from.send_to(b"?", target).expect("sent");
        to.recv_from(&mut [0; 16]).is_ok()
    })
}

/// Whether the very next datagram arrives, however long that takes.
fn next_arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    let short = to.read_timeout().expect("known");
    to.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let arrived = arrives(from, to, 1);
    to.set_read_timeout(short).expect("set");
    arrived
}

/// Waits until nothing arrives any more.
fn closes(from: &UdpSocket, to: &UdpSocket) -> bool {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if !arrives(from, to, 3) {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
    }
}
