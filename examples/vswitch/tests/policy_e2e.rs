//! Network policy and the real kernel: sockets in pods of their own, a TCP connection that lives
//! while policies forbid it and allow it again.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, X, X6, Y, Y6, head, veth_pod};

/// Long enough for what passes to have arrived.
const A_WHILE: Duration = Duration::from_millis(300);

const PORT: u16 = 8080;

/// The switch of a node with the pods a/x and a/y, under policies that change.
struct Switch {
    folder: Folder,
    running: Running,
    pods: String,
}

impl Switch {
    fn start(x: &NetNs, y: &NetNs, node: &NetNs) -> Self {
        let name = format!("policy-{}", std::process::id());
        let pods = [head(), veth_pod("x", 2, x), veth_pod("y", 3, y)].concat().replace("n1", &name);
        let folder = Folder::new();
        folder.manifest("state", &pods);
        let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
        let head = ["--node", &name, "--manifests", &manifests, "--node-netns", &netns];
        let running = Running::start(&[&head[..], &["--masquerade", "off"]].concat());
        running.says("ready");
        Self { folder, running, pods }
    }

    /// Puts a policy in force for namespace a, none if there is no `spec`.
    #[track_caller]
    fn enforce(&self, spec: Option<&str>) {
        let policy = spec.map_or_else(String::new, |spec| {
            format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: p, namespace: a}}\nspec: {spec}\n"
            )
        });
        fs::write(self.folder.path("next"), self.pods.clone() + &policy).expect("written");
        let state = self.folder.path("state/state.yaml");
        fs::rename(self.folder.path("next"), state).expect("renamed");
        self.running.says("applied");
    }
}

/// Both ends of a connection from x to y.
struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    /// Bytes of the client arrive within that time.
    fn arrives(&mut self, byte: u8, patience: Duration) -> bool {
        self.client.write_all(&[byte]).expect("the kernel takes it");
        Self::receives(&mut self.server, byte, patience)
    }

    fn receives(end: &mut TcpStream, byte: u8, patience: Duration) -> bool {
        end.set_read_timeout(Some(patience)).expect("set");
        let mut buffer = [0];
        match end.read(&mut buffer) {
            Ok(1) => buffer[0] == byte,
            Ok(_) => panic!("the connection was closed"),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn connect(x: &NetNs, to: SocketAddr, patience: Duration) -> Option<TcpStream> {
    x.enter(|| TcpStream::connect_timeout(&to, patience)).expect("entered").ok()
}

#[test]
fn a_connection_lives_through_policies() {
    podswitch_testkit::require_privilege!();
    let [x, y, node] = [(); 3].map(|()| NetNs::anonymous().expect("a namespace"));
    let switch = Switch::start(&x, &y, &node);
    let only_from = |range: &str| {
        format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: '{range}'}}}}], ports: [{{port: {PORT}}}]}}]}}"
        )
    };
    for (from, to) in [(IpAddr::from(X), IpAddr::from(Y)), (X6.into(), Y6.into())] {
        let length = if from.is_ipv4() { 32 } else { 128 };
        let (allow, deny) = (format!("{from}/{length}"), format!("{to}/{length}"));
        let (allow, deny) = (only_from(&allow), only_from(&deny));
        switch.enforce(Some(&allow));
        let listener = y.enter(|| TcpListener::bind((to, PORT))).expect("entered").expect("bound");
        let other = y.enter(|| TcpListener::bind((to, PORT + 1))).expect("entered").expect("bound");
        let client = connect(&x, (to, PORT).into(), PATIENCE).expect("the policy allows it");
        let (server, peer) = listener.accept().expect("a connection");
        assert_eq!(peer.ip(), from);
        let mut talk = Talk { client, server };
        assert!(talk.arrives(1, PATIENCE));
        // The answer comes although x lets nobody in on that port.
        talk.server.write_all(&[2]).expect("the kernel takes it");
        assert!(Talk::receives(&mut talk.client, 2, PATIENCE));
        assert!(connect(&x, (to, PORT + 1).into(), A_WHILE).is_none(), "another port");
        // The established connection is re-evaluated, and a new one is denied as well.
        switch.enforce(Some(&deny));
        assert!(!talk.arrives(3, A_WHILE));
        assert!(connect(&x, (to, PORT).into(), A_WHILE).is_none());
        // What was held up arrives: TCP sends it again.
        switch.enforce(None);
        assert!(Talk::receives(&mut talk.server, 3, PATIENCE));
        assert!(connect(&x, (to, PORT + 1).into(), PATIENCE).is_some());
        drop(other);
    }
    assert_eq!(switch.running.stop(), Some(0));
}
