use hashbrown::DefaultHashBuilder;
use podswitch_wire::flow_key::FlowKey;
use podswitch_wire::flow_key::proto::UDP;

use super::raw::{Alike, RawDrop};
use super::table::{ROWS, SINGLES, Table};
use crate::action::DropReason;
use crate::id::{Epoch, PortId};
use crate::time::Instant;

fn drop(port: u16, second: u64) -> RawDrop {
    let key = FlowKey::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), UDP, 0, port);
    let time = Instant::from_secs(second);
    RawDrop {
        alike: Alike { reason: DropReason::NoRoute, port: PortId(1), key, object: None },
        epoch: Epoch(second as u32),
        first: time,
        last: time,
        count: 1,
        bytes: 60,
        frame: None,
    }
}

#[test]
fn similar_drops_get_some_records_and_then_one_row() {
    let mut table = Table::new(DefaultHashBuilder::default());
    assert!(table.is_empty());
    let mut singles = 0;
    for second in 1..=100 {
        match table.is_single(&drop(80, second)) {
            true => singles += 1,
            false => table.count(drop(80, second)),
        }
    }
    assert_eq!(singles, SINGLES);
    assert!(!table.is_empty());
    let mut rows = Vec::new();
    table.drain(|row| rows.push(row), |_, _| panic!("there was room"));
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row.count, row.bytes), (92, 92 * 60));
    assert_eq!((row.first, row.last), (Instant::from_secs(9), Instant::from_secs(100)));
    assert_eq!(row.epoch, Epoch(100), "names are those of the last drop");
    assert!(table.is_empty());
    assert!(table.is_single(&drop(80, 101)), "single records again after a collection");
}

#[test]
fn drops_without_a_row_are_summed() {
    let mut table = Table::new(DefaultHashBuilder::default());
    for port in 0..60_000 {
        table.count(drop(port, 7));
    }
    let (mut rows, mut counted, mut other) = (0, 0, 0);
    table.drain(
        |row| {
            rows += 1;
            counted += row.count;
        },
        |reason, sum| {
            assert_eq!(reason, DropReason::NoRoute);
            assert_eq!(sum.bytes, sum.count * 60);
            other += sum.count;
        },
    );
    assert!(rows > ROWS * 9 / 10 && rows <= ROWS, "{rows}");
    assert_eq!(counted + other, 60_000);
    table.drain(|_| panic!("drained"), |_, _| panic!("drained"));
}
