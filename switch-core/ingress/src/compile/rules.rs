//! Rules: hosts and paths of all Ingresses, the oldest first.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use podswitch_kubernetes::Action;
use regex::bytes::{Regex, RegexBuilder};

use super::backend::Backends;
use super::records::{Records, Subject};
use crate::annotations::{self, quote};
use crate::objects::{BackendRef, IngressSpec, Name, PathRule, Stored};
use crate::path::normalise;
use crate::routes::{Backend, PathKind, Paths, Route, Routes};
use crate::settings::Settings;

/// Largest compiled form of a regular expression, in bytes.
pub(super) const MAX_PATTERN: usize = 1 << 18;
/// Size of the cache that each thread has for a regular expression, in bytes.
pub(super) const MAX_CACHE: usize = 128 << 10;

/// Longest path of a rule, in bytes; longer ones match no request.
const MAX_PATH: usize = 4096;

/// Routes so far, by host. The name of the entry for requests that no host matches is empty.
#[derive(Default)]
pub(super) struct Builder {
    hosts: BTreeMap<String, Draft>,
}

#[derive(Default)]
struct Draft {
    routes: HashMap<(PathKind, String), Route>,
    canaries: Vec<(Subject, (PathKind, String), Route)>,
    /// The namespace of the first route.
    owner: Option<Box<str>>,
}

/// What all rules of an Ingress share.
struct Common<'a> {
    of: Subject,
    namespace: &'a str,
    settings: Arc<Settings>,
    /// Hosts with TLS; `None` is an entry without hosts: all of them.
    tls: Vec<Option<&'a str>>,
}

impl Common<'_> {
    fn route(&self, host: &str, path: &str, kind: PathKind, backend: Arc<Backend>) -> Route {
        Route {
            ingress: self.of.object.clone(),
            host: host.into(),
            path: path.into(),
            kind,
            backend,
            settings: self.settings.clone(),
            is_tls: self.tls.iter().any(|tls| tls.is_none_or(|tls| covers(tls, host))),
            canary: None,
            pattern: None,
            filters: None,
        }
    }
}

/// Whether the host of a TLS entry covers that of a rule.
fn covers(tls: &str, host: &str) -> bool {
    tls == host
        || tls.strip_prefix('*').is_some_and(|suffix| {
            host.find('.') == Some(host.len().saturating_sub(suffix.len()))
                && host.ends_with(suffix)
        })
}

impl Builder {
    pub(super) fn add(
        &mut self,
        name: &Name,
        ingress: &Stored<IngressSpec>,
        backends: &mut Backends<'_>,
        records: &mut Records,
    ) {
        let of = Subject::ingress(name, ingress);
        let settings = settings(&of, ingress, records);
        let is_canary = settings.canary.is_some();
        let tls = ingress.it.tls.iter().flatten().flat_map(|entry| match entry.hosts.as_deref() {
            None | Some([]) => vec![None],
            Some(hosts) => hosts.iter().map(|host| Some(host.as_str())).collect(),
        });
        let tls = tls.collect();
        let common = Common { of, namespace: &name.0, settings: settings.into(), tls };
        let of = &common.of;
        let rules = ingress.it.rules.as_deref().unwrap_or_default();
        let fallback =
            ingress.it.default_backend.as_ref().map(|it| {
                backend(of, "spec.defaultBackend", common.namespace, it, backends, records)
            });
        if is_canary && fallback.is_some() {
            let reason = "has no effect: a canary takes requests of paths only".to_owned();
            records.without_effect(of, "spec.defaultBackend", reason);
        }
        if rules.is_empty() {
            match &fallback {
                Some(_) if is_canary => {}
                Some(it) => self.fallback("", &common, it, "spec.defaultBackend", records),
                None => records.left_out(
                    of,
                    "spec",
                    "has neither rules nor defaultBackend".to_owned(),
                    true,
                ),
            }
        }
        for (at, rule) in rules.iter().enumerate() {
            let host = rule.host.as_deref().unwrap_or_default();
            if let Err(reason) = valid_host(host) {
                records.field(of, &format!("spec.rules[{at}].host"), reason);
                continue;
            }
            self.hosts.entry(host.to_owned()).or_default();
            let paths = rule.http.as_ref().and_then(|http| http.paths.as_deref());
            for (number, path) in paths.unwrap_or_default().iter().enumerate() {
                let field = format!("spec.rules[{at}].http.paths[{number}]");
                self.path(host, &common, path, &field, backends, records);
            }
            if let Some(it) = &fallback
                && !is_canary
            {
                self.fallback(host, &common, it, "spec.defaultBackend", records);
            }
        }
    }

    fn fallback(
        &mut self,
        host: &str,
        common: &Common<'_>,
        backend: &Arc<Backend>,
        field: &str,
        records: &mut Records,
    ) {
        let route = common.route(host, "", PathKind::Default, backend.clone());
        let key = (PathKind::Default, String::new());
        self.insert(host, key, route, &common.of, field, records);
    }

    fn path(
        &mut self,
        host: &str,
        common: &Common<'_>,
        rule: &PathRule,
        field: &str,
        backends: &mut Backends<'_>,
        records: &mut Records,
    ) {
        let (of, path) = (&common.of, rule.path.as_deref().unwrap_or_default());
        let parsed = kind(rule, &common.settings).and_then(|kind| {
            let path = match (kind, path, rule.path_type.as_deref()) {
                (_, "", Some("ImplementationSpecific")) => "/",
                (_, path, _) => path,
            };
            key(kind, path).map(|key| (path, key))
        });
        let (path, key) = match parsed {
            Ok(parsed) => parsed,
            Err((part, reason)) => return records.field(of, &format!("{field}.{part}"), reason),
        };
        let pattern = match (key.0 == PathKind::Pattern).then(|| compiled(path)).transpose() {
            Ok(pattern) => pattern,
            Err(reason) => return records.field(of, &format!("{field}.path"), reason),
        };
        let at = format!("{field}.backend");
        let backend = match &rule.backend {
            Some(it) => backend(of, &at, common.namespace, it, backends, records),
            None => {
                records.add(of, &at, "is missing (status 503)".to_owned(), Action::None, true);
                Arc::new(without_service(common.namespace, "is missing"))
            }
        };
        let mut route = common.route(host, path, key.0, backend);
        route.pattern = pattern;
        self.insert(host, key, route, of, &format!("{field}.path"), records);
    }

    /// Adds a route, unless an older Ingress has the same.
    fn insert(
        &mut self,
        host: &str,
        key: (PathKind, String),
        route: Route,
        of: &Subject,
        field: &str,
        records: &mut Records,
    ) {
        let draft = self.hosts.entry(host.to_owned()).or_default();
        if route.settings.canary.is_some() {
            let of = Subject { source: of.source.clone(), object: of.object.clone() };
            draft.canaries.push((of, key, route));
            return;
        }
        match draft.routes.get(&key) {
            None => {
                draft.owner.get_or_insert_with(|| namespace(&route.ingress).into());
                draft.routes.insert(key, route);
            }
            // An Ingress may say the same of a host in two rules.
            Some(first) if first.ingress == of.object && key.0 == PathKind::Default => {}
            Some(first) => {
                let host = if host.is_empty() { "any host" } else { host };
                let what = match key.0 {
                    PathKind::Default => "the default backend".to_owned(),
                    _ => format!("the path {}", quote(&first.path)),
                };
                let reason =
                    format!("{what} of {host} belongs to {}, which is older", first.ingress);
                records.without_effect(of, field, reason);
            }
        }
    }

    pub(super) fn build(self, records: &mut Records) -> Routes {
        let mut routes = Routes::default();
        for (host, draft) in self.hosts {
            let paths = draft.build(records);
            match host.strip_prefix('*') {
                _ if host.is_empty() => routes.any = paths,
                Some(suffix) => _ = routes.wildcards.insert(suffix.into(), paths),
                None => _ = routes.hosts.insert(host.into(), paths),
            }
        }
        routes
    }
}

impl Draft {
    fn build(mut self, records: &mut Records) -> Paths {
        for (of, key, mut canary) in self.canaries {
            let (path, host) = (quote(&canary.path), quote(&canary.host));
            let reason = match self.routes.get_mut(&key) {
                // A canary of another namespace would take requests of another tenant.
                Some(route) if route.backend.namespace == canary.backend.namespace => {
                    let Some(first) = &route.canary else {
                        canary.settings = Arc::new(of_canary(&canary.settings, &route.settings));
                        canary.is_tls = route.is_tls;
                        route.canary = Some(canary.into());
                        continue;
                    };
                    // As in ingress-nginx: one canary for each path.
                    format!("the path {path} of {host} has the canary {} already", first.ingress)
                }
                _ => format!(
                    "there is no other Ingress of this namespace for the path {path} of {host}"
                ),
            };
            let field = format!("metadata.annotations[{}canary]", annotations::PREFIX);
            records.without_effect(&of, &field, reason);
        }
        let mut paths = Paths { owner: self.owner, ..Paths::default() };
        for ((kind, text), route) in self.routes {
            let route = Arc::new(route);
            match (kind, &route.pattern) {
                (PathKind::Exact, _) => _ = paths.exact.insert(text.into(), route),
                (PathKind::Prefix, _) => _ = paths.prefixes.insert(text.into(), route),
                (PathKind::Pattern, Some(pattern)) => paths.patterns.push((pattern.clone(), route)),
                (PathKind::Pattern, None) => {}
                (PathKind::Default, _) => paths.fallback = Some(route),
            }
        }
        let order = |(_, route): &(Regex, Arc<Route>)| {
            (std::cmp::Reverse(route.path.len()), route.path.clone())
        };
        paths.patterns.sort_by_key(order);
        paths
    }
}

/// A canary has the settings of the Ingress whose requests it takes, as in ingress-nginx: it must not
/// open what that one restricts.
fn of_canary(canary: &Settings, main: &Settings) -> Settings {
    Settings {
        canary: canary.canary.clone(),
        closed: canary.closed.clone().or_else(|| main.closed.clone()),
        ..main.clone()
    }
}

fn settings(of: &Subject, ingress: &Stored<IngressSpec>, records: &mut Records) -> Settings {
    let mut findings = Vec::new();
    let settings = annotations::read(ingress.meta.annotations(), &mut findings);
    for finding in findings {
        let field = format!("metadata.annotations[{}]", finding.key);
        if finding.closes {
            let reason = format!("{}: requests are answered with status 503", finding.reason);
            records.add(of, &field, reason, Action::None, true);
        } else {
            records.field(of, &field, finding.reason);
        }
    }
    settings
}

/// The backend; one that cannot be read has no endpoints.
fn backend(
    of: &Subject,
    field: &str,
    namespace: &str,
    it: &BackendRef,
    backends: &mut Backends<'_>,
    records: &mut Records,
) -> Arc<Backend> {
    match backends.get(namespace, it) {
        Ok(backend) => {
            if let Some(reason) = &backend.missing {
                let field = format!("{field}.service");
                records.note(of, &field, format!("{}: {reason} (status 503)", backend.name));
            }
            backend
        }
        Err((part, reason)) => {
            let why = format!("{reason} (status 503)");
            records.add(of, &format!("{field}.{part}"), why, Action::None, true);
            Arc::new(without_service(namespace, &reason))
        }
    }
}

pub(super) fn without_service(namespace: &str, reason: &str) -> Backend {
    Backend {
        namespace: namespace.into(),
        name: format!("{namespace}/").into(),
        endpoints: Vec::new(),
        missing: Some(reason.into()),
    }
}

/// A field of the path rule, and what is wrong with it.
type Fault = (&'static str, String);

fn kind(rule: &PathRule, settings: &Settings) -> Result<PathKind, Fault> {
    let is_pattern =
        settings.use_regex || settings.rewrite.as_ref().is_some_and(|rewrite| rewrite.has_groups());
    match rule.path_type.as_deref() {
        Some("Exact") => Ok(PathKind::Exact),
        Some("Prefix" | "ImplementationSpecific") if is_pattern => Ok(PathKind::Pattern),
        Some("Prefix" | "ImplementationSpecific") => Ok(PathKind::Prefix),
        None => Err(("pathType", "is missing".to_owned())),
        Some(other) => {
            let reason = "is not Exact, Prefix or ImplementationSpecific";
            Err(("pathType", format!("{} {reason}", quote(other))))
        }
    }
}

/// Under which text a path is looked up.
pub(super) fn key(kind: PathKind, path: &str) -> Result<(PathKind, String), Fault> {
    if path.len() > MAX_PATH {
        return Err(("path", format!("has {} bytes, more than {MAX_PATH}", path.len())));
    }
    if !path.starts_with('/') {
        return Err(("path", format!("{} does not begin with /", quote(path))));
    }
    if kind == PathKind::Pattern {
        return Ok((kind, path.to_owned()));
    }
    let normal = normalise(path).map_err(|why| ("path", why.to_string()))?;
    // As in the API server: what normalisation would remove is a mistake in a rule.
    if path.contains("//") || path.split('/').any(|part| part == "." || part == "..") {
        return Err(("path", format!("{} has // or dot segments", quote(path))));
    }
    let text = match kind {
        PathKind::Prefix => normal.strip_suffix('/').unwrap_or(&normal),
        _ => &normal,
    };
    Ok((kind, text.to_owned()))
}

/// Anchored at the beginning and without regard to case, as in ingress-nginx.
fn compiled(path: &str) -> Result<Regex, String> {
    let built = |text: &str| {
        RegexBuilder::new(text)
            .unicode(false)
            .case_insensitive(true)
            .size_limit(MAX_PATTERN)
            .dfa_size_limit(MAX_CACHE)
            .build()
    };
    // Alone, too: `a)|(?:b` would end the group.
    built(path).and_then(|_| built(&format!("^(?:{path})"))).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            format!("{} is not a regular expression here: {last}", quote(path))
        }
    })
}

/// A DNS name in lower case, with `*.` before it for a wildcard; empty for every host.
pub(super) fn valid_host(host: &str) -> Result<(), String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host.is_empty() {
        return Ok(());
    }
    let is_label = |label: &str| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(format!("{} is not a DNS name in lower case", quote(host)));
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("{} is an address, not a DNS name", quote(host)));
    }
    Ok(())
}

/// The namespace in `Kind/namespace/name`.
pub(super) fn namespace(object: &Cookie) -> &str {
    object.as_str().split('/').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["", "a", "a.b", "*.a.b", "*.a", "x-1.y"] {
            assert_eq!(valid_host(good), Ok(()), "{good}");
        }
        for bad in
            ["*", "*.", "a.*.b", "**.a", "A.b", "a..b", "a.", ".a", "a_b", "10.0.0.1", "a:80"]
        {
            assert!(valid_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_of_tls_entries() {
        assert!(covers("a.b", "a.b") && covers("*.b", "a.b") && covers("*.b", "*.b"));
        assert!(!covers("*.b", "b") && !covers("*.b", "x.a.b") && !covers("*.b", ".b.b.c"));
        assert!(!covers("a.b", "*.b") && !covers("a.b", ""));
    }
}
