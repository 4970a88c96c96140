//! `/v1/log-level`: reads and changes the log level of the program. It is the only path that changes something, so only
//! root may change it, even if a group may connect.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::routes::Answer;

/// The path.
pub(crate) const PATH: &str = "/v1/log-level";
/// The longest body, in bytes.
const MAX_BODY: usize = 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The log of the program that runs the node.
pub trait LogLevel: Send + Sync {
    /// The directives in force, such as `info,cni=debug`.
    fn directives(&self) -> String;

    /// Puts directives in force.
    ///
    /// # Errors
    /// The error in the directives. Nothing is changed then.
    fn set(&self, directives: &str) -> Result<(), String>;
}

/// Answers a request for [`PATH`]. `is_owner`: it comes from root, or from the user that the program runs as.
pub(crate) async fn answer(
    request: Request<Incoming>,
    log: Option<Arc<dyn LogLevel>>,
    is_owner: bool,
) -> Answer {
    let Some(log) = log else {
        return Answer::error(
            StatusCode::NOT_FOUND,
            "this program's log has no level to be set here",
        );
    };
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        return Answer::error(StatusCode::BAD_REQUEST, "there is no parameter here");
    }
    match *request.method() {
        Method::GET => {}
        Method::PUT if !is_owner => {
            return Answer::error(StatusCode::FORBIDDEN, "only root may change the log level");
        }
        Method::PUT => match directives(request).await.and_then(|wanted| log.set(&wanted)) {
            Ok(()) => {}
            Err(reason) => return Answer::error(StatusCode::BAD_REQUEST, &reason),
        },
        _ => {
            return Answer::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and PUT are served here",
            );
        }
    }
    Answer::json(&json!({ "directives": log.directives() }))
}

/// The directives in the body, `{"directives": "info"}`.
async fn directives(request: Request<Incoming>) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        directives: String,
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return Err(format!("the body cannot be read, or has more than {MAX_BODY} bytes"));
        }
        Err(_) => return Err("the body does not come".to_owned()),
    };
    let wanted: Wanted =
        serde_json::from_slice(&body).map_err(|error| format!("the body: {error}"))?;
    Ok(wanted.directives)
}
