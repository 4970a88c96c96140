//! The health check responder, asked over real connections in a network namespace.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use common::ip;
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
    require_privilege!();
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
    // Endpoints come and go; ports are added and removed.
    set(&[check(30_500, "web", 0), check(30_502, "new", 1)]);
    assert!(get(&ns, at(30_500)).starts_with("HTTP/1.1 503"));
    assert!(get(&ns, at(30_502)).starts_with("HTTP/1.1 200"));
    let closed = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        is_refused(&ns, at(30_501))
    });
    assert!(closed, "the port of a Service that is gone");
    set(&[]);
    assert!(is_refused(&ns, at(30_500)) && is_refused(&ns, at(30_502)));
    set(&[check(30_500, "web", 1)]);
    assert!(get(&ns, at(30_500)).starts_with("HTTP/1.1 200"));
    drop(responder);
    assert!(is_refused(&ns, at(30_500)));
}

/// Sockets that cannot be had are told of and tried again.
#[test]
fn what_cannot_be_opened_is_told_and_tried_again() {
    require_privilege!();
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

/// Connections that say nothing, too much or too little keep nobody else from an answer.
#[test]
fn rude_clients_hold_nothing_for_long() {
    require_privilege!();
    let (ns, addresses) = node();
    let mut responder = HealthResponder::new(&ns);
    responder.update(&addresses, [check(30_500, "web", 1)]).unwrap();
    let at = SocketAddr::new(addresses[0], 30_500);
    let mut silent: Vec<TcpStream> = (0..100).map(|_| connect(&ns, at).unwrap()).collect();
    for (n, stream) in silent.iter_mut().enumerate() {
        // Half of them begin to speak.
        if n % 2 == 0 {
            stream.write_all(b"GET / HT").unwrap();
        }
    }
    assert!(get(&ns, at).starts_with("HTTP/1.1 200"), "once the first ones are over");
    for mut stream in silent {
        let mut rest = Vec::new();
        // Ended by the responder, with or without a reset.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    let endless = "GET / HTTP/1.1\r\nX: ".to_owned() + &"y".repeat(8000);
    assert!(ask(&ns, at, &endless).starts_with("HTTP/1.1 431"));
    assert!(get(&ns, at).starts_with("HTTP/1.1 200"));
}
