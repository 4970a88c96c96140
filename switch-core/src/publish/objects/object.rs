//! The properties that differ from kind to kind.

use std::borrow::Cow;
use std::hash::Hash;

use crate::config::{Config, Precedence};
use crate::id::Cookie;
use crate::publish::fault::Faults;
use crate::publish::left_out::Effect;
use crate::publish::settings::Settings;

/// A kind of object. Clones are cheap.
pub(crate) trait Object: Clone + Sized {
    /// Its key.
    type Key: Clone + Eq + Hash + Ord;
    /// Its claims.
    type Claim: Clone + Eq + Hash + Claim;
    /// The state on which its validity depends.
    type Context<'a>: Copy;

    /// Field and reason where two objects have the same key.
    const DUPLICATE: (&'static str, &'static str) = ("name", "another object has this name");

    /// All objects of the kind in a configuration.
    fn wanted(config: &Config) -> Cow<'_, [Self]>;

    /// Its key.
    fn key(&self) -> Self::Key;

    /// Its name in errors.
    fn cookie(&self) -> Cookie;

    /// Whether both are the same object in memory, or are equal at no greater cost.
    fn is_shared(&self, other: &Self) -> bool;

    /// Whether both are equal.
    fn is_same(&self, other: &Self) -> bool;

    /// Rank among objects with the same claim; the greatest wins.
    fn precedence(&self) -> Precedence {
        Precedence::default()
    }

    /// Calls `each` with all its claims.
    fn claims(&self, _settings: &Settings, _each: &mut dyn FnMut(Self::Claim)) {}

    /// All its own errors.
    fn check(&self, context: Self::Context<'_>, faults: &mut Faults);

    /// The field of a claim, and a description of it, for the error of an object that does not get
    /// it.
    fn describe(&self, _claim: &Self::Claim) -> (String, String) {
        Default::default()
    }

    /// The version that is in force instead when it is left out, given its last version in force.
    fn fallback(&self, _last: Option<&Self>) -> Option<(Self, Effect)> {
        None
    }

    /// The desired object if two objects have the same key. `None`: the one of greater precedence,
    /// or the first.
    fn merged(&self, _other: &Self) -> Option<Self> {
        None
    }
}

/// Something that objects can claim.
pub(crate) trait Claim {
    /// Whether only one object can have it. Otherwise the claim is an index of the objects that
    /// depend on it.
    fn is_exclusive(&self) -> bool {
        true
    }
}

/// For kinds that claim nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum NoClaim {}

impl Claim for NoClaim {}
