//! The run directory: data that a switch keeps until the machine reboots, one for each switch.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

/// A run directory that belongs to this process as long as this value lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Holds the lock. `None`: it is still the predecessor's.
    lock: Option<File>,
}

/// What to do while another running switch has the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    /// Try again.
    Wait,
    /// Use it as well: that switch hands its node over.
    Share,
    /// Give up.
    Fail,
}

impl RunDir {
    /// Locks the directory `wanted`. Without `wanted`: `/run/podswitch/NODE`, or if that cannot be
    /// created `$XDG_RUNTIME_DIR/podswitch/NODE`, or none, with a warning in the log.
    ///
    /// While another running switch has locked it, `busy` is called with its path; to try again it pauses first.
    ///
    /// # Errors
    /// Another running switch has locked it, or `wanted` cannot be created.
    pub(super) fn take(
        wanted: Option<&Path>,
        node: &str,
        busy: impl Fn(&Path) -> Busy,
    ) -> Result<Option<Self>, Failure> {
        let open = |path: &Path| Self::open_or_wait(path, &busy);
        if let Some(path) = wanted {
            return open(path).map(Some).map_err(|error| failure(path, &error));
        }
        let mut last = None;
        for path in Self::candidates(None, node) {
            match open(&path) {
                Ok(taken) => return Ok(Some(taken)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(failure(&path, &error));
                }
                Err(error) => last = Some(format!("{}: {error}", path.display())),
            }
        }
        let reason = last.unwrap_or_default();
        tracing::warn!(target: "run", reason, "no run directory is available: nothing is kept for a restart");
        Ok(None)
    }

    /// The directories that are tried, in this order.
    pub(super) fn candidates(wanted: Option<&Path>, node: &str) -> Vec<PathBuf> {
        if let Some(path) = wanted {
            return vec![path.to_owned()];
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let bases = [Some(PathBuf::from("/run")), runtime.filter(|path| path.is_absolute())];
        bases.into_iter().flatten().map(|base| base.join("podswitch").join(node)).collect()
    }

    /// Creates a run directory that does not exist, for this user only.
    ///
    /// # Errors
    /// It cannot be created.
    pub(crate) fn create(path: &Path) -> Result<(), Failure> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
        created.map_err(|error| failure(path, &error))
    }

    fn open_or_wait(path: &Path, busy: &impl Fn(&Path) -> Busy) -> io::Result<Self> {
        let mut said = false;
        loop {
            let result = Self::open(path);
            let is_busy =
                result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            match if is_busy { busy(path) } else { Busy::Fail } {
                Busy::Share => return Ok(Self { path: path.to_owned(), lock: None }),
                Busy::Wait => {
                    if !said {
                        let path = path.display();
                        tracing::info!(target: "run", %path, "another running switch has the run directory: waiting for it to stop");
                    }
                    said = true;
                }
                Busy::Fail => return result,
            }
        }
    }

    fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path: path.to_owned(), lock: Some(lock) })
    }

    /// Whether another running switch has the lock, and is to hand its node over.
    pub(super) fn is_shared(&self) -> bool {
        self.lock.is_none()
    }

    /// Locks the directory in place of the predecessor, which gives it up. False: it has not.
    pub(super) fn lock(&mut self) -> bool {
        if self.lock.is_none() {
            self.lock = Self::open(&self.path).ok().and_then(|opened| opened.lock);
        }
        self.lock.is_some()
    }

    /// The lock, for a successor. It is held as long as one of both has it open.
    pub(super) fn file(&self) -> Option<&File> {
        self.lock.as_ref()
    }

    /// Holds a predecessor's lock as well.
    pub(super) fn share_lock(&mut self, lock: OwnedFd) {
        self.lock = Some(lock.into());
    }

    /// Whether no switch has the lock.
    pub(super) fn is_free(path: &Path) -> bool {
        Self::open(path).is_ok()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::Setup(match error.kind() {
        io::ErrorKind::WouldBlock => {
            format!("another running switch has the run directory {}", path.display())
        }
        _ => format!("run directory {}: {error}", path.display()),
    })
}
