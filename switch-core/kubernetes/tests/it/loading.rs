//! Files, folders, documents, lists, kinds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use podswitch_kubernetes::{LoadError, Manifests, Options};
use podswitch_testkit::privilege::is_there;
use podswitch_testkit::test_name;

use crate::{bad, fault, good, pod};

fn names(path: &Path) -> Vec<String> {
    let manifests = Manifests::load(path).expect("readable");
    let compiled = manifests.compile(None, &Options::default());
    compiled.config.namespaces.iter().map(|n| n.name.to_string()).collect()
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[test]
fn a_folder_is_read_in_name_order_with_its_subfolders() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("b.yaml", &namespace("b"));
    write("a.yml", &namespace("a"));
    write("c/d.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "d"}}"#);
    write("e.yaml", &format!("{}---\n{}", namespace("e1"), namespace("e2")));
    for passed_over in [
        "b.yaml~",
        "#b.yaml#",
        ".#b.yaml",
        ".hidden.yaml",
        ".git/x.yaml",
        "README.md",
        "b.yaml.bak",
    ] {
        write(passed_over, "][");
    }
    assert_eq!(names(dir.path()), ["a", "b", "d", "e1", "e2"]);
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("..2026_01_01")).unwrap();
    fs::write(dir.path().join("..2026_01_01/ns.yaml"), namespace("a")).unwrap();
    symlink("..2026_01_01", dir.path().join("..data")).unwrap();
    symlink("..data/ns.yaml", dir.path().join("ns.yaml")).unwrap();
    // And a loop, which a person may create.
    symlink(".", dir.path().join("again")).unwrap();
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn a_pipe_in_a_folder_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe.yaml");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    let there = made.is_ok_and(|status| status.success());
    if !is_there(&test_name!(), "mkfifo", there) {
        return;
    }
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn a_file_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster");
    fs::write(&path, namespace("a")).unwrap();
    assert_eq!(names(&path), ["a"]);
}

#[test]
fn unreadable_files_differ_from_invalid_objects() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Manifests::load(&missing).unwrap_err();
    assert!(matches!(&error, LoadError::Io { path, .. } if *path == missing), "{error}");

    symlink("nowhere", dir.path().join("dead.yaml")).unwrap();
    assert!(matches!(Manifests::load(dir.path()), Err(LoadError::Io { .. })));
    fs::remove_file(dir.path().join("dead.yaml")).unwrap();

    fs::write(dir.path().join("a.yaml"), format!("{}---\nb: [\n", namespace("a"))).unwrap();
    let error = Manifests::load(dir.path()).unwrap_err();
    let LoadError::Syntax { line, .. } = &error else { panic!("{error}") };
    assert!(line.is_some_and(|line| line >= 5), "{error}");
    assert!(error.to_string().contains("a.yaml:"), "{error}");

    fs::write(dir.path().join("a.yaml"), b"a: b\nc: \xff\n").unwrap();
    let error = Manifests::load(dir.path()).unwrap_err();
    assert!(matches!(error, LoadError::Syntax { line: Some(2), .. }), "{error}");
}

#[test]
fn an_empty_folder_is_an_empty_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let compiled = Manifests::load(dir.path()).unwrap().compile(None, &Options::default());
    assert!(compiled.config.endpoints.is_empty());
    assert_eq!(compiled.records.len(), 1);
}

#[test]
fn lists_are_split() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- apiVersion: v1
  kind: List
  items:
  - {apiVersion: v1, kind: Namespace, metadata: {name: b}}
---
apiVersion: v1
kind: NamespaceList
metadata: {resourceVersion: '1'}
items:
- {metadata: {name: c}}
- {apiVersion: v1, kind: Namespace, metadata: {name: d}}
---
{apiVersion: v1, kind: List, items: []}
";
    let compiled = good(text);
    let names: Vec<_> = compiled.config.namespaces.iter().map(|n| &*n.name).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn other_kinds_are_ignored_with_a_note() {
    let text = "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {anything: [goes]}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: c}}
---
{apiVersion: example.com/v1, kind: AllowList, metadata: {name: d}, spec: {}}
";
    let compiled = good(text);
    let notes: Vec<_> = compiled.records.iter().map(ToString::to_string).collect();
    assert!(notes.iter().any(|n| n.contains("Deployment of apps/v1") && n.contains("1 more")));
    assert!(notes.iter().any(|n| n.contains("NetworkPolicy of projectcalico.org/v3")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("AllowList")), "{notes:?}");
}

#[test]
fn values_that_are_not_objects_are_refused() {
    assert_eq!(bad("just text"), [fault("?/?", "kind")]);
    assert_eq!(bad("- 1\n- 2\n").len(), 1);
    assert_eq!(bad("{apiVersion: v1, metadata: {name: a}}"), [fault("?/a", "kind")]);
    assert_eq!(bad("{apiVersion: v1, kind: 7}"), [fault("?/?", "kind")]);
    assert_eq!(bad("{kind: Pod, metadata: {name: a}}"), [fault("Pod/default/a", "apiVersion")]);
    for version in ["v2", "v1beta1"] {
        let text = format!("{{apiVersion: {version}, kind: Namespace, metadata: {{name: a}}}}");
        assert_eq!(bad(&text), [fault("Namespace/a", "apiVersion")]);
    }
    for version in ["extensions/v1beta1", "networking.k8s.io/v1beta1"] {
        let text = format!("{{apiVersion: {version}, kind: NetworkPolicy, metadata: {{name: a}}}}");
        assert_eq!(bad(&text), [fault("NetworkPolicy/default/a", "apiVersion")]);
    }
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    for (text, field) in [
        ("metadata: {name: a, labels: {x: 1}}", "metadata.labels.x"),
        ("metadata: {name: a, labels: [x]}", "metadata.labels"),
        ("metadata: {name: 7}", "metadata.name"),
        (
            "spec: {containers: [{ports: [{containerPort: '80'}]}]}",
            "spec.containers[0].ports[0].containerPort",
        ),
        ("spec: {hostNetwork: maybe}", "spec.hostNetwork"),
        ("spec: 1", "spec"),
        ("status: {podIPs: [{ip: 10}]}", "status.podIPs[0].ip"),
    ] {
        let text = format!("apiVersion: v1\nkind: Pod\n{text}\n");
        let found = bad(&text);
        assert_eq!(found.len(), 1, "{text}");
        assert_eq!(found[0].1, field, "{text}");
    }
}

#[test]
fn an_object_may_be_defined_only_once() {
    let text = pod("a", "10.0.0.1", "", "", "") + &pod("a", "10.0.0.2", "", "", "");
    assert_eq!(bad(&text), [fault("Pod/default/a", "metadata.name")]);
    // Names repeat in other namespaces and kinds.
    let text = pod("a", "10.0.0.1", "", "", "")
        + &pod("a", "10.0.0.2", "namespace: b", "", "")
        + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
    good(&text);
}

#[test]
fn refusals_are_in_the_order_of_the_manifests() {
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: A}}\n---\nkind: 1\n---\n\
                {apiVersion: v1, kind: Namespace, metadata: {name: B, labels: {'-': x, y: '-'}}}\n";
    let found = bad(text);
    assert_eq!(
        found,
        [
            fault("Namespace/A", "metadata.name"),
            fault("?/?", "kind"),
            fault("Namespace/B", "metadata.name"),
            fault("Namespace/B", "metadata.labels"),
            fault("Namespace/B", "metadata.labels"),
        ]
    );
}
