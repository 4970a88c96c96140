//! Objects that a publish left out, with the reasons.

use crate::config::ConfigError;
use crate::id::{Cookie, Epoch};

/// A configuration was refused; the state in force stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} error(s) in the configuration, the first: {}", .0.len(), .0[0])]
pub struct Refused(pub Vec<ConfigError>);

/// An object that is not in force as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// The object, the field and the reason.
    pub error: ConfigError,
    /// The kind of reason.
    pub cause: Cause,
    /// What is in force instead.
    pub effect: Effect,
}

/// Why an object is invalid or left out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// It contradicts itself, or the settings.
    Invalid,
    /// Another object of its kind has its name.
    Duplicate,
    /// Another object already has something that only one object can have. This one gets it when
    /// the other one is deleted.
    Conflict {
        /// The object that has it.
        holder: Cookie,
    },
    /// Something that it depends on does not exist or is left out. The object is put in force when
    /// its dependency is.
    Missing,
}

/// What is in force instead of an object that was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// Nothing: as if the object did not exist.
    Absent,
    /// For a policy: its last valid version.
    LastVersion,
    /// For a policy without such a version: the pods that it selects are isolated in the directions
    /// that it names.
    Isolated,
    /// For a Service, or a pod with host ports: all of it, except the address and port that another
    /// one has.
    OneFrontend,
}

/// The outcome of a lenient publish.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The epoch of the new state.
    pub epoch: Epoch,
    /// Objects that this publish left out. Before, they were in force as written, did not exist, or
    /// were left out for other reasons.
    pub left_out: Vec<LeftOut>,
    /// Objects that had been left out, and are in force as written now.
    pub taken: Vec<Cookie>,
}
