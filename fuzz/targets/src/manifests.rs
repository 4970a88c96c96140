//! Any text as Kubernetes objects: the result is a state and records of one line each, and the same
//! result again.

use std::path::Path;

use podswitch_kubernetes::{Compiled, Manifests, Options};

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
        let one = manifests.compile(Some("n1"), &Options::default());
        let other = manifests.compile(Some("n1"), &Options::default());
        assert_eq!(one.config.endpoints, other.config.endpoints);
        assert_eq!(one.config.policies, other.config.policies);
        assert_eq!(one.config.services, other.config.services);
        let lines = lines(&one);
        assert_eq!(lines, self::lines(&other));
        assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
    }
}

fn lines(compiled: &Compiled) -> Vec<String> {
    compiled.records.iter().map(ToString::to_string).collect()
}
