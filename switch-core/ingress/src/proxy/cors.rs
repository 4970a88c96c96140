//! Cross-origin resource sharing.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::settings::Cors;

/// The origin of the request, if it is allowed.
pub(super) fn allowed<'h>(cors: &Cors, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let text = origin.to_str().ok()?;
    let fits = |pattern: &str| match pattern.split_once("*.") {
        _ if pattern == "*" || pattern == text => true,
        Some((scheme, domain)) => {
            let host = text.strip_prefix(scheme);
            host.and_then(|host| host.strip_suffix(domain)).is_some_and(|sub| {
                let sub = sub.strip_suffix('.').unwrap_or_default();
                !sub.is_empty()
                    && sub.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
            })
        }
        None => false,
    };
    cors.origins.iter().any(|pattern| fits(pattern)).then_some(origin)
}

/// Whether the request asks what is allowed.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Adds the fields of a response.
pub(super) fn add(cors: &Cors, origin: &HeaderValue, preflight: bool, to: &mut HeaderMap) {
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            to.insert(name, value);
        }
    };
    // With `*`, every site would act in the name of the user: no credentials.
    let is_any = cors.origins.iter().any(|it| &**it == "*");
    if cors.credentials && !is_any {
        set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
    }
    if let Some(expose) = &cors.expose {
        set(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose);
    }
    if preflight {
        set(header::ACCESS_CONTROL_ALLOW_METHODS, &cors.methods);
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers);
        set(header::ACCESS_CONTROL_MAX_AGE, &cors.max_age.to_string());
    }
    let origin = if is_any { HeaderValue::from_static("*") } else { origin.clone() };
    if !is_any {
        to.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    to.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
}
