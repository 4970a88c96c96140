//! `log-level`.

use serde_json::{Value, json};

use super::ask::Target;
use super::table::text;
use crate::{Done, print};

/// The API path of the log level.
const PATH: &str = "/v1/log-level";

/// Show the running switch's log level, or change it until the switch stops.
///
/// Examples:
///   vswitch log-level
///   vswitch log-level debug
///   vswitch log-level info,cni=debug
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Error, warn, info, debug or off for all targets, and TARGET=LEVEL for single targets (run,
    /// state, node, dns, cni, kubernetes, log, libraries), separated by commas. They replace the
    /// current ones. Only root may change them.
    #[arg(value_name = "DIRECTIVES")]
    directives: Option<String>,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let client = args.target.client()?;
    let answer: Value = match &args.directives {
        Some(directives) => client.put(PATH, &json!({ "directives": directives }))?,
        None => client.get(PATH)?,
    };
    match json {
        true => print::json(&answer),
        false => print::line(text(&answer["directives"])),
    }
    Ok(())
}
