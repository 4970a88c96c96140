//! Traffic through real sockets. A socket belongs to the namespace in which it was opened, whatever
//! thread uses it afterwards.

use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::thread;
use std::time::Duration;

use podswitch_core::time::Clock;
use podswitch_linux::NetNs;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

/// The timeout for everything, on an overloaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for a datagram before it is sent again: the network may lose it.
pub(super) const RETRY: Duration = Duration::from_millis(700);
pub(super) const TRIES: usize = 4;

/// A result, or what went wrong.
pub(super) type Outcome<T> = Result<T, String>;

/// Both ends of a TCP connection, and the client's address as the server sees it.
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    pub(super) peer: IpAddr,
}

/// Opens something in a namespace.
pub(super) fn open<T: Send>(
    namespace: &NetNs,
    f: impl FnOnce() -> io::Result<T> + Send,
) -> Outcome<T> {
    namespace.enter(f).map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// Connects from one namespace to an address of another.
pub(super) fn connect(from: &NetNs, to: &NetNs, address: IpAddr) -> Outcome<Connection> {
    let listener = open(to, || TcpListener::bind((address, 0)))?;
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(PATIENCE))
        .map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let client = open(from, || TcpStream::connect_timeout(&address, PATIENCE))
        .map_err(|e| format!("connect to {address}: {e}"))?;
    let (server, peer) = listener.accept().map_err(|e| format!("accept: {e}"))?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    }
    Ok(Connection { client, server, peer: peer.ip() })
}

/// Sends bytes over TCP and has the other end echo them unchanged. Returns the client's address as
/// the server sees it.
pub(super) fn tcp(from: &NetNs, to: &NetNs, address: IpAddr, bytes: usize) -> Outcome<IpAddr> {
    let Connection { client, server, peer } = connect(from, to, address)?;
    let message = pattern(bytes);
    let back = thread::scope(|scope| {
        scope.spawn(|| echo(&server));
        scope.spawn(|| {
            // The reader reports errors.
            let _ = (&client).write_all(&message).and_then(|()| client.shutdown(Shutdown::Write));
        });
        let mut back = Vec::with_capacity(bytes);
        (&client).read_to_end(&mut back).map(|_| back).map_err(|e| format!("read: {e}"))
    })?;
    match back == message {
        true => Ok(peer),
        false => Err(format!("{} of {bytes} bytes came back, or not as they were", back.len())),
    }
}

/// Echoes data until the stream ends.
pub(super) fn echo(mut stream: &TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Sends a datagram and has it echoed. Returns the sender's address as the other end sees it.
pub(super) fn udp(from: &NetNs, to: &NetNs, address: IpAddr, bytes: usize) -> Outcome<IpAddr> {
    let server = open(to, || UdpSocket::bind((address, 0)))?;
    let address = server.local_addr().map_err(|e| e.to_string())?;
    let client = open(from, || UdpSocket::bind((unspecified(address.ip()), 0)))?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(RETRY)).map_err(|e| e.to_string())?;
    }
    let (message, mut buffer) = (pattern(bytes), vec![0; 1 << 16]);
    let mut outcome = Err("never sent".to_owned());
    for _ in 0..TRIES {
        outcome = exchange(&client, &server, address, &message, &mut buffer);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn exchange(
    client: &UdpSocket,
    server: &UdpSocket,
    address: SocketAddr,
    message: &[u8],
    buffer: &mut [u8],
) -> Outcome<IpAddr> {
    client.send_to(message, address).map_err(|e| format!("send: {e}"))?;
    let (count, peer) = server.recv_from(buffer).map_err(|e| format!("nothing arrived: {e}"))?;
    if &buffer[..count] != message {
        return Err(format!("{count} bytes arrived, not those that were sent"));
    }
    server.send_to(message, peer).map_err(|e| format!("send back: {e}"))?;
    let (count, _) = client.recv_from(buffer).map_err(|e| format!("nothing came back: {e}"))?;
    if &buffer[..count] != message {
        return Err(format!("{count} bytes came back, not those that were sent"));
    }
    Ok(peer.ip())
}

/// The answer to an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    /// A reply, with its TTL where it is visible (IPv4).
    Reply(Option<u8>),
    /// A router on the way reports that the TTL is exceeded.
    Expired(IpAddr),
}

/// Sends echo requests until one is answered.
pub(super) fn ping(from: &NetNs, to: IpAddr, ttl: Option<u8>) -> Outcome<Echo> {
    let socket = open(from, || raw_icmp(to, ttl))?;
    socket.set_read_timeout(Some(RETRY / 4)).map_err(|e| e.to_string())?;
    let clock = Clock::start();
    let mut buffer = [0; 2048];
    for sequence in 0..TRIES as u16 {
        let request = echo_request(to.is_ipv6(), sequence);
        socket.send_to(&request, (to, 0)).map_err(|e| format!("send: {e}"))?;
        let sent = clock.now();
        while clock.now().since(sent) < RETRY {
            let Ok((count, who)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(echo) = read_icmp(&buffer[..count], to, who.ip()) {
                return Ok(echo);
            }
        }
    }
    Err("no answer".to_owned())
}

/// A raw ICMP socket, used through the type of a UDP socket: both send to and receive from
/// addresses.
fn raw_icmp(to: IpAddr, ttl: Option<u8>) -> io::Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    match (to, ttl) {
        (IpAddr::V4(_), Some(ttl)) => sockopt::set_ip_ttl(&socket, u32::from(ttl))?,
        (IpAddr::V6(_), Some(ttl)) => sockopt::set_ipv6_unicast_hops(&socket, Some(ttl))?,
        (_, None) => {}
    }
    Ok(socket.into())
}

const IDENTIFIER: [u8; 2] = *b"ps";

fn echo_request(ipv6: bool, sequence: u16) -> Vec<u8> {
    let mut request = vec![if ipv6 { 128 } else { 8 }, 0, 0, 0];
    request.extend_from_slice(&IDENTIFIER);
    request.extend_from_slice(&sequence.to_be_bytes());
    request.extend_from_slice(&[0x5a; 56]);
    if !ipv6 {
        // For IPv6 the kernel does it.
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&request);
        request[2..4].copy_from_slice(&sum.ones_complement().to_be().to_be_bytes());
    }
    request
}

fn read_icmp(packet: &[u8], to: IpAddr, who: IpAddr) -> Option<Echo> {
    let (message, ttl) = match to {
        IpAddr::V4(_) => {
            let header = usize::from(packet.first()? & 15) * 4;
            (packet.get(header..)?, packet.get(8).copied())
        }
        IpAddr::V6(_) => (packet, None),
    };
    match (to, *message.first()?) {
        (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129) => {
            let ours = message.get(4..6)? == IDENTIFIER && who == to;
            ours.then_some(Echo::Reply(ttl))
        }
        (IpAddr::V4(_), 11) | (IpAddr::V6(_), 3) => Some(Echo::Expired(who)),
        _ => None,
    }
}

/// The unspecified address of a family.
pub(super) fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Bytes in which no two sections are equal.
pub(super) fn pattern(bytes: usize) -> Vec<u8> {
    let mut word = 0x9e37_79b9_u32;
    let next = |_| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (word >> 24) as u8
    };
    (0..bytes).map(next).collect()
}
