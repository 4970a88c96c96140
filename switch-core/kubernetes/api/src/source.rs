//! The API server as a [`Source`]: owns the store and publishes the changes.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use http::Uri;
use podswitch_core::id::Cookie;
use podswitch_core::time::{Clock, Instant};
use podswitch_kubernetes::{Kind, Object, ObjectChanges, Record, Store};
use podswitch_node::cni::ClusterView;
use podswitch_node::source::{Followed, Source, SourceError, StateSink};
use podswitch_node::{ClusterOptions, Meters, Probes, State};

use crate::agent::{Agent, OwnNode};
use crate::error::ApiError;
use crate::events::Reports;
use crate::feed::{Inbox, Message, PodScope, Shared};
use crate::lists::Lists;
use crate::options::{self, ApiOptions};
use crate::runtime::Runtime;
use crate::saved::Saved;
use crate::servers::Access;
use crate::triggers::Triggers;
use crate::view::ApiView;

/// Least time between two publishes. The first change after a quiet period is published at once;
/// those that follow are coalesced.
const COALESCE: Duration = Duration::from_millis(30);
/// How long a start waits for a response of an API server before it loads the last good state from
/// disk.
const SAVED_STATE_AFTER_MS: u64 = 5_000;
/// Least time between two collections of records. The cost of one is proportional to the number of
/// records.
const RECORDS_INTERVAL: Duration = Duration::from_secs(1);
/// How long no policy may name pods before the watch is narrowed to the pods of this node again.
const SCOPE_LINGER: Duration = Duration::from_secs(60);
/// How long one call processes messages, so that its caller is not blocked for longer.
const MAX_RECEIVE: Duration = Duration::from_millis(50);
/// After how long a state that the node refused is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Time between two calls of `follow` if nothing happens.
const IDLE: Duration = Duration::from_millis(500);

/// See the module's description.
#[derive(Debug)]
pub struct ApiSource {
    node: String,
    cluster: ClusterOptions,
    store: Store,
    inbox: Inbox,
    shared: Arc<Shared>,
    lists: Lists,
    /// Policies that name pods or namespaces as peers.
    peers: HashSet<Cookie>,
    /// Policies with such peers that arrived while only this node's pods were known. They are held
    /// until the other pods are known; otherwise traffic that they allow would be denied meanwhile.
    held: HashMap<Cookie, Object>,
    scope: Option<PodScope>,
    /// Since when no policy has had pods as peers.
    peerless_since: Option<Instant>,
    clock: Clock,
    /// There are unpublished changes.
    changed: bool,
    publish_at: Instant,
    /// The node does not have the store's last state: it needs a complete state.
    behind: bool,
    /// The objects that the last published changes added, changed and removed.
    object_changes: ObjectChanges,
    records: Vec<Record>,
    records_at: Instant,
    records_due: bool,
    stale: bool,
    /// The missing Node object has been reported.
    is_missing_said: bool,
    /// Number of received items that could not be decoded.
    unreadable: u64,
    saved: Saved,
    own: OwnNode,
    agent: Agent,
    reports: Reports,
    probes: Probes,
    meters: Meters,
    triggers: Triggers,
    view: Arc<ApiView>,
    runtime: Runtime,
}

impl ApiSource {
    /// Starts to follow the API server on a separate thread.
    ///
    /// # Errors
    /// There are no credentials; an option has an invalid value; the system cannot create a thread
    /// or a socket.
    pub fn open(options: ApiOptions) -> Result<Self, ApiError> {
        let saved = Saved::open(options.run_dir.as_deref(), &options.node);
        let servers: Result<Vec<Uri>, ApiError> =
            options.servers.iter().map(|text| options::server(text)).collect();
        let access = Access {
            kubeconfig: options.kubeconfig.clone(),
            servers: servers?,
            endpoints: saved.endpoints(),
        };
        let (runtime, started) = Runtime::start(&options, access)?;
        let clock = Clock::start();
        let now = clock.now();
        Ok(Self {
            store: Store::new(Some(&options.node), options.cluster.kubernetes()),
            inbox: started.inbox,
            shared: started.shared,
            lists: Lists::default(),
            peers: HashSet::new(),
            held: HashMap::new(),
            scope: None,
            peerless_since: None,
            clock,
            changed: false,
            publish_at: now,
            behind: true,
            object_changes: ObjectChanges::default(),
            records: Vec::new(),
            records_at: now,
            records_due: false,
            stale: false,
            is_missing_said: false,
            unreadable: 0,
            saved,
            own: OwnNode::default(),
            agent: started.agent,
            reports: Reports::new(&options.node),
            probes: options.probes,
            meters: options.meters,
            triggers: Triggers::new(),
            view: started.view,
            runtime,
            node: options.node,
            cluster: options.cluster,
        })
    }

    /// The view of pods for the CNI agent.
    pub fn view(&self) -> Arc<dyn ClusterView> {
        self.view.clone()
    }

    /// Whether all pods of the cluster are watched, or only those of this node. `None`: none yet.
    pub fn watches_all_pods(&self) -> Option<bool> {
        self.scope.map(|scope| scope == PodScope::Cluster)
    }

    /// Number of items from the API server that could not be decoded.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Processes queued messages for a limited time. Returns whether more may be queued.
    fn receive(&mut self) -> bool {
        self.inbox.clear();
        let until = self.clock.now() + MAX_RECEIVE;
        while let Some(message) = self.inbox.next() {
            self.take(message);
            if self.clock.now() >= until {
                self.shared.wake();
                return true;
            }
        }
        false
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::ListBegins(kind) => {
                let is_first = self.store.names(kind).next().is_none() && self.held.is_empty();
                self.lists.begin(kind, is_first);
            }
            Message::Objects(kind, objects) => {
                for object in objects {
                    self.lists.enter(kind, object.name());
                    self.upsert(object);
                }
            }
            Message::Deleted(name) => {
                self.delete(&name);
            }
            Message::ListEnds(kind, scope) => {
                if kind == Kind::Pod {
                    self.choose_scope();
                    if self.scope != Some(scope) {
                        // The scope has changed since; the list with the right scope follows.
                        return;
                    }
                }
                if let Some(seen) = self.lists.end(kind) {
                    let held = self.held.iter().filter(|(_, object)| object.kind() == kind);
                    let known = self.store.names(kind).chain(held.map(|(name, _)| name));
                    let gone: Vec<Cookie> =
                        known.filter(|name| !seen.contains(*name)).cloned().collect();
                    gone.iter().for_each(|name| self.delete(name));
                }
                if kind == Kind::Pod {
                    for object in std::mem::take(&mut self.held).into_values() {
                        self.put(&object);
                    }
                }
                self.choose_scope();
            }
            Message::Unreadable(kind, reason) => {
                self.unreadable += 1;
                self.shared
                    .failed(format!("{}: an object cannot be read: {reason}", kind.plural()));
            }
        }
    }

    fn upsert(&mut self, object: Object) {
        let name = object.name();
        if object.kind().is_policy() {
            let was_peerless = self.peers.is_empty();
            if object.has_pod_peers() {
                self.peers.insert(name.clone());
            } else {
                self.peers.remove(name);
            }
            self.held.remove(name);
            if was_peerless != self.peers.is_empty() && self.lists.are_complete() {
                self.choose_scope();
            }
            if object.has_pod_peers() && self.awaits_pods() {
                self.held.insert(name.clone(), object);
                return;
            }
        }
        self.put(&object);
    }

    /// Whether all pods are wanted and their list has not ended, on a node that already forwards.
    fn awaits_pods(&self) -> bool {
        self.lists.were_complete() && !self.lists.is_complete(Kind::Pod)
    }

    fn put(&mut self, object: &Object) {
        match object.kind() {
            Kind::Pod => self.view.upsert(object, &self.node),
            Kind::Node => {
                self.reports.node(object);
                if object.name().as_str().strip_prefix("Node/") == Some(&self.node) {
                    self.own.see(object);
                }
            }
            Kind::EndpointSlice => {
                self.note_api_servers(object);
                self.triggers.upsert(object);
            }
            _ => {}
        }
        self.saved.put(object);
        self.store.upsert(object);
        self.changed = true;
    }

    fn delete(&mut self, name: &Cookie) {
        if self.peers.remove(name) && self.peers.is_empty() {
            self.choose_scope();
        }
        self.held.remove(name);
        self.view.delete(name);
        self.reports.delete(name);
        self.triggers.delete(name);
        self.saved.delete(name);
        self.store.delete(name);
        self.changed = true;
    }

    /// Saves the API servers' own addresses, for a start without the Service.
    fn note_api_servers(&mut self, slice: &Object) {
        if slice.name().as_str() != "EndpointSlice/default/kubernetes" {
            return;
        }
        let mut servers: Vec<String> = slice
            .ready_endpoints()
            .into_iter()
            .filter(|endpoint| matches!(endpoint.port_name.as_str(), "https" | ""))
            .map(|endpoint| endpoint.address.to_string())
            .collect();
        servers.sort_unstable();
        servers.dedup();
        if !servers.is_empty() && self.saved.set_endpoints(&servers) {
            self.runtime.set_endpoints(&servers);
        }
    }

    /// Chooses the scope: all pods of the cluster while a policy names pods or namespaces as peers,
    /// otherwise the pods of this node.
    fn choose_scope(&mut self) {
        if !self.lists.has_policies() {
            return;
        }
        let now = self.clock.now();
        let wanted = match self.peers.is_empty() {
            false => PodScope::Cluster,
            true if self.scope == Some(PodScope::Cluster) => {
                // Policies are often deleted and recreated. Do not list all pods again each time.
                let since = *self.peerless_since.get_or_insert(now);
                if now.since(since) < SCOPE_LINGER { PodScope::Cluster } else { PodScope::Node }
            }
            true => PodScope::Node,
        };
        if !self.peers.is_empty() || wanted == PodScope::Node {
            self.peerless_since = None;
        }
        if self.scope == Some(wanted) {
            return;
        }
        if wanted == PodScope::Cluster {
            self.lists.expect(Kind::Pod);
        }
        self.scope = Some(wanted);
        self.runtime.set_scope(wanted);
    }

    /// Publishes the changes, if they affect the switch.
    fn publish(&mut self, node: &mut dyn StateSink) -> Result<Followed, SourceError> {
        self.changed = false;
        if !self.store.has_node() {
            if self.behind && self.is_missing_said {
                return Ok(Followed::Unchanged);
            }
            (self.behind, self.is_missing_said) = (true, true);
            self.records = self.store.records();
            return Err(SourceError::Other(format!(
                "there is no Node object for this node, {}; the state in force stays",
                self.node
            )));
        }
        self.is_missing_said = false;
        let changes = self.store.take_changes();
        self.records_due = true;
        if changes.is_empty() && !self.behind {
            // The changes do not affect this node.
            self.store.take_object_changes();
            return Ok(Followed::Unchanged);
        }
        if let Some(base) = &changes.base {
            self.own.set_in_force(&base.node, base.flannel);
        }
        let applied = if self.behind {
            let state = self.complete_state();
            node.apply_state(state)
        } else {
            node.update_state(self.cluster.changes(changes))
        };
        self.behind = applied.is_err();
        let epoch = applied?;
        self.object_changes = self.store.take_object_changes();
        self.triggers.in_force(&self.meters);
        Ok(Followed::Applied(epoch))
    }

    fn complete_state(&mut self) -> State {
        let mut compiled = self.store.compiled();
        self.cluster.complete(&mut compiled.config, compiled.flannel);
        self.own.set_in_force(&compiled.config.node, compiled.flannel);
        self.records = std::mem::take(&mut compiled.records);
        State::from(compiled)
    }

    /// Collects the records at a limited rate, and sends Events for them.
    fn collect_records(&mut self, now: Instant, node: &dyn StateSink) {
        if !self.records_due || now < self.records_at {
            return;
        }
        self.records = self.store.records();
        self.add_left_out(node);
        let (events, more) = self.reports.news(&self.records, &|pod| self.view.knows(pod));
        (self.records_due, self.records_at) = (more, now + RECORDS_INTERVAL);
        events.into_iter().for_each(|event| self.agent.event(event));
    }

    /// Loads the last good state, for a start without an API server.
    fn load_saved(&mut self) -> bool {
        let Self { saved, lists, peers, view, store, node, own, .. } = self;
        for kind in Kind::ALL {
            lists.know_more(kind, store.names(kind).cloned().collect());
        }
        saved.load(&mut |object| {
            if !lists.is_news(object.kind(), object.name()) {
                return;
            }
            if object.has_pod_peers() {
                peers.insert(object.name().clone());
            }
            match object.kind() {
                Kind::Pod => view.upsert(&object, node),
                Kind::Node if object.name().as_str().strip_prefix("Node/") == Some(node) => {
                    own.see(&object)
                }
                _ => {}
            }
            store.upsert(&object);
        });
        store.has_node()
    }
}

impl Source for ApiSource {
    fn first_state(
        &mut self,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Option<State>, SourceError> {
        let mut saved_tried = false;
        loop {
            self.probes.alive();
            let more = self.receive();
            let is_complete = self.lists.are_complete();
            if is_complete && self.store.has_node() {
                break;
            }
            if !is_complete && !saved_tried && self.shared.silence_ms() >= SAVED_STATE_AFTER_MS {
                saved_tried = true;
                if self.load_saved() {
                    self.stale = true;
                    tracing::warn!(target: "kubernetes", "no API server responds: using the last known state");
                    break;
                }
            }
            let why = match (is_complete, self.shared.error()) {
                (true, _) => format!("waiting for the Node object of this node, {}", self.node),
                (false, Some(error)) => format!("waiting for the API server: {error}"),
                (false, None) => format!("waiting for lists of {}", self.lists.missing()),
            };
            if !more && !waiting(&why) {
                return Ok(None);
            }
        }
        self.store.take_changes();
        self.store.take_object_changes();
        (self.changed, self.behind) = (false, false);
        if !self.stale {
            self.saved.first_complete();
        }
        let state = self.complete_state();
        self.records_due = true;
        Ok(Some(state))
    }

    fn follow(&mut self, node: &mut dyn StateSink, force: bool) -> Result<Followed, SourceError> {
        // The caller has started a node with the first state, so every worker has acknowledged it
        // by now.
        self.probes.alive();
        self.probes.ready();
        self.own.acknowledged();
        self.receive();
        let now = self.clock.now();
        if self.peerless_since.is_some_and(|since| now.since(since) >= SCOPE_LINGER) {
            self.choose_scope();
        }
        if force {
            (self.changed, self.behind) = (true, true);
        }
        let is_due = self.changed && now >= self.publish_at && self.lists.were_complete();
        let result = if is_due {
            self.publish_at = now + COALESCE;
            let applied = self.publish(node);
            match &applied {
                Ok(_) if self.stale => {
                    self.stale = false;
                    self.saved.first_complete();
                }
                Ok(_) => {}
                Err(_) => (self.changed, self.publish_at) = (true, now + RETRY),
            }
            applied
        } else {
            Ok(Followed::Unchanged)
        };
        self.saved.flush();
        self.collect_records(now, node);
        if let Some(patch) = self.own.patch(now) {
            self.agent.node(patch);
        }
        result
    }

    fn next_check(&self) -> Duration {
        let now = self.clock.now();
        let mut pause = IDLE;
        if self.changed && self.lists.were_complete() {
            pause = pause.min(self.publish_at.since(now));
        }
        if self.records_due {
            pause = pause.min(self.records_at.since(now));
        }
        pause
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inbox.wake_fd())
    }

    fn records(&self) -> &[Record] {
        &self.records
    }

    fn add_left_out(&mut self, node: &dyn StateSink) {
        Record::set_left_out(&mut self.records, &node.left_out());
    }

    fn object_changes(&self) -> ObjectChanges {
        self.object_changes.clone()
    }

    fn is_stale(&self) -> bool {
        self.stale
    }

    fn stale_for(&self) -> Duration {
        match self.stale || self.shared.error().is_some() {
            true => Duration::from_millis(self.shared.silence_ms()),
            false => Duration::ZERO,
        }
    }
}
