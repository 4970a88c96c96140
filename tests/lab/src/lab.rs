//! The cluster: started and stopped by scripts, controlled with kubectl and in the nodes'
//! namespaces.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use podswitch_testkit::privilege;
use serde_json::Value;

use crate::{Client, Result, eventually};

/// The parts that `tests/lab/setup` installed.
#[derive(Clone, Debug)]
pub struct Parts {
    pub folder: PathBuf,
}

impl Parts {
    /// `None`: parts are missing. The test is skipped, which is printed and counted.
    pub fn find(test: &str) -> Option<Self> {
        Self::find_all(test, &["prefix/bin/kubelet", "bin/vswitch", "bin/podswitch-cni"])
    }

    /// As [`find`](Self::find), for tests that need only the API server and etcd.
    pub fn find_control_plane(test: &str) -> Option<Self> {
        Self::find_all(test, &["prefix/bin/kube-apiserver", "prefix/root/usr/bin/etcd"])
    }

    fn find_all(test: &str, needed: &[&str]) -> Option<Self> {
        if !privilege::is_root(test, "the lab needs root") {
            return None;
        }
        let folder = std::env::var_os("PODSWITCH_LAB").map(PathBuf::from);
        let folder = folder.or_else(|| Some(target()?.join("lab")));
        let parts = folder.map(|folder| Self { folder })?;
        let missing: Vec<_> = needed.iter().filter(|p| !parts.folder.join(p).exists()).collect();
        if !missing.is_empty() {
            let text =
                format!("{missing:?} are not in {}: run tests/lab/setup", parts.folder.display());
            // An error if the environment says that they were installed.
            assert!(std::env::var_os("PODSWITCH_REQUIRE_LAB").is_none_or(|v| v != "1"), "{text}");
            privilege::skip(test, &text);
            return None;
        }
        Some(parts)
    }
}

/// Cargo's target folder: the path of a test is `target/PROFILE/deps/TEST`.
fn target() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.ancestors().nth(3)?.to_owned())
}

/// The programs that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of Kubernetes.
    Kubernetes,
    /// The nodes' container runtimes alone.
    Runtime,
}

/// The variable of `up.sh` for IPv6 beside IPv4.
pub const TWO_FAMILIES: (&str, &str) = ("FAMILIES", "2");

/// A running cluster. It is stopped when this is dropped.
pub struct Lab {
    parts: Parts,
    /// Prefix of the names of its namespaces.
    name: String,
    /// The first three bytes of addresses between nodes.
    underlay: [u8; 3],
    run: PathBuf,
    pub nodes: usize,
    mode: Mode,
    /// Nodes, pods and Services have IPv6 addresses, too.
    has_ipv6: bool,
}

impl Lab {
    /// Starts it, without a pod network. `images` are archives for all nodes.
    pub fn up(parts: &Parts, mode: Mode, nodes: usize, images: &[PathBuf]) -> Result<Self> {
        Self::up_with(parts, mode, nodes, images, &[])
    }

    /// With more variables for `up.sh`.
    pub fn up_with(
        parts: &Parts,
        mode: Mode,
        nodes: usize,
        images: &[PathBuf],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let id = std::process::id();
        let lab = Self {
            parts: parts.clone(),
            name: format!("pslab{id}"),
            underlay: [172, 28, (id % 250) as u8 + 1],
            run: parts.folder.join(format!("run-{id}")),
            nodes,
            mode,
            has_ipv6: variables.contains(&TWO_FAMILIES),
        };
        let images: Vec<_> = images.iter().map(|path| path.to_string_lossy()).collect();
        let mut command = lab.script("up.sh");
        command.env("CNI", "none").env("IMAGES", images.join(" ")).envs(variables.iter().copied());
        command.env("MODE", if mode == Mode::Runtime { "cri" } else { "kube" });
        let output = command.output().map_err(|error| error.to_string())?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        match output.status.success() {
            true => Ok(lab),
            false => Err(format!("up.sh: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts").to_owned() + "/" + name);
        let [a, b, c] = self.underlay;
        command.env("PREFIX", self.parts.folder.join("prefix")).env("RUN", &self.run);
        command.env("LAB", &self.name).env("UNDERLAY", format!("{a}.{b}.{c}"));
        command.env("NODES", self.nodes.to_string());
        command
    }

    /// Runs a line of bash with the scripts' functions: `kc` (kubectl), `nodex N`, `kill9 NAME`,
    /// `restart NAME`.
    pub fn bash(&self, line: &str) -> Result<String> {
        let mut command = self.script("lib.sh");
        let lib = command.get_args().next().expect("a script").to_owned();
        let mut inner = Command::new("bash");
        inner.envs(command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))));
        inner.arg("-c").arg(format!(". '{}'\n{line}", lib.to_string_lossy()));
        command = inner;
        text(command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?)
    }

    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        self.bash(&format!("kc {arguments}"))
    }

    /// Creates or changes objects.
    pub fn apply(&self, yaml: &str) -> Result {
        let path = self.run.join("apply.yaml");
        // The separator is needed because kubectl takes a file that begins with a brace for JSON.
        fs::write(&path, format!("---\n{yaml}")).map_err(|error| error.to_string())?;
        self.kubectl(&format!("apply --validate=false -f '{}'", path.display())).map(drop)
    }

    /// Deletes objects and waits until they no longer exist.
    pub fn delete(&self, yaml: &str) -> Result {
        let path = self.run.join("delete.yaml");
        fs::write(&path, yaml).map_err(|error| error.to_string())?;
        let line = format!("delete --ignore-not-found --timeout=90s -f '{}'", path.display());
        self.kubectl(&line).map(drop)
    }

    /// Returns an object or a list of objects.
    pub fn get(&self, what: &str) -> Result<Value> {
        let text = self.kubectl(&format!("get {what} -o json"))?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// Runs a command in the namespaces of node N.
    pub fn on_node(&self, node: usize, line: &str) -> Result<String> {
        self.bash(&format!("nodex {node} {line}"))
    }

    /// A file that `tests/lab/setup` installed.
    pub fn part(&self, path: &str) -> PathBuf {
        self.parts.folder.join(path)
    }

    /// State and logs of the lab.
    pub fn run_folder(&self) -> &Path {
        &self.run
    }

    /// The network namespace of the API server.
    pub fn control_plane(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-cp", self.name))
    }

    /// The state folder of node N.
    pub fn node_folder(&self, node: usize) -> PathBuf {
        self.run.join(format!("n{node}"))
    }

    pub fn node_address(&self, node: usize) -> IpAddr {
        let [a, b, c] = self.underlay;
        Ipv4Addr::new(a, b, c, 10 + node as u8).into()
    }

    /// Its addresses of all families.
    pub fn node_addresses(&self, node: usize) -> Vec<IpAddr> {
        let ipv6 = format!("fd28:0:0:1::1{node}").parse().ok().filter(|_| self.has_ipv6);
        [self.node_address(node)].into_iter().chain(ipv6).collect()
    }

    /// The number of address families.
    pub fn families(&self) -> usize {
        1 + usize::from(self.has_ipv6)
    }

    pub fn api_server(&self) -> String {
        let [a, b, c] = self.underlay;
        format!("https://{a}.{b}.{c}.1:6443")
    }

    /// A machine on the nodes' network that is not a node.
    pub fn outside(&self) -> Result<Client> {
        Client::new("outside", &self.control_plane())
    }

    pub fn node(&self, node: usize) -> Result<Client> {
        let name = format!("n{node}");
        Client::new(&name, &Path::new("/run/netns").join(format!("{}-{name}", self.name)))
    }

    /// The pod with this address on node N, by its namespace.
    pub fn pod(&self, node: usize, address: IpAddr) -> Result<Client> {
        let folder = self.root_of(node)?.join("run/netns");
        let entries = fs::read_dir(&folder).map_err(|error| error.to_string())?;
        for entry in entries.flatten() {
            let Ok(client) = Client::new(address.to_string(), &entry.path()) else { continue };
            let found = podswitch_linux::Netlink::open(client.namespace())
                .and_then(|mut netlink| netlink.addresses())
                .is_ok_and(|all| all.iter().any(|a| a.address.address() == address));
            if found {
                return Ok(client);
            }
        }
        Err(format!("no namespace of node n{node} has {address}"))
    }

    /// Network namespaces of the pods on node N.
    pub fn pod_namespaces(&self, node: usize) -> Result<usize> {
        let folder = self.root_of(node)?.join("run/netns");
        Ok(fs::read_dir(folder).map_err(|error| error.to_string())?.count())
    }

    /// A path on node N as this process sees it.
    pub fn root_of(&self, node: usize) -> Result<PathBuf> {
        let pid = fs::read_to_string(self.node_folder(node).join("pid1"));
        Ok(Path::new("/proc").join(pid.map_err(|error| error.to_string())?.trim()).join("root"))
    }

    /// Starts the switch of node N as a process on that node.
    pub fn start_agent(&self, node: usize, more: &[&str]) -> Result<Agent> {
        let agent = self.start_agent_unready(node, more)?;
        agent.wait_until_ready(Duration::from_secs(30))?;
        Ok(agent)
    }

    /// Does not wait until it is ready.
    pub fn start_agent_unready(&self, node: usize, more: &[&str]) -> Result<Agent> {
        let pid = fs::read_to_string(self.node_folder(node).join("pid1"));
        let pid = pid.map_err(|error| error.to_string())?.trim().to_owned();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let log = self.node_folder(node).join(format!("agent-{number}.log"));
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "-u", "-i", "-n", "-p", "-C", "--"]);
        command.arg(self.parts.folder.join("bin/vswitch"));
        command.args(["run", &format!("--node=n{node}"), "--run-dir=/run/podswitch"]);
        command.args(["--cni-bin-dir=/run/lab-cni/bin", "--cni-conf-dir=/run/lab-cni/net.d"]);
        if self.mode == Mode::Kubernetes {
            let kubeconfig = self.run.join("agent.kubeconfig");
            command.args(["--kubernetes", "--kubeconfig"]).arg(kubeconfig);
            command.arg("--service-cidr=10.96.0.0/16");
            if self.has_ipv6 {
                command.arg("--service-cidr=fd00:96::/112");
            }
        }
        command.args(more).stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().map_err(|error| error.to_string())?;
        Ok(Agent { child, log })
    }

    /// The credentials of agents that run as processes.
    pub fn give_credentials(&self) -> Result {
        let admin = fs::read_to_string(self.run.join("admin.kubeconfig"));
        let admin = admin.map_err(|error| error.to_string())?;
        fs::write(self.run.join("agent.kubeconfig"), admin).map_err(|error| error.to_string())
    }

    /// Checks that all nodes are Ready.
    pub fn nodes_ready(&self) -> Result {
        eventually(Duration::from_secs(60), || {
            for node in self.get("nodes")?["items"].as_array().into_iter().flatten() {
                let conditions =
                    node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let ready = conditions.iter().find(|c| c["type"] == "Ready");
                if ready.is_none_or(|c| c["status"] != "True") {
                    return Err(format!("{}: {ready:?}", node["metadata"]["name"]));
                }
            }
            Ok(())
        })
    }

    /// The running pods that a label selects: name, first address, number of the node.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<(String, IpAddr, usize)>> {
        let pods = self.pods_with_addresses(namespace, selector)?;
        Ok(pods.into_iter().map(|(name, addresses, node)| (name, addresses[0], node)).collect())
    }

    /// The same with the addresses of all families, at least one.
    pub fn pods_with_addresses(
        &self,
        namespace: &str,
        selector: &str,
    ) -> Result<Vec<(String, Vec<IpAddr>, usize)>> {
        let list = self.get(&format!("pods -n {namespace} -l {selector}"))?;
        let pod = |pod: &Value| {
            let is_running = pod["status"]["phase"] == "Running"
                && pod["metadata"]["deletionTimestamp"].is_null();
            let addresses = pod["status"]["podIPs"].as_array().filter(|_| is_running)?;
            let addresses = addresses.iter().filter_map(|it| it["ip"].as_str()?.parse().ok());
            let addresses: Vec<IpAddr> = addresses.collect();
            let node = pod["spec"]["nodeName"].as_str()?.trim_start_matches('n').parse().ok()?;
            let name = pod["metadata"]["name"].as_str()?.to_owned();
            (!addresses.is_empty()).then_some((name, addresses, node))
        };
        Ok(list["items"].as_array().into_iter().flatten().filter_map(pod).collect())
    }

    /// The first address of a Service.
    pub fn service(&self, namespace: &str, name: &str, port: u16) -> Result<SocketAddr> {
        Ok(self.service_addresses(namespace, name, port)?[0])
    }

    /// The addresses of a Service, at least one.
    pub fn service_addresses(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>> {
        let service = self.get(&format!("service -n {namespace} {name}"))?;
        let all = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        let all: Vec<SocketAddr> = all
            .iter()
            .filter_map(|address| Some(SocketAddr::new(address.as_str()?.parse().ok()?, port)))
            .collect();
        if all.is_empty() { Err(format!("no address: {service}")) } else { Ok(all) }
    }
}

/// What is printed of a cluster when a test fails. A full disk looks like a fault of the network: kubelet evicts the pods.
const STATE: &str = r#"
df -h "$R" | tail -1; free -m | grep Mem; uptime
kc --request-timeout=10s get nodes -o jsonpath='{range .items[*]}{.metadata.name}{range .status.conditions[*]}{" "}{.type}={.status}{end}{"\n"}{end}'
kc --request-timeout=10s get pods -A -o wide
kc --request-timeout=10s get events -A --field-selector type=Warning --sort-by=.lastTimestamp | tail -20
"#;

impl Lab {
    fn print_state(&self) {
        if self.mode == Mode::Kubernetes {
            let state = self.bash(&format!("({STATE}) 2>&1 || true"));
            println!("{}", state.unwrap_or_else(|error| error));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let keep = std::env::var_os("LAB_KEEP").is_some();
        if std::thread::panicking() {
            self.print_state();
        }
        let mut command = self.script("down.sh");
        if keep {
            println!("state and logs: {}", self.run.display());
            command.env("KEEP", "1");
        } else if std::thread::panicking() {
            println!("LAB_KEEP=1 in the environment keeps state and logs");
        }
        // The next run shows if anything was left.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A switch that runs as a process on a node.
pub struct Agent {
    child: Child,
    pub log: PathBuf,
}

impl Agent {
    pub fn wait_until_ready(&self, timeout: Duration) -> Result {
        eventually(timeout, || {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            match text.lines().any(|line| line.starts_with("ready ")) {
                true => Ok(()),
                false => Err(format!("no ready line: {}", text.lines().last().unwrap_or_default())),
            }
        })
    }

    /// Its process id, as this process sees it.
    pub fn pid(&self) -> Result<String> {
        // nsenter waits for the program, which is its child.
        let parent = self.child.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.map_err(|error| error.to_string())?;
        let pid = children.split_whitespace().next().ok_or("it has ended already")?;
        Ok(pid.to_owned())
    }

    /// Ends it with a signal (`KILL`, `TERM`) and waits for its end.
    pub fn end(mut self, signal: &str) -> Result {
        let pid = self.pid()?;
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        sent.map_err(|error| error.to_string())?;
        self.child.wait().map(drop).map_err(|error| error.to_string())
    }
}

fn text(output: Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(out),
        false => Err(format!("{out}{}", String::from_utf8_lossy(&output.stderr)).trim().to_owned()),
    }
}
