//! The time of day, for logs and cookies.

use std::time::SystemTime;

/// Now.
pub(super) fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "dates in logs and cookies; no packet path")]
    SystemTime::now()
}

/// `2026-03-01T12:00:00.123Z` (RFC 3339).
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// `Sun, 01 Mar 2026 12:00:00 GMT` (RFC 9110 section 5.6.7).
pub(super) fn http_date(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn dates() {
        for (seconds, rfc, http) in [
            (0, "1970-01-01T00:00:00.000Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_827_696, "2000-02-29T12:34:56.000Z", "Tue, 29 Feb 2000 12:34:56 GMT"),
            (784_111_777, "1994-11-06T08:49:37.000Z", "Sun, 06 Nov 1994 08:49:37 GMT"),
            (4_102_444_799, "2099-12-31T23:59:59.000Z", "Thu, 31 Dec 2099 23:59:59 GMT"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!((rfc3339(time).as_str(), http_date(time).as_str()), (rfc, http));
        }
    }
}
