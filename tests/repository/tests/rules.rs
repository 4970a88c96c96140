//! Every rule id that a comment or a document cites (`N15`, `T-S1`) is defined in `docs/rules`,
//! once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Percentiles look like rule ids of the pod network.
const PERCENTILES: [&str; 3] = ["P50", "P95", "P99"];

#[test]
fn every_cited_rule_is_defined() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut definitions: BTreeMap<String, usize> = BTreeMap::new();
    for file in files(&root.join("docs/rules"), "md") {
        for line in read(&file).lines() {
            let heading = line.strip_prefix("### ").and_then(|text| text.split(':').next());
            if let Some(id) = heading.filter(|id| is_id(id)) {
                *definitions.entry(id.to_owned()).or_default() += 1;
            }
        }
    }
    let repeated: Vec<_> = definitions.iter().filter(|(_, count)| **count > 1).collect();
    assert!(repeated.is_empty(), "defined more than once: {repeated:?}");

    let (mut cited, mut undefined) = (0, Vec::new());
    for file in files(root, "rs").into_iter().chain(files(root, "md")) {
        let code = file.extension().is_some_and(|extension| extension == "rs");
        for (number, line) in read(&file).lines().enumerate() {
            let text = match code {
                true => line.split_once("//").map_or("", |(_, comment)| comment),
                false => line,
            };
            for id in ids(text) {
                cited += 1;
                if !definitions.contains_key(id) {
                    undefined.push(format!("{}:{}: {id}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(cited > 200, "only {cited} citations found: are comments still read?");
    assert!(undefined.is_empty(), "no definition in docs/rules:\n{}", undefined.join("\n"));
}

#[test]
fn ids_are_recognized() {
    let text = "rules S1–S9, N15; `T-S1` (T-C4): P50, L2, x-N3, N1a, RFC 1624, IPv4, T-X1, S180";
    assert_eq!(ids(text).collect::<Vec<_>>(), ["S1", "S9", "N15", "T-S1", "T-C4"]);
}

fn ids(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| is_id(word) && !PERCENTILES.contains(word))
}

/// N, S and P are Kubernetes rules; with `T-` and one of seven letters, threats.
fn is_id(word: &str) -> bool {
    let (families, rest) = match word.strip_prefix("T-") {
        Some(rest) => ("PCFSONL", rest),
        None => ("NSP", word),
    };
    let mut chars = rest.chars();
    chars.next().is_some_and(|family| families.contains(family))
        && (1..=2).contains(&chars.as_str().len())
        && chars.all(|c| c.is_ascii_digit())
}

/// Files below `folder` with this extension, without build outputs and hidden folders.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let entry = entry.expect("a folder that can be read");
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().expect("a file has a type").is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
