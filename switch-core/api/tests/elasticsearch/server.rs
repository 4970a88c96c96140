//! A server that enforces the bulk protocol and simulates failures.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podswitch_api::ElasticsearchOptions;
use serde_json::{Value, json};

/// A connection.
pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// The server's reaction to a bulk.
pub(crate) enum Reply {
    /// Stores it.
    Take,
    /// Stores it, but the answer is lost.
    TakeAndCut,
    /// Closes the connection.
    Cut,
    /// Does not answer.
    Hang,
    /// Responds with a status and a header.
    Status(u16, &'static str),
    /// Responds with an invalid answer.
    Nonsense,
    /// Stores documents for which the function returns 201; others get the status that it returns.
    Each(fn(u64, usize) -> u16),
}

#[derive(Default)]
pub(crate) struct Stored {
    /// By `_id`.
    pub(crate) documents: BTreeMap<String, Value>,
    /// The longest bulk, and the number of bulks.
    pub(crate) longest: usize,
    pub(crate) bulks: usize,
    wrong: Vec<String>,
    pub(crate) authorization: Option<String>,
}

/// A server with the bulk API.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) stored: Arc<Mutex<Stored>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `reply` gets the number of the bulk, starting at 0, and its number of documents and bytes.
    pub(crate) fn start(
        reply: impl Fn(usize, usize, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap(), reply)
    }

    pub(crate) fn listen(
        listener: TcpListener,
        reply: impl Fn(usize, usize, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen_with(listener, |stream| Box::new(stream), reply)
    }

    /// With `accept` between the connection and the protocol.
    pub(crate) fn listen_with(
        listener: TcpListener,
        accept: impl Fn(TcpStream) -> Box<dyn Stream> + Send + 'static,
        reply: impl Fn(usize, usize, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let (stored, stopped) = (Arc::<Mutex<Stored>>::default(), Arc::<AtomicBool>::default());
        let (at_thread, is_stopped) = (Arc::clone(&stored), Arc::clone(&stopped));
        let reply = Arc::new(reply);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Relaxed) {
                    return;
                }
                let (stored, reply) = (Arc::clone(&at_thread), Arc::clone(&reply));
                let is_stopped = Arc::clone(&is_stopped);
                let stream = accept(stream.unwrap());
                thread::spawn(move || serve(stream, &stored, &*reply, &is_stopped));
            }
        });
        Self { port, stored, stopped, thread: Some(thread) }
    }

    pub(crate) fn options(&self) -> ElasticsearchOptions {
        options(self.port)
    }

    /// The stored documents, by the number of the record. Fails if the protocol was violated.
    pub(crate) fn stored(&self) -> BTreeSet<u64> {
        let stored = self.stored.lock().unwrap();
        assert_eq!(stored.wrong, Vec::<String>::new());
        let numbers: BTreeSet<u64> = stored.documents.values().map(number).collect();
        assert_eq!(numbers.len(), stored.documents.len(), "each record is stored once");
        numbers
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub(crate) fn options(port: u16) -> ElasticsearchOptions {
    let endpoint = format!("http://127.0.0.1:{port}").parse().unwrap();
    let mut options = ElasticsearchOptions::new(endpoint);
    options.flush = Duration::from_millis(20);
    options.pause = (Duration::from_millis(5), Duration::from_millis(40));
    options
}

fn number(document: &Value) -> u64 {
    document["podswitch"]["left_out"]["opened"].as_u64().expect("a number")
}

/// Answers requests on a connection.
fn serve(
    stream: Box<dyn Stream>,
    stored: &Mutex<Stored>,
    reply: &(impl Fn(usize, usize, usize) -> Reply + ?Sized),
    stopped: &AtomicBool,
) {
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = request(&mut reader) {
        let pairs = match bulk(&head, &body) {
            Ok(pairs) => pairs,
            Err(wrong) => {
                stored.lock().unwrap().wrong.push(wrong);
                return;
            }
        };
        let mut state = stored.lock().unwrap();
        let bulk = state.bulks;
        state.bulks += 1;
        state.longest = state.longest.max(pairs.len());
        state.authorization =
            head.iter().find_map(|line| line.strip_prefix("authorization: ").map(str::to_owned));
        let reply = reply(bulk, pairs.len(), body.len());
        let mut take = |status: &dyn Fn(u64) -> u16| -> Vec<u16> {
            let pairs = pairs.iter().map(|(id, document)| match status(number(document)) {
                201 if state.documents.contains_key(id) => 409,
                201 => {
                    state.documents.insert(id.clone(), document.clone());
                    201
                }
                other => other,
            });
            pairs.collect()
        };
        let items = match reply {
            Reply::Take => take(&|_| 201),
            Reply::TakeAndCut => {
                take(&|_| 201);
                return;
            }
            Reply::Cut => return,
            Reply::Hang => {
                drop(state);
                while !stopped.load(Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                return;
            }
            Reply::Status(status, header) => {
                drop(state);
                let answer =
                    format!("HTTP/1.1 {status} X\r\n{header}content-length: 2\r\n\r\n{{}}");
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
                continue;
            }
            Reply::Nonsense => {
                drop(state);
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
                continue;
            }
            Reply::Each(status) => take(&|number| status(number, bulk)),
        };
        drop(state);
        let errors = items.iter().any(|status| *status != 201);
        let items: Vec<Value> = items
            .into_iter()
            .map(|status| match status {
                201 => json!({ "create": { "status": status } }),
                _ => json!({ "create": { "status": status, "error": { "type": "t", "reason": "r" } } }),
            })
            .collect();
        let body = json!({ "took": 1, "errors": errors, "items": items }).to_string();
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Header (in lower case) and body of a request.
fn request(reader: &mut impl BufRead) -> Option<(Vec<String>, Vec<u8>)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => match line.split_once(": ") {
                Some((name, value)) => head.push(format!("{}: {value}", name.to_lowercase())),
                None => head.push(line.to_owned()),
            },
        }
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "))?;
    let mut body = vec![0; length.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// The documents of a bulk with their `_id`, if it is valid.
fn bulk(head: &[String], body: &[u8]) -> Result<Vec<(String, Value)>, String> {
    let is = |wanted: &str| head.iter().any(|line| line == wanted);
    if !head[0].starts_with("POST /_bulk") || !head[0].ends_with(" HTTP/1.1") {
        return Err(head[0].clone());
    }
    if !is("content-type: application/x-ndjson") {
        return Err(format!("{head:?}"));
    }
    if body.last() != Some(&b'\n') {
        return Err("no newline at the end".to_owned());
    }
    let lines: Vec<Value> = body[..body.len() - 1]
        .split(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    if lines.len() % 2 == 1 {
        return Err("an action without a document".to_owned());
    }
    let pair = |pair: &[Value]| {
        let (action, document) = (&pair[0]["create"], &pair[1]);
        let id = action["_id"].as_str().ok_or("no _id")?;
        let index = action["_index"].as_str().ok_or("no _index")?;
        if index != "logs-podswitch.flow-default" || document["@timestamp"].is_null() {
            return Err(format!("{action} {document}"));
        }
        if document["data_stream"]["dataset"] != "podswitch.flow" {
            return Err(format!("{document}"));
        }
        Ok((id.to_owned(), document.clone()))
    };
    lines.chunks(2).map(pair).collect()
}
