//! What the source logs when its API server disappears and returns.
#![allow(clippy::disallowed_types, reason = "tests keep events behind a lock")]

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podswitch_kubernetes::Kind;
use podswitch_kubernetes_api::{ApiOptions, ApiSource};
use podswitch_kubernetes_api_testkit::{ApiServer, World, eventually, kubeconfig};
use podswitch_node::source::Source;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Events of the source: level and text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Log {
    fn count(&self, level: Level, text: &str) -> usize {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| event.0 == level && event.1.contains(text)).count()
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "kubernetes"
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let level = *event.metadata().level();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((level, text.0));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn an_outage_is_logged_once_and_each_retry_with_its_reason() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).expect("the only one");
    let world = Arc::new(World::default());
    world.put(Kind::Namespace, json!({ "metadata": { "name": "default" } }));
    world.put(
        Kind::Node,
        json!({
            "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        }),
    );
    let server = ApiServer::start(world.clone());
    let folder = tempfile::tempdir().expect("a folder");
    kubeconfig(&folder.path().join("kubeconfig"), &server.url(), None);
    let mut options = ApiOptions::new("n1");
    options.kubeconfig = Some(folder.path().join("kubeconfig"));
    let mut source = ApiSource::open(options).expect("credentials");
    let mut turns = 0;
    let state = source.first_state(&mut |_| {
        std::thread::sleep(Duration::from_millis(5));
        turns += 1;
        turns < 4000
    });
    assert!(state.expect("a state").is_some());
    eventually("watches", || log.count(Level::DEBUG, "listed; the watch begins") > 0);
    assert_eq!(log.count(Level::WARN, ""), 0);

    let address = server.stop();
    let again = "retrying a watch or list";
    eventually("new tries of several kinds", || log.count(Level::INFO, again) > 6);
    assert!(log.count(Level::INFO, "pause_ms=") > 6);
    let outages = log.count(Level::WARN, "the API server does not respond or refuses requests");
    assert_eq!(outages, 1, "of {} tries", log.count(Level::INFO, again));
    assert_eq!(log.count(Level::INFO, "the API server responds again"), 0);

    let _server = ApiServer::start_at(world, address).expect("it is free");
    eventually("it responds", || log.count(Level::INFO, "the API server responds again") > 0);
}
