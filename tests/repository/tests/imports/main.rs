//! Imports run one way: between crates as decision 0001 says, between the modules of a crate
//! without circles.

mod lexer;
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use modules::{Modules, OWN, circles};

/// Crates, and the crates of the workspace on which they may depend.
const CRATES: [(&str, &str, &[&str]); 15] = [
    ("podswitch-wire", "switch-core/wire", &[]),
    ("podswitch-vxlan", "vxlan", &["wire"]),
    ("podswitch-policy", "policy", &["wire"]),
    ("podswitch-core", "switch-core", &["wire", "vxlan", "policy", "dns"]),
    ("podswitch-linux", "switch-core/linux", &["wire", "vxlan", "core"]),
    ("podswitch-dns", "switch-core/dns", &[]),
    ("podswitch-kubernetes", "switch-core/kubernetes", &["wire", "policy", "core", "dns"]),
    ("podswitch-ingress", "switch-core/ingress", &["wire", "core", "kubernetes"]),
    (
        "podswitch-node",
        "switch-core/node",
        &["wire", "vxlan", "policy", "core", "linux", "dns", "kubernetes"],
    ),
    (
        "podswitch-kubernetes-api",
        "switch-core/kubernetes/api",
        &["wire", "policy", "core", "linux", "kubernetes", "node"],
    ),
    ("podswitch-api", "switch-core/api", &["wire", "linux", "dns", "node"]),
    ("podswitch-ingress-controller", "examples/ingress", &["wire", "kubernetes", "ingress"]),
    ("podswitch-cni", "examples/podswitch-cni", &[]),
    ("podswitch", ".", &["wire", "vxlan", "policy", "core", "linux", "kubernetes", "node"]),
    (
        "podswitch-vswitch",
        "examples/vswitch",
        &[
            "api",
            "dns",
            "wire",
            "vxlan",
            "policy",
            "core",
            "linux",
            "kubernetes",
            "kubernetes-api",
            "node",
            "ingress",
        ],
    ),
];

/// Folders whose own file (`mod.rs`) and children import each other: a type whose methods are in
/// children that also provide types to it. None may be added; remove an entry when its circle is
/// resolved.
const OWN_FILE: &[(&str, &str)] = &[
    ("podswitch-core", "control"),
    ("podswitch-core", "engine"),
    ("podswitch-core", "flow::table"),
    ("podswitch-kubernetes", "read"),
    ("podswitch-kubernetes", "store"),
];

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Names under `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_inside = false;
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            is_inside = table.trim_end_matches(']').ends_with("dependencies")
                && !table.starts_with("dev-")
                && !table.starts_with("workspace");
        } else if is_inside && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            names.extend(name.strip_prefix("podswitch-").map(str::to_owned));
        }
    }
    names
}

#[test]
fn crates_depend_one_way() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut wrong = Vec::new();
    for (name, folder, allowed) in CRATES {
        let file = root.join(folder).join("Cargo.toml");
        if !file.exists() {
            continue;
        }
        let text = read(&file);
        assert!(text.contains(&format!("name = \"{name}\"")), "{name} is not in {folder}");
        let more = dependencies(&text).into_iter().filter(|d| !allowed.contains(&d.as_str()));
        wrong.extend(more.map(|d| format!("{name} depends on podswitch-{d}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Crates that are or may be published must be in the table above.
#[test]
fn every_crate_is_known() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let text = read(&root.join("Cargo.toml"));
    let members = text.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    let members: Vec<_> = members.expect("a workspace").0.split('"').skip(1).step_by(2).collect();
    assert!(members.len() > 6, "{members:?}");
    for member in members {
        let manifest = read(&root.join(member).join("Cargo.toml"));
        let is_known = CRATES.iter().any(|(_, folder, _)| *folder == member);
        let is_ours_alone = manifest.contains("publish = false");
        assert!(is_known || is_ours_alone, "{member} is in no layer: add it to CRATES");
    }
}

#[test]
fn modules_have_no_circles() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let (mut new, mut count) = (Vec::new(), 0);
    let mut known = BTreeSet::new();
    for (name, folder, _) in CRATES {
        let folder = root.join(folder);
        let files = ["src/lib.rs", "lib.rs"].map(|file| folder.join(file));
        let Some(file) = files.iter().find(|file| file.exists()) else { continue };
        let edges = Modules::read(file).edges();
        for (module, edges) in &edges {
            count += edges.len();
            for circle in circles(edges) {
                let at = (name, module.as_str());
                // Without the folder's own file there must be no circle among its children.
                let is_by_own_file = || {
                    let others = edges.iter().filter(|((a, b), _)| a != OWN && b != OWN);
                    circles(&others.map(|(e, x)| (e.clone(), x.clone())).collect()).is_empty()
                };
                if let Some(found) = OWN_FILE.iter().find(|known| **known == at)
                    && is_by_own_file()
                {
                    known.insert(*found);
                    continue;
                }
                let inside = edges
                    .iter()
                    .filter(|((a, b), _)| a != b && circle.contains(a) && circle.contains(b));
                let examples: Vec<_> =
                    inside.map(|(_, example)| format!("    {example}")).collect();
                let list = examples.join("\n");
                new.push(format!("{name}, in {module:?}: {circle:?}\n{list}"));
            }
        }
    }
    assert!(count > 200, "only {count} imports found: is the source still read?");
    assert!(new.is_empty(), "{} circles:\n{}", new.len(), new.join("\n"));
    let resolved: Vec<_> = OWN_FILE.iter().filter(|at| !known.contains(*at)).collect();
    assert!(resolved.is_empty(), "no circles any more: {resolved:?}");
}

/// Modules of the packet path, and modules above it.
#[test]
fn the_packet_path_does_not_import_ports_workers_or_control() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let all = Modules::read(&root.join("switch-core/src/lib.rs")).edges();
    let edges = &all[""];
    let below =
        ["action", "answer", "engine", "flow", "nat", "packet", "pinned", "resolve", "snapshot"];
    for module in below {
        assert!(edges.keys().any(|(a, b)| a == module || b == module), "there is no {module}");
        for above in ["port", "worker", "control", "publish"] {
            let example = edges.get(&(module.to_owned(), above.to_owned()));
            assert_eq!(example, None);
        }
    }
}

#[test]
fn circles_are_found() {
    let edge = |a: &str, b: &str| ((a.to_owned(), b.to_owned()), String::new());
    let edges = [("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")].map(|(a, b)| edge(a, b)).into();
    let found = circles(&edges);
    assert_eq!(found, [BTreeSet::from(["b".to_owned(), "c".to_owned()])]);
}

#[test]
fn tests_comments_and_literals_are_not_imports() {
    let source = r##"
        //! crate::comment
        fn f<'a>(c: char) -> &'a str {
            if c == '\'' { "crate::text" } else { r#"crate::"raw"# }
        }
        #[cfg(test)]
        mod tests { use crate::tested; }
        /* crate::block /* */ */
        fn g() { crate::code::h() }
    "##;
    let tokens = lexer::tokens(source);
    let after: Vec<_> =
        tokens.windows(3).filter(|w| w[0].word() == Some("crate")).map(|w| w[2].word()).collect();
    assert_eq!(after, [Some("code")]);
}
