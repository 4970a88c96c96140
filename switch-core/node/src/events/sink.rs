//! Where events go: the embedder's sink, and the queue before it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};

use crossbeam::queue::SegQueue;

use super::event::Event;
use super::failure::Failure;

/// Where events go. Closures are sinks.
pub trait EventSink: Send {
    /// Handles an event. Called on the thread that calls the node, which waits for it.
    fn event(&mut self, event: Event);
}

impl<F: FnMut(Event) + Send> EventSink for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}

/// A bounded queue of events: the sink and the receiver. If it is full, events are lost;
/// [`Event::Lost`] with their number comes before the next one.
pub fn channel(capacity: usize) -> (impl EventSink + 'static, Receiver<Event>) {
    let (sender, receiver) = sync_channel(capacity.max(2));
    let mut lost = 0;
    let sink = move |event| {
        if lost > 0 {
            match sender.try_send(Event::Lost { count: lost }) {
                Ok(()) => lost = 0,
                Err(_) => {
                    lost += 1;
                    return;
                }
            }
        }
        if let Err(TrySendError::Full(_)) = sender.try_send(event) {
            lost += 1;
        }
    };
    (sink, receiver)
}

/// The queue of events from the parts of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporter(Arc<SegQueue<Event>>);

impl Reporter {
    /// Reports an event.
    pub(crate) fn event(&self, event: Event) {
        self.0.push(event);
    }

    /// Reports what was restored, if anything was.
    pub(crate) fn repaired(&self, object: &str, done: Vec<String>) {
        if !done.is_empty() {
            self.event(Event::Repaired { object: object.to_owned(), done });
        }
    }

    /// Reports a failure.
    pub(crate) fn failure(&self, failure: Failure) {
        self.event(Event::Failure(failure));
    }

    /// The next event.
    pub(crate) fn next(&self) -> Option<Event> {
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use podswitch_core::id::Epoch;

    use super::*;

    #[test]
    fn a_full_channel_says_how_many_are_lost() {
        let (mut sink, events) = channel(2);
        for epoch in 1..=5 {
            sink.event(Event::Applied { epoch: Epoch(epoch) });
        }
        let seen: Vec<u32> = events
            .try_iter()
            .map(|event| match event {
                Event::Applied { epoch } => epoch.0,
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(seen, [1, 2]);
        sink.event(Event::Applied { epoch: Epoch(6) });
        assert!(matches!(events.recv(), Ok(Event::Lost { count: 3 })));
        assert!(matches!(events.recv(), Ok(Event::Applied { epoch: Epoch(6) })));
        drop(events);
        sink.event(Event::Applied { epoch: Epoch(7) });
    }
}
