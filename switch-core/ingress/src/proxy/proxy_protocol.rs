//! The PROXY protocol, versions 1 and 2 (HAProxy's specification): who a connection is from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 1, in bytes.
const MAX_V1: usize = 107;

/// The longest header of version 2 after its first 16 bytes, with its extensions.
const MAX_V2: usize = 4096;

/// Reads the header. Returns the client's address, or None if the header names none: a connection
/// of the load balancer itself, such as a health check. An error: the header is missing or
/// malformed, and the connection must be closed.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, Malformed> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.map_err(|_| Malformed)?;
    if start == SIGNATURE { read_v2(stream).await } else { read_v1(stream, &start).await }
}

/// The header is missing or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    start: &[u8],
) -> Result<Option<SocketAddr>, Malformed> {
    if !start.starts_with(b"PROXY ") {
        return Err(Malformed);
    }
    let mut line = start.to_vec();
    // Byte by byte: what follows belongs to the client.
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_V1 {
            return Err(Malformed);
        }
        line.push(stream.read_u8().await.map_err(|_| Malformed)?);
    }
    let line = str::from_utf8(&line[..line.len() - 2]).map_err(|_| Malformed)?;
    let words: Vec<&str> = line.split(' ').collect();
    let (from, port) = match *words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", "TCP4", from, to, port, to_port] => {
            to.parse::<Ipv4Addr>().map_err(|_| Malformed)?;
            to_port.parse::<u16>().map_err(|_| Malformed)?;
            (IpAddr::V4(from.parse().map_err(|_| Malformed)?), port)
        }
        ["PROXY", "TCP6", from, to, port, to_port] => {
            to.parse::<Ipv6Addr>().map_err(|_| Malformed)?;
            to_port.parse::<u16>().map_err(|_| Malformed)?;
            (IpAddr::V6(from.parse().map_err(|_| Malformed)?), port)
        }
        _ => return Err(Malformed),
    };
    Ok(Some(SocketAddr::new(from, port.parse().map_err(|_| Malformed)?)))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Malformed> {
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await.map_err(|_| Malformed)?;
    let [command, family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2 {
        return Err(Malformed);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.map_err(|_| Malformed)?;
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match (command, family) {
        // LOCAL.
        (0x20, _) => Ok(None),
        (0x21, 0x11) if length >= 12 => {
            let from: [u8; 4] = rest[..4].try_into().map_err(|_| Malformed)?;
            Ok(Some(SocketAddr::new(from.into(), port(8))))
        }
        (0x21, 0x21) if length >= 36 => {
            let from: [u8; 16] = rest[..16].try_into().map_err(|_| Malformed)?;
            Ok(Some(SocketAddr::new(from.into(), port(32))))
        }
        // Other families, such as Unix sockets: accepted, without an address.
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Ok(None),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result, and what is left for the client's protocol.
    fn parse(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, Malformed>, &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let result = runtime.block_on(read(&mut bytes));
        (result, bytes)
    }

    #[test]
    fn version_1() {
        let from = |text: &str| Ok(Some(text.parse().unwrap()));
        let four = parse(b"PROXY TCP4 10.0.0.7 10.0.0.1 4711 80\r\nGET");
        assert_eq!(four, (from("10.0.0.7:4711"), &b"GET"[..]));
        let six = parse(b"PROXY TCP6 fd00::7 fd00::1 4711 80\r\n");
        assert_eq!(six.0, from("[fd00::7]:4711"));
        assert_eq!(parse(b"PROXY UNKNOWN\r\nGET"), (Ok(None), &b"GET"[..]));
        assert_eq!(parse(b"PROXY UNKNOWN a b c\r\n").0, Ok(None));
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 10.0.0.7 10.0.0.1 4711\r\n",
            b"PROXY TCP4 fd00::7 10.0.0.1 4711 80\r\n",
            b"PROXY TCP4 10.0.0.7 10.0.0.1 99999 80\r\n",
            b"PROXY UDP4 10.0.0.7 10.0.0.1 1 80\r\n",
            b"PROXY TCP4 10.0.0.7",
            &[b'P'; 200],
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat(),
        ] {
            assert_eq!(parse(bad).0, Err(Malformed), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn version_2() {
        let header = |command: u8, family: u8, rest: &[u8]| {
            let length = (rest.len() as u16).to_be_bytes();
            [&SIGNATURE[..], &[command, family], &length, rest, b"GET"].concat()
        };
        let v4 = [10, 0, 0, 7, 10, 0, 0, 1, 0x12, 0x67, 0, 80];
        let found = header(0x21, 0x11, &v4);
        assert_eq!(parse(&found), (Ok(Some("10.0.0.7:4711".parse().unwrap())), &b"GET"[..]));
        let extended = [&v4[..], &[4, 0, 1, 0]].concat();
        assert_eq!(parse(&header(0x21, 0x11, &extended)).1, b"GET");
        let mut v6 = [0; 36];
        (v6[0], v6[15], v6[33]) = (0xfd, 7, 9);
        assert_eq!(parse(&header(0x21, 0x21, &v6)).0, Ok(Some("[fd00::7]:9".parse().unwrap())));
        assert_eq!(parse(&header(0x20, 0x00, &[])).0, Ok(None));
        for bad in [
            header(0x21, 0x11, &v4[..11]),
            header(0x21, 0x21, &v4),
            header(0x31, 0x11, &v4),
            header(0x22, 0x11, &v4),
            header(0x21, 0x11, &[0; 5000]),
            SIGNATURE.to_vec(),
        ] {
            assert_eq!(parse(&bad).0, Err(Malformed));
        }
    }
}
