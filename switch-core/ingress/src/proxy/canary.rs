//! Which of a route and its canary takes a request.

use std::sync::Arc;

use http::HeaderMap;

use super::affinity::cookie;
use crate::routes::Route;
use crate::settings::Canary;

/// The route itself, or its canary: by header, then by cookie, then by weight. `random`: equally
/// distributed.
pub(super) fn choose<'r>(
    route: &'r Arc<Route>,
    headers: &HeaderMap,
    random: impl FnOnce() -> u64,
) -> &'r Arc<Route> {
    let Some(canary) = &route.canary else { return route };
    let Some(rule) = &canary.settings.canary else { return route };
    match decided(rule, headers) {
        Some(true) => canary,
        Some(false) => route,
        None if random() % u64::from(rule.weight_total.max(1)) < u64::from(rule.weight) => canary,
        None => route,
    }
}

fn decided(rule: &Canary, headers: &HeaderMap) -> Option<bool> {
    let fixed = |value: &str| match value {
        "always" => Some(true),
        "never" => Some(false),
        _ => None,
    };
    if let Some(name) = &rule.by_header
        && let Some(value) = headers.get(&**name).and_then(|value| value.to_str().ok())
    {
        let decision = match &rule.by_header_value {
            Some(expected) => (value == &**expected).then_some(true),
            None => fixed(value),
        };
        if decision.is_some() {
            return decision;
        }
    }
    fixed(cookie(headers, rule.by_cookie.as_deref()?)?)
}
