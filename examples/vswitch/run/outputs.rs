//! Where records of drops and connections go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podswitch_api::{DropLog, JsonLines, Rotation};
use podswitch_node::{Event, FlowsLeftOut, NodeOptions};
use serde::Serialize;

use super::flags;
use crate::failure::Failure;
use crate::print;

/// Records of drops and connections, and where they go.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct OutputFlags {
    /// Write a record of each drop, and of each connection that is opened or ends. To a file, as lines of JSON:
    /// jsonl=PATH. May be given several times.
    #[arg(long, value_name = "KIND=WHERE", value_parser = output)]
    output: Vec<Output>,
    /// Size in MiB at which a file of records is rotated (PATH.1 to PATH.4 are kept).
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    output_size: u64,
    /// Write a record of each connection that goes on as well, every so many seconds (at least 1) in which it had a
    /// packet.
    #[arg(long, value_name = "SECONDS", value_parser = flags::seconds, requires = "output")]
    flow_update: Option<Duration>,
}

/// A value of `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Output {
    JsonLines(PathBuf),
}

fn output(text: &str) -> Result<Output, String> {
    match text.split_once('=') {
        Some(("jsonl", path)) if !path.is_empty() => Ok(Output::JsonLines(path.into())),
        _ => Err("jsonl=PATH is expected".to_owned()),
    }
}

/// Open outputs.
pub(super) struct Outputs {
    files: Vec<JsonLines>,
    flow_update: Option<Duration>,
}

/// A line of a file.
#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    record: &'a T,
}

/// Connections whose records there was no room for.
#[derive(Serialize)]
struct LeftOut {
    opened: u64,
    closed: u64,
    packets: u64,
    bytes: u64,
}

impl OutputFlags {
    /// Opens all of them, so that what is wrong is said before anything is set up.
    pub(super) fn open(&self) -> Result<Outputs, Failure> {
        let mut outputs = Outputs { files: Vec::new(), flow_update: self.flow_update };
        for output in &self.output {
            match output {
                Output::JsonLines(path) => {
                    let rotation = Rotation::files(self.output_size << 20);
                    let confine = podswitch_linux::confine::worker_thread;
                    let file = JsonLines::create(path, rotation, confine).map_err(|error| {
                        Failure::Setup(format!("--output jsonl={}: {error}", path.display()))
                    })?;
                    outputs.files.push(file);
                }
            }
        }
        Ok(outputs)
    }
}

impl Outputs {
    /// Has drops recorded if somebody can see them, which `has_log` says of the log, connections if there is an output,
    /// and everything else printed.
    pub(super) fn options(
        self,
        mut options: NodeOptions,
        log: Arc<DropLog>,
        has_log: bool,
    ) -> NodeOptions {
        let has_output = !self.files.is_empty();
        if has_log || has_output {
            options = options.report_drops();
        }
        if has_output {
            options = options.report_flows();
        }
        if let Some(interval) = self.flow_update {
            options = options.update_flows(interval);
        }
        options.on_event(move |event| match event {
            Event::Dropped(frames) => {
                self.write("drop", &*frames);
                log.push(*frames);
            }
            Event::FlowOpened(flow) => self.write("flow_opened", &*flow),
            Event::FlowUpdated(flow) => self.write("flow_updated", &*flow),
            Event::FlowClosed(flow) => self.write("flow_closed", &*flow),
            Event::FlowsLeftOut(FlowsLeftOut { opened, closed, packets, bytes, .. }) => {
                self.write("flows_left_out", &LeftOut { opened, closed, packets, bytes });
            }
            event => print::event(event),
        })
    }

    fn write(&self, r#type: &'static str, record: &impl Serialize) {
        for file in &self.files {
            file.write(&Line { r#type, record });
        }
    }
}
