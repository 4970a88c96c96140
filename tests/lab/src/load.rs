//! Continuous requests while something else happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Client, Result};

/// Sends one request after the other until it is stopped.
pub struct Load {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Counts>,
}

#[derive(Default)]
struct Counts {
    answered: BTreeMap<String, usize>,
    failed: Vec<String>,
    /// The longest time without a response.
    longest: Duration,
}

impl Load {
    /// HTTP requests.
    pub fn start(client: &Client, address: SocketAddr) -> Self {
        Self::with(client, move |client| client.get(address))
    }

    /// Connections to a server that sends a text to every client.
    pub fn start_text(client: &Client, address: SocketAddr) -> Self {
        Self::with(client, move |client| client.get_text(address))
    }

    fn with(client: &Client, request: impl Fn(&Client) -> Result<String> + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (client, stop) = (client.clone(), ended.clone());
        let thread = thread::spawn(move || {
            let mut counts = Counts::default();
            let mut last = Instant::now();
            while !stop.load(Relaxed) {
                match request(&client) {
                    Ok(body) => {
                        *counts.answered.entry(body).or_default() += 1;
                        counts.longest = counts.longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    Err(reason) => counts.failed.push(reason),
                }
                thread::sleep(Duration::from_millis(10));
            }
            counts
        });
        Self { ended, thread }
    }

    /// Stops. Every request must have been answered. Returns the number of servers and of requests.
    pub fn stop_without_loss(self) -> Result<(usize, usize)> {
        let counts = self.end();
        let requests = counts.answered.values().sum::<usize>();
        if counts.failed.is_empty() && requests > 10 {
            return Ok((counts.answered.len(), requests));
        }
        let (failed, first) =
            (counts.failed.len(), counts.failed.first().map_or("", String::as_str));
        Err(format!("{failed} of {} requests failed: {first}", requests + failed))
    }

    /// Stops. Requests may have failed for at most the time `most`.
    pub fn stop_with_outage(self, most: Duration) -> Result<Duration> {
        let counts = self.end();
        match counts.longest {
            longest if longest <= most && !counts.answered.is_empty() => Ok(longest),
            longest => Err(format!(
                "no response for {longest:?}; {} failed: {:?}",
                counts.failed.len(),
                counts.failed.first()
            )),
        }
    }

    fn end(self) -> Counts {
        self.ended.store(true, Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
