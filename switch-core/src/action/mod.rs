//! What is done with a packet: the compiled answer (`Plan`), and the reason where nothing is.

mod apply;
mod drop_reason;
mod plan;
mod related;
mod translate;

pub use apply::{apply, apply_in_line, apply_plain};
pub use drop_reason::{DropClass, DropReason};
pub use plan::{Plan, PlanFlags};
pub use related::translate_error;
