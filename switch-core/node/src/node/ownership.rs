//! Who owns the node's devices and kernel while one process takes over from another.

/// The owner of the node's devices and kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ownership {
    /// This process alone.
    Own,
    /// The predecessor: workers leave frames in the devices.
    Predecessor,
    /// This process forwards; the predecessor still owns the node's kernel.
    Forwarding,
    /// The successor.
    Successor,
}
