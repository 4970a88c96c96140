//! The normal form of a request's path. It is made once; what was matched is forwarded.

use std::borrow::Cow;

/// A path cannot be normalised: such a request is refused with status 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("the path does not begin with /")]
    Relative,
    /// `%` is not followed by two hexadecimal digits.
    #[error("the path has an invalid percent-encoding")]
    Encoding,
    /// It contains a control character, encoded or not.
    #[error("the path has a control character")]
    Control,
    /// `..` leads above the root.
    #[error("the path leads above the root")]
    AboveRoot,
}

/// The normal form of an absolute path without query (RFC 3986 section 6.2.2): percent-encoded
/// unreserved characters decoded, hexadecimal digits in upper case, `//` joined, and dot segments
/// removed. An encoded `/` stays encoded: it separates no elements.
///
/// # Errors
/// See [`PathError`].
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    let bytes = path.as_bytes();
    let mut is_normal = true;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'%' => is_normal = false,
            b'/' if matches!(bytes.get(at + 1), Some(b'/' | b'.')) => is_normal = false,
            _ => {}
        }
    }
    if is_normal {
        return Ok(Cow::Borrowed(path));
    }
    without_dots(&decoded(path)?).map(Cow::Owned)
}

fn decoded(path: &str) -> Result<String, PathError> {
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let digits = after.get(..2).ok_or(PathError::Encoding)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(PathError::Encoding);
        }
        let byte = u8::from_str_radix(digits, 16).map_err(|_| PathError::Encoding)?;
        match byte {
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                text.push(byte.into());
            }
            _ => {
                text.push('%');
                text.push_str(&digits.to_ascii_uppercase());
            }
        }
        rest = &after[2..];
    }
    text.push_str(rest);
    Ok(text)
}

fn without_dots(path: &str) -> Result<String, PathError> {
    let mut elements: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for element in path.split('/').skip(1) {
        ends_open = matches!(element, "" | "." | "..");
        match element {
            "" | "." => {}
            ".." => _ = elements.pop().ok_or(PathError::AboveRoot)?,
            element => elements.push(element),
        }
    }
    let mut text = String::with_capacity(path.len());
    for element in &elements {
        text.push('/');
        text.push_str(element);
    }
    if ends_open || text.is_empty() {
        text.push('/');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        for (path, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//", "/"),
            ("//a///b//", "/a/b/"),
            ("/./a", "/a"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/../b", "/b"),
            ("/a/b/../../c/./d", "/c/d"),
            ("/%66oo", "/foo"),
            ("/%2e%2E/a", ""),
            ("/a/%2e%2e/b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2F..%2Fb", "/a%2F..%2Fb"),
            ("/a%20b%c3%a9", "/a%20b%C3%A9"),
            ("/%2541", "/%2541"),
            ("/.a/..b/c.", "/.a/..b/c."),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/a%3Bb", "/a%3Bb"),
        ] {
            match normalise(path) {
                Ok(found) => assert_eq!(found, normal, "{path}"),
                Err(error) => assert_eq!((error, normal), (PathError::AboveRoot, ""), "{path}"),
            }
        }
    }

    #[test]
    fn refused() {
        for (path, error) in [
            ("", PathError::Relative),
            ("a/b", PathError::Relative),
            ("*", PathError::Relative),
            ("/%", PathError::Encoding),
            ("/%4", PathError::Encoding),
            ("/%4g", PathError::Encoding),
            ("/%+1", PathError::Encoding),
            ("/%é", PathError::Encoding),
            ("/%00", PathError::Control),
            ("/%0d%0a", PathError::Control),
            ("/\u{7f}", PathError::Control),
            ("/..", PathError::AboveRoot),
            ("/a/../../b", PathError::AboveRoot),
        ] {
            assert_eq!(normalise(path).map(Cow::into_owned), Err(error), "{path}");
        }
    }
}
