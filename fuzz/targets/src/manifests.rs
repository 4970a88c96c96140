//! Any text as Kubernetes objects: a state or refusals of one line each, and the same again.

use std::path::Path;

use podswitch_kubernetes::{Manifests, Options};

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for name in ["a.yaml", "a.json"] {
        let manifests = match Manifests::parse(Path::new(name), &text) {
            Ok(manifests) => manifests,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        let compile = || manifests.compile(Some("n1"), &Options::default());
        match (compile(), compile()) {
            (Ok(one), Ok(other)) => assert_eq!(one.config.endpoints, other.config.endpoints),
            (Err(one), Err(other)) => {
                let lines = |refusals: &[_]| -> Vec<String> {
                    refusals.iter().map(|r: &podswitch_kubernetes::Refusal| r.to_string()).collect()
                };
                let lines = (lines(&one), lines(&other));
                assert!(!lines.0.is_empty() && lines.0 == lines.1);
                assert!(lines.0.iter().all(|line| !line.contains('\n')), "{lines:?}");
            }
            _ => panic!("the same objects were accepted and refused"),
        }
    }
}
