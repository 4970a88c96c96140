//! The data of `top`: tables of pods, connections, drops and Services, with rates between two
//! samples.

use std::collections::HashMap;
use std::time::Duration;

use podswitch_api::{Client, ClientError};
use podswitch_core::time::{Clock, Instant};
use podswitch_node::protocol_name;
use serde_json::Value;

use super::super::table::{bytes, duration, rate, text};

/// Connections in a sample: those with the highest rates.
const FLOWS: usize = 500;
/// Number of recent drops that are searched for the last one of each reason.
const DROPS: usize = 1000;

/// A cell: its text, and its number if it can be sorted by.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) value: Option<f64>,
}

fn word(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), value: None }
}

fn number(value: f64, text: String) -> Cell {
    Cell { text, value: Some(value) }
}

/// Rows under a head. Every row has as many cells as the head.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table {
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// Rows that the switch left out.
    pub(super) left_out: u64,
}

impl Table {
    /// The columns that can be sorted by.
    pub(super) fn numeric(&self) -> Vec<usize> {
        let first = self.rows.first();
        let is_numeric = |column: &usize| first.is_some_and(|row| row[*column].value.is_some());
        (0..self.head.len()).filter(is_numeric).collect()
    }

    /// The rows that contain `filter` in a cell, sorted by `column`, the greatest value first.
    pub(super) fn view(&self, column: usize, filter: &str) -> Vec<&Vec<Cell>> {
        let filter = filter.to_lowercase();
        let contains_filter =
            |row: &&Vec<Cell>| row.iter().any(|cell| cell.text.to_lowercase().contains(&filter));
        let mut rows: Vec<_> = self.rows.iter().filter(contains_filter).collect();
        let value = |row: &[Cell]| row.get(column).and_then(|cell| cell.value).unwrap_or_default();
        // The sort is stable: rows with equal values stay in the order of their names.
        rows.sort_by(|a, b| value(b).total_cmp(&value(a)));
        rows
    }
}

/// The names of the tables, in their order.
pub(super) const TABS: [&str; 4] = ["pods", "flows", "drops", "Services"];

/// One sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// A line about the switch.
    pub(super) summary: String,
    /// One for each of [`TABS`].
    pub(super) tables: [Table; 4],
}

/// The API responses that a sample consists of.
pub(super) struct Answers {
    pub(super) status: Value,
    pub(super) pods: Value,
    pub(super) flows: Value,
    pub(super) drops: Value,
    pub(super) counters: Value,
}

impl Answers {
    /// Fetches the responses. Takes `interval`, over which the rates of connections are measured.
    pub(super) fn fetch(client: &Client, interval: Duration) -> Result<Self, ClientError> {
        let seconds = interval.as_secs_f64().clamp(0.1, 20.0).to_string();
        let flows = Client::query(
            "/v1/flows",
            &[
                ("sort", Some("rate".to_owned())),
                ("interval", Some(seconds)),
                ("limit", Some(FLOWS.to_string())),
            ],
        );
        let drops = Client::query("/v1/drops", &[("limit", Some(DROPS.to_string()))]);
        Ok(Self {
            flows: client.get(&flows)?,
            status: client.get("/v1/status")?,
            pods: client.get("/v1/pods")?,
            drops: client.get(&drops)?,
            counters: client.get("/v1/counters")?,
        })
    }
}

/// Creates samples. Keeps the counters of the previous one.
pub(super) struct Sampler {
    clock: Clock,
    at: Option<Instant>,
    counters: HashMap<String, f64>,
}

impl Sampler {
    pub(super) fn new() -> Self {
        Self { clock: Clock::start(), at: None, counters: HashMap::new() }
    }

    /// The next sample. In the first sample only connections have rates.
    pub(super) fn fetch(
        &mut self,
        client: &Client,
        interval: Duration,
    ) -> Result<Sample, ClientError> {
        let answers = Answers::fetch(client, interval)?;
        let now = self.clock.now();
        let passed = self.at.map(|at| now.since(at));
        self.at = Some(now);
        Ok(self.sample(&answers, passed))
    }

    /// The sample of these responses, `passed` after the previous one.
    pub(super) fn sample(&mut self, answers: &Answers, passed: Option<Duration>) -> Sample {
        let before = std::mem::take(&mut self.counters);
        let mut rates =
            Rates { before, now: HashMap::new(), seconds: passed.map(|p| p.as_secs_f64()) };
        let sample = Sample {
            summary: summary(&answers.status, &mut rates),
            tables: [
                pods(&answers.pods, &mut rates),
                flows(&answers.flows),
                drops(&answers.counters, &answers.drops, &mut rates),
                services(&answers.counters, &mut rates),
            ],
        };
        self.counters = rates.now;
        sample
    }
}

/// Counters of two samples.
struct Rates {
    before: HashMap<String, f64>,
    now: HashMap<String, f64>,
    seconds: Option<f64>,
}

impl Rates {
    /// Increase of a counter per second. A new counter starts at 0; a counter that fell was reset.
    fn of(&mut self, name: String, value: f64) -> f64 {
        let before = self.before.get(&name).copied().unwrap_or_default();
        self.now.insert(name, value);
        let added = if before <= value { value - before } else { value };
        self.seconds.map_or(0.0, |seconds| added / seconds.max(0.001))
    }
}

fn per_second(rate: f64) -> Cell {
    number(rate, format!("{rate:.1}"))
}

fn bits(rate_of_bytes: f64) -> Cell {
    number(rate_of_bytes, rate(rate_of_bytes))
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn summary(status: &Value, rates: &mut Rates) -> String {
    let received = rates.of("received".into(), float(&status["received"]));
    let dropped = rates.of("dropped".into(), float(&status["dropped"]));
    let busy = status["workers"].as_array().into_iter().flatten();
    let busy: f64 = busy.map(|worker| float(&worker["busy_percent"])).sum();
    format!(
        "{} epoch {} | {} pods | {} connections | {received:.0} frames/s | {dropped:.0} drops/s | {busy:.0} % busy",
        text(&status["node"]),
        text(&status["epoch"]),
        text(&status["pods"]),
        text(&status["connections"]),
    )
}

fn list<'a>(answer: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    answer[field].as_array().into_iter().flatten()
}

fn pods(answer: &Value, rates: &mut Rates) -> Table {
    let rows = list(answer, "pods").map(|pod| {
        let name = text(&pod["pod"]);
        let mut of = |field: &str| rates.of(format!("pod {name} {field}"), float(&pod[field]));
        let (sent, received) = (of("sent_bytes"), of("received_bytes"));
        let (frames, dropped) = (of("sent_packets") + of("received_packets"), of("dropped"));
        let cells = [
            bits(sent + received),
            bits(sent),
            bits(received),
            per_second(frames),
            per_second(dropped),
            number(float(&pod["connections"]), text(&pod["connections"])),
        ];
        [word(name)].into_iter().chain(cells).collect()
    });
    Table {
        head: vec!["POD", "RATE", "SENT", "RECEIVED", "FRAMES/s", "DROPS/s", "OPENED"],
        rows: rows.collect(),
        left_out: 0,
    }
}

fn flows(answer: &Value) -> Table {
    let end = |pod: &Value, address: &Value, port: &Value| {
        let shown = if pod.is_string() { text(pod) } else { text(address) };
        format!("{shown} {}", text(port))
    };
    let rows = list(answer, "flows").map(|flow| {
        let (sent, answered) =
            (float(&flow["bytes_per_second"]), float(&flow["reply_bytes_per_second"]));
        let total = ["bytes", "reply_bytes"].map(|name| flow[name].as_u64().unwrap_or_default());
        let total = total.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let age = flow["age_seconds"].as_u64().unwrap_or_default();
        let service = text(&flow["service"]);
        let protocol = flow["protocol"].as_u64().and_then(|number| number.try_into().ok());
        vec![
            word(protocol.map_or_else(String::new, protocol_name)),
            word(end(&flow["src_pod"], &flow["src"], &flow["sport"])),
            word(end(&flow["dst_pod"], &flow["dst"], &flow["dport"])),
            bits(sent + answered),
            number(total as f64, bytes(total)),
            number(age as f64, duration(Duration::from_secs(age))),
            word(service.strip_prefix("Service/").unwrap_or("-")),
            word(flow["state"].as_str().unwrap_or("-")),
        ]
    });
    Table {
        head: vec!["PROTO", "CLIENT", "SERVER", "RATE", "BYTES", "AGE", "SERVICE", "STATE"],
        rows: rows.collect(),
        left_out: answer["left_out"].as_u64().unwrap_or_default(),
    }
}

fn drops(counters: &Value, answer: &Value, rates: &mut Rates) -> Table {
    // The newest come last.
    let last: HashMap<&str, &Value> = list(answer, "drops")
        .filter_map(|drop| Some((drop["reason"].as_str()?, &drop["text"])))
        .collect();
    let rows = counters["drops"].as_object().into_iter().flatten().map(|(reason, count)| {
        let count = float(count);
        // Omit its time and reason, which are shown elsewhere.
        let line = last.get(reason.as_str()).map_or_else(String::new, |line| text(line));
        let line = line.split_once(reason.as_str()).map_or(&*line, |(_, rest)| rest.trim());
        vec![
            word(reason.clone()),
            per_second(rates.of(format!("drop {reason}"), count)),
            number(count, format!("{count:.0}")),
            word(line),
        ]
    });
    Table { head: vec!["REASON", "DROPS/s", "TOTAL", "LAST"], rows: rows.collect(), left_out: 0 }
}

fn services(counters: &Value, rates: &mut Rates) -> Table {
    let rows = counters["services"].as_object().into_iter().flatten().map(|(name, count)| {
        let count = float(count);
        let mut words = name.strip_prefix("Service/").unwrap_or(name).split(' ');
        let mut next = || words.next().unwrap_or_default().to_owned();
        vec![
            word(next()),
            word(next()),
            word(next()),
            per_second(rates.of(format!("service {name}"), count)),
            number(count, format!("{count:.0}")),
        ]
    });
    Table {
        head: vec!["SERVICE", "PORT", "BACKEND", "OPENED/s", "OPENED"],
        rows: rows.collect(),
        left_out: 0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// Answers of a switch with two pods, `n` seconds after its start.
    pub(in super::super) fn answers(n: u64) -> Answers {
        let pod = |name: &str, sent: u64| {
            json!({
                "pod": name, "sent_bytes": sent, "received_bytes": 0, "sent_packets": n,
                "received_packets": 0, "dropped": 0, "connections": 1,
            })
        };
        Answers {
            status: json!({
                "node": "n1", "epoch": 7, "pods": 2, "connections": 1, "received": 1000 * n, "dropped": 10 * n,
                "workers": [{"busy_percent": 12.4}],
            }),
            pods: json!({"pods": [pod("shop/db", 125 * n), pod("shop/web", 125_000 * n)]}),
            flows: json!({"left_out": 0, "flows": [{
                "protocol": 6, "src": "10.1.0.2", "sport": 4000, "src_pod": "shop/web", "dst": "10.96.0.1",
                "dport": 80, "dst_pod": "shop/db", "service": "Service/shop/db", "state": "established",
                "bytes": 1024, "reply_bytes": 1024, "age_seconds": 61, "bytes_per_second": 125.0,
                "reply_bytes_per_second": 0.0,
            }]}),
            drops: json!({"drops": [
                {"reason": "policy_ingress", "text": "T0 policy_ingress UDP a -> b"},
                {"reason": "policy_ingress", "text": "T1 policy_ingress UDP shop/web -> shop/db, isolated"},
            ]}),
            counters: json!({
                "drops": {"policy_ingress": 10 * n},
                "services": {"Service/shop/db 80/TCP 10.1.0.3:8080": 5 * n},
            }),
        }
    }

    fn texts(row: &[Cell]) -> Vec<&str> {
        row.iter().map(|cell| &*cell.text).collect()
    }

    #[test]
    fn rates_are_computed_between_samples() {
        let mut sampler = Sampler::new();
        let first = sampler.sample(&answers(1), None);
        assert_eq!(texts(&first.tables[0].rows[1])[..2], ["shop/web", "0 bit/s"]);
        let sample = sampler.sample(&answers(3), Some(Duration::from_secs(2)));
        assert_eq!(
            sample.summary,
            "n1 epoch 7 | 2 pods | 1 connections | 1000 frames/s | 10 drops/s | 12 % busy"
        );
        let [pods, flows, drops, services] = &sample.tables;
        let web = ["shop/web", "1.0 Mbit/s", "1.0 Mbit/s", "0 bit/s", "1.0", "0.0", "1"];
        assert_eq!(texts(&pods.rows[1]), web);
        let flow = [
            "TCP",
            "shop/web 4000",
            "shop/db 80",
            "1.0 kbit/s",
            "2.0 KiB",
            "1m1s",
            "shop/db",
            "established",
        ];
        assert_eq!(texts(&flows.rows[0]), flow);
        assert_eq!(
            texts(&drops.rows[0]),
            ["policy_ingress", "10.0", "30", "UDP shop/web -> shop/db, isolated"]
        );
        assert_eq!(texts(&services.rows[0]), ["shop/db", "80/TCP", "10.1.0.3:8080", "5.0", "15"]);
        // The switch was started again.
        let sample = sampler.sample(&answers(1), Some(Duration::from_secs(1)));
        assert_eq!(texts(&sample.tables[2].rows[0])[1], "10.0");
    }

    #[test]
    fn a_view_is_filtered_and_sorted() {
        let mut sampler = Sampler::new();
        sampler.sample(&answers(1), None);
        let table = &sampler.sample(&answers(2), Some(Duration::from_secs(1))).tables[0];
        assert_eq!(table.numeric(), [1, 2, 3, 4, 5, 6]);
        let names = |column, filter: &str| -> Vec<String> {
            table.view(column, filter).iter().map(|row| row[0].text.clone()).collect()
        };
        assert_eq!(names(1, ""), ["shop/web", "shop/db"]);
        assert_eq!(names(4, ""), ["shop/db", "shop/web"], "alike");
        assert_eq!(names(1, "DB"), ["shop/db"]);
        assert!(names(1, "nothing").is_empty());
    }
}
