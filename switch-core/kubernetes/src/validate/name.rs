//! Syntax of names (RFC 1123, IANA service names), label keys and label values.

use crate::report::quote;

/// A DNS label, the syntax of the names of namespaces and Services: RFC 1123 section 2.1, lower
/// case.
pub(crate) fn dns_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(too_long(text, 63));
    }
    if is_dns_label(text) {
        return Ok(());
    }
    Err(format!(
        "{} is not a DNS label: lower case letters, digits and '-', beginning and ending with a \
         letter or digit",
        quote(text)
    ))
}

/// A DNS subdomain, the syntax of most object names: labels joined by dots.
pub(crate) fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err(too_long(text, 253));
    }
    // As in the API server, the parts may be longer than a DNS label.
    if text.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err(format!(
        "{} is not a DNS subdomain: lower case letters, digits, '-' and '.', each part beginning \
         and ending with a letter or digit",
        quote(text)
    ))
}

fn is_dns_label(text: &str) -> bool {
    begins_and_ends(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A port's name: an IANA service name (RFC 6335 section 5.1), lower case.
pub(crate) fn port_name(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let why = if text.len() > 15 {
        "is longer than 15 characters"
    } else if text.is_empty() || !text.bytes().all(allowed) {
        "has characters other than lower case letters, digits and '-'"
    } else if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        "contains no letter (a number is written without quotes)"
    } else if text.contains("--") {
        "has two hyphens in a row"
    } else if text.starts_with('-') || text.ends_with('-') {
        "begins or ends with a hyphen"
    } else {
        return Ok(());
    };
    Err(format!("{} is not a port name: it {why}", quote(text)))
}

/// The key of a label or annotation: `[DNS subdomain/]name`.
pub(crate) fn qualified_name(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            if prefix.is_empty() {
                return Err(format!("the key {} has an empty prefix", quote(text)));
            }
            dns_subdomain(prefix)
                .map_err(|why| format!("the prefix of the key {}: {why}", quote(text)))?;
            name
        }
    };
    if name.len() > 63 {
        return Err(format!("the key {}: {}", quote(text), too_long(name, 63)));
    }
    if is_label_text(name) {
        return Ok(());
    }
    Err(format!(
        "{} is not a key: after an optional 'prefix/' come letters, digits, '-', '_' and '.', \
         beginning and ending with a letter or digit",
        quote(text)
    ))
}

/// The value of a label, which may be empty.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(format!("the label value {}", too_long(text, 63)));
    }
    if text.is_empty() || is_label_text(text) {
        return Ok(());
    }
    Err(format!(
        "{} is not a label value: letters, digits, '-', '_' and '.', beginning and ending with a \
         letter or digit",
        quote(text)
    ))
}

fn is_label_text(text: &str) -> bool {
    begins_and_ends(text, |b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn begins_and_ends(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|&b| allowed(b)) && bytes.last().is_some_and(|&b| allowed(b))
}

fn too_long(text: &str, most: usize) -> String {
    format!("{} has {} characters, more than {most}", quote(text), text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(check: impl Fn(&str) -> Result<(), String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
        for text in bad {
            let reason = check(text).expect_err(text);
            assert!(reason.chars().count() < 300, "{reason}");
        }
    }

    #[test]
    fn dns_names() {
        let (most, more) = ("a".repeat(63), "a".repeat(64));
        let bad = ["", "-a", "a-", "A", "a_b", "a b", "é", "a.b", "a/b", &more];
        agree(dns_label, &["a", "0", "a-b", "9-9", &most], &bad);
        let long = format!("{}.{}", "a".repeat(126), "b".repeat(126));
        let longer = format!("{long}c");
        let bad = ["", ".", "a.", ".a", "a..b", "a.-b", "A.b", "a_b", "a/b", &longer];
        agree(dns_subdomain, &["a", "a.b", "a-b.c-d", &more, &long], &bad);
    }

    #[test]
    fn port_names() {
        let good = ["http", "a", "1a", "a-1-b", "abcdefghijklmno"];
        let bad = ["", "80", "-", "-a", "a-", "a--b", "HTTP", "a_b", "abcdefghijklmnop", "a.b"];
        agree(port_name, &good, &bad);
    }

    #[test]
    fn labels() {
        let (most, more) = ("v".repeat(63), "v".repeat(64));
        let good = ["a", "A.b_C-d", "k8s.io/x", "a/B", "1", &most];
        let bad = ["", "/a", "a/", "a/b/c", "-a", "a-", "K8S.io/x", "a b", "a/é", "a_b/c", &more];
        agree(qualified_name, &good, &bad);
        let bad = ["-", "a-", ".a", "a/b", "a b", "é", "a\n", &more];
        agree(label_value, &["", "a", "A.b_C-d", "1.0", &most], &bad);
    }
}
