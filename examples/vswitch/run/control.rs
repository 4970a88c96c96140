//! What a switch that runs shows: its control socket, and files of records.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podswitch_api::{ApiServer, DropLog, JsonLines, Rotation, bind};
use podswitch_node::{Event, Flow, NodeCaller, NodeOptions};
use serde::Serialize;

use crate::failure::Failure;
use crate::inspect::SOCKET;
use crate::print;

/// Where the control socket is.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ControlFlags {
    /// Where `status`, `flows`, `drops` and so on ask this switch. Without: ctl.sock in the run directory, if there is
    /// one. `off`: nowhere.
    #[arg(long, value_name = "PATH|off")]
    control_socket: Option<PathBuf>,
    /// The group, by number, that may ask as well as root.
    #[arg(long, value_name = "GID")]
    control_group: Option<u32>,
    /// Write a record of each drop and of each connection that begins or ends to a file, as lines of JSON.
    #[arg(long, value_name = "jsonl=PATH", value_parser = output)]
    output: Option<PathBuf>,
    /// Size in MiB at which that file is rotated (PATH.1 to PATH.4 are kept).
    #[arg(long, value_name = "MIB", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    output_size: u64,
}

fn output(text: &str) -> Result<PathBuf, String> {
    match text.split_once('=') {
        Some(("jsonl", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err("jsonl=PATH is expected".to_owned()),
    }
}

/// How often connections are compared with those of before, for records of their begin and end.
const FLOW_INTERVAL: Duration = Duration::from_secs(1);

/// The socket before the node runs.
pub(super) struct Control {
    listener: Option<std::os::unix::net::UnixListener>,
    log: Arc<DropLog>,
    file: Option<JsonLines>,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a, T> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(flatten)]
    record: &'a T,
}

impl ControlFlags {
    /// Listens, so that what is wrong with the socket is said before anything is set up.
    pub(super) fn open(&self, run_dir: Option<&Path>) -> Result<Control, Failure> {
        let path = match &self.control_socket {
            Some(path) if path.as_os_str() == "off" => None,
            Some(path) => Some(path.clone()),
            None => run_dir.map(|dir| dir.join(SOCKET)),
        };
        let listener = match &path {
            Some(path) => Some(bind(path, self.control_group).map_err(|error| {
                Failure::Setup(format!("--control-socket {}: {error}", path.display()))
            })?),
            None => None,
        };
        let rotation = Rotation::files(self.output_size << 20);
        let file = match &self.output {
            Some(path) => {
                let file =
                    JsonLines::create(path, rotation, podswitch_linux::confine::worker_thread);
                Some(file.map_err(|error| {
                    Failure::Setup(format!("--output jsonl={}: {error}", path.display()))
                })?)
            }
            None => None,
        };
        Ok(Control { listener, log: Arc::default(), file })
    }
}

impl Control {
    /// Has drops and connections recorded if somebody can see them, and everything else printed.
    pub(super) fn options(
        &mut self,
        mut options: NodeOptions,
        node: &str,
        has_page: bool,
    ) -> NodeOptions {
        if self.listener.is_some() || self.file.is_some() || has_page {
            options = options.report_drops();
        }
        if self.file.is_some() {
            options = options.report_flows(FLOW_INTERVAL);
        }
        let (log, file, node) = (Arc::clone(&self.log), self.file.take(), node.to_owned());
        let write_flow = move |file: &Option<JsonLines>, r#type, flow: &Flow| {
            if let Some(file) = file {
                let time = Some(now());
                file.write(&Line { r#type, time, node: Some(&node), record: flow });
            }
        };
        options.on_event(move |event| match event {
            Event::Dropped(frames) => {
                if let Some(file) = &file {
                    file.write(&Line { r#type: "drop", time: None, node: None, record: &*frames });
                }
                log.push(*frames);
            }
            Event::FlowOpened(flow) => write_flow(&file, "flow_opened", &flow),
            Event::FlowClosed(flow) => write_flow(&file, "flow_closed", &flow),
            event => print::event(event),
        })
    }

    /// The drops that are kept.
    pub(super) fn log(&self) -> Arc<DropLog> {
        Arc::clone(&self.log)
    }

    /// Starts to answer.
    pub(super) fn serve(self, node: NodeCaller) -> Result<Option<ApiServer>, Failure> {
        let Some(listener) = self.listener else { return Ok(None) };
        let server = ApiServer::start(listener, node, self.log)
            .map_err(|error| Failure::Setup(format!("the control socket's thread: {error}")))?;
        Ok(Some(server))
    }
}

#[expect(clippy::disallowed_methods, reason = "people look records up by the time of day")]
fn now() -> String {
    humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string()
}
