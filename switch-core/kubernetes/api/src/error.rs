//! Errors of the API server and of this source.

use std::fmt;
use std::time::Duration;

/// The source cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// There are no credentials, or they cannot be read.
    #[error("{0}")]
    Credentials(String),
    /// An option has an invalid value.
    #[error("option {option}: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The system could not create a thread or a socket.
    #[error("{0}")]
    System(String),
}

/// A request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// No API server can be reached.
    Away(String),
    /// The API server refused the request.
    Status {
        /// HTTP status code.
        code: u16,
        /// Message of the API server.
        message: String,
        /// When to retry, if the API server said so.
        retry_after: Option<Duration>,
    },
    /// The response violates the protocol.
    Protocol(String),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(reason) | Self::Protocol(reason) => f.write_str(reason),
            Self::Status { code, message, .. } if message.is_empty() => {
                write!(f, "the API server returned {code}")
            }
            Self::Status { code, message, .. } => {
                write!(f, "the API server returned {code}: {message}")
            }
        }
    }
}

impl RequestError {
    /// HTTP status code, if there is one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }
}
