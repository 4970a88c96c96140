//! Imports inside the crate run one way: no circle between its modules, and none between the files
//! of a folder. Tests are left out: they may look at anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

type Graph = BTreeMap<String, BTreeSet<String>>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All source files below `folder`, except tests and models.
fn files(folder: &Path) -> Vec<PathBuf> {
    let is_test = |path: &Path| {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        matches!(stem, "tests" | "model" | "testkit" | "testing" | "rewrites")
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if is_test(&path) {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file, without comments and its tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow `prefix` in the code: of `prefix::name`, and of `prefix::{a, b::c}`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(name(rest));
            continue;
        };
        let mut depth = 0;
        for item in list.split_inclusive([',', '{', '}']) {
            if depth == 0 {
                names.insert(name(item.trim_start()));
            }
            match item.chars().last() {
                Some('{') => depth += 1,
                Some('}') if depth == 0 => break,
                Some('}') => depth -= 1,
                _ => {}
            }
        }
    }
    names.remove("");
    names
}

/// The first circle that is found, as a list of modules.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit(graph: &Graph, at: &str, path: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if let Some(start) = path.iter().position(|m| m == at) {
            path.drain(..start);
            path.push(at.to_owned());
            return true;
        }
        if done.contains(at) {
            return false;
        }
        path.push(at.to_owned());
        for next in graph.get(at).into_iter().flatten() {
            if visit(graph, next, path, done) {
                return true;
            }
        }
        path.pop();
        done.insert(at.to_owned());
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| {
        let mut path = Vec::new();
        visit(graph, module, &mut path, &mut done).then_some(path)
    })
}

/// The module of `folder` that a file is, or belongs to.
fn module_of(file: &Path, folder: &Path) -> String {
    let inside = file.strip_prefix(folder).unwrap();
    let first = inside.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Which modules of the crate each of them uses.
fn modules() -> Graph {
    let root = source();
    let mut graph = Graph::new();
    for file in files(&root) {
        let module = module_of(&file, &root);
        if module != "lib" {
            let mut used = names_after(&code(&file), "crate::");
            used.remove(&module);
            graph.entry(module).or_default().extend(used);
        }
    }
    graph
}

#[test]
fn no_circle_between_modules() {
    let graph = modules();
    assert!(graph.len() > 15 && graph["engine"].contains("resolve"), "imports are found");
    assert_eq!(circle(&graph), None);
}

#[test]
fn the_packet_path_does_not_know_ports_workers_and_control() {
    let graph = modules();
    for module in
        ["action", "answer", "engine", "flow", "nat", "packet", "pinned", "resolve", "snapshot"]
    {
        for above in ["port", "worker", "control", "publish"] {
            assert!(!graph[module].contains(above), "{module} uses {above}");
        }
    }
}

#[test]
fn no_circle_between_the_files_of_a_folder() {
    let root = source();
    let mut checked = 0;
    for folder in
        ["answer", "engine", "flow", "nat", "packet", "port", "resolve", "route", "worker"]
    {
        let path = root.join(folder);
        let mut graph = Graph::new();
        let siblings: BTreeSet<String> =
            files(&path).iter().map(|file| module_of(file, &path)).collect();
        for file in files(&path) {
            let module = module_of(&file, &path);
            if module == "mod" {
                continue;
            }
            let code = code(&file);
            // Files deeper down reach their folder's siblings by the full path only.
            let mut used = names_after(&code, &format!("crate::{folder}::"));
            if file.parent() == Some(&path) {
                used.extend(names_after(&code, "super::"));
            }
            used.retain(|name| siblings.contains(name) && *name != module);
            checked += used.len();
            graph.entry(module).or_default().extend(used);
        }
        assert_eq!(circle(&graph), None, "in {folder}");
    }
    assert!(checked > 30, "imports are found: {checked}");
}

#[test]
fn circles_are_found() {
    let edge = |from: &str, to: &[&str]| {
        (from.to_owned(), to.iter().map(|name| (*name).to_owned()).collect())
    };
    let line = Graph::from([edge("a", &["b", "c"]), edge("b", &["c"]), edge("c", &[])]);
    assert_eq!(circle(&line), None);
    let ring = Graph::from([edge("a", &["b"]), edge("b", &["c"]), edge("c", &["b"])]);
    assert_eq!(circle(&ring), Some(["b", "c", "b"].map(str::to_owned).to_vec()));
    let names = names_after("use super::{a, b::{c, d}, e};\nsuper::f::g();", "super::");
    assert_eq!(names, ["a", "b", "e", "f"].map(str::to_owned).into());
}
