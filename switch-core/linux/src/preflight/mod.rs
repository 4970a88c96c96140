//! Whether a machine has what the switch of a node needs: [`run`] looks at everything, each [`Check`] says what was
//! found, what it means and how to mend it.
//!
//! Called before a switch is started, on any thread, by a person or an init container. What has to be tried is tried in
//! a network namespace made for it; the node's own is only looked at. Nothing is changed.

mod check;
mod cni;
mod kernel;
mod node;
mod ports;
mod privilege;

pub use self::check::{Check, Level, Options};

/// Looks at everything, in an order that a person reads in.
pub fn run(options: &Options) -> Vec<Check> {
    let mut checks = privilege::checks(options);
    checks.extend(kernel::checks());
    checks.extend(node::checks(options));
    checks.extend(ports::checks(options));
    checks.extend(cni::checks(options));
    checks
}
