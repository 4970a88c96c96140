//! The record of devices' open files, as it goes to another process: names, and how many files each has in a message.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use podswitch_core::port::DeviceFiles;
use podswitch_linux::handover::MAX_FILES;

/// Names of devices, and how many files of each are in this message. Those of one device may be in several.
pub(crate) type Names = Vec<(String, usize)>;

/// One message: names, and the files in the same order.
pub(crate) type Part<'a> = (Names, Vec<BorrowedFd<'a>>);

/// Files with the names of their devices.
pub(crate) fn named<'a>(
    files: impl IntoIterator<Item = &'a DeviceFiles>,
) -> impl Iterator<Item = (&'a str, BorrowedFd<'a>)> {
    files.into_iter().flat_map(|of| of.files.iter().map(|file| (of.key.as_str(), file.as_fd())))
}

/// The messages that carry these files, which stay open here.
pub(crate) fn messages<'a>(
    files: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>,
) -> Vec<Part<'a>> {
    let all: Vec<(&str, BorrowedFd<'_>)> = files.collect();
    let message = |chunk: &[(&str, BorrowedFd<'a>)]| {
        let mut names = Names::new();
        for (key, _) in chunk {
            match names.last_mut() {
                Some((last, count)) if last == key => *count += 1,
                _ => names.push(((*key).to_owned(), 1)),
            }
        }
        (names, chunk.iter().map(|(_, file)| *file).collect())
    };
    all.chunks(MAX_FILES).map(message).collect()
}

/// Adds the files of one message to those received before.
pub(crate) fn collect(
    all: &mut BTreeMap<String, Vec<OwnedFd>>,
    names: Names,
    received: Vec<OwnedFd>,
) {
    let mut received = received.into_iter();
    for (key, count) in names {
        all.entry(key).or_default().extend(received.by_ref().take(count));
    }
}
