//! The objects of one kind: the desired ones by key, their claims, which of them are left out, and
//! how a publish changes those in force. The type [`Kind`] serves every kind of object; the
//! differences are in its [`Object`].
//!
//! A publish stages the desired state ([`Kind::stage`], [`Kind::stage_all`]), settles it
//! ([`Kind::settle`]), reads the difference, and ends with [`Kind::commit`] or [`Kind::undo`]. The
//! cost depends on the changes only, except for the comparison of pointers in [`Kind::stage_all`].

mod claims;
mod difference;
mod kind;
mod list;
mod object;
mod settle;
#[cfg(test)]
mod tests;

pub(super) use difference::Difference;
pub(super) use kind::Kind;
pub(super) use object::{Claim, NoClaim, Object};
pub(super) use settle::Again;
