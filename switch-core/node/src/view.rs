//! A configuration to be published: a whole one, or the published one with changes.

use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_core::config::{Config, RemoteNode, Route};
use podswitch_core::control::{Change, Objects};

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View<'a> {
    /// A whole configuration.
    Whole(&'a Config),
    /// The published configuration, with changes.
    Changed {
        /// The settings.
        settings: &'a Config,
        /// The published objects.
        objects: Objects<'a>,
        /// Changes; of two for one object the last counts.
        changes: &'a [Change],
    },
}

impl<'a> View<'a> {
    /// The settings.
    pub(crate) fn settings(&self) -> &'a Config {
        match self {
            Self::Whole(config) => config,
            Self::Changed { settings, changes, .. } => {
                let new = changes.iter().rev().find_map(|change| match change {
                    Change::Settings(config) => Some(&**config),
                    _ => None,
                });
                new.unwrap_or(settings)
            }
        }
    }

    /// Every other node.
    pub(crate) fn nodes(&self) -> Box<dyn Iterator<Item = &'a RemoteNode> + 'a> {
        let (objects, changes) = match *self {
            Self::Whole(config) => return Box::new(config.nodes.iter().map(|node| &**node)),
            Self::Changed { objects, changes, .. } => (objects, changes),
        };
        let mut known: HashSet<&Arc<str>> = HashSet::new();
        let mut new = Vec::new();
        for change in changes.iter().rev() {
            match change {
                Change::Node(node) if known.insert(&node.name) => new.push(&**node),
                Change::NodeDeleted(name) => drop(known.insert(name)),
                _ => {}
            }
        }
        let others = objects.nodes().filter(move |node| !known.contains(&node.name));
        Box::new(new.into_iter().chain(others.map(|node| &**node)))
    }

    /// Every route.
    pub(crate) fn routes(&self) -> Box<dyn Iterator<Item = &'a Route> + 'a> {
        let (objects, changes) = match *self {
            Self::Whole(config) => return Box::new(config.routes.iter().map(|route| &**route)),
            Self::Changed { objects, changes, .. } => (objects, changes),
        };
        let mut known = HashSet::new();
        let mut new = Vec::new();
        for change in changes.iter().rev() {
            match change {
                Change::Route(route) if known.insert(route.destination) => new.push(&**route),
                Change::RouteDeleted(destination) => drop(known.insert(*destination)),
                _ => {}
            }
        }
        let others = objects.routes().filter(move |route| !known.contains(&route.destination));
        Box::new(new.into_iter().chain(others.map(|route| &**route)))
    }

    /// Whether any pod has host ports. Deletions in the changes are ignored.
    pub(crate) fn has_host_ports(&self) -> bool {
        match self {
            Self::Whole(config) => !config.host_ports.is_empty(),
            Self::Changed { objects, changes, .. } => {
                let adds = |change: &Change| matches!(change, Change::HostPorts(_, ports) if !ports.is_empty());
                objects.has_host_ports() || changes.iter().any(adds)
            }
        }
    }
}
