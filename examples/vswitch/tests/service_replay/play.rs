//! A replay that is written as a conversation: each step sends frames and sees at once what left
//! because of them. Behind it the whole story so far is replayed again, which gives the same
//! answers as before: replay is deterministic, and outputs carry the time of what caused them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use podswitch_wire::checksum::verify_l4;
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::{Network, Parsed, Quoted, parse, parse_quoted};
use serde_json::Value;

use crate::world::{Host, SERVICE_RANGES};
use podswitch_testkit::rig::frames as bytes;
use podswitch_vswitch_testkit::{frames, replay};

/// TCP flags.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const SYN_ACK: u8 = SYN | ACK;

/// A frame that left.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The port that it left by, as its capture is named (`a_x`).
    pub(crate) port: String,
    pub(crate) frame: Vec<u8>,
    pub(crate) parsed: Parsed,
}

impl Seen {
    fn read(port: &str, frame: Vec<u8>, lenient: bool) -> Self {
        let parsed = parse(&frame, &HashKey::new(1)).expect("what leaves is well formed");
        let good = lenient || verify_l4(&frame, &parsed);
        assert!(good, "layer-4 checksum of what left {port}: {parsed:?}");
        if parsed.network == Network::Ipv4 {
            let l3 = usize::from(parsed.l3);
            assert_eq!(bytes::checksum(&[&frame[l3..l3 + 20]]), 0, "header checksum at {port}");
        }
        Self { port: port.to_owned(), frame, parsed }
    }

    pub(crate) fn from(&self) -> SocketAddr {
        SocketAddr::new(self.parsed.key.src_addr(), self.parsed.key.src_port)
    }

    pub(crate) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.parsed.key.dst_addr(), self.parsed.key.dst_port)
    }

    /// What it carries to another node: the frame behind IPv4, UDP and VXLAN headers, without
    /// options (RFC 7348 §5).
    pub(crate) fn inner(&self) -> Self {
        let payload = usize::from(self.parsed.payload);
        assert_eq!((self.port.as_str(), self.to().port()), ("uplink", 4789), "no tunnel packet");
        Self::read("inside", self.frame[payload + 8..].to_vec(), false)
    }

    /// The network-layer packet.
    pub(crate) fn packet(&self) -> &[u8] {
        &self.frame[usize::from(self.parsed.l3)..self.parsed.end as usize]
    }

    /// What follows the network-layer header.
    pub(crate) fn message(&self) -> &[u8] {
        &self.frame[usize::from(self.parsed.l4)..self.parsed.end as usize]
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.parsed.key.proto == proto::TCP && self.parsed.tcp_flags & RST != 0
    }

    /// What an ICMP error quotes, which must have a good checksum of its own if it is whole.
    pub(crate) fn quoted(&self) -> Quoted {
        let quote = &self.frame[usize::from(self.parsed.payload)..self.parsed.end as usize];
        let quoted = parse_quoted(quote, self.parsed.network, &HashKey::new(1)).expect("a quote");
        if quote.len() >= quoted.total_len as usize {
            let ethertype = if quoted.key.src_addr().is_ipv4() { 0x0800 } else { 0x86dd };
            let frame = [&[0; 12][..], &u16::to_be_bytes(ethertype), quote].concat();
            let inner = parse(&frame, &HashKey::new(1)).expect("the quoted header holds");
            assert!(verify_l4(&frame, &inner), "inner checksum");
        }
        quoted
    }
}

/// What became of one frame that was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// What left at its time, in the order of ports.
    pub(crate) left: Vec<Seen>,
    /// Why it did not go on itself, if it did not.
    pub(crate) drop: Option<Value>,
}

impl Outcome {
    /// It went on, as one frame by this port.
    #[track_caller]
    pub(crate) fn by(&self, port: &str) -> Seen {
        let seen = self.sent();
        assert_eq!(seen.port, port, "{self:?}");
        seen
    }

    /// It went on, as one frame.
    #[track_caller]
    pub(crate) fn sent(&self) -> Seen {
        assert!(self.drop.is_none() && self.left.len() == 1, "{self:?}");
        self.left[0].clone()
    }

    /// It went nowhere, and nobody was told.
    #[track_caller]
    pub(crate) fn silent(&self, reason: &str) {
        assert_eq!(self.reason(), Some(reason), "{self:?}");
        assert!(self.left.is_empty(), "{self:?}");
    }

    /// It went nowhere, and this is what its sender was told by the one frame that left.
    #[track_caller]
    pub(crate) fn told(&self, reason: &str) -> Seen {
        assert_eq!(self.reason(), Some(reason), "{self:?}");
        assert_eq!(self.left.len(), 1, "{self:?}");
        self.left[0].clone()
    }

    /// Refused: a reset to TCP, port unreachable to all others, from where it was sent to.
    #[track_caller]
    pub(crate) fn refused(&self, reason: &str, sent: &Sent) {
        let told = self.told(reason);
        assert_eq!(told.parsed.key.dst_addr(), sent.from.ip());
        if sent.protocol == proto::TCP {
            assert!(told.is_reset(), "{told:?}");
            assert_eq!((told.from(), told.to()), (sent.to, sent.from));
        } else {
            let unreachable: [u8; 2] = if sent.from.is_ipv4() { [3, 3] } else { [1, 4] };
            assert_eq!(told.message()[..2], unreachable);
            assert_eq!(told.parsed.key.src_addr(), sent.to.ip());
            let key = told.quoted().key;
            let ends = [(key.src_addr(), key.src_port), (key.dst_addr(), key.dst_port)];
            assert_eq!(ends.map(SocketAddr::from), [sent.from, sent.to]);
        }
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.drop.as_ref().map(|drop| drop["reason"].as_str().expect("a name"))
    }

    pub(crate) fn object(&self) -> Option<&str> {
        self.drop.as_ref().and_then(|drop| drop["object"].as_str())
    }
}

/// A packet to be sent: its ends, for what is said about it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) protocol: u8,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The network-layer packet.
    pub(crate) packet: Vec<u8>,
}

impl Sent {
    fn new(protocol: u8, from: SocketAddr, to: SocketAddr, ttl: u8, message: &[u8]) -> Self {
        let packet = bytes::ip(from.ip(), to.ip(), protocol, ttl, None, message);
        Self { protocol, from, to, packet }
    }
}

/// A UDP datagram.
pub(crate) fn udp(from: SocketAddr, to: SocketAddr) -> Sent {
    udp_with(from, to, 64, b"datagram")
}

/// A UDP datagram with so much TTL left.
pub(crate) fn udp_with(from: SocketAddr, to: SocketAddr, ttl: u8, payload: &[u8]) -> Sent {
    let message = bytes::udp(from.ip(), to.ip(), (from.port(), to.port()), payload);
    Sent::new(proto::UDP, from, to, ttl, &message)
}

/// A TCP segment: sequence and acknowledgment number, flags.
pub(crate) fn tcp(from: SocketAddr, to: SocketAddr, fields: (u32, u32, u8)) -> Sent {
    tcp_with(from, to, fields, b"")
}

/// A TCP segment with data.
pub(crate) fn tcp_with(
    from: SocketAddr,
    to: SocketAddr,
    fields: (u32, u32, u8),
    data: &[u8],
) -> Sent {
    let message = bytes::tcp(from.ip(), to.ip(), (from.port(), to.port()), fields, data);
    Sent::new(proto::TCP, from, to, 64, &message)
}

/// An SCTP packet with an INIT chunk (RFC 9260 §3.3.2).
pub(crate) fn sctp(from: SocketAddr, to: SocketAddr) -> Sent {
    sctp_with(from, to, 0, &[1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9])
}

/// An SCTP packet of an association: four bytes of data (RFC 9260 §3.3.1).
pub(crate) fn sctp_data(from: SocketAddr, to: SocketAddr) -> Sent {
    let chunk = [0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b'd', b'a', b't', b'a'];
    sctp_with(from, to, 7, &chunk)
}

fn sctp_with(from: SocketAddr, to: SocketAddr, tag: u32, chunk: &[u8]) -> Sent {
    let mut message = Vec::new();
    message.extend(from.port().to_be_bytes());
    message.extend(to.port().to_be_bytes());
    message.extend(tag.to_be_bytes());
    // The checksum, to come.
    message.extend([0; 4]);
    message.extend(chunk);
    let sum = podswitch_wire::checksum::crc32c(&message);
    message[8..12].copy_from_slice(&sum.to_le_bytes());
    Sent::new(proto::SCTP, from, to, 64, &message)
}

/// The first packet of a protocol.
pub(crate) fn first(protocol: u8, from: SocketAddr, to: SocketAddr) -> Sent {
    match protocol {
        proto::TCP => tcp(from, to, (1000, 0, SYN)),
        proto::UDP => udp(from, to),
        proto::SCTP => sctp(from, to),
        other => panic!("protocol {other}"),
    }
}

/// An ICMP message from one address to another.
pub(crate) fn icmp(from: IpAddr, to: IpAddr, head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Sent {
    let message = bytes::icmp(from, to, head, rest, body);
    let ends = [from, to].map(|address| SocketAddr::new(address, 0));
    Sent::new(bytes::icmp_protocol(from), ends[0], ends[1], 64, &message)
}

/// The whole story of one test.
pub(crate) struct Play {
    state: String,
    later: Vec<(f64, String)>,
    options: Vec<String>,
    captures: BTreeMap<String, Vec<(f64, Vec<u8>)>>,
    /// Milliseconds since the beginning.
    now: u64,
    /// What leaves may have a wrong checksum.
    lenient: bool,
}

/// The first frame's time in every capture.
const BEGIN: f64 = 1000.0;

impl Play {
    /// From this state, with the cluster's Service ranges known.
    pub(crate) fn new(state: &str) -> Self {
        let options = SERVICE_RANGES.iter().flat_map(|range| ["--service-cidr", range]);
        Self {
            state: state.to_owned(),
            later: Vec::new(),
            options: options.map(str::to_owned).collect(),
            captures: BTreeMap::new(),
            now: 0,
            lenient: false,
        }
    }

    /// With more options for `replay`.
    pub(crate) fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&text| text.to_owned()));
        self
    }

    /// So many seconds pass.
    pub(crate) fn pass(&mut self, seconds: f64) {
        self.now += (seconds * 1000.0) as u64;
    }

    /// Another state takes the place of the one in force.
    pub(crate) fn change(&mut self, state: &str) {
        // A swap comes before frames of its time; a millisecond earlier nothing happens.
        self.now += 1;
        assert!(!self.captures.is_empty(), "swaps count from the first frame");
        self.later.push((self.now as f64 / 1000.0, state.to_owned()));
        self.now += 1;
    }

    /// One packet from somebody.
    #[track_caller]
    pub(crate) fn send(&mut self, host: Host, sent: &Sent) -> Outcome {
        self.send_all(host, std::slice::from_ref(sent)).remove(0)
    }

    /// Packets from somebody, a millisecond between them.
    #[track_caller]
    pub(crate) fn send_all(&mut self, host: Host, sent: &[Sent]) -> Vec<Outcome> {
        let packets = sent.iter().map(|sent| sent.packet.clone()).collect();
        self.send_packets(host, packets)
    }

    /// A packet with a wrong layer-4 checksum: by which ports it left with it still wrong.
    #[track_caller]
    pub(crate) fn send_broken(&mut self, host: Host, sent: &Sent) -> Vec<String> {
        self.lenient = true;
        let outcome = self.send(host, sent);
        let wrong = |left: &&Seen| !verify_l4(&left.frame, &left.parsed);
        outcome.left.iter().filter(wrong).map(|left| left.port.clone()).collect()
    }

    /// As [`send_all`](Self::send_all), of network-layer packets.
    #[track_caller]
    pub(crate) fn send_packets(&mut self, host: Host, packets: Vec<Vec<u8>>) -> Vec<Outcome> {
        let mut asked = Vec::new();
        for packet in packets {
            let capture = self.captures.entry(host.port()).or_default();
            capture.push((BEGIN + self.now as f64 / 1000.0, host.frame(&packet)));
            asked.push((self.now, capture.len() as u64));
            self.now += 1;
        }
        self.replay(&host.port(), &asked)
    }

    /// Replays all so far, and gives what became of the frames of `port` at these times.
    #[track_caller]
    fn replay(&self, port: &str, asked: &[(u64, u64)]) -> Vec<Outcome> {
        let later = self.later.iter().map(|(seconds, text)| (*seconds, &**text));
        let captures = self.captures.iter().map(|(port, frames)| (&**port, &**frames));
        let folder = replay(&self.state, later, captures, &self.options);
        let mut outcomes = vec![Outcome::default(); asked.len()];
        let mut at_time: BTreeMap<u64, usize> = BTreeMap::new();
        at_time.extend(asked.iter().enumerate().map(|(at, (time, _))| (*time, at)));
        let files = fs::read_dir(folder.path("out")).expect("a folder");
        let mut captures: Vec<_> = files
            .map(|file| file.expect("a file").path())
            .filter(|path| path.extension().is_some_and(|end| end == "pcap"))
            .collect();
        captures.sort();
        for path in captures {
            let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
            for (time, frame) in frames(&path) {
                let time = ((time - BEGIN) * 1000.0).round() as u64;
                if let Some(&at) = at_time.get(&time) {
                    outcomes[at].left.push(Seen::read(&name, frame, self.lenient));
                }
            }
        }
        let drops = fs::read_to_string(folder.path("out/drops.jsonl")).expect("a file");
        for line in drops.lines() {
            let drop: Value = serde_json::from_str(line).expect("an object a line");
            let number = drop["frame"].as_u64().expect("a number");
            if drop["port"] == port
                && let Some(at) = asked.iter().position(|(_, n)| *n == number)
            {
                assert!(outcomes[at].drop.replace(drop).is_none(), "a frame dropped twice");
            }
        }
        outcomes
    }
}

/// A first packet from `client` to `to` and its answer: the client sees whom it asked. Gives the
/// address that the backend saw.
#[track_caller]
pub(crate) fn round_trip(
    play: &mut Play,
    protocol: u8,
    (client, from): (Host, SocketAddr),
    to: SocketAddr,
    (backend, target): (Host, u16),
) -> SocketAddr {
    let seen = play.send(client, &first(protocol, from, to)).by(&backend.file());
    let server = backend.at(from.is_ipv6(), target);
    assert_eq!(seen.to(), server);
    assert_eq!(seen.parsed.ttl, 63);
    let answer = match protocol {
        proto::TCP => tcp(server, seen.from(), (5000, 1001, SYN_ACK)),
        _ => first(protocol, server, seen.from()),
    };
    let heard = play.send(backend, &answer).by(&client.file());
    assert_eq!((heard.from(), heard.to()), (to, from));
    // Back to whoever sent the question.
    assert_eq!(heard.frame[..6], client.frame(&answer.packet)[6..12]);
    seen.from()
}
