//! Requests and their answers, whatever socket they come by.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender as BodySender};
use http_body_util::{Either, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode, Uri};
use podswitch_node::{DroppedFrames, Node, NodeCaller};
use tokio::sync::broadcast::error::RecvError;

use crate::drop_log::DropLog;
use crate::filter::Filter;
use crate::map::Map;
use crate::routes::{Answer, NodeQuestion, Wanted, answer, read};

/// Pieces of a stream that a slow reader may be behind, before those who write wait.
const STREAM_BUFFER: usize = 64;

pub(crate) type Body = Either<Full<Bytes>, Channel<Bytes, Infallible>>;

/// What all connections share.
pub(crate) struct Served {
    pub(crate) node: NodeCaller,
    pub(crate) drops: Arc<DropLog>,
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
        Ok(Wanted::Map) => whole(draw(served).await),
        Ok(Wanted::Drops { filter, limit, follow: false }) => {
            let mut kept = served.drops.kept();
            kept.retain(|frames| filter.takes_drop(frames));
            let newest = kept.len().saturating_sub(limit);
            let list: Vec<&DroppedFrames> = kept[newest..].iter().map(|frames| &**frames).collect();
            whole(Answer::json(&serde_json::json!({ "drops": list })))
        }
        Ok(Wanted::Drops { filter, limit, follow: true }) => {
            let (sender, body) = Channel::new(STREAM_BUFFER);
            tokio::spawn(follow(served, filter, limit, sender));
            let mut response = Response::new(Either::Right(body));
            let content_type = HeaderValue::from_static("application/x-ndjson");
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        }
    }
}

pub(crate) fn whole(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(answer.body)));
    *response.status_mut() = answer.status;
    let content_type = HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

async fn ask(served: Arc<Served>, question: NodeQuestion) -> Answer {
    with(served, move |node| answer(node, &question)).await.unwrap_or_else(|ended| ended)
}

async fn draw(served: Arc<Served>) -> Answer {
    let drops = served.drops.kept();
    match with(served, Map::of).await {
        Ok(mut map) => {
            map.add_drops(&drops);
            Answer::json(&map.finish())
        }
        Err(ended) => ended,
    }
}

/// Asks the node, which may be busy with a publish for some seconds.
async fn with<T: Send + 'static>(
    served: Arc<Served>,
    question: impl FnOnce(&Node) -> T + Send + 'static,
) -> Result<T, Answer> {
    let asked = tokio::task::spawn_blocking(move || {
        served.node.with(move |node: &mut Node| question(node)).ok()
    });
    let ended = || Answer::error(StatusCode::SERVICE_UNAVAILABLE, "the node has ended");
    asked.await.ok().flatten().ok_or_else(ended)
}

/// Sends one record a line: the last ones, then what comes, until the client goes away.
async fn follow(
    served: Arc<Served>,
    filter: Filter,
    limit: usize,
    mut sender: BodySender<Bytes, Infallible>,
) {
    let (mut kept, mut live) = served.drops.follow();
    kept.retain(|frames| filter.takes_drop(frames));
    let newest = kept.len().saturating_sub(limit);
    for frames in kept.drain(newest..) {
        if sender.send_data(line(&*frames)).await.is_err() {
            return;
        }
    }
    drop(kept);
    loop {
        let line = match live.recv().await {
            Ok(frames) if filter.takes_drop(&frames) => line(&*frames),
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
