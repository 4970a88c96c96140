//! Records sent to a server that enforces the bulk protocol and simulates failures.
#![allow(clippy::disallowed_types, reason = "locks of a test")]

mod server;
#[cfg(feature = "tls")]
mod tls;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use podswitch_api::{Credentials, DeliveryCounts, Elasticsearch, ElasticsearchOptions, Record};
use podswitch_node::FlowsLeftOut;

use self::server::{Reply, Server, options};

fn record(number: u64) -> Arc<Record> {
    let mut counts = FlowsLeftOut::default();
    counts.opened = number;
    Arc::new(Record::LeftOut { counts, time: SystemTime::UNIX_EPOCH, node: "n1".into() })
}

fn start(options: ElasticsearchOptions) -> (Elasticsearch, Arc<Mutex<Vec<String>>>) {
    let reports = Arc::<Mutex<Vec<String>>>::default();
    let at_thread = Arc::clone(&reports);
    let report = move |text: &str| at_thread.lock().unwrap().push(text.to_owned());
    (Elasticsearch::start(options, || (), report).unwrap(), reports)
}

/// Writes records, and waits until each was delivered or lost.
fn deliver(output: &Elasticsearch, numbers: std::ops::Range<u64>) -> DeliveryCounts {
    numbers.for_each(|number| output.write(&record(number)));
    settled(output)
}

fn settled(output: &Elasticsearch) -> DeliveryCounts {
    for _ in 0..4_000 {
        let counts = output.counts();
        if counts.made + counts.recovered == counts.delivered + counts.lost() {
            return counts;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("they are neither delivered nor lost: {:?}", output.counts());
}

fn all(count: u64) -> BTreeSet<u64> {
    (0..count).collect()
}

#[test]
fn records_arrive_as_bulks() {
    let server = Server::start(|_, _, _| Reply::Take);
    let mut options = server.options();
    options.bulk_documents = 100;
    let (output, reports) = start(options);
    let counts = deliver(&output, 0..1000);
    assert_eq!((counts.delivered, counts.lost()), (1000, 0));
    assert_eq!(server.stored(), all(1000));
    {
        let stored = server.stored.lock().unwrap();
        assert!(stored.longest <= 100 && stored.bulks < 200, "{} bulks", stored.bulks);
        let document = stored.documents.values().next().unwrap();
        assert_eq!(document["observer"]["name"], "n1");
        assert_eq!(document["event"]["action"], "flows_left_out");
        assert_eq!(document["ecs"]["version"], "8.17.0");
    }
    assert!(reports.lock().unwrap().is_empty());
}

#[test]
fn a_bulk_that_is_too_long_is_halved() {
    let reply = |_, _, bytes| if bytes > 3_000 { Reply::Status(413, "") } else { Reply::Take };
    let server = Server::start(reply);
    let (output, _) = start(server.options());
    let counts = deliver(&output, 0..300);
    assert_eq!((counts.delivered, counts.lost()), (300, 0));
    assert_eq!(server.stored(), all(300));
}

#[test]
fn a_document_that_is_too_long_by_itself_is_lost_alone() {
    let server = Server::start(|_, _, _| Reply::Status(413, ""));
    let (output, reports) = start(server.options());
    let counts = deliver(&output, 0..5);
    assert_eq!((counts.delivered, counts.lost_refused), (0, 5));
    assert_eq!(reports.lock().unwrap().len(), 1, "once");
}

#[test]
fn a_busy_server_gets_the_bulk_again() {
    let server = Server::start(|bulk, _, _| match bulk {
        0 => Reply::Status(429, "retry-after: 0\r\n"),
        1 => Reply::Status(503, ""),
        2 => Reply::Status(502, ""),
        3 => Reply::Nonsense,
        4 => Reply::Cut,
        5 => Reply::Status(401, ""),
        _ => Reply::Take,
    });
    let (output, reports) = start(server.options());
    let counts = deliver(&output, 0..50);
    assert_eq!((counts.delivered, counts.lost()), (50, 0));
    assert_eq!(server.stored(), all(50));
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert!(reports[0].contains("429") && reports[1].contains("again"), "{reports:?}");
}

#[test]
fn documents_are_settled_one_by_one() {
    // Every third document finds no capacity at first; every tenth does not match the mapping; the
    // server has an error with each one once.
    let status = |number: u64, bulk| match number {
        n if n % 10 == 0 => 400,
        7 => 500,
        n if n % 3 == 0 && bulk < 2 => 429,
        _ => 201,
    };
    let server = Server::start(move |_, _, _| Reply::Each(status));
    let (output, reports) = start(server.options());
    let counts = deliver(&output, 0..100);
    assert_eq!((counts.delivered, counts.lost_refused, counts.lost()), (89, 11, 11));
    let expected: BTreeSet<u64> = (0..100).filter(|n| n % 10 != 0 && *n != 7).collect();
    assert_eq!(server.stored(), expected);
    assert!(reports.lock().unwrap().iter().any(|text| text.contains("t: r")));
}

#[test]
fn a_lost_answer_creates_no_document_twice() {
    let server = Server::start(|bulk, _, _| match bulk % 2 {
        0 if bulk < 6 => Reply::TakeAndCut,
        _ => Reply::Take,
    });
    let (output, _) = start(server.options());
    for part in 0..5 {
        deliver(&output, part * 20..part * 20 + 20);
    }
    let counts = output.finish();
    assert_eq!((counts.delivered, counts.lost()), (100, 0));
    assert_eq!(server.stored(), all(100));
}

#[test]
fn a_server_that_hangs_does_not_block_the_caller() {
    let server = Server::start(|bulk, _, _| if bulk == 0 { Reply::Hang } else { Reply::Take });
    let mut options = server.options();
    options.timeout = Duration::from_millis(300);
    options.memory = 64 << 10;
    let (output, _) = start(options);
    // More than queue and memory hold: these calls return anyway.
    let counts = deliver(&output, 0..100_000);
    assert!(counts.delivered > 0 && counts.lost_spool + counts.lost_queue > 0, "{counts:?}");
    assert_eq!(counts.delivered, server.stored().len() as u64);
}

#[test]
fn the_oldest_are_removed_while_the_server_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut options = options(port);
    options.memory = 50_000;
    let (output, reports) = start(options);
    (0..1_000).for_each(|number| output.write(&record(number)));
    while output.counts().lost_spool == 0 || output.counts().waiting > 150 {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(100));
    let server =
        Server::listen(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_, _, _| Reply::Take);
    let counts = settled(&output);
    assert!(counts.delivered > 20 && counts.lost_spool > 500, "{counts:?}");
    let stored = server.stored();
    assert_eq!(stored.len() as u64, counts.delivered);
    assert_eq!(stored, (1_000 - counts.delivered..1_000).collect(), "the newest");
    assert!(reports.lock().unwrap()[0].contains("records wait"));
}

#[test]
fn files_keep_documents_that_exceed_memory_over_a_restart() {
    let folder = std::env::temp_dir().join(format!("podswitch-spool-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let server = Server::start(|bulk, _, _| if bulk < 3 { Reply::Cut } else { Reply::Take });
    let mut away = options(1);
    away.memory = 20_000;
    away.spool = Some(folder.clone());
    away.linger = Duration::from_millis(50);
    let (output, _) = start(away.clone());
    (0..500).for_each(|number| output.write(&record(number)));
    let counts = output.finish();
    assert_eq!((counts.delivered, counts.lost(), counts.waiting), (0, 0, 500), "{counts:?}");

    let mut back = server.options();
    (back.memory, back.spool) = (away.memory, away.spool.clone());
    let (output, _) = start(back);
    let counts = deliver(&output, 500..600);
    assert_eq!((counts.recovered, counts.delivered, counts.lost()), (500, 600, 0));
    assert_eq!(server.stored(), all(600));
    drop(output);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "no file stays");

    // With a limit, the oldest files are removed.
    away.spool_bytes = 60_000;
    let (output, _) = start(away);
    (0..1_000).for_each(|number| output.write(&record(number)));
    let counts = output.finish();
    assert!(counts.lost_spool > 500, "{counts:?}");
    assert_eq!(counts.lost() + counts.waiting, 1_000, "{counts:?}");
    let bytes: u64 =
        std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 60_000, "{bytes}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn an_unusable_folder_is_reported_at_the_start() {
    let mut options = options(1);
    options.spool = Some("/dev/null/spool".into());
    assert!(Elasticsearch::start(options, || (), |_| ()).is_err());
}

#[test]
fn credentials_are_read_from_files() {
    let path = std::env::temp_dir().join(format!("podswitch-key-{}", std::process::id()));
    let send = |credentials: Credentials| {
        assert_eq!(format!("{credentials:?}"), "Credentials(..)");
        let server = Server::start(|_, _, _| Reply::Take);
        let mut options = server.options();
        options.credentials = Some(credentials);
        deliver(&start(options).0, 0..1);
        let stored = server.stored.lock().unwrap();
        stored.authorization.clone().unwrap()
    };
    std::fs::write(&path, "elastic:changeme\n").unwrap();
    let user = send(Credentials::user_file(&path).unwrap());
    assert_eq!(user, "Basic ZWxhc3RpYzpjaGFuZ2VtZQ==");
    assert_eq!(send(Credentials::api_key_file(&path).unwrap()), "ApiKey ZWxhc3RpYzpjaGFuZ2VtZQ==");
    std::fs::write(&path, "VnVhQ2ZHY0JDZGJrUW0=\n").unwrap();
    assert_eq!(send(Credentials::api_key_file(&path).unwrap()), "ApiKey VnVhQ2ZHY0JDZGJrUW0=");
    assert!(Credentials::user_file(&path).is_err(), "no colon");
    std::fs::write(&path, "\n").unwrap();
    assert!(Credentials::api_key_file(&path).is_err(), "empty");
    std::fs::remove_file(&path).unwrap();
    assert!(Credentials::api_key_file(&path).is_err(), "no file");
}

/// Certificates that would never be checked are a mistake.
#[test]
fn certificates_without_https_are_refused() {
    let mut options = options(1);
    options.ca_file = Some("/etc/ca.pem".into());
    let error = Elasticsearch::start(options, || (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("/etc/ca.pem") && error.contains("is not https"), "{error}");
}
