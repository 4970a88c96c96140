//! The listening end.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender as BodySender};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use podswitch_linux::confine::worker_thread;
use podswitch_node::{
    CaptureError, DroppedFrames, FlowFilter, FlowQuery, FlowView, Node, NodeCaller, UnknownName,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::capture;
use crate::drop_log::DropLog;
use crate::filter::DropFilter;
use crate::log_level::{self, LogLevel};
use crate::routes::{Answer, NodeQuestion, Wanted, answer, read};

/// The most connections at a time; further ones wait.
pub const MAX_CONNECTIONS: usize = 64;
/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long a client may take to send a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Queries for rates at a time, each of which keeps the counters of all selected connections for its interval; further
/// ones wait.
const MAX_SAMPLES: usize = 4;
/// Pieces of a stream that a slow reader may be behind, before those who write wait.
const STREAM_BUFFER: usize = 64;

type Body = Either<Full<Bytes>, Channel<Bytes, Infallible>>;

/// Listens at `path`, in place of a socket that nobody listens at any more. Root alone may connect, and the group
/// `gid` if one is given.
///
/// # Errors
/// Another process listens there; there is something else than a socket; the folder does not exist or may not be
/// written to.
pub fn bind(path: &Path, gid: Option<u32>) -> io::Result<StdListener> {
    match std::fs::symlink_metadata(path) {
        // Connecting to an ordinary file is refused, too.
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
    let gid = gid.map(rustix::fs::Gid::from_raw);
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if gid.is_some() {
        // A confined process may make this call and not chown(2).
        let (folder, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::empty());
        rustix::fs::chownat(folder, path, None, gid, flags)?;
    }
    Ok(listener)
}

/// Answers on a thread of its own until it is dropped.
pub struct ApiServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    path: Option<PathBuf>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What all connections share.
struct Served {
    node: NodeCaller,
    drops: Arc<DropLog>,
    samples: Semaphore,
    log: Option<Arc<dyn LogLevel>>,
}

impl ApiServer {
    /// Starts to answer. `log`: the program's log, whose level root may change; `None`: no such path.
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
        // One thread answers; a few more wait for the node's.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_name("podswitch-api")
            .on_thread_start(worker_thread)
            .build()?;
        let samples = Semaphore::new(MAX_SAMPLES);
        let served = Arc::new(Served { node, drops, samples, log });
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("podswitch-api".into()).spawn(move || {
            // The node's thread does what takes privilege.
            worker_thread();
            runtime.spawn(accept(listener, served));
            // The sender's end is its drop.
            let _ = runtime.block_on(stopped);
            // A question that the node has not answered yet is nobody's to wait for.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), path })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panicked: there is nothing left to end.
            let _ = thread.join();
        }
        if let Some(path) = &self.path {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn accept(listener: StdListener, served: Arc<Served>) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, Arc::clone(&served), place));
            }
            // Out of descriptors, for example: others may be closed meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(stream: UnixStream, served: Arc<Served>, _place: OwnedSemaphorePermit) {
    let own = rustix::process::geteuid().as_raw();
    let is_owner = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
    let service = service_fn(|request| {
        let served = Arc::clone(&served);
        async move { Ok::<_, Infallible>(respond(request, served, is_owner).await) }
    });
    // A client that goes away, or sends no HTTP, is its own affair.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    request: Request<Incoming>,
    served: Arc<Served>,
    is_owner: bool,
) -> Response<Body> {
    if request.uri().path() == log_level::PATH {
        return whole(log_level::answer(request, served.log.clone(), is_owner).await);
    }
    if request.method() != Method::GET {
        return whole(Answer::error(StatusCode::METHOD_NOT_ALLOWED, "only GET is served"));
    }
    let uri = request.uri();
    match read(uri.path(), uri.query().unwrap_or_default()) {
        Err(refused) => whole(refused),
        Ok(Wanted::Node(question)) => whole(ask(served, question).await),
        Ok(Wanted::Capture { request, count, seconds }) => {
            match with_node(&served, move |node| node.capture(&request)).await {
                Ok(Ok(started)) => streamed("application/x-pcapng", |sender| {
                    capture::stream(started, count, seconds, sender)
                }),
                Ok(Err(error)) => {
                    let status = match error {
                        CaptureError::UnknownName(_) => StatusCode::NOT_FOUND,
                        _ => StatusCode::CONFLICT,
                    };
                    whole(Answer::error(status, &error.to_string()))
                }
                Err(ended) => whole(ended),
            }
        }
        Ok(Wanted::Perf { seconds }) => whole(perf(served, seconds).await),
        Ok(Wanted::Flows { query, interval }) => {
            whole(flows(&served, query, interval).await.unwrap_or_else(|refused| refused))
        }
        Ok(Wanted::Drops { filter, limit, follow }) => {
            if let Err(refused) = check_names(&served, &filter).await {
                return whole(refused);
            }
            drops(served, filter, limit, follow)
        }
    }
}

/// The last drops in one piece, or with those that come line by line.
fn drops(served: Arc<Served>, filter: DropFilter, limit: usize, follow: bool) -> Response<Body> {
    match follow {
        false => {
            let mut kept = served.drops.kept();
            kept.retain(|frames| filter.takes(frames));
            let newest = kept.len().saturating_sub(limit);
            let list: Vec<&DroppedFrames> = kept[newest..].iter().map(|frames| &**frames).collect();
            whole(Answer::json(&serde_json::json!({ "drops": list })))
        }
        true => {
            streamed("application/x-ndjson", |sender| follow_drops(served, filter, limit, sender))
        }
    }
}

/// An answer without a known end, which `write` sends piece by piece.
fn streamed<F: Future<Output = ()> + Send + 'static>(
    content_type: &'static str,
    write: impl FnOnce(BodySender<Bytes, Infallible>) -> F,
) -> Response<Body> {
    let (sender, body) = Channel::new(STREAM_BUFFER);
    tokio::spawn(write(sender));
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn whole(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(answer.body)));
    *response.status_mut() = answer.status;
    let content_type = HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// What the workers do within `seconds`, or since they began.
async fn perf(served: Arc<Served>, seconds: u64) -> Answer {
    let read = || with_node(&served, |node| node.perf());
    let measured = async {
        let first = read().await?;
        if seconds == 0 {
            return Ok(first.total());
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(read().await?.since(&first))
    };
    match measured.await {
        Ok(perf) => Answer::json(&perf),
        Err(ended) => ended,
    }
}

/// Runs `f` on the node's thread, which may be busy with a publish for some seconds.
async fn with_node<T: Send + 'static>(
    served: &Arc<Served>,
    f: impl FnOnce(&mut Node) -> T + Send + 'static,
) -> Result<T, Answer> {
    let node = served.node.clone();
    let asked = tokio::task::spawn_blocking(move || node.with(f).ok()).await;
    let ended = || Answer::error(StatusCode::SERVICE_UNAVAILABLE, "the node has ended");
    asked.ok().flatten().ok_or_else(ended)
}

async fn ask(served: Arc<Served>, question: NodeQuestion) -> Answer {
    let asked = with_node(&served, move |node| answer(node, &question)).await;
    asked.unwrap_or_else(|ended| ended)
}

/// Reads the connection table on a thread that may take its time: neither the node's nor the one that answers.
async fn read_flows<T: Send + 'static>(
    served: &Arc<Served>,
    f: impl FnOnce(&FlowView) -> Result<T, UnknownName> + Send + 'static,
) -> Result<T, Answer> {
    let view = with_node(served, |node| node.flow_view()).await?;
    match tokio::task::spawn_blocking(move || f(&view)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(unknown)) => Err(Answer::error(StatusCode::NOT_FOUND, &unknown.to_string())),
        Err(error) => Err(Answer::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())),
    }
}

async fn flows(
    served: &Arc<Served>,
    query: FlowQuery,
    interval: Option<Duration>,
) -> Result<Answer, Answer> {
    let Some(interval) = interval else {
        return read_flows(served, move |view| Ok(Answer::json(&view.list(&query, None)?))).await;
    };
    // Never closed.
    let _place = served.samples.acquire().await;
    let filter = query.filter.clone();
    let before = read_flows(served, move |view| view.sample(&filter)).await?;
    tokio::time::sleep(interval).await;
    read_flows(served, move |view| Ok(Answer::json(&view.list(&query, Some(&before))?))).await
}

/// Whether the names of a filter for drops stand for something, or did when something that is kept was dropped.
async fn check_names(served: &Arc<Served>, filter: &DropFilter) -> Result<(), Answer> {
    let named = |filter: FlowFilter| read_flows(served, move |view| view.check(&filter));
    let checked = named(filter.ends.clone()).await;
    match checked.is_err() && served.drops.kept().iter().any(|frames| filter.takes(frames)) {
        true => Ok(()),
        false => checked,
    }
}

/// Sends one record a line: the last ones, then what comes, until the client goes away.
async fn follow_drops(
    served: Arc<Served>,
    filter: DropFilter,
    limit: usize,
    mut sender: BodySender<Bytes, Infallible>,
) {
    let (mut kept, mut live) = served.drops.follow();
    kept.retain(|frames| filter.takes(frames));
    let newest = kept.len().saturating_sub(limit);
    for frames in kept.drain(newest..) {
        if sender.send_data(line(&*frames)).await.is_err() {
            return;
        }
    }
    drop(kept);
    loop {
        let line = match live.recv().await {
            Ok(frames) if filter.takes(&frames) => line(&*frames),
            Ok(_) => continue,
            Err(RecvError::Lagged(count)) => line(&serde_json::json!({ "lost": count })),
            Err(RecvError::Closed) => return,
        };
        if sender.send_data(line).await.is_err() {
            return;
        }
    }
}

fn line(value: &impl serde::Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
