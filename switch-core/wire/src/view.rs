//! The common part of all header views. A view provides getters and setters for bytes that the
//! caller owns; it copies and allocates nothing.
//!
//! # When a view panics
//! `new_checked` checks every length that an accessor relies on. After it no getter or setter
//! panics, unless a setter has changed a length since. With `new_unchecked`, or after such a
//! change, an accessor panics if its bytes are missing; call `check` to find that out beforehand.

use core::fmt;

/// Why bytes are not a valid header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The header, or content that it announces, is truncated.
    Truncated,
    /// A length field contradicts the header itself.
    Length,
    /// A version or type field belongs to a different header.
    Kind,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "header or packet is cut off",
            Self::Length => "a length field contradicts the header",
            Self::Kind => "not this kind of header",
        })
    }
}

impl core::error::Error for Malformed {}

/// `M` bytes at offset `at`.
#[inline(always)]
pub(crate) fn array<const M: usize>(bytes: &[u8], at: usize) -> [u8; M] {
    let mut array = [0; M];
    array.copy_from_slice(&bytes[at..at + M]);
    array
}

#[inline(always)]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

#[inline(always)]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// Declares a view: the struct, its constructors, and private access to its bytes. The file that
/// uses it adds `fn check(&[u8]) -> Result<(), Malformed>` and the accessors.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<T: AsRef<[u8]>> {
            bytes: T,
        }

        impl<T: AsRef<[u8]>> $name<T> {
            /// A view without checks (see [`crate::view`] on panics).
            #[inline]
            pub const fn new_unchecked(bytes: T) -> Self {
                Self { bytes }
            }

            /// A view of bytes, checked to hold everything that the accessors read.
            ///
            /// # Errors
            /// As [`check`](Self::check).
            #[inline]
            pub fn new_checked(bytes: T) -> Result<Self, crate::view::Malformed> {
                let view = Self::new_unchecked(bytes);
                view.check()?;
                Ok(view)
            }

            /// Whether no accessor will panic.
            ///
            /// # Errors
            /// The error in the header.
            #[inline]
            pub fn check(&self) -> Result<(), crate::view::Malformed> {
                $check(self.bytes.as_ref())
            }

            /// The bytes underneath.
            #[inline]
            pub fn into_inner(self) -> T {
                self.bytes
            }

            #[inline(always)]
            #[allow(dead_code, reason = "not every header uses every helper")]
            fn bytes(&self) -> &[u8] {
                self.bytes.as_ref()
            }
        }

        #[allow(dead_code, reason = "not every header uses every helper")]
        impl<T: AsRef<[u8]> + AsMut<[u8]>> $name<T> {
            #[inline(always)]
            fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
                self.bytes.as_mut()[at..at + N].copy_from_slice(&bytes);
            }

            #[inline(always)]
            fn put_bits(&mut self, at: usize, mask: u8, bits: u8) {
                let byte = &mut self.bytes.as_mut()[at];
                *byte = (*byte & !mask) | (bits & mask);
            }
        }
    };
}
pub(crate) use view;
