//! Shared by the tests of the `vswitch` program: the program itself, folders to work in, manifests
//! and frames.

#![allow(missing_docs, reason = "names say what a helper does; what they do not say has a comment")]

pub mod cases;
pub mod cluster;
pub mod kernel;
pub mod running;
pub mod stream;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use etherparse::{IpNumber, PacketBuilder};
use podswitch_core::port::pcap::{CaptureWriter, Direction, Format, read_capture};
use podswitch_linux::{NetNs, Netlink};

pub const GATEWAY: [u8; 6] = [0xee; 6];
pub const X: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub const Y: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
pub const X6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
pub const Y6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3);
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The program. Cargo builds it before the tests of its own package, and with the complete workspace.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("podswitch-vswitch", "vswitch"))
}

/// The CNI plugin. Cargo builds it with the complete workspace.
pub fn plugin() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| built("podswitch-cni", "podswitch-cni"))
}

/// A program of another package, in the parent of the tests' folder. It is built here if it is missing.
fn built(package: &str, name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let program = profile.join(name);
    if !program.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--package", package, "--bin", name]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo starts").success(), "{name} is not built");
    }
    assert!(program.exists(), "no {}", program.display());
    program
}

/// A run directory on tmpfs, removed however the test ends.
pub struct RunDir(pub String);

impl RunDir {
    pub fn new(name: &str) -> Self {
        Self(format!("/dev/shm/podswitch-{name}-{}", std::process::id()))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // A killed switch leaves one, which would have namespaces open for minutes.
        podswitch_node::hold::end_holder(Path::new(&self.0));
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The namespace of a node with the address [`NODE`].
pub fn node_namespace() -> NetNs {
    let ns = NetNs::anonymous().expect("a namespace");
    let mut netlink = Netlink::open(&ns).expect("netlink");
    let lo = netlink.link("lo").expect("every namespace has one").index;
    netlink.add_address(lo, IpAddr::from(NODE).into()).expect("an address");
    ns
}

/// Runs the program.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().expect("the program starts")
}

/// A folder for one test, removed with it.
pub struct Folder(PathBuf);

impl Folder {
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vswitch-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder can be made");
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path of our own").to_owned()
    }

    /// Writes a manifest into its own folder and returns that folder.
    pub fn manifest(&self, name: &str, text: &str) -> String {
        fs::create_dir_all(self.path(name)).expect("a folder can be made");
        fs::write(self.path(name).join("state.yaml"), text).expect("a file can be written");
        self.text(name)
    }

    /// Writes a capture and returns its path.
    pub fn capture(&self, name: &str, frames: &[(f64, Vec<u8>)]) -> String {
        let path = self.path(name);
        let mut writer = CaptureWriter::create(&path, Format::Pcap).expect("a capture");
        for (seconds, frame) in frames {
            let time = (seconds * 1e9).round() as u64;
            writer.write(time, frame, frame.len() as u32, Direction::Inbound).expect("written");
        }
        writer.finish().expect("written");
        self.text(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // As for a run directory of its own.
        for child in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            podswitch_node::hold::end_holder(&child.path());
        }
        // Nothing depends on the removal.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Replays captures at the ports of node n1 under a state, and under other states that replace it
/// after the given number of seconds. The output is in the folder's `out`.
#[track_caller]
pub fn replay<'a>(
    state: &str,
    later: impl IntoIterator<Item = (f64, &'a str)>,
    captures: impl IntoIterator<Item = (&'a str, &'a [(f64, Vec<u8>)])>,
    options: &[String],
) -> Folder {
    let folder = Folder::new();
    let manifests = folder.manifest("state", state);
    let mut arguments = vec!["replay".to_owned(), "--node".into(), "n1".into()];
    arguments.extend(["--manifests".into(), manifests, "--out".into(), folder.text("out")]);
    arguments.extend(options.iter().cloned());
    for (number, (seconds, text)) in later.into_iter().enumerate() {
        let path = folder.manifest(&format!("later{number}"), text);
        arguments.extend(["--at".into(), format!("{seconds}={path}")]);
    }
    for (number, (port, frames)) in captures.into_iter().enumerate() {
        let path = folder.capture(&format!("in{number}.pcap"), frames);
        arguments.extend(["--in".into(), format!("{port}={path}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run(&arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    folder
}

/// Frames of a capture, with their times in seconds.
pub fn frames(path: &Path) -> Vec<(f64, Vec<u8>)> {
    let reader = read_capture(path).expect("a capture");
    reader.map(|r| r.expect("a record")).map(|r| (r.time_ns as f64 / 1e9, r.frame)).collect()
}

/// Two pods, `a/x` and `a/y`, on node `n1`.
pub fn two_pods() -> String {
    [head(), pod("x", 2, ""), pod("y", 3, "")].concat()
}

/// Namespace and node.
pub fn head() -> String {
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
     apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n\
     spec: {podCIDRs: [10.1.0.0/24, \"fd00:1::/64\"]}\n\
     status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n"
        .to_owned()
}

/// A pod of namespace `a` on node `n1`, with annotations as YAML between braces.
pub fn pod(name: &str, number: u8, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: a, annotations: {{{annotations}}}}}\n\
         spec: {{nodeName: n1}}\n\
         status: {{phase: Running, podIPs: [{{ip: 10.1.0.{number}}}, {{ip: \"fd00:1::{number}\"}}]}}\n"
    )
}

/// As [`pod`], attached by a veth pair.
pub fn veth_pod(name: &str, number: u8, netns: &NetNs) -> String {
    let path = netns.path();
    let netns = path.display();
    pod(name, number, &format!("podswitch.io/netns: {netns}, podswitch.io/port: veth"))
}

/// A pod's or node's default MAC address.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// A UDP datagram to the gateway's MAC address.
pub fn udp(from: Ipv4Addr, to: Ipv4Addr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(from), GATEWAY);
    let builder = builder.ipv4(from.octets(), to.octets(), ttl).udp(1000, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("it fits");
    frame
}

/// The same over IPv6; `number` is the last byte of the sender's IPv4 address.
pub fn udp6(from: Ipv6Addr, number: u8, to: Ipv6Addr, hops: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([0x0a, 0x58, 10, 1, 0, number], GATEWAY);
    let builder = builder.ipv6(from.octets(), to.octets(), hops).udp(1000, 2000);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("it fits");
    frame
}

/// Fragments of one UDP datagram of `count` times 800 bytes.
pub fn fragments(from: Ipv4Addr, to: Ipv4Addr, identification: u16, count: usize) -> Vec<Vec<u8>> {
    const PIECE: usize = 800;
    let mut datagram = vec![0; PIECE * count];
    let length = (datagram.len() as u16).to_be_bytes();
    datagram[..8].copy_from_slice(&[3, 232, 7, 208, length[0], length[1], 0, 0]);
    let cut = |(number, piece): (usize, &[u8])| {
        let mut header = etherparse::Ipv4Header::new(
            piece.len() as u16,
            64,
            IpNumber::UDP,
            from.octets(),
            to.octets(),
        )
        .expect("it fits");
        header.identification = identification;
        header.dont_fragment = false;
        header.more_fragments = number + 1 < count;
        header.fragment_offset = ((number * PIECE / 8) as u16).try_into().expect("it fits");
        header.header_checksum = header.calc_header_checksum();
        let mut frame = [GATEWAY, mac(from)].concat();
        frame.extend_from_slice(&[8, 0]);
        header.write(&mut frame).expect("a vector takes everything");
        frame.extend_from_slice(piece);
        frame
    };
    datagram.chunks(PIECE).enumerate().map(cut).collect()
}
