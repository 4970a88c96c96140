//! Follows the objects of one kind: a list, then a watch from its version, without end.

use std::sync::mpsc::Sender;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::time::{sleep, timeout};

/// A kind of objects, and where the API server has it.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    version: &'static str,
    path: &'static str,
    /// Part of every query.
    select: &'static str,
    /// The API server may not have it, or may not permit it: the others are served without it.
    is_optional: bool,
}

/// A kind of Gateway API.
const fn gateway(name: &'static str, version: &'static str, path: &'static str) -> Kind {
    Kind { name, version, path, select: "", is_optional: true }
}

/// The kinds that routes are compiled from. Helm keeps its releases in Secrets, up to 1 MB each.
pub(super) const KINDS: [Kind; 10] = [
    Kind {
        name: "Ingress",
        version: "networking.k8s.io/v1",
        path: "/apis/networking.k8s.io/v1/ingresses",
        select: "",
        is_optional: false,
    },
    Kind {
        name: "IngressClass",
        version: "networking.k8s.io/v1",
        path: "/apis/networking.k8s.io/v1/ingressclasses",
        select: "",
        is_optional: false,
    },
    Kind {
        name: "Secret",
        version: "v1",
        path: "/api/v1/secrets",
        select: "&fieldSelector=type%21%3Dhelm.sh%2Frelease.v1",
        is_optional: false,
    },
    Kind {
        name: "Service",
        version: "v1",
        path: "/api/v1/services",
        select: "",
        is_optional: false,
    },
    Kind {
        name: "EndpointSlice",
        version: "discovery.k8s.io/v1",
        path: "/apis/discovery.k8s.io/v1/endpointslices",
        select: "",
        is_optional: false,
    },
    gateway(
        "GatewayClass",
        "gateway.networking.k8s.io/v1",
        "/apis/gateway.networking.k8s.io/v1/gatewayclasses",
    ),
    gateway(
        "Gateway",
        "gateway.networking.k8s.io/v1",
        "/apis/gateway.networking.k8s.io/v1/gateways",
    ),
    gateway(
        "HTTPRoute",
        "gateway.networking.k8s.io/v1",
        "/apis/gateway.networking.k8s.io/v1/httproutes",
    ),
    // Version v1 is younger than clusters in use.
    gateway(
        "ReferenceGrant",
        "gateway.networking.k8s.io/v1beta1",
        "/apis/gateway.networking.k8s.io/v1beta1/referencegrants",
    ),
    // For their labels, which listeners select.
    gateway("Namespace", "v1", "/api/v1/namespaces"),
];

/// What happened.
#[derive(Debug)]
pub(super) enum Change {
    /// All objects of a kind.
    Listed(&'static str, Vec<Value>),
    Upsert(Value),
    Delete(Value),
    /// Objects of this kind, or the status, are followed again.
    Works(&'static str),
    /// The API server cannot be reached, or refuses; the last objects stay. With the kind, or
    /// `status`.
    Failed(&'static str, String),
}

/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How long the API server should keep a watch open, in seconds.
const WATCH_SECONDS: u64 = 290;

/// How long a watch may be silent: the API server sends a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(100);

/// Objects in a page of a list. A Secret has at most about 1.5 MB: a page fits into `MAX_TEXT`.
const PAGE: u32 = 32;

/// Longest page or line, in bytes.
const MAX_TEXT: usize = 64 << 20;

/// Longest response that refuses, in bytes, and what is reported of its message, in characters.
const MAX_REFUSAL: usize = 64 << 10;
const MAX_MESSAGE: usize = 500;

/// Why following ended.
enum End {
    /// The version is not known any more: a new list is needed.
    Gone,
    Failed(String),
    /// Status 403, or 404: the API server does not have the kind.
    Refused(u16, String),
}

impl From<String> for End {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// Follows the kind until nobody receives.
pub(super) async fn run(client: Client, kind: &'static Kind, changes: Sender<Change>) {
    let mut pause = PAUSES.0;
    let (mut is_listed, mut is_absent) = (false, false);
    loop {
        let reason = match list(&client, kind, &changes).await {
            Err(End::Gone) => "the list is gone".to_owned(),
            Err(End::Refused(status, reason)) if kind.is_optional => {
                // Without it; but objects that are known stay while they are only refused.
                let is_missing = status == 404;
                let is_news = !is_listed || (is_missing && !is_absent);
                if is_news && changes.send(Change::Listed(kind.name, Vec::new())).is_err() {
                    return;
                }
                (is_listed, is_absent) = (true, is_missing);
                if is_missing { String::new() } else { reason }
            }
            Err(End::Failed(reason) | End::Refused(_, reason)) => reason,
            Ok(None) => return,
            Ok(Some(mut version)) => {
                pause = PAUSES.0;
                (is_listed, is_absent) = (true, false);
                loop {
                    let before = version.clone();
                    let watched = watch(&client, kind, &mut version, &changes).await;
                    if version != before {
                        pause = PAUSES.0;
                    }
                    match watched {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(End::Gone) => break String::new(),
                        Err(End::Refused(404, _)) if kind.is_optional => break String::new(),
                        Err(End::Failed(reason) | End::Refused(_, reason)) => {
                            if !failed(kind, &reason, &changes) {
                                return;
                            }
                            sleep(pause).await;
                            pause = (pause * 2).min(PAUSES.1);
                        }
                    }
                }
            }
        };
        if !reason.is_empty() && !failed(kind, &reason, &changes) {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn failed(kind: &Kind, reason: &str, changes: &Sender<Change>) -> bool {
    changes.send(Change::Failed(kind.name, reason.to_owned())).is_ok()
}

/// Lists all objects. Returns the version of the list; None if nobody receives.
async fn list(
    client: &Client,
    kind: &'static Kind,
    changes: &Sender<Change>,
) -> Result<Option<String>, End> {
    let (mut all, mut next) = (Vec::new(), String::new());
    loop {
        let path = format!("{}?limit={PAGE}{}{next}", kind.path, kind.select);
        let mut body = send(client, &path).await?;
        let mut text = Vec::new();
        while let Some(part) = part(&mut body).await? {
            text.extend_from_slice(&part);
            if text.len() > MAX_TEXT {
                return Err("a page of the list is too long".to_owned().into());
            }
        }
        let mut list: Value =
            serde_json::from_slice(&text).map_err(|error| format!("not a list: {error}"))?;
        let items = list.get_mut("items").map(Value::take);
        let Some(Value::Array(items)) = items else {
            return Err("the list has no items".to_owned().into());
        };
        all.extend(items.into_iter().map(|item| named(item, kind)));
        let meta = |name: &str| list["metadata"][name].as_str().unwrap_or_default();
        match meta("continue") {
            "" => {
                let version = meta("resourceVersion").to_owned();
                let is_open = changes.send(Change::Listed(kind.name, all)).is_ok();
                return Ok(is_open.then_some(version));
            }
            token => next = format!("&continue={}", escaped(token)),
        }
    }
}

/// Watches until the API server ends the watch. Returns whether somebody receives.
async fn watch(
    client: &Client,
    kind: &Kind,
    version: &mut String,
    changes: &Sender<Change>,
) -> Result<bool, End> {
    let path = format!(
        "{}?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={}{}",
        kind.path,
        escaped(version),
        kind.select
    );
    let mut body = send(client, &path).await?;
    if changes.send(Change::Works(kind.name)).is_err() {
        return Ok(false);
    }
    let mut line = Vec::new();
    while let Some(part) = part(&mut body).await? {
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if line.len() > MAX_TEXT {
                return Err("a line of the watch is too long".to_owned().into());
            }
            if piece.ends_with(b"\n") {
                let change = event(&line, kind, version)?;
                line.clear();
                if let Some(change) = change
                    && changes.send(change).is_err()
                {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// The change that a line of a watch tells of, if any.
fn event(line: &[u8], kind: &Kind, version: &mut String) -> Result<Option<Change>, End> {
    let mut event: Value =
        serde_json::from_slice(line).map_err(|error| format!("not an event: {error}"))?;
    let object = event["object"].take();
    let what = event["type"].as_str().unwrap_or_default();
    if what == "ERROR" {
        return match object["code"].as_u64() {
            Some(410) => Err(End::Gone),
            code => {
                let message = object["message"].as_str().unwrap_or_default();
                Err(End::Failed(refusal(code.unwrap_or_default(), message)))
            }
        };
    }
    if let Some(seen) = object["metadata"]["resourceVersion"].as_str() {
        seen.clone_into(version);
    }
    Ok(match what {
        "ADDED" | "MODIFIED" => Some(Change::Upsert(named(object, kind))),
        "DELETED" => Some(Change::Delete(named(object, kind))),
        _ => None,
    })
}

/// Items of a list do not contain their kind. Of a Secret, only a certificate and its key are kept.
fn named(mut object: Value, kind: &Kind) -> Value {
    if let Value::Object(fields) = &mut object {
        fields.insert("apiVersion".to_owned(), kind.version.into());
        fields.insert("kind".to_owned(), kind.name.into());
        if kind.name == "Secret" {
            let is_used = matches!(
                fields.get("type").and_then(Value::as_str),
                None | Some("" | "kubernetes.io/tls" | "Opaque")
            );
            if let Some(Value::Object(data)) = fields.get_mut("data") {
                data.retain(|key, _| is_used && matches!(key.as_str(), "tls.crt" | "tls.key"));
            }
            // `kubectl apply` writes the whole Secret into an annotation.
            if let Some(Value::Object(meta)) = fields.get_mut("metadata") {
                meta.remove("annotations");
            }
        }
    }
    object
}

async fn send(client: &Client, path: &str) -> Result<Body, End> {
    let request = Request::get(path).header("accept", "application/json").body(Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let answer = timeout(SILENCE, client.send(request)).await;
    let answer =
        answer.map_err(|_| "no response".to_owned())?.map_err(|error| described(&error))?;
    match answer.status().as_u16() {
        200 => Ok(answer.into_body()),
        410 => Err(End::Gone),
        status => {
            let mut body = answer.into_body();
            let mut text = Vec::new();
            while text.len() < MAX_REFUSAL
                && let Ok(Some(part)) = part(&mut body).await
            {
                text.extend_from_slice(&part);
            }
            let object: Value = serde_json::from_slice(&text).unwrap_or_default();
            let message = object["message"].as_str().unwrap_or_default();
            let reason = refusal(status.into(), message);
            Err(match status {
                403 | 404 => End::Refused(status, reason),
                _ => End::Failed(reason),
            })
        }
    }
}

/// Status and message of a response that refuses, in one line.
pub(super) fn refusal(status: u64, message: &str) -> String {
    let short: String = message.chars().take(MAX_MESSAGE).collect();
    let line: Vec<_> = short.split(char::is_control).filter(|part| !part.is_empty()).collect();
    match line.join(" ") {
        none if none.is_empty() => format!("status {status}"),
        line => format!("status {status}: {line}"),
    }
}

/// An error with its causes.
pub(super) fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The next bytes of a body.
async fn part(body: &mut Body) -> Result<Option<Vec<u8>>, End> {
    loop {
        let frame = timeout(SILENCE, body.frame()).await;
        match frame.map_err(|_| "the API server is silent".to_owned())? {
            None => return Ok(None),
            Some(Err(error)) => return Err(End::Failed(described(&error))),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes.to_vec()));
                }
            }
        }
    }
}

/// For a query (RFC 3986 section 2.1).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                escaped.push(byte.into());
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret_kind() -> &'static Kind {
        KINDS.iter().find(|kind| kind.name == "Secret").expect("one of them")
    }

    #[test]
    fn of_secrets_only_certificates_are_kept() {
        let data = || json!({"tls.crt": "x", "tls.key": "y", "password": "z"});
        for (kind, kept) in [
            (json!("kubernetes.io/tls"), json!({"tls.crt": "x", "tls.key": "y"})),
            (json!("Opaque"), json!({"tls.crt": "x", "tls.key": "y"})),
            (json!(null), json!({"tls.crt": "x", "tls.key": "y"})),
            (json!("kubernetes.io/basic-auth"), json!({})),
        ] {
            let secret = json!({"type": kind, "data": data(),
                "metadata": {"name": "s", "annotations": {"last-applied": "password"}}});
            let it = named(secret, secret_kind());
            assert_eq!(it["data"], kept, "{kind}");
            assert_eq!(it["metadata"], json!({"name": "s"}));
            assert_eq!((&it["kind"], &it["type"]), (&json!("Secret"), &kind));
        }
    }

    #[test]
    fn refusals_are_one_line() {
        assert_eq!(refusal(403, "a\nb\r\n"), "status 403: a b");
        assert_eq!(refusal(500, ""), "status 500");
        assert_eq!(refusal(500, &"x".repeat(2000)).len(), "status 500: ".len() + MAX_MESSAGE);
    }
}
