//! The demo's measurements: short runs, for a first impression. For reliable figures use `cargo
//! bench --bench compare`.

mod kernel;
mod loads;

use std::thread;
use std::time::Duration;

use podswitch_linux::HostError;
use rustix::time::{ClockId, clock_gettime};

use super::report::{Figures, Report};
use super::sockets::Outcome;
use super::world::World;
use crate::Done;
use kernel::Bridged;
use loads::Ends;

/// How long the idle switches are observed.
const IDLE: Duration = Duration::from_millis(1500);

/// Processor time of the idle switches.
pub(super) fn idle(report: &mut Report) -> Done {
    // Let the effects of the preceding checks die down.
    thread::sleep(Duration::from_millis(200));
    let before = processor_time();
    thread::sleep(IDLE);
    let used = processor_time().saturating_sub(before);
    let share = 100.0 * used.as_secs_f64() / IDLE.as_secs_f64();
    report.measured("idle: both switches", share, "% of a core");
    let outcome = if share < 1.0 { Ok(()) } else { Err(format!("it is {share:.1} %")) };
    report.check("idle: both switches below 1 % of a core", outcome)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The table at the end: one TCP stream and small datagrams, on one node and across nodes, by
/// podswitch and by the kernel.
pub(super) fn table(world: &World, report: &mut Report) -> Done {
    let mut pairs = vec![
        ("same node, AF_PACKET", "blue", "black"),
        ("across nodes, AF_PACKET, our tunnel", "blue", "white"),
    ];
    if world.pod("red").tap {
        pairs.insert(0, ("same node, TAP", "red", "green"));
        pairs.insert(2, ("across nodes, TAP, our tunnel", "red", "cyan"));
    }
    for (name, from, to) in pairs {
        let (from, to) = (world.pod(from), world.pod(to));
        let address = to.addresses.v4.into();
        let ends = Ends { from: &from.namespace, to: &to.namespace, address };
        match figures(ends) {
            Ok(figures) => report.row(name, Ok(figures)),
            Err(error) => report.check(format!("measured: {name}"), Err(error))?,
        }
    }
    // Not a check: what this kernel cannot do is noted in the table.
    let of_kernel = |made: Result<Bridged, HostError>| {
        made.map_err(|e| e.to_string()).and_then(|bridged| figures(bridged.ends()))
    };
    report.row("same node, kernel bridge", of_kernel(Bridged::one_node()));
    report.row("across nodes, kernel bridge + VXLAN", of_kernel(Bridged::two_nodes()));
    Ok(())
}

fn figures(ends: Ends<'_>) -> Outcome<Figures> {
    let stream = loads::stream(ends)?;
    let times = loads::round_trips(ends)?;
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    Ok(Figures { stream, p50: at(50), p99: at(99) })
}
