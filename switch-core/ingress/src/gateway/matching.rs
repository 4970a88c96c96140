//! Matches of HTTPRoute rules, and which of several wins.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;
use std::net::IpAddr;

use hashbrown::HashMap;
use regex::bytes::Regex;

/// What is known of a request when its rule is looked for.
#[derive(Clone, Copy)]
pub struct Ask<'r> {
    /// The local address of the connection.
    pub address: IpAddr,
    /// Whether the listener is one for HTTPS.
    pub is_tls: bool,
    /// In lower case, without port.
    pub host: &'r str,
    /// In its [normal form](crate::normalise).
    pub path: &'r str,
    /// Without `?`.
    pub query: Option<&'r str>,
    /// The method.
    pub method: &'r str,
    /// The value of a header field, by its name in lower case; several lines joined by a comma.
    pub field: &'r dyn Fn(&str) -> Option<Cow<'r, [u8]>>,
}

/// Without header fields.
impl fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, is_tls, host, path, query, method, .. } = self;
        let mut it = f.debug_struct("Ask");
        it.field("address", address).field("is_tls", is_tls).field("host", host);
        it.field("path", path).field("query", query).field("method", method);
        it.finish_non_exhaustive()
    }
}

/// A value that is compared.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    Exact(Box<str>),
    /// Of the whole value.
    Pattern(Regex),
}

impl Text {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

/// How the path is compared.
#[derive(Clone, Debug)]
pub(crate) enum PathMatch {
    Exact(Box<str>),
    /// Without the trailing `/`.
    Prefix(Box<str>),
    /// Of the whole path.
    Pattern(Regex),
}

/// What a request must have besides the path. Names of fields are in lower case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) method: Option<Box<str>>,
    pub(crate) fields: Vec<(Box<str>, Text)>,
    pub(crate) params: Vec<(Box<str>, Text)>,
}

impl Conditions {
    /// What comes first: a method, then more fields, then more parameters.
    fn order(&self) -> impl Ord + use<> {
        (self.method.is_none(), Reverse(self.fields.len()), Reverse(self.params.len()))
    }

    fn match_request(&self, ask: &Ask<'_>) -> bool {
        self.method.as_deref().is_none_or(|method| method == ask.method)
            && self
                .fields
                .iter()
                .all(|(name, text)| (ask.field)(name).is_some_and(|value| text.matches(&value)))
            && self.params.iter().all(|(name, text)| {
                param(ask.query.unwrap_or_default(), name).is_some_and(|value| text.matches(&value))
            })
    }
}

/// The first value of a parameter, decoded (application/x-www-form-urlencoded).
fn param<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut named = pairs.filter(|(key, _)| *decoded(key) == *name.as_bytes());
    named.next().map(|(_, value)| decoded(value))
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits =
            text.get(at + 1..at + 3).filter(|it| it.bytes().all(|b| b.is_ascii_hexdigit()));
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    Cow::Owned(out)
}

/// Rules that are looked up by path.
#[derive(Clone, Debug)]
pub(crate) struct Rules<T> {
    exact: HashMap<Box<str>, Vec<(Conditions, T)>>,
    prefixes: HashMap<Box<str>, Vec<(Conditions, T)>>,
    patterns: Vec<(Regex, Conditions, T)>,
}

impl<T> Default for Rules<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), prefixes: HashMap::new(), patterns: Vec::new() }
    }
}

impl<T> Rules<T> {
    /// Adds a rule; of those that are equal otherwise, the first one wins.
    pub(crate) fn add(&mut self, path: PathMatch, when: Conditions, it: T) {
        match path {
            PathMatch::Exact(path) => self.exact.entry(path).or_default().push((when, it)),
            PathMatch::Prefix(path) => self.prefixes.entry(path).or_default().push((when, it)),
            PathMatch::Pattern(path) => self.patterns.push((path, when, it)),
        }
    }

    /// Brings the rules of each path into the order of precedence.
    pub(crate) fn sort(&mut self) {
        let lists = self.exact.values_mut().chain(self.prefixes.values_mut());
        lists.for_each(|list| list.sort_by_key(|(when, _)| when.order()));
        let length = |path: &Regex| Reverse(path.as_str().len());
        self.patterns.sort_by_key(|(path, when, _)| (length(path), when.order()));
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        let named = self.exact.values().chain(self.prefixes.values()).flatten();
        named.map(|(_, it)| it).chain(self.patterns.iter().map(|(_, _, it)| it))
    }

    /// What the rule leads to that has precedence: an exact path, then regular expressions, the
    /// longest first, then the longest prefix.
    pub(crate) fn find(&self, ask: &Ask<'_>) -> Option<&T> {
        if let Some(it) = matched(self.exact.get(ask.path), ask) {
            return Some(it);
        }
        let mut patterns = self.patterns.iter();
        let pattern = patterns
            .find(|(path, when, _)| path.is_match(ask.path.as_bytes()) && when.match_request(ask));
        if let Some((_, _, it)) = pattern {
            return Some(it);
        }
        if self.prefixes.is_empty() {
            return None;
        }
        let mut rest = ask.path.strip_suffix('/').unwrap_or(ask.path);
        loop {
            if let Some(it) = matched(self.prefixes.get(rest), ask) {
                return Some(it);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }
}

fn matched<'l, T>(list: Option<&'l Vec<(Conditions, T)>>, ask: &Ask<'_>) -> Option<&'l T> {
    list?.iter().find(|(when, _)| when.match_request(ask)).map(|(_, it)| it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_first_one_counts() {
        let value =
            |query, name| param(query, name).map(|it| String::from_utf8(it.to_vec()).unwrap());
        assert_eq!(value("a=1&a=2", "a").as_deref(), Some("1"));
        assert_eq!(value("x&a%62=%C3%A9+%2&b=", "ab").as_deref(), Some("é %2"));
        assert_eq!(value("x&b=", "x").as_deref(), Some(""));
        assert_eq!(value("x&b=%é", "b").as_deref(), Some("%é"));
        assert_eq!(value("A=1", "a"), None);
        assert_eq!(value("", "a"), None);
    }

    fn find(rules: &Rules<&'static str>, method: &str, target: &str, fields: &[&str]) -> String {
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        let field = |name: &str| fields.contains(&name).then_some(Cow::Borrowed(&b"1"[..]));
        let address = IpAddr::from([127, 0, 0, 1]);
        let ask = Ask { address, is_tls: false, host: "", path, query, method, field: &field };
        rules.find(&ask).map_or_else(String::new, |it| (*it).to_owned())
    }

    /// The order of precedence that HTTPRouteRule.matches lists.
    #[test]
    fn precedence() {
        let one = || Text::Exact("1".into());
        let named = |names: &[&str]| names.iter().map(|name| ((*name).into(), one())).collect();
        let when = |method: Option<&str>, fields: &[&str], params: &[&str]| Conditions {
            method: method.map(Into::into),
            fields: named(fields),
            params: named(params),
        };
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        let mut rules = Rules::default();
        rules.add(prefix(""), when(None, &[], &[]), "all");
        rules.add(prefix("/a"), when(None, &[], &["q", "r"]), "params");
        rules.add(prefix("/a"), when(None, &["x"], &[]), "field");
        rules.add(prefix("/a"), when(None, &["x", "y"], &[]), "fields");
        rules.add(prefix("/a"), when(Some("PUT"), &[], &[]), "method");
        rules.add(prefix("/a"), when(Some("PUT"), &[], &[]), "later");
        rules.add(prefix("/a/b"), when(None, &["z"], &[]), "longer");
        rules.add(PathMatch::Exact("/a/b".into()), when(None, &[], &["q"]), "exact");
        rules.add(
            PathMatch::Pattern(Regex::new("^(?:/a/[0-9]+)$").unwrap()),
            when(None, &[], &[]),
            "regex",
        );
        rules.sort();
        for (method, target, fields, expected) in [
            ("GET", "/", &[][..], "all"),
            ("GET", "/ab", &["x"], "all"),
            ("GET", "/a/?q=1&r=1", &[], "params"),
            ("GET", "/a?q=1", &[], "all"),
            ("GET", "/a/c?q=1&r=1", &["x"], "field"),
            ("GET", "/a/c", &["x", "y"], "fields"),
            ("PUT", "/a/c", &["x", "y"], "method"),
            ("GET", "/a/b", &["x", "z"], "longer"),
            ("GET", "/a/b/c", &["x", "y"], "fields"),
            ("PUT", "/a/b?q=1", &["z"], "exact"),
            ("PUT", "/a/12", &[], "regex"),
            ("PUT", "/a/12/", &[], "method"),
        ] {
            assert_eq!(find(&rules, method, target, fields), expected, "{method} {target}");
        }
    }
}
