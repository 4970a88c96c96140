//! The result of the decision about a flow: a compiled [`Plan`] or a [`DropReason`]. Plain data.

mod drop_reason;
mod plan;

pub use drop_reason::{DropClass, DropReason};
pub use plan::{Plan, PlanFlags};
