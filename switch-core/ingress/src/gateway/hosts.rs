//! Hosts with wildcards: `*.example.com` covers any number of labels, other than in Ingress.

use hashbrown::HashMap;

/// How specific the host is that matches: more characters of a name win, and any name wins over a
/// wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Every host.
    Any,
    /// A wildcard of so many bytes.
    Wildcard(usize),
    /// A name of so many bytes.
    Exact(usize),
}

impl Rank {
    /// Of a host as written; empty: every host.
    pub(crate) fn of(host: &str) -> Self {
        match host {
            "" => Self::Any,
            wildcard if wildcard.starts_with('*') => Self::Wildcard(wildcard.len()),
            name => Self::Exact(name.len()),
        }
    }
}

/// Values by host.
#[derive(Clone, Debug)]
pub(crate) struct HostMap<T> {
    exact: HashMap<Box<str>, T>,
    /// By what follows `*`.
    wildcards: HashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcards: HashMap::new(), any: None }
    }
}

impl<T> HostMap<T> {
    /// The values that match the name of a request, the most specific first.
    pub(crate) fn matching<'m>(&'m self, name: &str) -> impl Iterator<Item = (Rank, &'m T)> {
        let exact = self.exact.get(name).map(|it| (Rank::Exact(name.len()), it));
        let suffixes = name.match_indices('.').map(|(dot, _)| &name[dot..]);
        let suffixes = suffixes.filter(move |suffix| suffix.len() < name.len());
        let wildcards = suffixes.filter_map(|suffix| {
            let it = self.wildcards.get(suffix)?;
            Some((Rank::Wildcard(suffix.len() + 1), it))
        });
        let any = self.any.as_ref().map(|it| (Rank::Any, it));
        // Without wildcards, labels are not looked at.
        exact.into_iter().chain(wildcards.take(self.wildcards.len())).chain(any)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.wildcards.values()).chain(&self.any)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.exact.values_mut().chain(self.wildcards.values_mut()).chain(&mut self.any)
    }
}

impl<T: Default> HostMap<T> {
    /// The value of a host as written.
    pub(crate) fn entry(&mut self, host: &str) -> &mut T {
        match host.strip_prefix('*') {
            _ if host.is_empty() => self.any.get_or_insert_default(),
            Some(suffix) => self.wildcards.entry(suffix.into()).or_default(),
            None => self.exact.entry(host.into()).or_default(),
        }
    }
}

/// The hosts that a listener and a route have in common; None: no host. Empty: every host.
pub(crate) fn intersection<'h>(listener: &'h str, route: &'h str) -> Option<&'h str> {
    if covers(listener, route) {
        Some(route)
    } else if covers(route, listener) {
        Some(listener)
    } else {
        None
    }
}

/// Whether every name that `narrow` matches is matched by `wide`, too.
fn covers(wide: &str, narrow: &str) -> bool {
    wide.is_empty()
        || wide == narrow
        || wide.strip_prefix('*').is_some_and(|suffix| {
            let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
            narrow.len() > suffix.len() && narrow.ends_with(suffix)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_host_comes_first() {
        let mut map = HostMap::default();
        for host in ["", "*.com", "*.bar.com", "foo.bar.com"] {
            *map.entry(host) = host;
        }
        let all = |name: &str| map.matching(name).map(|(_, host)| *host).collect::<Vec<_>>();
        assert_eq!(all("foo.bar.com"), ["foo.bar.com", "*.bar.com", "*.com", ""]);
        assert_eq!(all("a.b.bar.com"), ["*.bar.com", "*.com", ""]);
        assert_eq!(all("bar.com"), ["*.com", ""]);
        assert_eq!(all("com"), [""]);
        assert_eq!(all(".bar.com"), ["*.com", ""], "a wildcard needs a label");
    }

    #[test]
    fn intersections() {
        for (listener, route, both) in [
            ("", "", Some("")),
            ("", "a.com", Some("a.com")),
            ("a.com", "", Some("a.com")),
            ("*.com", "*.a.com", Some("*.a.com")),
            ("*.a.com", "*.com", Some("*.a.com")),
            ("*.a.com", "b.a.com", Some("b.a.com")),
            ("*.a.com", "c.b.a.com", Some("c.b.a.com")),
            ("very.specific.com", "*.specific.com", Some("very.specific.com")),
            ("*.a.com", "a.com", None),
            ("*.a.com", "*.b.com", None),
            ("a.com", "b.com", None),
            ("*.a.com", "xa.com", None),
        ] {
            assert_eq!(intersection(listener, route), both, "{listener} {route}");
        }
    }

    #[test]
    fn ranks() {
        assert!(Rank::of("a.b") > Rank::of("*.much.longer"));
        assert!(Rank::of("*.a.b") > Rank::of("*.b") && Rank::of("*.b") > Rank::of(""));
    }
}
