//! A CNI agent in about a hundred lines: the switch of a node, and a Unix socket by which pods come and go.
//!
//! `cargo run --example cni_agent -- SOCKET NODE [NETNS]`, as root; then one line a connection, answered in lines:
//!
//! ```text
//! add default/web /run/netns/web 10.1.0.2,fd00::2 app=web   a pod, its namespace, addresses, labels
//! del default/web
//! apply manifests/                       Kubernetes objects: policies, Services, pods that add names
//! why 10.1.0.2 10.1.0.3 80/TCP           allowed or denied, and by what
//! stats | flows                          counters; connections
//! stop
//! ```
//!
//! Without labels a pod passes nothing before an applied state knows it. Events go to standard error.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use podswitch::core::config::{Config, LocalNode};
use podswitch::kubernetes::Manifests;
use podswitch::linux::NetNs;
use podswitch::node::{
    ClusterOptions, Connection, Node, NodeHandle, NodeOptions, PodAttachment, PodInterfaces, State,
    node_addresses,
};
use podswitch::policy::rule::Protocol;

type Answer = Result<String, Box<dyn Error>>;

/// The longest command, in bytes, and the longest wait for one.
const MAX_COMMAND: u64 = 4096;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, name, netns) = match &arguments[..] {
        [socket, name] => (socket, name, None),
        [socket, name, netns] => (socket, name, Some(netns)),
        _ => return Err("usage: cni_agent SOCKET NODE [NETNS]".into()),
    };
    let namespace = netns.map_or_else(NetNs::current, NetNs::open)?;
    let addresses = node_addresses(&namespace)?;
    let node = LocalNode { name: name.as_str().into(), addresses, ..LocalNode::default() };
    let options = NodeOptions::new(name)
        .namespace(namespace)
        .report_drops()
        .on_event(|event| eprintln!("{event}"));
    let node = Node::start(options, Config { node, ..Config::default() })?.spawn()?;

    let listener = UnixListener::bind(socket)?;
    println!("ready node={name}");
    for stream in listener.incoming() {
        match serve(&node, name, stream?) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => eprintln!("a client went away: {error}"),
        }
    }
    std::fs::remove_file(socket)?;
    Ok(node.stop(PodInterfaces::Remove)?)
}

/// Answers one command. `false`: it was the last.
fn serve(node: &NodeHandle, name: &str, mut stream: UnixStream) -> std::io::Result<bool> {
    stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
    stream.set_write_timeout(Some(COMMAND_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(&stream).take(MAX_COMMAND).read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let answer = answer(node, name, &words).unwrap_or_else(|error| format!("error: {error}"));
    writeln!(stream, "{}", answer.trim_end())?;
    Ok(words != ["stop"])
}

fn answer(node: &NodeHandle, name: &str, words: &[&str]) -> Answer {
    match *words {
        ["add", pod, netns, addresses, ref labels @ ..] => {
            let addresses = addresses.split(',').map(str::parse).collect::<Result<Vec<IpAddr>, _>>()?;
            let mut attachment = PodAttachment::new(pod.parse()?, netns, addresses);
            if !labels.is_empty() {
                let pair = |label: &&str| label.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
                let pairs: Option<Vec<_>> = labels.iter().map(pair).collect();
                let pairs = pairs.ok_or("a label is KEY=VALUE")?;
                attachment = attachment.labels(pairs.into_iter().collect());
            }
            Ok(format!("ok port={}", node.add_pod(attachment)?))
        }
        ["del", pod] => Ok(match node.remove_pod(pod.parse()?)? {
            true => "ok".to_owned(),
            false => "ok, there was none".to_owned(),
        }),
        ["apply", path] => {
            let cluster = ClusterOptions::default();
            let mut compiled = Manifests::load(Path::new(path))?.compile(Some(name), &cluster.kubernetes());
            // What cannot be used is left out, or closes what it was to protect.
            compiled.refused().for_each(|record| eprintln!("{record}"));
            cluster.complete(&mut compiled.config, compiled.flannel);
            Ok(format!("ok epoch={}", node.apply(State::from(compiled))?))
        }
        ["why", from, to, port] => {
            let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
            let protocol: Protocol = match protocol {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                other => return Err(format!("{other:?} is neither TCP, UDP nor SCTP").into()),
            };
            let connection = Connection {
                src: from.parse()?,
                dst: to.parse()?,
                protocol: protocol.number(),
                sport: 40_000,
                dport: port.parse()?,
            };
            let verdict = node.explain(connection)?.ok_or("two families")?;
            Ok(verdict.to_string())
        }
        ["stats"] => Ok(format!("{:#?}", node.stats()?)),
        ["flows"] => {
            Ok(node.flows()?.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        }
        ["stop"] => Ok("ok".to_owned()),
        _ => Err("add POD NETNS ADDRESSES [LABELS] | del POD | apply PATH | why FROM TO PORT | stats | flows | stop".into()),
    }
}
