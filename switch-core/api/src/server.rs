//! The server side.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use podswitch_node::NodeCaller;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::background::Background;
use crate::drop_log::DropLog;
use crate::log_level::{self, LogLevel};
use crate::routes::Answer;
use crate::service::{Served, not_get, respond, send, whole};

/// Maximum number of connections at a time; further ones wait.
pub const MAX_CONNECTIONS: usize = 64;
/// Maximum length of a request's header, in bytes.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
/// Timeout for receiving a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens at `path`. Replaces a socket on which nobody listens any more. Only root may connect, and the group `gid` if
/// one is given.
///
/// # Errors
/// Another process listens there; something other than a socket exists there; the folder does not exist or may not be
/// written to.
pub fn bind(path: &Path, gid: Option<u32>) -> io::Result<StdListener> {
    match std::fs::symlink_metadata(path) {
        // Connecting to a regular file is refused, too.
        Ok(found) if found.file_type().is_socket() => match StdStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            _ => {
                let reason = "another process listens there";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
            }
        },
        Ok(_) => {
            let reason = "there is something else than a socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        Err(_) => {}
    }
    let listener = StdListener::bind(path)?;
    permit(path, gid)?;
    Ok(listener)
}

/// Goes on with a socket that another process made and handed over: only root may connect, and the group `gid` if one is
/// given. `None`: it is not at `path`.
///
/// # Errors
/// The permissions cannot be set.
pub fn adopt(socket: OwnedFd, path: &Path, gid: Option<u32>) -> io::Result<Option<StdListener>> {
    let listener = StdListener::from(socket);
    if listener.local_addr()?.as_pathname() != Some(path) {
        return Ok(None);
    }
    permit(path, gid)?;
    Ok(Some(listener))
}

fn permit(path: &Path, gid: Option<u32>) -> io::Result<()> {
    let gid = gid.map(rustix::fs::Gid::from_raw);
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if gid.is_some() {
        // A confined process may make this call but not chown(2).
        let (folder, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::empty());
        rustix::fs::chownat(folder, path, None, gid, flags)?;
    }
    Ok(())
}

/// Serves queries on a thread of its own until it is dropped.
pub struct ApiServer {
    background: Option<Background>,
    path: Option<PathBuf>,
    socket: StdListener,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Starts to serve. `log`: the program's log, whose level root may change; `None`: the path does not exist.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        listener: StdListener,
        node: NodeCaller,
        drops: Arc<DropLog>,
        log: Option<Arc<dyn LogLevel>>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        let socket = listener.try_clone()?;
        let served = Arc::new(Served::new(node, drops));
        let background = Background::start("podswitch-api", accept(listener, served, log))?;
        Ok(Self { background: Some(background), path, socket })
    }

    /// Another process goes on with the [socket](AsFd::as_fd): its file stays.
    pub fn leave_file(&mut self) {
        self.path = None;
    }
}

/// The socket, for a process that goes on with it.
impl AsFd for ApiServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.background = None;
        if let Some(path) = &self.path {
            // Another process may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn accept(listener: StdListener, served: Arc<Served>, log: Option<Arc<dyn LogLevel>>) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&served), log.clone(), place));
            }
            // Out of descriptors, for example: others may be closed in the meantime.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(
    stream: UnixStream,
    served: Arc<Served>,
    log: Option<Arc<dyn LogLevel>>,
    _place: OwnedSemaphorePermit,
) {
    let own = rustix::process::geteuid().as_raw();
    let is_owner = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
    let service = service_fn(|request: Request<Incoming>| {
        let (served, log) = (Arc::clone(&served), log.clone());
        async move {
            Ok::<_, Infallible>(match *request.method() {
                // Only on this socket the log level can be changed.
                _ if request.uri().path() == log_level::PATH => {
                    whole(log_level::answer(request, log, is_owner).await)
                }
                Method::POST if request.uri().path() == "/v1/trace" => match is_owner {
                    true => send(request.uri(), served).await,
                    false => whole(Answer::error(
                        StatusCode::FORBIDDEN,
                        "only root may have packets sent",
                    )),
                },
                Method::GET => respond(request.uri(), served).await,
                _ => whole(not_get()),
            })
        }
    });
    // Errors of a client that closes the connection or does not send HTTP are ignored.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
