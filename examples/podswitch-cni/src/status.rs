//! STATUS, from the file that the agent writes: runtimes ask every few seconds, some of them under a lock, and must be
//! answered at once whatever the agent does.

use std::fs;

use serde_json::Value;

use crate::error::Error;
use crate::{Call, VERSIONS, ipam};

/// The agent's file, beside the socket.
const FILE: &str = "cni.status";
/// How long, in seconds, it is good for: a restart is not worth a report.
const GOOD_FOR: f64 = 30.0;
/// Codes of the answer (CNI SPEC, "STATUS").
const NOT_AVAILABLE: u32 = 50;
const LIMITED: u32 = 51;

pub(crate) fn status(call: &Call) -> Result<String, Error> {
    let version = call.config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    if version != VERSIONS[3] {
        let text = format!("network configuration: cniVersion: version {version} has no STATUS");
        return Err(Error::new(1, text));
    }
    let path = call.socket.with_file_name(FILE);
    let written = fs::read_to_string(&path).map_err(|error| {
        let text = format!("the agent of podswitch has not run: {}: {error}", path.display());
        Error::new(NOT_AVAILABLE, text)
    })?;
    let written: Value = serde_json::from_str(&written).unwrap_or_default();
    let age = match (written.get("uptime").and_then(Value::as_f64), uptime()) {
        (Some(at), Some(now)) => now - at,
        _ => f64::INFINITY,
    };
    // One from the future is of another boot.
    if !(-1.0..=GOOD_FOR).contains(&age) {
        let text = format!("the agent of podswitch has not been there for {age:.0} s");
        return Err(Error::new(LIMITED, text));
    }
    let delegate = ipam::delegate(call)?;
    match written.get("code").and_then(Value::as_u64) {
        Some(0) => {}
        // It says that the node has no addresses, which come from elsewhere.
        Some(50) if delegate.is_some() => {}
        code => {
            let text = written.get("msg").and_then(Value::as_str).unwrap_or("no reason is known");
            let code = code.and_then(|code| u32::try_from(code).ok()).unwrap_or(NOT_AVAILABLE);
            return Err(Error::new(code, text));
        }
    }
    if let Some(plugin) = delegate {
        plugin.call_if_known(call, "STATUS")?;
    }
    Ok(String::new())
}

/// Seconds since the machine's start.
fn uptime() -> Option<f64> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
