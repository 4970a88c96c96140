//! What HTTPRoutes ask for: how their rules are looked for, and filters.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::headers::Origin;
use super::metrics::Reason;
use super::request::Asked;
use crate::filters::{FieldChanges, RedirectTo};
use crate::gateway::Ask;
use crate::routes::{Route, Routes, Target};

/// The route of a request.
pub(super) fn route<'r>(
    routes: &'r Routes,
    parts: &Parts,
    asked: &Asked,
    origin: &Origin,
    random: impl FnOnce() -> u64,
) -> Target<'r> {
    let field = |name: &str| value(&parts.headers, name);
    let ask = Ask {
        address: origin.address,
        is_tls: origin.is_tls,
        host: &asked.host,
        path: &asked.path,
        query: asked.query.as_deref(),
        method: parts.method.as_str(),
        field: &field,
    };
    routes.choose(&ask, random)
}

/// The value of a field; several lines are one list (RFC 9110 section 5.3).
fn value<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, [u8]>> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = lines.next()?;
    let rest: Vec<_> = lines.collect();
    if rest.is_empty() {
        return Some(Cow::Borrowed(first));
    }
    let mut all = first.to_vec();
    for line in rest {
        all.extend_from_slice(separator(name));
        all.extend_from_slice(line);
    }
    Some(Cow::Owned(all))
}

/// What stands between the parts of a field: cookies are no list (RFC 6265 section 4.2, RFC 9113 section 8.2.3).
fn separator(name: &str) -> &'static [u8] {
    if name.eq_ignore_ascii_case("cookie") { b"; " } else { b"," }
}

/// Changes header fields. A field that is added becomes part of the list that is there.
pub(super) fn change(headers: &mut HeaderMap, changes: &[FieldChanges]) {
    for FieldChanges { set, add, remove } in changes {
        for (name, text) in set {
            if let Some((name, value)) = field(name, text) {
                headers.insert(name, value);
            }
        }
        for (name, text) in add {
            if let Some((name, new)) = field(name, text) {
                let joined = value(headers, name.as_str()).and_then(|before| {
                    HeaderValue::from_bytes(
                        &[&before, text.as_bytes()].join(separator(name.as_str())),
                    )
                    .ok()
                });
                // Cookies are not a list (RFC 6265 section 3).
                match joined.filter(|_| name != http::header::SET_COOKIE) {
                    Some(joined) => _ = headers.insert(name, joined),
                    None => _ = headers.append(name, new),
                }
            }
        }
        for name in remove {
            headers.remove(&**name);
        }
    }
}

/// Changes header fields of a response as its route wants it.
pub(super) fn response(headers: &mut HeaderMap, route: &Route) {
    if let Some(filters) = &route.filters {
        change(headers, &filters.response);
    }
}

/// Both were checked when the route was compiled.
fn field(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
}

/// `Location` of a redirection. `ports`: of the listeners for HTTP and HTTPS, as clients see them.
pub(super) fn location(
    to: &RedirectTo,
    asked: &Asked,
    is_tls: bool,
    ports: (u16, u16),
) -> Result<String, Reason> {
    let own = if is_tls { "https" } else { "http" };
    let scheme = to.scheme.as_deref().unwrap_or(own);
    let host = to.host.as_deref().unwrap_or(&asked.host);
    if host.is_empty() {
        return Err(Reason::Host);
    }
    let usual = if scheme == "https" { 443 } else { 80 };
    let listener = if is_tls { ports.1 } else { ports.0 };
    let port = to.port.unwrap_or(if to.scheme.is_some() { usual } else { listener });
    let port = if port == usual { String::new() } else { format!(":{port}") };
    let path = to.path.as_ref().map(|change| change.apply(&asked.path));
    let target = asked.target(path.as_deref().unwrap_or(&asked.path));
    Ok(format!("{scheme}://{host}{port}{target}"))
}
