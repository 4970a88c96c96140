//! Cluster DNS: pods find a Service by its name. The switch answers them itself, from the address of
//! the Service kube-system/kube-dns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use podswitch_dns::{Name, query, record_type};
use podswitch_linux::NetNs;

use super::objects::Front;
use crate::Done;
use crate::demo::report::Report;
use crate::demo::servers::{self, Servers, ask_tcp};
use crate::demo::sockets::{Outcome, TRIES};
use crate::demo::world::{Family, SERVICE_PORT, TARGET_PORT, World};

const NAME: &str = "api.default.svc";
/// What the kubelet writes into `resolv.conf` of the demo's pods: the name has fewer than five dots,
/// so these domains are appended first.
const SEARCH: [&str; 3] = ["demo.svc.cluster.local", "svc.cluster.local", "cluster.local"];

const API: Family =
    Family { v4: Ipv4Addr::new(10, 96, 0, 20), v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x20) };
const NAME_SERVER: Family =
    Family { v4: Ipv4Addr::new(10, 96, 0, 10), v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10) };
const DNS: u16 = 53;
/// Response codes (RFC 1035 section 4.1.1).
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;

/// See the module's description.
pub(in crate::demo) fn names(world: &mut World, report: &mut Report) -> Done {
    let backends = ["green", "cyan"].map(|name| world.pod(name).clone());
    let _servers = match Servers::start(&backends) {
        Ok(servers) => servers,
        Err(error) => return report.check("DNS: servers", Err(error)),
    };
    let api = Front {
        namespace: "default",
        name: "api",
        cluster_ips: Some(API),
        balanced: None,
        protocol: "TCP",
        port: SERVICE_PORT,
        target: TARGET_PORT,
    };
    let mut objects = api.objects(&backends.each_ref());
    // The Service needs an endpoint, which would get what the switch does not answer: nothing here.
    let server = Front {
        namespace: "kube-system",
        name: "kube-dns",
        cluster_ips: Some(NAME_SERVER),
        balanced: None,
        protocol: "UDP",
        port: DNS,
        target: DNS,
    };
    objects.extend(server.objects(&[world.pod("black")]));
    let put = world.change(|setup| setup.others = objects);
    report.check("DNS: applied on both nodes", put)?;
    for (family, like) in API.each() {
        for name in ["red", "white"] {
            let outcome = finds(&world.pod(name).namespace, like);
            let what = "gets the Service's address, and connects";
            report.check(format!("DNS: {name} asks for {NAME}, {what}, {family}"), outcome)?;
        }
    }
    let gone = world.change(|setup| *setup = Default::default());
    report.check("DNS: removed", gone)
}

/// Resolves the name as a pod does, and connects to what it gets.
fn finds(pod: &NetNs, like: IpAddr) -> Outcome<()> {
    let server = SocketAddr::new(NAME_SERVER.like(like), DNS);
    let mut found = Vec::new();
    for domain in SEARCH {
        let name = Name::parse(&format!("{NAME}.{domain}")).map_err(|e| e.to_string())?;
        let (code, addresses) = ask(pod, server, &name, like.is_ipv6())?;
        match code {
            NO_SUCH_NAME => {}
            NO_ERROR => {
                found = addresses;
                break;
            }
            code => return Err(format!("{name}: response code {code}")),
        }
    }
    if found != [like] {
        return Err(format!("{found:?} and not {like}"));
    }
    let answer = ask_tcp(pod, SocketAddr::new(found[0], SERVICE_PORT), 1000)?;
    match ["green", "cyan"].contains(&answer.pod.as_str()) {
        true => Ok(()),
        false => Err(format!("{answer:?}")),
    }
}

/// The response code, and the addresses in the answer.
fn ask(from: &NetNs, server: SocketAddr, name: &Name, ipv6: bool) -> Outcome<(u8, Vec<IpAddr>)> {
    let qtype = if ipv6 { record_type::AAAA } else { record_type::A };
    let socket = servers::udp_client(from, server)?;
    let mut last = "never sent".to_owned();
    for id in 0..TRIES as u16 {
        match exchange(&socket, &query(id, name, qtype, None), id) {
            Ok(message) => {
                return read(&message, qtype).ok_or_else(|| format!("{message:02x?} is no answer"));
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("{name}: no answer: {last}"))
}

fn exchange(socket: &UdpSocket, query: &[u8], id: u16) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 512];
    socket.send(query)?;
    loop {
        let length = socket.recv(&mut buffer)?;
        // Not that of a query before, which came late.
        if buffer[..length].starts_with(&id.to_be_bytes()) {
            return Ok(buffer[..length].to_vec());
        }
    }
}

/// The response code and the addresses of a response with one question (RFC 1035 section 4).
fn read(message: &[u8], qtype: u16) -> Option<(u8, Vec<IpAddr>)> {
    let number = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let mut at = after_name(message, 12)? + 4;
    let mut addresses = Vec::new();
    for _ in 0..number(6)? {
        at = after_name(message, at)?;
        let data = at + 10..at + 10 + usize::from(number(at + 8)?);
        if number(at)? == qtype {
            let data = message.get(data.clone())?;
            addresses.push(match data.len() {
                4 => IpAddr::from(*data.first_chunk::<4>()?),
                _ => IpAddr::from(*data.first_chunk::<16>()?),
            });
        }
        at = data.end;
    }
    Some((message.get(3)? & 15, addresses))
}

/// Where the name at `at` ends; it may end in a pointer.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match message.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += usize::from(*length) + 1,
        }
    }
}
