//! Answers to bulk requests.

use std::time::Duration;

use hyper::{Response, StatusCode};
use serde::Deserialize;

/// Maximum pause that a server may request.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The meaning of an answer for the bulk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A result for each document, in order.
    Items(Vec<Item>),
    /// The bulk is too long, or the server does not understand a part of it.
    TooMuch(String),
    /// The bulk must be sent again, after this time if the server gave one.
    Later(String, Option<Duration>),
}

/// The result of one document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// It is stored.
    Done,
    /// The server had no capacity for it.
    Busy,
    /// The server had an error with it.
    Failed(String),
    /// It does not match the index's mapping.
    Refused(String),
}

#[derive(Deserialize)]
struct Body {
    errors: bool,
    #[serde(default)]
    items: Vec<Operation>,
}

#[derive(Deserialize)]
struct Operation {
    create: Outcome,
}

#[derive(Deserialize)]
struct Outcome {
    status: u16,
    #[serde(default)]
    error: Option<Problem>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Problem {
    Typed {
        r#type: String,
        #[serde(default)]
        reason: String,
    },
    Text(String),
}

impl Problem {
    fn text(&self) -> String {
        match self {
            Self::Typed { r#type, reason } => format!("{type}: {reason}"),
            Self::Text(text) => text.clone(),
        }
    }
}

/// How long the server asks the client to wait. A date is not supported, and is treated as if it
/// were absent.
pub(super) fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let value = response.headers().get(hyper::header::RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(value.trim().parse().ok()?).min(LONGEST_PAUSE))
}

/// Reads the answer to a bulk of `documents`.
pub(super) fn read(
    status: StatusCode,
    retry_after: Option<Duration>,
    body: &[u8],
    documents: usize,
) -> Answer {
    let said = || {
        let text = String::from_utf8_lossy(body.get(..300).unwrap_or(body)).into_owned();
        format!("{status}: {}", text.trim())
    };
    match status {
        StatusCode::OK => match items(body, documents) {
            Ok(items) => Answer::Items(items),
            Err(reason) => Answer::Later(reason, None),
        },
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST => Answer::TooMuch(said()),
        _ => Answer::Later(said(), retry_after),
    }
}

fn items(body: &[u8], documents: usize) -> Result<Vec<Item>, String> {
    let body: Body = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is not that of a bulk: {error}"))?;
    if !body.errors {
        return Ok((0..documents).map(|_| Item::Done).collect());
    }
    if body.items.len() != documents {
        return Err(format!("the answer has {} items of {documents}", body.items.len()));
    }
    Ok(body.items.into_iter().map(|operation| item(&operation.create)).collect())
}

fn item(outcome: &Outcome) -> Item {
    let reason = || {
        let status = outcome.status;
        outcome.error.as_ref().map_or_else(|| status.to_string(), Problem::text)
    };
    match outcome.status {
        // 409: a bulk whose answer was lost has created the document.
        200..=299 | 409 => Item::Done,
        429 | 503 => Item::Busy,
        500..=599 => Item::Failed(reason()),
        _ => Item::Refused(reason()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(body: &str, documents: usize) -> Answer {
        read(StatusCode::OK, None, body.as_bytes(), documents)
    }

    #[test]
    fn each_document_has_its_answer() {
        let body = r#"{"took":3,"errors":true,"items":[{"create":{"status":201}},{"create":{"status":409,"error":
            {"type":"version_conflict_engine_exception"}}},{"create":{"status":429,"error":{"type":
            "es_rejected_execution_exception","reason":"full"}}},{"create":{"status":400,"error":{"type":
            "document_parsing_exception","reason":"no"}}},{"create":{"status":500,"error":"oh"}}]}"#;
        let refused = Item::Refused("document_parsing_exception: no".into());
        let items = vec![Item::Done, Item::Done, Item::Busy, refused, Item::Failed("oh".into())];
        assert_eq!(ok(body, 5), Answer::Items(items));
        assert!(matches!(ok(body, 4), Answer::Later(..)), "another number of items");
        assert_eq!(ok(r#"{"errors":false}"#, 2), Answer::Items(vec![Item::Done, Item::Done]));
        assert!(matches!(ok("<html>", 2), Answer::Later(..)));
    }

    #[test]
    fn statuses_decide_what_to_do() {
        let pause = Some(Duration::from_secs(7));
        let status = |code| read(StatusCode::from_u16(code).unwrap(), pause, b"why", 2);
        for code in [400, 413] {
            assert!(matches!(status(code), Answer::TooMuch(_)), "{code}");
        }
        for code in [401, 403, 404, 429, 500, 502, 503, 504] {
            let Answer::Later(reason, after) = status(code) else { panic!("{code}") };
            assert!(reason.contains("why") && after == pause, "{reason}");
        }
        let response =
            |value: &str| Response::builder().header("retry-after", value).body(()).unwrap();
        assert_eq!(retry_after(&response("12")), Some(Duration::from_secs(12)));
        assert_eq!(retry_after(&response("99999999")), Some(LONGEST_PAUSE));
        assert_eq!(retry_after(&response("Wed, 21 Oct 2026 07:28:00 GMT")), None);
    }
}
