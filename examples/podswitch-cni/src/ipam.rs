//! Another IPAM plugin, where the configuration names one (`ipam.type`): run here, beside the runtime, since its files
//! and its binary are the host's.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;
use crate::{BUDGET, Call};

/// How often it is looked whether the plugin ended.
const PAUSE: Duration = Duration::from_millis(1);

/// The plugin.
pub(crate) struct Delegate {
    name: String,
    path: PathBuf,
}

/// The plugin that the configuration names, if it names another than ours.
pub(crate) fn delegate(call: &Call) -> Result<Option<Delegate>, Error> {
    let refuse =
        |reason: String| Error::new(7, format!("network configuration: ipam.type: {reason}"));
    let name = match call.config.get("ipam").and_then(|ipam| ipam.get("type")) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(name)) => name.as_str(),
        Some(other) => return Err(refuse(format!("{other} is not a text"))),
    };
    if matches!(name, "" | "podswitch" | "podswitch-cni") {
        return Ok(None);
    }
    if name.contains('/') || name.starts_with('.') {
        return Err(refuse(format!("{name:?} is not a plugin name")));
    }
    let folders = call.environment.get("CNI_PATH").map(String::as_str).unwrap_or_default();
    let mut paths = std::env::split_paths(folders).map(|folder| folder.join(name));
    match paths.find(|path| path.is_file()) {
        Some(path) => Ok(Some(Delegate { name: name.to_owned(), path })),
        None => Err(refuse(format!("there is no plugin {name} in CNI_PATH ({folders})"))),
    }
}

impl Delegate {
    /// Has the plugin do `command`. Returns what it printed.
    pub(crate) fn call(&self, call: &Call, command: &str) -> Result<Value, Error> {
        let output = self.output(call, command)?;
        if output.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output)
            .map_err(|error| Error::new(6, format!("{} printed no JSON: {error}", self.name)))
    }

    /// As [`call`](Self::call), of a verb that came with CNI 1.1: older plugins do without.
    pub(crate) fn call_if_known(&self, call: &Call, command: &str) -> Result<(), Error> {
        match self.call(call, command) {
            Err(Error::Printed(output)) => {
                let error: Value = serde_json::from_str(&output).unwrap_or_default();
                let is_unknown = matches!(error.get("code").and_then(Value::as_u64), Some(1 | 4));
                if is_unknown { Ok(()) } else { Err(Error::Printed(output)) }
            }
            result => result.map(drop),
        }
    }

    fn output(&self, call: &Call, command: &str) -> Result<Vec<u8>, Error> {
        let failed = |what: &str, error: std::io::Error| {
            Error::new(5, format!("{} {}: {error}", what, self.path.display()))
        };
        let mut child = Command::new(&self.path)
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed("run", error))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let text = call.text.clone();
        let writer = std::thread::spawn(move || {
            // A plugin that does not read says so by its answer.
            let _ = input.map(|mut input| input.write_all(text.as_bytes()));
        });
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = output.map(|mut output| output.read_to_end(&mut bytes));
            bytes
        });
        let status = loop {
            match child.try_wait().map_err(|error| failed("wait for", error))? {
                Some(status) => break status,
                None if call.started.elapsed() > BUDGET => {
                    // It may have ended just now.
                    let _ = child.kill();
                    let _ = child.wait();
                    let seconds = BUDGET.as_secs();
                    let text = format!("{}: no answer within {seconds} s", self.path.display());
                    return Err(Error::new(11, text));
                }
                None => std::thread::sleep(PAUSE),
            }
        };
        let _ = writer.join();
        let bytes = reader.join().unwrap_or_default();
        if status.success() {
            return Ok(bytes);
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(error) if error.is_object() => Err(Error::printed(error.to_string())),
            _ => Err(Error::new(5, format!("{}: {status}", self.path.display()))),
        }
    }
}
