//! The chart on a cluster: the effects of `helm install`, `helm test`, `helm upgrade` and `helm uninstall`, with Helm's
//! own templates.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use podswitch_lab::{Checks, Lab, Load, Mode, Parts, Result, eventually};
use podswitch_testkit::privilege;
use serde_json::{Value, json};

const TEST: &str = "the_chart_on_a_cluster";
const SOON: Duration = Duration::from_secs(90);
/// Not the default: everything must follow the value.
const RUN_DIR: &str = "/run/lab-podswitch";
const RESERVED_PORTS: &str = "cat /proc/sys/net/ipv4/ip_local_reserved_ports";

/// Kubernetes 1.20 has no surge of DaemonSets, no sidecars and no ValidatingAdmissionPolicy.
fn values(lab: &Lab, workers: usize) -> Value {
    json!({
        "image": {"repository": "lab.local/podswitch", "tag": "test", "pullPolicy": "Never"},
        "apiServers": [lab.api_server()],
        "kubeProxy": "absent",
        "workers": workers,
        "cluster": {"serviceCIDRs": ["10.96.0.0/16"]},
        "cni": {
            "binDir": "/run/lab-cni/bin",
            "confDir": "/run/lab-cni/net.d",
            // With the host's process ids, for runtimes that name namespaces by process id.
            "processNamespaces": std::env::var_os("LAB_PROCESS_NAMESPACES").is_some(),
        },
        // Its own container needs Kubernetes 1.29.
        "agent": {"runDir": RUN_DIR, "hold": {"enabled": false}, "updateStrategy": {"maxSurge": 0, "maxUnavailable": 1}, "minReadySeconds": 1},
        "admissionPolicy": {"enabled": false},
        "uninstall": {"nodes": lab.nodes},
    })
}

/// The objects that Helm would create. `None`: its template engine cannot be installed here.
fn render(values: &Value, hook: Option<&str>) -> Option<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../chart/render");
    let output =
        Command::new(program).arg(values.to_string()).args(hook).output().expect("python3");
    if output.status.code() == Some(3) {
        privilege::skip(TEST, "Helm's engine cannot be installed by pip");
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).expect("text"))
}

fn rolled_out(lab: &Lab) -> Result {
    let done = lab.kubectl("-n kube-system rollout status daemonset/podswitch --timeout=120s");
    done.map(drop).map_err(|reason| {
        let logs =
            "-n kube-system logs -l app.kubernetes.io/component=agent --all-containers --tail=20";
        format!("{reason}\n{}", lab.kubectl(logs).unwrap_or_else(|error| error))
    })
}

/// Checks that nodes are Ready and report their network and their addresses.
fn nodes_have_a_network(lab: &Lab) -> Result {
    lab.nodes_ready()?;
    eventually(SOON, || {
        for node in lab.get("nodes")?["items"].as_array().into_iter().flatten() {
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let network = conditions.iter().find(|c| c["type"] == "NetworkUnavailable");
            if network.is_none_or(|c| c["status"] != "False") {
                return Err(format!("condition: {network:?}"));
            }
            let annotations = &node["metadata"]["annotations"];
            for key in ["podswitch.io/vtep-mac", "podswitch.io/public-address"] {
                if annotations[key].is_null() {
                    return Err(format!("no annotation {key}: {annotations}"));
                }
            }
        }
        Ok(())
    })
}

/// Like `helm test`: its pods must succeed.
fn helm_test(lab: &Lab, objects: &str) -> Result {
    lab.apply(objects)?;
    lab.kubectl("-n kube-system rollout status deployment podswitch-test --timeout=90s")?;
    for name in ["service", "pods", "denied"] {
        let pod = format!("podswitch-test-{name}");
        eventually(SOON, || {
            let phase = lab.get(&format!("-n kube-system pod {pod}"))?["status"]["phase"].clone();
            match phase.as_str() {
                Some("Succeeded") => Ok(()),
                _ => Err(format!(
                    "{pod} {phase}: {}",
                    lab.kubectl(&format!("-n kube-system logs {pod}"))?
                )),
            }
        })?;
    }
    Ok(())
}

/// The rights of the ServiceAccount, as the API server reports them.
fn rights_are_few(lab: &Lab) -> Result {
    let may = |what: &str| {
        let line = format!(
            "kc auth can-i {what} --as=system:serviceaccount:kube-system:podswitch || true"
        );
        lab.bash(&line).map(|said| said.trim() == "yes")
    };
    for (what, allowed) in [
        ("list pods --all-namespaces", true),
        ("watch endpointslices.discovery.k8s.io --all-namespaces", true),
        ("patch nodes --subresource=status", true),
        ("patch pods -n default", true),
        ("create events -n default", true),
        ("delete pods -n default", false),
        ("create pods -n default", false),
        ("update nodes", false),
        ("get secrets -n kube-system", false),
        ("create pods --subresource=exec -n default", false),
        ("create serviceaccounts --subresource=token -n kube-system", false),
    ] {
        if may(what)? != allowed {
            return Err(format!("{what}: {}", if allowed { "denied" } else { "allowed" }));
        }
    }
    Ok(())
}

fn agents(lab: &Lab) -> Result<BTreeSet<String>> {
    let pods = lab.pods("kube-system", "app.kubernetes.io/component=agent")?;
    Ok(pods.into_iter().map(|(name, ..)| name).collect())
}

/// Checks that pods keep their network; prints the longest outage.
fn upgrade(lab: &Lab) -> Result {
    let service = lab.service("kube-system", "podswitch-test", 80)?;
    let pods = lab.pods("kube-system", "app.kubernetes.io/component=test-server")?;
    // Only the client is used: a policy of the test denies other clients. Servers are reached from their node.
    lab.kubectl("-n kube-system delete networkpolicy podswitch-test")?;
    let client = lab.node(1)?;
    eventually(SOON, || client.get_text(service).map(drop))?;
    let before = agents(lab)?;
    let load = Load::start_text(&client, service);
    let objects = render(&values(lab, 2), None).ok_or("no engine")?;
    lab.apply(&objects)?;
    rolled_out(lab)?;
    // An agent ends within a second, and the next one forwards two seconds after its pod was made. In between, the kubelet of
    // Kubernetes 1.20 may report the end of the first pod at its next synchronization only, up to a minute later.
    let outage = load.stop_with_outage(Duration::from_secs(90))?;
    println!("      no response for {outage:?}");
    let after = agents(lab)?;
    if after.len() != lab.nodes || !after.is_disjoint(&before) {
        return Err(format!("before {before:?}, after {after:?}"));
    }
    let same = lab.pods("kube-system", "app.kubernetes.io/component=test-server")?;
    if same == pods { Ok(()) } else { Err(format!("pods changed: {pods:?}, {same:?}")) }
}

/// Starts a second agent on each node beside the first one, as a DaemonSet with `maxSurge` does (Kubernetes 1.22), then ends
/// the first ones. Kubernetes 1.20 has no surge, so a second DaemonSet takes its place. No request may fail.
fn surge(lab: &Lab) -> Result {
    let service = lab.service("kube-system", "podswitch-test", 80)?;
    let client = lab.node(1)?;
    let before = agents(lab)?;
    let mut second = lab.get("-n kube-system daemonset podswitch")?;
    second["metadata"] = json!({"name": "podswitch-surge", "namespace": "kube-system"});
    second["status"] = Value::Null;
    for labels in ["/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        second.pointer_mut(labels).ok_or("no labels")?["surge"] = "second".into();
    }
    let load = Load::start_text(&client, service);
    lab.apply(&second.to_string())?;
    for node in 1..=lab.nodes {
        // The first one has written that it waits to be stopped, and is not started again.
        eventually(SOON, || {
            let first =
                lab.get("-n kube-system pods -l app.kubernetes.io/component=agent,surge!=second")?;
            let of_node = |pod: &&Value| pod["spec"]["nodeName"] == format!("n{node}");
            let pod = first["items"].as_array().into_iter().flatten().find(of_node);
            let name = pod.and_then(|pod| pod["metadata"]["name"].as_str()).ok_or("no pod")?;
            let log = lab.kubectl(&format!("-n kube-system logs {name}"))?;
            match log.contains("the node is handed over") {
                true => Ok(()),
                false => Err(format!("{name}: {}", log.lines().last().unwrap_or_default())),
            }
        })?;
    }
    let status = "-n kube-system rollout status daemonset/podswitch-surge --timeout=60s";
    lab.kubectl(status)?;
    let restarted = lab.get("-n kube-system pods -l app.kubernetes.io/component=agent")?;
    let restarts = restarted["items"].as_array().into_iter().flatten();
    let restarts: u64 = restarts
        .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64())
        .sum();
    if restarts > 0 {
        return Err(format!("{restarts} restarts of agents"));
    }
    lab.kubectl("-n kube-system delete daemonset podswitch --timeout=60s")?;
    eventually(SOON, || match agents(lab)?.is_disjoint(&before) {
        true => Ok(()),
        false => Err("the first agents do not end".to_owned()),
    })?;
    eventually(SOON, || client.get_text(service).map(drop))?;
    let (_, requests) = load.stop_without_loss()?;
    println!("      {requests} requests were answered");
    Ok(())
}

fn uninstall(lab: &Lab, objects: &str, job: &str) -> Result {
    let conflist = |node| {
        Ok::<_, String>(lab.node_folder(node).join("cni/net.d/10-podswitch.conflist").exists())
    };
    for node in 1..=lab.nodes {
        if !conflist(node)? {
            return Err(format!("n{node} has no configuration to remove"));
        }
        if !lab.on_node(node, &format!("ls -A {RUN_DIR}"))?.contains("leases") {
            return Err(format!("n{node} has no {RUN_DIR} to empty"));
        }
    }
    lab.delete(objects)?;
    lab.apply(job)?;
    lab.kubectl(
        "-n kube-system wait --for=condition=complete job/podswitch-uninstall --timeout=120s",
    )?;
    for node in 1..=lab.nodes {
        if conflist(node)? {
            return Err(format!("n{node} still has its configuration"));
        }
        let left = lab.on_node(node, &format!("ls -A {RUN_DIR} /sys/class/net"))?;
        if left.contains("leases") || left.contains("podswitch0") {
            return Err(format!("n{node} still has {left}"));
        }
        let reserved = lab.on_node(node, RESERVED_PORTS)?;
        if !reserved.trim().is_empty() {
            return Err(format!("n{node} still reserves ports {reserved}"));
        }
    }
    Ok(())
}

#[test]
fn the_chart_on_a_cluster() {
    let Some(parts) = Parts::find(TEST) else { return };
    let image = parts.folder.join("podswitch.tar");
    if render(&json!({}), None).is_none() {
        return;
    }
    let lab = Lab::up(&parts, Mode::Kubernetes, 2, &[image]).expect("a cluster");
    let rendered = |hook| render(&values(&lab, 1), hook).expect("it was there before");
    let objects = rendered(None);
    let mut checks = Checks::default();
    let is_up = checks.check("install: agents become ready", || {
        lab.apply(&objects)?;
        rolled_out(&lab)
    });
    if !is_up {
        return checks.finish();
    }
    checks.check("nodes have a network", || nodes_have_a_network(&lab));
    checks.check("the agent has only the rights that it needs", || rights_are_few(&lab));
    checks.check("helm test", || helm_test(&lab, &rendered(Some("test"))));
    checks.check("upgrade: pods keep their network", || upgrade(&lab));
    checks.check("surge pods take over from running ones", || surge(&lab));
    checks.check("uninstall leaves no configuration", || {
        lab.delete(&rendered(Some("test")))?;
        lab.kubectl("-n kube-system delete daemonset podswitch-surge --ignore-not-found")?;
        uninstall(&lab, &objects, &rendered(Some("post-delete")))
    });
    checks.finish();
}
