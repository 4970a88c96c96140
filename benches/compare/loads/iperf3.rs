//! `iperf3`, compared with this program's own stream, to show that the generator does not limit the
//! result.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use super::Sample;
use crate::Outcome;
use crate::paths::{Family, Path, tools};
use crate::usage::Usage;

/// The program.
pub(super) const PROGRAM: &str = "iperf3";
const PORT: &str = "5201";
/// The time until the server listens.
const PAUSE: Duration = Duration::from_millis(50);

/// The server; dropping it ends the process.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn run(path: &Path, time: Duration) -> Outcome<Sample> {
    let address = path.server.address(Family::V4).to_string();
    let server = path
        .server
        .namespace
        .command(PROGRAM)
        .args(["--server", "--one-off", "--bind", &address, "--port", PORT])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{PROGRAM}: {e}"))?;
    let _server = Server(server);
    // `iperf3` accepts only whole seconds.
    let seconds = time.as_secs_f64().ceil().to_string();
    let mut last = Err(String::new());
    for _ in 0..40 {
        thread::sleep(PAUSE);
        let start = Usage::now();
        let mut client = path.client.namespace.command(PROGRAM);
        client.args(["--client", &address, "--port", PORT, "--time", &seconds, "--json"]);
        last = tools::run(&mut client, "").map(|text| (text, Usage::since(&start)));
        if last.is_ok() {
            break;
        }
    }
    let (text, usage) = last?;
    let report: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let received = &report["end"]["sum_received"];
    let number =
        |name: &str| received[name].as_f64().ok_or_else(|| format!("{PROGRAM} says no {name}"));
    let values = vec![number("bits_per_second")? / 1e9];
    Ok(Sample { values, work: number("bytes")? / 1024.0, usage })
}
