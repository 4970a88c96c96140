//! HTTP/1.1 and the API paths, as far as podswitch's clients use them.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use podswitch_kubernetes::Kind;
use serde_json::{Value, json};

use crate::world::{Next, Request, World};

/// Serves one connection until it is closed.
pub(crate) fn serve(stream: impl Read + Write, world: &World, stop: &AtomicBool) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut parts = line.split_whitespace();
        let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (mut length, mut token) = (0, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => token = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if stop.load(SeqCst) {
            return Ok(());
        }
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let request = Request { method: method.to_owned(), target: target.to_owned(), body };
        world.note(request.clone());
        // A client sends nothing before it has the response.
        let mut writer = BufWriter::with_capacity(1 << 16, reader.get_mut());
        if !world.is_allowed(token.as_deref()) {
            answer(&mut writer, 401, &status(401, "no such token"))?;
            continue;
        }
        route(&mut writer, world, &request, stop)?;
    }
}

fn route(
    out: &mut impl Write,
    world: &World,
    request: &Request,
    stop: &AtomicBool,
) -> io::Result<()> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let query = |key: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).next()
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts[..] {
        ["api", version, ref rest @ ..] => ("", version, rest),
        ["apis", group, version, ref rest @ ..] => (group, version, rest),
        _ => return answer(out, 404, &status(404, "no such path")),
    };
    let kinds = Kind::ALL.into_iter().filter(|kind| {
        kind.group() == group && kind.versions().contains(&version) && world.is_served(*kind)
    });
    let kind = |plural: &str| kinds.clone().find(|kind| kind.plural() == plural);
    match (request.method.as_str(), rest) {
        ("GET", []) => {
            let resources: Vec<Value> =
                kinds.clone().map(|k| json!({ "name": k.plural() })).collect();
            if resources.is_empty() {
                return answer(out, 404, &status(404, "no such group"));
            }
            answer(out, 200, &json!({ "kind": "APIResourceList", "resources": resources }))
        }
        ("POST", ["namespaces", _, "events"]) => answer(out, 201, &request.body),
        ("GET", [plural]) => {
            let Some(kind) = kind(plural) else { return answer(out, 404, &status(404, "no kind")) };
            let selector = query("fieldSelector");
            let node = selector.as_deref().and_then(|text| text.strip_prefix("spec.nodeName%3D"));
            let wanted =
                |object: &Value| node.is_none_or(|node| object["spec"]["nodeName"] == *node);
            if query("watch").is_some() {
                let from = query("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
                return watch(out, world, kind, from, &wanted, stop);
            }
            if let Some(code) = world.next_refusal() {
                return answer(out, code, &status(code, "refused by the test"));
            }
            list(out, world, kind, &wanted, node)
        }
        (method, rest) => {
            let found = match *rest {
                ["namespaces", namespace, plural, name, ..] => {
                    kind(plural).map(|kind| (kind, format!("{namespace}/{name}")))
                }
                [plural, name, ..] => kind(plural).map(|kind| (kind, name.to_owned())),
                _ => None,
            };
            let object = found.and_then(|(kind, name)| match method {
                "PATCH" => world.patch(kind, &name, &request.body),
                _ => world.get(kind, &name),
            });
            match object {
                Some(object) => answer(out, 200, &object),
                None => answer(out, 404, &status(404, "no such object")),
            }
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "code": code, "message": message })
}

fn answer(out: &mut impl Write, code: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(
        out,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    out.flush()
}

fn chunk(out: &mut impl Write, text: &str) -> io::Result<()> {
    write!(out, "{:x}\r\n{text}\r\n", text.len())
}

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";

fn list(
    out: &mut impl Write,
    world: &World,
    kind: Kind,
    wanted: &dyn Fn(&Value) -> bool,
    node: Option<&str>,
) -> io::Result<()> {
    let (version, objects, generated) = world.list(kind, wanted);
    out.write_all(CHUNKED.as_bytes())?;
    let head = format!(
        r#"{{"kind":"{}List","apiVersion":"x","metadata":{{"resourceVersion":"{version}"}},"items":["#,
        kind.name()
    );
    chunk(out, &head)?;
    let mut separator = "";
    // Generated objects are on other nodes.
    let generated = generated.filter(|_| node.is_none());
    let made = generated.into_iter().flat_map(|it| (0..it.count).map(it.make));
    for text in objects.into_iter().chain(made) {
        chunk(out, &format!("{separator}{text}"))?;
        separator = ",";
    }
    chunk(out, "]}")?;
    out.write_all(b"0\r\n\r\n")?;
    out.flush()
}

fn watch(
    out: &mut impl Write,
    world: &World,
    kind: Kind,
    mut from: u64,
    wanted: &dyn Fn(&Value) -> bool,
    stop: &AtomicBool,
) -> io::Result<()> {
    out.write_all(CHUNKED.as_bytes())?;
    out.flush()?;
    let event =
        |what: &str, object: &Value| format!("{{\"type\":\"{what}\",\"object\":{object}}}\n");
    loop {
        if stop.load(SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match world.wait(kind, from, Duration::from_millis(500)) {
            Next::Gone => {
                chunk(out, &event("ERROR", &status(410, "too old resource version")))?;
                out.write_all(b"0\r\n\r\n")?;
                return out.flush();
            }
            Next::Events(events) => {
                for it in events {
                    from = it.version;
                    if !wanted(&it.object) {
                        continue;
                    }
                    let text = event(it.what, &it.object);
                    if let Some(code) = world.take_watch_error() {
                        let error = event("ERROR", &status(code, "failed by the test"));
                        chunk(out, &(text + &error))?;
                        out.write_all(b"0\r\n\r\n")?;
                        return out.flush();
                    }
                    chunk(out, &text)?;
                }
            }
            Next::Nothing(version) => {
                from = version;
                let bookmark = json!({ "metadata": { "resourceVersion": version.to_string() } });
                chunk(out, &event("BOOKMARK", &bookmark))?;
            }
        }
        out.flush()?;
    }
}
