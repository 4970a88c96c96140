//! The crate from its callers' view: manifests in, configuration or records out.

mod by_switch;
mod changes;
mod closed;
mod cluster_policies;
mod decoded;
mod loading;
mod names;
mod nodes;
mod pods;
mod policies;
mod reload;
mod robust;
mod services;
mod taken;
mod zone;

use std::path::Path;

use podswitch_kubernetes::{Action, Compiled, Manifests, Options, Record};

/// Loads and compiles a text for node `n1`.
fn compile(text: &str) -> Compiled {
    let manifests = Manifests::parse(Path::new("test.yaml"), text).expect("readable");
    manifests.compile(Some("n1"), &Options::default())
}

/// Records that make a check fail, except the one that there is no Node object for `n1`: few tests
/// are about nodes.
fn refused(compiled: &Compiled) -> Vec<&Record> {
    let other = |record: &&Record| !record.reason.contains("no Node object for this node");
    compiled.refused().filter(other).collect()
}

/// Compiles a valid text.
#[track_caller]
fn good(text: &str) -> Compiled {
    let compiled = compile(text);
    let refused = refused(&compiled);
    assert!(refused.is_empty(), "refused: {refused:#?}\n{text}");
    compiled
}

/// Compiles an invalid text, and returns object and field of each error.
#[track_caller]
fn bad(text: &str) -> Vec<(String, String)> {
    let compiled = compile(text);
    let refused = refused(&compiled);
    assert!(!refused.is_empty(), "{text}");
    for record in &refused {
        assert!(!record.reason.is_empty() && !record.reason.contains('\n'), "{record}");
    }
    refused.into_iter().map(|r| (r.object.to_string(), r.field.clone())).collect()
}

/// The records about an object that do not make a check fail: field and action.
fn notes(compiled: &Compiled, object: &str) -> Vec<(String, Action)> {
    let of = |record: &&Record| !record.refused && record.object.as_str() == object;
    compiled.records.iter().filter(of).map(|r| (r.field.clone(), r.action)).collect()
}

/// Whether a record contains all these words.
fn is_said(compiled: &Compiled, words: &[&str]) -> bool {
    let texts = compiled.records.iter().map(ToString::to_string);
    texts.into_iter().any(|text| words.iter().all(|word| text.contains(word)))
}

/// One expected error.
fn fault(object: &str, field: &str) -> (String, String) {
    (object.to_owned(), field.to_owned())
}

/// A pod with an address on node `n1`, with additional lines in its metadata, spec and status.
fn pod(name: &str, ip: &str, metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, {metadata}}}\n\
         spec: {{nodeName: n1, {spec}}}\nstatus: {{podIPs: [{{ip: '{ip}'}}], {status}}}\n"
    )
}
