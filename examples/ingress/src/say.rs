//! Lines on standard output and standard error. `println!` and `eprintln!` panic when nobody reads
//! them any more: a log collector that ends must not end the proxy.

use std::fmt::Display;
use std::io::{self, Write as _};

/// A line on standard output.
pub(crate) fn result(line: impl Display) {
    _ = writeln!(io::stdout(), "{line}");
}

/// A line on standard error.
pub(crate) fn note(line: impl Display) {
    _ = writeln!(io::stderr(), "{line}");
}
