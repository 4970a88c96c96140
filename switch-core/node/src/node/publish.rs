//! Publishing: the desired state, completed with what the node itself contributes: ports, pods'
//! attachments, tunnel, neighbours and local addresses.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::{Config, Endpoint, PortConfig, PortRole};
use podswitch_core::control::Change;
use podswitch_core::id::{Cookie, Epoch};
use podswitch_policy::service::model::HostPort;

use super::request::{Published, Request};
use super::{Node, PUBLISH_TIMEOUT};
use crate::error::NodeError;
use crate::events::Event;
use crate::host_side::Behind;
use crate::ranges::{Affected, Ranges};
use crate::state::settings_of;
use crate::view::View;

impl Node {
    /// The configuration that `request` leads to.
    pub(super) fn view<'a>(&'a self, request: &'a Request) -> View<'a> {
        request.view(&self.desired.settings, self.control.objects())
    }

    /// Publishes `request` and the node's own part, waits for the workers, and empties the request.
    pub(super) fn publish(&mut self, request: &mut Request) -> Result<Epoch, NodeError> {
        if let Some(kept) = &mut self.kept {
            // Before the state names the ports that were attached for it.
            kept.restore(&self.control, false);
        }
        let began = self.clock.now();
        let epoch = match request {
            Request::Whole(config) => self.publish_whole(config)?,
            Request::Changes(changes) => {
                let has_settings = |change: &Change| matches!(change, Change::Settings(_));
                if self.is_unpublished && !changes.iter().any(has_settings) {
                    changes.push(Change::Settings(Arc::new(self.desired.settings.clone())));
                }
                let Some(epoch) = self.publish_changes(changes)? else { return Ok(self.epoch()) };
                epoch
            }
        };
        *request = Request::none();
        self.acknowledged(epoch)?;
        self.meters.published(self.clock.now().since(began));
        self.is_unpublished = false;
        self.host.detach(&mut self.control);
        Ok(epoch)
    }

    fn acknowledged(&mut self, epoch: Epoch) -> Result<(), NodeError> {
        if let Some(drops) = &mut self.drops {
            drops.published(&self.control);
        }
        if let Some(flows) = &mut self.flows {
            flows.published(&self.control);
        }
        self.port_kinds.follow(&self.control);
        self.control.wait(epoch, PUBLISH_TIMEOUT)?;
        self.reporter.event(Event::Applied { epoch });
        Ok(())
    }

    fn publish_whole(&mut self, config: &mut Config) -> Result<Epoch, NodeError> {
        let desired = settings_of(config);
        let mut completed = std::mem::take(config);
        let node = completed.node.name.clone();
        let mut own = Published { nodes: self.underlay.node_context(), ..Published::default() };
        let mut attached: HashSet<Cookie> = self.pods.cookies().cloned().collect();
        let mut ports = self.own_ports();
        for endpoint in &mut completed.endpoints {
            if attached.remove(&endpoint.cookie) || endpoint.attachment.is_some() {
                let published = self.pods.published(&endpoint.cookie, Some(endpoint), &node);
                if let Some(published) = published {
                    *endpoint = published;
                }
            }
            ports.extend(port_of(endpoint));
        }
        // Attached pods that the configuration does not describe.
        for cookie in attached {
            let Some(endpoint) = self.pods.published(&cookie, None, &node) else { continue };
            ports.extend(port_of(&endpoint));
            completed.endpoints.push(endpoint);
            own.pods.insert(cookie);
        }
        let mut brought: HashMap<&Cookie, &Arc<[HostPort]>> = self.pods.host_ports().collect();
        for (pod, _) in &completed.host_ports {
            brought.remove(pod);
        }
        for (pod, ports) in brought {
            own.host_ports.insert(pod.clone());
            completed.host_ports.push((pod.clone(), ports.clone()));
        }
        completed.nodes.iter_mut().for_each(|node| self.underlay.complete_node(node));
        self.complete_settings(&mut completed);
        completed.ports.clone_from(&ports);
        let epoch = match self.settings.lenient {
            true => {
                let published = self.control.apply_lenient(&completed)?;
                self.reported(published)
            }
            false => self.control.apply(&completed)?,
        };
        own.ports = ports.into_iter().map(|port| (port.port, port)).collect();
        self.published = own;
        self.desired.settings = desired;
        self.ranges = Ranges::of(&self.desired.settings, self.control.objects());
        self.behind = Behind::all();
        Ok(epoch)
    }

    /// Returns `None` if there is nothing to publish.
    fn publish_changes(&mut self, changes: &[Change]) -> Result<Option<Epoch>, NodeError> {
        let settings = changes.iter().rev().find_map(|change| match change {
            Change::Settings(settings) => Some(settings_of(settings)),
            _ => None,
        });
        let node = settings.as_ref().unwrap_or(&self.desired.settings).node.name.clone();
        let mut own = Published { nodes: self.underlay.node_context(), ..Published::default() };
        own.pods.clone_from(&self.published.pods);
        own.host_ports.clone_from(&self.published.host_ports);
        let mut list = Vec::with_capacity(changes.len());
        // Pods in the list, as published.
        let mut pods: HashMap<Cookie, Option<Arc<Endpoint>>> = HashMap::new();
        for change in changes {
            let (cookie, described) = match change {
                Change::Pod(endpoint) => (&endpoint.cookie, Some(endpoint)),
                Change::PodDeleted(cookie) => (cookie, None),
                Change::Node(node) => {
                    let mut node = node.clone();
                    self.underlay.complete_node(&mut node);
                    list.push(Change::Node(node));
                    continue;
                }
                Change::HostPorts(pod, ports) => {
                    // Where the state has none, those that were brought along come back below.
                    own.host_ports.remove(pod);
                    if !ports.is_empty() || self.pods.host_ports_of(pod).is_none() {
                        list.push(change.clone());
                    } else {
                        own.host_ports.insert(pod.clone());
                        list.extend(
                            self.pods
                                .host_ports_of(pod)
                                .map(|brought| Change::HostPorts(pod.clone(), brought.clone())),
                        );
                    }
                    continue;
                }
                Change::Settings(_) | Change::Port(_) | Change::PortDeleted(_) => continue,
                other => {
                    list.push(other.clone());
                    continue;
                }
            };
            let published = self.pods.published(cookie, described, &node);
            match described.is_none() && published.is_some() {
                true => drop(own.pods.insert(cookie.clone())),
                false => drop(own.pods.remove(cookie)),
            }
            pods.insert(cookie.clone(), published);
        }
        let objects = self.control.objects();
        let mut ports = self.own_ports();
        for cookie in self.pods.cookies() {
            let published = match pods.get(cookie) {
                Some(published) => published.clone(),
                None => {
                    let known = objects.endpoint(cookie);
                    let described = known.filter(|_| !own.pods.contains(cookie));
                    let published = self.pods.published(cookie, described, &node);
                    if published.as_ref() != known {
                        pods.insert(cookie.clone(), published.clone());
                        match described.is_none() && published.is_some() {
                            true => drop(own.pods.insert(cookie.clone())),
                            false => drop(own.pods.remove(cookie)),
                        }
                    }
                    published
                }
            };
            ports.extend(published.as_deref().and_then(port_of));
        }
        list.extend(pods.into_iter().map(|(cookie, pod)| match pod {
            Some(pod) => Change::Pod(pod),
            None => Change::PodDeleted(cookie),
        }));
        self.complete_host_ports(&mut list, &mut own);
        if own.nodes != self.published.nodes {
            self.complete_nodes(&mut list);
        }
        own.ports = ports.into_iter().map(|port| (port.port, port)).collect();
        let gone = self.published.ports.keys().filter(|port| !own.ports.contains_key(*port));
        list.extend(gone.map(|port| Change::PortDeleted(*port)));
        let is_new = |port: &&PortConfig| self.published.ports.get(&port.port) != Some(*port);
        list.extend(own.ports.values().filter(is_new).cloned().map(Change::Port));
        if let Some(settings) = &settings {
            let mut completed = settings.clone();
            self.complete_settings(&mut completed);
            list.push(Change::Settings(Arc::new(completed)));
        }
        if list.is_empty() && changes.is_empty() {
            return Ok(None);
        }
        let affected = Affected::by(&list, &self.desired.settings, objects);
        let host_ports = list.iter().any(|change| matches!(change, Change::HostPorts(..)));
        let epoch = self.update_control(list)?;
        self.behind.services |= host_ports;
        self.published = own;
        if let Some(settings) = settings {
            self.desired.settings = settings;
        }
        let (settings, objects) = (&self.desired.settings, self.control.objects());
        let followed = self.ranges.follow(affected, settings, objects);
        self.behind.pods |= followed.is_all;
        self.behind.nodes |= followed.nodes;
        self.behind.ranges.extend(self.ranges.take_changes());
        Ok(Some(epoch))
    }

    /// Adds host ports that attachments bring along and the state does not have, and takes back those of pods that have
    /// no port any more.
    fn complete_host_ports(&self, list: &mut Vec<Change>, own: &mut Published) {
        let objects = self.control.objects();
        let mut changed = HashSet::new();
        for change in list.iter() {
            if let Change::HostPorts(pod, _) = change {
                changed.insert(pod.clone());
            }
        }
        for (pod, ports) in self.pods.host_ports() {
            if !changed.contains(pod) && objects.host_ports(pod).is_none() {
                own.host_ports.insert(pod.clone());
                list.push(Change::HostPorts(pod.clone(), ports.clone()));
            }
        }
        let gone: Vec<Cookie> = own
            .host_ports
            .iter()
            .filter(|p| self.pods.host_ports_of(p).is_none())
            .cloned()
            .collect();
        for pod in gone {
            own.host_ports.remove(&pod);
            list.push(Change::HostPorts(pod, Arc::default()));
        }
    }

    /// Adds all nodes whose MAC address on the underlay changed.
    fn complete_nodes(&self, list: &mut Vec<Change>) {
        let mut known = HashSet::new();
        for change in list.iter() {
            match change {
                Change::Node(node) => drop(known.insert(node.name.clone())),
                Change::NodeDeleted(name) => drop(known.insert(name.clone())),
                _ => {}
            }
        }
        for node in self.control.objects().nodes().filter(|node| !known.contains(&node.name)) {
            let mut completed = node.clone();
            self.underlay.complete_node(&mut completed);
            if completed.underlay_mac != node.underlay_mac {
                list.push(Change::Node(completed));
            }
        }
    }

    /// Ports other than pods'.
    fn own_ports(&self) -> Vec<PortConfig> {
        std::iter::once(self.host.port_config()).chain(self.underlay.ports()).collect()
    }

    fn complete_settings(&self, settings: &mut Config) {
        settings.node.local_addresses.extend(self.host.local_addresses());
        if let Some(masquerade) = self.settings.masquerade.by_switch(&self.settings.cluster_cidrs) {
            settings.masquerade = Some(masquerade);
        }
        self.underlay.complete(settings);
    }
}

fn port_of(endpoint: &Endpoint) -> Option<PortConfig> {
    let port = endpoint.attachment?.port;
    Some(PortConfig { port, role: PortRole::Pod })
}
