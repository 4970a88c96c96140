//! `podswitch-cni`: the CNI plugin that a container runtime starts for each verb.
//!
//! It knows next to nothing: what the runtime gave it goes to the agent of the running switch, by the socket that the
//! configuration names, and the agent's answer is printed. By itself it only does what must work without the agent:
//! VERSION, STATUS (from a file that the agent writes), DEL (left in a queue) and calling the IPAM plugin that the
//! configuration may name, which lives where the runtime does.
#![forbid(unsafe_code)]

mod agent;
mod error;
mod ipam;
mod queue;
mod status;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use agent::Reply;
use error::Error;

/// The agent's socket where the configuration names none.
const SOCKET: &str = "/run/podswitch/cni.sock";
/// Longest configuration, in bytes.
const MAX_CONFIG: u64 = 4 << 20;
/// How long the agent may take.
const BUDGET: Duration = Duration::from_secs(30);
/// How long it may take for DEL, before that is left in the queue.
const DEL_BUDGET: Duration = Duration::from_secs(10);
/// Versions of the protocol, the oldest first.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime asks.
struct Call {
    environment: BTreeMap<String, String>,
    /// Standard input, as it came.
    text: String,
    config: Value,
    socket: PathBuf,
    started: Instant,
}

fn main() -> ExitCode {
    let started = now();
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("CNI_"))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect();
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_CONFIG).read_to_string(&mut text);
    let config: Result<Value, String> = match read {
        Ok(_) => serde_json::from_str(&text).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let version = version_of(config.as_ref().unwrap_or(&Value::Null));
    let output = run(environment, text, config, started);
    let (status, output) = match output {
        Ok(output) => (ExitCode::SUCCESS, output),
        Err(error) => (ExitCode::FAILURE, error.to_json(&version)),
    };
    // A runtime that went away has nobody else to tell.
    let _ = std::io::stdout().write_all(output.as_bytes());
    status
}

/// Carries out the verb. Returns the output to print.
fn run(
    environment: BTreeMap<String, String>,
    text: String,
    config: Result<Value, String>,
    started: Instant,
) -> Result<String, Error> {
    let command = environment.get("CNI_COMMAND").cloned().unwrap_or_default();
    if command == "VERSION" {
        let version = match &config {
            Ok(config) => config.get("cniVersion").and_then(Value::as_str),
            Err(_) => None,
        };
        let version = version.unwrap_or(VERSIONS[3]);
        return Ok(json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string());
    }
    if command.is_empty() {
        return Err(Error::environment("CNI_COMMAND is missing"));
    }
    let config = config
        .map_err(|error| Error::new(6, format!("network configuration: not JSON: {error}")))?;
    let socket = match config.get("socket") {
        None | Some(Value::Null) => PathBuf::from(SOCKET),
        Some(Value::String(path)) if path.starts_with('/') => PathBuf::from(path),
        Some(other) => {
            let text = format!("network configuration: socket: {other} is not an absolute path");
            return Err(Error::new(7, text));
        }
    };
    let call = Call { environment, text, config, socket, started };
    match &*command {
        "ADD" => add(&call),
        "DEL" => del(&call),
        "CHECK" => check(&call),
        "GC" => collect(&call),
        "STATUS" => status::status(&call),
        other => Err(Error::environment(format!("CNI_COMMAND: {other:?} is unknown"))),
    }
}

fn add(call: &Call) -> Result<String, Error> {
    let delegate = ipam::delegate(call)?;
    let given = match &delegate {
        Some(plugin) => Some(plugin.call(call, "ADD")?),
        None => None,
    };
    let answer = match agent::ask(call, given.as_ref(), BUDGET) {
        Ok(Reply::Done(output)) => return Ok(output),
        Ok(Reply::Failed(output)) => Err(Error::printed(output)),
        Err(error) => Err(Error::new(11, error)),
    };
    if let Some(plugin) = &delegate {
        // The first error is the one to tell.
        if let Err(error) = plugin.call(call, "DEL") {
            eprintln!("podswitch-cni: {error}");
        }
    }
    answer
}

/// DEL succeeds: with the agent gone it is left in a queue, which the agent works off when it is back.
fn del(call: &Call) -> Result<String, Error> {
    queue::check(call)?;
    match agent::ask(call, None, DEL_BUDGET) {
        Ok(Reply::Done(_)) => {}
        Ok(Reply::Failed(output)) => return Err(Error::printed(output)),
        Err(error) => {
            queue::leave(call).map_err(|e| {
                Error::new(5, format!("{error}; and the DEL cannot be queued: {e}"))
            })?;
            eprintln!("podswitch-cni: {error}; the DEL is queued");
        }
    }
    if let Some(plugin) = ipam::delegate(call)? {
        plugin.call(call, "DEL")?;
    }
    Ok(String::new())
}

fn check(call: &Call) -> Result<String, Error> {
    if let Some(plugin) = ipam::delegate(call)? {
        plugin.call(call, "CHECK")?;
    }
    ask(call)
}

fn collect(call: &Call) -> Result<String, Error> {
    let done = ask(call);
    if let Some(plugin) = ipam::delegate(call)? {
        plugin.call_if_known(call, "GC")?;
    }
    done
}

fn ask(call: &Call) -> Result<String, Error> {
    match agent::ask(call, None, BUDGET) {
        Ok(Reply::Done(output)) => Ok(output),
        Ok(Reply::Failed(output)) => Err(Error::printed(output)),
        Err(error) => Err(Error::new(11, error)),
    }
}

/// The version that errors are written in.
fn version_of(config: &Value) -> String {
    let version = config.get("cniVersion").and_then(Value::as_str);
    version.filter(|v| VERSIONS.contains(v)).unwrap_or(VERSIONS[3]).to_owned()
}

#[expect(clippy::disallowed_methods, reason = "no packet passes here")]
fn now() -> Instant {
    Instant::now()
}
