//! The CNI plugin with a real container runtime, without kubelet and API server: pods are known from manifests.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podswitch_lab::{Agent, Checks, Client, Lab, Mode, Parts, Result, eventually};

const NODES: usize = 2;

/// The nodes, and pods `pN-M` that may run on node N.
fn manifests(lab: &Lab, pods: usize) -> String {
    let mut text = "{apiVersion: v1, kind: Namespace, metadata: {name: default}}\n".to_owned();
    for node in 1..=lab.nodes {
        let address = lab.node_address(node);
        let _ = writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: n{node}}}, spec: {{podCIDRs: [10.244.{node}.0/24]}}, \
             status: {{addresses: [{{type: InternalIP, address: {address}}}]}}}}"
        );
        for pod in 0..pods {
            let name = format!("p{node}-{pod}");
            let _ = writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, uid: uid-{name}, \
                 labels: {{app: p}}}}, spec: {{nodeName: n{node}, containers: [{{name: c, image: x}}]}}}}"
            );
        }
    }
    text
}

struct Runtime {
    lab: Lab,
    agents: Vec<Option<Agent>>,
}

/// A running pod.
struct Pod {
    node: usize,
    sandbox: String,
    address: IpAddr,
}

impl Runtime {
    fn start_agent(&self, node: usize) -> Result<Agent> {
        let folder = self.lab.node_folder(node).join("manifests");
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let path = folder.join("state.yaml");
        fs::write(&path, manifests(&self.lab, 40)).map_err(|error| error.to_string())?;
        self.lab.start_agent(node, &["--manifests", &folder.to_string_lossy()])
    }

    fn cri(&self, node: usize, line: &str) -> Result<String> {
        let line = format!("\"$PREFIX/bin/cri\" /run/containerd/containerd.sock {line}");
        self.lab.on_node(node, &line).map(|said| said.trim().to_owned())
    }

    fn run_pod(&self, node: usize, number: usize) -> Result<Pod> {
        let sandbox = self.cri(node, &format!("runp p{node}-{number}"))?;
        let address = self.cri(node, &format!("ip {sandbox}"))?;
        let address = address.parse().map_err(|_| format!("no address: {address:?}"))?;
        Ok(Pod { node, sandbox, address })
    }

    /// A server that responds with its name.
    fn serve(&self, pod: &Pod, name: &str) -> Result {
        let command = format!("'echo {name} > /www/index.html; exec httpd -f -p 8080 -h /www'");
        self.cri(pod.node, &format!("run {} lab.local/box:1 /bin/sh -c {command}", pod.sandbox))
            .map(drop)
    }

    fn remove(&self, pod: &Pod) -> Result {
        self.cri(pod.node, &format!("stopp {}", pod.sandbox))?;
        self.cri(pod.node, &format!("rmp {}", pod.sandbox)).map(drop)
    }

    fn all_reach_all(&self, pods: &[Pod]) -> Result {
        let mut from: Vec<Client> = Vec::new();
        for pod in pods {
            from.push(self.lab.pod(pod.node, pod.address)?);
        }
        for node in 1..=self.lab.nodes {
            from.push(self.lab.node(node)?);
        }
        for client in &from {
            for pod in pods {
                let address = SocketAddr::new(pod.address, 8080);
                let said = eventually(Duration::from_secs(5), || client.get(address))?;
                if said != format!("p{}", pod.node) {
                    return Err(format!("{} reached {said}", client.name));
                }
            }
        }
        Ok(())
    }

    fn leases(&self, node: usize) -> Result<usize> {
        let folder = self.lab.root_of(node)?.join("run/podswitch/leases");
        let entries = fs::read_dir(folder).map_err(|error| error.to_string())?;
        Ok(entries.flatten().filter(|entry| entry.path().is_file()).count())
    }

    fn is_clean(&self, node: usize, pods: usize) -> Result {
        let (leases, namespaces) = (self.leases(node)?, self.lab.pod_namespaces(node)?);
        match leases == pods && namespaces == pods {
            true => Ok(()),
            false => {
                Err(format!("{leases} leases, {namespaces} namespaces, {pods} pods on n{node}"))
            }
        }
    }

    /// Pods are created and deleted while the agent is killed in between; no address is assigned twice at a time.
    fn churn(&mut self, rounds: usize) -> Result {
        for round in 0..rounds {
            let pods = (1..20).map(|number| self.run_pod(1, number)).collect::<Result<Vec<_>>>()?;
            let addresses: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.address).collect();
            if addresses.len() != pods.len() {
                return Err("an address was assigned twice".to_owned());
            }
            let agent = self.agents[0].take().ok_or("no agent")?;
            if round % 2 == 0 {
                agent.end("KILL")?;
                // DEL succeeds without an agent; the next agent completes it.
                for pod in &pods[..3] {
                    self.remove(pod)?;
                }
                self.agents[0] = Some(self.start_agent(1)?);
                pods[3..].iter().try_for_each(|pod| self.remove(pod))?;
            } else {
                self.agents[0] = Some(agent);
                pods.iter().try_for_each(|pod| self.remove(pod))?;
            }
        }
        eventually(Duration::from_secs(30), || self.is_clean(1, 1))
    }
}

#[test]
fn pods_under_a_container_runtime() {
    let Some(parts) = Parts::find("pods_under_a_container_runtime") else { return };
    let lab = Lab::up(&parts, Mode::Runtime, NODES, &[]).expect("nodes");
    let mut runtime = Runtime { lab, agents: Vec::new() };
    let mut checks = Checks::default();
    let is_up = checks.check("agents start, the runtime has a network", || {
        for node in 1..=NODES {
            let agent = runtime.start_agent(node)?;
            runtime.agents.push(Some(agent));
        }
        eventually(Duration::from_secs(20), || match runtime.cri(1, "version")? {
            said if said.contains("NetworkReady true") => Ok(()),
            said => Err(said),
        })
    });
    let mut pods = Vec::new();
    let has_pods = is_up
        && checks.check("a pod runs on each node", || {
            for node in 1..=NODES {
                let pod = runtime.run_pod(node, 0)?;
                runtime.serve(&pod, &format!("p{node}"))?;
                pods.push(pod);
            }
            Ok(())
        });
    if !has_pods {
        return checks.finish();
    }
    checks.check("pods and nodes reach pods", || runtime.all_reach_all(&pods));
    checks.check("pods are still reached after the agent was killed", || {
        runtime.agents[0].take().ok_or("no agent")?.end("KILL")?;
        runtime.agents[0] = Some(runtime.start_agent(1)?);
        runtime.all_reach_all(&pods)
    });
    checks.check("pods are still reached after the agent was stopped", || {
        runtime.agents[1].take().ok_or("no agent")?.end("TERM")?;
        runtime.agents[1] = Some(runtime.start_agent(2)?);
        runtime.all_reach_all(&pods)
    });
    checks.check("pods are created and deleted while the agent is killed", || runtime.churn(4));
    checks.check("a removed configuration is restored", || {
        let path = runtime.lab.node_folder(1).join("cni/net.d/10-podswitch.conflist");
        fs::remove_file(&path).map_err(|error| error.to_string())?;
        eventually(Duration::from_secs(20), || {
            if path.exists() { Ok(()) } else { Err("it was not restored".to_owned()) }
        })
    });
    checks.check("removed pods leave nothing", || {
        pods.iter().try_for_each(|pod| runtime.remove(pod))?;
        (1..=NODES)
            .try_for_each(|node| eventually(Duration::from_secs(10), || runtime.is_clean(node, 0)))
    });
    checks.finish();
}
