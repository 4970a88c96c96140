//! A file by which the plugin answers STATUS without the agent: whether pods can be attached, and
//! the time of that statement.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::leases::put;

/// The file, beside the socket.
const FILE: &str = "cni.status";
/// How often it is written. It is valid for 30 s, so that a restart is not reported as an error.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    /// Seconds since boot, as in `/proc/uptime`.
    uptime: f64,
    /// Code of the STATUS error, 0 if pods can be attached.
    code: u32,
    msg: &'a str,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Heartbeat(PathBuf);

impl Heartbeat {
    /// The file beside `socket`.
    pub(super) fn beside(socket: &Path) -> Self {
        Self(socket.parent().unwrap_or(Path::new("/")).to_owned())
    }

    /// Writes the file. `problem`: code and text of the error that STATUS is to return.
    pub(super) fn beat(&self, now: Duration, problem: Option<(u32, &str)>) -> io::Result<()> {
        let (code, msg) = problem.unwrap_or_default();
        let written = Written { version: 1, uptime: now.as_secs_f64(), code, msg };
        put(&self.0, FILE, &serde_json::to_vec(&written).map_err(io::Error::other)?)
    }
}
