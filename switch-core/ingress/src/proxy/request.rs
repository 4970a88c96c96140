//! What a request asks for: host, path and query. What is ambiguous is refused.

use std::net::Ipv6Addr;

use http::request::Parts;
use http::{Method, Version, header};

use super::metrics::Reason;
use crate::path::normalise;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// In lower case, without port; empty for HTTP/1.0 without `Host`.
    pub(super) host: String,
    /// Host and port as the client wrote them.
    pub(super) authority: String,
    /// In its normal form.
    pub(super) path: String,
    pub(super) query: Option<String>,
}

impl Asked {
    /// Reads a request's head.
    pub(super) fn read(parts: &Parts) -> Result<Self, Reason> {
        if matches!(parts.method, Method::CONNECT | Method::TRACE) {
            return Err(Reason::Method);
        }
        let is_http2 = parts.version == Version::HTTP_2;
        let target = parts.uri.authority().map(|authority| authority.as_str());
        // What follows `#` is never sent; `http` takes another scheme for a host, too.
        if parts.uri.scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") {
            return Err(Reason::Host);
        }
        let mut fields = parts.headers.get_all(header::HOST).iter();
        let field = match fields.next().map(|field| field.to_str()) {
            None => None,
            Some(Ok(field)) => Some(field),
            Some(Err(_)) => return Err(Reason::Host),
        };
        if fields.next().is_some() {
            return Err(Reason::Host);
        }
        let authority = match (target, field) {
            (Some(target), Some(field)) if split(target)? != split(field)? => {
                return Err(Reason::Host);
            }
            (Some(_), None) if !is_http2 && parts.version != Version::HTTP_10 => {
                return Err(Reason::Host);
            }
            (Some(target), _) => target,
            (None, Some(field)) => field,
            (None, None) if parts.version == Version::HTTP_10 => "",
            (None, None) => return Err(Reason::Host),
        };
        let host = if authority.is_empty() && parts.version == Version::HTTP_10 {
            String::new()
        } else {
            split(authority)?.0
        };
        let path = normalise(parts.uri.path()).map_err(|_| Reason::Path)?.into_owned();
        let query = parts.uri.query().map(str::to_owned);
        Ok(Self { host, authority: authority.to_owned(), path, query })
    }

    /// Path and query.
    pub(super) fn target(&self, path: &str) -> String {
        match &self.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }
}

/// Host in lower case without the last dot, and port (RFC 3986 section 3.2.2). User names and
/// anything that is neither a name nor an address is refused.
fn split(authority: &str) -> Result<(String, Option<u16>), Reason> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(Reason::Host)?;
        address.parse::<Ipv6Addr>().map_err(|_| Reason::Host)?;
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or(Reason::Host)?),
        };
        (format!("[{}]", address.to_ascii_lowercase()), port)
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        let is_fit = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(is_fit) {
            return Err(Reason::Host);
        }
        (host.to_ascii_lowercase(), port)
    };
    let port = match port {
        None | Some("") => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some(port.parse().map_err(|_| Reason::Host)?)
        }
        Some(_) => return Err(Reason::Host),
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn read(target: &str, version: Version, hosts: &[&str]) -> Result<(String, String), Reason> {
        let mut request = Request::builder().uri(target).version(version);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Asked::read(&parts).map(|asked| (asked.host, asked.path))
    }

    #[test]
    fn hosts() {
        let ok = |host: &str, path: &str| Ok((host.to_owned(), path.to_owned()));
        let one = |host| read("/a", Version::HTTP_11, &[host]);
        assert_eq!(one("Shop.Test:8080"), ok("shop.test", "/a"));
        assert_eq!(one("shop.test."), ok("shop.test", "/a"));
        assert_eq!(one("[FD00::1]:80"), ok("[fd00::1]", "/a"));
        assert_eq!(one("10.0.0.1"), ok("10.0.0.1", "/a"));
        for bad in ["", ":80", "a b", "a@b", "a/b", "a:b", "a:99999", "[::1", "[x]", "a:80:80", "é"]
        {
            assert_eq!(one(bad), Err(Reason::Host), "{bad}");
        }
        assert_eq!(read("/", Version::HTTP_11, &[]), Err(Reason::Host));
        assert_eq!(read("/", Version::HTTP_10, &[]), ok("", "/"));
        assert_eq!(read("/", Version::HTTP_11, &["a", "a"]), Err(Reason::Host));
    }

    #[test]
    fn the_target_and_the_field_must_agree() {
        let ok = Ok(("a.test".to_owned(), "/x".to_owned()));
        assert_eq!(read("http://a.test/x", Version::HTTP_11, &["A.test"]), ok);
        assert_eq!(read("http://a.test/x", Version::HTTP_2, &[]), ok);
        for (target, field) in [
            ("http://a.test/x", "b.test"),
            ("http://a.test:81/x", "a.test"),
            ("http://u@a.test/x", "a.test"),
        ] {
            assert_eq!(read(target, Version::HTTP_11, &[field]), Err(Reason::Host), "{target}");
        }
        assert_eq!(read("http://a.test/x", Version::HTTP_11, &[]), Err(Reason::Host));
        assert_eq!(read("ftp://a.test/x", Version::HTTP_11, &["a.test"]), Err(Reason::Host));
    }

    #[test]
    fn targets() {
        assert_eq!(read("*", Version::HTTP_11, &["a"]), Err(Reason::Path));
        assert_eq!(read("/../x", Version::HTTP_11, &["a"]), Err(Reason::Path));
        assert_eq!(read("/a/../x", Version::HTTP_11, &["a"]), Ok(("a".into(), "/x".into())));
    }
}
