//! `demo`: the main job on one machine, without set-up. Makes two nodes, their pods and an outside
//! in network namespaces of its own, runs a switch for each node, joined by the tunnel, sends real
//! traffic between real sockets, says what was checked and measured, and removes all it made.
//!
//! The namespaces have no names: they last as long as this process, however it ends. Only
//! `--keep` gives them names, and they lose them again unless the demo comes to its end.

mod checks;
mod frames;
mod measure;
mod report;
mod servers;
mod sockets;
mod world;

use podswitch_linux::port::tap;
use podswitch_linux::userns::{self, Privilege};

use crate::failure::Failure;
use crate::signals::Signals;
use crate::{Done, print};
use report::Report;
use world::World;

/// Show the switch at work on this machine, and check it.
///
/// Makes two nodes with pods on TAP and AF_PACKET ports, a network between the nodes, and an
/// outside behind it, in network namespaces of its own; runs a switch for each node, joined by a
/// VXLAN tunnel; and sends IPv4 and IPv6 traffic between real sockets, under policies and through
/// Services. Needs root, or a system that lets ordinary users make user namespaces. Takes some
/// thirty seconds.
///
/// Exit status: 0 all checks passed, 1 one failed or something cannot be set up.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Leave the namespaces at the end, under names, to look around in them.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    // Before any thread: it may start the program again.
    let privilege = userns::ensure_privilege()?;
    // Without --keep there is nothing that a signal could leave behind.
    let signals = args.keep.then(Signals::listen).transpose()?;
    let mut report = Report::new(json, signals);
    if privilege == Privilege::UserNamespace {
        report.progress("not root: working in a user namespace");
    }
    let with_tap = match tap::is_available() {
        Ok(()) => true,
        Err(error) => {
            report.progress(format_args!("no TAP here ({error}): veth and AF_PACKET only"));
            false
        }
    };
    let mut world = World::make(with_tap, args.keep)?;
    report.progress(format_args!("made {world}"));
    let result = examine(&mut world, &mut report);
    let kept = world.end(args.keep && result.is_ok())?;
    result?;
    report.summary();
    if let Some(kept) = kept {
        print::note(kept);
    }
    if report.is_good() { Ok(()) } else { Err(Failure::Checked) }
}

/// All checks and measurements.
fn examine(world: &mut World, report: &mut Report) -> Done {
    checks::connectivity(world, report)?;
    checks::wire_format(world, report)?;
    checks::packets(world, report)?;
    checks::policy(world, report)?;
    checks::services(world, report)?;
    checks::spoofing(world, report)?;
    checks::tunnel_spoofing(world, report)?;
    checks::attachment(world, report)?;
    measure::idle(report)?;
    measure::table(world, report)?;
    checks::narrow_underlay(world, report)?;
    checks::sums(world, report)
}
