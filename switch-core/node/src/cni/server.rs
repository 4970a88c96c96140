//! The agent's socket: one connection, one call, one answer. Only root may connect.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::CniError;
use super::key::Key;
use super::protocol::{self, Answer, Call, read_frame, write_frame};
use super::request::Request;
use super::shared::{AnsweredCall, CniEvent, Shared};

/// Calls that are served concurrently. Others wait in the socket's queue, limited by the plugin's
/// own timeout.
const MAX_CALLS: usize = 256;
/// Timeout for receiving a call, and for sending its answer.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the accepting thread checks whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// Creates the socket. Replaces one that a dead agent left.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let text = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        if UnixStream::connect(path).is_ok() {
            let text = format!("{} is in use by another running switch", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The accepting thread.
pub(super) struct Server {
    thread: JoinHandle<()>,
}

impl Server {
    pub(super) fn start(listener: Arc<UnixListener>, shared: Arc<Shared>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let thread = std::thread::Builder::new().name("cni-accept".into()).spawn(move || {
            podswitch_linux::confine::worker_thread();
            accept(&listener, &shared);
        })?;
        Ok(Self { thread })
    }

    /// Waits until the thread and the calls in progress have ended.
    pub(super) fn stop(self) {
        // A panic was printed by the thread itself.
        let _ = self.thread.join();
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let calls = Arc::new(AtomicUsize::new(0));
    while !shared.stop.load(Relaxed) {
        if calls.load(Relaxed) >= MAX_CALLS || !is_readable(listener) {
            if calls.load(Relaxed) >= MAX_CALLS {
                std::thread::sleep(Duration::from_millis(5));
            }
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        calls.fetch_add(1, Relaxed);
        let (of_thread, counter) = (shared.clone(), calls.clone());
        let spawned = std::thread::Builder::new().name("cni-call".into()).spawn(move || {
            let _counted = Counted(counter);
            serve(&of_thread, stream);
        });
        if let Err(error) = spawned {
            calls.fetch_sub(1, Relaxed);
            shared.report(CniEvent::Note(format!("a call cannot be answered: {error}")));
        }
    }
    // Allow a call in progress some time to be answered.
    let end = Instant::now() + FRAME_TIMEOUT;
    while calls.load(Relaxed) > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Decrements the number of calls when it is dropped, even by a panic.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn is_readable(listener: &UnixListener) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(STOP_INTERVAL.subsec_nanos()) };
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

fn serve(shared: &Arc<Shared>, stream: UnixStream) {
    let received = Instant::now();
    if let Err(error) = talk(shared, stream, received) {
        shared.report(CniEvent::Note(format!("a call was not answered: {error}")));
    }
}

fn talk(shared: &Arc<Shared>, mut stream: UnixStream, received: Instant) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(FRAME_TIMEOUT))?;
    stream.set_write_timeout(Some(FRAME_TIMEOUT))?;
    let uid = podswitch_linux::peer_user(&stream)?;
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        let text = format!("user {uid} is not permitted");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let frame = read_frame(&mut stream)?;
    if frame.is_empty() {
        // A probe whether the agent is running.
        return Ok(());
    }
    let answer = answer(shared, &frame, received);
    write_frame(&mut stream, &serde_json::to_vec(&answer).map_err(io::Error::other)?)
}

fn answer(shared: &Arc<Shared>, frame: &[u8], received: Instant) -> Answer {
    let failed = |error: &CniError, config: &str| {
        let version = Request::version_of(config);
        Answer { version: protocol::VERSION, status: 1, output: error.to_json(version.as_str()) }
    };
    let call: Call = match serde_json::from_slice(frame) {
        Ok(call) => call,
        Err(error) => {
            let error = CniError::new(CniError::DECODE, format!("call of the plugin: {error}"));
            return failed(&error, "");
        }
    };
    if call.version != protocol::VERSION {
        let message = format!(
            "the plugin speaks version {} of the agent's protocol, and the agent {}",
            call.version,
            protocol::VERSION
        );
        return failed(&CniError::new(CniError::SYSTEM, message), &call.config);
    }
    let of = |name: &str| call.environment.get(name).cloned().unwrap_or_default();
    let (container, interface) = (of("CNI_CONTAINERID"), of("CNI_IFNAME"));
    let pod = pod_of(&of("CNI_ARGS")).or_else(|| shared.pod_of(&container, &interface));
    let result = shared.answer(&call, received);
    shared.report(CniEvent::Answered(Box::new(AnsweredCall {
        verb: of("CNI_COMMAND"),
        container,
        interface,
        pod: pod.unwrap_or_default(),
        duration: received.elapsed(),
        error: result.as_ref().err().cloned(),
    })));
    let (verb, code) = (of("CNI_COMMAND"), result.as_ref().err().map_or(0, |error| error.code));
    shared.meters.cni(&verb, code, received.elapsed());
    match result {
        Ok(output) => Answer { version: protocol::VERSION, status: 0, output },
        Err(error) => failed(&error, &call.config),
    }
}

/// The pod that `CNI_ARGS` names, `namespace/name`.
fn pod_of(arguments: &str) -> Option<String> {
    let of = |name: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(found, value)| (found == name).then_some(value))
    };
    Some(format!("{}/{}", of("K8S_POD_NAMESPACE")?, of("K8S_POD_NAME")?))
}

impl Shared {
    /// The pod of an attachment, from its lease.
    fn pod_of(&self, container: &str, interface: &str) -> Option<String> {
        let key = Key { container: container.to_owned(), interface: interface.to_owned() };
        let state = self.state();
        let lease = state.leases.get(&key).filter(|lease| lease.is_pod)?;
        Some(lease.pod.clone())
    }
}
