//! The API servers, tried in turn: those of the options, the last known endpoints of the Service
//! `default/kubernetes`, and the server of the kubeconfig or of the pod's environment. Our own
//! ClusterIP is never the only choice, because it works only while the switch does.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;

use crate::error::{ApiError, RequestError};

/// Connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout until a response begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest response other than a list or a watch, in bytes.
const MAX_ANSWER: usize = 8 << 20;
/// The DNS name that every API server's certificate contains: that of its own Service.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// Where credentials and the servers come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) servers: Vec<Uri>,
    /// The last known endpoints of `default/kubernetes`, `HOST:PORT`.
    pub(crate) endpoints: Vec<String>,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Servers {
    access: Access,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    servers: Vec<Server>,
    current: usize,
}

struct Server {
    uri: Uri,
    /// It is one of the endpoints of `default/kubernetes`.
    is_endpoint: bool,
    client: Option<Client>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl Servers {
    /// Reads credentials and collects the servers.
    ///
    /// # Errors
    /// There are no credentials, or no server.
    pub(crate) async fn open(access: Access) -> Result<Self, ApiError> {
        let config = base_config(&access).await?;
        let mut servers: Vec<Server> = Vec::new();
        let mut add = |uri: Uri, is_endpoint| {
            if !servers.iter().any(|server| same_server(&server.uri, &uri)) {
                servers.push(Server { uri, is_endpoint, client: None });
            }
        };
        access.servers.iter().for_each(|uri| add(uri.clone(), false));
        access.endpoints.iter().filter_map(endpoint_uri).for_each(|uri| add(uri, true));
        add(config.cluster_url, false);
        Ok(Self { access, inner: Mutex::new(Inner { servers, current: 0 }) })
    }

    /// Replaces the endpoints of `default/kubernetes`.
    pub(crate) fn set_endpoints(&self, endpoints: &[String]) {
        let mut inner = self.lock();
        let uris: Vec<Uri> = endpoints.iter().filter_map(endpoint_uri).collect();
        let current = inner.servers.get(inner.current).map(|server| server.uri.clone());
        inner.servers.retain(|server| {
            !server.is_endpoint || uris.iter().any(|uri| same_server(uri, &server.uri))
        });
        for uri in uris {
            if !inner.servers.iter().any(|server| same_server(&server.uri, &uri)) {
                inner.servers.push(Server { uri, is_endpoint: true, client: None });
            }
        }
        let is_current = |server: &Server| current.as_ref() == Some(&server.uri);
        inner.current = inner.servers.iter().position(is_current).unwrap_or(0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to the current server; if that cannot be reached, to the others in turn.
    /// Returns once the response begins, and only if its status is a success.
    ///
    /// # Errors
    /// No server can be reached, or the server refuses the request.
    pub(crate) async fn send(
        &self,
        request: impl Fn() -> Request<Body>,
    ) -> Result<Response<Body>, RequestError> {
        let count = self.lock().servers.len();
        let (mut last, mut is_renewed) =
            (RequestError::Away("there is no API server".into()), false);
        let mut tries = 0;
        while tries < count.max(1) {
            let (at, client) = self.client().await?;
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.send(request())).await;
            let reason = match answer {
                Ok(Ok(answer)) if answer.status() == StatusCode::UNAUTHORIZED && !is_renewed => {
                    // The token may have been replaced since it was read.
                    self.forget_clients();
                    is_renewed = true;
                    continue;
                }
                // The server responds, but its backend is down.
                Ok(Ok(answer)) if is_down(answer.status()) => {
                    status_error(answer).await.to_string()
                }
                Ok(Ok(answer)) if answer.status().is_success() => return Ok(answer),
                Ok(Ok(answer)) => return Err(status_error(answer).await),
                Ok(Err(error)) => describe(&error),
                Err(_) => format!("no response within {} s", ANSWER_TIMEOUT.as_secs()),
            };
            last = RequestError::Away(format!("{}: {reason}", self.uri(at)));
            self.give_up(at);
            tries += 1;
        }
        Err(last)
    }

    /// Sends a request and reads the complete response.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn call(
        &self,
        request: impl Fn() -> Request<Body>,
    ) -> Result<Vec<u8>, RequestError> {
        collect(self.send(request).await?).await
    }

    /// The client of the current server. Creates it if there is none.
    async fn client(&self) -> Result<(usize, Client), RequestError> {
        let (at, uri, is_endpoint) = {
            let inner = self.lock();
            let at = inner.current;
            let Some(server) = inner.servers.get(at) else {
                return Err(RequestError::Away("there is no API server".into()));
            };
            if let Some(client) = &server.client {
                return Ok((at, client.clone()));
            }
            (at, server.uri.clone(), server.is_endpoint)
        };
        let config = base_config(&self.access).await;
        let mut config = config.map_err(|error| RequestError::Away(error.to_string()))?;
        config.cluster_url = uri.clone();
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.default_retry = false;
        if is_endpoint && config.tls_server_name.is_none() {
            config.tls_server_name = Some(SERVER_NAME.to_owned());
        }
        let client = Client::try_from(config);
        let client = client.map_err(|error| RequestError::Away(format!("{uri}: {error}")))?;
        let mut inner = self.lock();
        if let Some(server) = inner.servers.get_mut(at).filter(|server| server.uri == uri) {
            server.client = Some(client.clone());
        }
        Ok((at, client))
    }

    fn uri(&self, at: usize) -> String {
        self.lock().servers.get(at).map(|server| server.uri.to_string()).unwrap_or_default()
    }

    /// Drops all clients, so that the credentials are read again.
    fn forget_clients(&self) {
        self.lock().servers.iter_mut().for_each(|server| server.client = None);
    }

    /// Switches to the next server, unless another task has already done so.
    fn give_up(&self, at: usize) {
        let mut inner = self.lock();
        if inner.current == at && !inner.servers.is_empty() {
            inner.servers[at].client = None;
            inner.current = (at + 1) % inner.servers.len();
        }
    }
}

/// Reads a response to its end.
async fn collect(answer: Response<Body>) -> Result<Vec<u8>, RequestError> {
    let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
    match tokio::time::timeout(ANSWER_TIMEOUT, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) => Err(RequestError::Away(format!("the response was cut off: {error}"))),
        Err(_) => Err(RequestError::Away("the response does not end".into())),
    }
}

/// Status codes of a server, or of a load balancer in front of it, that cannot serve.
fn is_down(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

async fn status_error(answer: Response<Body>) -> RequestError {
    #[derive(Deserialize, Default)]
    struct Status {
        #[serde(default)]
        message: String,
    }
    let code = answer.status().as_u16();
    let retry_after = answer.headers().get(http::header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let text = collect(answer).await.unwrap_or_default();
    let status: Status = serde_json::from_slice(&text).unwrap_or_default();
    RequestError::Status {
        code,
        message: status.message,
        retry_after: retry_after.map(Duration::from_secs),
    }
}

/// An error with its causes. Causes whose text is already included are omitted.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn endpoint_uri(endpoint: &String) -> Option<Uri> {
    format!("https://{endpoint}").parse().ok()
}

fn same_server(a: &Uri, b: &Uri) -> bool {
    (a.scheme(), a.authority()) == (b.scheme(), b.authority())
}

/// Credentials, and the server from the same source.
async fn base_config(access: &Access) -> Result<Config, ApiError> {
    if let Some(path) = &access.kubeconfig {
        let failed = |error: kube::config::KubeconfigError| {
            ApiError::Credentials(format!("kubeconfig {}: {}", path.display(), describe(&error)))
        };
        let file = Kubeconfig::read_from(path).map_err(failed)?;
        let authority = authority_file(&file);
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?;
        // The file is read again when it changes, as in a pod.
        config.root_cert_file = authority;
        return Ok(config);
    }
    match Config::incluster() {
        Ok(config) => Ok(config),
        Err(error) => account_config(access).ok_or_else(|| {
            let reason = describe(&error);
            ApiError::Credentials(format!(
                "no kubeconfig is given and this process is not in a pod: {reason}"
            ))
        }),
    }
}

/// Path of the CA certificate in a kubeconfig's current context.
fn authority_file(file: &Kubeconfig) -> Option<PathBuf> {
    let current = file.current_context.as_ref()?;
    let context =
        file.contexts.iter().find(|context| context.name == *current)?.context.as_ref()?;
    let cluster = file.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
    cluster.cluster.as_ref()?.certificate_authority.as_ref().map(PathBuf::from)
}

/// A pod's credentials, for an environment that names no server.
fn account_config(access: &Access) -> Option<Config> {
    let endpoint = access.endpoints.iter().find_map(endpoint_uri);
    let uri = access.servers.first().cloned().or(endpoint)?;
    let mut config = Config::incluster_dns().ok()?;
    config.cluster_url = uri;
    Some(config)
}
