//! Outputs for records of drops and connections.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podswitch_api::{
    Credentials, DropLog, Elasticsearch, ElasticsearchOptions, Endpoint, Ipfix, JsonLines, Record,
    Rotation,
};
use podswitch_node::NodeOptions;

use super::{flags, report};
use crate::failure::Failure;

/// Default URL of Elasticsearch.
const ELASTICSEARCH: &str = "http://127.0.0.1:9200";

/// Which records are written, and where.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct OutputFlags {
    /// Write a record of each drop, and of each connection when it opens and when it ends: to a
    /// file, as lines of JSON (jsonl=PATH), to Elasticsearch (elasticsearch=URL, or elasticsearch
    /// with --elasticsearch-url), or to an IPFIX collector (ipfix=HOST:PORT, UDP). Can be repeated.
    #[arg(long, value_name = "KIND=WHERE", value_parser = output)]
    output: Vec<Output>,
    /// Size in MiB at which a file of records is rotated. PATH.1 to PATH.4 are kept.
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    output_size: u64,
    /// Also write a record of each open connection at this interval, in seconds (at least 1), if it
    /// had a packet in the interval.
    #[arg(long, value_name = "SECONDS", value_parser = flags::seconds, requires = "output")]
    flow_update: Option<Duration>,
    #[command(flatten)]
    elasticsearch: ElasticsearchFlags,
}

/// Options of Elasticsearch, for `--output elasticsearch`.
#[derive(clap::Args, Clone, Debug)]
struct ElasticsearchFlags {
    /// Where `--output elasticsearch` sends records. Default: the URL in the environment variable
    /// PODSWITCH_ELASTICSEARCH_URL, otherwise http://127.0.0.1:9200.
    #[arg(long, value_name = "URL")]
    elasticsearch_url: Option<String>,
    /// The index or data stream for all records. Default: the data streams
    /// logs-podswitch.flow-default and logs-podswitch.drop-default.
    #[arg(long, value_name = "NAME")]
    elasticsearch_index: Option<String>,
    /// A file whose first line is NAME:PASSWORD.
    #[arg(long, value_name = "FILE", conflicts_with = "elasticsearch_api_key_file")]
    elasticsearch_user_file: Option<PathBuf>,
    /// A file whose first line is an API key: its encoded form, or ID:API_KEY.
    #[arg(long, value_name = "FILE")]
    elasticsearch_api_key_file: Option<PathBuf>,
    /// A PEM file with the certificates of the authorities that may have signed the server's, for
    /// https. Default: those that the system trusts, or those of the file in the environment variable
    /// SSL_CERT_FILE.
    #[arg(long, value_name = "FILE")]
    elasticsearch_ca_file: Option<PathBuf>,
    /// Folder for records that do not fit in memory (32 MiB) while Elasticsearch is unreachable. It
    /// survives restarts.
    #[arg(long, value_name = "DIR")]
    elasticsearch_spool: Option<PathBuf>,
    /// The most MiB of records in that folder. The oldest are deleted first.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    elasticsearch_spool_size: u64,
}

/// A value of `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Output {
    JsonLines(PathBuf),
    /// At this URL, or at that of `--elasticsearch-url`.
    Elasticsearch(Option<String>),
    /// `HOST:PORT`.
    Ipfix(String),
}

fn output(text: &str) -> Result<Output, String> {
    match text.split_once('=') {
        Some(("jsonl", path)) if !path.is_empty() => Ok(Output::JsonLines(path.into())),
        Some(("elasticsearch", url)) if !url.is_empty() => {
            let read: Result<Endpoint, _> = url.parse();
            read.map_err(|error| error.to_string())?;
            Ok(Output::Elasticsearch(Some(url.to_owned())))
        }
        None if text == "elasticsearch" => Ok(Output::Elasticsearch(None)),
        Some(("ipfix", collector)) => {
            let port = collector.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            match port {
                Some(1..) => Ok(Output::Ipfix(collector.to_owned())),
                _ => Err("ipfix=HOST:PORT is expected".to_owned()),
            }
        }
        _ => Err("jsonl=PATH, elasticsearch[=URL] or ipfix=HOST:PORT is expected".to_owned()),
    }
}

impl ElasticsearchFlags {
    fn open(&self, url: Option<&str>) -> Result<Elasticsearch, String> {
        let of_environment = std::env::var("PODSWITCH_ELASTICSEARCH_URL").ok();
        let url = url.or(self.elasticsearch_url.as_deref()).or(of_environment.as_deref());
        let endpoint: Endpoint = url
            .unwrap_or(ELASTICSEARCH)
            .parse()
            .map_err(|error| format!("--output elasticsearch: {error}"))?;
        let name = format!("--output elasticsearch={endpoint}");
        let mut options = ElasticsearchOptions::new(endpoint);
        let credentials = match (&self.elasticsearch_user_file, &self.elasticsearch_api_key_file) {
            (Some(file), _) => Some(Credentials::user_file(file)),
            (None, Some(file)) => Some(Credentials::api_key_file(file)),
            (None, None) => None,
        };
        options.credentials =
            credentials.transpose().map_err(|error| format!("{name}: {error}"))?;
        options.ca_file.clone_from(&self.elasticsearch_ca_file);
        options.index.clone_from(&self.elasticsearch_index);
        options.spool.clone_from(&self.elasticsearch_spool);
        options.spool_bytes = self.elasticsearch_spool_size << 20;
        let confine = podswitch_linux::confine::worker_thread;
        Elasticsearch::start(options, confine, warn).map_err(|error| format!("{name}: {error}"))
    }
}

fn warn(text: &str) {
    tracing::warn!(target: "run", "{text}");
}

/// Open outputs.
pub(super) struct Outputs {
    files: Vec<JsonLines>,
    elasticsearch: Vec<Elasticsearch>,
    ipfix: Vec<Ipfix>,
    flow_update: Option<Duration>,
    node: Arc<str>,
}

impl OutputFlags {
    /// Opens all outputs for the node `node`, so that errors are reported before anything is set
    /// up.
    pub(super) fn open(&self, node: &str) -> Result<Outputs, Failure> {
        let mut outputs = Outputs {
            files: Vec::new(),
            elasticsearch: Vec::new(),
            ipfix: Vec::new(),
            flow_update: self.flow_update,
            node: node.into(),
        };
        let confine = podswitch_linux::confine::worker_thread;
        for output in &self.output {
            match output {
                Output::JsonLines(path) => {
                    let rotation = Rotation::files(self.output_size << 20);
                    let file = JsonLines::create(path, rotation, confine).map_err(|error| {
                        Failure::Setup(format!("--output jsonl={}: {error}", path.display()))
                    })?;
                    outputs.files.push(file);
                }
                Output::Elasticsearch(url) => {
                    let opened = self.elasticsearch.open(url.as_deref()).map_err(Failure::Setup)?;
                    outputs.elasticsearch.push(opened);
                }
                Output::Ipfix(collector) => {
                    let ipfix = Ipfix::start(collector, node, confine, warn).map_err(|error| {
                        Failure::Setup(format!("--output ipfix={collector}: {error}"))
                    })?;
                    outputs.ipfix.push(ipfix);
                }
            }
        }
        Ok(outputs)
    }
}

impl Outputs {
    /// Enables records of drops if something consumes them (`has_log`: the log of drops does), and
    /// of connections if there is an output. Other events are logged.
    pub(super) fn options(
        self,
        mut options: NodeOptions,
        log: Arc<DropLog>,
        has_log: bool,
    ) -> NodeOptions {
        let has_output =
            !(self.files.is_empty() && self.elasticsearch.is_empty() && self.ipfix.is_empty());
        if has_log || has_output {
            options = options.report_drops();
        }
        if has_output {
            options = options.report_flows();
        }
        if let Some(interval) = self.flow_update {
            options = options.update_flows(interval);
        }
        options.on_event(move |event| match Record::of(event, &self.node) {
            Ok(record) => {
                if has_log && let Record::Drop(frames) = &record {
                    log.push((**frames).clone());
                }
                if has_output {
                    self.write(record);
                }
            }
            Err(event) => report::node(event),
        })
    }

    fn write(&self, record: Record) {
        self.files.iter().for_each(|file| file.write(&record));
        let record = Arc::new(record);
        self.elasticsearch.iter().for_each(|output| output.write(&record));
        self.ipfix.iter().for_each(|output| output.write(&record));
    }
}

impl Drop for Outputs {
    /// Reports lost records.
    fn drop(&mut self) {
        for output in self.elasticsearch.drain(..) {
            let counts = output.finish();
            if counts.lost() + counts.waiting > 0 {
                warn(&format!(
                    "of {} records for Elasticsearch, {} were delivered, {} lost, {} are waiting in files",
                    counts.made + counts.recovered,
                    counts.delivered,
                    counts.lost(),
                    counts.waiting,
                ));
            }
        }
        for output in self.ipfix.drain(..) {
            let counts = output.finish();
            let lost = counts.lost_queue + counts.lost_send;
            if lost > 0 {
                warn(&format!(
                    "{lost} of {} records for the IPFIX collector were lost",
                    counts.made
                ));
            }
        }
    }
}
