//! `counters`, `policies` and `services`.

use serde_json::Value;

use super::ask::Target;
use super::table::{print_rows, text};
use crate::{Done, print};

/// What is counted.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Only those whose name has this in it.
    #[arg(value_name = "TEXT")]
    containing: Option<String>,
}

impl Args {
    fn takes(&self, name: &str) -> bool {
        self.containing.as_ref().is_none_or(|text| name.contains(text.as_str()))
    }

    /// Prints a map of names and counts.
    fn print(&self, path: &str, field: &str, head: [&str; 2], json: bool) -> Done {
        let answer: Value = self.target.client()?.get(path)?;
        if json {
            print::json(&answer);
            return Ok(());
        }
        let counts = answer[field].as_object().into_iter().flatten();
        let rows: Vec<_> = counts
            .filter(|(name, _)| self.takes(name))
            .map(|(name, count)| [name.clone(), text(count)])
            .collect();
        print_rows(head, &rows);
        Ok(())
    }
}

/// Count what each policy rule decided. Rules with 0 never matched.
pub(crate) fn policies(args: &Args, json: bool) -> Done {
    args.print("/v1/policies", "policies", ["POLICY RULE", "DECIDED"], json)
}

/// Count connections by Service port and backend.
pub(crate) fn services(args: &Args, json: bool) -> Done {
    args.print("/v1/services", "services", ["SERVICE PORT BACKEND", "CONNECTIONS"], json)
}

/// Print the counters, drops by reason among them.
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
    rows.retain(|[name, _]| args.takes(name));
    print_rows(["COUNTER", "VALUE"], &rows);
    Ok(())
}
