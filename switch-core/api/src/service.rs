//! Requests and their answers, for every kind of socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender as BodySender};
use http_body_util::{Either, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode, Uri};
use podswitch_node::{
    CaptureError, DroppedFrames, FlowFilter, FlowQuery, FlowView, Node, NodeCaller, PolicyPage,
    SendError, ServicePage, UnknownName,
};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;

use crate::capture::{self, JsonLines, PcapNg};
use crate::drop_log::DropLog;
use crate::filter::DropFilter;
use crate::map::Map;
use crate::routes::{Answer, CaptureFormat, NodeQuestion, Wanted, answer, read, read_connection};
use crate::trace::{NotSent, send_first_packets};

/// Maximum number of queries for rates at a time, each of which keeps the counters of all selected connections for its
/// interval; further ones wait.
const MAX_SAMPLES: usize = 4;
/// Number of pieces of a stream that may wait for a slow reader before the writer waits.
const STREAM_BUFFER: usize = 64;

pub(crate) type Body = Either<Full<Bytes>, Channel<Bytes, Infallible>>;

/// State shared by all connections.
pub(crate) struct Served {
    node: NodeCaller,
    drops: Arc<DropLog>,
    samples: Semaphore,
}

impl Served {
    pub(crate) fn new(node: NodeCaller, drops: Arc<DropLog>) -> Self {
        Self { node, drops, samples: Semaphore::new(MAX_SAMPLES) }
    }
}

/// The answer to anything but a GET.
pub(crate) fn not_get() -> Answer {
    Answer::error(StatusCode::METHOD_NOT_ALLOWED, "only GET is served")
}

/// Answers a GET.
pub(crate) async fn respond(uri: &Uri, served: Arc<Served>) -> Response<Body> {
    match read(uri.path(), uri.query().unwrap_or_default()) {
        Err(refused) => whole(refused),
        Ok(Wanted::Node(question)) => whole(ask(served, question).await),
        Ok(Wanted::Capture { request, count, seconds, format }) => {
            let begin = move |node: &mut Node| {
                let name = node.snapshot().node.to_string();
                node.capture(&request).map(|capture| (capture, name))
            };
            match with_node(&served, begin).await {
                Ok(Ok((started, node))) => match format {
                    CaptureFormat::PcapNg => streamed("application/x-pcapng", |sender| {
                        capture::stream(PcapNg(started), count, seconds, sender)
                    }),
                    CaptureFormat::Json => streamed("application/x-ndjson", |sender| {
                        let capture = JsonLines { capture: started, node: Some(node) };
                        capture::stream(capture, count, seconds, sender)
                    }),
                },
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
        Ok(Wanted::Policies(query)) => {
            let take = move |node: &Node| {
                let state = node.snapshot();
                move || PolicyPage::read(&state, &query)
            };
            whole(of_state(&served, take).await)
        }
        Ok(Wanted::Services(query)) => {
            let take = move |node: &Node| {
                let state = node.snapshot();
                move || ServicePage::read(&state, &query)
            };
            whole(of_state(&served, take).await)
        }
        Ok(Wanted::Map) => whole(draw(&served).await),
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

/// Answers a POST to `/v1/trace`. The client's right was checked before.
pub(crate) async fn send(uri: &Uri, served: Arc<Served>) -> Response<Body> {
    let question = match read_connection(uri.query().unwrap_or_default()) {
        Ok(question) => question,
        Err(refused) => return whole(refused),
    };
    let sent = with_node(&served, move |node| send_first_packets(node, &question)).await;
    whole(match sent {
        Ok(Ok(sent)) => Answer::json(&serde_json::json!({ "sent": sent })),
        Ok(Err(NotSent::Ends(reason))) => Answer::error(StatusCode::NOT_FOUND, &reason),
        Ok(Err(NotSent::Refused(error))) => {
            let status = match error {
                SendError::InUse(_) => StatusCode::CONFLICT,
                SendError::Host(_) => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_REQUEST,
            };
            Answer::error(status, &error.to_string())
        }
        Err(ended) => ended,
    })
}

/// The last drops as one answer, or as lines followed by new ones.
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

/// An answer of unknown length, which `write` sends piece by piece.
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

pub(crate) fn whole(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(answer.body)));
    *response.status_mut() = answer.status;
    let content_type = HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The activity of the workers during `seconds`, or since they started.
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

/// Answers with the part of the state that `take` gets from the node. It is formatted on a blocking thread, because
/// names are resolved there, which may take long.
async fn of_state<T: serde::Serialize, F: FnOnce() -> T + Send + 'static>(
    served: &Arc<Served>,
    take: impl FnOnce(&Node) -> F + Send + 'static,
) -> Answer {
    let read = match with_node(served, |node| take(node)).await {
        Ok(read) => read,
        Err(ended) => return ended,
    };
    let read = move || Answer::json(&read());
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
        Answer::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
    })
}

async fn draw(served: &Arc<Served>) -> Answer {
    let drops = served.drops.kept();
    match with_node(served, |node| Map::of(node)).await {
        Ok(mut map) => {
            map.add_drops(&drops);
            Answer::json(&map.finish())
        }
        Err(ended) => ended,
    }
}

/// Reads the connection table on a blocking thread, because it may take long: neither the node's thread nor the one
/// that serves connections.
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
    // The semaphore is never closed.
    let _place = served.samples.acquire().await;
    let filter = query.filter.clone();
    let before = read_flows(served, move |view| view.sample(&filter)).await?;
    tokio::time::sleep(interval).await;
    read_flows(served, move |view| Ok(Answer::json(&view.list(&query, Some(&before))?))).await
}

/// Whether the names of a filter for drops exist now, or existed when one of the kept records was made.
async fn check_names(served: &Arc<Served>, filter: &DropFilter) -> Result<(), Answer> {
    let named = |filter: FlowFilter| read_flows(served, move |view| view.check(&filter));
    let checked = named(filter.ends.clone()).await;
    match checked.is_err() && served.drops.kept().iter().any(|frames| filter.takes(frames)) {
        true => Ok(()),
        false => checked,
    }
}

/// Sends one record per line: the last ones, then new ones, until the client closes the connection.
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
