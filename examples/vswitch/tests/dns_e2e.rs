//! Cluster DNS by a running switch: glibc's resolver in pods, real sockets, no CoreDNS.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use podswitch_dns::{Name, query, record_type};
use podswitch_linux::NetNs;
use podswitch_testkit::privilege;
use podswitch_vswitch_testkit::Folder;
use podswitch_vswitch_testkit::cluster::{Fabric, Limit, Node, PATIENCE, Running, ip, put};

const SERVER: [&str; 2] = ["10.96.0.10", "fd96::a"];
const FLAGS: [&str; 4] = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];

/// A Service of both families in a namespace.
fn service(namespace: &str, name: &str, ips: [&str; 2], ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {0}, clusterIPs: [{0}, '{1}'], ports: [{ports}]}}\n",
        ips[0], ips[1]
    )
}

fn kube_dns() -> String {
    let ports = "{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}";
    service("kube-system", "kube-dns", SERVER, ports)
}

struct World {
    folder: Folder,
    node: Node,
    switch: Running,
}

impl World {
    /// A node with one pod, whose switch runs with these objects and options.
    fn start(objects: &[String], options: &[&str]) -> Self {
        let fabric = Fabric::new(1500);
        let node = Node::new(&fabric, 1, &[false], &["tap"]);
        let folder = Folder::new();
        put(&folder, &[&[node.manifest()], objects].concat());
        let switch = node.start(&folder, &[&FLAGS, options].concat());
        switch.event("ready");
        Self { folder, node, switch }
    }

    fn change(&self, objects: &[String]) {
        put(&self.folder, &[&[self.node.manifest()], objects].concat());
        self.switch.next_event("applied");
    }

    fn pod(&self) -> &NetNs {
        &self.node.pods[0].ns
    }

    /// What glibc in the pod finds of a name, by the name server at this address.
    fn getent(&self, database: &str, name: &str, server: &str) -> String {
        let resolv = self.folder.path("resolv.conf");
        let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
        let text =
            format!("nameserver {server}\n{search}\noptions ndots:5 timeout:2 attempts:10\n");
        fs::write(&resolv, text).unwrap();
        let script = format!(
            "mount --bind {} /etc/resolv.conf && getent {database} {name}",
            resolv.display()
        );
        let mut command = self.pod().command("unshare");
        let output = command.args(["--mount", "sh", "-c", &script]).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The answer that the pod gets to a query of its own making.
    fn ask(&self, server: &str, name: &str, qtype: u16) -> Vec<u8> {
        let server: IpAddr = ip(server);
        let any = if server.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
        let socket = self.pod().enter(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // Answers from any other address or port are not received.
        socket.connect((server, 53)).unwrap();
        let query = query(0x1234, &Name::parse(name).unwrap(), qtype, Some(1232));
        let limit = Limit::new(PATIENCE);
        let mut buffer = [0; 2000];
        while limit.left().is_some() {
            let _ = socket.send(&query);
            if let Ok(len) = socket.recv(&mut buffer) {
                return buffer[..len].to_vec();
            }
        }
        panic!("no answer from {server} for {name}");
    }
}

fn has_tools() -> bool {
    let has = |program: &str| {
        let status = std::process::Command::new(program).arg("--version").output();
        status.is_ok_and(|output| output.status.success())
    };
    let all = ["unshare", "mount", "getent"].into_iter().all(has);
    if !all {
        privilege::skip("glibc's resolver in a pod", "no unshare, mount or getent");
    }
    all
}

#[test]
fn glibc_in_a_pod_resolves_without_any_dns_pod() {
    if !has_tools() {
        return;
    }
    let api = service("default", "api", ["10.96.0.7", "fd96::7"], "{name: http, port: 80}");
    let world = World::start(&[kube_dns(), api.clone()], &[]);
    for server in SERVER {
        let found = world.getent("ahosts", "api.default.svc.cluster.local", server);
        assert!(found.contains("10.96.0.7") && found.contains("fd96::7"), "{found}");
        // By the search list: other names are asked for first.
        assert!(world.getent("hosts", "api", server).contains("api.default.svc.cluster.local"));
        assert!(
            world.getent("hosts", "10.96.0.7", server).contains("api.default.svc.cluster.local")
        );
        assert_eq!(world.getent("hosts", "nothing.default.svc.cluster.local", server), "");
    }
    // What changes is resolvable once it is in force.
    let other = service("default", "other", ["10.96.0.8", "fd96::8"], "{name: http, port: 80}");
    world.change(&[kube_dns(), other]);
    assert!(world.getent("hosts", "other", SERVER[0]).contains("fd96::8"));
    assert_eq!(world.getent("hosts", "api", SERVER[0]), "");
    let answer = world.ask(SERVER[1], "other.default.svc.cluster.local", record_type::A);
    assert!(answer.windows(4).any(|bytes| bytes == [10, 96, 0, 8]), "{answer:?}");
    assert_eq!(world.switch.stop(), Some(0));
}
