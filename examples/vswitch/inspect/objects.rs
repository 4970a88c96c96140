//! `pods`, `counters`, `policies` and `services`.

use std::collections::BTreeMap;

use podswitch_api::Client;
use podswitch_node::UnknownName;
use serde_json::Value;

use super::ask::Target;
use super::table::{bytes, print_rows, text};
use crate::failure::Failure;
use crate::{Done, print};

/// What is counted.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Only entries whose name contains this text.
    #[arg(value_name = "TEXT")]
    containing: Option<String>,
}

impl Args {
    /// Prints the selected objects as the control socket returns them. `never`: only those that were never used.
    fn print_json(&self, client: &Client, path: &str, never: bool) -> Done {
        let never = never.then(|| "true".to_owned());
        let parameters = [("containing", self.containing.clone()), ("never", never)];
        print::json(&client.get::<Value>(&Client::query(path, &parameters))?);
        Ok(())
    }

    /// The rows whose name contains the text.
    ///
    /// # Errors
    /// There is none. The error suggests the nearest names.
    fn select<const N: usize>(
        &self,
        kind: &'static str,
        mut rows: Vec<[String; N]>,
    ) -> Result<Vec<[String; N]>, Failure> {
        let Some(text) = &self.containing else { return Ok(rows) };
        // Parts of a name, such as NAMESPACE/NAME of Service/NAMESPACE/NAME, count as names, too.
        let parts = |name: &String| {
            let words: Vec<String> = name.split(' ').map(str::to_owned).collect();
            let short = words.first().and_then(|word| word.split_once('/'));
            short.map(|(_, short)| short.to_owned()).into_iter().chain(words).collect::<Vec<_>>()
        };
        let known: Vec<String> = rows.iter().flat_map(|row| parts(&row[0])).collect();
        rows.retain(|row| row[0].contains(text.as_str()));
        match rows.is_empty() {
            false => Ok(rows),
            true => Err(Failure::Input(UnknownName::new(kind, text, known).to_string())),
        }
    }
}

/// List the attached pods, with their traffic.
pub(crate) fn pods(args: &Args, json: bool) -> Done {
    let answer: Value = args.target.client()?.get("/v1/pods")?;
    if json {
        print::json(&answer);
        return Ok(());
    }
    let rows: Vec<_> = answer["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            let count = |name: &str| pod[name].as_u64().unwrap_or_default();
            [
                text(&pod["pod"]),
                text(&pod["addresses"]),
                format!("{} {}", text(&pod["interface"]), text(&pod["kind"])),
                text(&pod["port"]),
                text(&pod["connections"]),
                bytes(count("sent_bytes")),
                bytes(count("received_bytes")),
                text(&pod["dropped"]),
            ]
        })
        .collect();
    let head = ["POD", "ADDRESSES", "INTERFACE", "PORT", "OPENED", "SENT", "RECEIVED", "DROPPED"];
    print_rows(head, &args.select("pod on this node", rows)?);
    Ok(())
}

/// Which policy rules are listed.
#[derive(clap::Args, Debug)]
pub(crate) struct PolicyArgs {
    #[command(flatten)]
    args: Args,
    /// Only rules that never matched.
    #[arg(long)]
    never: bool,
}

/// Count the decisions of each rule of the policies that apply to a pod of this node. `POLICY ingress` without an index
/// counts packets that the policy denied because none of its rules matched.
pub(crate) fn policies(args: &PolicyArgs, json: bool) -> Done {
    let PolicyArgs { args, never } = args;
    let client = args.target.client()?;
    if json {
        return args.print_json(&client, "/v1/policies", *never);
    }
    // All of them: the nearest names are among those that are not selected.
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let after = counts.last_key_value().map(|(name, _)| name.clone());
        let page: Value = client.get(&Client::query("/v1/policies", &[("after", after)]))?;
        let rules = page["policies"].as_object().into_iter().flatten();
        let before = counts.len();
        counts.extend(rules.map(|(name, n)| (name.clone(), n.as_u64().unwrap_or_default())));
        if page["left_out"] == 0 || counts.len() == before {
            break;
        }
    }
    let rows = counts.iter().map(|(name, count)| [name.clone(), count.to_string()]).collect();
    let mut rows = args.select("policy that applies to a pod of this node", rows)?;
    if *never {
        rows.retain(|[name, count]| count == "0" && name.ends_with(']'));
    }
    print_rows(["POLICY RULE", "DECIDED"], &rows);
    Ok(())
}

/// Which Service ports are listed.
#[derive(clap::Args, Debug)]
pub(crate) struct ServiceArgs {
    #[command(flatten)]
    args: Args,
    /// Only ports that no connection was opened to or refused by.
    #[arg(long)]
    never: bool,
}

/// List the Service ports with the state of each backend and the connections opened to it. IN USE: new connections go to
/// it.
pub(crate) fn services(args: &ServiceArgs, json: bool) -> Done {
    let ServiceArgs { args, never } = args;
    let client = args.target.client()?;
    if json {
        return args.print_json(&client, "/v1/services", *never);
    }
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let never = never.then(|| "true".to_owned());
        let parameters = [("after", after.clone()), ("never", never)];
        let page: Value = client.get(&Client::query("/v1/services", &parameters))?;
        let ports = page["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.extend(ports.iter().flat_map(service_rows));
        let last = ports.last().map(|port| text(&port["name"]));
        if page["left_out"] == 0 || last.is_none() {
            break;
        }
        after = last;
    }
    let head = ["SERVICE PORT", "BACKEND", "STATE", "IN USE", "TARGET", "NODE", "CONNECTIONS"];
    print_rows(head, &args.select("Service port", rows)?);
    Ok(())
}

/// The rows of one port: each backend, and connections that have none.
fn service_rows(port: &Value) -> Vec<[String; 7]> {
    let name = text(&port["name"]);
    let row = |what: &str, count: &Value| {
        [name.as_str(), what, "", "", "", "", &text(count)].map(str::to_owned)
    };
    let backends = port["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rows: Vec<[String; 7]> = Vec::new();
    for backend in backends {
        let in_use = if backend["in_use"] == true { "yes" } else { "no" };
        let [address, state, target, node, opened] =
            ["address", "state", "target", "node", "opened"].map(|field| text(&backend[field]));
        rows.push([name.clone(), address, state, in_use.to_owned(), target, node, opened]);
    }
    if rows.is_empty() {
        rows.push(row("no backends", &Value::Null));
    }
    for what in ["departed", "rejected", "dropped"] {
        if port[what] != 0 {
            rows.push(row(what, &port[what]));
        }
    }
    rows
}

/// Print the counters, including drops by reason.
pub(crate) fn counters(args: &Args, json: bool) -> Done {
    let answer: Value = args.target.client()?.get("/v1/counters")?;
    if json {
        print::json(&answer);
        return Ok(());
    }
    let mut rows = Vec::new();
    for (name, value) in answer.as_object().into_iter().flatten() {
        match value {
            // These have commands of their own.
            Value::Object(_) if name == "policies" || name == "services" => {}
            Value::Object(counts) => {
                for (reason, count) in counts {
                    rows.push([format!("{name}.{reason}"), text(count)]);
                }
            }
            value => rows.push([name.clone(), text(value)]),
        }
    }
    print_rows(["COUNTER", "VALUE"], &args.select("counter", rows)?);
    Ok(())
}
