//! Where a packet begins (behind which link header), and where a fragment belongs in its datagram.

use super::layer4::{self, Layer4};
use super::parsed::{Fragment, ParseError};

/// The link header before the network header; small enough to be passed in a register.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) ethertype: u16,
    pub(super) outer_tci: u16,
    pub(super) inner_tci: u16,
    pub(super) tags: u8,
}

const _: () = assert!(size_of::<Link>() == 8);

impl Link {
    /// Start of the network header.
    #[inline(always)]
    pub(super) fn l3(self) -> u16 {
        14 + 4 * u16::from(self.tags)
    }
}

/// A fragment's place in its datagram; all zero for a whole datagram.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) fragment: Fragment,
    pub(super) offset: u16,
    pub(super) id: u32,
}

impl Place {
    pub(super) const WHOLE: Place = Place { fragment: Fragment::Whole, offset: 0, id: 0 };

    /// The place of a fragment whose length has been checked. `before` bytes precede its data in a
    /// whole datagram and count towards the maximum of 65,535.
    pub(super) fn checked(
        offset: u16,
        id: u32,
        more: bool,
        before: usize,
        data: &[u8],
    ) -> Result<Self, ParseError> {
        let ends_at = before + usize::from(offset) + data.len();
        if data.is_empty() || ends_at > 65_535 || (more && !data.len().is_multiple_of(8)) {
            return Err(ParseError::FragmentLength);
        }
        Ok(Self::unchecked(offset, id))
    }

    pub(super) fn unchecked(offset: u16, id: u32) -> Self {
        let fragment = if offset == 0 { Fragment::First } else { Fragment::Later };
        Self { fragment, offset, id }
    }

    /// The layer-4 header: complete in a whole datagram and in a first fragment, absent in a later
    /// one. A TCP fragment at offset 8 can only serve to rewrite the flags of the first and is
    /// refused (RFC 3128).
    pub(super) fn layer4<const V6: bool>(self, protocol: u8, data: &[u8]) -> Layer4 {
        match self.fragment {
            Fragment::Later if self.offset == 8 && protocol == crate::flow_key::proto::TCP => {
                Layer4::wrong(ParseError::FragmentTiny)
            }
            Fragment::Later => Layer4::NONE,
            Fragment::Whole => layer4::read::<V6>(protocol, data, false),
            Fragment::First => layer4::read::<V6>(protocol, data, true),
        }
    }
}
