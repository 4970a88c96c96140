//! The crate as its callers see it: manifests in, configuration or refusals out.

mod cluster_policies;
mod loading;
mod nodes;
mod pods;
mod policies;
mod robust;
mod services;

use std::path::Path;

use podswitch_kubernetes::{Compiled, Manifests, Options, Refusal};

/// Loads and compiles a text for node `n1`.
fn compile(text: &str) -> Result<Compiled, Vec<Refusal>> {
    let manifests = Manifests::parse(Path::new("test.yaml"), text).expect("readable");
    manifests.compile(Some("n1"), &Options::default())
}

/// Compiles what must be good.
#[track_caller]
fn good(text: &str) -> Compiled {
    compile(text).unwrap_or_else(|refusals| panic!("refused: {refusals:#?}\n{text}"))
}

/// Compiles what must be bad, and gives object and field of each fault.
#[track_caller]
fn bad(text: &str) -> Vec<(String, String)> {
    let refusals = compile(text).expect_err(text);
    for refusal in &refusals {
        assert!(!refusal.reason.is_empty() && !refusal.reason.contains('\n'), "{refusal}");
    }
    refusals.into_iter().map(|r| (r.object.to_string(), r.field)).collect()
}

/// One expected fault.
fn fault(object: &str, field: &str) -> (String, String) {
    (object.to_owned(), field.to_owned())
}

/// A pod with an address on node `n1`, with more lines in its metadata, spec and status.
fn pod(name: &str, ip: &str, metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, {metadata}}}\n\
         spec: {{nodeName: n1, {spec}}}\nstatus: {{podIPs: [{{ip: '{ip}'}}], {status}}}\n"
    )
}
