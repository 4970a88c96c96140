//! The objects and their history.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use podswitch_kubernetes::Kind;
use serde_json::{Value, json};

/// A request that a client made.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub body: Value,
}

/// See the module's description. Objects are JSON with `metadata.name` and, where there is one, `metadata.namespace`.
#[derive(Default)]
pub struct World {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    version: u64,
    /// Versions up to this one are too old to watch from.
    compacted: u64,
    objects: BTreeMap<(Kind, String), Value>,
    events: Vec<Event>,
    requests: Vec<Request>,
    token: Option<String>,
    /// Generated when they are listed: there are too many to keep.
    generated: BTreeMap<Kind, Generated>,
    /// Kinds that are not served.
    absent: Vec<Kind>,
    /// Status codes for the next list requests.
    refusals: Vec<u16>,
    /// Status code that ends the next watch that has an event.
    watch_error: Option<u16>,
}

#[derive(Clone, Copy)]
pub(crate) struct Generated {
    pub(crate) count: usize,
    pub(crate) make: fn(usize) -> String,
}

#[derive(Clone)]
pub(crate) struct Event {
    pub(crate) version: u64,
    pub(crate) kind: Kind,
    pub(crate) what: &'static str,
    pub(crate) object: Value,
}

/// What a watch is to do next.
pub(crate) enum Next {
    Events(Vec<Event>),
    /// The version is too old.
    Gone,
    Nothing(u64),
}

impl World {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic")
    }

    /// Upserts an object.
    pub fn put(&self, kind: Kind, mut object: Value) {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        let name = name_of(&object);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{name}"));
        }
        let before = inner.objects.insert((kind, name), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        inner.events.push(Event { version, kind, what, object });
        self.changed.notify_all();
    }

    /// Deletes an object.
    pub fn delete(&self, kind: Kind, name: &str) {
        let mut inner = self.lock();
        let Some(mut object) = inner.objects.remove(&(kind, name.to_owned())) else { return };
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        inner.events.push(Event { version, kind, what: "DELETED", object });
        self.changed.notify_all();
    }

    /// An object, by `namespace/name` or `name`.
    pub fn get(&self, kind: Kind, name: &str) -> Option<Value> {
        self.lock().objects.get(&(kind, name.to_owned())).cloned()
    }

    /// Forgets the history: watches from earlier versions must list again.
    pub fn compact(&self) {
        let mut inner = self.lock();
        inner.version += 1;
        inner.compacted = inner.version;
        inner.events.clear();
        self.changed.notify_all();
    }

    /// Forgets the history before `version`: watches from older versions must list again.
    pub fn forget(&self, version: u64) {
        let mut inner = self.lock();
        inner.compacted = version;
        inner.events.retain(|event| event.version > version);
    }

    /// Ends the next watch that has an event, directly after the event and with this status code.
    pub fn fail_watch(&self, code: u16) {
        self.lock().watch_error = Some(code);
    }

    /// Generates `count` objects whenever the kind is listed.
    pub fn generate(&self, kind: Kind, count: usize, make: fn(usize) -> String) {
        self.lock().generated.insert(kind, Generated { count, make });
    }

    /// Sets whether a kind is served.
    pub fn serve_kind(&self, kind: Kind, is_served: bool) {
        let mut inner = self.lock();
        inner.absent.retain(|absent| *absent != kind);
        if !is_served {
            inner.absent.push(kind);
        }
    }

    /// Sets the required token; requests without it are refused.
    pub fn set_token(&self, token: Option<&str>) {
        self.lock().token = token.map(str::to_owned);
    }

    /// Refuses the next list with this status code.
    pub fn refuse(&self, code: u16) {
        self.lock().refusals.push(code);
    }

    /// Requests since the last call.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.lock().requests)
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Wakes watches, so that they check whether to end.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    pub(crate) fn note(&self, request: Request) {
        self.lock().requests.push(request);
    }

    pub(crate) fn is_allowed(&self, header: Option<&str>) -> bool {
        match &self.lock().token {
            None => true,
            Some(token) => header == Some(&format!("Bearer {token}")),
        }
    }

    pub(crate) fn is_served(&self, kind: Kind) -> bool {
        !self.lock().absent.contains(&kind)
    }

    pub(crate) fn next_refusal(&self) -> Option<u16> {
        self.lock().refusals.pop()
    }

    pub(crate) fn take_watch_error(&self) -> Option<u16> {
        self.lock().watch_error.take()
    }

    /// The version, and the objects of a kind that match `wanted`.
    pub(crate) fn list(
        &self,
        kind: Kind,
        wanted: impl Fn(&Value) -> bool,
    ) -> (u64, Vec<String>, Option<Generated>) {
        let inner = self.lock();
        let objects = inner.objects.iter().filter(|((of, _), _)| *of == kind).map(|(_, o)| o);
        let texts = objects.filter(|o| wanted(o)).map(ToString::to_string).collect();
        (inner.version, texts, inner.generated.get(&kind).copied())
    }

    /// Events of a kind after `version`. Waits up to `longest` for one.
    pub(crate) fn wait(&self, kind: Kind, version: u64, longest: Duration) -> Next {
        let mut inner = self.lock();
        for is_last in [false, true] {
            if version < inner.compacted {
                return Next::Gone;
            }
            // Search from the end: there may be many.
            let new = inner.events.iter().rev().take_while(|event| event.version > version);
            let mut new: Vec<Event> = new.filter(|event| event.kind == kind).cloned().collect();
            if !new.is_empty() {
                new.reverse();
                return Next::Events(new);
            }
            if !is_last {
                inner = self.changed.wait_timeout(inner, longest).expect("no panic").0;
            }
        }
        Next::Nothing(inner.version)
    }

    /// Applies a merge patch to an object's metadata and status.
    pub(crate) fn patch(&self, kind: Kind, name: &str, patch: &Value) -> Option<Value> {
        let mut object = self.get(kind, name)?;
        merge(&mut object, patch);
        self.put(kind, object);
        self.get(kind, name)
    }
}

/// A JSON merge patch (RFC 7386). Simplification: the conditions of a node are replaced as a list.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        match value {
            Value::Null => drop(target.as_object_mut().and_then(|object| object.remove(key))),
            value => merge(&mut target[key], value),
        }
    }
}

fn name_of(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str();
    let name = text("name").expect("an object has a name");
    text("namespace").map_or(name.to_owned(), |namespace| format!("{namespace}/{name}"))
}
