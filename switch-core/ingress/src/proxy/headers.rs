//! Header fields that the proxy removes and adds.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use podswitch_wire::cidr::Cidr;

pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const SCHEME: HeaderName = HeaderName::from_static("x-scheme");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes the fields of one connection (RFC 9110 section 7.6.1): those that `Connection` names,
/// too. `Connection` must not remove fields that the proxy itself sets or depends on.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| *name != header::HOST && *name != header::COOKIE)
        .collect();
    for name in named {
        headers.remove(name);
    }
    let is_te_trailers = headers.get(header::TE).is_some_and(|te| {
        te.to_str().is_ok_and(|te| te.split(',').any(|it| it.trim() == "trailers"))
    });
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if is_te_trailers {
        // gRPC needs it.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// The protocol that a request or response upgrades to. `h2c` is refused: the proxy speaks HTTP/2
/// itself, and requests in a tunnel would pass by its rules.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_named = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(header::UPGRADE).filter(|_| is_named)?;
    let text = protocol.to_str().ok()?.trim();
    let is_h2c = text.split(',').any(|it| it.trim().to_ascii_lowercase().starts_with("h2"));
    (!is_h2c && !text.is_empty()).then(|| protocol.clone())
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) peer: SocketAddr,
    /// The local address of the connection.
    pub(super) address: IpAddr,
    pub(super) is_tls: bool,
    /// Whether the peer's `X-Forwarded-*` are believed.
    pub(super) is_trusted: bool,
    pub(super) port: u16,
}

/// The client: the peer, or the last address in `X-Forwarded-For` that is not a trusted proxy.
pub(super) fn client(headers: &HeaderMap, origin: &Origin, trusted: &[Cidr]) -> IpAddr {
    let peer = origin.peer.ip().to_canonical();
    if !origin.is_trusted {
        return peer;
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    let mut last = peer;
    for text in lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        // What stands left of something unknown is not believed.
        let Some(address) = address(text) else { return last };
        last = address;
        if !trusted.iter().any(|range| range.contains(last)) {
            return last;
        }
    }
    last
}

/// An address, also with a port.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text.trim_ascii()).ok()?;
    let address = text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

/// Several `Cookie` fields become one: HTTP/1.1 has no other form (RFC 9113 section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(value) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, value);
    }
}

/// The fields that the proxy sets.
const SET: [HeaderName; 8] = [
    FORWARDED_FOR,
    REAL_IP,
    FORWARDED_HOST,
    FORWARDED_PORT,
    FORWARDED_PROTO,
    FORWARDED_SCHEME,
    SCHEME,
    REQUEST_ID,
];

/// Removes fields that some endpoints take for those of the proxy, such as `X_Forwarded_For`.
fn remove_look_alikes(headers: &mut HeaderMap) {
    let is_alike = |name: &&HeaderName| {
        let text = name.as_str();
        text.contains('_') && SET.iter().any(|set| *set == *text.replace('_', "-"))
    };
    let names: Vec<_> = headers.keys().filter(is_alike).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Sets `X-Forwarded-*`, `X-Real-IP` and `X-Request-ID`; what an untrusted client sent is replaced.
pub(super) fn forwarded(
    headers: &mut HeaderMap,
    origin: &Origin,
    client: IpAddr,
    authority: &str,
    request_id: &str,
) {
    let peer = origin.peer.ip().to_canonical();
    // Several lines are one list (RFC 9110 section 5.3).
    let earlier = headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
    let own = peer.to_string();
    let mut chain: Vec<_> = earlier.filter(|_| origin.is_trusted).collect();
    chain.push(own.as_bytes());
    let chain = HeaderValue::from_bytes(&chain.join(&b", "[..]));
    headers.remove(FORWARDED_FOR);
    if let Ok(chain) = chain {
        headers.insert(FORWARDED_FOR, chain);
    }
    headers.remove(header::FORWARDED);
    remove_look_alikes(headers);
    let mut set = |name: HeaderName, text: &str, keep: bool| {
        let is_kept = keep && origin.is_trusted && headers.contains_key(&name);
        if !is_kept && let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    let scheme = if origin.is_tls { "https" } else { "http" };
    set(REAL_IP, &client.to_string(), false);
    set(FORWARDED_HOST, authority, true);
    set(FORWARDED_PORT, &origin.port.to_string(), true);
    set(FORWARDED_PROTO, scheme, true);
    set(FORWARDED_SCHEME, scheme, true);
    set(SCHEME, scheme, true);
    set(REQUEST_ID, request_id, false);
}

/// Whether a trusted proxy says that the client spoke TLS.
pub(super) fn is_forwarded_tls(headers: &HeaderMap, origin: &Origin) -> bool {
    origin.is_trusted && headers.get(FORWARDED_PROTO).is_some_and(|proto| proto == "https")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(is_trusted: bool) -> String {
        let mut headers = HeaderMap::new();
        for line in ["192.0.2.1, 192.0.2.2", "192.0.2.3"] {
            headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
        }
        let peer = SocketAddr::from(([10, 0, 0, 1], 4711));
        let address = peer.ip();
        let origin = Origin { peer, address, is_tls: false, is_trusted, port: 80 };
        forwarded(&mut headers, &origin, peer.ip(), "a.test", "1");
        let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
        assert_eq!(lines.len(), 1);
        lines[0].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_client_is_right_of_what_cannot_be_read() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let origin = Origin {
            peer: SocketAddr::from(([10, 0, 0, 1], 4711)),
            address: IpAddr::from([10, 0, 0, 9]),
            is_tls: false,
            is_trusted: true,
            port: 80,
        };
        let cases: [(&[&[u8]], &str); 8] = [
            (&[b"192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            (&[b"192.0.2.1:4000"], "192.0.2.1"),
            (&[b"[2001:db8::1]:4000,10.0.0.3"], "2001:db8::1"),
            (&[b"192.0.2.1", b"\xff, 192.0.2.2"], "192.0.2.2"),
            (&[b"192.0.2.1", b"\xff"], "10.0.0.1"),
            (&[b"192.0.2.1, x, 10.0.0.2"], "10.0.0.2"),
            (&[b"::ffff:192.0.2.1"], "192.0.2.1"),
            (&[], "10.0.0.1"),
        ];
        for (lines, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
            }
            assert_eq!(client(&headers, &origin, &trusted).to_string(), expected, "{lines:?}");
            let own: &[u8] = b"10.0.0.1";
            let chain: Vec<_> = lines.iter().copied().chain([own]).collect();
            forwarded(&mut headers, &origin, origin.peer.ip(), "a.test", "1");
            assert_eq!(headers[FORWARDED_FOR].as_bytes(), chain.join(&b", "[..]));
        }
    }

    #[test]
    fn look_alikes_are_removed_and_cookies_joined() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x_forwarded_for", "1"),
            ("x-forwarded_proto", "https"),
            ("x_other", "2"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_look_alikes(&mut headers);
        join_cookies(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["x_other"], "2");
        assert_eq!(headers[header::COOKIE], "a=1; b=2");
    }

    #[test]
    fn all_lines_of_a_trusted_proxy_are_passed_on() {
        assert_eq!(chain(true), "192.0.2.1, 192.0.2.2, 192.0.2.3, 10.0.0.1");
        assert_eq!(chain(false), "10.0.0.1");
    }
}
