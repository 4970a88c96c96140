//! Two nodes with IPv4 and IPv6 under a real API server, scheduler, controllers, kubelet and container runtime.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use podswitch_lab::{
    Agent, Checks, Client, Lab, Load, Mode, Parts, Result, TWO_FAMILIES, eventually,
};
use podswitch_wire::cidr::Cidr;

const NODE_PORT: u16 = 30_080;
const SOON: Duration = Duration::from_secs(60);

/// Six servers that respond with their names; a client; a Service with a node port.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: 6
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 2}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: c
        image: lab.local/box:1
        imagePullPolicy: Never
        command: [/bin/sh, -c, 'hostname > /www/index.html; exec httpd -f -p 8080 -h /www']
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 2, failureThreshold: 3}
        # Clients that still choose it are served until they have learned that it goes.
        lifecycle: {preStop: {exec: {command: [/bin/sleep, "3"]}}}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: lab.local/box:1, imagePullPolicy: Never, command: [/bin/sleep, "1000000"]}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: client}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]
"#;

fn policy(from: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web, namespace: demo}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress], ingress: [{from}]}}}}"
    )
}

struct Cluster {
    lab: Lab,
    agents: Vec<Option<Agent>>,
}

impl Cluster {
    fn web(&self) -> Result<Vec<(String, IpAddr, usize)>> {
        self.lab.pods("demo", "app=web")
    }

    /// Waits until all pods of a Deployment are ready.
    fn rolled_out(&self, name: &str) -> Result {
        self.lab
            .kubectl(&format!("-n demo rollout status deployment {name} --timeout=120s"))
            .map(drop)
    }

    fn clients(&self) -> Result<Vec<Client>> {
        let pods = self.lab.pods("demo", "app=client")?;
        pods.iter().map(|(_, address, node)| self.lab.pod(*node, *address)).collect()
    }

    /// All addresses of the servers, with the servers' names.
    fn servers(&self) -> Result<Vec<(String, SocketAddr)>> {
        let pods = self.lab.pods_with_addresses("demo", "app=web")?;
        let each = pods.into_iter().flat_map(|(name, addresses, _)| {
            addresses.into_iter().map(move |it| (name.clone(), SocketAddr::new(it, 8080)))
        });
        Ok(each.collect())
    }

    fn node_port(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.lab.node_address(node), NODE_PORT)
    }

    /// All clients of the Service, with each address that they use.
    fn users(&self) -> Result<Vec<(Client, SocketAddr)>> {
        let service = self.lab.service_addresses("demo", "web", 80)?;
        if service.len() != self.lab.families() {
            return Err(format!("the Service has {service:?}"));
        }
        let mut inside = self.clients()?;
        let mut users = Vec::new();
        for node in 1..=self.lab.nodes {
            inside.push(self.lab.node(node)?);
            for address in self.lab.node_addresses(node) {
                users.push((self.lab.outside()?, SocketAddr::new(address, NODE_PORT)));
            }
        }
        for client in inside {
            users.extend(service.iter().map(|address| (client.clone(), *address)));
        }
        Ok(users)
    }

    fn pods_are_of_their_nodes(&self) -> Result {
        let web = self.lab.pods_with_addresses("demo", "app=web")?;
        let addresses: BTreeSet<IpAddr> = web.iter().flat_map(|(_, all, _)| all.clone()).collect();
        if web.len() != 6 || addresses.len() != 6 * self.lab.families() {
            return Err(format!("{web:?}"));
        }
        let nodes: BTreeSet<usize> = web.iter().map(|(.., node)| *node).collect();
        if nodes.len() != 2 {
            return Err(format!("all on one node: {web:?}"));
        }
        for (_, addresses, node) in &web {
            let ranges = self.lab.get(&format!("node n{node}"))?["spec"]["podCIDRs"].clone();
            let ranges = ranges.as_array().into_iter().flatten();
            let ranges: Vec<Cidr> = ranges.filter_map(|it| it.as_str()?.parse().ok()).collect();
            for address in addresses {
                if !ranges.iter().any(|range| range.contains(*address)) {
                    return Err(format!("{address} of n{node} is not in its {ranges:?}"));
                }
            }
        }
        Ok(())
    }

    /// From both nodes and both clients to every pod's own address.
    fn pods_are_reached(&self) -> Result {
        let mut from = self.clients()?;
        from.extend([self.lab.node(1)?, self.lab.node(2)?]);
        for (name, address) in self.servers()? {
            for client in &from {
                let body = client.get(address)?;
                if body != name {
                    return Err(format!("{} reached {body}, not {name}", client.name));
                }
            }
        }
        Ok(())
    }

    fn service_is_reached(&self) -> Result {
        let names: BTreeSet<String> = self.web()?.into_iter().map(|(name, ..)| name).collect();
        for (client, address) in self.users()? {
            let mut seen = BTreeSet::new();
            for _ in 0..60 {
                seen.insert(client.get(address)?);
            }
            if seen != names {
                return Err(format!("{} at {address} saw {seen:?}", client.name));
            }
        }
        Ok(())
    }

    /// The switch applies the change at once, but the API server and its watch need some time.
    fn policy_closes(&self, from: &str, allowed: bool) -> Result {
        self.lab.apply(&policy(from))?;
        let (clients, servers) = (self.clients()?, self.servers()?);
        let pairs =
            clients.iter().flat_map(|client| servers.iter().map(move |(_, to)| (client, *to)));
        // All at once: a denied connection ends only by its timeout.
        thread::scope(|scope| {
            let check = |(client, address): (&Client, SocketAddr)| {
                eventually(Duration::from_secs(10), || match allowed {
                    true => client.get(address).map(drop),
                    false => client.is_closed(address),
                })
            };
            let checks: Vec<_> = pairs.map(|pair| scope.spawn(move || check(pair))).collect();
            let joined = checks
                .into_iter()
                .map(|it| it.join().unwrap_or_else(|_| Err("it panicked".into())));
            joined.collect()
        })
    }

    /// kubelet's probes continue: pods stay ready and are not restarted.
    fn probes_work(&self) -> Result {
        thread::sleep(Duration::from_secs(8));
        let pods = self.lab.get("pods -n demo -l app=web")?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let status = &pod["status"]["containerStatuses"][0];
            if status["ready"] != true || status["restartCount"] != 0 {
                return Err(format!("{}: {status}", pod["metadata"]["name"]));
            }
        }
        Ok(())
    }

    fn kubectl_reaches_pods(&self) -> Result {
        let web = self.web()?;
        for (name, ..) in &web {
            let said = self.lab.kubectl(&format!("-n demo exec {name} -- hostname"))?;
            if said.trim() != name {
                return Err(format!("exec in {name}: {said}"));
            }
            self.lab.kubectl(&format!("-n demo logs {name}"))?;
        }
        let (name, ..) = web.first().ok_or("no pods")?;
        let line = format!(
            "ip netns exec \"$CP\" \"$PREFIX/root/usr/bin/kubectl\" --kubeconfig \"$R/admin.kubeconfig\" -n demo \
             port-forward pod/{name} 18080:8080 >/dev/null 2>&1 & p=$!; \
             for i in $(seq 50); do cpx curl -s -m 2 http://127.0.0.1:18080/ && break; sleep 0.1; done; kill $p"
        );
        let said = self.lab.bash(&line)?;
        if said.trim() == name { Ok(()) } else { Err(format!("port-forward to {name}: {said:?}")) }
    }

    fn rolling_update_loses_nothing(&self) -> Result {
        let users = self.users()?;
        let loads: Vec<_> = users
            .iter()
            .map(|(client, address)| (client.name.clone(), Load::start(client, *address)))
            .collect();
        let before: BTreeSet<String> = self.web()?.into_iter().map(|(name, ..)| name).collect();
        self.lab.kubectl("-n demo set env deployment/web ROUND=2")?;
        let updated = self.rolled_out("web");
        thread::sleep(Duration::from_secs(5));
        let mut requests = 0;
        for (name, load) in loads {
            requests += load.stop_without_loss().map_err(|reason| format!("{name}: {reason}"))?.1;
        }
        updated?;
        println!("      {requests} requests");
        let after = self.web()?;
        match after.iter().any(|(name, ..)| before.contains(name)) {
            true => Err("not every pod was replaced".to_owned()),
            false => Ok(()),
        }
    }

    /// Traffic continues while there is no API server, and changes are followed again afterwards.
    fn api_server_is_stopped_and_restarted(&self) -> Result {
        let users = self.users()?;
        let loads: Vec<_> =
            users.iter().map(|(client, address)| Load::start(client, *address)).collect();
        self.lab.bash("kill9 apiserver")?;
        thread::sleep(Duration::from_secs(5));
        self.lab.bash("restart apiserver; for i in $(seq 300); do [ \"$(kc get --raw /readyz 2>/dev/null)\" = ok ] && break; sleep 0.1; done")?;
        thread::sleep(Duration::from_secs(2));
        for load in loads {
            load.stop_without_loss()?;
        }
        self.lab.kubectl("-n demo scale deployment web --replicas=7")?;
        self.rolled_out("web")?;
        self.policy_closes("", false)?;
        self.lab.kubectl("-n demo delete networkpolicy web")?;
        self.lab.kubectl("-n demo scale deployment web --replicas=6")?;
        self.rolled_out("web")
    }

    /// The next agent restores the pods, and attaches new ones.
    fn agent_is_killed_and_restarted(&mut self) -> Result {
        let client = self.lab.outside()?;
        let load = Load::start(&client, self.node_port(2));
        self.agents[0].take().ok_or("no agent")?.end("KILL")?;
        thread::sleep(Duration::from_millis(500));
        self.agents[0] = Some(self.lab.start_agent(1, &[])?);
        thread::sleep(Duration::from_secs(1));
        let outage = load.stop_with_outage(Duration::from_secs(15))?;
        println!("      no response for {outage:?}");
        self.pods_are_reached()?;
        self.service_is_reached()?;
        self.lab.kubectl("-n demo scale deployment web --replicas=8")?;
        self.rolled_out("web")?;
        self.lab.kubectl("-n demo scale deployment web --replicas=6")?;
        self.rolled_out("web")?;
        eventually(SOON, || self.pod_count(6))?;
        self.pods_are_reached()
    }

    /// As in an upgrade: the new switch waits beside the old one.
    fn successor_waits_and_takes_over(&mut self) -> Result {
        let client = self.lab.outside()?;
        let load = Load::start(&client, self.node_port(1));
        let old = self.agents[0].take().ok_or("no agent")?;
        let new = self.lab.start_agent_unready(1, &["--wait"])?;
        thread::sleep(Duration::from_secs(2));
        if new.wait_until_ready(Duration::from_millis(100)).is_ok() {
            return Err("it did not wait".to_owned());
        }
        old.end("TERM")?;
        new.wait_until_ready(Duration::from_secs(30))?;
        self.agents[0] = Some(new);
        thread::sleep(Duration::from_secs(1));
        let outage = load.stop_with_outage(Duration::from_secs(15))?;
        println!("      no response for {outage:?}");
        self.pods_are_reached()?;
        self.service_is_reached()
    }

    fn pod_count(&self, wanted: usize) -> Result {
        let list = self.lab.get("pods -n demo -l app=web")?;
        let count = list["items"].as_array().map_or(0, Vec::len);
        if count == wanted { Ok(()) } else { Err(format!("{count} pods, not {wanted}")) }
    }

    fn node_is_drained(&self) -> Result {
        self.lab.kubectl("drain n2 --ignore-daemonsets --force --timeout=120s")?;
        eventually(SOON, || self.rolled_out("web"))?;
        let web = self.web()?;
        if web.len() != 6 || web.iter().any(|(.., node)| *node != 1) {
            return Err(format!("{web:?}"));
        }
        eventually(SOON, || match self.leases(2)? {
            0 => Ok(()),
            left => Err(format!("n2 has {left} leases")),
        })?;
        let client = self.lab.outside()?;
        for _ in 0..20 {
            client.get(self.node_port(2))?;
        }
        self.lab.kubectl("uncordon n2").map(drop)
    }

    /// Addresses that node N has assigned to pods.
    fn leases(&self, node: usize) -> Result<usize> {
        let folder = self.lab.root_of(node)?.join("run/podswitch/leases");
        let entries =
            std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        // Released addresses are in a subfolder.
        Ok(entries.flatten().filter(|entry| entry.path().is_file()).count())
    }

    /// Pods are created and deleted; nothing of them remains.
    fn churn_leaves_nothing(&self, rounds: usize) -> Result {
        let before: Vec<usize> =
            (1..=2).map(|node| self.interfaces(node)).collect::<Result<_>>()?;
        for _ in 0..rounds {
            for replicas in [24, 6] {
                self.lab.kubectl(&format!("-n demo scale deployment web --replicas={replicas}"))?;
                self.rolled_out("web")?;
            }
        }
        eventually(Duration::from_secs(90), || self.pod_count(6))?;
        eventually(SOON, || {
            let pods = self.lab.get("pods -n demo")?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            for node in 1..=2 {
                let name = format!("n{node}");
                let here =
                    pods.iter().filter(|pod| pod["spec"]["nodeName"] == name.as_str()).count();
                let (leases, namespaces) = (self.leases(node)?, self.lab.pod_namespaces(node)?);
                if leases != here || namespaces != here {
                    return Err(format!(
                        "{name}: {here} pods, {leases} leases, {namespaces} namespaces"
                    ));
                }
                let attached = self.metric(node, "podswitch_pods")?;
                if attached != here as f64 {
                    return Err(format!("{name}: {here} pods, {attached} attached"));
                }
                if self.interfaces(node)? != before[node - 1] {
                    return Err(format!("{name}: interfaces are left"));
                }
            }
            Ok(())
        })?;
        self.pods_are_reached()
    }

    fn interfaces(&self, node: usize) -> Result<usize> {
        Ok(self.lab.on_node(node, "ls /sys/class/net")?.split_whitespace().count())
    }

    fn metric(&self, node: usize, name: &str) -> Result<f64> {
        let text = self.lab.on_node(node, "curl -s http://127.0.0.1:9100/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("no {name} in {text:?}"))
    }

    fn deleted_pods_free_their_addresses(&self) -> Result {
        self.lab.kubectl("delete namespace demo --timeout=120s")?;
        eventually(SOON, || {
            let left = [self.leases(1)?, self.leases(2)?];
            if left == [0, 0] { Ok(()) } else { Err(format!("{left:?} leases are left")) }
        })
    }
}

#[test]
fn a_cluster_of_two_nodes() {
    let Some(parts) = Parts::find("a_cluster_of_two_nodes") else { return };
    let lab = Lab::up_with(&parts, Mode::Kubernetes, 2, &[], &[TWO_FAMILIES]).expect("a cluster");
    lab.give_credentials().expect("credentials");
    let mut checks = Checks::default();
    let mut agents = Vec::new();
    checks.check("agents start", || {
        for node in 1..=2 {
            agents.push(Some(lab.start_agent(node, &[])?));
        }
        Ok(())
    });
    let mut cluster = Cluster { lab, agents };
    let is_up = checks.check("nodes become ready", || cluster.lab.nodes_ready())
        && checks.check("six pods run", || {
            cluster.lab.apply(OBJECTS)?;
            cluster.rolled_out("web")?;
            cluster.rolled_out("client")
        });
    if !is_up {
        return checks.finish();
    }
    checks.check("addresses are in the nodes' podCIDRs", || cluster.pods_are_of_their_nodes());
    checks.check("pods are reached from pods and nodes", || cluster.pods_are_reached());
    checks.check("the Service is reached from pods, nodes and outside", || {
        cluster.service_is_reached()
    });
    checks.check("kubectl exec, logs and port-forward", || cluster.kubectl_reaches_pods());
    checks.check("a policy closes", || cluster.policy_closes("", false));
    checks.check("kubelet's probes pass in spite of the policy", || cluster.probes_work());
    let client = "{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}";
    checks.check("a policy opens", || cluster.policy_closes(client, true));
    let other = "{from: [{podSelector: {matchLabels: {app: other}}}]}";
    checks.check("a policy that allows only others denies access", || {
        cluster.policy_closes(other, false)
    });
    checks.check("without a policy everything is allowed", || {
        cluster.lab.kubectl("-n demo delete networkpolicy web")?;
        eventually(Duration::from_secs(10), || cluster.pods_are_reached())
    });
    checks.check("a rolling update loses no request", || cluster.rolling_update_loses_nothing());
    checks.check("the API server is stopped and restarted", || {
        cluster.api_server_is_stopped_and_restarted()
    });
    checks.check("the agent is killed and restarted", || cluster.agent_is_killed_and_restarted());
    checks.check("a successor waits and takes over", || cluster.successor_waits_and_takes_over());
    checks.check("a node is drained", || cluster.node_is_drained());
    let rounds = std::env::var("LAB_CHURN_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    checks.check("churn leaves nothing", || cluster.churn_leaves_nothing(rounds));
    checks
        .check("deleted pods free their addresses", || cluster.deleted_pods_free_their_addresses());
    checks.finish();
}
