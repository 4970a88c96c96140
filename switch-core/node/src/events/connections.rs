//! Connections that were opened and closed.

use hashbrown::HashMap;
use podswitch_core::control::ControlPlane;
use podswitch_wire::flow_key::FlowKey;

use super::event::Event;
use super::sink::Reporter;
use crate::flows::{Flow, services};

/// Most connections that are reported.
const MAX_REPORTED: usize = 65_536;

/// Reports connections that were opened or closed since the last call.
#[derive(Debug, Default)]
pub(crate) struct FlowReporter {
    known: HashMap<FlowKey, Flow>,
}

impl FlowReporter {
    /// Reports what changed.
    pub(crate) fn report(&mut self, control: &ControlPlane, reporter: &Reporter) {
        let snapshot = control.snapshot();
        let services = services(&snapshot);
        let mut now = HashMap::with_capacity(self.known.len());
        for info in control.connections() {
            let key = info.pinned.original;
            let before = self.known.remove(&key);
            if before.is_none() && now.len() + self.known.len() >= MAX_REPORTED {
                continue;
            }
            let flow = Flow::of(&info, &snapshot, &services);
            match before {
                // Counters do not decrease: it is a new connection between the same ends.
                Some(before) if flow.packets < before.packets => {
                    reporter.event(Event::FlowClosed(before));
                    reporter.event(Event::FlowOpened(flow.clone()));
                }
                Some(_) => {}
                None => reporter.event(Event::FlowOpened(flow.clone())),
            }
            now.insert(key, flow);
        }
        for (_, flow) in std::mem::replace(&mut self.known, now) {
            reporter.event(Event::FlowClosed(flow));
        }
    }
}
