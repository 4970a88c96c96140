//! Runs after all other tests of `cargo test --workspace` and lists the tests that did not run.

use std::process::ExitCode;

use podswitch_testkit::record::{self, Entry, Outcome};

fn main() -> ExitCode {
    // Test runners pass this argument.
    if std::env::args().any(|argument| argument == "--list") {
        println!("summary: test");
        return ExitCode::SUCCESS;
    }
    let entries = record::take();
    let (skipped, elsewhere): (Vec<_>, Vec<_>) =
        entries.iter().partition(|entry| entry.outcome == Outcome::Skipped);
    println!();
    if !elsewhere.is_empty() {
        println!("Run in user namespaces, because of missing root privilege: {}.", elsewhere.len());
    }
    if skipped.is_empty() {
        println!("No test was skipped.");
        return ExitCode::SUCCESS;
    }
    println!("SKIPPED, in whole or in part: {}.", skipped.len());
    for of_a_reason in skipped.chunk_by(|a, b| a.reason == b.reason) {
        println!("  {}: {}", of_a_reason.len(), of_a_reason[0].reason);
        for Entry { test, .. } in of_a_reason {
            println!("      {test}");
        }
    }
    ExitCode::SUCCESS
}
