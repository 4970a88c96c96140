//! Rules of an HTTPRoute: matches, backends and their weights.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use podswitch_kubernetes::Record;
use regex::bytes::{Regex, RegexBuilder};

use super::super::backend::Backends;
use super::super::records::{Records, Subject};
use super::super::rules::{MAX_CACHE, MAX_PATTERN, key, without_service};
use super::common::Fault;
use super::filters::{self, field_name, timeout};
use super::grants::{Grants, Reference};
use crate::annotations::quote;
use crate::filters::Filters;
use crate::gateway::{Conditions, PathMatch, Text};
use crate::gateway_api::{
    HttpRouteSpec, NamedMatch, PathValue, RouteBackend, RouteMatch, RouteRule,
};
use crate::objects::{BackendRef, Name, Objects, PortRef, ServiceRef, Stored};
use crate::routes::{Backend, PathKind, Route, Shares};
use crate::settings::{Protocol, Settings};

/// Regular expressions of one route; a compiled one may need 256 KiB.
const MAX_PATTERNS: usize = 64;

/// The rules of a route, whatever it is attached to.
pub(super) struct Made {
    pub(super) rules: Vec<MadeRule>,
    /// Why the route as a whole is not accepted.
    pub(super) refused: Option<Fault>,
    /// What is wrong with a part of its rules.
    pub(super) partial: Option<Fault>,
    /// What is wrong with its references.
    pub(super) unresolved: Option<Fault>,
    /// For a route of ours only.
    pub(super) records: Vec<Record>,
}

/// A match of a rule, and where it leads to.
pub(super) struct MadeRule {
    pub(super) path: PathMatch,
    pub(super) when: Conditions,
    pub(super) shares: Shares,
}

struct Maker<'m, 'o> {
    objects: &'o Objects,
    grants: &'m Grants<'o>,
    namespace: &'m str,
    of: &'m Subject,
    records: Records,
    patterns: usize,
}

/// A backend of a rule before its filters: its weight, and where it leads to or why it does not.
struct Target {
    weight: u32,
    backend: Result<(Arc<Backend>, Protocol), Fault>,
}

/// A backend of a rule with its filters.
struct Share {
    weight: u32,
    backend: Arc<Backend>,
    filters: Filters,
    settings: Settings,
}

impl Made {
    pub(super) fn new<'o>(
        objects: &'o Objects,
        grants: &Grants<'o>,
        name: &'o Name,
        stored: &Stored<HttpRouteSpec>,
        backends: &mut Backends<'_>,
    ) -> Self {
        let of = Subject::new("HTTPRoute", name, stored);
        let records = Records { list: Vec::new() };
        let mut maker =
            Maker { objects, grants, namespace: &name.0, of: &of, records, patterns: 0 };
        let (refused, partial, unresolved) = (None, None, None);
        let mut made =
            Self { rules: Vec::new(), refused, partial, unresolved, records: Vec::new() };
        let rules = stored.it.rules.as_deref().unwrap_or_default();
        let mut bad = 0;
        for (number, rule) in rules.iter().enumerate() {
            let field = format!("spec.rules[{number}]");
            if let Some(reason) = maker.rule(&field, rule, backends, &mut made) {
                bad += 1;
                made.partial.get_or_insert(("UnsupportedValue", format!("{field}: {reason}")));
            }
        }
        if bad > 0 && bad == rules.len() {
            made.refused = made.partial.take();
            made.rules.clear();
        }
        // The matches of a rule have the same filters and backends.
        let mut said = HashSet::new();
        made.records = maker.records.list;
        made.records.retain(|it| said.insert((it.field.clone(), it.reason.clone())));
        made
    }
}

impl Maker<'_, '_> {
    /// Adds the rule. Returns what makes it unusable: its requests get status 500, or nothing matches.
    fn rule(
        &mut self,
        field: &str,
        rule: &RouteRule,
        backends: &mut Backends<'_>,
        made: &mut Made,
    ) -> Option<String> {
        for (part, it) in
            [("retry", &rule.retry), ("sessionPersistence", &rule.session_persistence)]
        {
            if it.as_ref().is_some_and(|it| !it.is_null()) {
                let text = "has no effect: it is not supported".to_owned();
                self.records.without_effect(self.of, &format!("{field}.{part}"), text);
            }
        }
        let every = [RouteMatch { path: None, headers: None, query_params: None, method: None }];
        let matches = rule.matches.as_deref().filter(|it| !it.is_empty()).unwrap_or(&every);
        let refs = rule.backend_refs.as_deref().unwrap_or_default();
        let targets: Vec<Target> = refs
            .iter()
            .enumerate()
            .map(|(number, it)| {
                let field = format!("{field}.backendRefs[{number}]");
                let target = self.target(&field, it, backends);
                if let Err(fault) = &target.backend {
                    made.unresolved.get_or_insert(fault.clone());
                }
                target
            })
            .collect();
        let mut unusable = None;
        for (number, it) in matches.iter().enumerate() {
            let at = format!("{field}.matches[{number}]");
            let (path, when) = match self.matched(it) {
                Ok(matched) => matched,
                Err((part, reason)) => {
                    self.records.field(self.of, &format!("{at}.{part}"), reason.clone());
                    unusable = Some(format!("{part}: {reason}"));
                    continue;
                }
            };
            let kind = match &path {
                PathMatch::Exact(_) => PathKind::Exact,
                PathMatch::Prefix(_) => PathKind::Prefix,
                PathMatch::Pattern(_) => PathKind::Pattern,
            };
            let prefix = match &path {
                PathMatch::Prefix(prefix) => Some(&**prefix),
                _ => None,
            };
            let text = it.path.as_ref().and_then(|it| it.value.as_deref()).unwrap_or("/");
            let shares = match self.shares(field, rule, &targets, prefix) {
                Ok(shares) => shares,
                Err((part, reason)) => {
                    self.refused(&format!("{field}.{part}"), &reason);
                    unusable = Some(format!("{part}: {reason}"));
                    vec![self.invalid(1, &reason)]
                }
            };
            let shares = shares.into_iter().map(|share| {
                let route = Route {
                    ingress: self.of.object.clone(),
                    host: "".into(),
                    path: text.into(),
                    kind,
                    backend: share.backend,
                    settings: share.settings.into(),
                    is_tls: false,
                    canary: None,
                    pattern: None,
                    filters: Some(share.filters.into()),
                };
                (share.weight, Arc::new(route))
            });
            made.rules.push(MadeRule { path, when, shares: Shares(shares.collect()) });
        }
        unusable
    }

    fn refused(&mut self, field: &str, reason: &str) {
        let action = podswitch_kubernetes::Action::None;
        self.records.add(self.of, field, format!("{reason} (status 500)"), action, true);
    }

    /// Status 500.
    fn invalid(&self, weight: u32, reason: &str) -> Share {
        let filters = Filters { invalid: Some(reason.into()), ..Filters::default() };
        let backend = Arc::new(without_service(self.namespace, reason));
        Share { weight, backend, filters, settings: settings(Protocol::Http, None) }
    }

    /// The backends with their filters and settings.
    fn shares(
        &mut self,
        field: &str,
        rule: &RouteRule,
        targets: &[Target],
        prefix: Option<&str>,
    ) -> Result<Vec<Share>, (String, String)> {
        let mut common = Filters::default();
        filters::add(&mut common, rule.filters.as_deref().unwrap_or_default(), prefix, false)?;
        common.timeout = timeout(rule.timeouts.as_ref())?;
        let settings = |protocol| settings(protocol, common.timeout);
        if common.redirect.is_some() {
            let backend = Arc::new(without_service(self.namespace, "a redirection"));
            let settings = settings(Protocol::Http);
            return Ok(vec![Share { weight: 1, backend, filters: common, settings }]);
        }
        let refs = rule.backend_refs.as_deref().unwrap_or_default();
        let mut shares = Vec::new();
        for (number, (it, target)) in refs.iter().zip(targets).enumerate() {
            let mut filters = common.clone();
            let own = it.filters.as_deref().unwrap_or_default();
            let added = filters::add(&mut filters, own, None, true);
            let weight = target.weight;
            let share = match (&target.backend, added) {
                (Ok((backend, protocol)), Ok(())) => {
                    let (backend, settings) = (backend.clone(), settings(*protocol));
                    Share { weight, backend, filters, settings }
                }
                (Err((_, reason)), _) => self.invalid(weight, reason),
                (Ok(_), Err((part, reason))) => {
                    self.refused(&format!("{field}.backendRefs[{number}].{part}"), &reason);
                    self.invalid(weight, &reason)
                }
            };
            if weight > 0 {
                shares.push(share);
            }
        }
        if shares.is_empty() {
            let reason = match refs {
                [] => "the rule has no backend",
                _ => "every backend has the weight 0",
            };
            let field = format!("{field}.backendRefs");
            self.records.note(self.of, &field, format!("{reason} (status 500)"));
            shares.push(self.invalid(1, reason));
        }
        Ok(shares)
    }

    fn target(&mut self, field: &str, it: &RouteBackend, backends: &mut Backends<'_>) -> Target {
        let weight = match it.weight.unwrap_or(1) {
            weight @ 0..=1_000_000 => weight as u32,
            other => {
                let text = format!("{other} is not from 0 to 1000000: 1 is used");
                self.records.field(self.of, &format!("{field}.weight"), text);
                1
            }
        };
        let backend = self.backend(field, it, backends);
        if let Err((_, reason)) = &backend {
            let text = format!("{reason} (status 500)");
            self.records.add(self.of, field, text, podswitch_kubernetes::Action::None, true);
        }
        Target { weight, backend }
    }

    fn backend(
        &mut self,
        field: &str,
        it: &RouteBackend,
        backends: &mut Backends<'_>,
    ) -> Result<(Arc<Backend>, Protocol), Fault> {
        let group = it.group.as_deref().unwrap_or_default();
        if !group.is_empty() || it.kind.as_deref().unwrap_or("Service") != "Service" {
            return Err(("InvalidKind", "is not a Service".to_owned()));
        }
        let namespace = it.namespace.as_deref().unwrap_or(self.namespace);
        let reference = Reference {
            from_kind: "HTTPRoute",
            from: self.namespace,
            kind: "Service",
            namespace,
            name: &it.name,
        };
        if !self.grants.permit(&reference) {
            let text =
                format!("no ReferenceGrant permits the Service of namespace {}", quote(namespace));
            return Err(("RefNotPermitted", text));
        }
        let not_found = |reason: String| ("BackendNotFound", reason);
        let service = self.objects.services.get(&(namespace.to_owned(), it.name.clone()));
        let service =
            service.ok_or_else(|| not_found(format!("there is no Service {}", quote(&it.name))))?;
        if service.it.kind.as_deref() == Some("ExternalName") {
            // As Gateway API asks: such a Service leads past policies (CVE-2021-25740).
            return Err(not_found("Services of type ExternalName are not used".to_owned()));
        }
        let port = it.port.ok_or_else(|| not_found("port is missing".to_owned()))?;
        let ports = service.it.ports.iter().flatten();
        let mut ports = ports.filter(|it| it.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let found = ports.find(|it| it.port == Some(port));
        let found =
            found.ok_or_else(|| not_found(format!("the Service has no TCP port {port}")))?;
        let protocol = match found.app_protocol.as_deref() {
            Some("kubernetes.io/h2c") => Protocol::Grpc,
            Some("kubernetes.io/wss") => {
                let text = "kubernetes.io/wss is not supported".to_owned();
                return Err(("UnsupportedProtocol", text));
            }
            _ => Protocol::Http,
        };
        let service = ServiceRef {
            name: Some(it.name.clone()),
            port: Some(PortRef { name: None, number: Some(port) }),
        };
        let wanted = BackendRef { service: Some(service), resource: None };
        let backend = backends
            .get(namespace, &wanted)
            .map_err(|(part, reason)| not_found(format!("{part}: {reason}")))?;
        if let Some(reason) = &backend.missing {
            self.records.note(self.of, field, format!("{}: {reason} (status 503)", backend.name));
        }
        Ok((backend, protocol))
    }

    fn matched(&mut self, it: &RouteMatch) -> Result<(PathMatch, Conditions), (String, String)> {
        let path = match &it.path {
            Some(path) => self.path(path)?,
            None => PathMatch::Prefix("".into()),
        };
        const METHODS: [&str; 9] =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        if let Some(method) = it.method.as_deref().filter(|it| !METHODS.contains(it)) {
            return Err(("method".to_owned(), format!("{} is not a method", quote(method))));
        }
        let mut when =
            Conditions { method: it.method.as_deref().map(Into::into), ..Default::default() };
        for (number, it) in it.headers.iter().flatten().enumerate() {
            let fault = |part: &str, reason| (format!("headers[{number}].{part}"), reason);
            let name = field_name(&it.name).map_err(|reason| fault("name", reason))?;
            // Of several with one name, the first one counts.
            if !when.fields.iter().any(|(other, _)| *other == name) {
                let text = self.text(it).map_err(|(part, reason)| fault(part, reason))?;
                when.fields.push((name, text));
            }
        }
        for (number, it) in it.query_params.iter().flatten().enumerate() {
            let fault = |(part, reason)| (format!("queryParams[{number}].{part}"), reason);
            if !when.params.iter().any(|(other, _)| **other == *it.name) {
                when.params.push((it.name.as_str().into(), self.text(it).map_err(fault)?));
            }
        }
        Ok((path, when))
    }

    fn path(&mut self, it: &PathValue) -> Result<PathMatch, (String, String)> {
        let value = it.value.as_deref().unwrap_or("/");
        let kind = match it.kind.as_deref().unwrap_or("PathPrefix") {
            "Exact" => PathKind::Exact,
            "PathPrefix" => PathKind::Prefix,
            "RegularExpression" => {
                let pattern = self.pattern(value).map_err(|why| ("path.value".to_owned(), why))?;
                return Ok(PathMatch::Pattern(pattern));
            }
            other => {
                let reason =
                    format!("{} is not Exact, PathPrefix or RegularExpression", quote(other));
                return Err(("path.type".to_owned(), reason));
            }
        };
        let (_, text) = key(kind, value).map_err(|(_, why)| ("path.value".to_owned(), why))?;
        Ok(match kind {
            PathKind::Exact => PathMatch::Exact(text.into()),
            _ => PathMatch::Prefix(text.into()),
        })
    }

    fn text(&mut self, it: &NamedMatch) -> Result<Text, (&'static str, String)> {
        match it.kind.as_deref().unwrap_or("Exact") {
            "Exact" => Ok(Text::Exact(it.value.as_str().into())),
            "RegularExpression" => {
                self.pattern(&it.value).map(Text::Pattern).map_err(|reason| ("value", reason))
            }
            other => Err(("type", format!("{} is not Exact or RegularExpression", quote(other)))),
        }
    }

    /// A regular expression for a whole text.
    fn pattern(&mut self, text: &str) -> Result<Regex, String> {
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS {
            return Err(format!("a route has at most {MAX_PATTERNS} regular expressions"));
        }
        let built = |text: &str| {
            let mut builder = RegexBuilder::new(text);
            builder.unicode(false).size_limit(MAX_PATTERN).dfa_size_limit(MAX_CACHE).build()
        };
        // Alone, too: `a)|(?:b` would end the group.
        let whole = built(text).and_then(|_| built(&format!("^(?:{text})$")));
        whole.map_err(|_| format!("{} is not a regular expression here", quote(text)))
    }
}

/// What is not a filter: Gateway API has no limits of bodies.
fn settings(protocol: Protocol, timeout: Option<Duration>) -> Settings {
    let default = Settings::default();
    let read_timeout = match timeout {
        Some(Duration::ZERO) => Duration::from_secs(86_400),
        Some(timeout) => timeout.max(default.read_timeout),
        None => default.read_timeout,
    };
    Settings { protocol, body_size: None, read_timeout, ..default }
}
