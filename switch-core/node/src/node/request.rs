//! The request of a publish, and what the node adds to it.

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::{Config, PortConfig};
use podswitch_core::control::{Change, Objects};
use podswitch_core::id::{Cookie, PortId};

use crate::underlay::NodeContext;
use crate::view::View;

/// What to publish, in addition to the node's own part.
#[derive(Debug)]
pub(super) enum Request {
    /// This configuration.
    Whole(Box<Config>),
    /// Changes of the published state.
    Changes(Vec<Change>),
}

impl Request {
    /// Nothing.
    pub(super) fn none() -> Self {
        Self::Changes(Vec::new())
    }

    /// The configuration that it leads to, from the published one.
    pub(super) fn view<'a>(&'a self, settings: &'a Config, objects: Objects<'a>) -> View<'a> {
        match self {
            Self::Whole(config) => View::Whole(config),
            Self::Changes(changes) => View::Changed { settings, objects, changes },
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::Changes(changes) if changes.is_empty())
    }
}

/// The node's own part of the published state.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) ports: HashMap<PortId, PortConfig>,
    /// Pods that the desired state does not describe.
    pub(super) pods: HashSet<Cookie>,
    /// Pods whose host ports are those that their attachments brought along.
    pub(super) host_ports: HashSet<Cookie>,
    /// The context of other nodes' MAC addresses.
    pub(super) nodes: NodeContext,
}
