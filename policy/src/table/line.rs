//! The unit of a stage's memory.

/// One cache line of a stage.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(super) [u32; 16]);
