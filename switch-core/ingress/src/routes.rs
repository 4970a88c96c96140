//! Compiled routes: immutable, shared by all workers, replaced as a whole.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use regex::bytes::Regex;

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
    /// The Ingress: `Ingress/namespace/name`.
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

    fn paths(&self, host: &str) -> &Paths {
        if let Some(paths) = self.hosts.get(host) {
            return paths;
        }
        let wildcard = host.find('.').filter(|&dot| dot > 0);
        wildcard.and_then(|dot| self.wildcards.get(&host[dot..])).unwrap_or(&self.any)
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

    /// Every certificate.
    pub fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        let named = self.certificates.values().chain(self.wildcard_certificates.values());
        named.flatten().chain(&self.default_certificate)
    }

    /// Every route.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let paths = self.hosts.values().chain(self.wildcards.values()).chain([&self.any]);
        paths.flat_map(Paths::all)
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
