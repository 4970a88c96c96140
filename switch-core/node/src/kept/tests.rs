//! Files as each format that was in use has them: today's code reads what an earlier one wrote, and writes the same as long
//! as the format's number is the same.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::counted::Counted;
use super::envelope;
use super::learnt::Learnt;

fn is_read_and_written<T: Serialize + DeserializeOwned + Debug>(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kept/formats").join(name);
    let content: T = envelope::read(&path).unwrap().expect("it is there");
    let again = std::env::temp_dir().join(format!("podswitch-{name}-{}", std::process::id()));
    envelope::write(&again, &content).unwrap();
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        text(&again),
        text(&path),
        "raise the format's number, and add a file of the new one"
    );
    std::fs::remove_file(again).unwrap();
}

#[test]
fn what_was_learnt_is_read_in_format_1() {
    is_read_and_written::<Learnt>("kept-learnt.1");
}

#[test]
fn what_was_counted_is_read_in_format_1() {
    is_read_and_written::<Counted>("kept-counts.1");
}

#[test]
fn what_another_run_counted_meanwhile_is_the_difference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kept/formats/kept-counts.1");
    let read = || envelope::read::<Counted>(&path).unwrap().unwrap();
    let text = serde_json::to_string(&read()).unwrap();
    // Some were lower before, and one was not there.
    let before = text
        .replace("\"decided\":7", "\"decided\":4")
        .replace("[\"10.1.0.3:8080\",40],", "")
        .replace("\"received\":1000", "\"received\":990")
        .replace("\"policy_ingress\":30", "\"policy_ingress\":10")
        .replace("\"sent_bytes\":100", "\"sent_bytes\":1");
    let before: Counted = serde_json::from_str(&before).unwrap();
    let more = serde_json::to_value(read().since(&before)).unwrap();
    assert_eq!(more["policies"][0]["decided"], 3);
    assert_eq!(more["policies"][1]["decided"], 0);
    assert_eq!(more["services"][0]["opened"][0][1], 40);
    assert_eq!(more["services"][0]["opened"][1][1], 0);
    assert_eq!(more["totals"]["received"], 10);
    assert_eq!(more["totals"]["hits"], 0);
    assert_eq!(more["totals"]["drops"]["policy_ingress"], 20);
    assert_eq!(more["totals"]["pods"]["a/x"]["sent_bytes"], 99);
    let mut sum = before.totals.clone();
    sum.add(&read().since(&before).totals);
    let sum = serde_json::to_value(sum).unwrap();
    assert_eq!((&sum["received"], &sum["hits"]), (&1000.into(), &800.into()));
}
