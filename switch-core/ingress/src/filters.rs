//! What the filters of an HTTPRoute do with a request and its response.

use std::time::Duration;

/// The filters and timeouts of a rule and backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// RequestHeaderModifier: of the rule, then of the backend.
    pub request: Vec<FieldChanges>,
    /// ResponseHeaderModifier.
    pub response: Vec<FieldChanges>,
    /// RequestRedirect: no backend is asked.
    pub redirect: Option<RedirectTo>,
    /// URLRewrite: the path for the endpoint.
    pub path: Option<PathChange>,
    /// URLRewrite: `Host` for the endpoint.
    pub host: Option<Box<str>>,
    /// Time from the request's head to the head of its response.
    pub timeout: Option<Duration>,
    /// The rule or the backend cannot be used: status 500.
    pub invalid: Option<Box<str>>,
}

/// Changes of header fields, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldChanges {
    /// Names, in lower case, and values: these replace what is there.
    pub set: Vec<(Box<str>, Box<str>)>,
    /// Names, in lower case, and values: these are added to what is there.
    pub add: Vec<(Box<str>, Box<str>)>,
    /// Names in lower case.
    pub remove: Vec<Box<str>>,
}

/// A redirection. What is not given stays as in the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectTo {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// The host.
    pub host: Option<Box<str>>,
    /// The port. None: that of the scheme if there is one, or else that of the listener.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathChange>,
    /// The status: 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A change of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// The whole path.
    Full(Box<str>),
    /// The prefix that the rule matched.
    Prefix {
        /// Without the `/` at its end.
        matched: Box<str>,
        /// What stands in its place.
        replacement: Box<str>,
    },
}

impl PathChange {
    /// The path after the change.
    pub fn apply(&self, path: &str) -> String {
        match self {
            Self::Full(path) if path.is_empty() => "/".to_owned(),
            Self::Full(path) => path.to_string(),
            Self::Prefix { matched, replacement } => {
                let rest = path.strip_prefix(&**matched).unwrap_or(path);
                let rest = rest.strip_prefix('/').unwrap_or(rest);
                let start = replacement.strip_suffix('/').unwrap_or(replacement);
                match (start, rest) {
                    ("", rest) => format!("/{rest}"),
                    // What replaces a whole path stays as written.
                    (start, "") if !path.ends_with('/') || **matched == *path => start.to_owned(),
                    (start, rest) => format!("{start}/{rest}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of HTTPPathModifier.replacePrefixMatch.
    #[test]
    fn prefixes_are_replaced() {
        for (path, matched, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "", "/xyz", "/xyz/foo"),
        ] {
            let change =
                PathChange::Prefix { matched: matched.into(), replacement: replacement.into() };
            assert_eq!(change.apply(path), expected, "{path} {replacement}");
        }
        assert_eq!(PathChange::Full("/x".into()).apply("/foo"), "/x");
        assert_eq!(PathChange::Full("".into()).apply("/foo"), "/");
    }
}
