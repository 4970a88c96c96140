//! The objects of one kind: those that are wanted, by key; who claims what; which of them are left
//! out; and how a publish changes what is in force. One type, [`Kind`], serves every kind of object;
//! what differs from kind to kind is its [`Object`].
//!
//! A publish stages what is wanted ([`Kind::stage`], [`Kind::stage_all`]), settles it
//! ([`Kind::settle`]), reads the difference, and ends with [`Kind::commit`] or [`Kind::undo`]. All of
//! it costs what changed, but for the comparison of pointers in [`Kind::stage_all`].

mod claims;
mod fault;
mod kind;
mod list;
mod settle;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::hash::Hash;

use super::left_out::Effect;
use super::settings::Settings;
use crate::config::{Config, Precedence};
use crate::id::Cookie;

pub(super) use fault::Faults;
pub(super) use kind::Kind;
pub(super) use settle::Again;

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

/// How what is in force of one kind differs from what was in force.
#[derive(Debug)]
pub(crate) struct Difference<O> {
    /// As they were.
    pub(crate) removed: Vec<O>,
    /// Those that came, or are others than before.
    pub(crate) changed: Vec<Changed<O>>,
}

/// An object that came or is another than before.
#[derive(Debug)]
pub(crate) struct Changed<O> {
    pub(crate) before: Option<O>,
    pub(crate) after: O,
}

impl<O> Difference<O> {
    pub(crate) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty()
    }

    /// All that differ, as they were.
    pub(crate) fn before(&self) -> impl Iterator<Item = &O> {
        self.removed.iter().chain(self.changed.iter().filter_map(|c| c.before.as_ref()))
    }

    /// All that differ, as they are.
    pub(crate) fn after(&self) -> impl Iterator<Item = &O> {
        self.changed.iter().map(|c| &c.after)
    }

    /// All that differ, as they were and as they are.
    pub(crate) fn all(&self) -> impl Iterator<Item = &O> {
        self.before().chain(self.after())
    }
}
