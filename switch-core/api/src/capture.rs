//! Captures as a stream of pcapng.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Sender;
use podswitch_node::Capture;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How often the workers' copies are read, and so the maximum delay of a frame. A worker's queue holds 4,096 frames.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// How long a capture, after its end, waits for a client that does not read.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends the captured frames until `count` frames were sent, `seconds` have passed, or the client closes the
/// connection.
pub(crate) async fn stream(
    mut capture: Capture,
    count: u64,
    seconds: u64,
    mut sender: Sender<Bytes, Infallible>,
) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let reason = loop {
        let is_over = Instant::now() >= end;
        // Sent even if it is empty, because only this shows that a client has closed the connection.
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
    // If the client does not accept the end, it has closed the connection.
    let _ = timeout_at(end + CLIENT_TIMEOUT, sender.send_data(capture.end(reason).into())).await;
}
