//! A node with two pods and a Service, and its switch as a process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use podswitch_linux::NetNs;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Outcome, SWITCH};

/// Timeout for any event.
const TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const CLIENT: &str = "10.1.0.2";
const SERVER: &str = "10.1.0.3";
/// Two Services, since a client address has fewer than 65,536 ports for one destination. Their
/// servers' ports are 8080 and 8081.
pub(crate) const SERVICES: [&str; 2] = ["10.96.0.10", "10.96.0.11"];

/// How a switch ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGTERM, with `--keep`.
    Stop,
    /// SIGKILL, with a holder that keeps the devices.
    Kill,
    /// SIGKILL, without a holder.
    KillAlone,
    /// SIGKILL several times, half a second after each start, with a holder.
    KillOften,
    /// Another one takes the node over.
    HandOver,
    /// The same, with many idle connections besides.
    FullHandOver,
}

impl End {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 6] = [
        Self::HandOver,
        Self::FullHandOver,
        Self::Stop,
        Self::Kill,
        Self::KillOften,
        Self::KillAlone,
    ];

    pub(crate) fn is_hand_over(self) -> bool {
        matches!(self, Self::HandOver | Self::FullHandOver)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "planned",
            Self::Kill => "kill -9",
            Self::KillAlone => "kill -9, no holder",
            Self::KillOften => "kill -9, 5 times",
            Self::HandOver => "hand-over",
            Self::FullHandOver => "hand-over, many connections",
        }
    }
}

/// See the module's description.
pub(crate) struct World {
    node: NetNs,
    pub(crate) client: NetNs,
    pub(crate) server: NetNs,
    folder: PathBuf,
    workers: u16,
    /// Whether a holder keeps the devices.
    pub(crate) is_held: bool,
    switch: Option<Switch>,
}

struct Switch {
    child: Child,
    events: Receiver<Value>,
}

impl Switch {
    /// Waits for an event that matches.
    fn event(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Outcome<Value> {
        let clock = Clock::start();
        loop {
            let left = TIMEOUT.saturating_sub(clock.now().since(Instant::ZERO));
            let value = self.events.recv_timeout(left).map_err(|e| format!("{event}: {e}"))?;
            if value["event"] == event && wanted(&value) {
                return Ok(value);
            }
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    pub(crate) fn new(workers: u16) -> Outcome<Self> {
        let folder = PathBuf::from(format!("/dev/shm/podswitch-restart-{}", std::process::id()));
        fs::create_dir_all(folder.join("manifests"))?;
        let (node, client, server) =
            (NetNs::anonymous()?, NetNs::anonymous()?, NetNs::anonymous()?);
        let world = Self { node, client, server, folder, workers, is_held: true, switch: None };
        fs::write(world.folder.join("manifests/state.yaml"), world.manifests())?;
        Ok(world)
    }

    fn manifests(&self) -> String {
        let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
                        apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n\
                        spec: {podCIDRs: [10.1.0.0/24]}\nstatus: {addresses: [\
                        {type: InternalIP, address: 192.0.2.1}]}\n"
            .to_owned();
        for (name, ns, address) in [("x", &self.client, CLIENT), ("y", &self.server, SERVER)] {
            text += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, \
                 annotations: {{podswitch.io/netns: {}}}}}\nspec: {{nodeName: n1}}\n\
                 status: {{phase: Running, podIPs: [{{ip: {address}}}]}}\n",
                ns.path().display()
            );
        }
        for (n, address) in SERVICES.into_iter().enumerate() {
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: a}}\n\
                 spec: {{clusterIP: {address}, clusterIPs: [{address}], ports: [\
                 {{name: t, port: 80, targetPort: 808{n}}}, \
                 {{name: u, port: 80, targetPort: 808{n}, protocol: UDP}}]}}\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: s{n}, namespace: a, labels: \
                 {{kubernetes.io/service-name: s{n}}}}}\naddressType: IPv4\nports: [\
                 {{name: t, port: 808{n}, protocol: TCP}}, {{name: u, port: 808{n}, protocol: UDP}}]\n\
                 endpoints: [{{addresses: [{SERVER}], nodeName: n1}}]\n"
            );
        }
        text
    }

    /// Starts the switch, and waits until it is ready.
    pub(crate) fn start(&mut self) -> Outcome<()> {
        self.start_with(&["--keep"])
    }

    fn start_with(&mut self, more: &[&str]) -> Outcome<()> {
        let mut command = Command::new("/proc/self/exe");
        command.env(SWITCH, "1").args(["run", "--json", "--node", "n1", "--stats", "0.2"]);
        command.arg("--manifests").arg(self.folder.join("manifests"));
        command.arg("--run-dir").arg(self.folder.join("run"));
        command.arg("--node-netns").arg(self.node.path());
        command.args(["--service-cidr", "10.96.0.0/16", "--masquerade", "off"]);
        command.args(["--metrics-address", "off", "--log-level", "warn"]);
        command.args(["--hold", if self.is_held { "start" } else { "off" }]);
        command.arg("--workers").arg(self.workers.to_string()).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::Null);
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let switch = Switch { child, events };
        switch.event("ready", |_| true)?;
        self.switch = Some(switch);
        Ok(())
    }

    /// Starts another switch, which takes the node over.
    pub(crate) fn hand_over(&mut self) -> Outcome<()> {
        let before = self.switch.take();
        self.start_with(&["--keep", "--take-over"])?;
        let status = before.map(|mut switch| switch.child.wait()).transpose()?;
        match status {
            Some(status) if !status.success() => {
                Err(format!("the switch ended with {status}").into())
            }
            _ => Ok(()),
        }
    }

    /// Ends the switch, if there is one.
    pub(crate) fn end(&mut self, end: End) -> Outcome<()> {
        let Some(mut switch) = self.switch.take() else { return Ok(()) };
        let signal = match end {
            End::Stop => Signal::TERM,
            End::Kill | End::KillAlone | End::KillOften => Signal::KILL,
            End::HandOver | End::FullHandOver => {
                return Err("it is handed over by another start".into());
            }
        };
        kill_process(Pid::from_child(&switch.child), signal)?;
        let status = switch.child.wait()?;
        if end == End::Stop && !status.success() {
            return Err(format!("the switch ended with {status}").into());
        }
        Ok(())
    }

    /// The number of connections, as soon as there are at least `least`.
    pub(crate) fn connections(&self, least: u64) -> Outcome<u64> {
        let switch = self.switch.as_ref().ok_or("no switch runs")?;
        let count = |stats: &Value| stats["connections"].as_u64();
        let stats = switch.event("stats", |stats| count(stats) >= Some(least))?;
        count(&stats).ok_or_else(|| "no count".into())
    }

    /// What the switch itself has dropped, by reason.
    pub(crate) fn drops(&self) -> Outcome<Value> {
        let switch = self.switch.as_ref().ok_or("no switch runs")?;
        while switch.events.try_recv().is_ok() {}
        Ok(switch.event("stats", |_| true)?["drops"].take())
    }

    /// Number of connections from now on.
    pub(crate) fn connections_now(&self) -> Outcome<u64> {
        let switch = self.switch.as_ref().ok_or("no switch runs")?;
        while switch.events.try_recv().is_ok() {}
        self.connections(0)
    }

    /// Ends the switch, and removes the memory in which its connections are kept.
    pub(crate) fn forget_connections(&mut self) -> Outcome<()> {
        self.end(End::Stop)?;
        fs::remove_dir_all(self.folder.join("run"))?;
        Ok(())
    }

    /// Ends the switch and removes everything.
    pub(crate) fn finish(mut self) -> Outcome<()> {
        self.end(End::Stop)?;
        self.start_with(&[])?;
        self.end(End::Stop)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.switch = None;
        podswitch_node::hold::end_holder(&self.folder.join("run"));
        let _ = fs::remove_dir_all(&self.folder);
    }
}
