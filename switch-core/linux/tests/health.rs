//! The health check responder, queried over real connections in a network namespace.

use podswitch_testkit::net;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use net::ip;
use podswitch_linux::health::{HealthCheck, HealthResponder};
use podswitch_linux::{NetNs, Netlink};

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

fn node() -> (NetNs, Vec<IpAddr>) {
    let ns = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&ns).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    netlink.set_up(lo).unwrap();
    let addresses = NODE.map(ip).to_vec();
    for &address in &addresses {
        netlink.add_address(lo, address.into()).unwrap();
        netlink.wait_until_local(address).unwrap();
    }
    (ns, addresses)
}

fn check(port: u16, name: &str, local_endpoints: usize) -> HealthCheck {
    let local_endpoints = [local_endpoints; 2];
    HealthCheck { port, namespace: "shop".into(), name: name.into(), local_endpoints }
}

fn connect(ns: &NetNs, address: SocketAddr) -> std::io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
    let stream = ns.enter(connect).unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Ok(stream)
}

/// The response to a request.
fn ask(ns: &NetNs, address: SocketAddr, request: &str) -> String {
    let mut stream = connect(ns, address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn get(ns: &NetNs, address: SocketAddr) -> String {
    ask(ns, address, "GET /healthz HTTP/1.1\r\nHost: node\r\nUser-Agent: test\r\n\r\n")
}

fn is_refused(ns: &NetNs, address: SocketAddr) -> bool {
    connect(ns, address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn answers_follow_the_state() {
    podswitch_testkit::require_privilege!();
    let (ns, addresses) = node();
    let mut responder = HealthResponder::new(&ns);
    let mut set = |checks: &[HealthCheck]| {
        let failed = responder.update(&addresses, checks.iter().cloned()).unwrap();
        assert!(failed.is_empty(), "{failed:?}");
    };
    set(&[check(30_500, "web", 2), check(30_501, "api", 0), check(30_500, "late", 9)]);
    for &address in &addresses {
        let response = get(&ns, SocketAddr::new(address, 30_500));
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/json\r\n"), "{head}");
        assert!(head.contains("\r\nX-Load-Balancing-Endpoint-Weight: 2\r\n"), "{head}");
        let compact: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(
            compact,
            r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#
        );
        let response = get(&ns, SocketAddr::new(address, 30_501));
        assert!(response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{response}");
        assert!(response.contains("\"localEndpoints\": 0"), "{response}");
        assert!(response.contains("\r\nX-Load-Balancing-Endpoint-Weight: 0\r\n"));
    }
    let at = |port| SocketAddr::new(addresses[0], port);
    let head = ask(&ns, at(30_500), "HEAD / HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    // Endpoints change; ports are added and removed.
    set(&[check(30_500, "web", 0), check(30_502, "new", 1)]);
    assert!(get(&ns, at(30_500)).starts_with("HTTP/1.1 503"));
    assert!(get(&ns, at(30_502)).starts_with("HTTP/1.1 200"));
    let closed = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        is_refused(&ns, at(30_501))
    });
    assert!(closed, "the port of a removed Service");
    set(&[]);
    assert!(is_refused(&ns, at(30_500)) && is_refused(&ns, at(30_502)));
    set(&[check(30_500, "web", 1)]);
    assert!(get(&ns, at(30_500)).starts_with("HTTP/1.1 200"));
    drop(responder);
    assert!(is_refused(&ns, at(30_500)));
}

/// Sockets that cannot be opened are reported and tried again.
#[test]
fn failed_sockets_are_reported_and_tried_again() {
    podswitch_testkit::require_privilege!();
    let (ns, mut addresses) = node();
    let late = ip("192.0.2.77");
    addresses.push(late);
    let mut responder = HealthResponder::new(&ns);
    let failed = responder.update(&addresses, [check(30_500, "web", 1)]).unwrap();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].to_string().contains("192.0.2.77:30500"), "{}", failed[0]);
    assert!(get(&ns, SocketAddr::new(addresses[0], 30_500)).starts_with("HTTP/1.1 200"));
    let mut netlink = Netlink::open(&ns).unwrap();
    let lo = netlink.link("lo").unwrap().index;
    netlink.add_address(lo, late.into()).unwrap();
    assert!(responder.update(&addresses, [check(30_500, "web", 1)]).unwrap().is_empty());
    assert!(get(&ns, SocketAddr::new(late, 30_500)).starts_with("HTTP/1.1 200"));
}

/// Any method, any path, and any length of headers that Go accepts, as kube-proxy's responder.
#[test]
fn any_method_and_long_headers_are_answered() {
    podswitch_testkit::require_privilege!();
    let (ns, addresses) = node();
    let mut responder = HealthResponder::new(&ns);
    let one_family = HealthCheck { local_endpoints: [1, 0], ..check(30_500, "web", 0) };
    responder.update(&addresses, [one_family]).unwrap();
    let at = SocketAddr::new(addresses[0], 30_500);
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(500_000));
    let requests = [
        "OPTIONS / HTTP/1.0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody",
        "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        &long,
    ];
    for request in requests {
        let response = ask(&ns, at, request);
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
    // Each family for its own endpoints.
    let response = get(&ns, SocketAddr::new(addresses[1], 30_500));
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(response.contains("\r\nX-Load-Balancing-Endpoint-Weight: 0\r\n"));
    let endless = "GET / HTTP/1.1\r\nX: ".to_owned() + &"y".repeat(1 << 20);
    assert!(ask(&ns, at, &endless).starts_with("HTTP/1.1 431"));
}

/// Connections that send nothing or too little do not prevent others from being answered, at the
/// same port or another: they are replaced by new ones.
#[test]
fn silent_clients_do_not_block_others() {
    podswitch_testkit::require_privilege!();
    let (ns, addresses) = node();
    let mut responder = HealthResponder::new(&ns);
    responder.update(&addresses, [check(30_500, "web", 1), check(30_501, "api", 1)]).unwrap();
    let at = |port| SocketAddr::new(addresses[0], port);
    let mut silent: Vec<TcpStream> = (0..400).map(|_| connect(&ns, at(30_500)).unwrap()).collect();
    for (n, stream) in silent.iter_mut().enumerate() {
        // Half of them send a part of a request.
        if n % 2 == 0 {
            let _ = stream.write_all(b"GET / HT");
        }
    }
    for port in [30_501, 30_500] {
        assert!(get(&ns, at(port)).starts_with("HTTP/1.1 200"));
    }
    // At most this number of them was still open, so none had to time out first.
    let ended = silent.iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    });
    assert!(ended.count() >= 400 - 128);
    for mut stream in silent {
        stream.set_nonblocking(false).unwrap();
        let mut rest = Vec::new();
        // Ended by the responder, with or without a reset.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    assert!(get(&ns, at(30_500)).starts_with("HTTP/1.1 200"));
}
