//! Dropped frames, from the workers' records to events.

use std::sync::Arc;
use std::time::SystemTime;

use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use podswitch_core::records::Recorder;
use podswitch_core::time::Instant;

use super::dropped::DroppedFrames;
use super::event::Event;
use super::sink::Reporter;
use crate::metrics::Meters;
use crate::pod_name::PodName;

/// Reads the workers' records.
#[derive(Debug)]
pub(crate) struct DropReader {
    recorder: Recorder,
    node: Arc<str>,
}

impl DropReader {
    /// Has all workers of `control` record dropped frames.
    pub(crate) fn observe(control: &ControlPlane, node: &str) -> Self {
        let mut recorder = Recorder::new();
        control.observe(|_| Some(recorder.observer()));
        Self { recorder, node: node.into() }
    }

    /// Remembers the names of the snapshot in force. Called after each publish.
    pub(crate) fn published(&mut self, control: &ControlPlane) {
        self.recorder.published(control.snapshot());
    }

    /// Reports what was recorded, and has the workers hand over what they counted together, for the next
    /// call. `pod`: the pod at a port.
    pub(crate) fn report(
        &mut self,
        control: &ControlPlane,
        reporter: &Reporter,
        meters: &Meters,
        pod: impl Fn(PortId) -> Option<PodName>,
    ) {
        self.read(control, reporter, meters, pod);
        control.collect(self.recorder.pending());
    }

    /// Reports what was recorded.
    pub(crate) fn read(
        &mut self,
        control: &ControlPlane,
        reporter: &Reporter,
        meters: &Meters,
        pod: impl Fn(PortId) -> Option<PodName>,
    ) {
        #[expect(clippy::disallowed_methods, reason = "people look drops up by the time of day")]
        let (now, wall) = (control.clock().now(), SystemTime::now());
        let time = |at: Instant| wall.checked_sub(now.since(at)).unwrap_or(wall);
        let node = &self.node;
        self.recorder.read(|record| {
            if record.is_other {
                meters.suppressed(record.count);
            }
            reporter.event(Event::Dropped(Box::new(DroppedFrames {
                first: time(record.first),
                last: time(record.last),
                node: Arc::clone(node),
                pod: record.port.and_then(&pod),
                record,
            })));
        });
    }
}
