//! Files of every format that was in use.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use podswitch_core::control::{Restored, memory_size};

use super::rig::services::*;
use super::{Folder, LIMITS, Run, ends_of, run};

/// The connections in the files of each format: TCP and UDP in both families through a Service.
fn open_for_fixture(run: &mut Run) {
    for f in FAMILIES {
        let (client, vip) = ends_of(f, 4000);
        run.open(client, vip, 1);
        run.up(client, vip, None, 1);
    }
}

/// Position of the process's clock in the header.
const CLOCK: u64 = 8;

/// A file as each format that was in use has it, but for words that are zero: today's code restores its connections.
#[test]
fn connections_of_earlier_formats_are_restored() {
    for (format, words) in [(1, include_str!("formats/connections.1"))] {
        let folder = Folder::new();
        let file = fs::File::create(folder.0.join("connections.0")).unwrap();
        file.set_len(memory_size(LIMITS.connections) as u64).unwrap();
        for line in words.lines() {
            let (at, word) = line.split_once(' ').unwrap();
            let (at, word) = (u64::from_str_radix(at, 16), u64::from_str_radix(word, 16));
            file.write_all_at(&word.unwrap().to_le_bytes(), at.unwrap()).unwrap();
        }
        // As if it had run on this machine.
        let now = podswitch_linux::kept_connections::monotonic().as_nanos() as u64;
        file.write_all_at(&now.to_le_bytes(), CLOCK).unwrap();
        let mut run = run(&folder.0, &config(&[2, 1]), 1, Duration::ZERO);
        assert_eq!(run.restore(), Restored { restored: 4, ..Restored::default() }, "{format}");
        for f in FAMILIES {
            let (client, vip) = ends_of(f, 4000);
            run.up(client, vip, Some((101, 501, ACK)), 1);
            run.down(client, vip, (501, 101, ACK), 1);
            run.up(client, vip, None, 1);
        }
        run.switch.assert_adds_up();
    }
}

/// Writes the file of the present format: when its number is raised, call it with the number, and add it above.
#[test]
#[ignore = "writes a file for connections_of_earlier_formats_are_restored"]
fn write_fixture() {
    let folder = Folder::new();
    open_for_fixture(&mut run(&folder.0, &config(&[1]), 0, Duration::ZERO));
    let bytes = fs::read(folder.0.join("connections.0")).unwrap();
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let used = words.enumerate().filter(|(_, word)| *word != 0);
    let text: String = used.map(|(n, word)| format!("{:x} {word:x}\n", n * 8)).collect();
    fs::write(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/kept_connections/formats/connections.new"),
        text,
    )
    .unwrap();
}
