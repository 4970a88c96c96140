//! Files that are read again: at a cost proportional to the change, all or nothing, and never
//! incomplete.

use std::fs;

use podswitch_kubernetes::{Action, Files, LoadError, Loading, Options, Store};

struct Folder {
    dir: tempfile::TempDir,
    files: Files,
    store: Store,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        Self { dir, files, store: Store::new(Some("n1"), Options::default()) }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    #[track_caller]
    fn load(&mut self) -> Loading {
        self.files.load(&mut self.store).expect("readable")
    }

    fn pods(&mut self) -> Vec<String> {
        let compiled = self.store.compiled();
        let mut names: Vec<_> =
            compiled.config.endpoints.iter().map(|e| e.workload.name.to_string()).collect();
        names.sort();
        names
    }

    fn said(&mut self) -> String {
        let records = self.files.records(&mut self.store);
        records.iter().map(|record| format!("{record}\n")).collect()
    }
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: n1}}\n\
         status: {{podIPs: [{{ip: {ip}}}]}}\n"
    )
}

fn json(name: &str, ip: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{{"nodeName":"n1"}},"status":{{"podIPs":[{{"ip":"{ip}"}}]}}}}"#
    )
}

#[test]
fn only_what_changed_is_parsed() {
    let mut folder = Folder::new();
    let documents = |ip: &str| {
        let pods: Vec<_> = (0..50).map(|n| pod(&format!("p{n}"), &format!("10.0.1.{n}"))).collect();
        [pods.join("---\n"), pod("changing", ip)].join("---\n")
    };
    let list = |ip: &str| {
        let pods: Vec<_> =
            (0..50).map(|n| json(&format!("j{n}"), &format!("10.0.2.{n}"))).collect();
        format!("{{\"items\":[{},{}],\"kind\":\"List\"}}", pods.join(","), json("other", ip))
    };
    folder.write("a.yaml", &documents("10.0.0.1"));
    folder.write("b.json", &list("10.0.0.2"));
    assert_eq!(folder.load(), Loading { files: 2, parsed: 102, objects: 102 });
    assert_eq!(folder.pods().len(), 102);
    drop(folder.store.take_changes());
    // Unchanged, or rewritten with the same bytes.
    assert_eq!((folder.load().parsed, folder.load().objects), (0, 0));
    folder.write("a.yaml", &documents("10.0.0.1"));
    assert_eq!((folder.load().parsed, folder.load().objects), (0, 0));
    // One document, one item.
    folder.write("a.yaml", &documents("10.0.0.3"));
    let loading = folder.load();
    assert_eq!((loading.parsed, loading.objects), (1, 1));
    assert_eq!(folder.store.take_changes().objects.len(), 1);
    folder.write("b.json", &list("10.0.0.4"));
    let loading = folder.load();
    assert_eq!((loading.parsed, loading.objects), (1, 1));
    assert_eq!(folder.store.take_changes().objects.len(), 1);
    // Lines move; nothing is parsed, and records name the new line.
    folder.write("c.yaml", &format!("{}---\n{}", pod("x", "10.9.0.1"), pod("y", "10.9.0.999")));
    folder.load();
    assert!(folder.said().contains("c.yaml:6: Pod/default/y"), "{}", folder.said());
    folder.write(
        "c.yaml",
        &format!("# a line\n{}---\n{}", pod("x", "10.9.0.1"), pod("y", "10.9.0.999")),
    );
    assert_eq!(folder.load().parsed, 1);
    assert!(folder.said().contains("c.yaml:7: Pod/default/y"), "{}", folder.said());
    assert_eq!(folder.pods().len(), 103);
    // Removed with its file.
    fs::remove_file(folder.dir.path().join("a.yaml")).unwrap();
    assert_eq!(folder.load().objects, 51);
    assert_eq!(folder.pods().len(), 52);
}

#[test]
fn a_file_with_an_old_time_is_read_again_while_its_status_is_new() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &pod("a", "10.0.0.1"));
    let long_ago =
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::options().write(true).open(folder.dir.path().join("a.yaml")).unwrap();
    file.set_modified(long_ago).unwrap();
    drop(file);
    // Its change time is recent, so it is read once more to be sure.
    assert_eq!(folder.load().files, 1);
    assert_eq!(folder.load().files, 1);
    assert_eq!(folder.load().parsed, 0);
}

#[test]
fn an_object_moves_from_file_to_file() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &[pod("a", "10.0.0.1"), pod("b", "10.0.0.2")].join("---\n"));
    folder.write("b.yaml", "# nothing yet\n");
    folder.load();
    drop(folder.store.take_changes());
    folder.write("a.yaml", &pod("a", "10.0.0.1"));
    folder.write("b.yaml", &pod("b", "10.0.0.2"));
    folder.load();
    assert_eq!(folder.pods(), ["a", "b"]);
    assert!(folder.store.take_changes().is_empty(), "nothing changed");
    assert!(!folder.said().contains("defined already"));
}

#[test]
fn the_first_of_two_definitions_stays_until_it_is_removed() {
    let mut folder = Folder::new();
    let ip = |folder: &mut Folder| {
        let compiled = folder.store.compiled();
        compiled
            .config
            .endpoints
            .iter()
            .map(|e| e.workload.addresses[0].to_string())
            .collect::<Vec<_>>()
    };
    folder.write("b.yaml", &pod("a", "10.0.0.1"));
    folder.load();
    folder.write("a.yaml", &pod("a", "10.0.0.2"));
    folder.write("c.yaml", &pod("a", "10.0.0.3"));
    folder.load();
    assert_eq!(ip(&mut folder), ["10.0.0.1"]);
    assert!(
        folder.said().contains("a.yaml:1: Pod/default/a: metadata.name: is defined already, at"),
        "{}",
        folder.said()
    );
    // The first one is changed: it stays the first.
    folder.write("b.yaml", &pod("a", "10.0.0.4"));
    folder.load();
    assert_eq!(ip(&mut folder), ["10.0.0.4"]);
    // The first is removed: the next takes its place. Then that is removed: the last takes its
    // place.
    fs::remove_file(folder.dir.path().join("b.yaml")).unwrap();
    folder.load();
    assert_eq!(ip(&mut folder), ["10.0.0.2"]);
    folder.write("a.yaml", &pod("a", "10.0.0.5"));
    folder.load();
    assert_eq!(ip(&mut folder).len(), 1);
    fs::remove_file(folder.dir.path().join("a.yaml")).unwrap();
    folder.load();
    assert_eq!(ip(&mut folder), ["10.0.0.3"]);
    assert!(!folder.said().contains("defined already"), "{}", folder.said());
    fs::remove_file(folder.dir.path().join("c.yaml")).unwrap();
    folder.load();
    assert!(ip(&mut folder).is_empty());
    assert!(folder.store.is_empty());
}

#[test]
fn truncated_or_unreadable_files_change_nothing() {
    let mut folder = Folder::new();
    let two = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")].join("---\n");
    folder.write("a.yaml", &two);
    folder.write("b.json", &format!("{{\"kind\":\"List\",\"items\":[{}]}}", json("c", "10.0.0.3")));
    folder.load();
    drop(folder.store.take_changes());
    let list = format!(
        "{{\"kind\":\"List\",\"items\":[{},{}]}}",
        json("c", "10.0.0.3"),
        json("d", "10.0.0.4")
    );
    for (name, text) in [
        ("a.yaml", "".to_owned()),
        ("a.yaml", "\n\n".to_owned()),
        ("a.yaml", format!("{}---\n", pod("a", "10.0.0.1"))),
        ("a.yaml", format!("{}---", pod("a", "10.0.0.1"))),
        ("a.yaml", format!("{two}---\nkind: [\n")),
        ("a.yaml", format!("{two}---\n{}", &json("d", "10.0.0.4")[..40])),
        ("b.json", "".to_owned()),
        ("b.json", list[..list.len() - 1].to_owned()),
        ("b.json", list[..list.len() / 2].to_owned()),
    ] {
        let before = fs::read(folder.dir.path().join(name)).unwrap();
        folder.write(name, &text);
        // A valid change elsewhere waits for the other file.
        folder.write("c.yaml", &pod("e", "10.0.0.5"));
        let error = folder.files.load(&mut folder.store).unwrap_err();
        assert!(matches!(error, LoadError::Cut { .. } | LoadError::Syntax { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(folder.store.take_changes().is_empty());
        assert_eq!(folder.pods(), ["a", "b", "c"]);
        fs::write(folder.dir.path().join(name), before).unwrap();
        fs::remove_file(folder.dir.path().join("c.yaml")).unwrap();
        folder.load();
    }
    // A file that always ended like this is not truncated.
    folder.write("d.yaml", &format!("{}---\n", pod("d", "10.0.0.4")));
    folder.load();
    folder.write("d.yaml", &format!("{}---\n", pod("d", "10.0.0.6")));
    folder.load();
    assert_eq!(folder.pods(), ["a", "b", "c", "d"]);
}

#[test]
fn the_last_good_version_of_a_policy_survives_a_reload() {
    let mut folder = Folder::new();
    let policy = |version: &str, port: &str| {
        format!(
            "apiVersion: {version}\nkind: NetworkPolicy\nmetadata: {{name: p}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
        )
    };
    folder.write("p.yaml", &policy("networking.k8s.io/v1", "80"));
    folder.load();
    let good = folder.store.compiled().config.policies;
    for (version, port) in [("networking.k8s.io/v1", "0"), ("networking.k8s.io/v1beta1", "80")] {
        folder.write("p.yaml", &policy(version, port));
        folder.load();
        assert_eq!(folder.store.compiled().config.policies, good);
        let records = folder.files.records(&mut folder.store);
        assert!(records.iter().any(|r| r.action == Action::KeptLastGood), "{records:?}");
    }
    folder.write("p.yaml", "# none\n");
    folder.load();
    assert!(folder.store.compiled().config.policies.is_empty());
}

#[test]
fn an_empty_folder_has_no_node() {
    let mut folder = Folder::new();
    folder.write("n.yaml", "{apiVersion: v1, kind: Node, metadata: {name: n1}}");
    folder.load();
    assert!(folder.store.has_node());
    drop(folder.store.take_changes());
    fs::remove_file(folder.dir.path().join("n.yaml")).unwrap();
    // The caller refuses such a state, each time it is read.
    for _ in 0..2 {
        let result = folder.files.load_if(&mut folder.store, |files, store| {
            let said: String = files.records(store).iter().map(|r| format!("{r}\n")).collect();
            assert!(said.contains("no manifests in"), "{said}");
            assert!(said.contains("there is no Node object for this node, n1"), "{said}");
            if store.has_node() { Ok(()) } else { Err(Refused::NoNode) }
        });
        assert!(matches!(result, Err(Refused::NoNode)));
        assert!(folder.store.has_node());
        assert!(folder.store.take_changes().is_empty());
    }
    // Once it contains the node, it is applied, with all changes made meanwhile.
    folder.write(
        "m.yaml",
        &format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n1}}}}\n---\n{}",
            pod("a", "10.0.0.1")
        ),
    );
    folder.load();
    assert_eq!(folder.pods(), ["a"]);
    assert!(folder.store.has_node());
}

#[derive(Debug)]
enum Refused {
    NoNode,
    Unreadable,
}

impl From<LoadError> for Refused {
    fn from(_: LoadError) -> Self {
        Self::Unreadable
    }
}
