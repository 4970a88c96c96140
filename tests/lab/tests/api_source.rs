//! The source of API objects against a real API server and etcd: the states that it publishes, and its behaviour when
//! the server is killed, loses its history, accepts only new tokens, or has an invalid object.
#![expect(clippy::disallowed_methods, reason = "waits for a real API server by the real clock")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use podswitch_core::control::{Change, ControlPlane, LeftOut, Options};
use podswitch_core::id::Epoch;
use podswitch_kubernetes_api::{ApiOptions, ApiSource};
use podswitch_lab::{Checks, Lab, Mode, Parts, Result};
use podswitch_linux::NetNs;
use podswitch_node::source::{Source, StateSink};
use podswitch_node::{NodeError, PodName, State, StateChanges};
use podswitch_testkit::test_name;

const SOON: Duration = Duration::from_secs(40);

/// The state that a node received.
struct Sink {
    control: ControlPlane,
    objects: BTreeSet<String>,
}

impl Sink {
    fn new(state: State) -> Result<Self> {
        let mut sink =
            Self { control: ControlPlane::new(Options::default()), objects: BTreeSet::new() };
        sink.apply_state(state).map_err(|error| error.to_string())?;
        Ok(sink)
    }
}

impl StateSink for Sink {
    fn apply_state(&mut self, state: State) -> std::result::Result<Epoch, NodeError> {
        let config = &state.config;
        let pods = config.endpoints.iter().map(|pod| pod.cookie.to_string());
        let policies = config.policies.iter().map(|policy| policy.cookie.to_string());
        self.objects = pods.chain(policies).collect();
        Ok(self.control.apply_lenient(config)?.epoch)
    }

    fn update_state(&mut self, changes: StateChanges) -> std::result::Result<Epoch, NodeError> {
        for change in &changes.objects {
            match change {
                Change::Pod(pod) => drop(self.objects.insert(pod.cookie.to_string())),
                Change::PodDeleted(pod) => drop(self.objects.remove(pod.as_str())),
                Change::Policy(policy) => drop(self.objects.insert(policy.cookie.to_string())),
                Change::PolicyDeleted(policy) => drop(self.objects.remove(&**policy)),
                _ => {}
            }
        }
        Ok(self.control.update_lenient(changes.objects)?.epoch)
    }

    fn left_out(&self) -> Vec<LeftOut> {
        self.control.left_out()
    }
}

struct Rig {
    lab: Lab,
    namespace: NetNs,
    /// State and logs of the lab.
    run: PathBuf,
    source: Option<ApiSource>,
    sink: Option<Sink>,
}

impl Rig {
    fn open(&self) -> Result<ApiSource> {
        let mut options = ApiOptions::new("n1");
        options.kubeconfig = Some(self.run.join("source.kubeconfig"));
        options.run_dir = Some(self.run.join("source"));
        let opened = self.namespace.enter(|| ApiSource::open(options));
        opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    fn start(&mut self) -> Result {
        let (mut source, began, mut why) = (self.open()?, Instant::now(), String::new());
        let state = source.first_state(&mut |text| {
            text.clone_into(&mut why);
            std::thread::sleep(Duration::from_millis(20));
            began.elapsed() < SOON
        });
        let state = state.map_err(|error| error.to_string())?.ok_or(why)?;
        self.sink = Some(Sink::new(state)?);
        self.source = Some(source);
        Ok(())
    }

    /// Follows until the node has these objects and no longer has the others.
    fn follow(&mut self, there: &[&str], gone: &[&str]) -> Result {
        let (Some(source), Some(sink)) = (&mut self.source, &mut self.sink) else {
            return Err("it was not started".to_owned());
        };
        let began = Instant::now();
        loop {
            source.follow(sink, false).map_err(|error| error.to_string())?;
            let missing: Vec<_> = there.iter().filter(|o| !sink.objects.contains(**o)).collect();
            let left: Vec<_> = gone.iter().filter(|o| sink.objects.contains(**o)).collect();
            if missing.is_empty() && left.is_empty() {
                return Ok(());
            }
            if began.elapsed() > SOON {
                return Err(format!("missing {missing:?}, not removed {left:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn source(&self) -> Result<&ApiSource> {
        self.source.as_ref().ok_or_else(|| "it was not started".to_owned())
    }

    fn is_stale(&self) -> Result<bool> {
        Ok(self.source()?.is_stale())
    }

    /// A pod with the status that kubelet would report.
    fn pod(&self, name: &str, node: &str, address: &str) -> Result {
        self.lab.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, \
             spec: {{nodeName: {node}, containers: [{{name: c, image: x, ports: [{{name: http, containerPort: 80}}]}}]}}}}"
        ))?;
        let status = format!(
            r#"{{"status":{{"phase":"Running","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]}}}}"#
        );
        self.patch_status(&format!("/api/v1/namespaces/default/pods/{name}/status"), &status)
    }

    fn node(&self, name: &str, number: u8) -> Result {
        let range = format!("10.244.{number}.0/24");
        self.lab.apply(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDR: {range}, podCIDRs: [{range}]}}}}"
        ))?;
        let status = format!(
            r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"192.0.2.{number}"}}],"conditions":[{{"type":"NetworkUnavailable","status":"True"}}]}}}}"#
        );
        self.patch_status(&format!("/api/v1/nodes/{name}/status"), &status)
    }

    /// This version of kubectl has no `--subresource`.
    fn patch_status(&self, path: &str, patch: &str) -> Result {
        let line = format!(
            "cpx curl -fsS --cacert \"$RUN/certs/ca.crt\" -H \"Authorization: Bearer $(grep ,admin, \"$RUN/certs/tokens.csv\" \
             | cut -d, -f1)\" -H 'Content-Type: application/merge-patch+json' -X PATCH {}{path} -d '{patch}'",
            self.lab.api_server()
        );
        self.lab.bash(&line).map(drop)
    }

    /// Kills the API server, runs `meanwhile`, starts it again and waits until it serves.
    fn restart_api_server(&self, meanwhile: &str) -> Result {
        self.lab.bash(&format!("kill9 apiserver; sleep 0.5; {meanwhile}\nrestart apiserver"))?;
        self.lab.bash("for i in $(seq 300); do [ \"$(kc get --raw /readyz 2>/dev/null)\" = ok ] && exit 0; sleep 0.1; done; exit 1").map(drop)
    }
}

#[test]
fn the_source_follows_a_real_api_server() {
    let Some(parts) = Parts::find_control_plane(&test_name!()) else { return };
    let lab = Lab::up(&parts, Mode::Kubernetes, 0, &[]).expect("the lab starts");
    let run = lab.run_folder().to_owned();
    let namespace = NetNs::open(lab.control_plane()).expect("the lab has it");
    let mut rig = Rig { lab, namespace, run, source: None, sink: None };
    let mut checks = Checks::default();

    checks.check("a token in a file", || {
        // The controller that deletes pods of nodes without kubelet is disabled. One user has two tokens; the first one
        // is revoked later.
        rig.restart_api_server(
            "kill9 kcm; kill9 sched\nprintf -- '--disable-admission-plugins=ServiceAccount ' >> \"$RUN/apiserver.cmd\"\n\
             printf 'first-token,agent,agent,system:masters\\nsecond-token,agent,agent,system:masters\\n' >> \"$RUN/certs/tokens.csv\"",
        )?;
        let token = rig.run.join("source.token");
        fs::write(&token, "first-token").map_err(|error| error.to_string())?;
        let kubeconfig = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: '{}', \
             certificate-authority: '{}'}}}}], users: [{{name: u, user: {{tokenFile: '{}'}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}",
            rig.lab.api_server(),
            rig.run.join("certs/ca.crt").display(),
            token.display()
        );
        fs::write(rig.run.join("source.kubeconfig"), kubeconfig).map_err(|error| error.to_string())
    });
    checks.check("a first state of all kinds", || {
        rig.node("n1", 1)?;
        rig.node("n2", 2)?;
        rig.pod("here", "n1", "10.244.1.2")?;
        rig.pod("there", "n2", "10.244.2.2")?;
        rig.start()?;
        rig.follow(&["Pod/default/here"], &["Pod/default/there"])?;
        match rig.source()?.watches_all_pods() {
            Some(false) => Ok(()),
            other => Err(format!("watches all pods: {other:?}")),
        }
    });
    checks.check(
        "our Node has its annotations and its condition, restored when somebody removes them",
        || {
            let annotated = |rig: &mut Rig| {
                let began = Instant::now();
                loop {
                    rig.follow(&[], &[])?;
                    let node = rig.lab.get("node n1")?;
                    let mac = &node["metadata"]["annotations"]["podswitch.io/vtep-mac"];
                    let conditions =
                        node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                    let available = conditions
                        .iter()
                        .any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False");
                    if mac == "0e:58:c0:00:02:01" && available {
                        return Ok(());
                    }
                    if began.elapsed() > SOON {
                        return Err(node.to_string());
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            };
            annotated(&mut rig)?;
            rig.lab.kubectl("annotate node n1 podswitch.io/vtep-mac-")?;
            annotated(&mut rig)
        },
    );
    checks.check("a policy with peers is published with all pods", || {
        rig.lab.apply(
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: peers}, \
             spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}}",
        )?;
        rig.follow(&["NetworkPolicy/default/peers", "Pod/default/there"], &[])
    });
    checks.check("the API server is killed and restarted", || {
        rig.restart_api_server("")?;
        rig.pod("after-kill", "n1", "10.244.1.3")?;
        rig.follow(&["Pod/default/after-kill", "Pod/default/there"], &[])
    });
    checks.check("objects deleted while the API server was down and etcd was compacted", || {
        rig.lab.bash("kill9 apiserver")?;
        // Deleted directly in etcd, so that no watch reports it.
        rig.lab.bash(
            "key=$(printf /registry/pods/default/after-kill | base64 -w0)\n\
             cpx curl -fsS http://127.0.0.1:2379/v3/kv/deleterange -d \"{\\\"key\\\":\\\"$key\\\"}\"\n\
             rev=$(cpx curl -fsS http://127.0.0.1:2379/v3/kv/range -d \"{\\\"key\\\":\\\"$key\\\"}\" | grep -oE '\"revision\":\"[0-9]+\"' | grep -oE '[0-9]+')\n\
             cpx curl -fsS http://127.0.0.1:2379/v3/kv/compaction -d \"{\\\"revision\\\":\\\"$rev\\\",\\\"physical\\\":true}\"\n\
             restart apiserver",
        )?;
        rig.follow(&["Pod/default/here"], &["Pod/default/after-kill"])
    });
    checks.check("a token is replaced", || {
        fs::write(rig.run.join("source.token"), "second-token")
            .map_err(|error| error.to_string())?;
        rig.restart_api_server("sed -i /^first-token/d \"$RUN/certs/tokens.csv\"")?;
        rig.pod("after-token", "n1", "10.244.1.4")?;
        rig.follow(&["Pod/default/after-token"], &[])
    });
    checks.check("an invalid object is left out, with an Event for it", || {
        // The API server takes any annotation and any host address.
        rig.lab.apply(
            "{apiVersion: v1, kind: Service, metadata: {name: poison, annotations: {podswitch.io/maglev-size: lots}}, \
             spec: {ports: [{port: 80}]}}",
        )?;
        rig.pod("beside", "n1", "10.244.1.5")?;
        rig.follow(&["Pod/default/beside"], &[])?;
        let began = Instant::now();
        loop {
            rig.follow(&[], &[])?;
            let events = rig.lab.get("events -n default")?;
            let ours = |e: &serde_json::Value| {
                e["involvedObject"]["name"] == "poison"
                    && e["source"]["component"] == "podswitch"
                    && e["involvedObject"]["uid"].is_string()
            };
            if events["items"].as_array().is_some_and(|list| list.iter().any(ours)) {
                return Ok(());
            }
            if began.elapsed() > SOON {
                return Err(format!("no Event of it; {:?}", rig.source()?.records()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    checks.check("the view queries a pod, and writes its addresses", || {
        let view = rig.source()?.view();
        rig.lab.apply(
            "{apiVersion: v1, kind: Pod, metadata: {name: starts, labels: {app: starts}}, \
             spec: {nodeName: n1, containers: [{name: c, image: x}]}}",
        )?;
        // The watch is not followed in this time.
        let pod = PodName::new("default", "starts").map_err(|error| error.to_string())?;
        let facts =
            view.pod(&pod, None, Instant::now() + SOON).map_err(|error| error.to_string())?;
        view.report_addresses(
            &pod,
            facts.uid.as_deref(),
            &["10.244.1.9".parse().map_err(|_| "no address")?],
        );
        rig.follow(&["Pod/default/starts"], &[])
    });
    checks.check("a start without an API server uses the last valid state", || {
        rig.follow(&["Pod/default/beside", "NetworkPolicy/default/peers"], &[])?;
        std::thread::sleep(Duration::from_millis(200));
        (rig.source, rig.sink) = (None, None);
        rig.lab.bash("kill9 apiserver")?;
        rig.start()?;
        if !rig.is_stale()? {
            return Err("it is not marked stale".to_owned());
        }
        let sink = rig.sink.as_ref().ok_or("it was not started")?;
        for object in ["Pod/default/beside", "Pod/default/there", "NetworkPolicy/default/peers"] {
            if !sink.objects.contains(object) {
                return Err(format!("{object} is missing"));
            }
        }
        rig.lab.bash("restart apiserver")?;
        rig.pod("at-last", "n1", "10.244.1.7").or_else(|_| {
            std::thread::sleep(Duration::from_secs(5));
            rig.pod("at-last", "n1", "10.244.1.7")
        })?;
        rig.follow(&["Pod/default/at-last"], &[])?;
        if rig.is_stale()? { Err("it is still marked stale".to_owned()) } else { Ok(()) }
    });
    drop(rig.source.take());
    checks.finish();
}
