//! Filters and timeouts of a rule.

use std::time::Duration;

use crate::annotations::quote;
use crate::filters::{FieldChanges, Filters, PathChange, RedirectTo};
use crate::gateway_api::{Filter, HeaderModifier, PathModifier, RequestRedirect, Timeouts};

use super::super::rules::valid_host;

/// A field, and what is wrong with it.
type Fault = (String, String);

/// Adds filters to those of the rule. `prefix`: the path that the match has as a prefix, if it has.
pub(super) fn add(
    to: &mut Filters,
    filters: &[Filter],
    prefix: Option<&str>,
    is_backend: bool,
) -> Result<(), Fault> {
    let mut seen = Vec::new();
    for (number, filter) in filters.iter().enumerate() {
        let fault = |(part, reason): Fault| (format!("filters[{number}]{part}"), reason);
        if seen.contains(&filter.kind.as_str()) {
            return Err(fault((".type".to_owned(), format!("{} is repeated", filter.kind))));
        }
        seen.push(&filter.kind);
        one(to, filter, prefix, is_backend).map_err(fault)?;
    }
    if to.redirect.is_some() && (to.path.is_some() || to.host.is_some()) {
        let text = "URLRewrite and RequestRedirect cannot be combined".to_owned();
        return Err(("filters".to_owned(), text));
    }
    Ok(())
}

fn one(
    to: &mut Filters,
    filter: &Filter,
    prefix: Option<&str>,
    is_backend: bool,
) -> Result<(), Fault> {
    let missing = |part: &str| (format!(".{part}"), "is missing".to_owned());
    let inside =
        |part: &'static str| move |(field, reason): Fault| (format!(".{part}{field}"), reason);
    match &*filter.kind {
        "RequestHeaderModifier" => {
            let part = "requestHeaderModifier";
            let it = filter.request_header_modifier.as_ref().ok_or_else(|| missing(part))?;
            to.request.push(changes(it).map_err(inside(part))?);
        }
        "ResponseHeaderModifier" => {
            let part = "responseHeaderModifier";
            let it = filter.response_header_modifier.as_ref().ok_or_else(|| missing(part))?;
            to.response.push(changes(it).map_err(inside(part))?);
        }
        "RequestRedirect" if !is_backend => {
            let part = "requestRedirect";
            let it = filter.request_redirect.as_ref().ok_or_else(|| missing(part))?;
            to.redirect = Some(redirect(it, prefix).map_err(inside(part))?);
        }
        "URLRewrite" if !is_backend => {
            let part = "urlRewrite";
            let it = filter.url_rewrite.as_ref().ok_or_else(|| missing(part))?;
            to.host = host(it.hostname.as_deref()).map_err(inside(part))?;
            to.path = path(it.path.as_ref(), prefix).map_err(inside(part))?;
        }
        other => {
            let place = if is_backend { " for a backend" } else { "" };
            return Err((".type".to_owned(), format!("{} is not supported{place}", quote(other))));
        }
    }
    Ok(())
}

/// Fields that decide where a message ends or where it goes: other filters and the proxy set them.
const FIXED: [&str; 11] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

fn changes(it: &HeaderModifier) -> Result<FieldChanges, Fault> {
    let pairs = |list: &Option<Vec<crate::gateway_api::HeaderValue>>, part: &str| {
        let list = list.iter().flatten().enumerate();
        let pair = |(number, it): (usize, &crate::gateway_api::HeaderValue)| {
            let name = name(&it.name).map_err(|why| (format!(".{part}[{number}].name"), why))?;
            let is_fit = |byte: u8| byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
            if !it.value.bytes().all(is_fit) {
                let text = format!("{} has control characters", quote(&it.value));
                return Err((format!(".{part}[{number}].value"), text));
            }
            Ok((name, it.value.trim().into()))
        };
        list.map(pair).collect::<Result<Vec<_>, Fault>>()
    };
    let removed = it.remove.iter().flatten().enumerate();
    let removed =
        removed.map(|(number, text)| name(text).map_err(|why| (format!(".remove[{number}]"), why)));
    Ok(FieldChanges {
        set: pairs(&it.set, "set")?,
        add: pairs(&it.add, "add")?,
        remove: removed.collect::<Result<_, _>>()?,
    })
}

/// The name of a field in lower case (RFC 9110 section 5.6.2).
pub(super) fn field_name(text: &str) -> Result<Box<str>, String> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > 256 || !text.bytes().all(is_fit) {
        return Err(format!("{} is not a name of a header field", quote(text)));
    }
    Ok(text.to_ascii_lowercase().into())
}

fn name(text: &str) -> Result<Box<str>, String> {
    let name = field_name(text)?;
    if FIXED.contains(&&*name) {
        return Err(format!("{} cannot be changed", quote(text)));
    }
    Ok(name)
}

fn host(text: Option<&str>) -> Result<Option<Box<str>>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match valid_host(text) {
        Ok(()) if !text.is_empty() && !text.starts_with('*') => Ok(Some(text.into())),
        Ok(()) => Err((".hostname".to_owned(), format!("{} is not a name", quote(text)))),
        Err(reason) => Err((".hostname".to_owned(), reason)),
    }
}

fn path(it: Option<&PathModifier>, prefix: Option<&str>) -> Result<Option<PathChange>, Fault> {
    let Some(it) = it else { return Ok(None) };
    let fault = |part: &str, reason: String| Err((format!(".path.{part}"), reason));
    let (part, text) = match &*it.kind {
        "ReplaceFullPath" => ("replaceFullPath", &it.replace_full_path),
        "ReplacePrefixMatch" => ("replacePrefixMatch", &it.replace_prefix_match),
        other => return fault("type", format!("{} is not supported", quote(other))),
    };
    let Some(text) = text else { return fault(part, "is missing".to_owned()) };
    let is_fit = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
    let has_dots = text.split('/').any(|element| matches!(element, "." | ".."));
    if !(text.is_empty() || text.starts_with('/')) || !text.bytes().all(is_fit) || has_dots {
        return fault(part, format!("{} is not a path", quote(text)));
    }
    if part == "replaceFullPath" {
        return Ok(Some(PathChange::Full(text.as_str().into())));
    }
    let Some(prefix) = prefix else {
        return fault(part, "is for matches of type PathPrefix only".to_owned());
    };
    Ok(Some(PathChange::Prefix { matched: prefix.into(), replacement: text.as_str().into() }))
}

fn redirect(it: &RequestRedirect, prefix: Option<&str>) -> Result<RedirectTo, Fault> {
    let scheme = match it.scheme.as_deref() {
        None => None,
        Some(scheme @ ("http" | "https")) => Some(scheme.into()),
        Some(other) => {
            let text = format!("{} is not http or https", quote(other));
            return Err((".scheme".to_owned(), text));
        }
    };
    let port = match it.port {
        None => None,
        Some(port) => match u16::try_from(port) {
            Ok(port) if port > 0 => Some(port),
            _ => return Err((".port".to_owned(), format!("{port} is not from 1 to 65535"))),
        },
    };
    let status = match it.status_code {
        None => 302,
        Some(status @ (301 | 302 | 303 | 307 | 308)) => status,
        Some(other) => {
            let text = format!("{other} is not 301, 302, 303, 307 or 308");
            return Err((".statusCode".to_owned(), text));
        }
    };
    let host = host(it.hostname.as_deref())?;
    Ok(RedirectTo { scheme, host, port, path: path(it.path.as_ref(), prefix)?, status })
}

/// The shorter of the timeouts that are given; zero: no limit.
pub(super) fn timeout(it: Option<&Timeouts>) -> Result<Option<Duration>, Fault> {
    let Some(it) = it else { return Ok(None) };
    let mut shortest: Option<Duration> = None;
    for (part, text) in [("request", &it.request), ("backendRequest", &it.backend_request)] {
        let Some(text) = text else { continue };
        let parsed = duration(text).ok_or_else(|| {
            let reason = format!("{} is not a duration such as 1h30m or 500ms", quote(text));
            (format!("timeouts.{part}"), reason)
        })?;
        let is_shorter =
            shortest.is_none_or(|it| it.is_zero() || (!parsed.is_zero() && parsed < it));
        if is_shorter {
            shortest = Some(parsed);
        }
    }
    Ok(shortest)
}

/// GEP-2257: one to four times up to five digits and h, m, s or ms.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum, mut count) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        count += 1;
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..end).filter(|it| (1..=5).contains(&it.len()))?.parse().ok()?;
        let (unit, len) = match &rest[end..] {
            it if it.starts_with("ms") => (1, 2),
            it if it.starts_with('s') => (1_000, 1),
            it if it.starts_with('m') => (60_000, 1),
            it if it.starts_with('h') => (3_600_000, 1),
            _ => return None,
        };
        sum += Duration::from_millis(number * unit);
        rest = &rest[end + len..];
    }
    (1..=4).contains(&count).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("10m", Some(600_000)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("123456s", None),
            ("1s1s1s1s1s", None),
            ("1é", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
