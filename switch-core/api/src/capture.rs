//! Captures as a stream of pcapng.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Sender;
use podswitch_node::Capture;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How often the workers' copies are read, and so the longest delay of a frame. A worker's queue takes 4,096 frames.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// How long after its end a capture waits for a client that does not read.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends what is captured, until there are `count` frames, `seconds` have passed, or the client goes away.
pub(crate) async fn stream(
    mut capture: Capture,
    count: u64,
    seconds: u64,
    mut sender: Sender<Bytes, Infallible>,
) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let reason = loop {
        let is_over = Instant::now() >= end;
        // Sent also if it is empty: that is how a client that went away is noticed.
        let piece = capture.read(count).into();
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
    // A client that does not want the end has gone.
    let _ = timeout_at(end + CLIENT_TIMEOUT, sender.send_data(capture.end(reason).into())).await;
}
