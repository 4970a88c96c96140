//! Network namespaces: named ones that others find by path, anonymous ones held by a descriptor,
//! and running code inside them.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Context, HostError};
use crate::sys;

/// Where iproute2 keeps the names of network namespaces; also used here if it is writable.
const SYSTEM_DIRECTORY: &str = "/run/netns";

/// A network namespace. Clones share it. A namespace that [`create`](Self::create) made under a
/// name loses that name when the last clone is dropped, unless [`keep`](Self::keep) was called. It
/// is removed when nothing refers to it any more.
///
/// ```no_run
/// # use podswitch_linux::NetNs;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let ns = NetNs::create("blue")?;
/// let listener = ns.enter(|| std::net::TcpListener::bind("[::]:80"))??;
/// // `listener` stays inside `ns`, whatever thread uses it.
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NetNs {
    inner: Arc<Inner>,
}

struct Inner {
    fd: Arc<OwnedFd>,
    /// The path that it was opened by or is mounted on.
    path: Option<PathBuf>,
    /// Whether to remove `path` on drop.
    owned: std::sync::atomic::AtomicBool,
}

impl NetNs {
    /// The network namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self, HostError> {
        Self::from_path(Path::new("/proc/thread-self/ns/net"), None)
    }

    /// The namespace that `path` names: a mount as `ip netns` makes it, `/proc/PID/ns/net`, or
    /// `/proc/PID/fd/N`.
    ///
    /// # Errors
    /// Nothing exists there, or it is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, HostError> {
        let path = path.as_ref();
        Self::from_path(path, Some(path.to_owned()))
    }

    /// The namespace of the given name under [`directory`](Self::directory), or `None`.
    ///
    /// # Errors
    /// The name refers to something other than a network namespace.
    pub fn find(name: &str) -> Result<Option<Self>, HostError> {
        let path = Self::directory().join(checked_name(name)?);
        match Self::open(&path) {
            Ok(ns) => Ok(Some(ns)),
            // A regular file is left if the mount of a name is gone.
            Err(error)
                if error.is_not_found() || fs::metadata(&path).is_ok_and(|m| m.is_file()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a namespace without a name. It exists as long as this value, a clone, a process or a
    /// socket in it. Its loopback interface is up.
    ///
    /// # Errors
    /// Missing privilege (CAP_SYS_ADMIN), or the system's limit of namespaces.
    pub fn anonymous() -> Result<Self, HostError> {
        let fd = new_namespace(|| Ok(()))?;
        let ns = Self::from_fd(fd, None, false);
        ns.bring_up_loopback()?;
        Ok(ns)
    }

    /// Creates a namespace that others find as `name`, as `ip netns add` does. Its loopback
    /// interface is up. A name left from a removed namespace is reused.
    ///
    /// # Errors
    /// The name is in use (`is_already_there`), or missing privilege.
    pub fn create(name: &str) -> Result<Self, HostError> {
        let name = checked_name(name)?;
        let directory = Self::directory();
        prepare_directory(&directory)?;
        let path = directory.join(name);
        if Self::find(name)?.is_some() {
            return Err(HostError::new(
                format!("create network namespace {name}"),
                io::Error::from_raw_os_error(libc::EEXIST),
            ));
        }
        File::create(&path).context(|| format!("create {}", path.display()))?;
        let fd = new_namespace(|| {
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &path)
                .context(|| format!("mount network namespace on {}", path.display()))
        })
        .inspect_err(|_| drop(fs::remove_file(&path)))?;
        let ns = Self::from_fd(fd, Some(path), true);
        ns.bring_up_loopback()?;
        Ok(ns)
    }

    /// The namespace with the given name; created if it does not exist. If it existed before, its
    /// name is kept when this value is dropped.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn find_or_create(name: &str) -> Result<Self, HostError> {
        match Self::find(name)? {
            Some(ns) => Ok(ns),
            None => Self::create(name),
        }
    }

    /// Removes a name. The namespace itself is removed when nothing else refers to it.
    ///
    /// # Errors
    /// There is no such name, or missing privilege.
    pub fn remove(name: &str) -> Result<(), HostError> {
        let path = Self::directory().join(checked_name(name)?);
        remove_name(&path).context(|| format!("remove network namespace {name}"))
    }

    /// The folder of named namespaces: `/run/netns` if it can be written (root can), otherwise a
    /// folder of this user.
    pub fn directory() -> PathBuf {
        let system = Path::new(SYSTEM_DIRECTORY);
        let probe = if system.exists() { system } else { Path::new("/run") };
        let writable = rustix::fs::access(probe, rustix::fs::Access::WRITE_OK).is_ok();
        if writable {
            return system.to_owned();
        }
        let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|d| d.is_dir());
        match own {
            Some(directory) => directory.join("podswitch"),
            None => std::env::temp_dir().join(format!("podswitch-{}", outer_uid())),
        }
    }

    /// Keeps the namespace's name when this value is dropped.
    pub fn keep(&self) {
        self.inner.owned.store(false, std::sync::atomic::Ordering::Relaxed);
    }

    /// Removes the namespace's name when the last clone of this value is dropped.
    pub fn remove_on_drop(&self) {
        self.inner.owned.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// A path that opens this namespace. For an anonymous namespace it leads through this process
    /// and is valid while this value lives.
    pub fn path(&self) -> PathBuf {
        self.inner.path.clone().unwrap_or_else(|| {
            use std::os::fd::AsRawFd;
            format!("/proc/{}/fd/{}", std::process::id(), self.inner.fd.as_raw_fd()).into()
        })
    }

    /// Whether both are the same namespace.
    pub fn is_same(&self, other: &NetNs) -> bool {
        matches!((self.id(), other.id()), (Ok(a), Ok(b)) if a == b)
    }

    /// Device and inode, unique while this namespace exists.
    ///
    /// # Errors
    /// The kernel refuses the query, which is not expected.
    pub fn id(&self) -> Result<(u64, u64), HostError> {
        let status = rustix::fs::fstat(&*self.inner.fd).context(|| format!("look at {self}"))?;
        Ok((status.st_dev as u64, status.st_ino as u64))
    }

    /// A number that no other namespace gets before the next boot, not even after this one was
    /// removed.
    ///
    /// # Errors
    /// The namespace could not be entered; a kernel before 5.14.
    pub fn cookie(&self) -> Result<u64, HostError> {
        let cookie = self.enter(|| sys::ns::cookie(UnixDatagram::unbound()?.as_fd()))?;
        cookie.context(|| format!("read the cookie of {self}"))
    }

    /// Runs `f` on a new thread inside the namespace and returns its result. Sockets and devices
    /// opened there stay there. A panic of `f` is passed on to the caller.
    ///
    /// # Errors
    /// The namespace could not be entered (missing privilege); `f` did not run.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, HostError> {
        thread::scope(|scope| {
            let inside = || {
                self.enter_thread()?;
                Ok(f())
            };
            let handle = thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, inside)
                .context(|| "start a thread".into())?;
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread named `name` that runs `f` inside the namespace: a server, or anything else
    /// that runs while the caller does other things.
    ///
    /// # Errors
    /// The thread could not be started; entering the namespace fails in the thread's result.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, HostError>>, HostError> {
        let ns = self.clone();
        let inside = move || {
            ns.enter_thread()?;
            Ok(f())
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(inside)
            .context(|| format!("start thread {name}"))
    }

    /// A command that will start `program` inside the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::ns::enter_before_exec(&mut command, Arc::clone(&self.inner.fd));
        command
    }

    fn enter_thread(&self) -> Result<(), HostError> {
        move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))
            .context(|| format!("enter {self}"))
    }

    fn bring_up_loopback(&self) -> Result<(), HostError> {
        self.enter(sys::interface::bring_up_loopback)?.context(|| format!("bring up lo in {self}"))
    }

    fn from_path(path: &Path, keep_path: Option<PathBuf>) -> Result<Self, HostError> {
        let operation = || format!("open network namespace {}", path.display());
        let file = open_namespace_file(path).context(operation)?;
        Self::checked(file.into(), keep_path, operation)
    }

    fn checked(
        fd: OwnedFd,
        path: Option<PathBuf>,
        operation: impl Fn() -> String,
    ) -> Result<Self, HostError> {
        // Queries the kind of namespace; for other files the kernel returns ENOTTY.
        let kind = sys::ns::kind(fd.as_fd()).context(&operation)?;
        if kind != libc::CLONE_NEWNET {
            return Err(HostError::invalid(operation(), "it is a namespace of another kind"));
        }
        Ok(Self::from_fd(fd, path, false))
    }

    fn from_fd(fd: OwnedFd, path: Option<PathBuf>, owned: bool) -> Self {
        Self { inner: Arc::new(Inner { fd: Arc::new(fd), path, owned: owned.into() }) }
    }
}

impl TryFrom<OwnedFd> for NetNs {
    type Error = HostError;

    /// The namespace behind a descriptor, such as one that another process passed.
    fn try_from(fd: OwnedFd) -> Result<Self, HostError> {
        Self::checked(fd, None, || "use a descriptor as a network namespace".to_owned())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.path {
            Some(path) => write!(f, "network namespace {}", path.display()),
            None => write!(f, "network namespace {}", self.path().display()),
        }
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owned.load(std::sync::atomic::Ordering::Relaxed)
            && let Some(path) = &self.path
        {
            // There is no caller to report to; a remaining name is reused.
            let _ = remove_name(path);
        }
    }
}

/// Opens a file only if it is a namespace: the path may come from a Pod's annotation. Opening a
/// pipe would block, and opening a device may have side effects.
fn open_namespace_file(path: &Path) -> io::Result<File> {
    /// linux/magic.h
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    // O_PATH looks the file up without opening it.
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&found)?.f_type as i64 != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a namespace"));
    }
    // Opens the file that was looked up, even if the path leads to another one now.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(File::from(rustix::fs::open(again, flags, Mode::empty())?))
}

/// Creates a namespace on a thread that ends at once, so that no other thread is ever in it, and
/// runs `inside` there.
fn new_namespace(
    inside: impl FnOnce() -> Result<(), HostError> + Send,
) -> Result<OwnedFd, HostError> {
    thread::scope(|scope| {
        let make = || {
            sys::ns::unshare_net().context(|| "create a network namespace".into())?;
            inside()?;
            let file = File::open("/proc/thread-self/ns/net")
                .context(|| "open the new network namespace".into())?;
            Ok(file.into())
        };
        let handle = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, make)
            .context(|| "start a thread".into())?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Creates the folder of names.
fn prepare_directory(directory: &Path) -> Result<(), HostError> {
    let operation = || format!("prepare {}", directory.display());
    let is_system = directory == Path::new(SYSTEM_DIRECTORY);
    let mode = if is_system { 0o755 } else { 0o700 };
    fs::DirBuilder::new().recursive(true).mode(mode).create(directory).context(operation)?;
    if is_system { share_mounts(directory) } else { check_owner(directory) }
}

/// Makes mounts in the folder propagate to other mount namespaces, as iproute2 does: otherwise a
/// container started now would keep a copy of each mount.
fn share_mounts(directory: &Path) -> Result<(), HostError> {
    let operation = || format!("share mounts in {}", directory.display());
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(directory, shared) {
        // Not a mount point yet.
        Err(rustix::io::Errno::INVAL) => rustix::mount::mount_bind_recursive(directory, directory)
            .and_then(|()| rustix::mount::mount_change(directory, shared))
            .context(operation),
        result => result.context(operation),
    }
}

/// A folder in a shared temporary directory may belong to another user.
fn check_owner(directory: &Path) -> Result<(), HostError> {
    let operation = || format!("use {}", directory.display());
    let metadata = fs::symlink_metadata(directory).context(operation)?;
    if metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(HostError::invalid(operation(), "it is not a folder of this user's own"))
}

/// This user's ID outside the user namespace.
fn outer_uid() -> u32 {
    let inner = rustix::process::geteuid().as_raw();
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines()
        .find_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            let (first, outside) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            let count = numbers.next()?.ok()?;
            let offset = inner.checked_sub(first).filter(|offset| *offset < count)?;
            outside.checked_add(offset)
        })
        .unwrap_or(inner)
}

fn remove_name(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Not mounted: a regular file.
        Ok(()) | Err(rustix::io::Errno::INVAL) => fs::remove_file(path)?,
        Err(errno) => return Err(errno.into()),
    }
    if let Some(directory) = path.parent().filter(|d| *d != Path::new(SYSTEM_DIRECTORY)) {
        // This user's folder is removed with the last name in it.
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

fn checked_name(name: &str) -> Result<&str, HostError> {
    let plain = !name.is_empty()
        && name.len() < 256
        && !matches!(name, "." | "..")
        && !name.as_bytes().iter().any(|b| matches!(b, b'/' | 0));
    if plain {
        Ok(name)
    } else {
        Err(HostError::invalid(
            format!("name a network namespace {name:?}"),
            "a name is a file name of at most 255 bytes",
        ))
    }
}
