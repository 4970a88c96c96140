//! One connection to the server, opened again when it was closed.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::answer::{self, Answer};
use super::endpoint::Endpoint;
use super::options::ElasticsearchOptions;

/// Timeout for opening a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 16 << 20;

/// Opens connections to a server.
pub(super) struct Connector {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    timeout: Duration,
    open: Option<SendRequest<Full<Bytes>>>,
    #[cfg(feature = "tls")]
    tls: Option<super::tls::Tls>,
}

impl Connector {
    pub(super) fn new(options: &ElasticsearchOptions) -> io::Result<Self> {
        if let (Some(file), false) = (&options.ca_file, options.endpoint.is_tls) {
            let (file, endpoint) = (file.display(), &options.endpoint);
            let reason = format!("{file} has certificates to check, but {endpoint} is not https");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(Self {
            endpoint: options.endpoint.clone(),
            authorization: options.credentials.as_ref().map(|credentials| credentials.0.clone()),
            timeout: options.timeout,
            open: None,
            #[cfg(feature = "tls")]
            tls: match options.endpoint.is_tls {
                true => {
                    let ca_file = options.ca_file.as_deref();
                    Some(super::tls::Tls::new(&options.endpoint.host, ca_file)?)
                }
                false => None,
            },
        })
    }

    /// Sends a bulk of `documents`, and waits for the answer.
    pub(super) async fn send(&mut self, body: Bytes, documents: usize) -> Answer {
        // A connection whose answer does not arrive cannot be used again.
        let open = self.open.take();
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.exchange(open, body, documents)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => Answer::Later(reason, None),
            Err(_) => Answer::Later(format!("no answer in {} s", timeout.as_secs_f64()), None),
        }
    }

    async fn exchange(
        &mut self,
        open: Option<SendRequest<Full<Bytes>>>,
        body: Bytes,
        documents: usize,
    ) -> Result<Answer, String> {
        let mut usable = None;
        if let Some(mut open) = open
            && open.ready().await.is_ok()
        {
            usable = Some(open);
        }
        let mut open = match usable {
            Some(open) => open,
            None => self.connect().await?,
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.endpoint.bulk_path())
            .header(HOST, self.endpoint.authority())
            .header(USER_AGENT, concat!("podswitch/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/x-ndjson");
        let request = match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        };
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let request = request.body(Full::new(body)).map_err(|error| text(&error))?;
        let response = open.send_request(request).await.map_err(|error| text(&error))?;
        let (status, after) = (response.status(), answer::retry_after(&response));
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| text(&error))?.to_bytes();
        self.open = Some(open);
        Ok(answer::read(status, after, &body, documents))
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, String> {
        let (host, port) = (&*self.endpoint.host, self.endpoint.port);
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect((host, port))).await;
        let stream = stream
            .map_err(|_| "it does not answer".to_owned())?
            .map_err(|error| error.to_string())?;
        // Each bulk is sent as a whole.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let stream = tls.connect(stream).await.map_err(|error| error.to_string())?;
            return handshake(stream).await;
        }
        handshake(stream).await
    }
}

async fn handshake(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let (open, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // The request reports its errors.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(open)
}
