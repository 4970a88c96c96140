//! The thread: makes documents from records, and bulks from documents.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::answer::{Answer, Item};
use super::connection::Connector;
use super::counts::{Counts, Lost};
use super::options::ElasticsearchOptions;
use super::spool::{Document, Spool};
use crate::output::ecs;
use crate::output::record::Record;

/// Number of successful bulks after which the size limit of a bulk is doubled again.
const GROW_AFTER: u32 = 16;

/// Messages for the operator.
type Report = Box<dyn FnMut(&str) + Send>;

/// State shared by both tasks of the thread.
struct Shared {
    spool: RefCell<Spool>,
    /// Records have arrived, or the last one has.
    arrived: Notify,
    is_closed: Cell<bool>,
}

pub(super) fn run(
    runtime: &Runtime,
    options: ElasticsearchOptions,
    connector: Connector,
    spool: Spool,
    records: mpsc::Receiver<Arc<Record>>,
    counts: Arc<Counts>,
    report: Report,
) {
    let shared = Rc::new(Shared {
        spool: RefCell::new(spool),
        arrived: Notify::new(),
        is_closed: Cell::new(false),
    });
    let naming = Naming::new(options.index.clone());
    LocalSet::new().block_on(runtime, async {
        let full = options.bulk_documents;
        tokio::task::spawn_local(receive(Rc::clone(&shared), records, naming, full, counts));
        Sender::new(Rc::clone(&shared), options, connector, report).run().await;
    });
    shared.spool.borrow_mut().close();
}

/// Generates names of documents.
struct Naming {
    index: Option<String>,
    /// A number that distinguishes this run's documents from all others.
    run: [u64; 2],
    next: u64,
}

#[derive(serde::Serialize)]
struct Action<'a> {
    create: Target<'a>,
}

#[derive(serde::Serialize)]
struct Target<'a> {
    _index: &'a str,
    _id: &'a str,
}

impl Naming {
    fn new(index: Option<String>) -> Self {
        Self { index, run: [0u8, 1].map(|half| RandomState::new().hash_one(half)), next: 0 }
    }

    /// The two lines of a record in a bulk.
    fn document(&mut self, record: &Record) -> Option<Document> {
        let [a, b] = self.run;
        let id = format!("{a:016x}{b:016x}-{:x}", self.next);
        self.next += 1;
        let stream = format!("logs-podswitch.{}-default", ecs::dataset(record));
        let (index, is_stream) = match &self.index {
            Some(index) => (index, false),
            None => (&stream, true),
        };
        let action = Action { create: Target { _index: index, _id: &id } };
        let mut text = serde_json::to_vec(&action).ok()?;
        text.push(b'\n');
        serde_json::to_writer(&mut text, &ecs::document(record, is_stream)).ok()?;
        text.push(b'\n');
        Some(Document::new(text))
    }
}

/// Moves records to the spool; `full` of them make a bulk.
async fn receive(
    shared: Rc<Shared>,
    mut records: mpsc::Receiver<Arc<Record>>,
    mut naming: Naming,
    full: usize,
    counts: Arc<Counts>,
) {
    while let Some(record) = records.recv().await {
        match naming.document(&record) {
            Some(document) => {
                let mut spool = shared.spool.borrow_mut();
                spool.push(document);
                if spool.len() >= full {
                    shared.arrived.notify_one();
                }
            }
            None => counts.add_lost(Lost::Refused, 1),
        }
    }
    shared.is_closed.set(true);
    shared.arrived.notify_one();
}

struct Sender {
    shared: Rc<Shared>,
    options: ElasticsearchOptions,
    connector: Connector,
    report: Report,
    /// Current maximum number of documents in a bulk.
    most: usize,
    /// Number of bulks delivered since that changed.
    arrived: u32,
    /// Number of consecutive failures.
    failures: u32,
    /// The last problem that was reported.
    problem: Option<String>,
    has_reported_refusal: bool,
}

impl Sender {
    fn new(
        shared: Rc<Shared>,
        options: ElasticsearchOptions,
        connector: Connector,
        report: Report,
    ) -> Self {
        let most = options.bulk_documents.max(1);
        Self {
            shared,
            options,
            connector,
            report,
            most,
            arrived: 0,
            failures: 0,
            problem: None,
            has_reported_refusal: false,
        }
    }

    /// Sends until everything is sent after the last record has arrived, or the time for the end is
    /// over.
    async fn run(&mut self) {
        let mut end = None;
        loop {
            let is_closed = self.shared.is_closed.get();
            if !is_closed && self.shared.spool.borrow().len() < self.most {
                // Either result ends the wait.
                let _ = timeout(self.options.flush, self.shared.arrived.notified()).await;
            }
            if self.shared.is_closed.get() && end.is_none() {
                end = Some(Instant::now() + self.options.linger);
            }
            let batch = self.shared.spool.borrow_mut().take(self.most, self.options.bulk_bytes);
            if batch.is_empty() {
                if end.is_some() {
                    return;
                }
                continue;
            }
            let body: Vec<u8> = batch.iter().flat_map(|d| d.text.iter().copied()).collect();
            let sending = self.connector.send(Bytes::from(body), batch.len());
            let answer = match end {
                None => sending.await,
                Some(end) => match timeout_at(end, sending).await {
                    Ok(answer) => answer,
                    Err(_) => Answer::Later("the switch stops".to_owned(), None),
                },
            };
            let Some(pause) = self.handle(answer, batch) else { continue };
            match end {
                Some(end) if Instant::now() + pause >= end => return,
                Some(_) => sleep(pause).await,
                None => self.pause(pause).await,
            }
        }
    }

    /// Waits for a time, or until the last record has arrived, because then less time is left.
    async fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.shared.is_closed.get() {
            if timeout_at(until, self.shared.arrived.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Processes an answer. Returns how long to wait.
    fn handle(&mut self, answer: Answer, batch: Vec<Document>) -> Option<Duration> {
        match answer {
            Answer::Items(items) => self.settle(items, batch),
            Answer::TooMuch(reason) => {
                self.arrived = 0;
                if let [document] = &*batch {
                    self.shared.spool.borrow_mut().refused(document);
                    self.report_refusal(&reason);
                } else {
                    self.most = batch.len() / 2;
                    self.shared.spool.borrow_mut().put_back(batch);
                }
                None
            }
            Answer::Later(reason, after) => {
                self.shared.spool.borrow_mut().put_back(batch);
                self.report_problem(&reason);
                Some(self.next_pause(after))
            }
        }
    }

    fn settle(&mut self, items: Vec<Item>, batch: Vec<Document>) -> Option<Duration> {
        let (mut again, mut refusal) = (Vec::new(), None);
        {
            let mut spool = self.shared.spool.borrow_mut();
            for (item, mut document) in items.into_iter().zip(batch) {
                match item {
                    Item::Done => spool.delivered(&document),
                    Item::Busy => again.push(document),
                    Item::Failed(_) if document.may_fail_again() => again.push(document),
                    Item::Failed(reason) | Item::Refused(reason) => {
                        spool.refused(&document);
                        refusal = Some(reason);
                    }
                }
            }
        }
        if let Some(reason) = refusal {
            self.report_refusal(&reason);
        }
        if again.is_empty() {
            self.failures = 0;
            if self.problem.take().is_some() {
                (self.report)(&format!("{} takes records again", self.options.endpoint));
            }
            self.arrived += 1;
            if self.arrived >= GROW_AFTER {
                self.arrived = 0;
                self.most = (self.most * 2).min(self.options.bulk_documents.max(1));
            }
            return None;
        }
        let count = again.len();
        self.shared.spool.borrow_mut().put_back(again);
        self.report_problem(&format!("it has no room for {count} documents of a bulk"));
        Some(self.next_pause(None))
    }

    /// The pause after one more failure: doubled each time, minus a random part of up to one half,
    /// so that the nodes of a cluster do not retry at the same time.
    fn next_pause(&mut self, after: Option<Duration>) -> Duration {
        let (first, longest) = self.options.pause;
        let whole = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        let random = RandomState::new().hash_one(self.failures) as u32;
        let jitter = whole / 2 * (random >> 16) / 65_536;
        after.unwrap_or_default().max(whole - jitter)
    }

    /// Reports a problem if it differs from the last one.
    fn report_problem(&mut self, reason: &str) {
        if self.problem.is_none() {
            (self.report)(&format!("{}: {reason}; records wait", self.options.endpoint));
            self.problem = Some(reason.to_owned());
        }
    }

    /// Reports the first refusal; later ones are only counted.
    fn report_refusal(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.has_reported_refusal, true) {
            (self.report)(&format!(
                "{} refuses documents, which are lost and counted: {reason}",
                self.options.endpoint
            ));
        }
    }
}
