//! Whether a machine has what the switch of a node needs. [`run`] checks everything; each [`Check`] reports the
//! finding, its meaning and how to fix it.
//!
//! Called before a switch is started, on any thread, by a user or an init container. Features are tried in a network
//! namespace created for that purpose; the node's own namespace is only inspected. Nothing is changed.

mod check;
mod cni;
mod kernel;
mod node;
mod ports;
mod privilege;

pub use self::check::{Check, Level, Options};

/// Runs all checks, in the order in which a user reads them.
pub fn run(options: &Options) -> Vec<Check> {
    let mut checks = privilege::checks(options);
    checks.extend(kernel::checks());
    checks.extend(node::checks(options));
    checks.extend(ports::checks(options));
    checks.extend(cni::checks(options));
    checks
}
