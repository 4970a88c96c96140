//! The server's address, and the node's credentials.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use hyper::Uri;
use hyper::header::HeaderValue;

use crate::output::community_id::base64;

/// The port of Elasticsearch, used if a URL has no port.
const PORT: u16 = 9200;

/// The address of a server: `http://HOST[:PORT][/PREFIX]`, or `https` if the program is built with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) is_tls: bool,
    /// Host, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path before `/_bulk`, without a slash at its end.
    prefix: String,
}

/// Why a URL is not that of a server, or why a file has no credentials.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = |reason: &str| EndpointError(format!("{text}: {reason}"));
        if text.contains('@') {
            // Every user can see the arguments of a process. So a URL with a password is refused, and not repeated in
            // the error.
            return Err(EndpointError(
                "a URL has no name and password: give a file with --elasticsearch-user-file or \
                 --elasticsearch-api-key-file"
                    .to_owned(),
            ));
        }
        let uri: Uri = text.parse().map_err(|error| wrong(&format!("it is no URL: {error}")))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") if cfg!(feature = "tls") => true,
            Some("https") => {
                return Err(wrong("this program is built without TLS (feature kubernetes)"));
            }
            _ => return Err(wrong("it does not begin with http:// or https://")),
        };
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let host =
            uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it has no host"))?;
        Ok(Self {
            is_tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(PORT),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            if self.is_tls { "https" } else { "http" },
            self.authority(),
            self.prefix
        )
    }
}

impl Endpoint {
    /// Host and port, in the form of the header `Host`.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The path of bulk requests. The answer is filtered to the fields that are read.
    pub(super) fn bulk_path(&self) -> String {
        format!(
            "{}/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason",
            self.prefix
        )
    }
}

/// The node's credentials. The text is secret, and never shown.
#[derive(Clone)]
pub struct Credentials(pub(super) HeaderValue);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl Credentials {
    /// HTTP basic authentication (RFC 7617): the file's first line is `NAME:PASSWORD`.
    ///
    /// # Errors
    /// The file cannot be read, or has no such line.
    pub fn user_file(path: &Path) -> Result<Self, EndpointError> {
        let line = first_line(path)?;
        match line.contains(':') {
            true => Self::header(path, &format!("Basic {}", base64(line.as_bytes()))),
            false => Err(wrong_file(path, "its first line is not NAME:PASSWORD")),
        }
    }

    /// An API key. The file's first line is the key in the form that Elasticsearch calls `encoded`, or `ID:API_KEY`.
    ///
    /// # Errors
    /// The file cannot be read, or has no such line.
    pub fn api_key_file(path: &Path) -> Result<Self, EndpointError> {
        let line = first_line(path)?;
        let key = if line.contains(':') { base64(line.as_bytes()) } else { line };
        Self::header(path, &format!("ApiKey {key}"))
    }

    fn header(path: &Path, text: &str) -> Result<Self, EndpointError> {
        let mut value = HeaderValue::from_str(text).map_err(|_| {
            wrong_file(path, "its first line has a character that no header may have")
        })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

fn wrong_file(path: &Path, reason: &str) -> EndpointError {
    EndpointError(format!("{}: {reason}", path.display()))
}

fn first_line(path: &Path) -> Result<String, EndpointError> {
    let text = fs::read_to_string(path).map_err(|error| wrong_file(path, &error.to_string()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    match line.is_empty() {
        true => Err(wrong_file(path, "its first line is empty")),
        false => Ok(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let read = |text: &str| text.parse::<Endpoint>();
        let endpoint = read("http://es.example").unwrap();
        assert_eq!((&*endpoint.host, endpoint.port, endpoint.is_tls), ("es.example", 9200, false));
        let endpoint = read("http://[fd00::1]:9201/logs/").unwrap();
        assert_eq!(endpoint.authority(), "[fd00::1]:9201");
        assert!(endpoint.bulk_path().starts_with("/logs/_bulk?"));
        assert_eq!(endpoint.to_string(), "http://[fd00::1]:9201/logs");
        assert_eq!(read("https://es").is_ok(), cfg!(feature = "tls"));
        for (text, reason) in [
            ("es:9200", "http"),
            ("ftp://es", "http"),
            ("http://", "no URL"),
            ("http://es/?a=b", "query"),
            ("http://elastic:secret@es", "file"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("secret"), "{error}");
        }
    }
}
