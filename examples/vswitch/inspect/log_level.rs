//! `log-level`.

use serde_json::{Value, json};

use super::ask::Target;
use super::table::text;
use crate::{Done, print};

/// The path that reads and changes it.
const PATH: &str = "/v1/log-level";

/// Say what the running switch logs, or change it until it stops.
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
    /// Error, warn, info, debug or off for all targets, and TARGET=LEVEL for single ones (run, state, node, cni,
    /// kubernetes, log, libraries), separated by commas. They replace those in force. Only root may change them.
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
