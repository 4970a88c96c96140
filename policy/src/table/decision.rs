//! The result of evaluating policies.

use crate::verdict::Why;

/// A policy's number in the table. 0 means no policy. A policy keeps its number while it exists,
/// also when it changes; a later policy may reuse it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct PolicyId(pub u32);

impl PolicyId {
    /// No policy.
    pub const NONE: Self = Self(0);
}

/// The decision of one end's policies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether this end allows the connection.
    pub allow: bool,
    /// Why.
    pub why: Why,
    /// The policy whose rule decided, or the first of those that isolate the pod if no rule
    /// matched.
    pub policy: PolicyId,
    /// Index of the rule in the policy's list for the direction; `None` if no rule decided.
    pub rule: Option<u32>,
    /// Dense number of the rule, or of the policy's isolation, for counters: below
    /// [`PolicyTable::counters`](super::PolicyTable::counters). 0 if no policy decided.
    pub counter: u32,
}

impl Decision {
    pub(super) const fn without_rule(allow: bool, why: Why) -> Self {
        Self { allow, why, policy: PolicyId::NONE, rule: None, counter: 0 }
    }
}

/// The decisions of both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Policies of the source.
    pub egress: Decision,
    /// Policies of the destination.
    pub ingress: Decision,
}

impl Verdict {
    /// Whether both ends allow the connection (N4).
    #[inline]
    pub const fn allow(&self) -> bool {
        self.egress.allow && self.ingress.allow
    }
}
