//! The way of a packet that was sent for real: captures of this switch and others while it passes.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use podswitch_api::{Client, ClientError};
use podswitch_core::time::{Clock, Instant};
use serde_json::Value;

use crate::failure::Failure;
use crate::inspect::table::text;
use crate::print;

/// Bytes of each frame that are captured: outer headers, headers and payload of what is sent.
const SNAP_LEN: u64 = 256;
/// The most frames of one switch.
const MAX_FRAMES: u64 = 100_000;
/// How long a capture may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// How often, and after how long, a capture is tried again while another one runs.
const RETRIES: usize = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long frames may be on their way from a worker to here, after the wait.
const GRACE: Duration = Duration::from_secs(1);
/// Ports of which a connection's source is chosen: those that clients use.
const PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// What is sent, and who follows it.
pub(super) struct Request<'a> {
    /// The client, as it was named.
    pub(super) from: &'a str,
    /// Port of the server.
    pub(super) port: u16,
    /// Port of the client.
    pub(super) sport: Option<u16>,
    /// The path that sends it.
    pub(super) uri: String,
    /// What happens to it by the state in force.
    pub(super) traces: &'a [Value],
    /// Control sockets of further switches.
    pub(super) also: &'a [PathBuf],
    /// Seconds.
    pub(super) wait: u64,
}

/// A source port that no other packet is likely to have.
pub(super) fn source_port() -> u16 {
    let random = std::hash::BuildHasher::hash_one(&hashbrown::DefaultHashBuilder::default(), 0u8);
    PORTS.start() + (random % PORTS.len() as u64) as u16
}

/// What a capture reports.
enum Report {
    Line { watcher: usize, line: Value },
    Ended { watcher: usize, result: Result<(), ClientError> },
}

/// A place where the packet, or an answer to it, was seen.
#[derive(Debug)]
struct Step {
    node: String,
    is_local: bool,
    is_answer: bool,
    frame: Value,
}

impl Step {
    fn is_sent(&self) -> bool {
        self.frame["direction"] == "sent"
    }

    fn is_dropped(&self) -> bool {
        self.text().starts_with("dropped: ")
    }

    fn text(&self) -> &str {
        self.frame["text"].as_str().unwrap_or_default()
    }

    fn port(&self) -> &str {
        self.frame["port"].as_str().unwrap_or_default()
    }

    /// It left this switch for another node or the world.
    fn is_on_uplink(&self) -> bool {
        self.frame["is_tunnel"] == true || self.port() == "uplink"
    }
}

/// What became of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer was received.
    Answered(String),
    /// It was sent to its destination, which did not answer.
    Delivered(String),
    /// It left the node towards one that was not watched, and there was no answer.
    Left(String),
    /// The packet, or its answer, was dropped.
    Dropped(String),
    /// It was not seen where it should have been.
    Lost(String),
}

impl Outcome {
    pub(super) const fn is_good(&self) -> bool {
        matches!(self, Self::Answered(_) | Self::Delivered(_) | Self::Left(_))
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Answered(_) => "answered",
            Self::Delivered(_) => "delivered",
            Self::Left(_) => "left",
            Self::Dropped(_) => "dropped",
            Self::Lost(_) => "lost",
        }
    }

    fn why(&self) -> &str {
        let (Self::Answered(why)
        | Self::Delivered(why)
        | Self::Left(why)
        | Self::Dropped(why)
        | Self::Lost(why)) = self;
        why
    }
}

/// A packet that was sent, and where it was seen.
#[derive(Debug)]
pub(super) struct Way {
    packet: Value,
    /// Addresses and ports that answer: the destination, and the backend of a Service.
    servers: Vec<(String, Value)>,
    steps: Vec<Step>,
    /// Whether switches beside this node's were watched.
    has_others: bool,
}

impl Way {
    /// Takes a frame if it is the packet or an answer to it.
    fn offer(&mut self, node: &str, is_local: bool, frame: &Value) {
        let bytes = frame["frame"].as_str().unwrap_or_default();
        let marks = self.packet["marks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_marked = marks.iter().all(|mark| bytes.contains(mark.as_str().unwrap_or("-")));
        // An answer may return the payload, as an echo does.
        let is_answer = self.is_answer(frame)
            || frame["text"].as_str().is_some_and(|text| text.contains(", reply"));
        let is_request = is_marked && !is_answer;
        if !is_marked && !self.is_answer(frame) {
            return;
        }
        let (node, frame) = (node.to_owned(), frame.clone());
        self.steps.push(Step { node, is_local, is_answer: !is_request, frame });
    }

    /// Whether the frame goes from a server to the sender's address and port; an echo has its identifier as the
    /// requester's port.
    fn is_answer(&self, frame: &Value) -> bool {
        let packet = &self.packet;
        let is_icmp = packet["port"] == 0;
        frame["protocol"] == packet["protocol"]
            && frame["dst"] == packet["from"]
            && frame["dport"] == packet["sport"]
            && self.servers.iter().any(|(address, port)| {
                frame["src"] == address.as_str() && (is_icmp || frame["sport"] == *port)
            })
    }

    fn sort(&mut self) {
        let time = |step: &Step| text(&step.frame["time"]);
        self.steps
            .sort_by_key(|step| (step.is_answer, !step.is_local && step.is_answer, time(step)));
        // Times of nodes differ: on the way there this node's come first, on the way back last.
        self.steps.sort_by_key(|step| (step.is_answer, step.is_local == step.is_answer));
    }

    /// Whether nothing more is to come that is of interest.
    fn is_over(&self) -> bool {
        let is_back = |step: &Step| step.is_answer && step.is_local && step.is_sent();
        self.steps.iter().any(|step| step.is_dropped() || is_back(step) && !step.is_on_uplink())
    }

    pub(super) fn result(&self) -> Outcome {
        let at = |step: &Step| format!("{} {}: {}", step.node, step.port(), step.text());
        if let Some(step) = self.steps.iter().find(|step| step.is_dropped()) {
            return Outcome::Dropped(at(step));
        }
        if let Some(step) = self.steps.iter().rfind(|step| step.is_answer && step.is_local) {
            return Outcome::Answered(at(step));
        }
        let mut there = self.steps.iter().filter(|step| !step.is_answer);
        if let Some(step) = there.clone().find(|step| step.is_sent() && !step.is_on_uplink()) {
            return Outcome::Delivered(format!("{} to {}", step.node, step.port()));
        }
        if let Some(step) = there.clone().find(|step| step.text().starts_with("for the switch")) {
            return Outcome::Delivered(at(step));
        }
        let Some(left) = there.clone().find(|step| step.is_sent()) else {
            return Outcome::Lost(match there.next() {
                Some(step) => format!("it was received, and not sent: {}", at(step)),
                None => "the switch did not receive it from the pod's interface".to_owned(),
            });
        };
        match self.has_others {
            false => {
                Outcome::Left(format!("{}; --also follows it in another node's switch", at(left)))
            }
            true if there.any(|step| !step.is_local) => {
                Outcome::Lost("another node received it, and did not deliver it".to_owned())
            }
            true => {
                Outcome::Lost(format!("no other node that is watched received it: {}", at(left)))
            }
        }
    }

    pub(super) fn json(&self) -> Value {
        let steps = self.steps.iter().map(|step| {
            let mut frame = step.frame.clone();
            frame["node"] = step.node.clone().into();
            frame["is_answer"] = step.is_answer.into();
            frame
        });
        let mut packet = self.packet.clone();
        packet["frames"] = steps.collect();
        let outcome = self.result();
        packet["result"] = outcome.name().into();
        packet["text"] = outcome.why().into();
        packet
    }

    pub(super) fn print(&self) {
        let [what, pod, from, to] =
            ["what", "pod", "from", "to"].map(|name| text(&self.packet[name]));
        print::line(format_args!(
            "sent {what} from {pod} {from} port {} to {to} port {}",
            self.packet["sport"], self.packet["port"]
        ));
        for step in &self.steps {
            let (port, direction) = (step.port(), text(&step.frame["direction"]));
            let answer = if step.is_answer { "answer " } else { "" };
            print::line(format_args!(
                "  {}  {}  {port} {answer}{direction}: {}",
                text(&step.frame["time"]),
                step.node,
                step.text()
            ));
        }
        let outcome = self.result();
        print::line(format_args!("  {}: {}", outcome.name(), outcome.why()));
    }
}

/// The capture of this switch: everything from or to the source port.
fn own_capture(request: &Request<'_>) -> String {
    let protocol =
        request.traces.first().map_or(6, |trace| trace["protocol"].as_u64().unwrap_or(6));
    let is_icmp = matches!(protocol, 1 | 58);
    // Both families' echoes are captured by the pod, which has the identifier nowhere else.
    let mut conditions = match is_icmp {
        true => vec![("pod", Some(request.from.to_owned()))],
        false => vec![
            ("protocol", Some(protocol.to_string())),
            ("port", request.sport.map(|port| port.to_string())),
        ],
    };
    conditions.extend(limits(request));
    Client::query("/v1/capture", &conditions)
}

/// The capture of another switch: everything of the server. The client may be translated.
fn other_capture(request: &Request<'_>) -> String {
    let protocol =
        request.traces.first().map_or(6, |trace| trace["protocol"].as_u64().unwrap_or(6));
    let is_icmp = matches!(protocol, 1 | 58);
    let mut conditions = match is_icmp {
        true => Vec::new(),
        false => vec![("protocol", Some(protocol.to_string()))],
    };
    // Of one family the address is a condition; with both, marks tell the packets from others.
    if let [trace] = request.traces {
        let backend = trace["backend"].as_str().and_then(|text| text.parse().ok());
        let backend: Option<std::net::SocketAddr> = backend;
        let host = backend.map_or_else(|| text(&trace["to"]), |backend| backend.ip().to_string());
        conditions.push(("host", Some(host)));
        if !is_icmp {
            let port = backend.map_or(request.port, |backend| backend.port());
            conditions.push(("port", Some(port.to_string())));
        }
    }
    conditions.extend(limits(request));
    Client::query("/v1/capture", &conditions)
}

fn limits(request: &Request<'_>) -> [(&'static str, Option<String>); 4] {
    [
        ("format", Some("json".to_owned())),
        // It begins before the packet is sent: when all have begun.
        ("seconds", Some((request.wait + BEGIN.as_secs()).to_string())),
        ("count", Some(MAX_FRAMES.to_string())),
        ("snaplen", Some(SNAP_LEN.to_string())),
    ]
}

/// Captures on a thread of its own until the capture ends or nobody listens any more.
fn watch(client: Client, uri: String, watcher: usize, reports: Sender<Report>) {
    thread::spawn(move || {
        let capture = || {
            client.lines(&uri, |line| {
                let line = serde_json::from_str(line).unwrap_or(Value::Null);
                reports.send(Report::Line { watcher, line }).is_ok()
            })
        };
        // A capture whose client has just gone, such as that of the command before, ends a moment later.
        let is_running = |result: &Result<(), ClientError>| matches!(result, Err(ClientError::Refused(why)) if why.starts_with("another capture"));
        let mut result = capture();
        for _ in 0..RETRIES {
            if !is_running(&result) {
                break;
            }
            thread::sleep(RETRY_PAUSE);
            result = capture();
        }
        // Without a listener there is nobody to tell.
        let _ = reports.send(Report::Ended { watcher, result });
    });
}

/// Sends the packets and follows them.
///
/// # Errors
/// A switch does not capture, or does not send.
pub(super) fn send(client: &Client, request: &Request<'_>) -> Result<Vec<Way>, Failure> {
    let (sender, reports) = channel();
    watch(client.clone(), own_capture(request), 0, sender.clone());
    for (number, path) in request.also.iter().enumerate() {
        watch(Client::new(path), other_capture(request), number + 1, sender.clone());
    }
    drop(sender);
    let nodes = begun(&reports, request.also)?;
    let answer: Value = client.post(&request.uri)?;
    let packets = answer["sent"].as_array().cloned().unwrap_or_default();
    let has_others = !request.also.is_empty();
    let ways = packets.into_iter().map(|packet| {
        let servers = servers(&packet, request.traces);
        Way { packet, servers, steps: Vec::new(), has_others }
    });
    let mut ways: Vec<Way> = ways.collect();
    follow(&reports, &nodes, Duration::from_secs(request.wait) + GRACE, &mut ways);
    ways.iter_mut().for_each(Way::sort);
    Ok(ways)
}

/// Where answers to a packet come from.
fn servers(packet: &Value, traces: &[Value]) -> Vec<(String, Value)> {
    let is_its = |trace: &&Value| trace["from"] == packet["from"] && trace["to"] == packet["to"];
    let backends = traces.iter().filter(is_its).filter_map(|trace| trace["backend"].as_str());
    let backends = backends.filter_map(|text| text.parse::<std::net::SocketAddr>().ok());
    let backends = backends.map(|backend| (backend.ip().to_string(), backend.port().into()));
    std::iter::once((text(&packet["to"]), packet["port"].clone())).chain(backends).collect()
}

/// Waits until all captures have begun; returns their nodes.
fn begun(reports: &Receiver<Report>, also: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut nodes: Vec<Option<String>> = vec![None; also.len() + 1];
    let clock = Clock::start();
    while nodes.iter().any(Option::is_none) {
        let left = BEGIN.saturating_sub(clock.now().since(Instant::ZERO));
        match reports.recv_timeout(left) {
            Ok(Report::Line { watcher, line }) => {
                if let (Some(node), Some(place)) = (line["node"].as_str(), nodes.get_mut(watcher)) {
                    *place = Some(node.to_owned());
                }
            }
            Ok(Report::Ended { watcher, result }) => {
                let whose = watcher.checked_sub(1).and_then(|number| also.get(number));
                let whose =
                    whose.map_or_else(String::new, |path| format!("--also {}: ", path.display()));
                return Err(match result {
                    Ok(()) => Failure::Setup(format!("{whose}the capture ended before it began")),
                    Err(ClientError::Refused(reason)) => Failure::Input(format!("{whose}{reason}")),
                    Err(error) => Failure::Setup(format!("{whose}{error}")),
                });
            }
            Err(_) => return Err(Failure::Setup("a capture does not begin".to_owned())),
        }
    }
    Ok(nodes.into_iter().flatten().collect())
}

/// Takes frames until all packets have an answer, or the captures have ended.
fn follow(reports: &Receiver<Report>, nodes: &[String], time: Duration, ways: &mut [Way]) {
    let clock = Clock::start();
    loop {
        // The other switches' frames come later than the answer: they are waited for.
        if nodes.len() == 1 && ways.iter().all(Way::is_over) {
            return;
        }
        let left = time.saturating_sub(clock.now().since(Instant::ZERO));
        match reports.recv_timeout(left) {
            Ok(Report::Line { watcher, line }) => {
                let node = nodes.get(watcher).map_or("", String::as_str);
                for way in ways.iter_mut() {
                    way.offer(node, watcher == 0, &line);
                }
                warn_of_loss(node, &line);
            }
            Ok(Report::Ended { watcher, result: Err(error) }) => {
                let node = nodes.get(watcher).map_or("", String::as_str);
                print::note(format_args!("{node}: the capture broke off: {error}"));
            }
            Ok(Report::Ended { result: Ok(()), .. }) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn warn_of_loss(node: &str, line: &Value) {
    if let Some(lost) = line["lost"].as_u64().filter(|lost| *lost > 0) {
        print::note(format_args!("{node}: {lost} frames were lost, the packet may be among them"));
    }
    if line["frames"].as_u64() >= Some(MAX_FRAMES) {
        print::note(format_args!("{node}: the capture is full, the packet may not be in it"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frame(port: &str, direction: &str, text: &str, marked: bool) -> Value {
        let (client, server) = (("10.1.0.2", 50_000), ("10.1.1.2", 80));
        let (bytes, (src, sport), (dst, dport)) = match marked {
            true => ("00aa1111bb2222", client, server),
            false => ("00", server, client),
        };
        json!({
            "time": "2026-01-01T00:00:00Z", "port": port, "direction": direction, "text": text,
            "is_tunnel": port == "uplink", "src": src, "sport": sport, "dst": dst, "dport": dport,
            "protocol": 6, "frame": bytes,
        })
    }

    fn way(has_others: bool, frames: &[(&str, Value)]) -> Way {
        let packet = json!({
            "from": "10.1.0.2", "to": "10.1.1.2", "protocol": 6, "sport": 50_000, "port": 80,
            "marks": ["aa1111", "bb2222"],
        });
        let trace = json!({"from": "10.1.0.2", "to": "10.1.1.2", "backend": "10.1.1.3:8080"});
        let servers = servers(&packet, &[trace]);
        let mut way = Way { packet, servers, steps: Vec::new(), has_others };
        for (node, frame) in frames {
            way.offer(node, *node == "n1", frame);
        }
        way.sort();
        way
    }

    #[test]
    fn the_result_is_where_the_packet_got_to() {
        let received = ("n1", frame("a/x", "received", "forwarded to uplink", true));
        let left = ("n1", frame("uplink", "sent", "sent, received by a/x", true));
        let there = ("n2", frame("uplink", "received", "forwarded to a/y", true));
        let delivered = ("n2", frame("a/y", "sent", "sent, received by uplink", true));
        let answer = ("n1", frame("a/x", "sent", "sent, received by uplink", false));
        let dropped = ("n2", frame("uplink", "received", "dropped: policy_ingress", true));
        let result = |has_others, frames: &[(&str, Value)]| way(has_others, frames).result().name();
        assert_eq!(result(false, &[]), "lost");
        assert_eq!(result(false, std::slice::from_ref(&received)), "lost");
        let here = [received, left];
        assert_eq!(result(false, &here), "left");
        assert_eq!(result(true, &here), "lost");
        let with = |more: &[(&'static str, Value)]| [&here[..], more].concat();
        assert_eq!(result(true, &with(std::slice::from_ref(&there))), "lost");
        assert_eq!(result(true, &with(&[there.clone(), delivered.clone()])), "delivered");
        assert_eq!(result(true, &with(&[there, delivered, answer.clone()])), "answered");
        assert_eq!(result(false, &with(&[answer])), "answered");
        assert_eq!(result(true, &with(&[dropped])), "dropped");
    }

    #[test]
    fn frames_of_others_are_left_alone() {
        let mut other = frame("a/x", "received", "forwarded to a/y", true);
        other["frame"] = "00aa1111".into();
        let way = way(false, &[("n1", other)]);
        assert!(way.steps.is_empty(), "one mark is not both");
        let answer = |src: &str, sport: u16| {
            let mut frame = frame("a/x", "sent", "sent, received by uplink", false);
            (frame["src"], frame["sport"]) = (src.into(), sport.into());
            self::way(false, &[("n1", frame)]).result().name()
        };
        assert_eq!(answer("10.1.1.2", 80), "answered");
        assert_eq!(answer("10.1.1.3", 8080), "answered", "the backend");
        assert_eq!(answer("10.1.1.2", 81), "lost", "another connection of the same port");
        assert_eq!(answer("10.1.1.4", 80), "lost");
    }

    #[test]
    fn source_ports_are_those_of_clients() {
        assert!((0..1000).all(|_| PORTS.contains(&source_port())));
    }
}
