//! A running switch without an API server, scraped by a real Prometheus with the chart's alert rules.

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, Y, head, veth_pod};
use serde_json::Value;

use super::tool::{CHART, free_port, get, has, promtool};

/// A switch with the pods a/x and a/y. One policy lets nothing in; one is wrong, and closed.
fn start(folder: &Folder, netns: [&NetNs; 3], port: u16) -> Running {
    let [x, y, node] = netns;
    let policies = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                    metadata: {name: shut, namespace: a}, spec: {podSelector: {}}}\n\
                    ---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                    metadata: {name: wrong, namespace: a}, spec: {podSelector: 7}}\n";
    let state = [head(), veth_pod("x", 2, x), veth_pod("y", 3, y), policies.to_owned()].concat();
    let name = format!("metrics-{}", std::process::id());
    let manifests = folder.manifest("state", &state.replace("n1", &name));
    let running = Running::start(&[
        "--node",
        &name,
        "--manifests",
        &manifests,
        "--node-netns",
        &node.path().display().to_string(),
        "--masquerade",
        "off",
        "--metrics-address",
        &format!("127.0.0.1:{port}"),
    ]);
    running.says("ready");
    running
}

/// A Prometheus under test; killed where it is dropped.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes `target` each second, with the chart's rules. Nobody waits for minutes here: `for` and ranges are seconds.
    fn start(folder: &Folder, target: u16) -> Self {
        let rules = std::fs::read_to_string(format!("{CHART}/rules.yaml")).expect("rules");
        let quick: Vec<String> = rules
            .lines()
            .map(|line| match line.trim_start().starts_with("for: ") {
                true => format!("{}for: 1s", &line[..line.len() - line.trim_start().len()]),
                false => line.replace("[5m]", "[5s]").replace("[10m]", "[5s]"),
            })
            .collect();
        std::fs::write(folder.path("rules.yaml"), quick.join("\n")).expect("written");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yaml]\n\
             scrape_configs: [{{job_name: podswitch, static_configs: [{{targets: ['127.0.0.1:{target}'], \
             labels: {{node: n1}}}}]}}]\n"
        );
        std::fs::write(folder.path("prometheus.yml"), config).expect("written");
        promtool(&["check", "config", &folder.text("prometheus.yml")], "");
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.text("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", folder.text("data")))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was there");
        Self { child, port }
    }

    /// What its API answers, once it does.
    fn ask(&self, path: &str) -> Option<Value> {
        let (status, body) = get(self.port, path)?;
        (status == 200).then(|| serde_json::from_str(&body).expect("JSON"))
    }

    /// Waits for a series, by an expression that has no need to be escaped.
    #[track_caller]
    fn has(&self, expression: &str) {
        let path = format!("/api/v1/query?query={expression}");
        let found = wait(|| {
            let answer = self.ask(&path)?;
            answer["data"]["result"].as_array().filter(|list| !list.is_empty()).map(drop)
        });
        assert!(found.is_some(), "no {expression}: {:?}", self.ask("/api/v1/targets"));
    }

    /// Waits until an alert fires.
    #[track_caller]
    fn fires(&self, alert: &str) -> Value {
        let fires =
            |found: &&Value| found["labels"]["alertname"] == alert && found["state"] == "firing";
        let found = wait(|| {
            let answer = self.ask("/api/v1/alerts")?;
            answer["data"]["alerts"].as_array()?.iter().find(fires).cloned()
        });
        found.unwrap_or_else(|| panic!("no {alert}: {:?}", self.ask("/api/v1/alerts")))
    }
}

/// Tries until there is something.
fn wait<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let limit = Limit::new(PATIENCE);
    while limit.left().is_some() {
        if let Some(found) = found() {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(200));
    }
    None
}

#[test]
fn a_prometheus_scrapes_and_alerts() {
    podswitch_testkit::require_privilege!();
    let [x, y, node] = [(); 3].map(|()| NetNs::anonymous().expect("a namespace"));
    let (folder, port) = (Folder::new(), free_port());
    let running = start(&folder, [&x, &y, &node], port);
    let answer = |path| get(port, path).unwrap_or_default();
    for probe in ["/livez", "/healthz", "/readyz"] {
        assert_eq!(answer(probe), (200, "ok\n".into()), "{probe}");
    }
    // No page without --page, and nothing else.
    for path in ["/", "/v1/status", "/v1/flows", "/x"] {
        assert_eq!(answer(path).0, 404, "{path}");
    }
    let socket = x.enter(|| UdpSocket::bind(("0.0.0.0", 0))).expect("entered").expect("bound");
    for _ in 0..3 {
        socket.send_to(b"?", (Y, 53)).expect("sent");
    }
    let dropped = wait(|| {
        let (_, text) = answer("/metrics");
        text.contains("podswitch_drops_total{reason=\"policy_ingress\",class=\"policy\"} 3\n")
            .then_some(text)
    });
    let text = dropped.unwrap_or_else(|| panic!("no drops: {}", answer("/metrics").1));
    for line in [
        "podswitch_pods 2",
        "podswitch_objects_left_out{action=\"closed\"} 1",
        "podswitch_policy_decisions_total{policy=\"NetworkPolicy/a/shut\",direction=\"ingress\",rule=\"\"} ",
        "podswitch_worker_busy_seconds_total{worker=\"0\"} ",
        "podswitch_port_rx_packets_total{kind=\"pod\"} ",
        "podswitch_port_rx_packets_total{kind=\"host\"} ",
        "podswitch_publish_seconds_count ",
        "podswitch_state_stale_seconds 0\n",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    for identity in ["10.1.0.", "fd00:1:", "a/x", "a/y"] {
        assert!(!text.contains(identity), "{identity} is in a label");
    }
    if !has("promtool") || !has("prometheus") {
        return;
    }
    promtool(&["check", "metrics"], &text);
    let prometheus = Prometheus::start(&folder, port);
    prometheus.has("podswitch_drops_total{reason=\"policy_ingress\"}==3");
    prometheus.has("podswitch_publish_seconds_bucket{le=\"+Inf\"}".replace('+', "%2B").as_str());
    let alert = prometheus.fires("PodswitchObjectsLeftOut");
    assert_eq!(
        (&alert["labels"]["action"], &alert["labels"]["node"]),
        (&"closed".into(), &"n1".into())
    );
    assert_eq!(running.stop(), Some(0));
    assert_eq!(prometheus.fires("PodswitchAgentDown")["labels"]["severity"], "critical");
}
