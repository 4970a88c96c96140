//! Annotations of an Ingress, under ingress-nginx's names. What is not honoured is reported; if it
//! restricts access, the routes of the Ingress are closed.

use std::time::Duration;

use podswitch_kubernetes::nearest;
use podswitch_wire::cidr::Cidr;

use crate::settings::{Affinity, Canary, Cors, Protocol, Redirect, Rewrite, SameSite, Settings};

pub(crate) const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// A finding about an annotation.
pub(crate) struct Finding {
    /// The annotation's key.
    pub(crate) key: String,
    pub(crate) reason: String,
    /// The routes are closed.
    pub(crate) closes: bool,
}

/// Every annotation that is honoured.
const KNOWN: [&str; 38] = [
    "affinity",
    "app-root",
    "backend-protocol",
    "canary",
    "canary-by-cookie",
    "canary-by-header",
    "canary-by-header-value",
    "canary-weight",
    "canary-weight-total",
    "cors-allow-credentials",
    "cors-allow-headers",
    "cors-allow-methods",
    "cors-allow-origin",
    "cors-expose-headers",
    "cors-max-age",
    "enable-cors",
    "force-ssl-redirect",
    "permanent-redirect",
    "permanent-redirect-code",
    "proxy-body-size",
    "proxy-connect-timeout",
    "proxy-read-timeout",
    "proxy-send-timeout",
    "rewrite-target",
    "session-cookie-domain",
    "session-cookie-expires",
    "session-cookie-max-age",
    "session-cookie-name",
    "session-cookie-path",
    "session-cookie-samesite",
    "session-cookie-secure",
    "ssl-redirect",
    "temporal-redirect",
    "temporal-redirect-code",
    "upstream-vhost",
    "use-regex",
    "whitelist-source-range",
    "allowlist-source-range",
];

/// Annotations of which one value is honoured: what it asks for is so in any case.
const FIXED: [(&str, &str); 7] = [
    ("affinity-mode", "persistent"),
    ("preserve-trailing-slash", "true"),
    ("proxy-buffering", "off"),
    ("proxy-http-version", "1.1"),
    ("proxy-request-buffering", "off"),
    ("service-upstream", "false"),
    ("session-cookie-conditional-samesite-none", "false"),
];

/// Annotations that restrict access and are not honoured: without them, requests would be served
/// that their author refuses.
const RESTRICTING: [&str; 12] = [
    "auth-",
    "denylist-source-range",
    "enable-global-auth",
    "enable-modsecurity",
    "enable-owasp",
    "modsecurity-",
    "satisfy",
    "server-snippet",
    "configuration-snippet",
    "auth-snippet",
    "limit-whitelist",
    "stream-snippet",
];

/// Reads the annotations. Values that cannot be read leave the default in force.
pub(crate) fn read<'a>(
    annotations: impl Iterator<Item = (&'a str, &'a str)>,
    findings: &mut Vec<Finding>,
) -> Settings {
    let mut reader = Reader { settings: Settings::default(), findings };
    let own: Vec<_> = annotations
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.trim())))
        .collect();
    for &(key, value) in &own {
        if let Err((reason, closes)) = reader.one(key, value) {
            reader.find(key, reason, closes);
        }
    }
    reader.parts(&own);
    reader.settings
}

struct Reader<'f> {
    settings: Settings,
    findings: &'f mut Vec<Finding>,
}

/// A reason, and whether the routes are closed.
type Wrong = (String, bool);

impl Reader<'_> {
    fn find(&mut self, key: &str, reason: String, closes: bool) {
        if closes {
            self.settings.closed.get_or_insert_with(|| format!("{key}: {reason}").into());
        }
        self.findings.push(Finding { key: format!("{PREFIX}{key}"), reason, closes });
    }

    /// Annotations that stand alone.
    fn one(&mut self, key: &str, value: &str) -> Result<(), Wrong> {
        let soft = |reason: String| (reason, false);
        if let Some((_, only)) = FIXED.iter().find(|(name, _)| *name == key) {
            return fixed(value, only).map_err(soft);
        }
        let it = &mut self.settings;
        match key {
            "ssl-redirect" => it.ssl_redirect = Some(boolean(value).map_err(soft)?),
            "force-ssl-redirect" => it.force_ssl_redirect = boolean(value).map_err(soft)?,
            "use-regex" => it.use_regex = boolean(value).map_err(soft)?,
            "rewrite-target" => it.rewrite = Some(Rewrite(location(value).map_err(soft)?)),
            "app-root" => match value.strip_prefix('/') {
                Some(_) => it.app_root = Some(location(value).map_err(soft)?),
                None => return Err(soft(format!("{} does not begin with /", quote(value)))),
            },
            "backend-protocol" => it.protocol = protocol(value).map_err(soft)?,
            "proxy-connect-timeout" => it.connect_timeout = seconds(value).map_err(soft)?,
            "proxy-read-timeout" => it.read_timeout = seconds(value).map_err(soft)?,
            "proxy-send-timeout" => it.send_timeout = seconds(value).map_err(soft)?,
            "proxy-body-size" => it.body_size = size(value).map_err(soft)?,
            "upstream-vhost" => it.upstream_vhost = Some(header(value).map_err(soft)?),
            "whitelist-source-range" | "allowlist-source-range" => {
                // One range that cannot be read must not open the others: nobody is served.
                it.allow = ranges(value).map_err(|reason| (reason, true))?;
            }
            key if KNOWN.contains(&key) => {}
            key if RESTRICTING.iter().any(|prefix| key.starts_with(prefix)) => {
                let reason = "is not honoured, and would restrict access or change routing";
                return Err((reason.to_owned(), true));
            }
            key => {
                let names: Vec<_> = KNOWN.into_iter().chain(FIXED.map(|(name, _)| name)).collect();
                let known = nearest(key, &names, 2).map(|name| format!("; did you mean {name}?"));
                return Err(soft(format!("is not honoured{}", known.unwrap_or_default())));
            }
        }
        Ok(())
    }

    /// Groups of annotations.
    fn parts(&mut self, own: &[(&str, &str)]) {
        let get = |key: &str| own.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        self.redirect(&get);
        self.affinity(&get);
        self.cors(&get);
        self.canary(&get);
    }

    /// The value of `key`, read by `read`; a value that cannot be read is reported.
    fn value<'v, T>(
        &mut self,
        get: &dyn Fn(&str) -> Option<&'v str>,
        key: &str,
        read: impl FnOnce(&'v str) -> Result<T, String>,
    ) -> Option<T> {
        match read(get(key)?) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.find(key, reason, false);
                None
            }
        }
    }

    fn redirect<'v>(&mut self, get: &dyn Fn(&str) -> Option<&'v str>) {
        // As in ingress-nginx, the temporary one goes first.
        for (key, code_key, default) in [
            ("temporal-redirect", "temporal-redirect-code", 302),
            ("permanent-redirect", "permanent-redirect-code", 301),
        ] {
            let status = self.value(get, code_key, |value| match value.parse() {
                Ok(code @ 300..=308) => Ok(code),
                _ => Err(format!("{} is not a status from 300 to 308", quote(value))),
            });
            if let Some(to) = self.value(get, key, location)
                && self.settings.redirect.is_none()
            {
                let status = status.unwrap_or(default);
                self.settings.redirect = Some(Redirect { status, to });
            }
        }
    }

    fn affinity<'v>(&mut self, get: &dyn Fn(&str) -> Option<&'v str>) {
        let is_cookie = self.value(get, "affinity", |value| match value {
            "cookie" => Ok(()),
            _ => Err(format!("{} is not cookie", quote(value))),
        });
        if is_cookie.is_none() {
            return;
        }
        let number = |value: &str| {
            value.parse().map_err(|_| format!("{} is not a number of seconds", quote(value)))
        };
        let name = self.value(get, "session-cookie-name", token);
        let affinity = Affinity {
            name: name.unwrap_or_else(|| "INGRESSCOOKIE".into()),
            path: self.value(get, "session-cookie-path", attribute),
            max_age: self.value(get, "session-cookie-max-age", number),
            expires: self.value(get, "session-cookie-expires", number),
            domain: self.value(get, "session-cookie-domain", attribute),
            secure: self.value(get, "session-cookie-secure", boolean),
            same_site: self.value(get, "session-cookie-samesite", |value| {
                Ok(match value.to_ascii_lowercase().as_str() {
                    "none" => SameSite::None,
                    "lax" => SameSite::Lax,
                    "strict" => SameSite::Strict,
                    _ => return Err(format!("{} is not None, Lax or Strict", quote(value))),
                })
            }),
        };
        self.settings.affinity = Some(affinity);
    }

    fn cors<'v>(&mut self, get: &dyn Fn(&str) -> Option<&'v str>) {
        if self.value(get, "enable-cors", boolean) != Some(true) {
            return;
        }
        let origins = self.value(get, "cors-allow-origin", |value| {
            value.split(',').map(|origin| header(origin.trim())).collect::<Result<Vec<_>, _>>()
        });
        let methods = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
        let headers = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,\
                       Content-Type,Range,Authorization";
        let cors = Cors {
            origins: origins.unwrap_or_else(|| vec!["*".into()]),
            methods: self.value(get, "cors-allow-methods", header).unwrap_or(methods.into()),
            headers: self.value(get, "cors-allow-headers", header).unwrap_or(headers.into()),
            expose: self.value(get, "cors-expose-headers", header),
            credentials: self.value(get, "cors-allow-credentials", boolean).unwrap_or(true),
            max_age: self
                .value(get, "cors-max-age", |value| {
                    value.parse().map_err(|_| format!("{} is not a number", quote(value)))
                })
                .unwrap_or(1_728_000),
        };
        self.settings.cors = Some(cors);
    }

    fn canary<'v>(&mut self, get: &dyn Fn(&str) -> Option<&'v str>) {
        if self.value(get, "canary", boolean) != Some(true) {
            return;
        }
        let number =
            |value: &str| value.parse().map_err(|_| format!("{} is not a number", quote(value)));
        let weight = self.value(get, "canary-weight", number);
        let total = self.value(get, "canary-weight-total", number);
        self.settings.canary = Some(Canary {
            weight: weight.unwrap_or(0),
            weight_total: total.filter(|total| *total > 0).unwrap_or(100),
            by_header: self.value(get, "canary-by-header", token),
            by_header_value: self.value(get, "canary-by-header-value", header),
            by_cookie: self.value(get, "canary-by-cookie", token),
        });
    }
}

/// A short form of a value for a message.
pub(crate) fn quote(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let rest = if short.len() < text.len() { "…" } else { "" };
    format!("\"{}{rest}\"", short.escape_debug())
}

fn boolean(value: &str) -> Result<bool, String> {
    match value {
        "true" | "True" | "TRUE" | "1" | "t" | "T" => Ok(true),
        "false" | "False" | "FALSE" | "0" | "f" | "F" => Ok(false),
        _ => Err(format!("{} is not true or false", quote(value))),
    }
}

/// A value that may only say what is so in any case.
fn fixed(value: &str, only: &str) -> Result<(), String> {
    let is_same = match only.parse::<bool>() {
        Ok(only) => boolean(value) == Ok(only),
        Err(_) => value.eq_ignore_ascii_case(only),
    };
    if is_same { Ok(()) } else { Err(format!("{} is not honoured, only {only}", quote(value))) }
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.strip_suffix('s').unwrap_or(value).parse() {
        Ok(seconds @ 1..=604_800) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{} is not a number of seconds from 1 to 604800", quote(value))),
    }
}

/// Bytes, with an optional unit as in nginx; 0 is no limit.
fn size(value: &str) -> Result<Option<u64>, String> {
    let wrong = || format!("{} is not a size such as 8m", quote(value));
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let number: u64 = value[..end].parse().map_err(|_| wrong())?;
    let unit: u64 = match &value[end..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit).ok_or_else(wrong)? {
        0 => Ok(None),
        size => Ok(Some(size)),
    }
}

fn protocol(value: &str) -> Result<Protocol, String> {
    match value.to_ascii_uppercase().as_str() {
        "HTTP" | "AUTO_HTTP" => Ok(Protocol::Http),
        "HTTPS" => Ok(Protocol::Https),
        "GRPC" => Ok(Protocol::Grpc),
        "GRPCS" => Ok(Protocol::Grpcs),
        _ => Err(format!("{} is not HTTP, HTTPS, GRPC or GRPCS", quote(value))),
    }
}

fn ranges(value: &str) -> Result<Vec<Cidr>, String> {
    let mut ranges = Vec::new();
    for text in value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let range = match text.parse() {
            Ok(address) => Ok(Cidr::host(address)),
            Err(_) => text.parse::<Cidr>(),
        };
        ranges.push(range.map_err(|why| format!("{}: {why}", quote(text)))?);
    }
    if ranges.is_empty() { Err("names no range".to_owned()) } else { Ok(ranges) }
}

/// A header's value: visible ASCII and spaces.
fn header(value: &str) -> Result<Box<str>, String> {
    let is_fit = !value.is_empty() && value.bytes().all(|b| matches!(b, b' '..=b'~'));
    if is_fit { Ok(value.into()) } else { Err(format!("{} is no header value", quote(value))) }
}

/// A path or URL: visible ASCII without spaces.
fn location(value: &str) -> Result<Box<str>, String> {
    let is_fit = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
    if is_fit { Ok(value.into()) } else { Err(format!("{} is not a path or URL", quote(value))) }
}

/// A token (RFC 9110 section 5.6.2): the syntax of names of headers and cookies.
fn token(value: &str) -> Result<Box<str>, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_fit = !value.is_empty() && value.len() <= 256 && value.bytes().all(allowed);
    if is_fit { Ok(value.into()) } else { Err(format!("{} is not a name", quote(value))) }
}

/// The value of a cookie's attribute: no `;`.
fn attribute(value: &str) -> Result<Box<str>, String> {
    match location(value) {
        Ok(value) if !value.contains(';') => Ok(value),
        _ => Err(format!("{} is not an attribute of a cookie", quote(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(annotations: &[(&str, &str)]) -> (Settings, Vec<(String, bool)>) {
        let full: Vec<_> = annotations.iter().map(|(k, v)| (format!("{PREFIX}{k}"), *v)).collect();
        let mut findings = Vec::new();
        let settings = read(full.iter().map(|(k, v)| (k.as_str(), *v)), &mut findings);
        let short = |f: Finding| (f.key[PREFIX.len()..].to_owned(), f.closes);
        (settings, findings.into_iter().map(short).collect())
    }

    #[test]
    fn values() {
        let (it, findings) = of(&[
            ("ssl-redirect", "false"),
            ("proxy-body-size", "8m"),
            ("proxy-read-timeout", "3600"),
            ("permanent-redirect", "https://new.test"),
            ("permanent-redirect-code", "308"),
            ("affinity", "cookie"),
            ("session-cookie-name", "route"),
            ("session-cookie-samesite", "Strict"),
            ("session-cookie-max-age", "172800"),
            ("whitelist-source-range", "10.0.0.0/8, 192.168.1.7,fd00::/8"),
            ("backend-protocol", "grpcs"),
            ("enable-cors", "true"),
            ("cors-allow-origin", "https://a.test, https://*.b.test"),
            // What is so in any case.
            ("service-upstream", "False"),
            ("proxy-http-version", "1.1"),
            ("proxy-buffering", "off"),
            ("proxy-request-buffering", "Off"),
            ("preserve-trailing-slash", "true"),
            ("affinity-mode", "persistent"),
            ("session-cookie-conditional-samesite-none", "false"),
        ]);
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!((it.ssl_redirect, it.body_size), (Some(false), Some(8 << 20)));
        assert_eq!(it.read_timeout, Duration::from_secs(3600));
        assert_eq!(it.redirect, Some(Redirect { status: 308, to: "https://new.test".into() }));
        let affinity = it.affinity.unwrap();
        assert_eq!((&*affinity.name, affinity.max_age), ("route", Some(172_800)));
        assert_eq!(affinity.same_site, Some(SameSite::Strict));
        assert_eq!((it.allow.len(), it.protocol), (3, Protocol::Grpcs));
        assert_eq!(it.cors.unwrap().origins.len(), 2);
        assert_eq!(of(&[("proxy-body-size", "0")]).0.body_size, None);
    }

    #[test]
    fn values_that_cannot_be_read_leave_the_default() {
        for (key, value) in [
            ("ssl-redirect", "maybe"),
            ("proxy-body-size", "8x"),
            ("proxy-body-size", "99999999999999g"),
            ("proxy-read-timeout", "0"),
            ("permanent-redirect", "a b"),
            ("temporal-redirect-code", "200"),
            ("backend-protocol", "FCGI"),
            ("app-root", "relative"),
            ("upstream-vhost", "a\r\nb"),
            ("affinity", "ip"),
            ("rewrite-targe", "/"),
            ("proxy-cookie-path", "/"),
            ("service-upstream", "true"),
            ("service-upstream", "maybe"),
            ("proxy-http-version", "1.0"),
            ("proxy-buffering", "on"),
            ("proxy-request-buffering", "on"),
            ("preserve-trailing-slash", "false"),
            ("affinity-mode", "balanced"),
            ("session-cookie-conditional-samesite-none", "true"),
        ] {
            let (settings, findings) = of(&[(key, value)]);
            assert_eq!(findings, [(key.to_owned(), false)], "{value}");
            assert!(settings.closed.is_none());
        }
        let (settings, findings) = of(&[("affinity", "cookie"), ("session-cookie-name", "a;b")]);
        assert_eq!((findings.len(), &*settings.affinity.unwrap().name), (1, "INGRESSCOOKIE"));
    }

    /// Access that an annotation restricts stays restricted when it cannot be honoured.
    #[test]
    fn restrictions_that_cannot_be_honoured_close() {
        for (key, value) in [
            ("auth-type", "basic"),
            ("auth-url", "http://x.test"),
            ("auth-tls-secret", "default/ca"),
            ("whitelist-source-range", "10.0.0.0/8, nonsense"),
            ("whitelist-source-range", ""),
            ("denylist-source-range", "10.0.0.0/8"),
            ("configuration-snippet", "deny all;"),
        ] {
            let (settings, findings) = of(&[(key, value)]);
            assert_eq!(findings, [(key.to_owned(), true)]);
            assert!(settings.closed.is_some());
        }
    }
}
