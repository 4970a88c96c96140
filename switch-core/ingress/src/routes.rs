//! Compiled routes: immutable, shared by all workers, replaced as a whole.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use regex::bytes::Regex;

use crate::filters::Filters;
use crate::gateway::{Ask, Gateways, Rank};
use crate::settings::Settings;

/// The routes of all objects.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    pub(crate) hosts: HashMap<Box<str>, Paths>,
    /// By what follows `*`: `.example.com`.
    pub(crate) wildcards: HashMap<Box<str>, Paths>,
    pub(crate) any: Paths,
    /// None: a host of one tenant under a wildcard certificate of another one.
    pub(crate) certificates: HashMap<Box<str>, Option<Arc<Certificate>>>,
    pub(crate) wildcard_certificates: HashMap<Box<str>, Option<Arc<Certificate>>>,
    pub(crate) default_certificate: Option<Arc<Certificate>>,
    /// Listeners and rules of Gateway API.
    pub(crate) gateways: Gateways<Shares, Arc<Certificate>>,
}

/// The backends of a rule of an HTTPRoute that share its requests: weights, and where they go.
#[derive(Clone, Debug)]
pub(crate) struct Shares(pub(crate) Vec<(u32, Arc<Route>)>);

impl Shares {
    /// `random`: equally distributed.
    fn choose(&self, random: impl FnOnce() -> u64) -> Option<&Arc<Route>> {
        if let [(_, only)] = &*self.0 {
            return Some(only);
        }
        let total: u64 = self.0.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let mut at = random() % total.max(1);
        let mut shares = self.0.iter();
        let chosen = shares.find(|(weight, _)| match at.checked_sub(u64::from(*weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        chosen.map(|(_, route)| route)
    }
}

/// The paths of one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    pub(crate) exact: HashMap<Box<str>, Arc<Route>>,
    /// Without the trailing `/`.
    pub(crate) prefixes: HashMap<Box<str>, Arc<Route>>,
    /// The longest first.
    pub(crate) patterns: Vec<(Regex, Arc<Route>)>,
    /// `defaultBackend` of the Ingress that names the host.
    pub(crate) fallback: Option<Arc<Route>>,
    /// The namespace of the oldest route: its certificates are used for the host.
    pub(crate) owner: Option<Box<str>>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathKind {
    /// Equal bytes.
    Exact,
    /// By elements.
    Prefix,
    /// A regular expression (annotation `use-regex` or `rewrite-target`).
    Pattern,
    /// `defaultBackend`.
    Default,
}

/// Where the requests of a host and path go.
#[derive(Debug)]
pub struct Route {
    /// The object: `Ingress/namespace/name` or `HTTPRoute/namespace/name`.
    pub ingress: Cookie,
    /// As written in the rule; empty without one.
    pub host: Box<str>,
    /// As written in the rule; empty for `defaultBackend`.
    pub path: Box<str>,
    /// How the path is compared.
    pub kind: PathKind,
    /// The backend.
    pub backend: Arc<Backend>,
    /// What the annotations of the Ingress say.
    pub settings: Arc<Settings>,
    /// Whether the Ingress has a `tls` entry for the host.
    pub is_tls: bool,
    /// The canary Ingress of the same host and path.
    pub canary: Option<Arc<Route>>,
    /// For a path that is a regular expression.
    pub pattern: Option<Regex>,
    /// Of an HTTPRoute.
    pub filters: Option<Arc<Filters>>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Namespace of the Service.
    pub namespace: Box<str>,
    /// `namespace/name:port`.
    pub name: Box<str>,
    /// The addresses to connect to, sorted. None: status 503.
    pub endpoints: Vec<SocketAddr>,
    /// Why there are none.
    pub missing: Option<Box<str>>,
}

/// A certificate chain and its key, from a Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The Secret: `Secret/namespace/name`.
    pub secret: Cookie,
    /// Certificates in PEM, the server's own first.
    pub chain: Box<[u8]>,
    /// The private key in PEM.
    pub key: Box<[u8]>,
}

/// Without the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// What a request's host and path lead to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'r> {
    /// A route.
    Route(&'r Arc<Route>),
    /// Nothing: status 404.
    None,
}

impl Routes {
    /// The route of a request. `host`: in lower case, without port. `path`: in its
    /// [normal form](crate::normalise).
    ///
    /// The host is chosen first: an exact one before a wildcard before none. Then the longest path
    /// wins, and Exact wins over Prefix. Without a match: `defaultBackend`, of the Ingress that
    /// names the host before that of an Ingress without rules.
    pub fn find(&self, host: &str, path: &str) -> Target<'_> {
        let paths = self.paths(host);
        let found = paths.find(path).or(paths.fallback.as_ref()).or(self.any.fallback.as_ref());
        found.map_or(Target::None, Target::Route)
    }

    /// The route of a request, of an Ingress or of an HTTPRoute; `random`: equally distributed, for
    /// the weights of backends.
    ///
    /// Whoever has the more specific host has the request. With hosts that are equally specific, the
    /// Ingresses have it, and HTTPRoutes what no Ingress matches.
    pub fn choose(&self, ask: &Ask<'_>, random: impl FnOnce() -> u64) -> Target<'_> {
        let (rank, rule) = self.gateways.find(ask);
        if rank.is_none() {
            return self.find(ask.host, ask.path);
        }
        let own = self.rank(ask.host);
        if own >= rank {
            let found = self.find(ask.host, ask.path);
            if own > rank || matches!(found, Target::Route(_)) {
                return found;
            }
        }
        rule.and_then(|rule| rule.choose(random)).map_or(Target::None, Target::Route)
    }

    /// How specific the host is that the Ingresses have of a name.
    fn rank(&self, host: &str) -> Option<Rank> {
        if self.hosts.contains_key(host) {
            return Some(Rank::Exact(host.len()));
        }
        if let Some((suffix, _)) = self.wildcard(host) {
            return Some(Rank::Wildcard(suffix.len() + 1));
        }
        self.any.all().next().map(|_| Rank::Any)
    }

    fn wildcard<'h>(&self, host: &'h str) -> Option<(&'h str, &Paths)> {
        let suffix = &host[host.find('.').filter(|&dot| dot > 0)?..];
        Some((suffix, self.wildcards.get(suffix)?))
    }

    fn paths(&self, host: &str) -> &Paths {
        if let Some(paths) = self.hosts.get(host) {
            return paths;
        }
        self.wildcard(host).map_or(&self.any, |(_, paths)| paths)
    }

    /// The certificate for a server name in lower case (TLS SNI), or the default one.
    pub fn certificate(&self, name: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = name.and_then(|name| {
            let wildcard = || {
                let dot = name.find('.').filter(|&dot| dot > 0)?;
                self.wildcard_certificates.get(&name[dot..])
            };
            self.certificates.get(name).or_else(wildcard)?.as_ref()
        });
        named.or(self.default_certificate.as_ref())
    }

    /// The certificate for a server name in lower case at a local address, or the default one: of a
    /// listener of a Gateway if its host is more specific than that of the Ingresses.
    pub fn certificate_at(&self, address: IpAddr, name: Option<&str>) -> Option<&Arc<Certificate>> {
        let Some((rank, certificate)) = self.gateways.certificate(address, name) else {
            return self.certificate(name);
        };
        if self.own_name(name).is_some_and(|own| own >= rank) {
            return self.certificate(name);
        }
        certificate.or(self.default_certificate.as_ref())
    }

    /// Whether certificates depend on the local address.
    pub fn has_addresses(&self) -> bool {
        self.gateways.has_addresses()
    }

    /// How specific the host is that the Ingresses have of a server name. Without a host, they have
    /// no name.
    fn own_name(&self, name: Option<&str>) -> Option<Rank> {
        let name = name?;
        let by_route = self.rank(name).filter(|rank| *rank > Rank::Any);
        let by_certificate = || match name.find('.').filter(|&dot| dot > 0) {
            _ if self.certificates.contains_key(name) => Some(Rank::Exact(name.len())),
            Some(dot) if self.wildcard_certificates.contains_key(&name[dot..]) => {
                Some(Rank::Wildcard(name.len() - dot + 1))
            }
            _ => None,
        };
        by_route.max(by_certificate())
    }

    /// Every certificate.
    pub fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let named = self.certificates.values().chain(self.wildcard_certificates.values());
        let own = named.flatten().chain(&self.default_certificate);
        own.chain(self.gateways.certificates())
    }

    /// Every route.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let paths = self.hosts.values().chain(self.wildcards.values()).chain([&self.any]);
        let shares = self.gateways.targets().flat_map(|shares| &shares.0);
        paths.flat_map(Paths::all).chain(shares.map(|(_, route)| route))
    }
}

impl Paths {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let patterns = self.patterns.iter().map(|(_, route)| route);
        let named = self.exact.values().chain(self.prefixes.values()).chain(patterns);
        named.chain(&self.fallback)
    }

    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        if let Some(route) = self.exact.get(path) {
            return Some(route);
        }
        let prefix = self.prefix(path);
        let length = prefix.map_or(0, |(length, _)| length);
        // A pattern is as long as its text, as in nginx.
        let mut patterns = self.patterns.iter().take_while(|(_, route)| route.path.len() >= length);
        patterns
            .find(|(pattern, _)| pattern.is_match(path.as_bytes()))
            .map(|(_, route)| route)
            .or(prefix.map(|(_, route)| route))
    }

    /// The longest prefix by elements, and its length.
    fn prefix(&self, path: &str) -> Option<(usize, &Arc<Route>)> {
        if self.prefixes.is_empty() {
            return None;
        }
        let mut rest = path.strip_suffix('/').unwrap_or(path);
        loop {
            if let Some(route) = self.prefixes.get(rest) {
                return Some((rest.len(), route));
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }
}
