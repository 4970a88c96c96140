//! Casts memory from the caller to the tables in it. One of the few modules with `unsafe`.
#![allow(unsafe_code)]

use core::sync::atomic::AtomicU64;

use super::facts::ReplyFacts;
use super::header::Header;
use super::slot::Slot;

/// A type for which any bytes are a valid value, and which may change while it is shared.
///
/// # Safety
/// Every field is an atomic integer, or an array or a type of such; `repr(C)`.
pub(super) unsafe trait Plain {}

// SAFETY: two `Lane` and one `Facts`, all three `repr(C)` and of atomic integers only. `Slot` is `repr(C)`.
unsafe impl Plain for Slot {}
// SAFETY: atomic integers only, `repr(C)`.
unsafe impl Plain for ReplyFacts {}
// SAFETY: atomic integers and arrays of them only, `repr(C)`.
unsafe impl Plain for Header {}

/// The bytes as values of `T`. `None`: they are not aligned, or not a multiple of its size.
pub(super) fn cast<T: Plain>(bytes: &mut [u8]) -> Option<&mut [T]> {
    // SAFETY: any bytes are a valid `T` (`Plain`), and the exclusive borrow of the bytes becomes that of the values.
    let (before, values, after) = unsafe { bytes.align_to_mut::<T>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// The same for words that somebody else may change meanwhile.
pub(super) fn cast_shared<T: Plain>(words: &[AtomicU64]) -> Option<&[T]> {
    // SAFETY: any bytes are a valid `T`, and all of its fields are atomic (`Plain`), as the words are.
    let (before, values, after) = unsafe { words.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}
