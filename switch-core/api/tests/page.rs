//! The page in a real browser, for a running switch with traffic. Skipped with a message if Chromium is not installed.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podswitch_api::{DropLog, PageAccess, WebServer};
use podswitch_core::config::{Config, Endpoint, LocalNode};
use podswitch_core::id::Cookie;
use podswitch_linux::NetNs;
use podswitch_node::{
    Event, Node, NodeHandle, NodeOptions, PodAttachment, PodInterfaces, PodName, Probes, State,
};
use podswitch_policy::rule::{Labels, NetworkPolicy, Peer, Peers, Ports, Rule, Selector, Workload};
use podswitch_policy::service::model::{
    Endpoint as Backend, EndpointSlice, Service, ServicePort, SlicePort, family_of,
};
use podswitch_testkit::privilege::is_there;

/// A script that would run in the page if a name were interpreted as markup.
const HOSTILE: &str =
    "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>";
const PODS: [&str; 5] = ["web", "cart", "api-1", "api-2", "db"];

fn address(number: u8) -> IpAddr {
    [10, 8, 0, number].into()
}

fn of(pod: &str) -> IpAddr {
    let at = PODS.iter().position(|name| *name == pod).expect("a pod");
    address(u8::try_from(at).expect("few") + 2)
}

fn labels(app: &str) -> Labels {
    [("app", app)].into_iter().collect()
}

/// Pods of the namespace `shop`, with the Service `shop/api`; only the api's pods may connect to `db`.
fn config(remote: &str) -> Config {
    let app = |name: &str| Selector::of_labels(labels(name));
    let peer = Peer::Selectors { pods: Some(app("api")), namespaces: None };
    let rule = Rule { peers: Peers::AnyOf(vec![peer]), ports: Ports::Any };
    let policy = NetworkPolicy {
        cookie: "NetworkPolicy/shop/db".into(),
        namespace: "shop".into(),
        name: "db".into(),
        pods: app("db"),
        ingress: Some(vec![rule]),
        egress: None,
    };
    let vip = IpAddr::from([10, 96, 0, 1]);
    let mut service = Service::cluster_ip("shop", "api", [vip]);
    service.ports = vec![ServicePort::tcp("http", 80)];
    let slice = EndpointSlice {
        namespace: "shop".into(),
        name: "api-1".into(),
        service: "api".into(),
        family: family_of(vip),
        ports: vec![SlicePort::tcp("http", 8080)],
        endpoints: ["api-1", "api-2"].map(|pod| Backend::ready(of(pod)).on("n1")).to_vec(),
    };
    let remote = Endpoint {
        cookie: Cookie::new(format!("Pod/shop/{remote}")),
        workload: Workload {
            namespace: "shop".into(),
            name: remote.into(),
            labels: Labels::default(),
            addresses: vec![[10, 8, 1, 9].into()],
            ports: Vec::new(),
            host_network: false,
        },
        node: "n2".into(),
        attachment: None,
        precedence: Default::default(),
    };
    Config {
        node: LocalNode { name: "n1".into(), ..LocalNode::default() },
        policies: vec![Arc::new(policy)],
        services: vec![Arc::new(service)],
        slices: vec![Arc::new(slice)],
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        endpoints: vec![Arc::new(remote)],
        ..Config::default()
    }
}

/// The switch with its pods, and threads that send traffic.
struct World {
    node: NodeHandle,
    web: WebServer,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl World {
    /// `remote`: the name of a pod of another node.
    fn new(remote: &str) -> Self {
        let log = Arc::new(DropLog::default());
        let drops = Arc::clone(&log);
        let node_ns = NetNs::anonymous().expect("a namespace");
        let options =
            NodeOptions::new("n1").namespace(node_ns).report_drops().on_event(move |event| {
                if let Event::Dropped(frames) = event {
                    drops.push(*frames);
                }
            });
        let mut node = Node::start(options, State::new(config(remote))).expect("a good state");
        let pods = PODS.map(|_| NetNs::anonymous().expect("a namespace"));
        for (name, netns) in PODS.iter().zip(&pods) {
            let pod = PodName::new("shop", name).expect("a name");
            let attachment = PodAttachment::new(pod, netns.clone(), [of(name)]);
            let app = name.split('-').next().expect("a part");
            node.add_pod(attachment.labels(labels(app))).expect("attached");
        }
        let node = node.spawn().expect("a thread");
        let web =
            WebServer::start(([127, 0, 0, 1], 0).into(), Probes::default(), PageAccess::Loopback);
        let web = web.expect("it listens");
        web.serve(node.caller(), log);
        let mut world = Self { node, web, stop: Arc::default(), threads: Vec::new() };
        let [web, cart, api1, api2, db] = &pods;
        for netns in [api1, api2] {
            world.serve(netns, 8080);
        }
        world.serve(db, 5432);
        let vip = SocketAddr::from(([10, 96, 0, 1], 80));
        for client in [web, cart, web, cart] {
            world.talk(client, vip, 20_000);
        }
        for client in [api1, api2] {
            world.talk(client, (of("db"), 5432).into(), 4_000);
        }
        world.knock(web, (of("db"), 5432).into());
        world.knock(cart, ([10, 8, 1, 9], 53).into());
        world
    }

    /// Returns the received bytes, until the test ends.
    fn serve(&mut self, netns: &NetNs, port: u16) {
        let listener = netns.enter(|| TcpListener::bind(("0.0.0.0", port))).expect("entered");
        let listener = listener.expect("bound");
        listener.set_nonblocking(true).expect("set");
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            let mut streams: Vec<TcpStream> = Vec::new();
            let mut buffer = [0; 65_536];
            while !stop.load(Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("set");
                    streams.push(stream);
                }
                for stream in &mut streams {
                    // A connection that is closed or has nothing to read.
                    if let Ok(count @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write(&buffer[..count / 4]);
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        }));
    }

    /// Sends this number of bytes every 50 ms, on one connection.
    fn talk(&mut self, netns: &NetNs, to: SocketAddr, bytes: usize) {
        let wait = Duration::from_secs(10);
        let stream = netns.enter(|| TcpStream::connect_timeout(&to, wait)).expect("entered");
        let mut stream = stream.expect("it is allowed");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            let (data, mut buffer) = (vec![0; bytes], [0; 65_536]);
            while !stop.load(Relaxed) && stream.write_all(&data).is_ok() {
                let _ = stream.read(&mut buffer);
                thread::sleep(Duration::from_millis(50));
            }
        }));
    }

    /// Sends datagrams that are dropped.
    fn knock(&mut self, netns: &NetNs, to: SocketAddr) {
        let socket = netns.enter(|| UdpSocket::bind(("0.0.0.0", 0))).expect("entered");
        let socket = socket.expect("bound");
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            while !stop.load(Relaxed) {
                // The node may answer that there is no route; the next call returns that error.
                let _ = socket.send_to(b"?", to);
                thread::sleep(Duration::from_millis(200));
            }
        }));
    }

    fn end(mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("it ends"));
        drop(self.web);
        self.node.stop(PodInterfaces::Remove).expect("it stops");
    }
}

/// A browser, if one is installed.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "google-chrome", "chromium-browser", "chrome"];
    let found = names.into_iter().find(|name| {
        let output = Command::new(name).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    });
    is_there("the page in a browser", "Chromium (Debian: chromium)", found.is_some());
    found
}

/// The page in the browser after some seconds: its elements, and a picture if `picture` names a file.
fn visit(browser: &str, url: &str, picture: Option<PathBuf>, more: &[&str]) -> String {
    let profile = std::env::temp_dir().join(format!("podswitch-page-{}", std::process::id()));
    let mut command = Command::new(browser);
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
    command.arg(format!("--user-data-dir={}", profile.display()));
    command.args(["--disable-background-networking", "--virtual-time-budget=9000"]);
    command.args(more);
    match &picture {
        Some(path) => command.arg(format!("--screenshot={}", path.display())),
        None => command.arg("--dump-dom"),
    };
    let output = command.arg(url).stderr(Stdio::null()).output().expect("it was there");
    let _ = std::fs::remove_dir_all(profile);
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn has(dom: &str, what: &str) {
    assert!(dom.contains(what), "no {what} in\n{dom}");
}

/// Header and body of the response to a request with these lines.
fn request(address: SocketAddr, lines: &[&str]) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let text = [&lines.join("\r\n"), "\r\nConnection: close\r\n\r\n"].concat();
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

#[test]
fn the_page_is_for_browsers_of_this_machine() {
    podswitch_testkit::require_privilege!();
    let world = World::new(HOSTILE);
    let address = world.web.address();
    let own = format!("Host: {address}");
    let (head, body) = request(address, &["GET / HTTP/1.1", &own]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    for line in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(head.contains(line), "no {line} in {head}");
    }
    assert!(!head.contains("access-control"), "{head}");
    // All files that it references are its own.
    let elsewhere: Vec<_> = body.split(['"', '\'']).filter(|text| text.contains("//")).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let files = body.split('"').filter(|text| text.ends_with(".js") || text.ends_with(".css"));
    for file in files {
        let (head, _) = request(address, &[&format!("GET {file} HTTP/1.1"), &own]);
        assert!(head.starts_with("HTTP/1.1 200"), "{file}: {head}");
    }
    for (lines, status) in [
        (["GET /v1/status HTTP/1.1", &own, "Sec-Fetch-Site: same-origin"], "200"),
        (["GET /v1/status HTTP/1.1", &own, "Sec-Fetch-Site: cross-site"], "403"),
        (["GET /v1/status HTTP/1.1", &own, "Origin: http://evil.example"], "403"),
        (["GET /v1/status HTTP/1.1", "Host: evil.example", "Accept: */*"], "421"),
        (["GET / HTTP/1.1", "Host: evil.example:9100", "Accept: */*"], "421"),
        (["GET /v1/drops?follow=true HTTP/1.1", &own, "Accept: */*"], "400"),
        (["POST /v1/status HTTP/1.1", &own, "Content-Length: 0"], "405"),
        (["GET /page.rs HTTP/1.1", &own, "Accept: */*"], "404"),
        (["GET /metrics HTTP/1.1", "Host: node-1", "Accept: */*"], "200"),
    ] {
        let (head, body) = request(address, &lines);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{lines:?}: {head} {body}");
    }
    world.end();
}

#[test]
fn a_browser_shows_a_running_switch() {
    podswitch_testkit::require_privilege!();
    let Some(browser) = browser() else { return };
    let world = World::new(HOSTILE);
    let url = format!(
        "http://{}/#from=shop%2Fweb&to=shop%2Fdb&port=5432&protocol=UDP",
        world.web.address()
    );
    let dom = visit(browser, &url, None, &[]);
    // It has loaded its files, sent queries and received the answers.
    has(&dom, "<p id=\"state\" role=\"status\" class=\"\">live</p>");
    has(&dom, "<dt>node</dt><dd>n1</dd>");
    // The map: pods, the Service, and both kinds of edges.
    for end in ["shop/web", "shop/cart", "shop/api-1", "shop/api-2", "shop/db"] {
        has(&dom, &format!("aria-label=\"pod {end}\""));
    }
    has(&dom, "aria-label=\"service shop/api\"");
    has(&dom, "<title>shop/web → service/shop/api: ");
    has(&dom, "<title>shop/web → shop/db: ✕ ");
    has(&dom, "class=\"edge deny\"");
    has(&dom, "policy_ingress, isolated by NetworkPolicy/shop/db");
    // Keyboard use: elements that are not native controls have a tab order, a role and a state.
    has(&dom, "tabindex=\"0\" role=\"button\" aria-expanded=\"true\"");
    // The answer of the form.
    has(&dom, "✕ denied: policy_ingress");
    has(&dom, "class=\"verdict deny\"");
    // The table of connections.
    has(&dom, "<td>TCP</td>");
    has(&dom, "<td>established</td>");
    // A name is shown as text in every place.
    assert!(!dom.contains("owned</title>"), "a name was executed");
    assert!(!dom.contains("<img") && !dom.contains("<script>"), "a name is markup");
    has(&dom, "&lt;img src=x onerror=document.title='owned'&gt;");
    world.end();
}

/// `PODSWITCH_PICTURES=DIR cargo test -p podswitch-api --test page -- --ignored pictures`
#[test]
#[ignore = "creates the pictures of docs/observability.md"]
fn pictures() {
    let (Some(browser), Some(folder)) = (browser(), std::env::var_os("PODSWITCH_PICTURES")) else {
        return;
    };
    let world = World::new("mail");
    let url = format!(
        "http://{}/#from=shop%2Fweb&to=shop%2Fdb&port=5432&protocol=UDP",
        world.web.address()
    );
    let dark = "--blink-settings=preferredColorScheme=0";
    for (name, more) in [
        ("page.png", ["--window-size=1400,1180", "--hide-scrollbars"]),
        ("page-dark.png", ["--window-size=1400,500", dark]),
    ] {
        let picture = PathBuf::from(&folder).join(name);
        visit(browser, &url, Some(picture.clone()), &more);
        assert!(picture.exists());
    }
    world.end();
}
