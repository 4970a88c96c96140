//! The page's files. They are part of the program: nothing is read from disk or from another server.

/// A file: its type and its text.
pub(crate) type File = (&'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The file at a path.
pub(crate) fn file(path: &str) -> Option<File> {
    Some(match path {
        "/" => ("text/html; charset=utf-8", include_str!("../page/index.html")),
        "/page.css" => ("text/css; charset=utf-8", include_str!("../page/page.css")),
        "/page.js" => (SCRIPT, include_str!("../page/page.js")),
        "/api.js" => (SCRIPT, include_str!("../page/api.js")),
        "/dom.js" => (SCRIPT, include_str!("../page/dom.js")),
        "/map.js" => (SCRIPT, include_str!("../page/map.js")),
        "/layout.js" => (SCRIPT, include_str!("../page/layout.js")),
        "/flows.js" => (SCRIPT, include_str!("../page/flows.js")),
        "/trace.js" => (SCRIPT, include_str!("../page/trace.js")),
        _ => return None,
    })
}

/// The Content-Security-Policy of the page: its own files and the answers of this server, nothing else. No inline
/// scripts, no other site, no frame.
pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";
