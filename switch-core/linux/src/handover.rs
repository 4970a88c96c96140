//! Descriptors that a process hands to another one: the messages that carry them, and the set of those received.
//!
//! Used by control threads, at start and when the successor of a running switch comes.

mod channel;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
#[expect(clippy::disallowed_types, reason = "control threads only, while devices are opened")]
use std::sync::Mutex;
use std::sync::{Arc, MutexGuard, PoisonError};

pub use channel::{Channel, Listener, MAX_FILES, Peer, Received};

type Files = BTreeMap<String, Vec<OwnedFd>>;

/// Files of devices that another process handed over, by [`key`](podswitch_core::port::DeviceFiles::key). Each is taken
/// once, by the device that it belongs to. The default: none was handed over.
#[derive(Clone, Default)]
#[expect(clippy::disallowed_types, reason = "control threads only, while devices are opened")]
pub struct Inherited {
    files: Option<Arc<Mutex<Files>>>,
    from: From,
}

/// Who handed the files over.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum From {
    /// A switch that goes on until this one does.
    #[default]
    Predecessor,
    /// A process that kept them when a switch had ended. Nobody else uses them.
    Holder,
}

impl Inherited {
    /// From a predecessor, which goes on until this process does. It may be empty.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<OwnedFd>)>) -> Self {
        Self::of(files, From::Predecessor)
    }

    /// From a process that kept them for a switch that has ended: nobody else forwards. Files that are of no use any more
    /// are closed, and their devices are opened anew. It may be empty.
    pub fn held(files: impl IntoIterator<Item = (String, Vec<OwnedFd>)>) -> Self {
        Self::of(files, From::Holder)
    }

    fn of(files: impl IntoIterator<Item = (String, Vec<OwnedFd>)>, from: From) -> Self {
        Self { files: Some(Arc::new(files.into_iter().collect::<Files>().into())), from }
    }

    /// Whether there is a predecessor, which still has the devices open and forwards.
    pub fn has_predecessor(&self) -> bool {
        self.files.is_some() && self.from == From::Predecessor
    }

    /// Whether there are files that no device has taken.
    pub fn has_files(&self) -> bool {
        self.files().is_some_and(|files| !files.is_empty())
    }

    /// Adds files that the predecessor has handed over later.
    pub fn add(&self, more: impl IntoIterator<Item = (String, Vec<OwnedFd>)>) {
        if let Some(mut files) = self.files() {
            files.extend(more);
        }
    }

    /// Takes the files of a device.
    pub fn take(&self, key: &str) -> Vec<OwnedFd> {
        self.files().and_then(|mut files| files.remove(key)).unwrap_or_default()
    }

    /// Closes the files that no device has taken, and says which they are.
    pub fn close_rest(&self) -> Vec<String> {
        let rest = self.files().map(|mut files| std::mem::take(&mut *files));
        rest.into_iter().flatten().map(|(key, _)| key).collect()
    }

    fn files(&self) -> Option<MutexGuard<'_, Files>> {
        Some(self.files.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Option<Vec<String>> = self.files().map(|files| files.keys().cloned().collect());
        f.debug_tuple("Inherited").field(&keys).finish()
    }
}
