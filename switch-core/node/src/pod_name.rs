//! How pods are named.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use podswitch_core::id::Cookie;

/// Longest name of an object, in bytes (DNS subdomain, RFC 1123).
const MAX_NAME: usize = 253;

/// The name of a pod: `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName(Arc<str>);

/// A text that is no name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of a pod: namespace/name, each of a-z, 0-9, - and ., at most 253 of them"
)]
pub struct PodNameError(String);

impl PodName {
    /// The pod `name` of `namespace`.
    ///
    /// # Errors
    /// One of them is no name of a Kubernetes object.
    pub fn new(namespace: &str, name: &str) -> Result<Self, PodNameError> {
        format!("{namespace}/{name}").parse()
    }

    /// The pod that the node's own resolver is to the switch.
    pub(crate) fn resolver() -> Self {
        Self::unchecked("kube-system/podswitch-resolver")
    }

    /// Without a check, for names of objects that the Kubernetes store has checked.
    pub(crate) fn unchecked(name: &str) -> Self {
        Self(name.into())
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// The name in drops, flows and explanations.
    pub fn cookie(&self) -> Cookie {
        Cookie::new(format!("Pod/{self}"))
    }
}

impl FromStr for PodName {
    type Err = PodNameError;

    fn from_str(text: &str) -> Result<Self, PodNameError> {
        let is_inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(b);
        let is_outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let is_name = |part: &str| {
            let bytes = part.as_bytes();
            bytes.len() <= MAX_NAME
                && bytes.iter().all(is_inner)
                && is_outer(bytes.first())
                && is_outer(bytes.last())
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(Self(text.into())),
            _ => Err(PodNameError(text.chars().take(MAX_NAME).collect())),
        }
    }
}

impl Deref for PodName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pods_are_checked() {
        let name: PodName = "kube-system/coredns-5d.1".parse().unwrap();
        assert_eq!((name.namespace(), name.name()), ("kube-system", "coredns-5d.1"));
        assert_eq!(name.cookie().as_str(), "Pod/kube-system/coredns-5d.1");
        let long = format!("a/{}", "b".repeat(254));
        for wrong in ["", "web", "/", "a/", "/b", "a/b/c", "A/b", "a/-b", "a/b.", "a/b\n", &long] {
            assert!(wrong.parse::<PodName>().is_err(), "{wrong:?}");
        }
    }
}
