//! What differs from kind to kind.

use std::borrow::Cow;
use std::hash::Hash;

use crate::config::{Config, Precedence};
use crate::id::Cookie;
use crate::publish::fault::Faults;
use crate::publish::left_out::Effect;
use crate::publish::settings::Settings;

/// A kind of object: what differs from kind to kind. Clones are cheap.
pub(crate) trait Object: Clone + Sized {
    /// What it is known by.
    type Key: Clone + Eq + Hash + Ord;
    /// What it lays claim to.
    type Claim: Clone + Eq + Hash + Claim;
    /// What its validity depends on.
    type Context<'a>: Copy;

    /// Field and reason where two objects have the same key.
    const DUPLICATE: (&'static str, &'static str) = ("name", "another object has this name");

    /// All objects of the kind in a configuration.
    fn wanted(config: &Config) -> Cow<'_, [Self]>;

    /// Its key.
    fn key(&self) -> Self::Key;

    /// Its name in errors.
    fn cookie(&self) -> Cookie;

    /// Whether both are the same object in memory, or as cheaply known to be equal.
    fn is_shared(&self, other: &Self) -> bool;

    /// Whether both say the same.
    fn is_same(&self, other: &Self) -> bool;

    /// Who goes first where several claim the same.
    fn precedence(&self) -> Precedence {
        Precedence::default()
    }

    /// Calls `each` for whatever it lays claim to.
    fn claims(&self, _settings: &Settings, _each: &mut dyn FnMut(Self::Claim)) {}

    /// Everything that is wrong with it by itself.
    fn check(&self, context: Self::Context<'_>, faults: &mut Faults);

    /// The field that lays a claim, and what it claims, for the error of an object that does not get it.
    fn describe(&self, _claim: &Self::Claim) -> (String, String) {
        Default::default()
    }

    /// What is in force when it is left out, given the last version that was taken.
    fn fallback(&self, _last: Option<&Self>) -> Option<(Self, Effect)> {
        None
    }

    /// What is wanted where two objects have one key. `None`: the one of greater precedence, or the
    /// first.
    fn merged(&self, _other: &Self) -> Option<Self> {
        None
    }
}

/// Something that objects lay claim to.
pub(crate) trait Claim {
    /// Whether only one object can have it. Otherwise the claim only finds those that depend on it.
    fn is_exclusive(&self) -> bool {
        true
    }
}

/// For kinds that claim nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum NoClaim {}

impl Claim for NoClaim {}
