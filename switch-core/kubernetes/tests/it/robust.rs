//! No text makes the crate panic, and objects printed by real clusters load unchanged.

use std::path::Path;

use podswitch_kubernetes::{Manifests, Options};
use proptest::prelude::*;

use crate::good;

/// Objects as `kubectl get -o yaml` prints them.
const PRINTED: &str = include_str!("printed.yaml");

#[test]
fn kubectls_output_loads_unchanged() {
    let compiled = good(PRINTED);
    assert_eq!(compiled.config.endpoints.len(), 2);
    assert_eq!(compiled.pods.len(), 1);
    let web = &compiled.config.endpoints[0];
    assert_eq!(web.cookie.as_str(), "Pod/prod/web-7d4b9c6f5d-x2x7k");
    assert_eq!(web.workload.addresses.len(), 2);
    assert_eq!(compiled.config.node.pod_cidrs.len(), 2);
    assert_eq!(compiled.config.namespaces.len(), 2);
}

#[test]
fn yaml_and_json_are_equivalent() {
    let yaml = good("{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {x: y}}}");
    let json =
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a","labels":{"x":"y"}}}"#;
    let json = Manifests::parse(Path::new("a.json"), json).unwrap();
    let json = json.compile(Some("n1"), &Options::default());
    assert_eq!(yaml.config.namespaces, json.config.namespaces);
}

/// One change to a text.
fn mutate(text: &mut Vec<u8>, (at, kind, byte): (prop::sample::Index, u8, u8)) {
    const TOKENS: [&str; 12] = [
        "null",
        "[]",
        "{}",
        "-1",
        "99999999999999999999",
        "''",
        "&a ",
        "*a",
        "<<: ",
        "\n---\n",
        "!!x ",
        ": ",
    ];
    let at = at.index(text.len().max(1)).min(text.len());
    match kind % 5 {
        0 if at < text.len() => text[at] = byte,
        1 => text.insert(at, byte),
        2 => text.truncate(at),
        3 => drop(text.splice(at..at, TOKENS[usize::from(byte) % TOKENS.len()].bytes())),
        _ => {
            // A line repeated, or removed.
            let end =
                text[at..].iter().position(|&b| b == b'\n').map_or(text.len(), |n| at + n + 1);
            let line = text[at..end].to_vec();
            let with = if byte & 1 == 0 { [&line[..], &line].concat() } else { Vec::new() };
            drop(text.splice(at..end, with));
        }
    }
}

fn never_panics(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    for name in ["a.yaml", "a.json"] {
        if let Ok(manifests) = Manifests::parse(Path::new(name), &text) {
            for record in manifests.compile(Some("n1"), &Options::default()).records {
                // Whatever is quoted, a record stays on one line.
                assert!(!record.to_string().contains('\n'), "{record:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_manifests_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..8)
    ) {
        let mut text = PRINTED.as_bytes().to_vec();
        changes.into_iter().for_each(|change| mutate(&mut text, change));
        never_panics(&text);
    }

    #[test]
    fn any_text_never_panics(text in "[-\\[\\]{}:&*!|>'\"%@`#,? \n\ta-c0-9.]{0,200}") {
        never_panics(text.as_bytes());
    }
}
