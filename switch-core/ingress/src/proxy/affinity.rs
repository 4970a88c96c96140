//! Session affinity: a cookie names the endpoint, without showing its address.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, header};
use ring::hmac;

use super::clock;
use crate::routes::Route;
use crate::settings::{Affinity, SameSite};

/// The cookie's value for an endpoint: the same in all replicas with the same key.
pub(super) fn value(key: &[u8], endpoint: SocketAddr) -> Box<str> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let tag = hmac::sign(&key, endpoint.to_string().as_bytes());
    tag.as_ref()[..16]
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            _ = write!(text, "{byte:02x}");
            text
        })
        .into()
}

/// The value of a cookie of the request (RFC 6265 section 4.2).
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

/// `Set-Cookie` for an endpoint.
pub(super) fn set_cookie(it: &Affinity, value: &str, route: &Route, is_tls: bool) -> String {
    let mut text = format!("{}={value}", it.name);
    // The path of a regular expression is none that a client could compare.
    let path = match (&it.path, route.path.starts_with('/') && route.pattern.is_none()) {
        (Some(path), _) => path,
        (None, true) => &*route.path,
        (None, false) => "/",
    };
    if let Some(seconds) = it.expires {
        let date = clock::http_date(clock::now() + Duration::from_secs(seconds.min(1 << 32)));
        _ = write!(text, "; Expires={date}");
    }
    if let Some(seconds) = it.max_age {
        _ = write!(text, "; Max-Age={seconds}");
    }
    if let Some(domain) = &it.domain {
        _ = write!(text, "; Domain={domain}");
    }
    _ = write!(text, "; Path={path}");
    if it.secure.unwrap_or(is_tls) {
        text.push_str("; Secure");
    }
    text.push_str("; HttpOnly");
    match it.same_site {
        None => {}
        Some(SameSite::None) => text.push_str("; SameSite=None"),
        Some(SameSite::Lax) => text.push_str("; SameSite=Lax"),
        Some(SameSite::Strict) => text.push_str("; SameSite=Strict"),
    }
    text
}
