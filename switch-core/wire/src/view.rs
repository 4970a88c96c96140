//! What all header views have in common. A view lays getters and setters over bytes that
//! somebody else holds; it copies and allocates nothing.
//!
//! # When a view panics
//! `new_checked` looks at every length that an accessor relies on. After it no getter panics and
//! no setter does, as long as no setter has changed a length since. With `new_unchecked`, or after
//! such a change, an accessor of bytes that are not there panics; `check` tells beforehand.

use core::fmt;

/// Why bytes cannot be looked at as a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The header, or what it says that it is followed by, is cut off.
    Truncated,
    /// A length field contradicts the header itself.
    Length,
    /// A version or type field says that this is another header.
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

/// `M` bytes from place `at`.
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

/// Declares a view: the struct, its constructors, and private access to its bytes. The file
/// that uses it adds `fn check_bytes(&[u8]) -> Result<(), Malformed>` and the accessors.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<T: AsRef<[u8]>> {
            bytes: T,
        }

        impl<T: AsRef<[u8]>> $name<T> {
            /// A view whose bytes are taken as they are (see [`crate::view`] on panics).
            #[inline]
            pub const fn new_unchecked(bytes: T) -> Self {
                Self { bytes }
            }

            /// A view of bytes that hold all that an accessor reads.
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
            /// What is wrong with the header.
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
            #[allow(dead_code, reason = "not every header has use for every helper")]
            fn bytes(&self) -> &[u8] {
                self.bytes.as_ref()
            }
        }

        #[allow(dead_code, reason = "not every header has use for every helper")]
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
