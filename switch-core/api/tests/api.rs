//! The control socket of a running node with real pods, queried by the client.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use podswitch_api::{ApiServer, Client, ClientError, DropLog, bind};
use podswitch_core::config::{Config, LocalNode};
use podswitch_core::engine::Limits;
use podswitch_linux::NetNs;
use podswitch_node::{
    Event, Node, NodeHandle, NodeOptions, PodAttachment, PodInterfaces, PodName, State,
};
use podswitch_policy::rule::{Labels, NetworkPolicy, Protocol, Selector};
use podswitch_policy::service::model::{Endpoint, EndpointSlice, Service, ServicePort, SlicePort};
use podswitch_wire::flow_key::Family;
use serde_json::Value;

/// A socket path of its own for each test.
fn path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    std::env::temp_dir().join(format!("podswitch-api-{}-{number}.sock", std::process::id()))
}

fn address(number: u8) -> IpAddr {
    [10, 8, 0, number].into()
}

/// Pods `default/red` and `default/blue`; a policy denies all connections to blue.
struct World {
    client: Client,
    server: Option<ApiServer>,
    node: NodeHandle,
    red: UdpSocket,
    blue: UdpSocket,
}

impl World {
    fn new() -> Self {
        let [node_ns, red, blue] = [(); 3].map(|()| NetNs::anonymous().unwrap());
        let log = Arc::new(DropLog::default());
        let drops = Arc::clone(&log);
        let options =
            NodeOptions::new("n1").namespace(node_ns).report_drops().on_event(move |event| {
                if let Event::Dropped(frames) = event {
                    drops.push(*frames);
                }
            });
        let labels = |pod: &str| -> Labels { [("app", pod)].into_iter().collect() };
        let shut = NetworkPolicy {
            cookie: "NetworkPolicy/default/shut".into(),
            namespace: "default".into(),
            name: "shut".into(),
            pods: Selector::of_labels(labels("blue")),
            ingress: Some(Vec::new()),
            egress: None,
        };
        let local = LocalNode { name: "n1".into(), ..LocalNode::default() };
        let service = |name: &str, number: u8| {
            let mut service = Service::cluster_ip("default", name, [[10, 9, 0, number].into()]);
            service.ports =
                vec![ServicePort { protocol: Protocol::Udp, ..ServicePort::tcp("dns", 53) }];
            Arc::new(service)
        };
        let slice = |name: &str, number: u8| {
            Arc::new(EndpointSlice {
                namespace: "default".into(),
                name: name.into(),
                service: name.into(),
                family: Family::V4,
                ports: vec![SlicePort { protocol: Protocol::Udp, ..SlicePort::tcp("dns", 53) }],
                endpoints: vec![Endpoint::ready(address(number))],
            })
        };
        let config = Config {
            node: local,
            policies: vec![Arc::new(shut)],
            services: vec![service("red", 2), service("blue", 3)],
            slices: vec![slice("red", 2), slice("blue", 3)],
            service_cidrs: vec!["10.9.0.0/16".parse().unwrap()],
            ..Config::default()
        };
        let mut node = Node::start(options, State::new(config)).unwrap();
        let socket = |netns: &NetNs, number: u8, port: u16| {
            let socket = netns.enter(|| UdpSocket::bind((address(number), port))).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket
        };
        for (name, netns, number) in [("red", &red, 2), ("blue", &blue, 3)] {
            let pod = PodName::new("default", name).unwrap();
            let attachment = PodAttachment::new(pod, netns.clone(), [address(number)]);
            node.add_pod(attachment.labels(labels(name))).unwrap();
        }
        let (red, blue) = (socket(&red, 2, 4000), socket(&blue, 3, 53));
        let node = node.spawn().unwrap();
        let path = path();
        let listener = bind(&path, None).unwrap();
        let server = ApiServer::start(listener, node.caller(), log, None).unwrap();
        Self { client: Client::new(path), server: Some(server), node, red, blue }
    }

    fn get(&self, uri: &str) -> Value {
        self.client.get(uri).unwrap()
    }

    fn stop(mut self) {
        self.server = None;
        assert!(!self.client.path().exists(), "the socket is removed");
        self.node.stop(PodInterfaces::Remove).unwrap();
    }
}

fn refusal(client: &Client, uri: &str) -> String {
    match client.text(uri) {
        Err(ClientError::Refused(reason)) => reason,
        other => panic!("{uri}: {other:?}"),
    }
}

#[test]
fn a_running_node_answers_queries() {
    podswitch_testkit::require_privilege!();
    let world = World::new();
    let mode = std::fs::metadata(world.client.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let status = world.get("/v1/status");
    assert_eq!((&status["node"], &status["pods"]), (&"n1".into(), &2.into()));
    assert_eq!(status["workers"].as_array().unwrap().len(), 1);
    assert_eq!(status["connection_limit"], Limits::default().connections);

    // Blue may open a connection, and red may reply to it.
    for _ in 0..50 {
        world.blue.send_to(b"hello", (address(2), 4000)).unwrap();
        if world.red.recv_from(&mut [0; 16]).is_ok() {
            break;
        }
    }
    let flows = world.get(&Client::query("/v1/flows", &[("pod", Some("default/blue".into()))]));
    let flow = &flows["flows"][0];
    assert_eq!((&flow["src_pod"], &flow["dport"]), (&"default/blue".into(), &4000.into()));
    assert_eq!(world.get("/v1/flows?port=4001")["total"], 0);
    assert_eq!(world.get("/v1/flows?protocol=tcp")["total"], 0);
    assert_eq!(world.get("/v1/flows?namespace=default&address=10.8.0.2")["total"], 1);

    // By labels, in order, and no more than requested.
    let labelled = |selector: &str| {
        let query = [("label", Some(selector.to_owned()))];
        world.get(&Client::query("/v1/flows", &query))["total"].as_u64()
    };
    assert_eq!([labelled("app=blue"), labelled("app=red,app")], [Some(1), Some(1)]);
    assert_eq!([labelled("app in (green)"), labelled("!app")], [Some(0), Some(0)]);
    assert_eq!(world.get("/v1/flows?address=10.8.0.0/30")["total"], 1);
    assert_eq!(world.get("/v1/flows?address=10.9.0.0/16")["total"], 0);
    let page = world.get("/v1/flows?sort=rate&interval=0.1&limit=0");
    assert_eq!((&page["total"], &page["left_out"]), (&1.into(), &1.into()), "{page}");
    let page = world.get("/v1/flows?sort=rate&interval=0.1");
    let flow = &page["flows"][0];
    assert!(flow["packets_per_second"].is_number(), "{page}");
    assert_eq!((&flow["egress"]["verdict"], &flow["policy"]), (&"allow".into(), &Value::Null));
    assert_eq!((&flow["src_node"], &flow["dst_node"]), (&"n1".into(), &"n1".into()));
    let says = refusal(&world.client, "/v1/flows?pod=default/bleu");
    assert_eq!(says, "there is no pod default/bleu; did you mean default/blue?");
    let says = refusal(&world.client, "/v1/drops?follow=true&namespace=defualt");
    assert_eq!(says, "there is no namespace defualt; did you mean default?");

    let pods = world.get("/v1/pods");
    let red = &pods["pods"][1];
    assert_eq!((&red["pod"], &red["interface"]), (&"default/red".into(), &"eth0".into()));
    assert!(red["received_packets"].as_u64().unwrap() >= 1);

    let trace = world.get("/v1/trace?from=default/red&to=default/blue&port=53&protocol=udp");
    let trace = &trace["traces"][0];
    assert_eq!((&trace["verdict"], &trace["reason"]), (&"deny".into(), &"policy_ingress".into()));
    assert!(trace["why"].as_str().unwrap().contains("NetworkPolicy/default/shut"), "{trace}");
    let says = refusal(&world.client, "/v1/trace?from=default/rde&to=10.8.0.3");
    assert_eq!(says, "there is no default/rde; did you mean default/red?");

    // Nothing was denied yet, and the policy has no rule: only its isolation is listed. Other rules would be listed
    // once they have decided.
    let page = world.get("/v1/policies");
    let rows = serde_json::json!({ "NetworkPolicy/default/shut ingress": 0 });
    assert_eq!((&page["policies"], &page["total"]), (&rows, &1.into()), "{page}");
    assert_eq!(world.get("/v1/policies?never=true")["total"], 0);
    assert_eq!(world.get("/v1/policies?containing=other")["total"], 0);
    let page = world.get("/v1/policies?containing=shut&limit=0");
    assert_eq!((&page["total"], &page["left_out"]), (&1.into(), &1.into()), "{page}");
    let after = |path: &str, name: &str| {
        world.get(&Client::query(path, &[("after", Some(name.to_owned()))]))
    };
    let page = after("/v1/policies", "NetworkPolicy/default/shut ingress");
    assert_eq!((&page["total"], &page["left_out"]), (&1.into(), &0.into()), "{page}");
    assert_eq!(page["policies"], serde_json::json!({}));
    assert_eq!(after("/v1/policies", "A")["policies"], rows);

    // A Service without a connection is listed; in pages.
    let page = world.get("/v1/services");
    let rows = serde_json::json!({
        "Service/default/blue 53/UDP 10.8.0.3:53": 0, "Service/default/red 53/UDP 10.8.0.2:53": 0,
    });
    assert_eq!((&page["services"], &page["total"]), (&rows, &2.into()), "{page}");
    let port = &page["ports"][0];
    assert_eq!(port["addresses"][0]["address"], "10.9.0.3:53", "{page}");
    let backend = &port["backends"][0];
    assert_eq!((&backend["state"], &backend["in_use"]), (&"ready".into(), &true.into()), "{page}");
    assert_eq!(world.get("/v1/services?never=true")["total"], 2);
    let page = world.get("/v1/services?limit=1");
    assert_eq!((&page["ports"][0]["name"], &page["left_out"]), (&port["name"], &1.into()));
    let page = after("/v1/services", "Service/default/blue 53/UDP");
    assert_eq!((&page["total"], &page["left_out"]), (&2.into(), &0.into()), "{page}");
    assert_eq!(page["ports"][0]["name"], "Service/default/red 53/UDP", "{page}");
    let page = world.get("/v1/services?containing=blue");
    assert_eq!((&page["total"], &page["ports"][0]["name"]), (&1.into(), &port["name"]));

    assert_eq!(world.get("/v1/counters")["pods"], 2);
    let perf = world.get("/v1/perf");
    let worker = &perf["workers"][0];
    let count = |value: &Value| value.as_u64().unwrap();
    assert!(perf["seconds"].is_null() && count(&worker["packets"]) >= 2, "{perf}");
    let sizes = worker["burst_sizes"].as_object().unwrap();
    assert_eq!(sizes.values().map(count).sum::<u64>(), count(&worker["bursts"]), "{perf}");
    let [p50, p99, max] = ["p50_ns", "p99_ns", "max_ns"].map(|n| count(&worker["poll_time"][n]));
    assert!(0 < p50 && p50 <= p99 && p99 <= max, "{perf}");
    let woken = worker["woken_by"].as_object().unwrap();
    assert_eq!(woken.values().map(count).sum::<u64>(), count(&worker["sleeps"]), "{perf}");
    assert!(count(&worker["sleeps"]) > 0 && count(&worker["longest_pause"]["ns"]) > 0, "{perf}");
    // Over one second only.
    let later = world.client.get_after::<Value>("/v1/perf?seconds=1", Duration::from_secs(1));
    let (later, total) = (later.unwrap(), world.get("/v1/perf"));
    assert!(later["seconds"].as_f64() >= Some(1.0), "{later}");
    for name in ["polls", "packets", "bursts", "sleeps"] {
        let [before, later, total] =
            [&perf, &later, &total].map(|perf| count(&perf["workers"][0][name]));
        assert!(before + later <= total, "{name}: {before} + {later} and {total}");
    }
    let metrics = world.client.text("/metrics").unwrap();
    assert!(metrics.contains("\npodswitch_pods 2\n"), "{metrics}");
    let map = world.get("/v1/map");
    let edge = |from: &str, to: &str| {
        let edges = map["edges"].as_array().unwrap().iter();
        edges.clone().find(|edge| edge["from"] == from && edge["to"] == to).cloned()
    };
    let edge = edge("default/blue", "default/red").unwrap_or_else(|| panic!("{map}"));
    assert_eq!((&edge["connections"], &edge["verdict"]), (&1.into(), &"allow".into()));
    let end = map["ends"].as_array().unwrap().iter().find(|end| end["id"] == "default/red");
    assert_eq!(end.unwrap()["node"], "n1");
    assert!(refusal(&world.client, "/v1/flow").starts_with("there is no /v1/flow"));
    world.stop();
}

#[test]
fn drops_are_kept_and_followed() {
    podswitch_testkit::require_privilege!();
    let world = World::new();
    // Each from a client port of its own, with another destination in between.
    let send = |payload: &[u8]| {
        world.red.send_to(payload, (address(3), 53)).unwrap();
    };
    let drops = |uri: &str| world.get(uri)["drops"].as_array().unwrap().clone();
    send(b"first");
    let kept = (0..100)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            drops("/v1/drops?reason=policy&pod=default/red")
        })
        .find(|drops| !drops.is_empty())
        .expect("the drop is recorded");
    let drop = &kept[0];
    assert_eq!(drop["reason"], "policy_ingress");
    assert_eq!((&drop["src"]["pod"], &drop["dst"]["pod"]), (&"red".into(), &"blue".into()));
    assert_eq!(drop["dst"]["port"], 53);
    assert_eq!(drop["isolated_by"][0], "NetworkPolicy/default/shut");
    assert!(drop["time"].as_str().unwrap().ends_with('Z'), "{drop}");
    assert!(drops("/v1/drops?reason=spoof").is_empty());

    let follower = world.client.clone();
    let (sender, lines) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        // The kept record, and a new one.
        let mut more = 2;
        follower.lines("/v1/drops?follow=true&limit=1&port=53", |line| {
            sender.send(serde_json::from_str::<Value>(line).unwrap()).unwrap();
            more -= 1;
            more > 0
        })
    });
    let wait = Duration::from_secs(10);
    assert_eq!(lines.recv_timeout(wait).unwrap()["reason"], "policy_ingress");
    send(b"second");
    let second = lines.recv_timeout(wait).unwrap();
    assert_eq!(second["reason"], "policy_ingress");
    assert!(second["time"].as_str() > drop["time"].as_str());
    thread.join().unwrap().unwrap();
    world.stop();
}

#[test]
fn a_socket_that_is_in_use_is_not_replaced() {
    let path = path();
    let first = bind(&path, None).unwrap();
    let error = bind(&path, None).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse, "{error}");
    drop(first);
    // Left by a process that was killed.
    let second = bind(&path, None).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    drop(second);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "something else").unwrap();
    assert!(bind(&path, None).is_err());
    std::fs::remove_file(&path).unwrap();
    let error = Client::new(&path).text("/v1/status").unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}
