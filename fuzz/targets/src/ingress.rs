//! A line of host and path, and then objects in JSON, one after the other: the result is routes and records of one line
//! each, and the same again, whatever the order of the objects.

use std::collections::BTreeSet;

use podswitch_ingress::{Compiled, Objects, Options, Target, compile};
use serde_json::Value;

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (line, rest) = input.split_at(end);
    let line = String::from_utf8_lossy(line);
    let (host, path) = line.split_once(' ').unwrap_or((&line, "/"));
    // Up to what is no JSON.
    let objects: Vec<Value> =
        serde_json::Deserializer::from_slice(rest).into_iter().map_while(Result::ok).collect();
    let one = compiled(&objects);
    let lines = lines(&one);
    assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
    let target = found(&one, host, path);
    let again = compiled(&objects);
    assert_eq!(self::lines(&again), lines);
    assert_eq!(found(&again, host, path), target);
    // The last of several with one name counts.
    let names: BTreeSet<String> = objects.iter().map(name).collect();
    if names.len() == objects.len() {
        let turned: Vec<Value> = objects.iter().rev().cloned().collect();
        let other = compiled(&turned);
        assert_eq!(found(&other, host, path), target, "in another order");
        assert_eq!(other.served, one.served);
    }
    for route in one.routes.all() {
        let served =
            one.served.iter().map(|(namespace, name)| format!("Ingress/{namespace}/{name}"));
        let is_known = served.into_iter().any(|name| name == route.ingress.as_str());
        assert!(is_known || !route.ingress.as_str().starts_with("Ingress/"), "{}", route.ingress);
    }
}

fn compiled(objects: &[Value]) -> Compiled {
    let mut all = Objects::default();
    for object in objects {
        all.upsert(None, object.clone());
    }
    compile(&all, &Options::default())
}

fn name(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).map(Value::to_string).unwrap_or_default();
    let parts = ["/kind", "/metadata/namespace", "/metadata/name"].map(text);
    // Without a namespace, it is the one called default.
    parts.join("/").replace("//", "/\"default\"/")
}

/// Sorted: records come by object.
fn lines(compiled: &Compiled) -> Vec<String> {
    let mut lines: Vec<_> = compiled.records.iter().map(ToString::to_string).collect();
    lines.sort();
    lines
}

/// The object, path and backend.
fn found(compiled: &Compiled, host: &str, path: &str) -> Option<String> {
    match compiled.routes.find(host, path) {
        Target::Route(route) => {
            Some(format!("{} {} {:?}", route.ingress, route.path, route.backend))
        }
        Target::None => None,
    }
}
