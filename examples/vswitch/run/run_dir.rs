//! The run directory: data that a switch keeps until the machine reboots, one for each switch.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

/// A run directory that belongs to this process as long as this value lives.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl RunDir {
    /// Locks the directory `wanted`. Without `wanted`: `/run/podswitch/NODE`, or if that cannot be
    /// created `$XDG_RUNTIME_DIR/podswitch/NODE`, or none, with a warning in the log.
    ///
    /// While another running switch has locked it, `keep_waiting` is called; it pauses and returns
    /// whether to try again.
    ///
    /// # Errors
    /// Another running switch has locked it, or `wanted` cannot be created.
    pub(super) fn take(
        wanted: Option<&Path>,
        node: &str,
        keep_waiting: impl Fn() -> bool,
    ) -> Result<Option<Self>, Failure> {
        let open = |path: &Path| Self::open_or_wait(path, &keep_waiting);
        if let Some(path) = wanted {
            return open(path).map(Some).map_err(|error| failure(path, &error));
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let bases = [Some(PathBuf::from("/run")), runtime.filter(|path| path.is_absolute())];
        let mut last = None;
        for base in bases.into_iter().flatten() {
            let path = base.join("podswitch").join(node);
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

    fn open_or_wait(path: &Path, keep_waiting: &impl Fn() -> bool) -> io::Result<Self> {
        let mut said = false;
        loop {
            match Self::open(path) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && keep_waiting() => {
                    if !said {
                        let path = path.display();
                        tracing::info!(target: "run", %path, "another running switch has the run directory: waiting for it to stop");
                    }
                    said = true;
                }
                result => return result,
            }
        }
    }

    fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
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
