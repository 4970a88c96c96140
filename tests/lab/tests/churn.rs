//! Pods that come and go at a constant rate: Pod objects in a real API server, real network namespaces, the real plugin
//! called as a container runtime calls it. The kubelet is left out, because one cannot replace 20 pods a second.
//!
//! `LAB_CHURN_PODS=1000` is the full size: 1,000 pods, and 3,600 replacements in 180 s. The default is 50 pods.
#![expect(clippy::disallowed_methods, reason = "waits for real processes by the real clock")]
#![expect(clippy::disallowed_types, reason = "threads of a test share a queue")]

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use podswitch_lab::{Agent, ApiProxy, Checks, Lab, Mode, Parts, Result, eventually};
use podswitch_linux::NetNs;
use podswitch_testkit::test_name;
use serde_json::{Value, json};

/// Replacements a second.
const RATE: u32 = 20;
/// Replacements for each pod of the population: 180 s at full size.
const ROUNDS_PERCENT: usize = 360;
/// Pods that are replaced at the same time, as by kubelets' parallel workers.
const WORKERS: usize = 8;
const SOON: Duration = Duration::from_secs(60);
const PODS: &str = "/api/v1/namespaces/default/pods";
const PORT: u16 = 8080;

/// A running pod: its server is a listening socket in its namespace.
struct Pod {
    name: String,
    address: IpAddr,
    /// No other pod may connect to it.
    is_closed: bool,
    namespace: NetNs,
    listener: TcpListener,
}

struct Churn {
    lab: Lab,
    api: ApiProxy,
    agent: Agent,
    next: AtomicUsize,
}

/// What the agent's process and its node have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    pods: usize,
    leases: usize,
    interfaces: usize,
    namespaces: usize,
    descriptors: usize,
    threads: usize,
    /// Files in the run directory other than leases.
    files: usize,
    /// Resident memory, KiB.
    memory: usize,
}

impl Usage {
    /// Checks that nothing was added, apart from memory.
    fn is_as(&self, before: &Self) -> Result {
        // Connections to the API server, and the threads that wait for them, come and go.
        let few = self.descriptors <= before.descriptors + 8 && self.threads <= before.threads + 2;
        let (descriptors, threads, memory) = (self.descriptors, self.threads, self.memory);
        match few && *self == (Self { descriptors, threads, memory, ..*before }) {
            true => Ok(()),
            false => Err(format!("{before:?} became {self:?}")),
        }
    }
}

impl Churn {
    /// Calls the plugin as a runtime does.
    fn cni(&self, verb: &str, name: &str) -> Result<Value> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "podswitch", "type": "podswitch-cni", "socket": "/run/podswitch/cni.sock",
        });
        let plugin = self.lab.part("bin/podswitch-cni");
        let mut command = self.lab.command_on_node(1, &plugin.to_string_lossy())?;
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", name).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", format!("/run/netns/{name}")).env("CNI_PATH", "/nonexistent");
        let pod = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};IgnoreUnknown=1");
        command.env("CNI_ARGS", pod).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut input = child.stdin.take().ok_or("no standard input")?;
        input.write_all(config.to_string().as_bytes()).map_err(|error| error.to_string())?;
        drop(input);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = succeeded(verb, &output)?;
        if text.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_str(&text).map_err(|e| e.to_string())
        }
    }

    fn netns(&self, verb: &str, name: &str) -> Result {
        let mut command = self.lab.command_on_node(1, "ip")?;
        run(command.args(["netns", verb, name])).map(drop)
    }

    /// What scheduler, kubelet and runtime do for a new pod.
    fn create(&self) -> Result<Pod> {
        let number = self.next.fetch_add(1, Relaxed);
        let (name, is_closed) = (format!("churn-{number}"), number % 2 == 1);
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "closed": is_closed.to_string() } },
            "spec": {
                "nodeName": "n1", "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0, "containers": [{ "name": "c", "image": "x" }],
            },
        });
        self.api.request("POST", PODS, &object.to_string())?;
        self.netns("add", &name)?;
        let added = self.cni("ADD", &name)?;
        let address = added["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address: IpAddr = address
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| format!("no address: {added}"))?;
        let status = json!({ "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        }});
        self.api.request("PATCH", &format!("{PODS}/{name}/status"), &status.to_string())?;
        let path = self.lab.root_of(1)?.join("run/netns").join(&name);
        let namespace = NetNs::open(path).map_err(|error| error.to_string())?;
        let listener = namespace.enter(|| TcpListener::bind(SocketAddr::new(address, PORT)));
        let listener =
            listener.map_err(|e| e.to_string())?.map_err(|error| format!("{name}: {error}"))?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        Ok(Pod { name, address, is_closed, namespace, listener })
    }

    fn delete(&self, pod: Pod) -> Result {
        let Pod { name, namespace, listener, .. } = pod;
        drop((namespace, listener));
        self.cni("DEL", &name)?;
        self.netns("del", &name)?;
        let options = r#"{"gracePeriodSeconds":0}"#;
        self.api.request("DELETE", &format!("{PODS}/{name}"), options).map(drop)
    }

    /// A connection to the pod's address arrives at this pod, unless its policy denies it.
    fn is_reached(&self, client: &Pod, pod: &Pod) -> Result {
        let address = SocketAddr::new(pod.address, PORT);
        let timeout =
            if pod.is_closed { Duration::from_millis(200) } else { Duration::from_secs(5) };
        let connected = client.namespace.enter(|| TcpStream::connect_timeout(&address, timeout));
        let connected = connected.map_err(|error| error.to_string())?;
        let what = format!("{} ({address}, closed: {})", pod.name, pod.is_closed);
        match (connected, pod.is_closed) {
            (Ok(_), true) => Err(format!("{what} is reached")),
            (Err(error), false) => Err(format!("{what} is not reached: {error}")),
            (Err(_), true) => Ok(()),
            (Ok(stream), false) => {
                let accepted = eventually(Duration::from_secs(2), || {
                    pod.listener
                        .accept()
                        .map_err(|error| format!("{what} accepts nothing: {error}"))
                });
                let here = stream.local_addr().map_err(|error| error.to_string())?;
                match accepted? {
                    (_, peer) if peer == here => Ok(()),
                    (_, peer) => Err(format!("{what} was reached by {peer}, not {here}")),
                }
            }
        }
    }

    /// Replaces the oldest pods at a constant rate; every new pod is tried at once.
    fn replace(&self, pods: &mut VecDeque<Pod>, client: &Pod, count: usize) -> Result<Duration> {
        let (start, due) = (Instant::now(), AtomicUsize::new(0));
        let queue = std::sync::Mutex::new(std::mem::take(pods));
        let worker = || -> Result {
            loop {
                let number = due.fetch_add(1, Relaxed);
                if number >= count {
                    return Ok(());
                }
                let at = start + Duration::from_secs(1) * number as u32 / RATE;
                thread::sleep(at.saturating_duration_since(Instant::now()));
                let old = queue.lock().map_err(|_| "a worker panicked")?.pop_front();
                self.delete(old.ok_or("no pods are left")?)?;
                let new = self.create()?;
                self.is_reached(client, &new)?;
                queue.lock().map_err(|_| "a worker panicked")?.push_back(new);
            }
        };
        let results: Vec<Result> = thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .map(|it| it.join().unwrap_or_else(|_| Err("it panicked".into())))
                .collect()
        });
        *pods = queue.into_inner().map_err(|_| "a worker panicked")?;
        results.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(start.elapsed())
    }

    fn usage(&self) -> Result<Usage> {
        let pid = self.agent.pid()?;
        let run = self.lab.root_of(1)?.join("run/podswitch");
        let (leases, all) = (files(&run.join("leases"))?, files(&run)?);
        let status =
            fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|text| text.split_whitespace().next()?.parse().ok())
                .ok_or_else(|| format!("no {name}"))
        };
        let metrics = self.lab.on_node(1, "curl -s http://127.0.0.1:9100/metrics")?;
        let pods = metrics.lines().find_map(|line| line.strip_prefix("podswitch_pods "));
        Ok(Usage {
            pods: pods.and_then(|text| text.parse().ok()).ok_or("no podswitch_pods")?,
            leases,
            interfaces: self.lab.on_node(1, "ls /sys/class/net")?.split_whitespace().count(),
            namespaces: self.lab.pod_namespaces(1)?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))
                .map_err(|e| e.to_string())?
                .count(),
            threads: field("Threads:")?,
            files: all,
            memory: field("VmRSS:")?,
        })
    }

    /// Waits until so many pods, and nothing else, are there.
    fn settles(&self, pods: usize) -> Result<Usage> {
        eventually(SOON, || {
            let usage = self.usage()?;
            match [usage.pods, usage.leases, usage.namespaces] == [pods; 3] {
                true => Ok(usage),
                false => Err(format!("{pods} pods: {usage:?}")),
            }
        })
    }
}

fn files(folder: &Path) -> Result<usize> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(entries.flatten().filter(|entry| entry.path().is_file()).count())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| error.to_string())?;
    succeeded(&format!("{command:?}"), &output)
}

fn succeeded(what: &str, output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{what}: {text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Only the API server, etcd and one node remain: the test does what the others do.
fn without_controllers(lab: &Lab) -> Result {
    // The node would end with its kubelet, which is therefore only stopped.
    lab.bash(
        "kill9 kcm; kill9 sched\n\
         p=$(sed -n 's/.*kubelet \\([0-9]*\\) (pids inside).*/\\1/p' \"$R/n1/node.log\")\n\
         [ -n \"$p\" ] && nodex 1 kill -STOP \"$p\"",
    )
    .map(drop)
}

#[test]
fn pods_come_and_go_at_a_constant_rate() {
    let Some(parts) = Parts::find(&test_name!()) else { return };
    let pods = std::env::var("LAB_CHURN_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(50);
    // The node's range must hold them and those that cool down.
    let variables = [("KCM_EXTRA", "--node-cidr-mask-size=20")];
    let lab = Lab::up_with(&parts, Mode::Kubernetes, 1, &[], &variables).expect("a node");
    lab.give_credentials().expect("credentials");
    let mut checks = Checks::default();
    let mut churn = None;
    checks.check("the agent starts", || {
        let agent = lab.start_agent(1, &[])?;
        lab.nodes_ready()?;
        // The default ServiceAccount is needed to create pods.
        eventually(SOON, || lab.get("serviceaccount default").map(drop))?;
        without_controllers(&lab)?;
        lab.apply(
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, \
             spec: {podSelector: {matchLabels: {closed: 'true'}}, policyTypes: [Ingress]}}",
        )?;
        let api = ApiProxy::start(&lab)?;
        churn = Some(Churn { lab, api, agent, next: AtomicUsize::new(0) });
        Ok(())
    });
    let Some(churn) = churn else { return checks.finish() };
    let (mut alive, mut client, mut before) = (VecDeque::new(), None, None);
    let is_full = checks.check("pods are created", || {
        before = Some(churn.settles(0)?);
        client = Some(churn.create()?);
        for _ in 0..pods {
            alive.push_back(churn.create()?);
        }
        Ok(())
    });
    let (Some(client), Some(before), true) = (client, before, is_full) else {
        return checks.finish();
    };
    checks.check("each address leads to its pod, by its policy", || {
        alive.iter().try_for_each(|pod| churn.is_reached(&client, pod))
    });
    let mut full = None;
    checks.check("pods are replaced", || {
        // The first round fills what the process keeps; later ones must not add to it.
        churn.replace(&mut alive, &client, pods)?;
        full = Some(churn.settles(pods + 1)?);
        let count = pods * ROUNDS_PERCENT / 100;
        let took = churn.replace(&mut alive, &client, count)?.as_secs_f64();
        println!("      {count} pods replaced in {took:.0} s: {:.1} a second", count as f64 / took);
        Ok(())
    });
    checks.check("each address leads to its present pod", || {
        alive.iter().try_for_each(|pod| churn.is_reached(&client, pod))
    });
    checks.check("nothing has grown", || {
        let (full, now) = (full.ok_or("there was no first round")?, churn.settles(pods + 1)?);
        println!("      before {full:?}\n      after  {now:?}");
        now.is_as(&full)?;
        // The allocator keeps some of what was freed.
        match now.memory <= full.memory + full.memory / 10 + 8 * 1024 {
            true => Ok(()),
            false => Err(format!("{} KiB became {} KiB", full.memory, now.memory)),
        }
    });
    checks.check("deleted pods leave nothing", || {
        for pod in alive.drain(..).chain([client]) {
            churn.delete(pod)?;
        }
        churn.settles(0)?.is_as(&before)
    });
    checks.finish();
}
