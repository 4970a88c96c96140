//! Offloads of a network device (ethtool features), by name.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;
use super::interface::named;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// The list of strings that names features.
const ETH_SS_FEATURES: u32 = 4;
/// Length of each name, in bytes.
const NAME: usize = 32;
/// More features than any kernel has (64 so far).
const MOST: usize = 512;

/// Whether the feature is active on the device `name` in the namespace of `socket`. False for a
/// feature that this kernel does not know.
pub(crate) fn has_feature(socket: BorrowedFd<'_>, name: &str, feature: &str) -> io::Result<bool> {
    // struct ethtool_sset_info: command, reserved, 64-bit mask of lists, a count for each.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    request(socket, name, &mut info)?;
    let count = (info[4] as usize).min(MOST);
    // struct ethtool_gstrings: command, list, count, names.
    let mut names = vec![0u32; 3 + count * NAME / 4];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    request(socket, name, &mut names)?;
    let bytes: Vec<u8> = names[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let is_it = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next() == Some(feature.as_bytes());
    let Some(at) = bytes.chunks(NAME).position(is_it) else { return Ok(false) };
    // struct ethtool_gfeatures: command, number of blocks; available, wanted, active, never changed.
    let blocks = count.div_ceil(32);
    let mut features = vec![0u32; 2 + blocks * 4];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    request(socket, name, &mut features)?;
    Ok(features[2 + at / 32 * 4 + 2] & 1 << (at % 32) != 0)
}

/// `value` must begin with an ethtool command and be as long as its own fields say.
fn request(socket: BorrowedFd<'_>, name: &str, value: &mut [u32]) -> io::Result<()> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads an `ifreq` that points to the command's struct; `has_feature` made
    // each as long as its count says, and the kernel writes no more than that.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })
        .map(drop)
}
