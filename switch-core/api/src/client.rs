//! The client side.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Timeout of an answer that is not a stream: a node answers between two publishes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a query got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("{path}: {error}: is the switch running, and may this user connect?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// The answer is an error about the query.
    #[error("{0}")]
    Refused(String),
    /// The answer did not arrive, or not completely.
    #[error("no answer: {0}")]
    Answer(String),
}

/// A client of one node's control socket. Each query has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket at `path`. Connects with the first query.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The answer to a path with its query ([`query`](Self::query)).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, uri: &str) -> Result<T, ClientError> {
        self.get_after(uri, Duration::ZERO)
    }

    /// As [`get`](Self::get), for an answer that takes the node the time `time` to collect.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get_after<T: DeserializeOwned>(
        &self,
        uri: &str,
        time: Duration,
    ) -> Result<T, ClientError> {
        let text = self.whole(Method::GET, uri, Bytes::new(), time)?;
        serde_json::from_str(&text).map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// As [`get`](Self::get), but returns the answer unparsed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn text(&self, uri: &str) -> Result<String, ClientError> {
        self.whole(Method::GET, uri, Bytes::new(), Duration::ZERO)
    }

    /// Changes the resource at a path; returns the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn put<T: DeserializeOwned>(
        &self,
        uri: &str,
        value: &impl Serialize,
    ) -> Result<T, ClientError> {
        let wrong = |error: serde_json::Error| ClientError::Answer(error.to_string());
        let body = serde_json::to_vec(value).map_err(wrong)?.into();
        serde_json::from_str(&self.whole(Method::PUT, uri, body, Duration::ZERO)?).map_err(wrong)
    }

    /// Has something done that a path with its query describes; returns the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<T: DeserializeOwned>(&self, uri: &str) -> Result<T, ClientError> {
        let text = self.whole(Method::POST, uri, Bytes::new(), Duration::ZERO)?;
        serde_json::from_str(&text).map_err(|error| ClientError::Answer(error.to_string()))
    }

    fn whole(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
        time: Duration,
    ) -> Result<String, ClientError> {
        let asked = async {
            let response = self.send(method, uri, body).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(answer)?.to_bytes();
            let text = String::from_utf8_lossy(&body).into_owned();
            match parts.status {
                StatusCode::OK => Ok(text),
                _ => Err(ClientError::Refused(reason(&text))),
            }
        };
        runtime()?.block_on(async {
            let late = |_| ClientError::Answer("the node is busy".to_owned());
            tokio::time::timeout(ANSWER_TIMEOUT + time, asked).await.map_err(late)?
        })
    }

    /// Calls `each` with each line of an endless answer, until it returns false or the node stops.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn lines(&self, uri: &str, mut each: impl FnMut(&str) -> bool) -> Result<(), ClientError> {
        let mut pending = Vec::new();
        self.pieces(uri, |piece| {
            pending.extend_from_slice(piece);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if !each(String::from_utf8_lossy(&line).trim_end()) {
                    return false;
                }
            }
            true
        })
    }

    /// Calls `each` with each piece of an answer as it arrives, until it returns false or the
    /// answer ends.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn pieces(
        &self,
        uri: &str,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), ClientError> {
        runtime()?.block_on(async {
            let mut response = self.send(Method::GET, uri, Bytes::new()).await?;
            if response.status() != StatusCode::OK {
                let body = response.into_body().collect().await.map_err(answer)?.to_bytes();
                return Err(ClientError::Refused(reason(&String::from_utf8_lossy(&body))));
            }
            while let Some(frame) = response.frame().await {
                let Ok(data) = frame.map_err(answer)?.into_data() else { continue };
                if !each(&data) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    /// A path with those parameters that have a value.
    pub fn query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in parameters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        match query.finish() {
            query if query.is_empty() => path.to_owned(),
            query => format!("{path}?{query}"),
        }
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let connect = |error| ClientError::Connect { path: self.path.clone(), error };
        let stream = UnixStream::connect(&self.path).await.map_err(connect)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
        // Ends with the connection. Errors of the connection are reported by the request.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder().method(method).uri(uri).header(HOST, "podswitch");
        let request = request.body(Full::new(body));
        let request = request.map_err(|error| ClientError::Refused(error.to_string()))?;
        sender.send_request(request).await.map_err(answer)
    }
}

fn answer(error: hyper::Error) -> ClientError {
    ClientError::Answer(error.to_string())
}

/// The reason in an error response.
fn reason(body: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let reason = value.as_ref().and_then(|value| value.get("error")?.as_str());
    reason.unwrap_or(body).to_owned()
}

fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Answer(error.to_string()))
}
