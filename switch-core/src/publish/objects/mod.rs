//! The objects of one kind: those that are wanted, by key; who claims what; which of them are left
//! out; and how a publish changes what is in force. One type, [`Kind`], serves every kind of object;
//! what differs from kind to kind is its [`Object`].
//!
//! A publish stages what is wanted ([`Kind::stage`], [`Kind::stage_all`]), settles it
//! ([`Kind::settle`]), reads the difference, and ends with [`Kind::commit`] or [`Kind::undo`]. All of
//! it costs what changed, but for the comparison of pointers in [`Kind::stage_all`].

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
