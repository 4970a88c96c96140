//! `vswitch explain` as people and programs see it: a truth table of policy through `--matrix`,
//! and single connections in words and as JSON; `vswitch dns` beside it.

mod names;
mod refused;
mod services;
mod single;

use podswitch_vswitch_testkit::cases::{self, ASKED, Case, OUTSIDE};
use podswitch_vswitch_testkit::{Folder, run};

/// Prints the matrix of a case, and gives the lines that a person expected otherwise.
fn mistakes(folder: &Folder, number: usize, case: &Case) -> (usize, Vec<String>) {
    let text = cases::cluster(["n1", "n2", "n2"]) + &case.policies();
    let manifests = folder.manifest(&number.to_string(), &text);
    let asked = ASKED.join(",");
    let mut arguments = vec!["explain", "--manifests", &manifests, "--matrix", &asked];
    arguments.extend(OUTSIDE.iter().flat_map(|address| ["--with", address]));
    let output = run(&arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}: {told}", case.name);
    let (mut count, mut wrong) = (0, Vec::new());
    for line in String::from_utf8(output.stdout).expect("text").lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [from, to, family, what, verdict] = fields[..] else { panic!("{line:?}") };
        count += 1;
        let allows = case.allows(from, to, family, what);
        if verdict != if allows { "allow" } else { "deny" } {
            wrong.push(format!("{}: {line}", case.name));
        }
    }
    (count, wrong)
}

#[test]
fn the_truth_table_holds() {
    let (cases, folder) = (cases::all(), Folder::new());
    // Ten pods, two nodes and two addresses of each family.
    let each = 2 * 14 * 14 * ASKED.len();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let (count, mut bad) = mistakes(&folder, number, case);
        assert_eq!(count, each, "{}", case.name);
        bad.truncate(5);
        wrong.extend(bad);
    }
    println!("{} cases, {} verdicts", cases.len(), cases.len() * each);
    assert!(cases.len() >= 100);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_case_expects_something() {
    // An expectation that no line of the matrix fits says nothing.
    let mut names: Vec<&str> = Vec::new();
    for case in cases::all() {
        assert!(!names.contains(&case.name), "{} is there twice", case.name);
        names.push(case.name);
        assert!(case.idle_lines().is_empty(), "{}: {:?}", case.name, case.idle_lines());
    }
}
