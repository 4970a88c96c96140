//! `bugreport`: collects all information for debugging in one file, without secrets.

mod archive;
mod machine;
mod redact;

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use podswitch_api::{Client, ClientError};
use serde_json::Value;

use super::ask::Target;
use crate::failure::Failure;
use crate::{Done, print};
use archive::Archive;
use redact::redact;

/// What is never in a report.
const LEFT_OUT: &str = "\
Not in this archive:
- tokens, passwords, keys, certificates and Secrets; what looks like one is replaced by [removed]
- the contents of the kubeconfig, of the run directory and of manifests: only paths, names and sizes
- environment variables, but for a short list of names
- bytes of packets: records of drops have no `frame`
- memory maps, open files and other memory of the process
- rules of nf_tables tables that are not the switch's own
In it are names and addresses of pods, Services and nodes, and who talks to whom.
";

/// Collect information for debugging in one archive, without secrets.
///
///   vswitch bugreport                               podswitch-NODE-TIME.tar.gz in this folder
///   vswitch bugreport -o /tmp/report.tar.gz --flows 5000
///   vswitch bugreport --node n1                     select one of several switches
///
/// The archive has state, counters, flows, drops, process, network and kernel information. Secrets
/// are removed; README in the archive lists what else is left out. For a part that cannot be read,
/// the archive has a file with the reason. Read the report before you pass it on: it names pods,
/// Services, nodes and addresses.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The file to write; it must not exist.
    #[arg(short, long, value_name = "FILE.tar.gz")]
    output: Option<PathBuf>,
    /// The most connections in the report.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    flows: usize,
    /// The most drops in the report.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    drops: usize,
}

/// A part and its content, or why it could not be read.
type Part = (String, Result<String, String>);

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let client = args.target.client()?;
    let status = client.get::<Value>("/v1/status");
    let node = status.as_ref().ok().and_then(|status| status["node"].as_str());
    let seconds = seconds();
    let time =
        humantime::format_rfc3339_seconds(UNIX_EPOCH + std::time::Duration::from_secs(seconds));
    let time = time.to_string().replace(':', "");
    // A node's name has no `/`, but it comes from outside this program.
    let name = format!("podswitch-{}-{time}", node.unwrap_or("unknown").replace('/', "_"));
    let path = args.output.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    let failed = |error: std::io::Error| Failure::Setup(format!("{}: {error}", path.display()));
    let mut archive = Archive::create(&path, &name, seconds).map_err(failed)?;
    let parts = collect(&client, args.flows, args.drops);
    let mut missing = Vec::new();
    for (name, content) in &parts {
        match content {
            Ok(content) => archive.add(name, &redact(content)),
            Err(why) => {
                missing.push(format!("{name}: {}", redact(why)));
                archive.add(&format!("{name}.error"), &redact(&format!("{why}\n")))
            }
        }
        .map_err(failed)?;
    }
    let readme = readme(&parts, &missing);
    archive.add("README", &readme).map_err(failed)?;
    archive.finish().map_err(failed)?;
    if json {
        print::json(&serde_json::json!({ "file": path, "missing": missing }));
        return Ok(());
    }
    print::line(path.display());
    for line in &missing {
        print::note(format_args!("not included: {line}"));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "people look reports up by the time of day")]
fn seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

fn readme(parts: &[Part], missing: &[String]) -> String {
    let names: String = parts.iter().map(|(name, _)| format!("  {name}\n")).collect();
    let missing = match missing {
        [] => "nothing\n".to_owned(),
        missing => format!("\n  {}\n", missing.join("\n  ")),
    };
    format!(
        "Report of podswitch {}.\n\n{LEFT_OUT}\nParts:\n{names}\nCould not be read: {missing}",
        env!("CARGO_PKG_VERSION")
    )
}

fn collect(client: &Client, flows: usize, drops: usize) -> Vec<Part> {
    let mut parts: Vec<Part> =
        vec![("version".into(), Ok(format!("vswitch {}\n", env!("CARGO_PKG_VERSION"))))];
    for name in ["status", "pods", "counters", "policies", "services", "perf", "logs"] {
        let answer = ask(client, &format!("/v1/{name}"));
        // Older switches do not have these.
        let is_optional = matches!(name, "perf" | "logs");
        if !is_optional || answer.is_ok() {
            parts.push((format!("switch/{name}.json"), answer));
        }
    }
    let limit = |limit: usize| Some(limit.to_string());
    let flows = Client::query("/v1/flows", &[("limit", limit(flows))]);
    parts.push(("switch/flows.json".into(), ask(client, &flows)));
    let drops = Client::query("/v1/drops", &[("limit", limit(drops))]);
    parts.push(("switch/drops.json".into(), ask(client, &drops).map(|text| without_frames(&text))));
    parts.push(("switch/metrics".into(), ask(client, "/metrics")));
    parts.push(("run-dir".into(), machine::run_dir(client.path())));
    match machine::process_id(client.path()) {
        Ok(pid) => {
            parts.extend(machine::process(pid));
            parts.extend(machine::network(pid));
        }
        Err(why) => parts.push(("process".into(), Err(why))),
    }
    parts.extend(machine::machine());
    parts
}

fn ask(client: &Client, uri: &str) -> Result<String, String> {
    client.text(uri).map_err(|error: ClientError| error.to_string())
}

/// Records of drops without the bytes of their packets.
fn without_frames(text: &str) -> String {
    let Ok(mut answer) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    for drop in answer["drops"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = drop.as_object_mut() {
            fields.remove("frame");
        }
    }
    answer.to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_contain_no_packet_bytes() {
        let text = r#"{"drops":[{"reason":"policy_ingress","frame":"00ff"},{"reason":"spoof"}]}"#;
        assert_eq!(
            without_frames(text),
            "{\"drops\":[{\"reason\":\"policy_ingress\"},{\"reason\":\"spoof\"}]}\n"
        );
    }

    /// A part that cannot be read does not make the report fail.
    #[test]
    fn a_report_is_written_without_a_switch() {
        let parts = collect(&Client::new("/nonexistent/ctl.sock"), 1, 1);
        let part =
            |name: &str| parts.iter().find(|(part, _)| part == name).map(|(_, content)| content);
        assert!(matches!(part("version"), Some(Ok(_))));
        assert!(matches!(part("machine/version"), Some(Ok(text)) if text.contains("Linux")));
        assert!(
            matches!(part("switch/status.json"), Some(Err(why)) if why.contains("is the switch running"))
        );
        assert!(matches!(part("process"), Some(Err(_))));
        assert!(readme(&parts, &["a: b".to_owned()]).contains("Could not be read: \n  a: b\n"));
    }
}
