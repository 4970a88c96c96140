//! One call of the agent: a frame there, a frame back. A frame is its length in bytes, as 32 bits in network byte
//! order, and so many bytes of JSON.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Call, now};

/// Version of the frames' form.
const VERSION: u32 = 1;
/// Longest frame, in bytes.
const MAX_FRAME: u64 = 4 << 20;
/// How long ADD, CHECK and GC wait for an agent that is starting.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const START_PAUSE: Duration = Duration::from_millis(50);

/// What the agent answered: what is to be printed.
pub(crate) enum Reply {
    Done(String),
    Failed(String),
}

/// What is sent to the agent, or left in its queue.
pub(crate) fn frame(call: &Call, ipam: Option<&Value>, budget: Duration) -> Vec<u8> {
    let frame = json!({
        "version": VERSION,
        "environment": call.environment,
        "config": call.text,
        "budget": budget.as_millis() as u64,
        "ipam": ipam,
    });
    frame.to_string().into_bytes()
}

/// Asks the agent. The error says that it gave no answer within `budget`.
pub(crate) fn ask(call: &Call, ipam: Option<&Value>, budget: Duration) -> Result<Reply, String> {
    let left = budget.saturating_sub(call.started.elapsed());
    let frame = frame(call, ipam, left);
    let (sender, receiver) = channel();
    let (path, waits) = (call.socket.clone(), call.environment["CNI_COMMAND"] != "DEL");
    // On a thread of its own: a connection may have to wait in the socket's queue, for which there is no time limit.
    std::thread::spawn(move || drop(sender.send(exchange(&path, &frame, waits))));
    let path = call.socket.display();
    match receiver.recv_timeout(left) {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(format!("the agent of podswitch at {path}: {error}")),
        Err(_) => {
            let seconds = budget.as_secs();
            Err(format!("the agent of podswitch at {path}: no answer within {seconds} s"))
        }
    }
}

fn exchange(path: &std::path::Path, frame: &[u8], waits: bool) -> io::Result<Reply> {
    let end = now() + START_TIMEOUT;
    let mut stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if waits && is_starting(&error) && now() < end => {
                std::thread::sleep(START_PAUSE);
            }
            Err(error) => return Err(error),
        }
    };
    let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u64::from(u32::from_be_bytes(length));
    if length > MAX_FRAME {
        return Err(invalid(format!("an answer of {length} bytes")));
    }
    let mut answer = Vec::new();
    stream.take(length).read_to_end(&mut answer)?;
    let answer: Value = serde_json::from_slice(&answer).map_err(|e| invalid(e.to_string()))?;
    if answer.get("version").and_then(Value::as_u64) != Some(VERSION.into()) {
        return Err(invalid(format!("an answer of another version than {VERSION}")));
    }
    let output = answer.get("output").and_then(Value::as_str).unwrap_or_default().to_owned();
    match answer.get("status").and_then(Value::as_u64) {
        Some(0) => Ok(Reply::Done(output)),
        _ => Ok(Reply::Failed(output)),
    }
}

fn is_starting(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
