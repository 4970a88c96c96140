//! What the fuzzer feeds: a request's head, through everything that the proxy does with it.

use std::net::IpAddr;

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, Uri, Version, header};

use super::client_stream;
use super::headers::{self, Origin};
use super::request::Asked;
use crate::path::normalise;

/// Reads a byte of choices, and then the bytes of a head as a client sends them.
///
/// # Panics
/// A head is understood in two ways, or what an endpoint would get breaks a rule.
pub fn head(input: &[u8]) {
    let Some((choices, text)) = input.split_first() else { return };
    // What is found does not depend on how the bytes arrive.
    let whole = client_stream::scanned(text, usize::MAX);
    for part in [1, 3] {
        assert_eq!(client_stream::scanned(text, part), whole, "in parts of {part}");
    }
    let version = match choices & 3 {
        0 => Version::HTTP_10,
        1 => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let origin = Origin {
        peer: ([192, 0, 2, 1], 4096).into(),
        address: [192, 0, 2, 2].into(),
        is_tls: choices & 4 != 0,
        is_trusted: choices & 8 != 0,
        port: 8443,
    };
    if let Some(parts) = parts(text, version) {
        request(parts, &origin);
    }
}

/// A head as hyper gives it, or None where hyper would refuse it.
fn parts(text: &[u8], version: Version) -> Option<Parts> {
    let mut lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii_end());
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut request = Request::builder().version(version).method(method);
    request = request.uri(Uri::try_from(target).ok()?);
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request = request.header(name, value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

fn request(mut parts: Parts, origin: &Origin) {
    let asked = Asked::read(&parts);
    assert_eq!(asked, Asked::read(&parts));
    let Ok(asked) = asked else { return };
    let is_fit = |b: u8| {
        b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_' | b':')
    };
    let inner = asked.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    assert!(inner.unwrap_or(&asked.host).bytes().all(is_fit), "host {:?}", asked.host);
    assert!(asked.path.starts_with('/'), "path {:?}", asked.path);
    assert!(asked.path.split('/').all(|element| !matches!(element, "." | "..")), "{}", asked.path);
    assert_eq!(normalise(&asked.path).as_deref(), Ok(&*asked.path), "normal twice");
    assert!(asked.target(&asked.path).parse::<Uri>().is_ok(), "{asked:?}");
    if let Some(protocol) = headers::upgrade(&parts.headers) {
        assert!(!protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2"), "{protocol:?}");
    }
    let ranges = ["192.0.2.0/24".parse().expect("a range")];
    let client = headers::client(&parts.headers, origin, &ranges);
    let peer: IpAddr = origin.peer.ip();
    assert!(origin.is_trusted || client == peer, "the client {client} is made up");
    let headers = &mut parts.headers;
    headers::remove_hop_by_hop(headers);
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        assert!(!headers.contains_key(&name), "{name}");
    }
    headers::join_cookies(headers);
    assert!(headers.get_all(header::COOKIE).iter().count() <= 1);
    headers::forwarded(headers, origin, client, &asked.authority, "id");
    let mut chain = headers.get_all(headers::FORWARDED_FOR).iter();
    let last = chain.next().map(|it| it.as_bytes().to_vec()).unwrap_or_default();
    assert!(last.ends_with(peer.to_string().as_bytes()) && chain.next().is_none(), "{last:?}");
    assert!(origin.is_trusted || last == peer.to_string().as_bytes());
    assert_eq!(headers.get(headers::REQUEST_ID).map(HeaderValue::as_bytes), Some(&b"id"[..]));
}
