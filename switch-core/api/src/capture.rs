//! Captures as a stream.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Sender;
use podswitch_node::Capture;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How often the workers' copies are read, and so the maximum delay of a frame. A worker's queue holds 4,096 frames.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// How long a capture, after its end, waits for a client that does not read.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// A capture as it is written.
pub(crate) trait Form: Send {
    /// What is captured until now, up to `most` frames in total.
    fn read(&mut self, most: u64) -> Bytes;
    /// Number of frames that were read.
    fn frames(&self) -> u64;
    /// The last piece.
    fn end(self, reason: &str) -> Bytes;
}

/// As a file for Wireshark.
pub(crate) struct PcapNg(pub(crate) Capture);

impl Form for PcapNg {
    fn read(&mut self, most: u64) -> Bytes {
        self.0.read(most).into()
    }

    fn frames(&self) -> u64 {
        self.0.frames()
    }

    fn end(self, reason: &str) -> Bytes {
        self.0.end(reason).into()
    }
}

/// A line with the node's name at the start, one for each frame, and one with sums at the end.
pub(crate) struct JsonLines {
    pub(crate) capture: Capture,
    /// Until it was written.
    pub(crate) node: Option<String>,
}

impl Form for JsonLines {
    fn read(&mut self, most: u64) -> Bytes {
        let mut text = Vec::new();
        if let Some(node) = self.node.take() {
            push_line(&mut text, &json!({ "node": node }));
        }
        for frame in self.capture.read_lines(most) {
            push_line(&mut text, &frame);
        }
        text.into()
    }

    fn frames(&self) -> u64 {
        self.capture.frames()
    }

    fn end(self, reason: &str) -> Bytes {
        let (frames, lost) = (self.capture.frames(), self.capture.lost());
        let mut text = Vec::new();
        push_line(&mut text, &json!({ "frames": frames, "lost": lost, "reason": reason }));
        text.into()
    }
}

fn push_line(text: &mut Vec<u8>, value: &impl Serialize) {
    // Memory takes it, and these values can all be written.
    if serde_json::to_writer(&mut *text, value).is_ok() {
        text.push(b'\n');
    }
}

/// Sends the captured frames until `count` frames were sent, `seconds` have passed, or the client closes the
/// connection.
pub(crate) async fn stream(
    mut capture: impl Form,
    count: u64,
    seconds: u64,
    mut sender: Sender<Bytes, Infallible>,
) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let reason = loop {
        let is_over = Instant::now() >= end;
        // Sent even if it is empty, because only this shows that a client has closed the connection.
        let piece = capture.read(count);
        if !matches!(timeout_at(end + CLIENT_TIMEOUT, sender.send_data(piece)).await, Ok(Ok(()))) {
            return;
        }
        if capture.frames() >= count {
            break "the number of frames was reached";
        }
        if is_over {
            break "the time was over";
        }
        sleep_until(end.min(Instant::now() + READ_INTERVAL)).await;
    };
    // If the client does not accept the end, it has closed the connection.
    let _ = timeout_at(end + CLIENT_TIMEOUT, sender.send_data(capture.end(reason))).await;
}
