//! Any text as Kubernetes objects: a state, with a record of one line for each object that cannot be used, and the
//! same again.

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
        let (one, other) = (compile(), compile());
        assert_eq!(one.config.endpoints, other.config.endpoints);
        assert_eq!(one.records, other.records);
        for record in &one.records {
            assert!(!record.to_string().contains('\n'), "{record}");
        }
    }
}
